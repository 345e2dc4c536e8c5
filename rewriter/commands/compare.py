"""`trt-rewriter compare SRC OUT`: the source, the artifact run natively, and its engines in emulation, side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.precision.recipe import QUANTIZED_MODES
from rewriter.commands.npz import read_npz
from rewriter.commands.options import parse_shapes, words
from rewriter.errors import ConversionError, InvalidParameterError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from rewriter.artifact import Artifact
    from rewriter.comparing.comparison import Comparison, Difference, Pair, PairDifference
    from rewriter.frontend.reference import Reference
    from rewriter.source import Signature

#: Largest relative difference between the source and its native run that passes unless the user says otherwise.
NATIVE_TOLERANCE = 1e-4
_MADE_UP = "made-up inputs say little about calibrated ranges (INT8, FP8): give --inputs with typical data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("source", metavar="SRC", help="what was converted: SavedModel directory, .keras, .h5 or .onnx")
    parser.add_argument("artifact", metavar="OUT", help="folder of the artifact")
    parser.add_argument(
        "--inputs",
        action="append",
        default=[],
        metavar="IN.npz",
        help="one array an input, named as the signature; may be repeated (default: made-up inputs)",
    )
    parser.add_argument(
        "--shapes",
        action="append",
        default=[],
        metavar="NAME:SHAPE[,SHAPE...]",
        help="shapes of made-up inputs, as image:1x224x224x3,8x224x224x3; once an input",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest max|difference| / max|reference| that passes (default: 1e-4 for the native run, and for the "
        "engines what their precision usually costs: FP16 5e-3, BF16 4e-2, INT8 and FP8 1e-1)",
    )
    parser.add_argument("--tags", help="tags of the SavedModel's graph, separated by commas (default serve)")
    parser.add_argument("--signature", help="signature key (default serving_default)")
    parser.add_argument(
        "--graph-inputs", metavar="NAMES", help="input tensors of a frozen GraphDef, as `convert` got them"
    )
    parser.add_argument("--graph-outputs", metavar="NAMES", help="output tensors of a frozen GraphDef, likewise")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")


def run(arguments: argparse.Namespace) -> int:
    """Compares and prints; 1 when an output differs by more than the tolerance."""
    from rewriter.artifact import load_artifact
    from rewriter.commands.screen import import_tensorflow
    from rewriter.params import check_tolerance
    from rewriter.reports.summary import plain_console

    tolerance = check_tolerance(arguments.tolerance)
    shapes = parse_shapes(arguments.shapes)
    if shapes and arguments.inputs:
        raise InvalidParameterError("--shapes makes inputs up and --inputs gives them: leave one of them out")
    if arguments.json and not Path(arguments.json).resolve().parent.is_dir():
        raise InvalidParameterError(f"--json {arguments.json!r}: there is no such folder")
    given = [read_npz(path) for path in arguments.inputs]
    artifact = load_artifact(arguments.artifact)
    if arguments.signature in artifact.signatures[1:]:
        artifact = load_artifact(arguments.artifact, signature=arguments.signature)
    if Path(arguments.source).exists() and Path(arguments.source).suffix != ".onnx":
        import_tensorflow(f"running {arguments.source}")
    comparison = _compare(arguments, artifact, given, shapes, tolerance)
    print_comparison(plain_console(), comparison)
    if arguments.json:
        text = json.dumps(comparison.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        try:
            Path(arguments.json).write_text(text, "utf-8")
        except OSError as error:
            raise InvalidParameterError(f"cannot write {arguments.json!r}: {error}") from error
    return 0 if comparison.passed else 1


def _compare(
    arguments: argparse.Namespace,
    artifact: Artifact,
    given: Sequence[Mapping[str, Any]],
    shapes: Mapping[str, Any],
    tolerance: float | None,
) -> Comparison:
    """Opens what is compared, and runs it."""
    from rewriter.comparing.comparison import Runner, compare
    from rewriter.frontend.reference import open_reference
    from rewriter.runtime.loading import load

    tags = words(arguments.tags) if arguments.tags else None
    reference = open_reference(
        arguments.source,
        tags=tags,
        signature_key=arguments.signature,
        inputs=words(arguments.graph_inputs) if arguments.graph_inputs else None,
        outputs=words(arguments.graph_outputs) if arguments.graph_outputs else None,
    )
    _check_inputs(reference, artifact)
    samples = _samples(reference, artifact, given, shapes)
    precisions = engine_precisions(artifact)
    runners: dict[str, Runner] = {"source": reference.run}
    said = {"source": reference.origin, "native": f"{artifact.path}, every node in ONNX Runtime"}
    notes = input_notes(precisions, given)
    name = artifact.signature.name
    with load(artifact.path, signature=name, execution="native") as native:
        runners["native"] = lambda inputs: native(**inputs)
        if not precisions:
            notes.append("no engine computes in another precision than the source, so there is nothing to emulate")
            return compare(runners, samples, pairs(precisions, tolerance), words=said, notes=notes)
        with load(artifact.path, signature=name, execution="emulate") as emulated:
            runners["emulated"] = lambda inputs: emulated(**inputs)
            said["emulated"] = f"{artifact.path}, engines ({', '.join(precisions)}) emulated on the CPU"
            return compare(runners, samples, pairs(precisions, tolerance), words=said, notes=notes)


def engine_precisions(artifact: Artifact) -> tuple[str, ...]:
    """Labels of what the engines compute in, as "INT8+FP16", without FP32 and TF32; sorted."""
    from passes.engine_node import engine_nodes, read_attributes

    labels = {read_attributes(node).precision for _, node in engine_nodes(artifact.model.proto)}
    return tuple(sorted(labels - {"FP32", "TF32"}))


def input_notes(precisions: Sequence[str], given: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must be known about the inputs to read the figures.

    Args:
        precisions: what the engines compute in.
        given: the user's inputs; none when they are made up.
    """
    quantised = any(mode in QUANTIZED_MODES for label in precisions for mode in label.split("+"))
    return [_MADE_UP] if quantised and not given else []


