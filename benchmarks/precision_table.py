"""What does each precision cost and give: size, build time, top-1, difference?

    python benchmarks/precision_table.py [--cache FOLDER] [--models NAME...] [--modes MODE...] [--json PATH]
                                         [--timeout SECONDS]

Every model (`precision_models.py`) is converted in every mode, in a process of its own, so that a crash costs one row:
`convert` (with calibration inputs for INT8 and FP8), `build`, `save`; then the artifact is loaded twice, once as the
model's own FP32 arithmetic and once emulating the lowered one on this CPU, and both run on the same fresh inputs. No
GPU is needed or used. Trained models run on 10 000 images: a hundredth of a point is one image.

Printed per row: bytes of the engines, seconds of their builds, fraction of the graph in them, largest difference
max|emulated - native| / max|native| and the same of root mean squares (trained models: of the logits), top-1 of the
emulated arithmetic, its distance from native FP32 in points, and flips: images whose answer changed. The criteria are
printed as PASS or FAIL: FP16 and BF16 within 0.2 points of FP32, INT8 and FP8 within 0.5. Exit status 1: a criterion
failed, or a row has no engine for some of its nodes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path, format_table, relative_difference, write_json
from _options import add_metrics_options, export_metrics, parse
from _plots import Bars, Chart, Points
from precision_models import QUANTISED, TRAINED, ZOO, Subject, default_cache, ensure_trained, load_subject, top1
from zoo import UnavailableError

#: Mode -> (precision_mode, options of `PrecisionOptions`).
MODES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "FP32": ("FP32", {}),
    "TF32": ("TF32", {}),
    "FP16": ("FP16", {}),
    "BF16": ("BF16", {}),
    "INT8": ("INT8", {}),
    "FP8": ("FP8", {}),
    "FP16+INT4": ("FP16", {"int4_block": 32}),
}
#: What a model with trained int8 ranges is for: its own mode, and those that leave its ranges alone.
QUANTISED_MODES = ("FP32", "FP16", "INT8")
#: Largest distance from FP32 in points of top-1.
LIMITS = {"FP32": 0.05, "TF32": 0.05, "FP16": 0.2, "BF16": 0.2, "INT8": 0.5, "FP8": 0.5}
COLUMNS = (
    "model", "mode", "engine MB", "build s", "built", "max rel diff", "rms rel diff", "top-1 %", "points", "flips",
    "status",
)  # fmt: skip
#: Bytes of the FP32 engine from which the size says something about weights.
LARGE = 10e6
#: Seconds for one model in one mode.
TIMEOUT = 900


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.worker:
        _worker(*options.worker, options)
        return 0
    trained = ensure_trained(options.cache, options.models)
    results = []
    for name in options.models:
        for mode in options.modes:
            if name in QUANTISED and mode not in QUANTISED_MODES:
                continue
            print(f"{name} {mode} ...", end=" ", file=sys.stderr, flush=True)
            results.append(run_in_child(name, mode, options))
            points = f"{results[-1]['points']:+.2f} points, " if "points" in results[-1] else ""
            print(results[-1]["status"], f"{points}{results[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    verdicts = judge_modes(results)
    print(render({"rows": results, "criteria": verdicts}))
    export_metrics(options, results, trained=trained, criteria=verdicts)
    return 0 if all(result["status"] in ("ok", "PASS", "skipped") for result in results) else 1


def render(document: Mapping[str, Any]) -> str:
    """One line a model and mode, and the criteria."""
    table = format_table([row(result) for result in document["rows"]], COLUMNS)
    verdicts = "\n".join(f"- {verdict}" for verdict in document["criteria"])
    return f"{table}\n\n{verdicts}"


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """The largest loss of top-1 of each mode in points, and how much smaller ResNet50 gets."""
    trained = [result for result in document["rows"] if "points" in result]
    found = {
        mode.replace("+", "_"): f"{max(abs(r['points']) for r in trained if r['mode'] == mode):.2f}"
        for mode in dict.fromkeys(result["mode"] for result in trained)
    }
    sizes = {r["mode"]: r["engine_bytes"] for r in document["rows"] if r["model"] == "ResNet50" and "engine_bytes" in r}
    if {"FP32", "INT8", "FP16"} <= set(sizes):
        found |= {f"smaller_{mode}": f"{sizes['FP32'] / sizes[mode]:.1f}" for mode in ("FP16", "INT8")}
    return found


def plots(document: Mapping[str, Any]) -> dict[str, Chart]:
    """What trained models lose, and size and error of the larger ones: engines of a megabyte are mostly no weights."""
    of = {(r["model"], r["mode"]): r for r in document["rows"] if "engine_bytes" in r}
    modes = [mode for mode in MODES if mode not in ("FP32", "TF32")]
    trained = [m for m in dict.fromkeys(model for model, _ in of) if any("points" in of.get((m, x), {}) for x in modes)]
    points = {mode: [of.get((model, mode), {}).get("points") for model in trained] for mode in modes}
    whole = {model: r["engine_bytes"] for (model, mode), r in of.items() if mode == "FP32"}
    large = [model for model, size in whole.items() if size >= LARGE]

    def size(model: str, mode: str) -> float | None:
        return of[model, mode]["engine_bytes"] / whole[model] if (model, mode) in of else None

    errors = {
        model: [
            (size(model, mode) or 0.0, of[model, mode]["rms_rel_diff"], mode) for mode in modes if (model, mode) in of
        ]
        for model in large
    }
    axis = "engine size, times that in FP32"
    top1 = Bars("Top-1 of each precision against native FP32", "points of top-1", trained, points, places=2)
    sizes = {mode: [size(model, mode) for model in large] for mode in modes}
    found: dict[str, Chart] = {"top1": top1} if trained else {}
    if large:
        told = "rms difference from native FP32, relative"
        found["sizes"] = Bars("Engine size of each precision", axis, large, sizes, line=1.0, places=2)
        found["errors"] = Points("Size against error of each precision, random weights", axis, told, errors, log_y=True)
    return found


def run_in_child(name: str, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row in its own process; a crash, a hang or an error is a result with that status."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="precision-") as folder:
        answer, log = Path(folder, "result.json"), Path(folder, "log.txt")
        command = [sys.executable, __file__, "--worker", name, mode, "--json", str(answer)]
        command += ["--cache", str(options.cache)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        with log.open("wb") as stream:
            try:
                code = subprocess.run(
                    command, timeout=options.timeout, check=False, env=environment, stdout=stream, stderr=stream
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        if answer.is_file():
            result = json.loads(answer.read_text(encoding="utf-8"))
            del result["environment"]
        else:
            tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-15:]
            died = "hang" if code is None else "crash"
            result = {"model": name, "mode": mode, "status": died, "detail": f"exit status {code}", "log": tail}
    result["seconds"] = round(time.perf_counter() - started, 2)
    return result


@contextlib.contextmanager
def conversion(subject: Subject, mode: str, **more: Any) -> Iterator[Any]:
    """A `Converter` that has converted and built one model in one mode, ready to be saved or looked at.

    Args:
        subject: the model with its samples and calibration inputs.
        mode: a key of `MODES`.
        more: further arguments of `Converter`.
    """
    from rewriter import Converter
    from rewriter.precision.options import PrecisionOptions

    precision_mode, details = MODES[mode]
    calibrated = precision_mode in ("INT8", "FP8") and not subject.quantised
    if subject.quantised and precision_mode == "INT8":
        more["use_calibration"] = False  # its own ranges must be enough
    options = PrecisionOptions(**details)
    with Converter(
        model=subject.model, precision_mode=precision_mode, precision=options, progress=False, **more
    ) as converter:
        if calibrated:
            converter.convert(calibration_input_fn=lambda: iter(subject.calibration))
        else:
            converter.convert()
        converter.build(lambda: iter(subject.samples))
        yield converter


def run_all(function: Any, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Outputs of a converted function for each of `feeds`."""
    return [{name: np.asarray(value) for name, value in function(**feed).items()} for feed in feeds]


