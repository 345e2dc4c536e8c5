"""Do engines and native islands on the GPU compute what the native model computes on the CPU?

    python benchmarks/runtime_gpu.py FOLDER [--only NAME...] [--precision FP32 FP16] [--jobs N] [--json PATH]

FOLDER holds the skeletons of `runtime_models.py`; models are filled, converted and built here when they are not yet.
Each model and precision runs in a process of its own. Every call has inputs of its own, so that a buffer which is not
written again shows, and is compared with ONNX Runtime on the CPU of this machine: max|difference| / max|reference| and
the quotient of root mean squares, the worst of all calls. For each shape the calls go through all ways of running: the
first one, which discovers shapes; the second one with fixed addresses; the later ones, by CUDA graph; the same with
graphs switched off; and with inputs and outputs on the device. In between, the shapes alternate.

"alike" is the least difference between the references of two calls: where it is not above the tolerance, the
comparison proves little. strict: whether loading and calling with strict=True passes. The exit status is 1 when a model
fails, or differs by more than the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _options import add_metrics_options, parse, recorded
from _runtime_bench import compare, emit, report, run_experiments, tables
from runtime_models import MODELS, artifact, feeds_of

#: Largest max|difference| / max|reference|. Engines compute FP32 in TF32 (RESULTS.md).
TOLERANCE = {"FP32": 1e-2, "FP16": 2e-2}
#: 48 convolutions in a row without a normalisation between them: rounding adds up, as emulation says too.
CHAIN_TOLERANCE = 2e-2
#: Models of the table; the other chains are for timing.
DEFAULT = ("ResNet50", "MobileNetV3Small", "bert", "unet", "detector", "detector_nms", "lstm", "chain7")
#: Calls at each shape, one after the other, before the shapes alternate.
CALLS = 4
COLUMNS = (
    "model", "precision", "shapes", "steps", "islands", "plans", "graphs", "launches", "calls", "first", "second",
    "later", "alternating", "eager", "device", "rms", "boxes", "alike", "strict", "status",
)  # fmt: skip


def main() -> int:
    options = _parse()
    if options.worker:
        check(**json.loads(options.worker))
        return 0
    experiments = [
        {"name": name, "precision": precision, "folder": str(options.folder), "provider": options.provider}
        for name in options.only
        for precision in options.precision
    ]
    results = run_experiments(
        __file__,
        experiments,
        options.timeout,
        options.json,
        jobs=options.jobs,
        budget=options.budget,
        options=recorded(options),
    )
    report("Hybrid execution against native execution", results, COLUMNS)
    for result in results:
        for row in result["rows"]:
            told = {key: row["stats"].get(key) for key in ("fallbacks", "no_plan", "no_graph") if row["stats"].get(key)}
            if row["status"] != "ok" or told:
                print(f"{row['model']} {row['precision']}: {row['status']}; {told}")
    good = all("failed" not in r and all(row["status"] == "ok" for row in r["rows"]) for r in results)
    return 0 if results and good else 1


def render(document: Mapping[str, Any]) -> str:
    """One line a model and precision."""
    return tables(document["results"], COLUMNS)


def check(name: str, precision: str, folder: str, provider: str) -> None:
    """One model in one precision; a worker's whole work."""
    import rewriter

    path = artifact(name, precision, Path(folder))
    facts = json.loads((Path(folder) / f"{name}.{precision}.json").read_text(encoding="utf-8"))
    cases = MODELS[name].checks
    calls = [(case, number) for case in cases for number in range(1, CALLS + 1)]
    calls += [(case, CALLS + turn) for turn in (1, 2, 3) for case in cases]
    with rewriter.load(path, execution="native") as native:
        references = {call: native(**feeds_of(name, *call)) for call in calls}
    row: dict[str, Any] = {
        "model": name,
        "precision": precision,
        "shapes": len(cases),
        "engines": facts["engines"],
        "conversion_seconds": facts["seconds"],
        "calls": len(calls),
        "alike": least_spread(references),
    }
    differences: dict[str, list[dict[str, Any]]] = {}
    started = time.perf_counter()
    with rewriter.load(path, provider=provider) as function:
        row["load_seconds"] = time.perf_counter() - started
        for index, (case, number) in enumerate(calls):
            way = {1: "first", 2: "second"}.get(number, "later") if number <= CALLS else "alternating"
            outputs = function(**feeds_of(name, case, number))
            differences.setdefault(way, []).append(compare(outputs, references[case, number]))
            if index == 0:
                row["first_call_seconds"] = time.perf_counter() - started
        if provider == "cuda":
            try:
                differences["device"] = on_device(function, name, references)
            except Exception as error:  # noqa: BLE001 - told, and the other ways are still compared
                row["device_error"] = f"{type(error).__name__}: {error}"[:300]
        row["stats"] = function.stats()
    if provider == "cuda":
        with rewriter.load(path, provider=provider, cuda_graph=False) as function:
            differences["eager"] = [compare(function(**feeds_of(name, *c)), references[c]) for c in references]
            row["stats_eager"] = function.stats()
    row["strict"] = strictly(path, name, provider, references, differences)
    row |= judged(name, precision, row, differences, engine=provider == "cuda")
    emit(row)


