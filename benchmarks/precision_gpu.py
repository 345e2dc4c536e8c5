"""Runs the engines of `precision_bundle.py` on this machine's GPU and compares them with native FP32 and emulation.

    python benchmarks/precision_gpu.py PART... [--only TEXT] [--json PATH] [--timeout SECONDS]

Each PART is a folder that `precision_bundle.py` made; its docstring has the steps. Needs numpy, torch (for device
memory and timing) and the TensorRT-RTX that built the engines; models that it cannot build without a GPU are built
here. Each engine runs in a process of its own; one that cannot be built, deserialised, run or finished is a line with
the reason.

Printed per engine: the difference from the emulated arithmetic and from native FP32, as max|difference| / max|expected|
and as quotient of root mean squares (trained models: of the logits); for trained models the top-1 and its distance
from native FP32 in points; the median latency of one enqueue in microseconds, for information only. Status "ok": the
engine differs from the emulation by no more than the mode's limit, and its top-1 from that of native FP32 by no more
than 0.2 (FP16, BF16) or 0.5 points (INT8, FP8). The exit status is 1 when any engine is not ok.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from engine_run import device_name, difference, execute

#: Largest difference of root mean squares from the emulation. A fused kernel rounds less often than emulation does,
#: and one that sums in another order moves a value across a rounding border of 8 bits now and then. FP32 runs in TF32.
DIFFERENCE = {
    "FP32": 1e-2, "TF32": 1e-2, "FP16": 1e-2, "BF16": 3e-2, "INT8": 5e-2, "FP8": 0.1, "FP16+INT4": 5e-3,
}  # fmt: skip
#: Largest loss of top-1 against native FP32, points.
POINTS = {"FP32": 0.2, "TF32": 0.2, "FP16": 0.2, "BF16": 0.2, "INT8": 0.5, "FP8": 0.5}
WARMUP, TIMED = 20, 100
TIMEOUT = 300.0


def main() -> int:
    options = _parse()
    if options.worker:
        print(json.dumps(run_unit(options.worker)))
        return 0
    rows = []
    for folder in sorted(path.parent for part in options.parts for path in part.glob("*/unit.json")):
        if options.only is None or options.only in folder.name:
            rows.append(run_in_child(folder, options.timeout))
            print(text(rows[-1]), file=sys.stderr, flush=True)
    head = {"device": device_name(), "versions": sorted({row["version"] for row in rows})}
    print(f"{head['device']}; engines of {', '.join(head['versions'])}")
    print("| model | mode | built | MB | emulated: max | rms | native: max | rms | top-1 | points | us | status |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|")
    for row in rows:
        print(text(row))
    if options.json:
        options.json.write_text(json.dumps({**head, "engines": rows}, indent=1) + "\n", encoding="utf-8")
    return 0 if rows and all(row["status"] == "ok" for row in rows) else 1


def run_in_child(folder: Path, timeout: float) -> dict[str, Any]:
    """One engine in its own process; a crash, a hang or an error is a row with the reason."""
    facts = json.loads((folder / "unit.json").read_text(encoding="utf-8"))
    known = {
        "model": facts["model"],
        "mode": facts["mode"],
        "version": f"{facts['backend']} {facts['version']}",
        "bytes": facts["bytes"],
        "cpu": facts["cpu"],
    }
    command = [sys.executable, __file__, "--worker", str(folder)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {**known, "status": f"no end after {timeout:.0f} s"}
    lines = child.stdout.strip().splitlines()
    if child.returncode == 0 and lines:
        return {**known, **json.loads(lines[-1])}
    # TensorRT's own error lines come before the traceback's end; both say what happened.
    said = [line for line in child.stderr.strip().splitlines() if "Error" in line and not line.startswith(" ")]
    return {**known, "status": f"exit status {child.returncode}: {'; '.join(said[-3:])}"[:500].replace("|", "/")}


def run_unit(folder: Path) -> dict[str, Any]:
    """Runs one engine over all its images.

    Raises:
        RuntimeError: the engine is damaged, refused by this TensorRT or GPU, or cannot be run.
    """
    import tensorrt_rtx as trt

    facts = json.loads((folder / "unit.json").read_text(encoding="utf-8"))
    content = gzip.decompress((folder / facts["file"]).read_bytes())
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise RuntimeError(f"{facts['file']} was damaged on its way")
    if not facts["version"].startswith(trt.__version__):
        raise RuntimeError(f"the engine was built by {facts['version']}, this is TensorRT-RTX {trt.__version__}")
    logger = trt.Logger(trt.Logger.ERROR)
    started = time.perf_counter()
    plan = content if facts["file"] == "engine.gz" else build(trt, logger, content, facts["profiles"])
    seconds = facts.get("build_seconds", time.perf_counter() - started)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise RuntimeError("Error: this TensorRT or GPU refuses the engine")
    context = engine.create_execution_context()
    (public, tensor), *others = facts["inputs"].items()
    assert public == "image"
    assert not others
    with np.load(folder.parent / f"{facts['model']}.npz") as data, np.load(folder / "emulated.npz") as emulated:
        images = data["image"].astype(np.float32) / data["divisor"]
        native = {name: data[f"native.{name}"] for name in facts["outputs"]}
        expected = {name: emulated[name] for name in facts["outputs"]}
        labels = data.get("labels")
    outputs = run_batches(lambda feeds: execute(trt, engine, context, feeds)[0], images, tensor, facts)
    telling = ["logits"] if labels is not None else list(outputs)
    row = {"microseconds": latency(context), "bytes": len(plan), "build_seconds": seconds}
    row["built"] = "there" if facts["file"] == "engine.gz" else "here"
    for kind, reference in (("emulated", expected), ("native", native)):
        row[f"max_{kind}"] = max(difference(outputs[name], reference[name]) for name in telling)
        row[f"rms_{kind}"] = max(rms_difference(outputs[name], reference[name]) for name in telling)
    if labels is not None:
        row |= top1_of(outputs["logits"], native["logits"], expected["logits"], labels)
    return {**row, "status": judge(facts, row)}


def build(trt: Any, logger: Any, model: bytes, profiles: list[Mapping[str, Any]]) -> bytes:
    """Builds a lowered model for this GPU: what the machine without one could not.

    Raises:
        RuntimeError: TensorRT refuses it; its own words are on stderr.
    """
    builder = trt.Builder(logger)
    # Versions without the flag know nothing but strongly typed networks.
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise RuntimeError(f"Error: the parser refuses the model: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    for ranges in profiles:
        profile = builder.create_optimization_profile()
        for name, item in ranges.items():
            profile.set_shape(name, item["min"], item["opt"], item["max"])
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("Error: TensorRT cannot build the model on this GPU either")
    return bytes(plan)


def run_batches(
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    images: np.ndarray,
    tensor: str,
    facts: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """The engine's outputs for all images, batch by batch; public name -> array."""
    batch = facts["batch"]
    parts = [run({tensor: images[start : start + batch]}) for start in range(0, len(images), batch)]
    return {name: np.concatenate([part[own] for part in parts]) for name, own in facts["outputs"].items()}