def compare(
    subject: Subject, native: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Differences of two lists of outputs and, for trained models, what they mean.

    Returns:
        differences: output -> largest max|other - native| / max|native|, over inputs of one shape together.
        rms_differences: likewise with root mean squares instead of largest magnitudes.
        max_rel_diff, rms_rel_diff: the largest of them; of trained models those of the logits, for a probability
            says little about arithmetic: it is all or nothing for the one image that is on the border.
        top1, native_top1, points, flips: for models with labels; points is top1 - native_top1.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for index, outputs in enumerate(native):
        for name, value in outputs.items():
            groups.setdefault((name, value.shape[1:]), []).append(index)
    largest: dict[str, float] = {}
    typical: dict[str, float] = {}
    for (name, _), indices in groups.items():
        ours, theirs = (np.concatenate([outputs[i][name] for i in indices]) for outputs in (other, native))
        largest[name] = max(largest.get(name, 0.0), relative_difference(ours, theirs))
        typical[name] = max(typical.get(name, 0.0), rms_difference(ours, theirs))
    telling = ["logits"] if subject.labels is not None else list(largest)
    found: dict[str, Any] = {
        "differences": largest,
        "rms_differences": typical,
        "max_rel_diff": max(largest[name] for name in telling),
        "rms_rel_diff": max(typical[name] for name in telling),
    }
    if subject.labels is not None:
        ours, theirs = (np.concatenate([outputs["logits"] for outputs in side]) for side in (other, native))
        found |= {"top1": top1(ours, subject.labels), "native_top1": top1(theirs, subject.labels)}
        found["points"] = found["top1"] - found["native_top1"]
        found["flips"] = int(np.count_nonzero(ours.argmax(-1) != theirs.argmax(-1)))
    return found


def rms_difference(actual: np.ndarray, reference: np.ndarray) -> float:
    """The root mean square of the difference over that of the reference; infinite where something is not finite."""
    a, b = actual.astype(np.float64), reference.astype(np.float64)
    scale = float(np.sqrt(np.mean(b**2)))
    found = float(np.sqrt(np.mean((a - b) ** 2))) / (scale or 1.0)
    return found if np.isfinite(found) else float("inf")


def examine(subject: Subject, mode: str, folder: Path) -> dict[str, Any]:
    """The JSON entry of one row."""
    from rewriter import load

    artifact = folder / "artifact"
    with conversion(subject, mode) as converter:
        converter.save(artifact)
        report = converter.report
    with load(artifact, execution="native") as function:
        native = run_all(function, subject.checks)
    started = time.perf_counter()
    with load(artifact, execution="emulate") as function:
        emulated = run_all(function, subject.checks)
    result = {
        "model": subject.name,
        "mode": mode,
        "precisions": sorted({engine.precision for engine in report.engines}),
        "engine_bytes": sum(engine.size for engine in report.engines),
        "build_seconds": sum(engine.seconds for engine in report.engines),
        "engines": len(report.engines),
        "built_coverage": report.built_coverage,
        "not_built": [f"{engine.name}: {engine.reason}" for engine in report.engines if not engine.built],
        "native_reasons": sorted({f"{v.op_type} [{v.rule}]: {v.reason}" for v in report.native}),
        "failures": [f"{f.stage} {f.target} [{f.kind}]: {f.reason}" for f in report.failures],
        "timings": dict(report.timings),
        "emulation_seconds": time.perf_counter() - started,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **compare(subject, native, emulated),
    }
    return {**result, "status": judge(result)}


def judge(result: Mapping[str, Any]) -> str:
    """The word "ok" or "PASS", or what is wrong."""
    if result["built_coverage"] < 1:
        return "partly built"
    if not np.isfinite(result["max_rel_diff"]):
        return "not finite"
    limit = LIMITS.get(result["mode"])
    if "points" not in result or limit is None:
        return "ok"
    return "PASS" if within(result["points"], limit) else f"FAIL (limit {limit})"


def within(points: float, limit: float) -> bool:
    """True when a distance in points is at most `limit`, floating-point dust aside."""
    return abs(points) <= limit + 1e-9


def judge_modes(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a criterion, over all trained models."""
    lines = []
    for mode, limit in LIMITS.items():
        rows = [r for r in results if r["mode"] == mode and r["model"] in TRAINED]
        if not rows or not limit:
            continue
        broken = [r["model"] for r in rows if "points" not in r]
        worst = max((abs(r["points"]) for r in rows if "points" in r), default=0.0)
        verdict = "PASS" if not broken and within(worst, limit) else "FAIL"
        without = f"; no figure for {', '.join(broken)}" if broken else ""
        lines.append(f"{verdict}: {mode} within {limit} points of FP32: largest {worst:.2f}{without}")
    return lines


def row(result: Mapping[str, Any]) -> dict[str, Any]:
    """The table's line for one result."""
    line = {"model": result["model"], "mode": result["mode"], "status": result["status"]}
    if "engine_bytes" not in result:
        return {**line, "status": f"{result['status']}: {result.get('detail', '')}"}
    line |= {
        "engine MB": f"{result['engine_bytes'] / 1e6:.2f}",
        "build s": f"{result['build_seconds']:.1f}",
        "built": f"{100 * result['built_coverage']:.1f}%",
        "max rel diff": f"{result['max_rel_diff']:.1e}",
        "rms rel diff": f"{result['rms_rel_diff']:.1e}",
    }
    if "points" in result:
        line |= {"top-1 %": f"{result['top1']:.2f}", "points": f"{result['points']:+.2f}", "flips": result["flips"]}
    return line


def _worker(name: str, mode: str, options: argparse.Namespace) -> None:
    """The child's part: writes the result; an exception becomes the status "failed" with its text."""
    add_project_to_path()
    with tempfile.TemporaryDirectory(prefix="precision-model-") as folder:
        try:
            result = examine(load_subject(name, options.cache, Path(folder)), mode, Path(folder))
        except UnavailableError as error:
            result = {"model": name, "mode": mode, "status": "skipped", "detail": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever happens is this row's result
            traceback.print_exc()
            result = {
                "model": name,
                "mode": mode,
                "status": "failed",
                "detail": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300],
                "traceback": traceback.format_exc().splitlines()[-40:],
            }
    write_json(options.json, result)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="of trained models; default %(default)s")
    parser.add_argument("--models", nargs="+", choices=(*TRAINED, *ZOO), default=[*TRAINED, *ZOO], metavar="NAME")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES), metavar="MODE")
    add_metrics_options(parser)
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for one row (default %(default)s)")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    return parse(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
