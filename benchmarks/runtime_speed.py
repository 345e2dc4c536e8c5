"""How fast is the runtime on a GPU: against ONNX Runtime, against bare TensorRT, and against itself.

    python benchmarks/runtime_speed.py FOLDER [--only NAME...] [--json PATH] [--timeout SECONDS] [--quick]

FOLDER holds the skeletons of `runtime_models.py`; models are filled, converted and built here when they are not yet.
Needs torch, TensorRT-RTX and ONNX Runtime with CUDA. Each experiment runs in a process of its own:

    resnet   ResNet50 FP16 at batch 1, 8, 32: ours with and without CUDA graph, bare TensorRT likewise, ONNX Runtime
             in FP32 (TF32) and FP16 with and without its own graph; all device-resident. "ours, host": numpy in and out
    chain    48 convolutions, FP32 (TF32), batch 8, in 1, 3, 7 and 15 alternating steps; one ONNX Runtime session.
    load     from `load()` to the end of the first call, with and without the saved runtime cache.
    memory   10 000 calls of alternating shapes: device memory and resident host memory.
    threads  8 threads, 200 calls each, mixed shapes: the same results as one thread gets.

us is the median of one call and the wait for its end, with 10th and 90th percentile; "stream us" is a call among many
without a wait between them. The exit status is 1 when a target is missed or an experiment fails.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import format_table
from _options import add_metrics_options, parse, recorded
from _runtime_bench import run_experiments, tables
from runtime_models import CHAIN_STEPS

EXPERIMENTS = ("resnet", "chain", "load", "memory", "threads")
BATCHES = (1, 8, 32)
ROUNDS = 5
SPEED_COLUMNS = ("model", "precision", "batch", "system", "us", "p10", "p90", "stream us", "difference", "note")
LOAD_COLUMNS = ("model", "precision", "state", "load s", "first call s", "together s", "second call s", "cache files")
MEMORY_COLUMNS = (
    "model", "precision", "shapes", "calls", "seconds", "MB at start", "MB warm", "MB at 10 %", "MB at end",
    "growth bytes", "RSS MB warm", "RSS MB at end", "worst", "note",
)  # fmt: skip
THREAD_COLUMNS = (
    "model", "precision", "threads", "calls", "seconds", "bit-equal", "different", "worst", "errors", "note",
)  # fmt: skip


TABLES = {
    "resnet": ("ResNet50, device-resident", SPEED_COLUMNS),
    "chain": ("48 convolutions in alternating steps", SPEED_COLUMNS),
    "load": ("Load with and without the runtime cache", LOAD_COLUMNS),
    "memory": ("Memory over calls of alternating shapes", MEMORY_COLUMNS),
    "threads": ("Threads", THREAD_COLUMNS),
}


def main() -> int:
    options = _parse()
    if options.worker:
        import _runtime_workers

        experiment = json.loads(options.worker)
        arguments = {key: value for key, value in experiment.items() if key not in ("about", "work", "environment")}
        getattr(_runtime_workers, experiment["work"])(**arguments)
        return 0
    everything = [e for name in options.only for e in experiments(name, options.folder, options.quick)]
    results = run_experiments(
        __file__, everything, options.timeout, options.json, budget=options.budget, options=recorded(options)
    )
    print(render({"results": results}))
    verdicts = targets(results)
    good = all("failed" not in r for r in results) and all(v["passed"] != "no" for v in verdicts)
    return 0 if results and good else 1


def render(document: Mapping[str, Any]) -> str:
    """What was measured, and the targets beside it."""
    parts = []
    for name, (title, columns) in TABLES.items():
        results = [r for r in document["results"] if r["experiment"]["about"] == name]
        if results:
            parts += [f"### {title}", tables(results, columns)]
    return "\n\n".join([*parts, "### Targets", format_table(targets(document["results"]))])


def targets(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The targets of what was measured."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        rows.setdefault(result["experiment"]["about"], []).extend(result["rows"])
    return list(judge(rows))


def experiments(about: str, folder: Path, quick: bool) -> list[dict[str, Any]]:
    """What the workers are told, in order."""
    makers = {
        "resnet": _resnet(quick), "chain": _chain(quick), "load": _load(folder, quick), "memory": _memory(quick),
        "threads": _threads(quick),
    }  # fmt: skip
    return [{"about": about, "folder": str(folder), **experiment} for experiment in makers[about]]


def _resnet(quick: bool) -> Iterator[dict[str, Any]]:
    for batch in BATCHES:
        yield {
            "work": "ours_and_bare", "name": "ResNet50", "precision": "FP16", "batch": batch,
            "rounds": 1 if quick else ROUNDS,
        }  # fmt: skip
    for precision in ("FP32", "FP16"):
        for graph in (False, True):
            yield {
                "work": "onnxruntime", "name": "ResNet50", "precision": precision, "batches": BATCHES,
                "cuda_graph": graph, "rounds": 1 if quick else ROUNDS,
            }  # fmt: skip


def _chain(quick: bool) -> Iterator[dict[str, Any]]:
    for steps in CHAIN_STEPS:
        yield {
            "work": "ours_and_bare", "name": f"chain{steps}", "precision": "FP32", "batch": 8,
            "rounds": 1 if quick else ROUNDS,
        }  # fmt: skip
    for graph in (False, True):
        yield {
            "work": "onnxruntime", "name": "chain1", "precision": "FP32", "batches": (8,), "cuda_graph": graph,
            "rounds": 1 if quick else ROUNDS,
        }  # fmt: skip


def _load(folder: Path, quick: bool) -> Iterator[dict[str, Any]]:
    """Fresh machine, later process without the runtime cache, later process with it, for each model.

    CUDA's own cache of compiled kernels is empty for "fresh" and stays from there on, so that the other two states
    differ in the runtime cache alone.
    """
    for name, precision in (("ResNet50", "FP16"), ("chain7", "FP32")):
        for turn in range(1 if quick else 2):
            cuda_cache = folder / f"cuda_cache.{name}.{turn}"
            shutil.rmtree(cuda_cache, ignore_errors=True)
            for state in ("fresh", "no cache", "cache"):
                yield {
                    "work": "first_call", "name": name, "precision": precision, "state": state,
                    "environment": {"CUDA_CACHE_PATH": str(cuda_cache)},
                }  # fmt: skip


def _memory(quick: bool) -> Iterator[dict[str, Any]]:
    calls = 100 if quick else 10_000
    for name, precision, number in (
        ("chain7", "FP32", calls),
        ("bert", "FP16", calls),
        ("detector", "FP16", calls // 5),
    ):
        yield {"work": "memory", "name": name, "precision": precision, "calls": number}


def _threads(quick: bool) -> Iterator[dict[str, Any]]:
    for name, precision in (("chain7", "FP32"), ("bert", "FP16")):
        yield {"work": "threads", "name": name, "precision": precision, "calls": 5 if quick else 200}


def judge(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The targets, each with what was measured: "?" where a figure is missing, "-" for what is told beside them."""
    times = {(r["model"], r["system"], r["batch"]): r for r in (*rows.get("resnet", ()), *rows.get("chain", ()))}

    def us(model: str, system: str, batch: int, key: str = "us") -> float:
        return float(times.get((model, system, batch), {}).get(key, "nan"))

    if "resnet" in rows:
        yield from _judge_resnet(us)
    if "chain" in rows:
        yield from _judge_chain(us)
    if "load" in rows:
        yield from _judge_load(rows["load"])
    for row in rows.get("memory", ()):
        yield _verdict(f"{row['model']}: growth of device memory, bytes", row["growth bytes"], "<=", 0)
        yield _verdict(f"{row['model']}: results over all calls", row["worst"], "<=", 1e-3)
    for row in rows.get("threads", ()):
        yield _verdict(f"{row['model']}: wrong results of threads", row["different"] + row["errors"], "<=", 0)


