"""Timing over a clock that stands still but for what the calls take."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rewriter.timing import measure, measure_in_a_row, measure_parts, measure_threads


def test_single_calls_without_the_warm_up(clock):
    found = measure(clock.takes(9, 9, 1, 2, 3), iterations=3, warmup=2, clock=clock)
    assert found.seconds == (1, 2, 3)


def test_both_iterations_and_duration_are_reached(clock):
    assert measure(clock.takes(2), iterations=3, duration=1, clock=clock).calls == 3
    assert measure(clock.takes(2), iterations=3, duration=9, clock=clock).calls == 5


def test_the_wait_counts_and_is_told_apart(clock):
    whole, enqueue = measure_parts(clock.takes(1), finish=clock.takes(4), iterations=2, clock=clock)
    assert (whole.seconds, enqueue.seconds) == ((5, 5), (1, 1))
    whole, enqueue = measure_parts(clock.takes(1), iterations=2, clock=clock)
    assert whole == enqueue


def test_what_a_call_returns_lives_until_it_is_over(clock):
    class Output:
        alive = 0

        def __init__(self):
            Output.alive += 1

        def __del__(self):
            Output.alive -= 1

    seen = []
    measure(Output, finish=lambda: seen.append(Output.alive), iterations=3, warmup=1, clock=clock)
    assert seen == [1, 1, 1, 1]
    assert Output.alive == 0


def test_calls_in_a_row_wait_once_a_chunk(clock):
    waits = []
    found = measure_in_a_row(clock.takes(1), finish=lambda: waits.append(clock()), iterations=7, chunk=3, clock=clock)
    assert (found.calls, found.seconds) == (7, 7)
    assert waits == [3, 6, 7]
    found = measure_in_a_row(clock.takes(1), iterations=1, duration=8, chunk=3, clock=clock)
    assert (found.calls, found.per_second) == (9, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"iterations": 0}, "iteration"), ({"duration": -1}, "negative"), ({"duration": float("nan")}, "negative")],
)
def test_amounts_that_make_no_sense(options, words):
    for timed in (measure, measure_in_a_row, lambda call, **rest: measure_threads([call], **rest)):
        with pytest.raises(ValueError, match=words):
            timed(lambda: None, **options)
    with pytest.raises(ValueError, match="warm-up"):
        measure(lambda: None, warmup=-1)
    with pytest.raises(ValueError, match="chunk"):
        measure_in_a_row(lambda: None, chunk=0)
    with pytest.raises(ValueError, match="no call"):
        measure_threads([])


def test_threads_each_make_their_calls():
    made = {}
    lock = threading.Lock()

    def caller(number):
        def call():
            with lock:
                made.setdefault(number, []).append(threading.get_ident())

        return call

    latencies, throughput = measure_threads([caller(n) for n in range(4)], iterations=5)
    assert (latencies.calls, throughput.calls, throughput.threads) == (20, 20, 4)
    assert {number: len(calls) for number, calls in made.items()} == dict.fromkeys(range(4), 5)
    assert len({calls[0] for calls in made.values()}) == 4
    assert all(len(set(calls)) == 1 for calls in made.values())


def test_threads_that_the_system_does_not_give_leave_none_waiting(monkeypatch):
    submit = ThreadPoolExecutor.submit

    def submit_two(pool, *work):
        if len(pool._threads) == 2:
            raise RuntimeError("can't start new thread")
        return submit(pool, *work)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit_two)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        measure_threads([lambda: None] * 3, iterations=10**9)


def test_a_thread_that_fails_ends_the_others():
    calls = []

    def broken():
        if len(calls) >= 3:
            raise RuntimeError("the third call broke")
        calls.append(1)

    with pytest.raises(RuntimeError, match="the third call broke"):
        measure_threads([broken, lambda: None], iterations=10**9)
