"""Does every model of the zoo convert, and does it compute what TensorFlow computes?

Each model goes the whole way in a process of its own: `Converter(model=...)`, `convert`, `build` with sample inputs,
`save`, `rewriter.load`; then the loaded artifact is compared with TensorFlow on fresh inputs, of the samples' sizes
and of others. Prints one table; the exit status is 1 when a model fails, is wrong, or has a native node without a
reason.

    python benchmarks/convert_zoo.py [--only NAME...] [--json PATH] [--timeout SECONDS]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path, format_table, relative_difference, write_json
from _options import add_metrics_options, export_metrics, parse
from _plots import Bars, Chart
from zoo import MODELS, UnavailableError, ZooModel, load, spread

COLUMNS = (
    "model", "nodes", "coverage", "engines", "build s", "engine MB", "native nodes", "max rel diff", "status",
)  # fmt: skip
#: Below this, the model hardly depends on its input, and agreement proves nothing.
LEAST_SPREAD = 1e-3
#: Seconds for one model, conversion and comparison together.
TIMEOUT = 900


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.worker:
        _worker(options.worker, options.json)
        return 0
    results = []
    for name in options.only or MODELS:
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        results.append(run_in_child(name, options.timeout))
        print(results[-1]["status"], f"{results[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    print(render({"models": results}))
    export_metrics(options, [row(result) for result in results], models=results)
    return 0 if all(r["status"] in ("ok", "skipped") for r in results) else 1


def render(document: Mapping[str, Any]) -> str:
    """One line a model."""
    return format_table([row(result) for result in document["models"]], COLUMNS)


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """How many models are right, and how far the worst is from TensorFlow where all is float32."""
    tried = [result for result in document["models"] if result["status"] != "skipped"]
    exact = [r["max_rel_diff"] for r in tried if r.get("max_rel_diff") is not None and r["tolerance"] <= 1e-5]
    return {
        "models": str(len(tried)),
        "ok": str(sum(result["status"] == "ok" for result in tried)),
        "worst": f"{max(exact, default=float('nan')):.1e}",
        "whole": str(sum(result.get("coverage") == 1 for result in tried)),
    }


def plots(document: Mapping[str, Any]) -> dict[str, Chart]:
    """Where the time of each conversion goes, as shares: models run in turn, on cores that differ in load."""
    timed = [result for result in document["models"] if "timings" in result]
    stages = list(dict.fromkeys(stage for result in timed for stage in result["timings"]))
    wholes = [sum(result["timings"].values()) for result in timed]
    series = {
        stage: [100 * result["timings"].get(stage, 0.0) / whole for result, whole in zip(timed, wholes, strict=True)]
        for stage in stages
    }
    title = "Conversion of each model by stage, from TensorFlow to the saved artifact"
    names = [result["model"] for result in timed]
    return {"stages": Bars(title, "percent of the time", names, series, stacked=True)} if timed else {}


def run_in_child(name: str, timeout: float) -> dict[str, Any]:
    """One model in its own process; a crash, a hang or an error is a result with that status."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        answer = Path(folder, "result.json")
        command = [sys.executable, __file__, "--worker", name, "--json", str(answer)]
        child_environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        log = Path(folder, "log.txt")
        with log.open("wb") as stream:
            try:
                code = subprocess.run(
                    command, timeout=timeout, check=False, env=child_environment, stdout=stream, stderr=stream
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        if answer.is_file():
            result = json.loads(answer.read_text(encoding="utf-8"))
            del result["environment"]
        else:
            tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-15:]
            died = "hang" if code is None else "crash"
            result = {"model": name, "status": died, "detail": f"exit status {code}", "log": tail}
    result["seconds"] = round(time.perf_counter() - started, 2)
    return result


