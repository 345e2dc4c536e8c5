"""Does a TensorFlow model beyond 2 GB convert, and in how much memory? Random weights, no two layers alike.

    python benchmarks/big_tf_model.py [--gigabytes 2.4] [--layers 3] [--kind NAME ...] [--folder DIR] [--json FILE]

A chain of Dense layers is written by a child process, as a SavedModel, a .keras or an .h5 file; kind "object": the
converting process makes the Keras model itself and keeps it. Another child converts it, up to and including the cut by
TensorRT's real parser, while a thread samples its memory and that of all processes below it; then it calls the
converted model natively and compares with numpy. Linux only: /proc is read. Exit status 1: more memory than the limit,
or a wrong result.

All are peaks of sums over all processes at one moment, as multiples of the weights. "anonymous": memory that only the
processes hold. "resident": with the pages of mapped files, which the system can drop at any time. Both count what the
libraries themselves need ("before": after all imports, so take large models). Below 1.5 GB of weights, where ordinary
models take the way through TensorFlow's GraphDef, the way through files is forced.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path, format_table, relative_difference
from _options import add_metrics_options, export_metrics, parse
from big_model import Watch

add_project_to_path()

KINDS = ("saved_model", "keras", "h5", "object")
SUFFIXES = {"saved_model": "", "keras": ".keras", "h5": ".h5"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.4, help="size of all weights")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=["object", "saved_model", "keras"])
    parser.add_argument("--folder", type=Path, help="where the temporary files go (five times the weights)")
    parser.add_argument("--limit", type=float, default=3.0, help="most memory, as a multiple of the weights")
    parser.add_argument("--ordinary", action="store_true", help="the way of smaller models, for comparison")
    add_metrics_options(parser)
    parser.add_argument("--child", choices=("write", "convert"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parse(parser)
    if arguments.child:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        (arguments.kind,) = arguments.kind
        print(json.dumps({"write": _write, "convert": _convert}[arguments.child](arguments)))
        return 0
    rows: list[dict[str, Any]] = []
    models = []
    for kind in arguments.kind:
        with tempfile.TemporaryDirectory(prefix="big-tf-model-", dir=arguments.folder) as folder:
            model, its = _measure(argparse.Namespace(**{**vars(arguments), "kind": kind}), Path(folder))
        models.append(model)
        rows += its
    print(render({"models": models, "rows": rows}))
    export_metrics(arguments, rows, models=models)
    return 0 if all(model["passed"] for model in models) else 1


def render(document: Mapping[str, Any]) -> str:
    """The peaks of each kind of model, and after each of its stages."""
    names = ("kind", "anonymous", "resident", "seconds", "nodes", "in segments", "max rel diff", "passed")
    weights = max(model["weights"] for model in document["models"])
    return "\n\n".join(
        [
            f"Weights: {weights / 1e9:.2f} GB; memory as a multiple of them.",
            format_table(document["models"], names),
            "Stage by stage:",
            format_table(document["rows"]),
        ]
    )


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """The largest peaks."""
    return {"worst": f"{max(model['anonymous'] for model in document['models']):.2f}"}


def width_of(arguments: argparse.Namespace) -> int:
    """The width of each layer, whose weights are width x width float32."""
    return int((arguments.gigabytes * 1e9 / 4 / arguments.layers) ** 0.5)


def layer_weights(layer: int, width: int) -> np.ndarray:
    """Weights that keep the size of activations."""
    values = np.random.default_rng(layer).standard_normal((width, width), np.float32)
    values *= np.float32((2 / width) ** 0.5)
    return values


def make_model(layers: int, width: int) -> Any:
    """The Keras model; beside it never more than one layer's weights are in memory."""
    import keras

    x = given = keras.Input((width,), name="x")
    for layer in range(layers):
        x = keras.layers.Dense(width, "relu", kernel_initializer="zeros", use_bias=False, name=f"dense_{layer}")(x)
    model = keras.Model(given, {"y": x})
    for layer in range(layers):
        model.get_layer(f"dense_{layer}").kernel.assign(layer_weights(layer, width))
    return model


def _path(arguments: argparse.Namespace) -> Path:
    return Path(arguments.work) / f"model{SUFFIXES[arguments.kind]}"


