"""How much faster is our export of a SavedModel than the stock tf2onnx command?

Both are timed as whole processes, imports included, in alternating runs on the same SavedModel; ours also runs
TensorFlow on two samples and compares. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ... failed:\n{done.stderr[-2000:]}")
    return seconds, done.stdout


def measure(model: str, runs: int) -> dict[str, object]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    with tempfile.TemporaryDirectory() as folder:
        saved = str(Path(folder) / "saved_model")
        timed([sys.executable, "-c", MAKE, str(MODELS[model]), saved], environment)
        stock_file, our_file = str(Path(folder) / "stock.onnx"), str(Path(folder) / "ours.onnx")
        stock = ["-m", "tf2onnx.convert", "--saved-model", saved, "--output", stock_file, "--opset", "18"]
        ours = ["-c", OURS, saved, our_file]
        seconds: dict[str, list[float]] = {"stock": [], "ours": []}
        nodes = 0
        for number in range(runs):
            seconds["stock"].append(timed([sys.executable, *stock], environment)[0])
            taken, printed = timed([sys.executable, *ours], environment)
            seconds["ours"].append(taken)
            nodes = int(printed)
            print(f"run {number + 1}/{runs}: stock {seconds['stock'][-1]:.1f} s, ours {taken:.1f} s", file=sys.stderr)
        import onnx

        stock_nodes = len(onnx.load(stock_file).graph.node)
    ratios = [s / o for s, o in zip(seconds["stock"], seconds["ours"], strict=True)]
    return {
        "model": model,
        "stock_seconds": [round(s, 2) for s in seconds["stock"]],
        "our_seconds": [round(s, 2) for s in seconds["ours"]],
        "median_stock": round(statistics.median(seconds["stock"]), 2),
        "median_ours": round(statistics.median(seconds["ours"]), 2),
        "median_ratio": round(statistics.median(ratios), 2),
        "nodes_stock": stock_nodes,
        "nodes_ours": nodes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="resnet50")
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs (default 3)")
    options = parser.parse_args()
    result = measure(options.model, options.runs)
    print(f"{'':8} {'median s':>9} {'nodes':>6}")
    print(f"{'stock':8} {result['median_stock']:>9} {result['nodes_stock']:>6}")
    print(f"{'ours':8} {result['median_ours']:>9} {result['nodes_ours']:>6}")
    print(f"{options.model}: {result['median_ratio']} times as fast (median of {options.runs} pairs, whole processes)")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
