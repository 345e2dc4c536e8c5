"""Counters: what is counted, what is told, what adds up."""

from rewriter.runtime.executor import Execution
from rewriter.runtime.stats import CallCounters, build_totals, grown


def test_reasons_are_told_once_and_counted_always():
    counters = CallCounters()
    assert counters.add(Execution({}, 1, {"a": 2})) == ["a"]
    assert counters.add(Execution({}, 0, {"b": 1, "a": 1})) == ["b"]
    assert counters.to_dict() == {
        "calls": 2,
        "engine_calls": 1,
        "native_calls": 1,
        "warmup_calls": 0,
        "fallbacks": {"a": 3, "b": 1},
    }


def test_warmup_is_counted_apart_and_tells_only_what_lasts():
    counters = CallCounters()
    assert counters.add(Execution({}, 1, {"a": 1}), warmup=True, final=False) == []
    assert counters.add(Execution({}, 1, {"a": 1}), warmup=True) == ["a"]
    assert counters.add(Execution({}, 1, {"a": 1})) == []
    found = counters.to_dict()
    assert (found["calls"], found["warmup_calls"], found["fallbacks"]) == (1, 2, {"a": 1})


def test_builds_add_up_over_engine_nodes():
    slots = [
        {"builds": 2, "build_seconds": 1.5, "failed_builds": {"no memory": 1}, "building": True},
        {"builds": 1, "build_seconds": 0.5, "failed_builds": {"no memory": 2, "other": 1}, "building": False},
        {},
    ]
    failed = {"no memory": 3, "other": 1}
    assert build_totals(slots) == {"engines": 3, "seconds": 2.0, "running": 1, "failed": failed}
    assert build_totals([]) == {"engines": 0, "seconds": 0.0, "running": 0, "failed": {}}


def test_growth_is_that_of_numbers():
    before = {"plans": 1, "slots": {}}
    after = {"plans": 3, "graphs": 1, "slots": {"a": 1}, "name": "x", "open": True}
    assert grown(before, after) == {"plans": 2, "graphs": 1}
