"""The options of conversion commands that are about precision."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from passes.precision.recipe import FLOAT_TYPES
from rewriter.commands.npz import batches, read_npz
from rewriter.errors import InvalidParameterError
from rewriter.params import DEFAULT_TRT_CONVERSION_PARAMS, TrtPrecisionMode
from rewriter.precision.options import ASYMMETRIC_RULES, CALIBRATION_METHODS, PrecisionOptions

if TYPE_CHECKING:
    from rewriter.accuracy.target import AccuracyTarget

#: Samples in one calibration run unless the user says otherwise.
CALIBRATION_BATCH = 8


def add_precision_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--precision-mode` and what goes with it."""
    defaults = PrecisionOptions()
    group = parser.add_argument_group("precision")
    add = group.add_argument
    modes = ", ".join(mode for mode in TrtPrecisionMode.supported_precision_modes() if mode.isupper())
    add(
        "--precision-mode",
        default=DEFAULT_TRT_CONVERSION_PARAMS.precision_mode,
        help=f"arithmetic of the engines: {modes}, in either case (default FP32)",
    )
    add("--keep-ops", default="", help="ONNX operator types that keep the source's precision, as Softmax,Resize")
    add("--keep-nodes", action="append", default=[], help="regular expression on node names; may be repeated")
    add(
        "--float-type",
        type=str.upper,
        choices=FLOAT_TYPES,
        help="INT8 and FP8: what nodes that are not quantised compute in, in either case (default FP16)",
    )
    add(
        "--int4-block", type=int, default=0, help="store MatMul weights in 4 bits, so many to a scale (16, 32, 64, 128)"
    )
    add(
        "--calibration-inputs",
        metavar="IN.npz",
        help="INT8 and FP8: typical inputs, one array an input, [samples, ...]",
    )
    add(
        "--calibration-batch",
        type=int,
        metavar="N",
        help=f"samples in one calibration run, at least 1 (default {CALIBRATION_BATCH}); with --calibration-inputs",
    )
    add("--calibration", metavar="RANGES", help="a calibration.json, or an artifact that holds one, to use again")
    add(
        "--calibration-method",
        choices=CALIBRATION_METHODS,
        default=defaults.calibration_method,
        help="INT8 and FP8: how ranges are chosen: percentile clips the largest magnitudes, entropy loses least "
        f"information, minmax clips nothing (default {defaults.calibration_method})",
    )
    add(
        "--percentile",
        type=float,
        default=defaults.percentile,
        help="percentage of values that --calibration-method percentile keeps, above 50 and at most 100 (default "
        f"{defaults.percentile:g})",
    )
    add("--no-calibration", action="store_true", help="all ranges must be in the model already (fake quantisation)")
    add(
        "--asymmetric",
        choices=ASYMMETRIC_RULES,
        default=defaults.asymmetric,
        help="trained ranges that symmetric int8 cannot hold exactly (default symmetrise)",
    )


def add_accuracy_options(parser: argparse.ArgumentParser) -> None:
    """Adds the accuracy guard's options, for commands that may take long."""
    group = parser.add_argument_group("accuracy guard", "nodes that break the target keep a higher precision")
    group.add_argument(
        "--max-rel-diff",
        type=float,
        help="largest relative difference from native that lower precision may make, in emulation",
    )
    group.add_argument(
        "--accuracy-inputs", metavar="IN.npz", help="typical inputs to judge it on, one array an input, [samples, ...]"
    )


def accuracy_target(arguments: argparse.Namespace) -> AccuracyTarget | None:
    """What `--max-rel-diff` and `--accuracy-inputs` say, for `Converter(accuracy=)`; None without them.

    Raises:
        InvalidParameterError: one of the two is missing, or the limit is no positive number.
        InputError: the file cannot be read.
    """
    limit, path = arguments.max_rel_diff, arguments.accuracy_inputs
    if limit is None and path is None:
        return None
    if limit is None or path is None:
        raise InvalidParameterError("--max-rel-diff and --accuracy-inputs go together: give both")
    from rewriter.accuracy.target import AccuracyTarget

    return AccuracyTarget(batches(read_npz(path), CALIBRATION_BATCH, path), max_rel_diff=limit)


def precision_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parsed options as keyword arguments of `Converter`."""
    options = PrecisionOptions(
        float_type=arguments.float_type,
        keep_ops=tuple(word.strip() for word in arguments.keep_ops.split(",") if word.strip()),
        keep_nodes=tuple(arguments.keep_nodes),
        calibration_method=arguments.calibration_method,
        percentile=arguments.percentile,
        asymmetric=arguments.asymmetric,
        int4_block=arguments.int4_block,
    )
    return {
        "precision_mode": arguments.precision_mode,
        "use_calibration": not arguments.no_calibration,
        "precision": options,
        "calibration": arguments.calibration,
    }


def calibration_input_fn(arguments: argparse.Namespace) -> Callable[[], Iterator[dict[str, Any]]] | None:
    """What `--calibration-inputs` says as a function for `Converter.convert`; None without it.

    Raises:
        InputError: the file cannot be read, or its arrays do not go together.
        InvalidParameterError: `--calibration-batch` is less than 1, or there are no inputs to divide.
    """
    size = arguments.calibration_batch
    if size is not None and size < 1:
        raise InvalidParameterError(f"--calibration-batch must be at least 1, not {size}")
    path = arguments.calibration_inputs
    if path is None:
        if size is not None:
            raise InvalidParameterError("--calibration-batch goes with --calibration-inputs: leave it out")
        return None
    return batches(read_npz(path), size or CALIBRATION_BATCH, path)