def on_device(function: Any, name: str, references: Mapping[Any, Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    """All calls again, inputs from the device and outputs left there until all calls were made."""
    import torch

    outputs, keep = {}, []
    for call in references:
        inputs = {key: torch.from_numpy(np.ascontiguousarray(v)).cuda() for key, v in feeds_of(name, *call).items()}
        outputs[call] = function.run(inputs, device_outputs=True)
        keep.append(inputs)
    results = []
    for call, values in outputs.items():
        arrays = {key: torch.from_dlpack(value).cpu().numpy() for key, value in values.items()}
        results.append(compare(arrays, references[call]))
    return results


def strictly(path: Path, name: str, provider: str, references: Mapping[Any, Any], differences: dict[str, Any]) -> str:
    """Whether strict=True passes: "ok", or why it refused; its outputs are compared as well."""
    import rewriter

    if provider != "cuda":
        return "-"
    try:
        with rewriter.load(path, provider=provider, strict=True) as function:
            differences["strict"] = [compare(function(**feeds_of(name, *c)), references[c]) for c in references]
    except rewriter.ConversionError as error:
        return f"refused: {error}"[:200]
    return "ok"


def judged(
    name: str, precision: str, row: Mapping[str, Any], differences: Mapping[str, Any], *, engine: bool
) -> dict[str, Any]:
    """The worst difference of each way, and the word "ok" or what is wrong."""
    every = [found for ways in differences.values() for found in ways]
    worst = {way: max(found["max"] for found in ways) for way, ways in differences.items()}
    tolerance = CHAIN_TOLERANCE if name.startswith("chain") else TOLERANCE[precision]
    stats = row["stats"]
    faults = [f"{way} differs by {value:.1e}" for way, value in worst.items() if not value <= tolerance]
    if engine and not stats.get("engine_calls"):
        faults.append("no engine ran")
    if engine and stats["fallbacks"]:
        faults.append(f"engine nodes ran natively: {stats['fallbacks']}")
    if "device_error" in row:
        faults.append(f"device tensors: {row['device_error']}")
    if row["strict"].startswith("refused"):
        faults.append(f"strict {row['strict']}")
    boxes = [found for found in every if "boxes" in found]
    return {
        **worst,
        "rms": max(found["rms"] for found in every),
        "boxes": f"{sum(b['found'] for b in boxes)}/{sum(b['boxes'] for b in boxes)}" if boxes else "",
        **{key: stats.get(key) for key in ("steps", "islands", "plans", "graphs")},
        "launches": stats.get("graph_launches"),
        "tolerance": tolerance,
        "status": "; ".join(faults) or "ok",
    }


def least_spread(references: Mapping[Any, Mapping[str, np.ndarray]]) -> float:
    """The least difference between two calls of one shape in the output that differs most; boxes count as they are."""
    found = []
    previous: dict[Any, Mapping[str, np.ndarray]] = {}
    for (case, _), outputs in references.items():
        if case in previous:
            pairs = [
                (np.asarray(outputs[key], np.float64), np.asarray(previous[case][key], np.float64)) for key in outputs
            ]
            pairs = [(a, b) for a, b in pairs if a.shape == b.shape and a.size]
            found.append(max(float(np.abs(a - b).max() / (np.abs(a).max() or 1.0)) for a, b in pairs))
        previous[case] = outputs
    return min(found, default=0.0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(DEFAULT), metavar="NAME")
    parser.add_argument("--precision", nargs="+", choices=list(TOLERANCE), default=list(TOLERANCE))
    parser.add_argument("--provider", default="cuda", help="cpu tries the script where there is no GPU")
    add_metrics_options(parser)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one experiment (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=4, help="models at a time (default %(default)s)")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for all (default %(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parse(parser)


if __name__ == "__main__":
    sys.exit(main())
