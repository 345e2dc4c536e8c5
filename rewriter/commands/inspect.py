"""`trt-rewriter inspect OUT`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewriter.artifact import Artifact
    from rewriter.reports.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("artifact", metavar="OUT", help="folder of an artifact")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--short", action="store_true", help="leave out op lists and shapes")
    parser.add_argument(
        "--signature", metavar="KEY", help="which of the artifact's signatures (default: the first; --html shows all)"
    )
    parser.add_argument(
        "--nonconversion",
        nargs="?",
        const="",
        metavar="FILE.csv",
        help="print which operators TensorRT does not run, why, and how many nodes; with a file, write it as CSV, too",
    )
    parser.add_argument("--picture", metavar="FILE", help="draw the graph: FILE.svg, or for Graphviz FILE.dot")
    parser.add_argument(
        "--html",
        metavar="FILE.html",
        help="write all of it, with a map of the graph to zoom and search, as one page that needs no network",
    )
    parser.add_argument(
        "--expand-engines",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="draw the nodes of engines, or one box for each engine (default: the nodes of a model with up to 150)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints signature, engines, native nodes by reason, files and sizes; or what was asked for instead."""
    from rewriter.artifact import load_artifact
    from rewriter.commands.options import check_target
    from rewriter.errors import ArtifactError, InvalidParameterError
    from rewriter.reports.report import Report

    if arguments.expand_engines is not None and arguments.picture is None:
        raise InvalidParameterError("--expand-engines says how --picture draws: give --picture, too")
    if arguments.json and arguments.nonconversion is not None:
        raise InvalidParameterError("--json and --nonconversion both print to the terminal: give one of them")
    check_target("--html", arguments.html)
    check_target("--picture", arguments.picture)
    check_target("--nonconversion", arguments.nonconversion or None)  # "" prints only
    if arguments.html is not None:
        from rewriter.reports.page import artifact_page, write_page

        write_page(arguments.html, artifact_page(arguments.artifact, arguments.signature))
        if not (arguments.json or arguments.picture or arguments.nonconversion is not None):
            return 0
    artifact = load_artifact(arguments.artifact, signature=arguments.signature)
    try:
        report = Report.from_dict(artifact.report)
    except ValueError as error:
        raise ArtifactError(f"{artifact.path}: report.json cannot be read: {error}") from error
    if arguments.picture is not None:
        from rewriter.reports.graph_picture import graph_picture

        graph_picture(artifact.model, report, expand_engines=arguments.expand_engines).write(arguments.picture)
    if arguments.nonconversion is not None:
        _print_nonconversion(report, arguments.nonconversion)
    if arguments.json:
        print(report.to_json())
    elif arguments.picture is None and arguments.nonconversion is None and arguments.html is None:
        _print_artifact(artifact, report, detailed=not arguments.short)
    return 0


def _print_nonconversion(report: Report, file: str) -> None:
    """Prints the table, and writes it to `file` unless that is ""."""
    from rewriter.reports.nonconversion import nonconversion_table, to_text, write_csv

    rows = nonconversion_table(report)
    print(to_text(rows, report.total_nodes))
    if file:
        write_csv(rows, file)


def _print_artifact(artifact: Artifact, report: Report, *, detailed: bool) -> None:
    from rewriter.reports.report import dtype_name, shape_text
    from rewriter.reports.summary import human_size, plain_console, print_report
    from rewriter.runtime.device import missing_gpu
    from rewriter.runtime.judging import judged
    from rewriter.runtime.slot_values import StoredEngine

    console = plain_console()
    console.print(f"{artifact.path}: {report.source}")
    for side, specs in (("input", artifact.signature.inputs), ("output", artifact.signature.outputs)):
        for spec in specs:
            console.print(f"  {side:<7}{spec.name}: {dtype_name(spec.dtype)} {shape_text(spec)}")
    print_report(console, report, detailed=detailed)
    here = judged([StoredEngine(entry, artifact.engine_path(entry)) for entry in artifact.engines])
    for entry in artifact.engines:
        state = f"  {here[entry.file]}" if entry.file in here else ""
        state = state if entry.usable else f"  UNUSABLE: {entry.problem}"
        targets = " ".join(entry.targets) or "for the GPU of the machine that built it"
        console.print(f"  {entry.file}: {human_size(entry.size)}, {entry.backend} {entry.version}, {targets}{state}")
    if artifact.engines and missing_gpu():
        console.print(f"  no engine is used on this machine: {missing_gpu()}")
    files = [path for path in artifact.path.rglob("*") if path.is_file()]
    console.print(f"{len(files)} files, {human_size(sum(path.stat().st_size for path in files))}")
