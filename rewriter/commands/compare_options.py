"""The options of `trt-rewriter compare`, and what of them can be checked before anything is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from rewriter.commands.options import check_target, words
from rewriter.errors import InvalidParameterError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("source", metavar="SRC", help="what was converted: SavedModel directory, .keras, .h5 or .onnx")
    parser.add_argument("artifact", metavar="OUT", help="folder of the artifact")
    _add_data(parser)
    _add_limits(parser)
    _add_results(parser)
    add = parser.add_argument
    add(
        "--runners",
        metavar="NAMES",
        help="what to hold against each other, out of source,native,emulated,tensorrt (default: all that runs here)",
    )
    add("--strict", action="store_true", help="fail when TensorRT would not use an engine, or there is no GPU")
    add("--device", type=int, default=0, metavar="N", help="number of the GPU (default: 0)")
    add("--tags", help="tags of the SavedModel's graph, separated by commas (default serve)")
    add("--signature", help="signature key (default serving_default)")
    add("--graph-inputs", metavar="NAMES", help="input tensors of a frozen GraphDef, as `convert` got them")
    add("--graph-outputs", metavar="NAMES", help="output tensors of a frozen GraphDef, likewise")


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--inputs",
        action="append",
        default=[],
        metavar="FILE",
        help="IN.npz with one array an input, named as the signature, or IN.json of Polygraphy's --save-inputs; may be "
        "repeated (default: made-up inputs)",
    )
    add("--batch-size", type=int, metavar="N", help="run the rows of each .npz file N at a time (default: all at once)")
    add(
        "--data-script",
        metavar="FILE.py[:FUNCTION]",
        help="a function without arguments that yields dicts of input name to array (default: load_data), as for "
        "Polygraphy's --data-loader-script",
    )
    add(
        "--shapes",
        action="append",
        default=[],
        metavar="NAME:SHAPE[,SHAPE...]",
        help="shapes of made-up inputs, as image:1x224x224x3,8x224x224x3; once an input",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--tolerance",
        action="append",
        default=[],
        metavar="[OUTPUT:]VALUE",
        help="largest max|difference| / max|reference| that passes, of all outputs or of one; may be repeated "
        "(default: 1e-4 for the native run, and for the engines what their precision usually costs: TF32 and FP16 "
        "5e-3, BF16 4e-2, INT8 and FP8 1e-1)",
    )
    add(
        "--absolute-tolerance",
        type=float,
        metavar="VALUE",
        help="an output whose largest difference is at most this passes, too (default: there is no such bound)",
    )
    add(
        "--top-k",
        metavar="K[,K...]",
        help="also the share of the K largest scores of a row that stay among the K largest",
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--bisect",
        action="store_true",
        help="find the first segment and node where a pair that failed begins to differ, and the option against it",
    )
    add("--json", metavar="FILE", help="write all figures to this file")
    add("--html", metavar="FILE", help="write a page with all figures and pictures, in one file")
    add("--pictures", metavar="DIR", help="write a histogram and a heat map of every output and pair as PNG files")


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuses what cannot be obeyed, before anything is loaded or run.

    Raises:
        InvalidParameterError: options that contradict each other, or files that cannot be written.
        MissingDependencyError: pictures are wanted, and matplotlib is not installed.
    """
    given = [
        option
        for option, value in (
            ("--inputs", arguments.inputs),
            ("--data-script", arguments.data_script),
            ("--shapes", arguments.shapes),
        )
        if value
    ]
    if len(given) > 1:
        raise InvalidParameterError(f"{' and '.join(given)} both say what the inputs are: leave one of them out")
    if arguments.batch_size is not None and (not arguments.inputs or arguments.batch_size < 1):
        raise InvalidParameterError("--batch-size is the number of rows (at least 1) that --inputs are cut into")
    check_target("--json", arguments.json)
    check_target("--html", arguments.html)
    if arguments.pictures and Path(arguments.pictures).exists() and not Path(arguments.pictures).is_dir():
        raise InvalidParameterError(f"--pictures {arguments.pictures!r} is a file: name a folder")
    if arguments.html or arguments.pictures:
        from rewriter.comparing.pictures import import_matplotlib

        import_matplotlib()


def parse_top_k(text: str | None) -> tuple[int, ...]:
    """Reads "1,5"; sorted, each number once.

    Raises:
        InvalidParameterError: it is written otherwise.
    """
    if text is None:
        return ()
    numbers = words(text)
    if not numbers or not all(number.isascii() and number.isdigit() and int(number) > 0 for number in numbers):
        raise InvalidParameterError(f"--top-k {text!r}: write numbers of at least 1, as 1,5")
    return tuple(sorted({int(number) for number in numbers}))
