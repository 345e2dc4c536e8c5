"""What do engine nodes cost where there is no engine? Spliced against unspliced in plain ONNX Runtime.

    python benchmarks/spliced_latency.py [--model MODEL.onnx | --keras ResNet50] [--deny Pad MaxPool] [--json out.json]

The model is cleaned, partitioned as if TensorRT took everything but some nodes, and spliced. Two sessions of each
model then run in turn, in changing order, so that noise of the machine meets all alike; with one thread (the default)
the thread's processor time is taken, which other programs don't lengthen. "control" is the ratio of the two sessions of
the unspliced model: as far as it is from 1, so far is the ratio uncertain. Exit status 1: an output is not bit-equal,
or the ratio of the medians is above the limit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path, format_table
from _options import add_metrics_options, export_metrics, parse

add_project_to_path()

from passes import model as models  # noqa: E402 - after the path
from passes.extract import Extractor  # noqa: E402
from passes.graph_index import iter_scopes  # noqa: E402
from passes.model import Model  # noqa: E402
from passes.partition import PartitionOptions, propose  # noqa: E402
from passes.pipeline import default_pipeline  # noqa: E402
from passes.splice import EngineAttributes, splice  # noqa: E402
from passes.support import SupportMap, Verdict  # noqa: E402
from passes.testing import random_feeds  # noqa: E402
from rewriter.runtime.native import NativeSession, evaluate  # noqa: E402

TIMED_RUNS = 40


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", type=Path, help="an ONNX file; default: a ResNet50 made by hand")
    source.add_argument("--keras", help="a Keras application, e.g. ResNet50 (random weights; needs the [tf] extra)")
    parser.add_argument("--deny", nargs="*", default=["Pad", "MaxPool"], help="operators that stay native")
    parser.add_argument("--deny-every", type=int, default=30, help="each n-th node stays native too; 0 for none")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--runs", type=int, default=TIMED_RUNS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=1.05, help="largest ratio of medians that passes")
    add_metrics_options(parser)
    arguments = parse(parser, argv)
    name, model = _source(arguments)
    model, _ = default_pipeline(evaluate).run(model)
    spliced, segments, native = splice_as_if(model, arguments.deny, arguments.deny_every)
    figures = {"model": name, "nodes": _count(model), "segments": segments, "native": native}
    sessions: dict[str, list[NativeSession]] = {"unspliced": [], "spliced": []}
    created: dict[str, list[float]] = {label: [] for label in sessions}
    for label, value in (("unspliced", model), ("spliced", spliced)) * 2:
        start = time.perf_counter()
        sessions[label].append(NativeSession(value, threads=arguments.threads))
        created[label].append(time.perf_counter() - start)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    rows = [_measure(sessions, spliced, batch, arguments.runs, clock) for batch in arguments.batches]
    for row in rows:
        row["passed"] = row["bit-equal"] and row["ratio"] <= arguments.limit
    print(render({**figures, "created_s": created, "rows": rows}))
    export_metrics(arguments, rows, **figures, created_s=created)
    return 0 if all(row["passed"] for row in rows) else 1


def render(document: Mapping[str, Any]) -> str:
    """What was spliced, the latencies, and how long the sessions took to make."""
    created = ", ".join(f"{min(times):.2f} s ({label})" for label, times in document["created_s"].items())
    return "\n\n".join(
        [
            f"{document['model']}: {document['nodes']} nodes -> {document['segments']} engine nodes and "
            f"{document['native']} native nodes",
            format_table(document["rows"]),
            f"Sessions created in {created}.",
        ]
    )


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """The worst ratio, and whether all outputs were the same bits."""
    return {
        "worst": f"{max(row['ratio'] for row in document['rows']):.3f}",
        "equal": "bit-equal" if all(row["bit-equal"] for row in document["rows"]) else "NOT bit-equal",
    }


def splice_as_if(model: Model, deny: list[str], every: int) -> tuple[Model, int, int]:
    """Splices `model` as if TensorRT took all operators but `deny`, and all nodes but each `every`-th.

    Returns:
        The spliced model, its number of engine nodes and its number of native nodes.
    """
    nodes = [node for _, graph in iter_scopes(model.proto) for node in graph.node]
    denied = {n.name for i, n in enumerate(nodes, 1) if n.op_type in deny or (every and i % every == 0)}
    verdicts = [Verdict(n.name, n.op_type, n.name not in denied, "denylist", "denied for the benchmark") for n in nodes]
    segmentation = propose(model, SupportMap.of(verdicts), PartitionOptions())
    extractor = Extractor(model)
    hashes = {s.name: extractor.extract(s).content_hash for s in segmentation.segments}
    attributes = {s.name: EngineAttributes(hashes[s.name], len(s.inputs)) for s in segmentation.segments}
    return splice(model, segmentation, attributes), len(segmentation.segments), len(segmentation.native)


def _source(arguments: argparse.Namespace) -> tuple[str, Model]:
    if arguments.model:
        return arguments.model.name, models.load(arguments.model)
    if arguments.keras:
        import keras

        from rewriter.frontend import load_source

        return arguments.keras, load_source(getattr(keras.applications, arguments.keras)(weights=None)).model
    from _resnet import resnet50

    return "ResNet50 (random weights)", models.from_proto(resnet50())


def _count(model: Model) -> int:
    return sum(len(graph.node) for _, graph in iter_scopes(model.proto))


def _measure(
    sessions: Mapping[str, list[NativeSession]], model: Model, batch: int, runs: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Median times at one batch size, and whether the outputs are the same bits."""
    symbols = {d.dim_param for i in model.proto.graph.input for d in i.type.tensor_type.shape.dim if d.dim_param}
    feeds = random_feeds(model.proto, sizes=dict.fromkeys(symbols, batch))
    everyone = [(label, number) for label, pair in sessions.items() for number in range(len(pair))]
    results = {who: sessions[who[0]][who[1]].run(feeds) for who in everyone}
    first = results["unspliced", 0]
    equal = all(
        np.array_equal(np.ascontiguousarray(first[name]).view(np.uint8), np.ascontiguousarray(value).view(np.uint8))
        for other in results.values()
        for name, value in other.items()
    )
    times: dict[tuple[str, int], list[float]] = {who: [] for who in everyone}
    for turn in range(runs):
        # Rotate and reverse, so that nobody always follows the same one (and finds its caches).
        order = everyone[turn % len(everyone) :] + everyone[: turn % len(everyone)]
        for who in order if turn % 2 else reversed(order):
            start = clock()
            sessions[who[0]][who[1]].run(feeds)
            times[who].append(clock() - start)
    plain, other = times["unspliced", 0] + times["unspliced", 1], times["spliced", 0] + times["spliced", 1]
    return {
        "batch": batch,
        "unspliced ms": statistics.median(plain) * 1e3,
        "spliced ms": statistics.median(other) * 1e3,
        "ratio": statistics.median(other) / statistics.median(plain),
        "ratio of minima": min(other) / min(plain),
        "control": statistics.median(times["unspliced", 1]) / statistics.median(times["unspliced", 0]),
        "bit-equal": equal,
    }


if __name__ == "__main__":
    sys.exit(main())
