"""`trt-rewriter doctor [ARTIFACT]`: what is installed, which TensorRT and GPU there are, and what would be used."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from rewriter.artifact import Artifact, EngineEntry
    from rewriter.backends.base import Backend

#: (distribution, extra that brings it, what it is for)
PACKAGES = (
    ("onnx", "", "the graph"),
    ("onnx-graphsurgeon", "", "graph tools"),
    ("tensorflow-cpu", "tf", "TensorFlow and Keras sources"),
    ("tensorflow", "tf", "TensorFlow and Keras sources"),
    ("tf-keras", "tf", "legacy Keras files"),
    ("tf2onnx", "tf", "export to ONNX"),
    ("tensorrt-rtx-cu13", "rtx", "TensorRT, builds with no GPU"),
    ("tensorrt", "trt", "TensorRT, builds on the GPU"),
    ("onnxruntime", "cpu", "native execution"),
    ("onnxruntime-gpu", "gpu", "native execution on the GPU"),
    ("cuda-bindings", "gpu", "execution on the GPU"),
    ("polygraphy", "compare", "comparison runs"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument(
        "artifact",
        nargs="?",
        metavar="OUT",
        help="folder of an artifact, which is loaded to tell which of its engines are used here, and why no others",
    )
    parser.add_argument("--device", type=int, metavar="N", help="number of the GPU to load it on (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings.

    Returns:
        2 when conversion is not possible as things are; with an artifact 0, for it runs (it is an error when not).
    """
    from rich import box
    from rich.table import Table

    from rewriter.artifact import load_artifact
    from rewriter.errors import InvalidParameterError
    from rewriter.reports.summary import plain_console

    if arguments.device is not None and arguments.artifact is None:
        raise InvalidParameterError("--device is the GPU to load an artifact on: give OUT, too")
    # Hashes are checked when it is loaded as its users do it; what is no artifact is told before anything is tried.
    artifact = None if arguments.artifact is None else load_artifact(arguments.artifact, check_hashes=False)
    console = plain_console()
    console.print(f"Python {platform.python_version()} on {platform.platform()}")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("package", "version", "for", "install"):
        table.add_column(column)
    for package, extra, purpose in PACKAGES:
        version = _version(package)
        table.add_row(
            package, version or "-", purpose, "" if version or not extra else f"pip install 'trt-rewriter[{extra}]'"
        )
    console.print(table, soft_wrap=False)
    console.print(f"GPU: {_gpus()}")
    problems, on_gpu = _try_out(console)
    for problem in problems:
        print(f"trt-rewriter: {problem}", file=sys.stderr)
    if artifact is not None:
        _print_artifact(console, artifact, arguments.device or 0)
        return 0
    if not problems:
        console.print(f"Ready: models can be converted, and run {'on the GPU' if on_gpu else 'natively'}.")
    return 2 if problems else 0


def _try_out(console: Console) -> tuple[list[str], bool]:
    """(What stands in the way of converting, one line each; whether engines run on a GPU); prints what was tried."""
    from rewriter.backends import open_backend
    from rewriter.errors import ConversionError
    from rewriter.runtime.native import import_onnxruntime

    problems = []
    on_gpu = False
    try:
        with open_backend("auto") as backend:
            targets = " ".join(backend.default_targets) or "the GPU of this machine"
            console.print(f"TensorRT: {backend.flavour} {backend.version}, builds for {targets}")
            on_gpu = _try_gpu(console, backend)
    except ConversionError as error:
        problems.append(str(error))
    try:
        import_onnxruntime()
    except ConversionError as error:
        problems.append(str(error))
    return problems, on_gpu


def _print_artifact(console: Console, artifact: Artifact, device: int) -> None:
    """Loads every signature of an artifact as its users do, and prints what became of each engine."""
    from rewriter.runtime.loading import load

    for key in artifact.signatures:
        with load(artifact.path, signature=key, strict=False, allow_build_at_runtime=False, device=device) as function:
            stats = function.stats()
            console.print(f"{artifact.path}, signature {key!r}: runs on {stats['provider']}")
            _print_engines(console, function.engines, stats)


def _print_engines(console: Console, entries: tuple[EngineEntry, ...], stats: Mapping[str, Any]) -> None:
    """One line an engine, then how many engine nodes have one."""
    told = stats["engines_chosen"]
    for op in dict.fromkeys(entry.op for entry in entries):
        console.print(f"  {op}")
        facts = told.get(op, {"engines": {}, "others": {}})
        for entry in (entry for entry in entries if entry.op == op):
            targets = " ".join(entry.targets) or "for the GPU it was built on"
            used = facts["engines"].get(entry.key)
            # Why it was chosen stands behind package and version, which are told of every engine.
            state = f"USED: {used.partition(': ')[2]}" if used else f"not used: {facts['others'].get(entry.key, '?')}"
            console.print(f"    {entry.key[:8]} {entry.backend} {entry.version}, {targets}: {state}")
    nodes, with_engine = stats["engine_nodes"], sum(bool(facts["engines"]) for facts in told.values())
    others = "" if nodes == with_engine else "; the others run natively" if with_engine else "; all run natively"
    console.print(f"  engine nodes on TensorRT: {with_engine} of {nodes}{others}")


def _try_gpu(console: Console, backend: Backend) -> bool:
    """Prints what of the road over the GPU works; True when all of it does."""
    from rewriter.runtime import device
    from rewriter.runtime.gpu.readiness import gpu_readiness

    if device.missing_gpu():
        return False
    tried = gpu_readiness(backend)
    for what, outcome, works in tried:
        console.print(f"  {what}: {'' if works else 'NOT READY: '}{outcome}", soft_wrap=True)
    return all(works for _, _, works in tried)


def _gpus() -> str:
    """Names of the GPUs as the driver tells, or why there are none."""
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none found (no NVIDIA driver): converted models run natively on this machine"
    query = [tool, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    if answer.returncode != 0:
        return f"the NVIDIA driver does not answer: {answer.stderr.strip() or answer.stdout.strip()}"
    return "; ".join(line.strip() for line in answer.stdout.splitlines() if line.strip())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
