"""How much faster is the build stage when the engine cache on disk has the engines already?

    python benchmarks/engine_cache.py [--model ResNet50 ...] [--runs 3] [--limit 10] [--json PATH]

Every conversion is a process of its own, with the same model and samples: first with an empty cache, then `--runs`
times with the one that the first left, and once with no cache at all. Exit status 1: an engine was built although it
is in the cache, its bytes differ, or the cold build stage is less than `--limit` times the median of the warm ones.
"build stage s" includes what no cache can save: the run of the native model on each sample, which finds the shapes.
"engines s" is the engines alone: TensorRT's builds, or the checked copies out of the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import add_project_to_path, format_table, write_json
from _options import add_metrics_options, export_metrics, parse
from _plots import Bars, Chart
from zoo import load

COLUMNS = (
    "model", "engines", "MB", "hits", "cold stage s", "warm stage s, median", "lowest .. highest", "stage speed-up",
    "engines speed-up",
)  # fmt: skip
MODELS = ("ResNet50", "MobileNetV2", "bert_like", "multi_io", "gather_mix")
TIMEOUT = 900


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.worker:
        _worker(options.worker, options.cache or None, options.json)
        return 0
    rows, good = [], True
    for model in options.model:
        results = measure(model, options.runs)
        cold, warm = results[1], results[2:]
        rows += [{"model": model, **result} for result in results]
        same = all(r["hits"] == r["engines"] and r["engine_sha256"] == cold["engine_sha256"] for r in warm)
        good = good and same and bool(cold["engines"]) and _ratio(cold, warm, "build_seconds") >= options.limit
    print(render({"options": {"limit": options.limit}, "rows": rows}))
    export_metrics(options, rows)
    return 0 if good else 1


def measure(model: str, runs: int) -> list[dict[str, Any]]:
    """The conversions of one model: without a cache, with an empty one, then `runs` times with a full one."""
    with tempfile.TemporaryDirectory(prefix="engine-cache-") as folder:
        cache = str(Path(folder, "cache"))
        results = []
        for number, (kind, directory) in enumerate([("no cache", ""), ("cold", cache), *[("warm", cache)] * runs]):
            print(f"{model}, {kind} ...", file=sys.stderr, flush=True)
            results.append({"conversion": kind, **_in_child(model, directory, Path(folder, f"{number}.json"))})
    return results


def render(document: Mapping[str, Any]) -> str:
    """One line a model: cold and warm, the whole stage and the engines alone."""
    return format_table([_row(model, results) for model, results in _by_model(document).items()], COLUMNS)


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """The least and largest speed-up of the stage, who reaches the limit, and whether every warm engine was a hit."""
    lines = [_row(model, results) for model, results in _by_model(document).items()]
    ratios = [line["stage speed-up"] for line in lines]
    warm = [row for row in document["rows"] if row["conversion"] == "warm"]
    return {
        "least": f"{min(ratios):.1f}",
        "largest": f"{max(ratios):.0f}",
        "limit": f"{document['options']['limit']:g}",
        "reached": f"{sum(ratio >= document['options']['limit'] for ratio in ratios)} of {len(ratios)}",
        "hits": f"{sum(row['hits'] for row in warm)} of {sum(row['engines'] for row in warm)}",
    }


def plots(document: Mapping[str, Any]) -> dict[str, Chart]:
    """The build stage with an empty and with a full cache."""
    lines = [_row(model, results) for model, results in _by_model(document).items()]
    series = {
        "cold": [line["cold stage s"] for line in lines],
        "warm (median)": [line["warm stage s, median"] for line in lines],
    }
    title = "Build stage with an empty and with a full engine cache"
    return {"stage": Bars(title, "seconds", [line["model"] for line in lines], series, log=True, places=3)}


def _by_model(document: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in document["rows"]:
        found.setdefault(row["model"], []).append(row)
    return found


def _ratio(cold: Mapping[str, Any], warm: Sequence[Mapping[str, Any]], key: str) -> float:
    return cold[key] / statistics.median(result[key] for result in warm)


def _in_child(model: str, cache: str, answer: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", model, "--cache", cache, "--json", str(answer)]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    subprocess.run(command, timeout=TIMEOUT, check=True, env=quiet)
    result = json.loads(answer.read_text(encoding="utf-8"))
    del result["environment"]
    return result


def _worker(name: str, cache: str | None, answer: Path) -> None:
    add_project_to_path()
    from rewriter import Converter

    with tempfile.TemporaryDirectory(prefix="engine-cache-model-") as folder:
        zoo_model = load(name, Path(folder))
        with Converter(model=zoo_model.model, engine_cache_dir=cache, progress=False) as converter:
            converter.convert()
            converter.build(lambda: iter(zoo_model.samples))
            artifact = converter.save(Path(folder, "artifact"))
            report = converter.report
        engines = sorted(artifact.glob("engines/**/*.engine"))
        write_json(
            answer,
            {
                "engines": sum(e.built for e in report.engines),
                "hits": report.cache.hits if report.cache else 0,
                "build_seconds": report.timings["build"],
                "engine_seconds": sum(e.seconds for e in report.engines),
                "saved_seconds": report.cache.seconds_saved if report.cache else 0.0,
                "engine_bytes": sum(e.stat().st_size for e in engines),
                "engine_sha256": [hashlib.sha256(e.read_bytes()).hexdigest() for e in engines],
                "timings": dict(report.timings),
            },
        )


def _row(model: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    cold = next(result for result in results if result["conversion"] == "cold")
    warm = [result for result in results if result["conversion"] == "warm"]
    seconds = [result["build_seconds"] for result in warm]
    return {
        "model": model,
        "engines": cold["engines"],
        "MB": round(cold["engine_bytes"] / 1e6, 1),
        "hits": f"{sum(result['hits'] >= result['engines'] for result in warm)} of {len(warm)}",
        "cold stage s": round(cold["build_seconds"], 3),
        "warm stage s, median": round(statistics.median(seconds), 3),
        "lowest .. highest": f"{min(seconds):.3g} .. {max(seconds):.3g}",
        "stage speed-up": _ratio(cold, warm, "build_seconds"),
        "engines speed-up": _ratio(cold, warm, "engine_seconds"),
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=list(MODELS), help="models of benchmarks/zoo.py (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="conversions with a warm cache")
    parser.add_argument("--limit", type=float, default=10.0, help="least speed-up that passes")
    add_metrics_options(parser)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--cache", default="", help=argparse.SUPPRESS)
    return parse(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
