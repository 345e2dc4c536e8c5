"""`trt-rewriter demo`: a TensorFlow model becomes an artifact, is loaded again, run, and compared with TensorFlow."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.precision.recipe import QUANTIZED_MODES, Recipe
from rewriter.commands.options import add_conversion_options, conversion_arguments
from rewriter.commands.precision_options import calibration_input_fn
from rewriter.commands.screen import StageScreen, import_tensorflow, title
from rewriter.errors import InvalidParameterError
from rewriter.temporary import TemporaryFolder

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

#: Largest relative difference from TensorFlow that the demo accepts.
TOLERANCE = 1e-4
#: By how much the accuracy of the emulated engines may fall below that of the native run.
ACCURACY_LOSS = 0.02
DIGITS = "digits"
_BATCHES = (1, 8, 32)
#: Images that INT8 and FP8 are calibrated with.
CALIBRATION_IMAGES = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument(
        "--model",
        default=DIGITS,
        help="digits (default: a trained classifier that ships here) or a Keras application, for example resnet50",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="keep the artifact in this folder (default: a temporary one)"
    )
    add_conversion_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the demo; 1 when the outputs differ from TensorFlow's, or lower precision costs accuracy."""
    from rewriter.artifact import check_output
    from rewriter.reports.summary import plain_console

    console = plain_console()
    if arguments.output:
        check_output(Path(arguments.output), overwrite=False)
        return _demo(console, arguments, Path(arguments.output))
    with TemporaryFolder("trt-rewriter-demo-") as folder:
        return _demo(console, arguments, folder / "artifact")


def _demo(console: Console, arguments: argparse.Namespace, output: Path) -> int:
    from rewriter.converter import Converter
    from rewriter.reports.summary import print_report

    calibration = calibration_input_fn(arguments)
    model, call, images, labels = _digits() if arguments.model == DIGITS else _application(arguments.model)
    title(console, f"1. Convert {arguments.model}, a TensorFlow model")
    start = time.perf_counter()
    with Converter(model=model, progress=StageScreen(console), **conversion_arguments(arguments)) as converter:
        converter.convert(calibration or _own_images(arguments, images))
        name = converter.signature.inputs[0].name
        if arguments.is_dynamic_op:  # else the engines are there already
            converter.build(converter.sample_input_fn({name: [(batch, *images.shape[1:]) for batch in _BATCHES]}))
        converter.save(output)
        report = converter.report
    console.print(f"  in all     {time.perf_counter() - start:7.2f} s")
    title(console, "2. What TensorRT took, and what stays native")
    print_report(console, report)
    title(console, "3. Load the artifact and run it")
    status = _compare(console, output, call, images, labels)
    if Recipe.from_json(report.precision.recipe).changes:
        title(console, f"4. Emulate what the engines compute in {report.precision.label}")
        status = max(status, _emulate(console, output, images, labels))
    console.print("Next: trt-rewriter convert YOUR_SAVED_MODEL -o OUT, then trt-rewriter inspect OUT")
    return status


def _compare(
    console: Console,
    output: Path,
    call: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    images: np.ndarray,
    labels: np.ndarray | None,
) -> int:
    """Runs the saved artifact and TensorFlow on the same inputs and prints how they compare."""
    import numpy as np

    from rewriter.reports.summary import human_size
    from rewriter.runtime.loading import load

    expected = call(images)
    with load(output) as function:
        actual = function(images)
        stats = function.stats()
    worst = 0.0
    for name, reference in expected.items():
        difference = np.abs(np.asarray(actual[name], np.float64) - reference).max()
        relative = float(difference / max(np.abs(reference).max(), 1e-30))
        worst = max(worst, relative)
        console.print(f"  {name}: largest relative difference from TensorFlow {relative:.1e}")
    if labels is not None:
        hits = [float((np.asarray(run["digit"]) == labels).mean()) for run in (expected, actual)]
        console.print(f"  accuracy on {len(labels)} test images: TensorFlow {hits[0]:.1%}, converted {hits[1]:.1%}")
    for reason, count in stats["fallbacks"].items():
        console.print(f"  {count} engine call(s) ran natively: {reason}")
    sizes = {
        kind: sum(p.stat().st_size for p in output.rglob(pattern) if p.is_file())
        for kind, pattern in (("model.onnx + weights", "model.onnx*"), ("engines", "*.engine"), ("all files", "*"))
    }
    console.print("  " + ", ".join(f"{kind} {human_size(size)}" for kind, size in sizes.items()))
    passed = worst <= TOLERANCE
    verdict = "PASSED" if passed else "FAILED"
    console.print(
        f"{verdict}: the largest difference from what TensorFlow computes is {worst:.1e} (limit {TOLERANCE:.0e}).",
        style="bold green" if passed else "bold red",
    )
    return 0 if passed else 1


