"""How much faster is our export of a SavedModel than the stock tf2onnx command?

Both are timed as whole processes, imports included, in alternating runs on the same SavedModel; ours also runs
TensorFlow on two samples and compares. A third process ("floor") only imports both packages and loads the
SavedModel, which neither can avoid; the ratio above it is told too.

    python benchmarks/export_speed.py [--model resnet50] [--runs 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import format_table
from _options import add_metrics_options, export_metrics, parse
from _plots import Bars, Chart

MODELS = {"resnet50": "ResNet50", "mobilenetv2": "MobileNetV2", "small": None}
MAKE = """
import sys, keras
name, path = sys.argv[1:]
if name == "None":
    x = keras.Input((32, 32, 3))
    y = keras.layers.Conv2D(8, 3, activation="relu")(x)
    model = keras.Model(x, keras.layers.Dense(10)(keras.layers.Flatten()(y)))
else:
    model = getattr(keras.applications, name)(weights=None)
model.export(path, verbose=False)
"""
OURS = """
import sys
from passes.model import save
from rewriter.frontend import load_source
source = load_source(sys.argv[1])
save(source.model, sys.argv[2])
print(len(source.model.proto.graph.node))
"""
FLOOR = """
import sys
import tensorflow, tf2onnx.tfonnx
loaded = tensorflow.saved_model.load(sys.argv[1])
print(0)
"""


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Wall seconds, CPU seconds and printed text of one process."""
    start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ... failed:\n{done.stderr[-2000:]}")
    return seconds, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime, done.stdout


def measure(model: str, runs: int) -> dict[str, Any]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    with tempfile.TemporaryDirectory() as folder:
        saved = str(Path(folder) / "saved_model")
        timed([sys.executable, "-c", MAKE, str(MODELS[model]), saved], environment)
        stock_file, our_file = str(Path(folder) / "stock.onnx"), str(Path(folder) / "ours.onnx")
        stock = ["-m", "tf2onnx.convert", "--saved-model", saved, "--output", stock_file, "--opset", "18"]
        ours = ["-c", OURS, saved, our_file]
        floor = ["-c", FLOOR, saved]
        wall: dict[str, list[float]] = {"floor": [], "stock": [], "ours": []}
        cpu: dict[str, list[float]] = {"floor": [], "stock": [], "ours": []}
        printed = ""
        for number in range(runs):
            for kind, arguments in (("floor", floor), ("stock", stock), ("ours", ours)):
                seconds, used, printed = timed([sys.executable, *arguments], environment)
                wall[kind].append(round(seconds, 2))
                cpu[kind].append(round(used, 2))
            told = ", ".join(f"{kind} {wall[kind][-1]:.1f} s ({cpu[kind][-1]:.1f} s CPU)" for kind in wall)
            print(f"run {number + 1}/{runs}: {told}", file=sys.stderr)
        import onnx

        stock_nodes = len(onnx.load(stock_file).graph.node)

    def ratio(seconds: dict[str, list[float]]) -> float:
        pairs = zip(seconds["stock"], seconds["ours"], strict=True)
        return round(statistics.median(s / o for s, o in pairs), 2)

    def ratio_above_floor(seconds: dict[str, list[float]]) -> float:
        least = statistics.median(seconds["floor"])
        return ratio({kind: [s - least for s in values] for kind, values in seconds.items()})

    return {
        "model": model,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "ratio": ratio(wall),
        "cpu_ratio": ratio(cpu),
        "ratio_above_floor": ratio_above_floor(wall),
        "cpu_ratio_above_floor": ratio_above_floor(cpu),
        "nodes": {"floor": 0, "stock": stock_nodes, "ours": int(printed)},
    }


def rows_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Medians of the three kinds of processes."""
    return [
        {
            "process": kind,
            "wall s": round(statistics.median(result["wall_seconds"][kind]), 1),
            "CPU s": round(statistics.median(result["cpu_seconds"][kind]), 1),
            "nodes": result["nodes"][kind] or None,
        }
        for kind in ("floor", "stock", "ours")
    ]


def render(document: Mapping[str, Any]) -> str:
    """The medians, and the ratios of pairs of runs."""
    runs = len(document["wall_seconds"]["ours"])
    above = f"{document['ratio_above_floor']} and {document['cpu_ratio_above_floor']}"
    return (
        f"{document['model']}, medians of {runs} runs:\n\n{format_table(document['rows'])}\n\n"
        f"{document['ratio']} times as fast as stock in wall time, {document['cpu_ratio']} in CPU time; above the "
        f"floor {above} times."
    )


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """The ratios."""
    return {"ratio": f"{document['ratio']:.1f}", "cpu_ratio": f"{document['cpu_ratio']:.1f}"}


def plots(document: Mapping[str, Any]) -> dict[str, Chart]:
    """CPU seconds of the three processes."""
    seconds = [row["CPU s"] for row in document["rows"]]
    names = {"floor": "floor (imports, loading)", "stock": "tf2onnx command", "ours": "ours, checked as well"}
    groups = [names[row["process"]] for row in document["rows"]]
    title = f"Exporting {MODELS[document['model']] or 'a small model'} to ONNX, whole processes"
    return {"seconds": Bars(title, "CPU seconds (median)", groups, {"CPU seconds": seconds}, places=1)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="resnet50")
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs (default 3)")
    add_metrics_options(parser)
    options = parse(parser, argv)
    result = measure(options.model, options.runs)
    rows = rows_of(result)
    print(render({**result, "rows": rows}))
    export_metrics(options, rows, **result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
