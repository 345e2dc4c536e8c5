"""`trt-rewriter convert SRC -o OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rewriter.commands.options import add_conversion_options, conversion_arguments, parse_shapes, words
from rewriter.commands.precision_options import accuracy_target, add_accuracy_options, calibration_input_fn
from rewriter.commands.screen import StageScreen, import_tensorflow, title
from rewriter.errors import InvalidParameterError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("source", metavar="SRC", help="SavedModel directory, .keras, .h5 or .onnx file")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder to write the artifact to")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an existing artifact (refused when its folder holds other files)",
    )
    parser.add_argument("--tags", help="tags of the SavedModel's graph, separated by commas (default serve)")
    parser.add_argument("--signature", help="signature key (default serving_default)")
    parser.add_argument(
        "--shapes",
        action="append",
        default=[],
        metavar="NAME:SHAPE[,SHAPE...]",
        help="shapes of an input that the engines must cover, as image:1x224x224x3,8x224x224x3,32x224x224x3; three are "
        "minimum, optimum and maximum, in this order; once an input; default: batches 1 and 8, other unknown "
        "dimensions as in the check against TensorFlow",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest relative difference from TensorFlow that the check of the export lets pass (default 1e-4)",
    )
    parser.add_argument("--no-engines", action="store_true", help="save without building engines")
    add_conversion_options(parser)
    add_accuracy_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Converts, builds, saves and prints the summary."""
    from rewriter.artifact import check_output
    from rewriter.converter import Converter
    from rewriter.shapes.sampling import check_named_shapes, check_profile_shapes
    from rewriter.summary import plain_console, print_report

    console = plain_console()
    shapes = parse_shapes(arguments.shapes)
    check_profile_shapes(shapes)
    _check_static(arguments)
    for name, value in (("SRC", arguments.source), ("-o", arguments.output)):
        if not value:
            raise InvalidParameterError(f"{name} is an empty path")
    output = Path(arguments.output)
    check_output(output, overwrite=arguments.overwrite)
    if Path(arguments.source).exists() and Path(arguments.source).suffix != ".onnx":
        import_tensorflow(f"reading {arguments.source}")
    title(console, f"Converting {arguments.source}")
    with Converter(
        model=arguments.source,
        input_saved_model_tags=words(arguments.tags) if arguments.tags else None,
        input_saved_model_signature_key=arguments.signature,
        tolerance=arguments.tolerance,
        accuracy=accuracy_target(arguments),
        progress=StageScreen(console),
        **conversion_arguments(arguments),
    ) as converter:
        converter.convert(
            calibration_input_fn(arguments), check=lambda signature: check_named_shapes(signature, shapes)
        )
        if arguments.no_engines:
            converter.calibrate()
        elif arguments.is_dynamic_op:  # else the engines are there already
            converter.build(converter.sample_input_fn(shapes))
        converter.save(output, save_gpu_specific_engines=not arguments.no_engines, overwrite=arguments.overwrite)
        print_report(console, converter.report)
        verification = converter.report.verification
    if verification:
        console.print(f"Largest relative difference from TensorFlow: {max(verification.values()):.1e}")
    console.print(f"Saved to {output}")
    return 0


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
