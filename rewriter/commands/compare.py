"""`trt-rewriter compare SRC OUT`: the source, native, the engines in emulation, and TensorRT, side by side."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewriter.commands import compare_options
from rewriter.commands.npz import batches, read_npz
from rewriter.commands.options import parse_shapes, words
from rewriter.errors import ConversionError, InputError, InvalidParameterError, SourceError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from rewriter.artifact import Artifact
    from rewriter.comparing.comparison import Comparison
    from rewriter.comparing.findings import Finding
    from rewriter.comparing.runners import RunnerOptions
    from rewriter.comparing.tolerances import Tolerances
    from rewriter.frontend.reference import Reference

add_arguments = compare_options.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Compares and prints; 1 when an output differs by more than the tolerance."""
    from rewriter.commands.screen import import_tensorflow
    from rewriter.comparing.runners import RunnerOptions
    from rewriter.comparing.tables import print_comparison, print_verdict
    from rewriter.comparing.tolerances import Tolerances
    from rewriter.reports.summary import plain_console

    compare_options.check_arguments(arguments)
    tolerances = Tolerances.parse(arguments.tolerance, arguments.absolute_tolerance)
    wanted = words(arguments.runners) if arguments.runners is not None else None
    options = RunnerOptions(wanted, arguments.strict, arguments.device)
    parse_shapes(arguments.shapes)
    compare_options.parse_top_k(arguments.top_k)
    artifact = _load(arguments)
    tolerances.check_outputs([spec.name for spec in artifact.signature.outputs])
    if Path(arguments.source).exists() and Path(arguments.source).suffix != ".onnx":
        import_tensorflow(f"running {arguments.source}")
    reference = _open_source(arguments, artifact)
    console = plain_console()
    with _counting(console) as on_step:
        comparison = _compare(arguments, artifact, reference, tolerances, options, on_step)
    print_comparison(console, comparison)
    try:
        with _counting(console) as on_step:
            findings = _find(arguments, comparison, artifact, reference, on_step)
        for finding in findings:
            console.print(f"\n{finding.text}")
    finally:
        print_verdict(console, comparison)
    try:
        _write(arguments, console, comparison, findings, artifact)
    except (ConversionError, OSError) as error:
        if comparison.passed:
            raise
        # That the comparison failed is the graver news, and the status says only one of them.
        print(f"trt-rewriter: {' '.join(str(error).split())}", file=sys.stderr)
    return 0 if comparison.passed else 1


def _load(arguments: argparse.Namespace) -> Artifact:
    """The artifact, with the signature that was asked for where it has several.

    Raises:
        InvalidParameterError: the source is an artifact.
        ArtifactError: it cannot be read.
    """
    from rewriter.artifact import load_artifact
    from rewriter.artifact.paths import is_artifact

    source, folder = arguments.source, arguments.artifact
    if is_artifact(source):
        if Path(folder).exists() and not is_artifact(folder):
            raise InvalidParameterError(
                f"SRC and OUT are swapped: {source} is an artifact, {folder} is none: write compare {folder} {source}"
            )
        raise InvalidParameterError(f"SRC {source} is an artifact itself: name the model that it was converted from")
    artifact = load_artifact(arguments.artifact)
    if arguments.signature in artifact.signatures[1:]:
        return load_artifact(arguments.artifact, signature=arguments.signature)
    return artifact


def _open_source(arguments: argparse.Namespace, artifact: Artifact) -> Reference:
    """The source as a function.

    Raises:
        SourceError: it cannot be read, or it has several signatures and none is named.
        ConversionError: the artifact was not made from it, as far as its inputs show.
    """
    from rewriter.frontend.reference import open_reference

    try:
        reference = open_reference(
            arguments.source,
            tags=words(arguments.tags) if arguments.tags else None,
            signature_key=arguments.signature,
            inputs=words(arguments.graph_inputs) if arguments.graph_inputs else None,
            outputs=words(arguments.graph_outputs) if arguments.graph_outputs else None,
        )
    except SourceError as error:
        several = "several signatures, name one"
        if several not in str(error):
            raise
        raise SourceError(str(error).replace(several, f"{several} with --signature")) from error
    known = [spec.name for spec in artifact.signature.inputs]
    if set(known) != set(reference.inputs):
        raise ConversionError(
            f"{reference.origin} has the inputs {', '.join(reference.inputs)}, {artifact.path} has {', '.join(known)}: "
            "it was converted from another model or signature"
        )
    return reference


def _samples(
    arguments: argparse.Namespace, artifact: Artifact, reference: Reference
) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    """What gives the inputs, one at a time; what can be known to be wrong beforehand is an error at once."""
    from rewriter.comparing import data

    signature = artifact.signature
    if arguments.data_script:
        data.check_script(arguments.data_script)
        return lambda: data.bound_samples(signature, data.script_samples(arguments.data_script), "the data script")
    if arguments.inputs:
        for path in arguments.inputs:
            _check_file(path)
        return lambda: data.bound_samples(signature, _read_all(arguments), "--inputs")
    made = data.made_up(signature, parse_shapes(arguments.shapes), reference.samples(), artifact.engines)
    return lambda: data.bound_samples(signature, made(), "the made-up inputs")


def _check_file(path: str) -> None:
    """Refuses a file that holds no inputs for certain, before the models are opened."""
    if Path(path).suffix.lower() != ".json" and not zipfile.is_zipfile(path):
        read_npz(path)  # which says what is wrong
    if not Path(path).is_file():
        raise InputError(f"there is no file {path!r}: --inputs names files with inputs")


