"""`trt-rewriter convert SRC --dry-run`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rewriter.commands.options import conversion_arguments
from rewriter.commands.screen import StageScreen, import_tensorflow, title
from rewriter.commands.source_options import source_arguments
from rewriter.errors import InvalidParameterError


def dry_run(arguments: argparse.Namespace) -> int:
    """Cuts the model and prints what a conversion would give."""
    from rewriter.converter import Converter
    from rewriter.reports.dry_run_text import print_dry_run
    from rewriter.reports.summary import plain_console

    if arguments.output is not None:
        raise InvalidParameterError("--dry-run writes nothing: leave -o out")
    if not arguments.source:
        raise InvalidParameterError("SRC is an empty path")
    console = plain_console()
    if Path(arguments.source).exists() and Path(arguments.source).suffix != ".onnx":
        import_tensorflow(f"reading {arguments.source}")
    if not arguments.json:
        title(console, f"What a conversion of {arguments.source} would give")
    progress = False if arguments.json else StageScreen(console)
    with Converter(progress=progress, **source_arguments(arguments), **conversion_arguments(arguments)) as converter:
        found = converter.dry_runs()
    if arguments.json:
        plain = {key: dry.to_dict() for key, dry in found.items()}
        print(json.dumps(plain if len(plain) > 1 else next(iter(plain.values())), indent=1, ensure_ascii=False))
        return 0
    for key, dry in found.items():
        if len(found) > 1:
            title(console, f"Signature {key}")
        print_dry_run(console, dry)
    return 0
