"""What the benchmark scripts share: tables for people, JSON for machines, and the versions behind the numbers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: Distributions whose versions decide what a benchmark measures.
PACKAGES = (
    "trt-rewriter", "numpy", "onnx", "onnxruntime", "tensorflow-cpu", "tensorflow", "keras", "tf-keras", "tf2onnx",
    "tensorrt-rtx-cu13", "tensorrt-rtx", "tensorrt", "onnx-graphsurgeon", "onnxruntime-gpu", "torch", "jax",
    "polygraphy",
)  # fmt: skip


def add_project_to_path() -> None:
    """Lets a script run from a checkout that is not installed (`python benchmarks/x.py`)."""
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)


def environment() -> dict[str, Any]:
    """When, machine and versions, for the head of a JSON result; packages that are not installed are left out.

    "load" is the mean number of busy processes in the last minute: what else the cores had to do.
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "gpu": gpu_name(),
        "packages": versions,
    }


def gpu_name() -> str | None:
    """Name and driver of this machine's GPU, None where no driver answers."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None if found.returncode == 0 else None


def format_table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str] | None = None) -> str:
    """A Markdown table of `rows`; numbers are right-aligned, missing cells stay empty.

    Args:
        rows: one mapping a line, values as they are to be shown (floats are given three significant digits).
        columns: keys in order; default: the keys of the first row.
    """
    names = list(columns if columns is not None else (rows[0] if rows else ()))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max([len(name), 3, *(len(line[i]) for line in cells)]) for i, name in enumerate(names)]
    numeric = [bool(rows) and all(_is_number(row.get(name)) for row in rows) for name in names]

    def line(values: Sequence[str]) -> str:
        padded = [v.rjust(w) if n else v.ljust(w) for v, w, n in zip(values, widths, numeric, strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(f" {'-' * (w - 1)}{':' if n else '-'} " for w, n in zip(widths, numeric, strict=True))
    return "\n".join([line(names), f"|{rule}|", *(line(c) for c in cells)])


def print_table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str] | None = None) -> None:
    """Prints `format_table`."""
    print(format_table(rows, columns))


def write_json(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Writes `payload` with the environment beside it; numpy scalars and tuples become plain JSON."""
    document = {"environment": environment(), **payload}
    plain = json.loads(json.dumps(document, default=_plain))
    Path(path).write_text(laid_out(plain) + "\n", encoding="utf-8")


def laid_out(value: Any, indent: str = "") -> str:
    """JSON text in which what fits into one line is one line: short, and still easy to compare line by line."""
    line = json.dumps(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    flat = isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in inside)
    if not inside or flat or len(indent) + len(line) <= 120:
        return line
    deeper = indent + " "
    if isinstance(value, dict):
        parts = [f"{deeper}{json.dumps(key)}: {laid_out(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + laid_out(item, deeper) for item in value) + f"\n{indent}]"


def relative_difference(actual: Any, reference: Any) -> float:
    """max|actual - reference| / max|reference| of two arrays; infinite for another shape or another NaN pattern.

    Equal infinities count as equal; a reference of zeros is compared by absolute difference. Strings and objects
    are compared for equality.
    """
    a, b = np.asarray(actual), np.asarray(reference)
    if a.shape != b.shape:
        return float("inf")
    if a.dtype.kind in "OSU" or b.dtype.kind in "OSU":
        return 0.0 if np.array_equal(a.astype(str), b.astype(str)) else float("inf")
    kind = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    a, b = a.astype(kind), b.astype(kind)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    difference = np.abs(a[~same] - b[~same])
    if not np.isfinite(difference).all():
        return float("inf")
    finite = np.abs(b[np.isfinite(b)])
    scale = float(finite.max()) if finite.size else 0.0
    return float(difference.max()) / (scale or 1.0)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
