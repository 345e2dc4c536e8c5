"""The processes of `rivals.py`: each measures some cases of one system and emits rows as it goes.

A worker gets everything as one mapping (`told`) and works through `told["cases"]` in order. A case that raises costs
its own row; one that ends the process, or takes longer than `told["case_seconds"]`, is found out by the parent, which
starts another process for the cases behind it. Only one process at a time is timed (`gpu_turn`); the others import
packages, read models and load what was compiled meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _rivals_models import expected, feeds_of, filled, with_batches
from _runtime_bench import compare, emit

Row = dict[str, Any]
Measure = Callable[[Mapping[str, Any]], Sequence[Row]]
#: Those whose cases begin with work of the host; they take the GPU for themselves only behind it.
TAKE_TURNS = ("ours", "transposes", "chain", "compile", "jax", "onnxruntime", "convert", "fixed")
#: Turns that the calls of a case are split into.
ROUNDS = 5
LEAST_CALLS = 20


@dataclasses.dataclass(frozen=True)
class Timing:
    """How much is timed.

    Attributes:
        calls: calls that are waited for one by one, and as many in a row; 0 times nothing.
        warmup: calls before these.
        seconds: most seconds for the calls of one case; slow ones get fewer, but `LEAST_CALLS`.
    """

    calls: int
    warmup: int
    seconds: float


def work(told: Mapping[str, Any]) -> None:
    """Measures the cases that a worker is told."""
    import _rivals_ours
    import _rivals_systems

    with_batches(tuple(told["batches"]))
    measures: dict[str, Callable[[Mapping[str, Any]], Measure]] = {
        "ours": _rivals_ours.ours,
        "transposes": _rivals_ours.transposes,
        "chain": _rivals_ours.chain,
        "convert": _rivals_ours.convert,
        "smoke": _rivals_ours.smoke,
        "torch": _rivals_systems.torch_eager,
        "compile": _rivals_systems.torch_compile,
        "jax": _rivals_systems.jax,
        "onnxruntime": _rivals_systems.onnxruntime,
        "fixed": _rivals_systems.fixed_files,
        "fail": _failing,
    }
    measure = measures[told["work"]](told)
    _few_cores(told)
    emit({"ready": True})
    for case in told["cases"]:
        # The default action of the signal ends the process, wherever it hangs.
        signal.setitimer(signal.ITIMER_REAL, told["case_seconds"])
        try:
            with contextlib.nullcontext() if told["work"] in TAKE_TURNS else gpu_turn(told):
                rows: Sequence[Row] = measure(case)
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs this row and is told in it
            rows = [{"failed": told_of(error)}]
        emit(*({**case, **row} for row in rows))
    signal.setitimer(signal.ITIMER_REAL, 0)


def _few_cores(told: Mapping[str, Any]) -> None:
    """Binds a process that works beside many others to a few cores: their thread pools would spin on all of them."""
    import os

    cores = sorted(os.sched_getaffinity(0))
    if told["alone"] or told["work"] != "convert" or len(cores) < 8:
        return
    os.sched_setaffinity(0, {cores[(3 * told["slot"] + number) % len(cores)] for number in range(3)})


@contextlib.contextmanager
def gpu_turn(told: Mapping[str, Any]) -> Iterator[None]:
    """Waits until no other worker has the GPU, where `told["alone"]` asks for that."""
    if not told["alone"]:
        yield
        return
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    with Path(told["folder"], "gpu.lock").open("w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        signal.setitimer(signal.ITIMER_REAL, left)  # waiting does not count
        yield


def told_of(error: BaseException) -> str:
    """One line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' / '.join(lines[:2])}"[:300]


def timed(call: Callable[[], Any], finish: Callable[[], Any], timing: Timing) -> Row:
    """How long calls take, in microseconds of the host's clock.

    Returns:
        us, p10, p90: one call and the wait for its end. "in a row": one of many calls with one wait at their end, the
        median of the rounds. calls: how many of each. Nothing for a timing of 0 calls.
    """
    if not timing.calls:
        return {}
    for _ in range(3):
        call()
    finish()
    started = time.perf_counter()
    call()
    finish()
    once = time.perf_counter() - started
    affordable = int(timing.seconds / (2 * max(once, 1e-6)))
    for _ in range(min(timing.warmup, max(affordable // 4, 2))):
        call()
    finish()
    runs = max(min(timing.calls, max(affordable, LEAST_CALLS)) // ROUNDS, 1)
    alone: list[float] = []
    rows: list[float] = []
    for _ in range(ROUNDS):
        for _ in range(runs):
            started = time.perf_counter()
            call()
            finish()
            alone.append(1e6 * (time.perf_counter() - started))
        started = time.perf_counter()
        for _ in range(runs):
            call()
        finish()
        rows.append(1e6 * (time.perf_counter() - started) / runs)
    return {
        "us": statistics.median(alone),
        "p10": float(np.percentile(alone, 10)),
        "p90": float(np.percentile(alone, 90)),
        "in a row": statistics.median(rows),
        "calls": len(alone),
    }


def timing_of(told: Mapping[str, Any]) -> Timing:
    return Timing(**told["timing"])


def judged(actual: Mapping[str, np.ndarray], told: Mapping[str, Any], batch: int) -> Row:
    """How far outputs are from those of ONNX Runtime in FP32 on the CPU: max|difference| / max|reference|, and rms."""
    found = compare(actual, expected(told["model"], batch, Path(told["folder"])))
    return {"difference": found["max"], "rms": found["rms"]}


def inputs_of(told: Mapping[str, Any], batch: int) -> dict[str, np.ndarray]:
    """The inputs that every system gets."""
    return {name: np.ascontiguousarray(value) for name, value in feeds_of(told["model"], batch, 1).items()}


def fixed_file(told: Mapping[str, Any], batch: int) -> Path:
    """The model for one batch size, cleaned of shape arithmetic: what the other systems run."""
    folder = Path(told["folder"])
    path = folder / f"{told['model']}.batch{batch}.onnx"
    if not path.exists():
        import os

        import onnx
        from _rivals_graph import fixed

        shapes = {name: value.shape for name, value in inputs_of(told, batch).items()}
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        onnx.save(fixed(onnx.load(str(filled(told["model"], folder))), shapes), str(temporary))
        temporary.rename(path)
    return path


def _failing(_: Mapping[str, Any]) -> Measure:
    """Does what its cases say, to try the runner: "raise", "exit", "hang" or "good"."""

    def measure(case: Mapping[str, Any]) -> list[Row]:
        if case["how"] == "raise":
            raise RuntimeError("told to")
        if case["how"] == "exit":
            import os

            os._exit(3)
        while case["how"] == "hang":
            time.sleep(0.05)
        return [{"us": 1.0}]

    return measure
