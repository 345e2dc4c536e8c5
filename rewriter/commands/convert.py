"""`trt-rewriter convert SRC -o OUT`."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rewriter.by_signature import ALL_SIGNATURES
from rewriter.commands.dry_run import dry_run
from rewriter.commands.options import Shapes, add_conversion_options, conversion_arguments, parse_shapes
from rewriter.commands.precision_options import accuracy_target, add_accuracy_options, calibration_input_fn
from rewriter.commands.screen import StageScreen, import_tensorflow, title
from rewriter.commands.source_options import add_source_options, source_arguments
from rewriter.errors import InvalidParameterError

if TYPE_CHECKING:
    from rewriter.converter import Converter
    from rewriter.shapes.sampling import InputFn
    from rewriter.source import Signature


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    add_source_options(parser)
    parser.add_argument("-o", "--output", metavar="OUT", help="folder to write the artifact to")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build and save nothing: show the engines there would be, what stays native and why, and what other "
        "values of --minimum-segment-size would give",
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: print JSON")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an existing artifact (refused when its folder holds other files)",
    )
    parser.add_argument(
        "--shapes",
        action="append",
        default=[],
        metavar="NAME:SHAPE[,SHAPE...]",
        help="shapes of an input that the engines must cover, as image:1x224x224x3,8x224x224x3,32x224x224x3; three are "
        "minimum, optimum and maximum, in this order; once an input; default: batches 1 and 8, other unknown "
        "dimensions as in the check against TensorFlow",
    )
    parser.add_argument("--no-engines", action="store_true", help="save without building engines")
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="engines built at the same time, at most (default: with TensorRT-RTX as many as there are cores, and "
        "memory for, up to 8; with TensorRT one)",
    )
    add_conversion_options(parser)
    add_accuracy_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Converts, builds, saves and prints the summary."""
    from rewriter.artifact import check_output
    from rewriter.building.jobs import check_jobs
    from rewriter.converter import Converter
    from rewriter.frontend.noise import collector_paused
    from rewriter.reports.summary import plain_console, print_report
    from rewriter.shapes.sampling import check_profile_shapes

    if arguments.dry_run:
        return dry_run(arguments)
    console = plain_console()
    shapes = parse_shapes(arguments.shapes)
    check_profile_shapes(shapes)
    _check_static(arguments)
    check_jobs(arguments.jobs)
    output = _output(arguments)
    check_output(output, overwrite=arguments.overwrite)
    if Path(arguments.source).exists() and Path(arguments.source).suffix != ".onnx":
        import_tensorflow(f"reading {arguments.source}")
    title(console, f"Converting {arguments.source}")
    with (
        Converter(
            accuracy=accuracy_target(arguments),
            # What TensorFlow leaves behind is cleared away while TensorRT builds, and not before: that saves the wait.
            progress=StageScreen(console, meanwhile=gc.collect),
            **source_arguments(arguments),
            **conversion_arguments(arguments),
        ) as converter,
        collector_paused(),
    ):
        converter.convert(calibration_input_fn(arguments), check=_shape_check(arguments, shapes), jobs=arguments.jobs)
        if arguments.no_engines:
            converter.calibrate()
        elif arguments.is_dynamic_op:  # else the engines are there already
            converter.build(_input_fns(converter, shapes), jobs=arguments.jobs)
        converter.save(output, save_gpu_specific_engines=not arguments.no_engines, overwrite=arguments.overwrite)
        for key, report in converter.reports.items():
            if len(converter.reports) > 1:
                title(console, f"Signature {key}")
            print_report(console, report)
            if report.verification:
                worst = max(report.verification.values())
                console.print(f"Largest relative difference from TensorFlow: {worst:.1e}")
    console.print(f"Saved to {output}")
    return 0


def _output(arguments: argparse.Namespace) -> Path:
    """The folder to write to.

    Raises:
        InvalidParameterError: there is none, a path is empty, or an option goes with --dry-run alone.
    """
    if arguments.json:
        raise InvalidParameterError("--json goes with --dry-run: of a saved artifact `inspect OUT --json` prints it")
    if arguments.output is None:
        raise InvalidParameterError("give the folder to write to as -o OUT, or --dry-run")
    for name, value in (("SRC", arguments.source), ("-o", arguments.output)):
        if not value:
            raise InvalidParameterError(f"{name} is an empty path")
    return Path(arguments.output)


def _shape_check(arguments: argparse.Namespace, shapes: Shapes) -> Callable[[Signature], None] | None:
    """What is to be checked as soon as a signature is read; with several ones only all of them together tell."""
    from rewriter.shapes.sampling import check_named_shapes

    if arguments.signature and ("," in arguments.signature or arguments.signature == ALL_SIGNATURES):
        return None
    return lambda signature: check_named_shapes(signature, shapes)


def _input_fns(converter: Converter, shapes: Shapes) -> dict[str, InputFn]:
    """Made-up inputs for every signature; of the shapes each takes those of its own inputs.

    Raises:
        InvalidParameterError: shapes for an input that no signature has, or that do not fit.
    """
    from rewriter.shapes.sampling import shapes_by_signature

    shared = shapes_by_signature(converter.signatures, shapes)
    return {key: converter.sample_input_fn(own, signature_key=key) for key, own in shared.items()}


def _check_static(arguments: argparse.Namespace) -> None:
    """Refuses options that say otherwise than `--no-is-dynamic-op`, which builds in `convert()`, for batches.

    Raises:
        InvalidParameterError: it is given with one of them.
    """
    if arguments.is_dynamic_op:
        return
    for name, value in (("--shapes", arguments.shapes), ("--no-engines", arguments.no_engines)):
        if value:
            raise InvalidParameterError(
                f"--no-is-dynamic-op builds engines for batches 1 to --max-batch-size: leave {name} out"
            )
