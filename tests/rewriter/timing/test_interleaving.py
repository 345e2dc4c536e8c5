"""Systems in turns, and their ratios."""

import pytest

from rewriter.timing import Latencies, interleaved, ratio_of
from rewriter.timing.interleaving import joined


def test_every_system_has_every_place(clock):
    order = []
    systems = {name: (lambda name=name: order.append(name)) for name in "abc"}
    found = interleaved(systems, rounds=6, iterations=1, warmup=1, settle=0, clock=clock)
    assert {name: len(turns) for name, turns in found.items()} == {"a": 6, "b": 6, "c": 6}
    turns = ["".join(order[at : at + 3]) for at in range(3, len(order), 3)]
    assert order[:3] == ["a", "b", "c"]
    assert turns == ["cba", "bca", "bac", "abc", "acb", "cab"]


def test_calls_that_settle_are_not_timed(clock):
    found = interleaved({"a": clock.takes(9, 9, 9, 1, 2, 9, 3, 4)}, rounds=2, iterations=2, warmup=2, clock=clock)
    assert [turn.seconds for turn in found["a"]] == [(1, 2), (3, 4)]
    assert joined(found["a"]).seconds == (1, 2, 3, 4)


def test_a_ratio_is_of_rounds_that_belong_together():
    slow = [Latencies.of([seconds]) for seconds in (2, 20, 9)]
    quick = [Latencies.of([seconds]) for seconds in (1, 10, 3)]
    found = ratio_of(slow, quick)
    assert (found.middle, found.low, found.high, found.rounds) == (2, 2, pytest.approx(2.8), 3)
    assert str(found) == "2.00 (2.00 .. 2.80)"
    assert ratio_of(slow, quick, lambda part: part.minimum) == found
    assert found.to_dict() == {"middle": 2, "low": 2, "high": pytest.approx(2.8), "rounds": 3}


def test_what_gives_no_ratio():
    one, none = [Latencies.of([1])], [Latencies.of([0])]
    with pytest.raises(ValueError, match="the same rounds"):
        ratio_of(one, one * 2)
    with pytest.raises(ValueError, match="the same rounds"):
        ratio_of([], [])
    with pytest.raises(ValueError, match="no time pass"):
        ratio_of(one, none)
    with pytest.raises(ValueError, match="at least one round"):
        interleaved({}, rounds=0)