def examine(zoo_model: ZooModel, folder: Path) -> dict[str, Any]:
    """Converts one model and compares; the result is the JSON entry of that model."""
    from rewriter import Converter
    from rewriter import load as load_artifact

    references = [zoo_model.reference(feeds) for feeds in zoo_model.checks]
    converter = Converter(model=zoo_model.model, progress=False)
    try:
        function = converter.convert()
        converter.build(lambda: iter(zoo_model.samples))
        artifact = folder / "artifact"
        converter.save(artifact)
        report = converter.report
        differences = compare(function, zoo_model, references)
    finally:
        converter.close()
    with load_artifact(artifact) as loaded:
        for name, value in compare(loaded, zoo_model, references).items():
            differences[name] = max(differences[name], value)
    result = {
        "model": zoo_model.name,
        "notes": zoo_model.notes,
        "nodes": report.total_nodes,
        "coverage": report.coverage,
        "built_coverage": report.built_coverage,
        "engines": len(report.engines),
        "engines_built": sum(e.built for e in report.engines),
        "engines_not_built": [f"{e.name}: {e.reason}" for e in report.engines if not e.built],
        "build_seconds": sum(e.seconds for e in report.engines),
        "engine_bytes": sum(f.stat().st_size for f in artifact.glob("engines/**/*.engine")),
        "native": dict(Counter(v.op_type for v in report.native).most_common()),
        "native_reasons": sorted({f"{v.op_type} [{v.rule}]: {v.reason}" for v in report.native}),
        "native_without_reason": [v.node for v in report.native if not v.reason.strip()],
        "differences": differences,
        "max_rel_diff": max(differences.values()),
        "spread": spread(references),
        "tolerance": zoo_model.tolerance,
        "verification": dict(report.verification),
        "failures": [f"{f.stage} {f.target} [{f.kind}]: {f.reason}" for f in report.failures],
        "timings": dict(report.timings),
        "artifact_bytes": sum(f.stat().st_size for f in artifact.rglob("*") if f.is_file()),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    return {**result, "status": judge(result)}


def compare(function: Any, zoo_model: ZooModel, references: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Output name -> largest relative difference over the model's check inputs."""
    worst: dict[str, float] = {}
    for feeds, answers in zip(zoo_model.checks, references, strict=True):
        outputs = {name: np.asarray(value) for name, value in function(**feeds).items()}
        # A bare tensor has no name of its own that could be checked.
        reference = dict(zip(outputs, answers.values(), strict=True)) if list(answers) == [""] else answers
        if set(outputs) != set(reference):
            raise AssertionError(f"outputs are called {sorted(outputs)}, TensorFlow's {sorted(reference)}")
        for name, expected in reference.items():
            if outputs[name].dtype != expected.dtype:
                raise AssertionError(f"output {name} is {outputs[name].dtype}, TensorFlow's is {expected.dtype}")
            worst[name] = max(worst.get(name, 0.0), relative_difference(outputs[name], expected))
    return worst


def judge(result: Mapping[str, Any]) -> str:
    """The word "ok", or the first thing that is not."""
    if result["native_without_reason"]:
        return "native node without a reason"
    if result["spread"] < LEAST_SPREAD:
        return "degenerate model"
    if not result["max_rel_diff"] <= result["tolerance"]:
        return "wrong"
    return "ok"


def row(result: Mapping[str, Any]) -> dict[str, Any]:
    """The table's line for one result."""
    if "nodes" not in result:
        detail = result.get("detail", "")
        return {"model": result["model"], "status": f"{result['status']}: {detail}" if detail else result["status"]}
    native = ", ".join(f"{op} x{count}" for op, count in result["native"].items())
    engines = str(result["engines"])
    if result["engines_built"] != result["engines"]:
        engines = f"{result['engines_built']} of {engines} built"
    return {
        "model": result["model"],
        "nodes": result["nodes"],
        "coverage": f"{100 * result['coverage']:.1f}%",
        "engines": engines,
        "build s": f"{result['build_seconds']:.1f}",
        "engine MB": f"{result['engine_bytes'] / 1e6:.1f}",
        "native nodes": f"{sum(result['native'].values())}" + (f" ({native})" if native else ""),
        "max rel diff": f"{result['max_rel_diff']:.1e}",
        "status": result["status"],
    }


def _worker(name: str, answer: Path) -> None:
    """The child's part: writes the result; an exception becomes the status "failed" with its text."""
    import traceback

    add_project_to_path()
    with tempfile.TemporaryDirectory(prefix="zoo-model-") as folder:
        try:
            result = examine(load(name, Path(folder)), Path(folder))
        except UnavailableError as error:
            result = {"model": name, "status": "skipped", "detail": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever happens is this model's result
            traceback.print_exc()
            text = " ".join(str(error).split())
            result = {
                "model": name,
                "status": "failed",
                "detail": f"{type(error).__name__}: {text}"[:300],
                "traceback": traceback.format_exc().splitlines()[-40:],
            }
    write_json(answer, result)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models only")
    add_metrics_options(parser)
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for one model (default %(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parse(parser, arguments)
    unknown = [name for name in options.only or () if name not in MODELS]
    if unknown:
        parser.error(f"no model {', '.join(unknown)} in the zoo; there are: {', '.join(MODELS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
