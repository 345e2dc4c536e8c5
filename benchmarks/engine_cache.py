"""How much faster is the build stage when the engine cache on disk has the engines already?

    python benchmarks/engine_cache.py [--model ResNet50] [--runs 3] [--limit 10] [--json PATH] [--table PATH]

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _common import add_project_to_path, format_table, write_json
from zoo import load

COLUMNS = (
    "conversion",
    "engines",
    "hits",
    "build stage s",
    "stage speed-up",
    "engines s",
    "engines speed-up",
    "engine MB",
)
TIMEOUT = 900


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.worker:
        _worker(options.worker, options.cache or None, Path(options.json))
        return 0
    with tempfile.TemporaryDirectory(prefix="engine-cache-") as folder:
        cache = str(Path(folder, "cache"))
        kinds = [("no cache", ""), ("cold", cache), *[("warm", cache)] * options.runs]
        results = []
        for number, (kind, directory) in enumerate(kinds):
            print(f"{options.model}, {kind} ...", file=sys.stderr, flush=True)
            results.append({"conversion": kind, **_in_child(options.model, directory, Path(folder, f"{number}.json"))})
    cold, warm = results[1], results[2:]
    speed_up, engines = (_ratio(cold, warm, key) for key in ("build_seconds", "engine_seconds"))
    table = format_table([_row(result, cold) for result in results], COLUMNS)
    print(table)
    print(
        f"{options.model}: the build stage is {speed_up:.0f} times as fast with a warm cache (limit {options.limit:g})"
    )
    if options.table:
        Path(options.table).write_text(table + "\n", encoding="utf-8")
    if options.json:
        figures = {"model": options.model, "stage_speed_up": speed_up, "engines_speed_up": engines}
        write_json(options.json, {**figures, "conversions": results})
    same = all(r["hits"] == r["engines"] and r["engine_sha256"] == cold["engine_sha256"] for r in warm)
    return 0 if same and cold["engines"] and speed_up >= options.limit else 1


def _ratio(cold: dict[str, Any], warm: Sequence[dict[str, Any]], key: str) -> float:
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


def _row(result: dict[str, Any], cold: dict[str, Any]) -> dict[str, Any]:
    return {
        "conversion": result["conversion"],
        "engines": result["engines"],
        "hits": result["hits"],
        "build stage s": round(result["build_seconds"], 3),
        "stage speed-up": cold["build_seconds"] / result["build_seconds"],
        "engines s": round(result["engine_seconds"], 3),
        "engines speed-up": cold["engine_seconds"] / result["engine_seconds"],
        "engine MB": round(result["engine_bytes"] / 1e6, 1),
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ResNet50", help="a model of benchmarks/zoo.py")
    parser.add_argument("--runs", type=int, default=3, help="conversions with a warm cache")
    parser.add_argument("--limit", type=float, default=10.0, help="least speed-up that passes")
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--table", help="write the table here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--cache", default="", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