def _judge_resnet(us: Callable[..., float]) -> Iterator[dict[str, Any]]:
    """Against ONNX Runtime as users have it (FP32 model with TF32, no graph) and bare TensorRT; the rest beside it."""
    for batch in BATCHES:
        for key in ("us", "stream us"):
            ours = us("ResNet50", "ours, graph", batch, key)
            for rival in ("ORT FP32", "ORT FP16", "ORT FP32, graph", "ORT FP16, graph"):
                ratio = us("ResNet50", rival, batch, key) / ours
                yield _verdict(f"batch {batch}: {rival} / ours, {key}", ratio, ">=", 2.0, judged=rival == "ORT FP32")
            bare = us("ResNet50", "bare, graph", batch, key)
            yield _verdict(f"batch {batch}: ours / bare TensorRT graph, {key}", ours / bare, "<=", 1.05)


def _judge_chain(us: Callable[..., float]) -> Iterator[dict[str, Any]]:
    """The hybrid's targets.

    What a boundary costs is told in three ways: as the target says it (which also counts that native convolutions are
    slower), without the device's work, and between 7 and 15 steps, whose native parts are alike.
    """
    seven = us("chain7", "ours, graph", 8)
    yield _verdict("7 steps / single engine, graphs", seven / us("chain1", "ours, graph", 8), "<=", 1.3)
    yield _verdict("7 steps / single ORT session", seven / us("chain1", "ORT FP32", 8), "<=", 0.5)
    eager = {steps: us(f"chain{steps}", "ours, eager", 8) for steps in CHAIN_STEPS}
    graph = {steps: us(f"chain{steps}", "ours, graph", 8) for steps in CHAIN_STEPS}
    for steps in CHAIN_STEPS[1:]:
        boundary = (eager[steps] - eager[1]) / (steps - 1)
        yield _verdict(f"eager boundary, {steps} steps, us", boundary, "<=", 30.0)
        overhead = ((eager[steps] - graph[steps]) - (eager[1] - graph[1])) / (steps - 1)
        yield _verdict(f"... without the device's work, {steps} steps, us", overhead, "<=", 30.0, judged=False)
    slope = (eager[15] - eager[7]) / 8
    yield _verdict("... between 7 and 15 steps, us", slope, "<=", 30.0, judged=False)


def _judge_load(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """From load() to the end of the first call, with the cache against without it."""
    for model in dict.fromkeys(row["model"] for row in rows):
        for key in ("together s", "load s", "first call s"):
            least = {
                state: min((r[key] for r in rows if (r["model"], r["state"]) == (model, state)), default=float("nan"))
                for state in ("fresh", "no cache", "cache")
            }
            for state in ("no cache", "fresh"):
                ratio = least[state] / least["cache"]
                target = (model, key, state) == ("ResNet50", "together s", "no cache")
                yield _verdict(f"{model}: {state} / cache, {key}", ratio, ">=", 5.0, judged=target)


def _verdict(what: str, value: float, sign: str, limit: float, *, judged: bool = True) -> dict[str, Any]:
    """One line; "passed" is "?" for a value that was not measured, "-" for one that is no target."""
    good = value >= limit if sign == ">=" else value <= limit
    passed = "?" if math.isnan(value) else "-" if not judged else "yes" if good else "no"
    return {"target": what, "measured": f"{value:.3g}", "wanted": f"{sign} {limit:g}", "passed": passed}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="fewer calls, to try the script")
    add_metrics_options(parser)
    parser.add_argument("--timeout", type=float, default=90.0, help="seconds for one experiment (default %(default)s)")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for all (default %(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parse(parser)


if __name__ == "__main__":
    sys.exit(main())
