"""Timing of one function: its calls one by one, many in a row, and from several threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rewriter.timing.latencies import Latencies, Throughput

Call = Callable[[], object]
Clock = Callable[[], float]


def measure(
    call: Call,
    *,
    iterations: int = 10,
    warmup: int = 0,
    duration: float = 0.0,
    finish: Call | None = None,
    clock: Clock = time.perf_counter,
) -> Latencies:
    """How long single calls take, each waited for before the next begins.

    Args:
        call: what is timed. What it returns lives until the call is over.
        iterations: least number of timed calls.
        warmup: calls before them that are not timed.
        duration: least number of seconds; calls go on until both are reached.
        finish: waits for what a call began (work of a GPU); its time counts. None: calls are over when they return.
        clock: gives seconds, and never goes back.

    Raises:
        ValueError: no iteration, or a negative number.
    """
    return measure_parts(
        call, iterations=iterations, warmup=warmup, duration=duration, finish=finish, clock=clock
    )[0]  # fmt: skip


def measure_parts(
    call: Call,
    *,
    iterations: int = 10,
    warmup: int = 0,
    duration: float = 0.0,
    finish: Call | None = None,
    clock: Clock = time.perf_counter,
) -> tuple[Latencies, Latencies]:
    """As `measure`: the latencies, and the part of each until the call came back, before it was waited for."""
    _check(iterations, warmup, duration)
    for _ in range(warmup):
        _once(call, finish)
    whole: list[float] = []
    enqueue: list[float] = []
    begun = clock()
    end = begun
    while len(whole) < iterations or end - begun < duration:
        start = clock()
        held = call()
        back = clock()
        if finish is not None:
            finish()
            end = clock()
        else:
            end = back
        del held
        whole.append(end - start)
        enqueue.append(back - start)
    return Latencies.of(whole), Latencies.of(enqueue)


def measure_in_a_row(
    call: Call,
    *,
    iterations: int = 10,
    duration: float = 0.0,
    chunk: int = 100,
    finish: Call | None = None,
    clock: Clock = time.perf_counter,
) -> Throughput:
    """How many calls go through when none waits for the one before: with a GPU the host runs ahead of the device.

    Args:
        call: what is timed.
        iterations: least number of calls.
        duration: least number of seconds.
        chunk: calls between two waits, so that what is enqueued, and its memory, stays within bounds.
        finish: waits for all that was begun.
        clock: gives seconds.

    Raises:
        ValueError: no iteration, an empty chunk, or a negative number.
    """
    _check(iterations, 0, duration)
    if chunk < 1:
        raise ValueError(f"a chunk needs at least one call, not {chunk!r}")
    done = 0
    begun = clock()
    end = begun
    while done < iterations or end - begun < duration:
        count = min(chunk, max(iterations - done, 1)) if not duration else chunk
        for _ in range(count):
            call()
        if finish is not None:
            finish()
        done += count
        end = clock()
    return Throughput(done, end - begun)


def measure_threads(
    calls: Sequence[Call],
    *,
    iterations: int = 10,
    duration: float = 0.0,
    finish: Call | None = None,
    clock: Clock = time.perf_counter,
) -> tuple[Latencies, Throughput]:
    """What several threads get through together, each making its own calls one after the other.

    All begin at the same moment; when one fails, the others end after their current call.

    Args:
        calls: what each thread calls; as many threads as there are.
        iterations: least number of calls of each thread.
        duration: least number of seconds for each.
        finish: waits for what the calling thread's call began; it is called from all threads.
        clock: gives seconds.

    Returns:
        The latencies of all calls, thread by thread, and the calls of all threads over the time that passed from the
        common start to the end of the last one.

    Raises:
        ValueError: no call, no iteration, or a negative number.
        Exception: whatever a call raised; of several the first thread's.
    """
    _check(iterations, 0, duration)
    if not calls:
        raise ValueError("no call was given: a thread needs one")
    failed = threading.Event()
    begun: list[float] = []
    start = threading.Barrier(len(calls), action=lambda: begun.append(clock()))

    def work(call: Call) -> tuple[list[float], float]:
        seconds: list[float] = []
        start.wait()
        end = begun[0]
        try:
            while not failed.is_set() and (len(seconds) < iterations or end - begun[0] < duration):
                at = clock()
                _once(call, finish)
                end = clock()
                seconds.append(end - at)
        except BaseException:
            failed.set()
            raise
        return seconds, end

    with ThreadPoolExecutor(len(calls)) as pool:
        try:
            found = [future.result() for future in [pool.submit(work, call) for call in calls]]
        except BaseException:
            failed.set()
            start.abort()  # where the system gives no more threads, those that are there would wait for ever
            raise
    every = [value for seconds, _ in found for value in seconds]
    end = max(end for _, end in found)
    return Latencies.of(every), Throughput(len(every), end - begun[0], len(calls))


def _once(call: Call, finish: Call | None) -> None:
    """One call and its end; what it returns lives until then."""
    held: Any = call()
    if finish is not None:
        finish()
    del held


def _check(iterations: int, warmup: int, duration: float) -> None:
    if iterations < 1:
        raise ValueError(f"at least one iteration must be timed, not {iterations!r}")
    if warmup < 0 or not duration >= 0:
        raise ValueError(f"warm-up and duration must not be negative: {warmup!r}, {duration!r}")
