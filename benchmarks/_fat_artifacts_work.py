"""What `fat_artifacts.py` does with a bundle on a GPU: cases of the choice, timings; each in a process of its own."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path, relative_difference
from _fat_artifacts_models import (
    BATCHES,
    MODELS,
    NARROW,
    NARROW_BATCHES,
    NARROW_TARGET,
    OTHER,
    OWN,
    SMALLEST,
    feeds,
)  # fmt: skip

add_project_to_path()

#: Batches that are timed.
TIMED_BATCHES = (1, 16)
#: Calls before those that are timed.
WARMUP = 20
#: Engines of the cases that have no engine for this GPU.
THREE = ("SM120", "SM80", "SM89")


@dataclasses.dataclass(frozen=True)
class Case:
    """One artifact whose choice is looked at; it is called with all of `BATCHES`, one after another.

    Attributes:
        name: in the table.
        parts: the variants whose engines it has, in this order.
        damaged: those of them of whose engines a byte is turned.
        options: of `load`.
        refusable: True where TensorRT may refuse all its engines, and native execution is right, too.
    """

    name: str
    parts: tuple[str, ...]
    damaged: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refusable: bool = False


def cases(gpu: str, variants: Sequence[str]) -> list[Case]:
    """The cases for a GPU ("SM90"), of the variants that there are; one without its last part is left out."""
    first = best(THREE, gpu)
    found = [
        Case("three targets and another version", (OTHER, *THREE)),
        Case("an older and a newer target", ("SM120", "SM80")),
        Case("the best one is damaged", (OTHER, *THREE), (first,)),
        Case("all are damaged", ("SM80", "SM89"), ("SM80", "SM89")),
        Case("the best one takes batches to 4 only", ("SM80", NARROW)),
        Case("the same, one engine in memory", ("SM80", NARROW), options={"maximum_cached_engines": 1}),
        Case("another version only", (OTHER,)),
        Case("a newer target only", ("SM120",), refusable=True),
        Case("one for this very GPU, too", (*THREE, OWN)),
    ]
    return [
        dataclasses.replace(case, parts=tuple(part for part in case.parts if part in variants))
        for case in found
        if case.parts[-1] in variants
    ]


def best(targets: Sequence[str], gpu: str) -> str:
    """Of single targets the one to run: the GPU's own, else the nearest older one, else the nearest newer one."""
    own, numbers = int(gpu[2:]), [int(target[2:]) for target in targets]
    older = [number for number in numbers if number <= own]
    return f"SM{max(older) if older else min(numbers)}"


def wanted(case: Case, gpu: str) -> tuple[tuple[str, ...], int]:
    """(targets of the engines in memory at the end, in the order of their first use; calls that run natively)."""
    used: list[str] = []
    native = 0
    for batch in BATCHES:
        fitting = [_target(part, gpu) for part in case.parts if _takes(part, batch) and part not in case.damaged]
        if not fitting:
            native += 1
            continue
        target = best(fitting, gpu)
        if target not in used and len(used) >= int(case.options.get("maximum_cached_engines", len(BATCHES))):
            native += 1
        elif target not in used:
            used.append(target)
    return tuple(used), native


def _target(part: str, gpu: str) -> str:
    return {NARROW: NARROW_TARGET, OWN: gpu}.get(part, part)


def _takes(part: str, batch: int) -> bool:
    return part != OTHER and (part != NARROW or batch in NARROW_BATCHES)


def as_wanted(row: Mapping[str, Any]) -> bool:
    """Whether a case ended as it should: engines, native calls, results."""
    chosen = (row["used"], row["native_calls"]) == (row["wanted"], row["wanted_native"])
    refused = row["refusable"] and not row["used"] and row["native_calls"] == row["calls"]
    return (chosen or refused) and row["difference"] <= row["tolerance"]


def assemble(case: Case, folder: Path, output: Path) -> Path:
    """Makes the artifact of a case of those in folder/`SMALLEST`."""
    from rewriter.artifact import load_artifact
    from rewriter.merging import merge

    sources = [folder / SMALLEST / part for part in case.parts]
    if len(sources) == 1:
        shutil.copytree(sources[0], output)
    else:
        merge(sources, output)
    for part in case.damaged:
        spoiled = {entry.key for entry in load_artifact(folder / SMALLEST / part).engines}
        for entry in load_artifact(output).engines:
            if entry.key in spoiled:
                path = output / entry.file
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 0xFF
                path.unlink()  # it may be one file with that of the source
                path.write_bytes(data)
    return output


# --- what child processes do


