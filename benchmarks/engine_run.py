"""Runs a bundle of `engine_bundle.py` on this machine's GPU and compares every engine with its native segment.

    python benchmarks/engine_run.py FOLDER [--json PATH]

Needs only numpy, torch (for device memory) and the TensorRT-RTX version that built the engines. Each model runs in a
process of its own. Prints a table; the exit status is 1 when an engine fails or differs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import format_table
from _options import add_metrics_options, export_metrics, parse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    add_metrics_options(parser)
    parser.add_argument("--only", nargs="+", help="names of models; default all in the folder")
    parser.add_argument("--worker")
    options = parse(parser)
    if options.worker:
        print(json.dumps(run_model(options.folder / options.worker)))
        return 0
    rows = []
    for path in sorted(options.folder.glob("*/bundle.json")):
        name = path.parent.name
        if options.only and name not in options.only:
            continue
        command = [sys.executable, __file__, str(options.folder), "--worker", name]
        child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        lines = child.stdout.strip().splitlines()
        if child.returncode == 0 and lines:
            rows += [{"model": name, **row} for row in json.loads(lines[-1])]
        else:
            tail = " | ".join(child.stderr.strip().splitlines()[-3:])
            rows.append(
                {"model": name, "engine": "-", "samples": 0, "rel": None, "ms": None, "status": f"crash: {tail}"}
            )
    about = {"device": device_name(), "tensorrt": tensorrt_version()}
    print(render({**about, "rows": rows}))
    export_metrics(options, rows, **about)
    return 0 if all(row["status"] == "ok" for row in rows) else 1


def run_model(folder: Path) -> list[dict[str, Any]]:
    """Runs every engine of one model on every sample."""
    import tensorrt_rtx as trt

    bundle = json.loads((folder / "bundle.json").read_text())
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    rows = []
    for entry in bundle["engines"]:
        row = {"engine": entry["name"], "samples": entry["samples"], "rel": None, "ms": None, "status": "ok"}
        engine = runtime.deserialize_cuda_engine((folder / f"{entry['name']}.engine").read_bytes())
        if engine is None:
            rows.append({**row, "status": "refused by this TensorRT or GPU"})
            continue
        context = engine.create_execution_context()
        worst, slowest = 0.0, 0.0
        with np.load(folder / f"{entry['name']}.npz") as data:
            for number in range(entry["samples"]):
                feeds = {n: data[f"{number}.in.{i}"] for i, n in enumerate(entry["inputs"])}
                expected = {n: data[f"{number}.out.{i}"] for i, n in enumerate(entry["outputs"])}
                actual, seconds = execute(trt, engine, context, feeds)
                worst = max([worst, *(difference(actual[n], expected[n]) for n in expected)])
                slowest = max(slowest, seconds)
        row |= {"rel": worst, "ms": slowest * 1e3}
        if not worst <= bundle["tolerance"]:
            row["status"] = f"differs (allowed {bundle['tolerance']:.0e})"
        rows.append(row)
    return rows


def execute(trt: Any, engine: Any, context: Any, feeds: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
    """Two enqueues with device buffers from torch; returns outputs by name and the seconds of the second one."""
    import torch

    keep: list[Any] = []
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            on_host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
            context.set_tensor_address(name, place(np.array(feeds[name], copy=True, order="C"), on_host, keep))
            if not context.set_input_shape(name, tuple(feeds[name].shape)):
                raise RuntimeError(f"shape {feeds[name].shape} of {name} is outside the profile")
    if missing := context.infer_shapes():
        raise RuntimeError(f"inputs are not given: {missing}")
    outputs = {}
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
            dtype = torch.from_numpy(np.empty(0, trt.nptype(engine.get_tensor_dtype(name)))).dtype
            # Poisoned, so that an element that is not written shows.
            outputs[name] = torch.full(tuple(context.get_tensor_shape(name)), 77, dtype=dtype, device="cuda")
            context.set_tensor_address(name, outputs[name].data_ptr() if outputs[name].numel() else some_bytes(keep))
    for _ in range(2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("the engine could not be enqueued")
        torch.cuda.synchronize()
    return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}, time.perf_counter() - start


def place(array: np.ndarray, on_host: bool, keep: list[Any]) -> int:
    """Puts an input where the engine wants it and returns its address; `keep` holds it."""
    import torch

    if on_host:
        keep.append(array)
        return int(array.ctypes.data)
    tensor = torch.from_numpy(array).cuda()
    keep.append(tensor)
    return int(tensor.data_ptr()) if tensor.numel() else some_bytes(keep)


def some_bytes(keep: list[Any]) -> int:
    """The address of a few bytes, for tensors without elements: TensorRT wants an address all the same."""
    import torch

    keep.append(torch.zeros(64, dtype=torch.uint8, device="cuda"))
    return int(keep[-1].data_ptr())


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """max|difference| / max|expected|; infinite for other shapes, or NaN in other places."""
    if actual.shape != expected.shape:
        return float("inf")
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if not (np.isnan(a) == np.isnan(b)).all():
        return float("inf")
    if not a.size:
        return 0.0
    return float(np.nanmax(np.abs(a - b), initial=0.0) / max(float(np.nanmax(np.abs(b), initial=0.0)), 1e-30))


def device_name() -> str:
    """Name and driver of this machine's GPU."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


def tensorrt_version() -> str:
    """That of the TensorRT-RTX that ran the engines."""
    import tensorrt_rtx as trt

    return str(trt.__version__)


def render(document: Mapping[str, Any]) -> str:
    """One line an engine."""
    lines = [
        {
            "model": row["model"],
            "engine": row["engine"],
            "max rel diff": "-" if row["rel"] is None else f"{row['rel']:.1e}",
            "ms": "-" if row["ms"] is None else f"{row['ms']:.2f}",
            "status": row["status"],
        }
        for row in document["rows"]
    ]
    return f"{document['device']}; TensorRT-RTX {document['tensorrt']}\n\n{format_table(lines)}"


if __name__ == "__main__":
    sys.exit(main())