def pairs(precisions: Sequence[str], tolerance: float | None) -> tuple[Pair, ...]:
    """Who is held against whom, and how far off may be; what the precisions usually cost if nothing is said."""
    from passes.testing import TOLERANCES
    from rewriter.comparing.comparison import Pair

    native = NATIVE_TOLERANCE if tolerance is None else tolerance
    if not precisions:
        return (Pair("source", "native", native),)
    modes = [part for label in precisions for part in label.split("+")]
    usual = max(TOLERANCES.get(mode, TOLERANCES["INT8"]) for mode in modes)
    lowered = usual if tolerance is None else tolerance
    return (
        Pair("source", "native", native),
        Pair("native", "emulated", lowered),
        Pair("source", "emulated", lowered),
    )


def _check_inputs(reference: Reference, artifact: Artifact) -> None:
    """Tells a source that the artifact was not made from, as far as its inputs show it."""
    known = [spec.name for spec in artifact.signature.inputs]
    if set(known) != set(reference.inputs):
        raise ConversionError(
            f"{reference.origin} has the inputs {', '.join(reference.inputs)}, {artifact.path} has {', '.join(known)}: "
            "it was converted from another model or signature"
        )


def _samples(
    reference: Reference, artifact: Artifact, given: Sequence[Mapping[str, Any]], shapes: Mapping[str, Any]
) -> list[dict[str, np.ndarray]]:
    """The inputs, checked against the artifact's signature."""
    from rewriter.runtime.inputs import bind, to_array
    from rewriter.shapes.sampling import shaped_input_fn

    signature = artifact.signature
    found: Sequence[Mapping[str, Any]] = given
    if not given:
        found = reference.samples()
        if shapes or not all(_has_shapes_of(signature, sample) for sample in found) or not found:
            found = list(shaped_input_fn(signature, shapes, found)())
    bound = [bind(signature, (sample,), {}) for sample in found]
    return [{spec.name: to_array(values[spec.name], spec) for spec in signature.inputs} for values in bound]


def _has_shapes_of(signature: Signature, sample: Mapping[str, Any]) -> bool:
    """False where the conversion fixed a dimension (`--specialize`) that a sample of the source has otherwise."""
    for spec in signature.inputs:
        shape = getattr(sample.get(spec.name), "shape", None)
        for dim, size in zip(spec.shape or (), shape or (), strict=False):
            if isinstance(dim, int) and dim != size:
                return False
    return True


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Values of every runner, differences of every pair, and the verdict."""
    for name, meaning in comparison.runners.items():
        console.print(f"{name}: {meaning}")
    shapes = [", ".join(f"{n} {'x'.join(map(str, s)) or 'scalar'}" for n, s in e.items()) for e in comparison.samples]
    console.print(f"{len(shapes)} sample(s): {'; '.join(dict.fromkeys(shapes))}")
    console.print(_values(comparison), soft_wrap=False)
    for pair in comparison.pairs:
        console.print(_differences(pair), soft_wrap=False)
    for pair in comparison.pairs:
        for difference in pair.differences:
            if difference.fault:
                console.print(f"{pair.pair.result}: output {difference.output!r} {difference.fault}")
    for note in comparison.notes:
        console.print(f"Note: {note}")
    failed = [pair for pair in comparison.pairs if not pair.passed]
    for pair in failed:
        console.print(f"FAILED: {_verdict(pair)}", style="bold red")
    if not failed:
        console.print(f"PASSED: {'; '.join(_verdict(pair) for pair in comparison.pairs)}", style="bold green")


def _verdict(pair: PairDifference) -> str:
    limit = "" if pair.pair.tolerance is None else f" (limit {pair.pair.tolerance:.1e})"
    return f"{pair.pair.result} differs from {pair.pair.reference} by {pair.worst:.1e}{limit}"


def _values(comparison: Comparison) -> Table:
    table = _table("Values", "output", "of", "dtype", "min", "max", "mean", "NaN", "inf")
    for spread in comparison.spreads:
        figures = [_figure(value) for value in (spread.minimum, spread.maximum, spread.mean)]
        table.add_row(
            spread.output, spread.runner, spread.dtype, *figures, str(spread.nans or "-"), str(spread.infinities or "-")
        )
    return table


def _differences(pair: PairDifference) -> Table:
    limit = "" if pair.pair.tolerance is None else f", limit {pair.pair.tolerance:.1e}"
    title = f"Differences of {pair.pair.result} from {pair.pair.reference}{limit}"
    table = _table(title, "output", "max abs", "max rel", "mean abs", "cosine", "agree", "")
    for found in pair.differences:
        table.add_row(found.output, *_figures(found), _mark(pair, found))
    return table


def _figures(found: Difference) -> list[str]:
    sizes = [f"{value:.1e}" for value in (found.max_abs, found.max_rel, found.mean_abs)]
    return [
        *sizes,
        "-" if found.cosine is None else f"{found.cosine:.6f}",
        "-" if found.agreement is None else f"{found.agreement:.2%}",
    ]


def _mark(pair: PairDifference, found: Difference) -> str:
    if pair.pair.tolerance is None:
        return ""
    return "ok" if found.max_rel <= pair.pair.tolerance else "FAILED"


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        if column == "output":
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="left" if column in ("of", "dtype", "") else "right", no_wrap=True)
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"
