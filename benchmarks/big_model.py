"""Does a model beyond 2 GB convert, and in how much memory? Random weights, all different, outside TensorFlow.

    python benchmarks/big_model.py [--layers 9] [--width 8192] [--folder DIR] [--json out.json]

A chain of MatMul and Relu is written with external data, one layer at a time. A child process then converts, builds
and saves it while a thread samples its memory and that of all processes below it (TensorRT's). Another child loads the
artifact and calls it; the result is compared with numpy's. Linux only: /proc is read. Exit status 1: more memory than
the limit, a wrong result, or no engine.

All are peaks. "anonymous": memory of all processes together that only they hold; this is judged. "own" and "TensorRT":
resident memory of the process and of those below it; pages of mapped weight files are among it, although the system
shares them between processes and can drop them at any time. "resident": the sum of both at the worst moment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path, format_table, relative_difference
from _options import add_metrics_options, export_metrics, parse

add_project_to_path()

#: Seconds between two looks at the memory.
INTERVAL = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--width", type=int, default=8192, help="each layer has width x width float32 weights")
    parser.add_argument("--folder", type=Path, help="where the temporary files go (four times the weights)")
    parser.add_argument("--limit", type=float, default=3.0, help="most memory, as a multiple of the weights")
    parser.add_argument("--no-engine", action="store_true", help="convert and save only: no TensorRT build")
    add_metrics_options(parser)
    parser.add_argument("--child", choices=("convert", "load"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parse(parser)
    if arguments.child:
        print(json.dumps({"convert": _convert, "load": _load}[arguments.child](arguments)))
        return 0
    with tempfile.TemporaryDirectory(prefix="big-model-", dir=arguments.folder) as folder:
        return _measure(arguments, Path(folder))


def write_model(folder: Path, layers: int, width: int) -> Path:
    """Writes the model layer by layer; never more than one layer is in memory."""
    from onnx import TensorProto, helper

    data = folder / "big.onnx.data"
    nodes, weights, value = [], [], "x"
    with data.open("wb") as file:
        for layer in range(layers):
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[width, width])
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": data.name, "offset": file.tell(), "length": 4 * width * width}
            for key, item in place.items():
                tensor.external_data.add(key=key, value=str(item))
            weights.append(tensor)
            file.write(layer_weights(layer, width).data)
            nodes.append(helper.make_node("MatMul", [value, tensor.name], [f"m{layer}"], name=f"matmul_{layer}"))
            value = "y" if layer == layers - 1 else f"r{layer}"
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [value], name=f"relu_{layer}"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "big", [x], [y], weights)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    path = folder / "big.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def layer_weights(layer: int, width: int) -> np.ndarray:
    """Weights that keep the size of activations; no two layers are alike (TensorRT would store equal ones once)."""
    return np.random.default_rng(layer).standard_normal((width, width), np.float32) * np.float32((2 / width) ** 0.5)


def _measure(arguments: argparse.Namespace, folder: Path) -> int:
    start = time.perf_counter()
    path = write_model(folder, arguments.layers, arguments.width)
    weights = path.with_suffix(".onnx.data").stat().st_size
    print(f"weights: {weights / 1e9:.2f} GB, written in {time.perf_counter() - start:.0f} s\n", flush=True)
    x = np.random.default_rng(99).standard_normal((2, arguments.width), np.float32)
    np.save(folder / "x.npy", x)
    results = {step: _child(arguments, step, folder) for step in ("convert", "load")}
    rows = [
        {
            "step": step,
            "seconds": result["seconds"],
            "anonymous GB": result["anonymous"] / 1e9,
            "resident GB": result["resident"] / 1e9,
            "anonymous / weights": result["anonymous"] / weights,
            "own / weights": result["own"] / weights,
            "TensorRT / weights": result["children"] / weights,
            "resident / weights": result["resident"] / weights,
        }
        for step, result in results.items()
    ]
    difference = relative_difference(np.load(folder / "y.npy"), _reference(x, arguments.layers))
    built = results["convert"]["engines"]
    passed = difference < 1e-4 and (built > 0 or arguments.no_engine)
    passed = passed and all(row["anonymous / weights"] < arguments.limit for row in rows)
    figures = {"weights": weights, "difference": difference, "passed": passed, "engines": built}
    figures["engine_bytes"] = results["convert"]["engine_bytes"]
    print(render({**figures, "rows": rows}))
    export_metrics(arguments, rows, **figures)
    return 0 if passed else 1


def render(document: Mapping[str, Any]) -> str:
    """The peaks of both steps, and what was built."""
    return (
        f"Weights: {document['weights'] / 1e9:.2f} GB.\n\n{format_table(document['rows'])}\n\n"
        f"Engines: {document['engines']}, {document['engine_bytes'] / 1e9:.2f} GB; largest relative difference from "
        f"numpy {document['difference']:.1e}."
    )


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """Size of the weights, and the larger peak as a multiple of them."""
    worst = max(row["anonymous / weights"] for row in document["rows"])
    return {"weights": f"{document['weights'] / 1e9:.2f} GB", "worst": f"{worst:.2f}"}


def _reference(x: np.ndarray, layers: int) -> np.ndarray:
    for layer in range(layers):
        x = np.maximum(x @ layer_weights(layer, x.shape[1]), 0)
    return x


def _child(arguments: argparse.Namespace, step: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", step, "--work", str(folder)]
    command += ["--no-engine"] if arguments.no_engine else []
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the step {step!r} failed with status {done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _convert(arguments: argparse.Namespace) -> dict[str, Any]:
    """Converts, builds and saves; returns the peaks of memory."""
    from rewriter import Converter

    x = np.load(arguments.work / "x.npy")
    with Watch() as watch, Converter(model=str(arguments.work / "big.onnx"), progress=False) as converter:
        converter.convert()
        if not arguments.no_engine:
            converter.build(lambda: [x])
        converter.save(arguments.work / "artifact")
    engines = list((arguments.work / "artifact").rglob("*.engine"))
    return {**watch.peaks(), "engines": len(engines), "engine_bytes": sum(e.stat().st_size for e in engines)}


def _load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads the artifact and calls it once; returns the peaks of memory."""
    from rewriter import load

    with Watch() as watch, load(arguments.work / "artifact") as function:
        np.save(arguments.work / "y.npy", function(np.load(arguments.work / "x.npy"))["y"])
    return watch.peaks()


class Watch:
    """Samples the memory of this process and of all below it; the peaks are of sums at one moment."""

    def __init__(self) -> None:
        self._peaks = dict.fromkeys(("resident", "anonymous", "own", "children"), 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._start = time.perf_counter()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def peaks(self) -> dict[str, float]:
        """Bytes by kind, and the seconds it took."""
        return {**self._peaks, "seconds": time.perf_counter() - self._start}

    def _sample(self) -> None:
        while True:
            memory = {pid: _memory(pid) for pid in _family(os.getpid())}
            own = memory.pop(os.getpid())
            now = {
                "resident": own[0] + sum(m[0] for m in memory.values()),
                "anonymous": own[1] + sum(m[1] for m in memory.values()),
                "own": own[0],
                "children": sum(m[0] for m in memory.values()),
            }
            self._peaks = {kind: max(self._peaks[kind], size) for kind, size in now.items()}
            if self._stop.wait(INTERVAL):
                return


def _family(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _memory(pid: int) -> tuple[int, int]:
    """(resident, anonymous) bytes of a process; zeros when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {
        key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    return sizes.get("VmRSS", 0), sizes.get("RssAnon", 0)


if __name__ == "__main__":
    sys.exit(main())