def _write(arguments: argparse.Namespace) -> dict[str, Any]:
    model = make_model(arguments.layers, width_of(arguments))
    if arguments.kind == "saved_model":
        model.export(str(_path(arguments)), verbose=False)
    else:
        model.save(str(_path(arguments)))
    return {}


class StageWatch(Watch):
    """Peaks by stage as well: `stage` says which one is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.by_stage: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Books the peaks of the block under `name`."""
        outer, self._peaks = self._peaks, dict.fromkeys(self._peaks, 0)
        try:
            yield
        finally:
            self.by_stage[name] = dict(self._peaks)
            self._peaks = {kind: max(size, outer[kind]) for kind, size in self._peaks.items()}


def _watched(watch: StageWatch) -> None:
    """Lets the stages of the front end and of the converter tell the watch where they are."""
    from rewriter.frontend.tensorflow import Clock
    from rewriter.progress import Stages

    for owner in (Clock, Stages):
        original = owner.stage

        @contextlib.contextmanager
        def stage(self: Any, name: str, original: Any = original) -> Iterator[None]:
            with watch.stage(name), original(self, name):
                yield

        owner.stage = stage  # type: ignore[method-assign]


def _convert(arguments: argparse.Namespace) -> dict[str, Any]:
    """Converts and cuts; returns peaks of memory by stage, seconds, and what came out."""
    from rewriter import Converter
    from rewriter.frontend import large_weights
    from rewriter.frontend.callee import import_tensorflow

    # What is loaded here counts as "before". Who has an object has imported TensorFlow himself.
    if arguments.kind == "object":
        import tensorflow  # noqa: F401
    import_tensorflow()
    import keras  # noqa: F401

    large_weights.THRESHOLD = 1 << 62 if arguments.ordinary else 0
    width = width_of(arguments)
    watch = StageWatch()
    _watched(watch)
    with watch:
        with watch.stage("before"):
            time.sleep(0.2)
        model = make_model(arguments.layers, width) if arguments.kind == "object" else str(_path(arguments))
        with Converter(model=model, progress=False) as converter:
            start = time.perf_counter()
            function = converter.convert()
            seconds = time.perf_counter() - start
            peaks = watch.peaks()
            report = converter.report
            x = np.random.default_rng(99).standard_normal((2, width), np.float32)
            y = function(x)["y"]
    expected = x
    for layer in range(arguments.layers):
        expected = np.maximum(expected @ layer_weights(layer, width), 0)
    return {
        "weights": arguments.layers * width * width * 4,
        "peaks": peaks,
        "stages": watch.by_stage,
        "seconds": seconds,
        "timings": dict(report.timings),
        "nodes": report.total_nodes,
        "in_segments": report.total_nodes - len(report.native),
        "difference": relative_difference(y, expected),
    }


def _measure(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One kind of model: its line, and one a stage."""
    if arguments.kind != "object":
        start = time.perf_counter()
        _child(arguments, "write", folder)
        print(f"written in {time.perf_counter() - start:.0f} s", flush=True)
    result = _child(arguments, "convert", folder)
    weights = result["weights"]
    kinds = ("anonymous", "resident", "own", "children")
    rows = [
        {"kind": arguments.kind, "stage": name, "seconds": result["timings"].get(name)}
        | {kind: peaks[kind] / weights for kind in kinds}
        for name, peaks in result["stages"].items()
    ]
    whole = {kind: result["peaks"][kind] / weights for kind in kinds}
    passed = result["difference"] < 1e-4 and max(whole["anonymous"], whole["resident"]) <= arguments.limit
    line = {
        "kind": arguments.kind,
        "weights": weights,
        **whole,
        "seconds": result["seconds"],
        "nodes": result["nodes"],
        "in segments": result["in_segments"],
        "max rel diff": result["difference"],
        "passed": passed,
    }
    return line, rows


def _child(arguments: argparse.Namespace, step: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", step, "--work", str(folder), "--kind", arguments.kind]
    command += ["--gigabytes", str(arguments.gigabytes), "--layers", str(arguments.layers)]
    command += ["--ordinary"] if arguments.ordinary else []
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the step {step!r} failed with status {done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
