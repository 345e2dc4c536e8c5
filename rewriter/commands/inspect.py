"""`trt-rewriter inspect OUT`."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("artifact", metavar="OUT", help="folder of an artifact")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--short", action="store_true", help="leave out op lists and shapes")


def run(arguments: argparse.Namespace) -> int:
    """Prints signature, engines, native nodes by reason, files and sizes."""
    from rewriter.artifact import load_artifact
    from rewriter.errors import ArtifactError
    from rewriter.report import Report, dtype_name, shape_text
    from rewriter.summary import human_size, plain_console, print_report

    artifact = load_artifact(arguments.artifact)
    try:
        report = Report.from_dict(artifact.report)
    except ValueError as error:
        raise ArtifactError(f"{artifact.path}: report.json cannot be read: {error}") from error
    if arguments.json:
        print(report.to_json())
        return 0
    console = plain_console()
    console.print(f"{artifact.path}: {report.source}")
    for side, specs in (("input", artifact.signature.inputs), ("output", artifact.signature.outputs)):
        for spec in specs:
            console.print(f"  {side:<7}{spec.name}: {dtype_name(spec.dtype)} {shape_text(spec)}")
    print_report(console, report, detailed=not arguments.short)
    for entry in artifact.engines:
        state = "" if entry.usable else f"  UNUSABLE: {entry.problem}"
        built_with = f"{entry.backend} {entry.version}, {' '.join(entry.targets)}"
        console.print(f"  {entry.file}: {human_size(entry.size)}, {built_with}{state}")
    files = [path for path in artifact.path.rglob("*") if path.is_file()]
    console.print(f"{len(files)} files, {human_size(sum(path.stat().st_size for path in files))}")
    return 0