def _own_images(arguments: argparse.Namespace, images: np.ndarray) -> Callable[[], list[np.ndarray]] | None:
    """The demo's own calibration inputs; None where none are needed."""
    wanted = arguments.precision_mode.upper() in QUANTIZED_MODES and arguments.calibration is None
    return (lambda: [images[:CALIBRATION_IMAGES]]) if wanted and not arguments.no_calibration else None


def _emulate(console: Console, output: Path, images: np.ndarray, labels: np.ndarray | None) -> int:
    """Runs the engines' arithmetic on the CPU and prints how it differs; 1 when it costs too much accuracy."""
    from rewriter.comparing.comparison import difference
    from rewriter.runtime.loading import load

    with load(output) as native, load(output, execution="emulate") as emulated:
        exact, lowered = native(images), emulated(images)
    for name, reference in exact.items():
        if reference.dtype.kind == "f":
            found = difference(name, [reference], [lowered[name]])
            console.print(f"  {name}: largest relative difference from the source's precision {found.max_rel:.1e}")
    if labels is None:
        return 0
    hits = [float((run["digit"] == labels).mean()) for run in (exact, lowered)]
    console.print(f"  accuracy on {len(labels)} test images: native {hits[0]:.1%}, emulated {hits[1]:.1%}")
    if round(hits[0] - hits[1], 9) <= ACCURACY_LOSS:
        return 0
    console.print(
        f"FAILED: emulated accuracy is {100 * (hits[0] - hits[1]):.1f} points below the native one (limit "
        f"{100 * ACCURACY_LOSS:g}): calibrate with more typical inputs, or keep nodes in higher precision.",
        style="bold red",
    )
    return 1


def _digits() -> tuple[Any, Callable[[np.ndarray], Mapping[str, np.ndarray]], np.ndarray, np.ndarray | None]:
    """The shipped classifier with its test images and labels."""
    from rewriter.demo import digits_path, load_digits_test

    tf = import_tensorflow("the demo")
    loaded = tf.saved_model.load(str(digits_path()))
    signature = loaded.signatures["serving_default"]
    images, labels = load_digits_test()

    def call(batch: np.ndarray) -> Mapping[str, np.ndarray]:
        outputs = signature(**{next(iter(signature.structured_input_signature[1])): tf.constant(batch)})
        return {key: value.numpy() for key, value in outputs.items()}

    call.keep = loaded  # type: ignore[attr-defined]  # the signature dies with its SavedModel
    return digits_path(), call, images, labels


def _application(name: str) -> tuple[Any, Callable[[np.ndarray], Mapping[str, np.ndarray]], np.ndarray, None]:
    """A Keras application with random weights (nothing is downloaded) and random images."""
    import numpy as np

    tf = import_tensorflow("the demo")
    applications = {
        key.lower(): value
        for key, value in vars(tf.keras.applications).items()
        if key[:1].isupper() and callable(value)
    }
    if name.lower() not in applications:
        raise InvalidParameterError(
            f"--model must be {DIGITS} or one of {', '.join(sorted(applications))}, not {name!r}"
        )
    tf.keras.utils.set_random_seed(0)
    model = applications[name.lower()](weights=None)
    shape = tuple(model.inputs[0].shape[1:])
    images = np.random.default_rng(0).random((2, *shape), dtype=np.float32)

    def call(batch: np.ndarray) -> Mapping[str, np.ndarray]:
        output = model(batch, training=False)
        return {"output_0": output.numpy()}

    return model, call, images, None
