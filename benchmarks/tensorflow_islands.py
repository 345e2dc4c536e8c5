"""What does it cost to leave a part of a model in TensorFlow?

    python benchmarks/tensorflow_islands.py [--saved-model DIR] [--batch 1 --batch 32] [--json out.json]

Every signature of a SavedModel with strings is converted, saved, loaded and compared with TensorFlow on texts. Then
calls of both are timed in turn, in changing order; `island` is the share of our call that is spent in TensorFlow.
Default model: that of the package guesslang (`pip install --no-deps guesslang`): the text of a program in, scores of 54
programming languages out. Exit status 1: an output differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path, format_table, relative_difference
from _options import add_metrics_options, export_metrics, parse

add_project_to_path()

LIMIT = 1e-5
TIMED_RUNS = 60
TEXTS = (
    b"def main():\n    print('hello')\n",
    b"#include <stdio.h>\nint main() { return 0; }\n",
    b'fn main() { println!("hello"); }\n',
    b"SELECT name FROM people WHERE age > 3;\n",
)


def guesslang_model() -> str:
    """The SavedModel inside guesslang, which is found without importing it."""
    spec = importlib.util.find_spec("guesslang")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this needs a model with strings: pip install --no-deps guesslang, or --saved-model DIR")
    return str(Path(spec.submodule_search_locations[0]) / "data" / "model")


def measure(function: Any, reference: Any, name: str, batch: int) -> dict[str, Any]:
    """Largest difference from TensorFlow, and medians of both in milliseconds."""
    import tensorflow as tf

    texts = np.array([TEXTS[i % len(TEXTS)] * (1 + i % 5) for i in range(batch)])
    tensor = tf.constant(texts)
    ours = function(**{name: texts})
    theirs = {key: value.numpy() for key, value in reference(**{name: tensor}).items()}
    worst = max(relative_difference(ours[key], _text(value)) for key, value in theirs.items())
    before = {key: dict(value) for key, value in function.stats()["tensorflow"].items()}
    seconds: dict[str, list[float]] = {"trt_rewriter": [], "tensorflow": []}
    calls = {"trt_rewriter": lambda: function(**{name: texts}), "tensorflow": lambda: reference(**{name: tensor})}
    for run in range(TIMED_RUNS):
        for key in sorted(calls, reverse=bool(run % 2)):
            start = time.perf_counter()
            calls[key]()
            seconds[key].append(time.perf_counter() - start)
    after = function.stats()["tensorflow"]
    inside = sum(after[key]["seconds"] - before[key]["seconds"] for key in after)
    medians = {key: 1e3 * statistics.median(values) for key, values in seconds.items()}
    return {
        "batch": batch,
        "max rel diff": worst,
        "ms": medians["trt_rewriter"],
        "TensorFlow ms": medians["tensorflow"],
        "ratio": medians["trt_rewriter"] / medians["tensorflow"],
        "island": inside / sum(seconds["trt_rewriter"]),
    }


def _text(value: np.ndarray) -> np.ndarray:
    if value.dtype.kind != "O":
        return value
    return np.array([item.decode() for item in value.ravel()], object).reshape(value.shape)


def render(document: Mapping[str, Any]) -> str:
    """The table, and how long the conversion took."""
    signatures = len({row["signature"] for row in document["rows"]})
    told = f"{signatures} signature(s) converted in {document['seconds']:.1f} s."
    return f"{format_table(document['rows'])}\n\n{told}"


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """The range of the ratio to TensorFlow, and of the share that the island has."""
    ratios, islands = ([row[key] for row in document["rows"]] for key in ("ratio", "island"))
    return {
        "ratios": f"{min(ratios):.2f} to {max(ratios):.2f}",
        "islands": f"{min(islands):.0%} to {max(islands):.0%}",
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saved-model", help="a SavedModel whose signatures take one string tensor")
    parser.add_argument("--batch", type=int, action="append", help="texts in a call; may be repeated (default 1, 32)")
    add_metrics_options(parser)
    arguments = parse(parser, argv)
    import tensorflow as tf

    from rewriter import Converter, load

    path = arguments.saved_model or guesslang_model()
    reference = tf.saved_model.load(path)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        with Converter(path, input_saved_model_signature_key="*", progress=False) as converter:
            start = time.perf_counter()
            converter.convert()
            seconds = time.perf_counter() - start
            converter.build({key: converter.sample_input_fn(signature_key=key) for key in converter.signatures})
            converter.save(out)
            reports = converter.reports
        with load(out, provider="cpu") as function:
            for key, report in reports.items():
                one = function.signatures[key]
                (name,) = one.structured_input_signature[1]
                facts = {
                    "signature": key,
                    "nodes": report.total_nodes,
                    "islands": sum(v.rule == "tensorflow" for v in report.native),
                    "engines": sum(engine.built for engine in report.engines),
                    "operations in engines": f"{report.flops_coverage or 0.0:.1%}",
                }
                rows += [
                    {**facts, **measure(one, reference.signatures[key], name, batch)}
                    for batch in arguments.batch or [1, 32]
                ]
    print(render({"rows": rows, "seconds": seconds}))
    export_metrics(arguments, rows, seconds=seconds)
    return int(any(row["max rel diff"] > LIMIT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
