"""`trt-rewriter rescue OLD_DIR -o NEW_DIR`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewriter.rescuing import RescueReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("source", metavar="OLD_DIR", help="SavedModel that TF-TRT wrote; nothing in it is changed")
    parser.add_argument("-o", "--output", required=True, metavar="NEW_DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a SavedModel in NEW_DIR")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Rescues the model, and prints engines, what was removed and what was recorded."""
    import json

    from rewriter.reports.summary import plain_console
    from rewriter.rescuing import rescue

    report = rescue(arguments.source, arguments.output, overwrite=arguments.overwrite)
    if arguments.json:
        print(json.dumps(report.to_json(), indent=1))
        return 0
    console = plain_console()
    for line in _lines(report):
        console.print(line)
    return 0


def _lines(report: RescueReport) -> list[str]:
    written_by = f", written by TensorFlow {report.tensorflow}" if report.tensorflow else ""
    lines = [f"{report.source}{written_by}"]
    for engine in report.engines:
        facts = [engine.precision_mode, f"{engine.nodes} nodes"]
        facts += [f"calibration table of {engine.calibration_bytes} bytes"] if engine.calibration_bytes else []
        facts += [f"profiles {engine.profile_strategy}"] if engine.profile_strategy else []
        facts += ["implicit batch"] if engine.implicit_batch else []
        lines.append(f"  {engine.name} -> {engine.segment}: {', '.join(facts)}")
    removed = report.removed
    counts = [
        f"{len(names)} {what}"
        for names, what in (
            (removed.nodes, "nodes"),
            (removed.functions, "functions"),
            (removed.objects, "objects"),
            (removed.assets, "engine files"),
        )
        if names
    ]
    lines.append(f"removed: {', '.join(counts) or 'nothing else'}")
    lines += [f"note: {note}" for note in report.notes]
    lines.append(f"wrote {report.destination}; convert it with: trt-rewriter convert {report.destination} -o OUT")
    return lines
