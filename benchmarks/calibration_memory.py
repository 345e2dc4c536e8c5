"""Does calibration take more memory for more batches? ResNet50 (random weights), every method, each in a process.

    python benchmarks/calibration_memory.py [--batches 2 8 32] [--one-shot 2 8] [--size 224] [--json out.json]

"ours" streams: `rewriter.precision.calibration.calibrate`. "one shot" is ONNX Runtime's `create_calibrator` over all
batches, as `quantize_static` uses it; its memory grows by all activations of a batch (but for MinMax), so it runs for
few batches only. Both calibrate the inputs of Conv, Gemm and the residual Add; ONNX Runtime also takes their outputs,
it knows no other choice. Its entropy runs with its defaults (128 bins, 128 levels), ours with 2048 bins.

Peaks are the largest resident size of the process (Linux: kilobytes of `ru_maxrss`); "over start" leaves out what it
had before, with all packages loaded and the model made. Exit status 1: ours grows by more than --limit between the
fewest and the most batches.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path, format_table
from _options import add_metrics_options, export_metrics, parse
from _plots import Bars, Chart

add_project_to_path()

METHODS = ("minmax", "percentile", "entropy")
_ORT_METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
_CALIBRATED = ("Conv", "Gemm", "Add")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8, 32], help="numbers of batches for ours")
    parser.add_argument("--one-shot", type=int, nargs="*", default=[2, 8], help="... and for ONNX Runtime's own way")
    parser.add_argument("--batch", type=int, default=8, help="images in a batch")
    parser.add_argument("--size", type=int, default=224, help="height and width of an image")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--limit", type=float, default=1.1, help="most memory of the most batches over the fewest")
    add_metrics_options(parser)
    parser.add_argument("--child", nargs=3, metavar=("WAY", "METHOD", "BATCHES"), help=argparse.SUPPRESS)
    arguments = parse(parser)
    if arguments.child:
        way, method, batches = arguments.child
        print(json.dumps(_child(way, method, int(batches), arguments)))
        return 0
    rows = []
    for method in arguments.methods:
        for way, counts in (("ours", arguments.batches), ("one shot", arguments.one_shot)):
            rows += [_measure(way, method, count, arguments) for count in counts]
    growth = {method: _growth(rows, method) for method in arguments.methods}
    passed = all(value <= arguments.limit for value in growth.values())
    print("\n" + render({"growth": growth, "rows": rows}))
    export_metrics(arguments, rows, passed=passed, growth=growth)
    return 0 if passed else 1


def render(document: Mapping[str, Any]) -> str:
    """The peaks, and how ours grows."""
    told = ", ".join(f"{method} {growth:.2f}" for method, growth in document["growth"].items())
    return f"{format_table(document['rows'])}\n\nOurs, most batches / fewest: {told}."


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """The largest growth and the largest peaks."""
    peaks = {way: max(r["peak GB"] for r in document["rows"] if r["way"] == way) for way in ("ours", "one shot")}
    return {
        "growth": f"{max(document['growth'].values()):.2f}",
        "ours": f"{peaks['ours']:.2f} GB",
        "one_shot": f"{peaks['one shot']:.2f} GB",
    }


def plots(document: Mapping[str, Any]) -> dict[str, Chart]:
    """Peak memory of each way and number of batches."""
    peaks = {(row["way"], row["batches"], row["method"]): row["peak GB"] for row in document["rows"]}
    cases = sorted({(way, batches) for way, batches, _ in peaks}, key=lambda case: (case[0] != "ours", case))
    methods = dict.fromkeys(row["method"] for row in document["rows"])
    series = {method: [peaks.get((*case, method)) for case in cases] for method in methods}
    title = "Peak memory of calibrating ResNet50, batches of 8 images"
    groups = [f"{way}, {batches} batches" for way, batches in cases]
    return {"peak": Bars(title, "GB resident", groups, series, places=2)}


def _measure(way: str, method: str, batches: int, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--batch", str(arguments.batch), "--size", str(arguments.size)]
    command += ["--child", way, method, str(batches)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{way}, {method}, {batches} batches: failed with status {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    row = {
        "method": method,
        "way": way,
        "batches": batches,
        "tensors": found["tensors"],
        "peak GB": found["peak"] / 1e9,
        "over start GB": (found["peak"] - found["start"]) / 1e9,
        "seconds": found["seconds"],
    }
    print(row, flush=True)
    return row


def _growth(rows: list[dict[str, Any]], method: str) -> float:
    peaks = {row["batches"]: row["peak GB"] for row in rows if (row["method"], row["way"]) == (method, "ours")}
    return float(peaks[max(peaks)] / peaks[min(peaks)])


def _child(way: str, method: str, batches: int, arguments: argparse.Namespace) -> dict[str, float]:
    import onnxruntime.quantization  # noqa: F401  (so that the start holds it either way)
    from _resnet import resnet50

    from passes import model as models
    from passes.infer_shapes import InferShapes

    proto = resnet50()
    for side in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        side.dim_value = arguments.size
    feeds = _feeds(batches, arguments.batch, arguments.size)
    with tempfile.TemporaryDirectory(prefix="calibration-") as folder:
        if way == "ours":
            model = InferShapes().run(models.from_proto(proto)).model
            del proto
            return _timed(lambda: _ours(model, feeds, method))
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        del proto
        return _timed(lambda: _one_shot(path, feeds, method))


def _feeds(batches: int, batch: int, size: int) -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    for _ in range(batches):
        yield {"image": random.standard_normal((batch, 3, size, size), np.float32)}


def _timed(work: Any) -> dict[str, float]:
    start, begin = _peak(), time.perf_counter()
    tensors = work()
    return {"tensors": tensors, "start": start, "peak": _peak(), "seconds": time.perf_counter() - begin}


def _peak() -> int:
    """Largest resident size of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _ours(model: Any, feeds: Iterator[dict[str, np.ndarray]], method: str) -> int:
    from rewriter.precision.calibration import calibrate, fetchable

    read = [name for node in model.proto.graph.node if node.op_type in _CALIBRATED for name in node.input]
    known = fetchable(model)
    tensors = sorted({name for name in read if name in known})
    return len(calibrate(model, tensors, feeds, method=method).ranges)


def _one_shot(path: Path, feeds: Iterator[dict[str, np.ndarray]], method: str) -> int:
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    class Reader:
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feeds, None)

    with Path(os.devnull).open("w") as silence, contextlib.redirect_stdout(silence):
        calibrator = create_calibrator(
            path,
            list(_CALIBRATED),
            augmented_model_path=str(path.with_name("augmented.onnx")),
            calibrate_method=CalibrationMethod[_ORT_METHODS[method]],
        )
        calibrator.collect_data(Reader())
        return len(list(calibrator.compute_data().keys()))


if __name__ == "__main__":
    sys.exit(main())