def own_engine(folder: str, model: str) -> dict[str, Any]:
    """Makes the artifact `OWN` of a model: the engine that TensorRT builds for the GPU that is there, and for no other.

    Raises:
        RuntimeError: TensorRT did not build it.
    """
    import tensorrt_rtx

    from passes.model import to_proto
    from rewriter.artifact import ArtifactPart, load_artifact, save_artifact
    from rewriter.backends.base import BuildFailure
    from rewriter.backends.trt_api import Session
    from rewriter.extending.planning import read_source
    from rewriter.runtime.runtime_builder import build_options

    root = Path(folder, model, "SM80")
    base = load_artifact(root)
    source = read_source(root, base.signature.name, None)
    (node,) = source.nodes
    (profiles,) = node.choice
    scratch = Path(folder, model, "own.engine")
    payload = to_proto(node.lowered.segment.model).SerializeToString()
    options = build_options(base.params, source.lowering.recipe, ("CURRENT",))
    built = Session(tensorrt_rtx).build(payload, (), profiles, options, scratch)
    if isinstance(built, BuildFailure):
        raise RuntimeError(f"no engine for this GPU: {built.kind}: {built.reason}")
    entry = dataclasses.replace(
        base.engines[0], key="own", size=built.size, sha256=built.sha256, targets=(gpu_target(),)
    )
    part = ArtifactPart(
        model=base.model,
        signature=base.signature,
        params=base.params,
        engines=[(entry, scratch)],
        report=base.report,
        ranges=base.ranges,
    )
    save_artifact(Path(folder, model, OWN), part)
    return {"seconds": built.seconds}


def check(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Loads an artifact of `SMALLEST`, calls it with every batch, and compares with native execution on the CPU."""
    from rewriter import load
    from rewriter.artifact import load_artifact

    targets = {entry.key: entry.targets[0] for entry in load_artifact(path).engines}
    with load(path, provider="cpu") as native:
        expected = {batch: np.asarray(native(**feeds(SMALLEST, batch))["y"]) for batch in BATCHES}
    used: list[str] = []
    worst = 0.0
    with load(path, allow_build_at_runtime=False, **options) as function:
        for batch, value in expected.items():
            found = function(**feeds(SMALLEST, batch))["y"]
            worst = max(worst, relative_difference(found, value))
            (node,) = function.stats()["engines_chosen"].values()
            used += [targets[key] for key in node["engines"] if targets[key] not in used]
        stats = function.stats()
    (node,) = stats["engines_chosen"].values()
    return {
        "used": used,
        "difference": worst,
        "why": list(node["engines"].values()),
        "others": list(node["others"].values()),
        **{name: stats[name] for name in ("provider", "calls", "engine_calls", "native_calls", "fallbacks")},
    }


def timed(model: str, paths: Mapping[str, str], calls: int) -> list[dict[str, Any]]:
    """One row a variant: loads and calls, one variant after another in one process.

    The first load finds no compiled kernels ("cold"), the second one those that the first has kept beside the artifact.
    """
    from rewriter import load
    from rewriter.runtime.device import missing_gpu
    from rewriter.timing.artifact_timing import TimingOptions, time_artifact

    on_gpu = not missing_gpu()
    options = TimingOptions(
        iterations=calls, duration=0.0, warmup_iterations=WARMUP, device_inputs=on_gpu, device_outputs=on_gpu
    )
    samples = [feeds(model, batch) for batch in TIMED_BATCHES]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        first = shutil.copytree(next(iter(paths.values())), Path(scratch, "first"))
        with load(first, allow_build_at_runtime=False) as function:  # starts CUDA: nobody pays for that
            function(**samples[0])
        for variant, path in paths.items():
            copy = shutil.copytree(path, Path(scratch, variant))
            timing = time_artifact(copy, lambda _: samples, options, allow_build_at_runtime=False)
            started = time.perf_counter()
            with load(copy, allow_build_at_runtime=False):
                warm = time.perf_counter() - started
            row = {"model": model, "precision": MODELS[model].precision, "variant": variant, "MB": _megabytes(path)}
            row |= {"load_cold_s": timing.load, "load_warm_s": warm}
            row |= {name: timing.stats[name] for name in ("calls", "engine_calls", "native_calls")}
            for batch, found in zip(TIMED_BATCHES, timing.timings, strict=True):
                row[f"batch{batch}_first_ms"] = 1e3 * found.first_call
                row[f"batch{batch}_ms"] = 1e3 * found.latency.median
                row[f"batch{batch}_gpu_ms"] = found.device and 1e3 * found.device.median
            rows.append(row)
    return rows


def gpu_target() -> str:
    """This machine's GPU as a target, "SM90"."""
    from rewriter.runtime.device import installed_compute_capabilities

    major, minor = installed_compute_capabilities()[0]
    return f"SM{major}{minor}"


def _megabytes(artifact: str) -> float:
    return sum(path.stat().st_size for path in Path(artifact).rglob("*.engine")) / 1e6


#: Name -> what a process of its own does.
WORK: Mapping[str, Any] = {"own": own_engine, "check": check, "timed": timed}
