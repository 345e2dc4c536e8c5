"""The cheapest cut, against all cuts there are."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from rewriter.runtime.min_cut import INFINITE, sink_side


def price(arcs, behind):
    return sum(capacity for start, end, capacity in arcs if start not in behind and end in behind)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 9)), max_size=25))
def test_no_cut_is_cheaper_and_none_as_cheap_leaves_less_behind(arcs):
    arcs = [(a, b, c) for a, b, c in arcs if a != b]
    found = sink_side(arcs, 0, 6)
    assert 6 in found
    assert 0 not in found
    inner = range(1, 6)
    cuts = [{6, *chosen} for size in range(6) for chosen in itertools.combinations(inner, size)]
    best = min(price(arcs, cut) for cut in cuts)
    assert price(arcs, found) == best
    assert all(found <= cut for cut in cuts if price(arcs, cut) == best)


def test_infinite_arcs_are_never_cut():
    arcs = [("s", "a", 5), ("a", "b", INFINITE), ("b", "t", 3), ("a", "t", 1)]
    assert sink_side(arcs, "s", "t") == {"t"}
    assert sink_side([("s", "a", 1), ("a", "t", INFINITE)], "s", "t") == {"a", "t"}


def test_ends_without_a_way():
    assert sink_side([("s", "a", 1)], "s", "t") == {"t"}
