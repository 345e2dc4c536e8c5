"""`trt-rewriter merge A B -o OUT`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewriter.merging import Merged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument(
        "artifacts", nargs="+", metavar="ARTIFACT", help="artifacts of one model, for different GPUs or versions"
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an artifact in OUT")
    parser.add_argument("--json", action="store_true", help="print what was merged as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Merges the artifacts, and prints their engines and what was kept of the first one."""
    import json

    from rewriter.merging import merge
    from rewriter.reports.summary import plain_console

    merged = merge(arguments.artifacts, arguments.output, overwrite=arguments.overwrite)
    if arguments.json:
        print(json.dumps(merged.to_json(), indent=1))
        return 0
    console = plain_console()
    for line in _lines(merged):
        console.print(line)
    return 0


def _lines(merged: Merged) -> list[str]:
    from rewriter.reports.summary import human_size

    several = len({engine.signature for engine in merged.engines}) > 1
    lines = []
    for engine in merged.engines:
        entry = engine.entry
        where = f"{engine.signature}: {entry.op}" if several else entry.op
        built = f"{entry.backend} {entry.version}" + (f", {' '.join(entry.targets)}" if entry.targets else "")
        lines.append(f"  {where}: {built}, {human_size(entry.size)}, from {engine.source}")
    lines += [f"note: {note}" for note in merged.notes]
    count = len(merged.engines)
    left = f", {len(merged.damaged)} damaged" if merged.damaged else ""
    lines.append(
        f"wrote {merged.path}: {count} engine{'' if count == 1 else 's'} of {len(merged.sources)} artifacts{left}"
    )
    return lines
