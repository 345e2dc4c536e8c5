"""What the scripts that measure the runtime share: experiments in processes of their own, and comparing outputs."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import format_table, write_json
from engine_run import device_name

#: The line of a worker's output that holds its result begins with this.
MARK = "RESULT "
#: A box of the other run is the same one when its class is and its corners are at most this far away.
SAME_BOX = 0.02
#: Part of the reference's boxes that must be found again: rounding may swap which of two overlapping boxes survives.
FOUND_AGAIN = 0.9


def run_experiments(
    script: str,
    experiments: Sequence[Mapping[str, Any]],
    timeout: float,
    json_path: Path | None,
    *,
    jobs: int = 1,
    budget: float = 3600.0,
    options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Runs each experiment as `script --worker JSON` in a process of its own.

    The results are written to `json_path` after each one, so that nothing is lost when this process is stopped.

    Args:
        script: path of the script.
        experiments: what the workers are told; "environment" in one is added to its environment variables.
        timeout: seconds for one experiment; a process that takes longer is killed with its children.
        json_path: where the results go; None: nowhere.
        jobs: processes at a time; more than one only where nothing is timed.
        budget: seconds for all of them: what has not begun by then fails, what runs then is ended.
        options: of the script, kept with the results.

    Returns:
        {"experiment": ..., "seconds": ..., "rows": [...]} of each in order, and "failed": why, when one did.
    """
    done: dict[int, dict[str, Any]] = {}
    lock = threading.Lock()
    end = time.perf_counter() + budget

    def run(index: int) -> None:
        experiment = experiments[index]
        started = time.perf_counter()
        if started < end:
            result = _run_worker(script, experiment, min(timeout, end - started))
        else:
            result = {"failed": f"not begun: the {budget:.0f} s for all were over", "rows": []}
        seconds = time.perf_counter() - started
        label = " ".join(str(value) for key, value in experiment.items() if key not in ("folder", "environment"))
        said = [_brief(row) for row in result["rows"]] + ([result["failed"]] if "failed" in result else [])
        with lock:
            done[index] = {"experiment": dict(experiment), "seconds": seconds, **result}
            print(f"[{seconds:.0f} s] {label}: {'; '.join(said)}"[:1500], file=sys.stderr, flush=True)
            if json_path is not None:
                told = {"options": dict(options or {}), "device": device_name()}
                write_json(json_path, {**told, "results": [done[key] for key in sorted(done)]})

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, range(len(experiments))))
    return [done[key] for key in sorted(done)]


def _brief(row: Mapping[str, Any]) -> str:
    """The plain numbers and words of one row, in one line."""
    plain = {k: v for k, v in row.items() if isinstance(v, (int, float, str, bool))}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items())


