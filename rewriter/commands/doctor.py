"""`trt-rewriter doctor`: what is installed, which TensorRT and GPU there are, and what would be used."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

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
    """Declares the command's options: none."""


def run(arguments: argparse.Namespace) -> int:  # noqa: ARG001 - every command takes its arguments
    """Prints the findings; 2 when conversion is not possible as things are."""
    from rich import box
    from rich.table import Table

    from rewriter.reports.summary import plain_console

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