def latency(context: Any) -> float:
    """Median microseconds of one enqueue with the shapes of the last run, device memory of its own.

    `execute` has freed its buffers, so the context gets new ones here.
    """
    import tensorrt_rtx as trt
    import torch

    engine = context.engine
    keep = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        width = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).itemsize
        count = int(np.prod(context.get_tensor_shape(name)))
        keep.append(torch.zeros(max(count * width, 1), dtype=torch.uint8, device="cuda"))
        context.set_tensor_address(name, keep[-1].data_ptr())
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    times = []
    for number in range(WARMUP + TIMED):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record(stream)
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("Error: the engine could not be enqueued")
        after.record(stream)
        after.synchronize()
        if number >= WARMUP:
            times.append(1e3 * before.elapsed_time(after))
    return statistics.median(times)


def rms_difference(actual: np.ndarray, reference: np.ndarray) -> float:
    """The root mean square of the difference over that of the reference; infinite where something is not finite."""
    a, b = actual.astype(np.float64), reference.astype(np.float64)
    scale = float(np.sqrt(np.mean(b**2)))
    found = float(np.sqrt(np.mean((a - b) ** 2))) / (scale or 1.0)
    return found if np.isfinite(found) else float("inf")


def top1_of(scores: np.ndarray, native: np.ndarray, emulated: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Top-1 in percent, its distance from native FP32 in points, and images with another answer than expected."""
    answers = {"gpu": scores.argmax(-1), "native": native.argmax(-1), "emulated": emulated.argmax(-1)}
    top1 = {name: float(100 * np.mean(answer == labels)) for name, answer in answers.items()}
    return {
        "top1": top1["gpu"],
        "points": top1["gpu"] - top1["native"],
        "points_from_emulated": top1["gpu"] - top1["emulated"],
        "flips_from_native": int(np.count_nonzero(answers["gpu"] != answers["native"])),
        "flips_from_emulated": int(np.count_nonzero(answers["gpu"] != answers["emulated"])),
    }


def judge(facts: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The word "ok", or what is too far off.

    A network that amplifies rounding moves the emulation away from FP32 and the engine away from both, each in its own
    direction; so what the mode is allowed is at least twice the emulation's own distance from FP32.
    """
    mode = facts["mode"]
    limit = max(DIFFERENCE.get(mode, 0.0), 2 * facts["cpu"]["rms_rel_diff"])
    if not row["rms_emulated"] <= limit:
        return f"differs from the emulation (rms allowed {limit:.0e})"
    points = POINTS.get(mode)
    if points is not None and row.get("points", 0.0) < -points - 1e-9:
        return f"top-1 is off (allowed {points} points)"
    return "ok"


def text(row: Mapping[str, Any]) -> str:
    """The table's line of one engine."""

    def cell(key: str, form: str) -> str:
        return format(row[key], form) if row.get(key) is not None else "-"

    cells = (
        row["model"], row["mode"], row.get("built", "-"), f"{row['bytes'] / 1e6:.1f}",
        cell("max_emulated", ".1e"), cell("rms_emulated", ".1e"), cell("max_native", ".1e"), cell("rms_native", ".1e"),
        cell("top1", ".2f"), cell("points", "+.2f"), cell("microseconds", ".0f"), row["status"],
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path, nargs="*", metavar="PART")
    parser.add_argument("--only", metavar="TEXT", help="engines whose name MODEL.MODE holds this text")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for one engine (default %(default)s)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.parts and not options.worker:
        parser.error("give at least one part that precision_bundle.py made")
    return options


if __name__ == "__main__":
    sys.exit(main())