def _run_worker(script: str, experiment: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """One process: its rows, or why there are none."""
    command = [sys.executable, script, str(experiment["folder"]), "--worker", json.dumps(experiment)]
    environment = {**os.environ, **experiment.get("environment", {}), "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
        return {"failed": f"no end after {timeout:.0f} s", "rows": [], "stderr": err[-3000:], "stdout": out[-1000:]}
    lines = [line for line in out.splitlines() if line.startswith(MARK)]
    if child.returncode == 0 and lines:
        rows = [row for line in lines for row in json.loads(line.removeprefix(MARK))]
        return {"rows": rows, "stderr": err[-2000:]}
    said = [line.strip() for line in err.strip().splitlines() if line.strip() and not line.startswith("  ")]
    return {
        "failed": f"exit status {child.returncode}: {' / '.join(said[-2:])}"[:600],
        "rows": [row for line in lines for row in json.loads(line.removeprefix(MARK))],
        "stderr": err[-4000:],
    }


def emit(*rows: Mapping[str, Any]) -> None:
    """A worker's way to hand over rows; rows handed over before a crash are kept."""
    print(MARK + json.dumps(rows, default=str), flush=True)


def report(title: str, results: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Prints all rows, and a line for each experiment that failed."""
    print(f"\n{title} ({device_name()})\n\n{tables(results, columns)}")


def tables(results: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """All rows as a table, and a line for each experiment that failed."""
    rows = [row for result in results for row in result["rows"]]
    parts = [format_table(rows, columns)] if rows else []
    failed = [f"FAILED {result['experiment']}: {result['failed']}" for result in results if "failed" in result]
    return "\n\n".join([*parts, *failed])


def interleaved(
    systems: Mapping[str, Callable[[], Any]], finish: Callable[[], Any], *, rounds: int = 5, runs: int = 40
) -> dict[str, dict[str, float]]:
    """How long calls of several systems take, measured in turns, so that the machine's moods meet all alike.

    Args:
        systems: name -> enqueues one execution.
        finish: waits until the device has done all that was enqueued.
        rounds: turns of each system.
        runs: calls a turn that are waited for one by one; as many again are enqueued without a wait between them.

    Returns:
        For each system, in microseconds (host clock): us, p10, p90: one call and the wait for its end. "stream us": one
        of `runs` calls in a row with one wait at the end, the median of the rounds: what the device takes for a call
        when the host keeps up with it, else what the host takes.
    """
    for call in systems.values():
        for _ in range(10):
            call()
        finish()
    alone: dict[str, list[float]] = {name: [] for name in systems}
    rows: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(rounds):
        names = list(systems)[:: -1 if turn % 2 else 1]
        for name in names:
            call = systems[name]
            for _ in range(5):
                call()
            finish()
            for _ in range(runs):
                started = time.perf_counter()
                call()
                finish()
                alone[name].append(1e6 * (time.perf_counter() - started))
            started = time.perf_counter()
            for _ in range(runs):
                call()
            finish()
            rows[name].append(1e6 * (time.perf_counter() - started) / runs)
    return {
        name: {
            "us": statistics.median(times),
            "p10": float(np.percentile(times, 10)),
            "p90": float(np.percentile(times, 90)),
            "stream us": statistics.median(rows[name]),
        }
        for name, times in alone.items()
    }


def compare(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """How far outputs are from the reference.

    Returns:
        max: the largest max|difference| / max|reference| of all outputs; rms: likewise of root mean squares. Models
        with "detection_boxes" are compared box by box, for those that both runs selected: boxes, found: how many of
        the reference's there are, and how many were found again.
    """
    if "detection_boxes" in expected:
        return _compare_boxes(actual, expected)
    pairs = [(np.asarray(actual[name]), np.asarray(expected[name])) for name in expected]
    return {"max": max(max_difference(a, b) for a, b in pairs), "rms": max(rms_difference(a, b) for a, b in pairs)}


def max_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """max|difference| / max|expected|; infinite for other shapes or values that are not finite."""
    if actual.shape != expected.shape:
        return float("inf")
    if not actual.size:
        return 0.0
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    found = float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))
    return found if np.isfinite(found) else float("inf")


def rms_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """The quotient of root mean squares of difference and reference; infinite as `max_difference`."""
    if actual.shape != expected.shape:
        return float("inf")
    if not actual.size:
        return 0.0
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    found = float(np.sqrt(np.mean((a - b) ** 2)) / (np.sqrt(np.mean(b**2)) or 1.0))
    return found if np.isfinite(found) else float("inf")


def _compare_boxes(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Boxes that both runs selected, image by image; their order may differ."""
    shapes_differ = any(np.shape(actual[name]) != np.shape(expected[name]) for name in expected)
    if shapes_differ:
        return {"max": float("inf"), "rms": float("inf"), "boxes": 0, "found": 0}
    found: dict[str, tuple[list[Any], list[Any]]] = {name: ([], []) for name in expected if name != "num_detections"}
    total = 0
    for image, number in enumerate(np.asarray(expected["num_detections"])):
        free = list(range(int(np.asarray(actual["num_detections"])[image])))
        total += int(number)
        for row in range(int(number)):
            same = [
                other
                for other in free
                if actual["detection_classes"][image][other] == expected["detection_classes"][image][row]
                and np.abs(actual["detection_boxes"][image][other] - expected["detection_boxes"][image][row]).max()
                <= SAME_BOX
            ]
            if same:
                free.remove(same[0])
                for name, (mine, theirs) in found.items():
                    mine.append(np.asarray(actual[name])[image, same[0]])
                    theirs.append(np.asarray(expected[name])[image, row])
    pairs = [(np.array(mine), np.array(theirs)) for mine, theirs in found.values() if mine]
    count = len(found["detection_boxes"][0])
    enough = count >= FOUND_AGAIN * total
    return {
        "max": max((max_difference(a, b) for a, b in pairs), default=0.0) if enough else float("inf"),
        "rms": max((rms_difference(a, b) for a, b in pairs), default=0.0) if enough else float("inf"),
        "boxes": total,
        "found": count,
    }
