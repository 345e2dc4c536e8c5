"""`trt-rewriter build OUT --targets sm80,sm89,sm120`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rewriter.by_signature import ALL_SIGNATURES
from rewriter.commands.options import parse_shapes, words

if TYPE_CHECKING:
    from rewriter.artifact.manifest import EngineEntry
    from rewriter.extending import Extended

#: Exit status when the artifact lacks an engine that was asked for, though others were built.
INCOMPLETE = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    add = parser.add_argument
    add("artifact", metavar="OUT", help="folder of the artifact that gets the engines")
    add(
        "--targets",
        default="",
        help="GPU architectures, as sm80,sm89,sm120: an engine for each, unless the artifact has one (default: one "
        "engine for those that the artifact names)",
    )
    add(
        "--backends",
        default="auto",
        metavar="NAMES",
        help="TensorRT packages, as tensorrt_rtx or tensorrt,tensorrt_rtx, in the versions that are installed; for "
        "another version run this where that is installed (default auto: tensorrt where there is a GPU, else "
        "tensorrt_rtx)",
    )
    add("--together", action="store_true", help="one engine for all targets, hardly larger than one of them")
    add(
        "--shapes",
        action="append",
        default=[],
        metavar="NAME:SHAPE[,SHAPE...]",
        help="shapes of an input that the engines must cover, as for convert (default: those of the engines that are "
        "there)",
    )
    add(
        "--signature",
        action="append",
        metavar="KEY[,KEY...]",
        help="only these signatures; may be repeated (default, and '*': all)",
    )
    add(
        "--jobs",
        type=int,
        metavar="N",
        help="engines built at the same time, at most (default: with TensorRT-RTX as many as there are cores, and "
        "memory for, up to 8; with TensorRT one)",
    )
    add("--engine-cache-dir", metavar="DIR", help="keep built engines in this folder, and take those that are there")
    add(
        "--engine-cache-max-bytes",
        type=int,
        metavar="N",
        help="what the engines in that folder may take; the least recently used go first (default 8589934592)",
    )
    add("--json", action="store_true", help="print what was built as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Builds engines, adds them, and prints what there is now.

    Returns:
        0 when the artifact has all that was asked for, else 1.
    """
    import json

    from rewriter.commands.screen import StageScreen
    from rewriter.extending import build_engines
    from rewriter.reports.summary import plain_console

    console = plain_console()
    extended = build_engines(
        arguments.artifact,
        targets=words(arguments.targets),
        backends=words(arguments.backends),
        together=arguments.together,
        shapes=parse_shapes(arguments.shapes) or None,
        signatures=_signatures(arguments.signature),
        jobs=arguments.jobs,
        engine_cache_dir=arguments.engine_cache_dir,
        engine_cache_max_bytes=arguments.engine_cache_max_bytes,
        progress=None if arguments.json else StageScreen(console),
    )
    if arguments.json:
        print(json.dumps(extended.to_json(), indent=1))
    else:
        for line in _lines(extended):
            console.print(line)
    return INCOMPLETE if extended.failures else 0


def _signatures(given: list[str] | None) -> list[str] | None:
    """The signatures that `--signature` names; None for all."""
    names = None if given is None else [name for text in given for name in words(text)]
    return None if names is not None and ALL_SIGNATURES in names else names


def _lines(extended: Extended) -> list[str]:
    from rewriter.reports.summary import human_size

    engines = (*extended.added, *extended.present)
    signatures = {item.signature for item in engines} | {failure.signature for failure in extended.failures}
    several = len(signatures) > 1

    def where(signature: str, op: str) -> str:
        return ": ".join([*([signature] if several else []), *([op] if op else [])])

    lines = [
        f"  {where(item.signature, item.entry.op)}: {_built(item.entry)}, {human_size(item.entry.size)}, "
        + ("there already" if item.seconds is None else f"{item.seconds:.2f} s")
        for item in engines
    ]
    for failure in extended.failures:
        what = where(failure.signature, failure.op)
        names = " ".join([failure.backend, failure.version, *failure.targets])
        lines.append(f"no engine: {what}{': ' * bool(what)}{names} ({failure.kind}): {failure.reason}")
    lines += [f"note: {note}" for note in extended.notes]
    counts = [f"{_count(len(extended.added))} added", f"{len(extended.present)} there already"]
    counts += [f"{len(extended.failures)} could not be built"] * bool(extended.failures)
    return [*lines, f"{extended.path}: {', '.join(counts)}"]


def _built(entry: EngineEntry) -> str:
    return f"{entry.backend} {entry.version}" + (f", {' '.join(entry.targets)}" if entry.targets else "")


def _count(number: int) -> str:
    return f"{number} engine{'' if number == 1 else 's'}"