def _read_all(arguments: argparse.Namespace) -> Iterator[Any]:
    """The samples of all files; one file is in memory at a time."""
    from rewriter.comparing.data import saved_inputs

    for path in arguments.inputs:
        if Path(path).suffix.lower() == ".json":
            yield from saved_inputs(path)
        elif arguments.batch_size:
            yield from batches(read_npz(path), arguments.batch_size, path)()
        else:
            yield read_npz(path)


def _compare(
    arguments: argparse.Namespace,
    artifact: Artifact,
    reference: Reference,
    tolerances: Tolerances,
    options: RunnerOptions,
    on_step: Callable[[str], object],
) -> Comparison:
    """Opens what is compared, and runs it."""
    from rewriter.comparing.comparison import compare
    from rewriter.comparing.engine_notes import shape_notes, state_notes
    from rewriter.comparing.runners import engine_precisions, input_notes, open_runners
    from rewriter.comparing.tolerances import make_pairs

    samples = _samples(arguments, artifact, reference)
    precisions = engine_precisions(artifact)
    made_up = not arguments.inputs and not arguments.data_script
    pictured = bool(arguments.html or arguments.pictures)
    with open_runners(artifact, reference, options) as side_by_side:
        comparison = compare(
            side_by_side.runners,
            samples(),
            make_pairs(precisions, tolerances, list(side_by_side.runners)),
            words=side_by_side.words,
            notes=[*_signature_note(artifact), *input_notes(precisions, made_up=made_up), *side_by_side.notes],
            top_k=compare_options.parse_top_k(arguments.top_k),
            histograms=pictured or bool(arguments.json),
            heat_maps=pictured,
            on_sample=lambda number: on_step(f"sample {number}"),
        )
        notes = [*comparison.notes, *state_notes(artifact), *side_by_side.late_notes()]
        if "tensorrt" not in side_by_side.runners:  # which else tells what ran natively, and builds what it may
            notes += shape_notes(artifact, comparison.samples)
        return dataclasses.replace(comparison, notes=tuple(notes))


def _signature_note(artifact: Artifact) -> list[str]:
    """What of an artifact with several signatures was not compared."""
    name = artifact.signature.name
    others = [key for key in artifact.signatures if key != name]
    words = f"only the signature {name!r} is compared; for another one give --signature: {', '.join(others)}"
    return [words] if others else []


def _find(
    arguments: argparse.Namespace,
    comparison: Comparison,
    artifact: Artifact,
    reference: Reference,
    on_step: Callable[[str], object],
) -> list[Finding]:
    """Bisects the pairs that failed, if that was asked for."""
    if not arguments.bisect or comparison.passed:
        return []
    from rewriter.comparing.findings import find_causes

    return find_causes(
        comparison,
        artifact,
        reference,
        on_pair=lambda pair: on_step(f"looking for where {pair.result} leaves {pair.reference}"),
    )


def _write(
    arguments: argparse.Namespace,
    console: Console,
    comparison: Comparison,
    findings: Sequence[Finding],
    artifact: Artifact,
) -> None:
    """Writes the files that were asked for.

    Raises:
        InvalidParameterError: one of them cannot be written.
    """
    steps = {"json": _write_json, "pictures": _write_pictures, "html": _write_page}
    failures: list[ConversionError] = []
    for option, step in steps.items():
        if getattr(arguments, option):
            try:
                step(arguments, console, comparison, findings, artifact)
            except InvalidParameterError as error:  # the others are still to be written
                failures.append(error)
    if failures:
        raise InvalidParameterError("; ".join(map(str, failures))) from failures[0]


def _write_json(
    arguments: argparse.Namespace, _console: Console, comparison: Comparison, findings: Sequence[Finding], _: Artifact
) -> None:
    figures = {**comparison.to_dict(), "bisections": [finding.to_dict() for finding in findings]}
    text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        Path(arguments.json).write_text(text, "utf-8")
    except OSError as error:
        raise InvalidParameterError(f"cannot write {arguments.json!r}: {error}") from error


def _write_pictures(
    arguments: argparse.Namespace, console: Console, comparison: Comparison, _findings: Sequence[Finding], _: Artifact
) -> None:
    from rewriter.comparing.pictures import write_pictures

    written = write_pictures(comparison, arguments.pictures)
    console.print(f"{len(written)} pictures in {arguments.pictures} (equal outputs have none)")


def _write_page(
    arguments: argparse.Namespace,
    console: Console,
    comparison: Comparison,
    findings: Sequence[Finding],
    artifact: Artifact,
) -> None:
    from rewriter.comparing.page import comparison_page, write_page

    title = f"{artifact.path.name} compared with {Path(arguments.source).name}"
    write_page(arguments.html, comparison_page(comparison, title=title, findings=findings, facts=_facts(artifact)))
    console.print(f"page: {arguments.html}")


def _facts(artifact: Artifact) -> dict[str, object]:
    """What the artifact was made with."""
    converted = ", ".join(f"{name} {version}" for name, version in artifact.versions.items())
    return {"converted": artifact.created, "with": converted, "signature": artifact.signature.name}


@contextlib.contextmanager
def _counting(console: Console) -> Iterator[Callable[[str], object]]:
    """What tells a terminal how far the comparison is; elsewhere nothing is told."""
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("opening the models") as status:
        yield lambda step: status.update(f"comparing: {step}")
