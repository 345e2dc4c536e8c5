"""passes.support: verdicts and how they add up."""

import pytest

from passes.support import FAKELIST, SupportMap, Verdict


def yes(name):
    return Verdict(name, "Relu", True)


def no(name, rule="parser"):
    return Verdict(name, "Relu", False, rule, f"said {rule}")


def test_a_denial_needs_a_reason():
    with pytest.raises(ValueError, match="needs a reason: node 'a', rule 'dtype'"):
        Verdict("a", "Relu", False, "dtype")


def test_the_first_denial_wins_and_order_is_kept():
    found = SupportMap.of([yes("a"), yes("b"), no("a", "dtype"), no("a", "rank"), yes("a")])
    assert [v.node for v in found] == ["a", "b"]
    assert found.verdicts["a"].rule == "dtype"
    assert found.denials() == (no("a", "dtype"),)


def test_deny_gives_a_new_map():
    before = SupportMap.of([yes("a"), no("b")])
    after = before.deny([no("a", "build"), no("b", "build")])
    assert before.supported("a")
    assert not after.supported("a")
    assert after.verdicts["b"].rule == "parser"


def test_a_node_without_a_verdict_is_not_supported():
    assert not SupportMap.of([]).supported("a")


def test_a_pretence_replaces_positive_verdicts_only():
    mark = [Verdict(name, "Relu", True, FAKELIST, "no Relu") for name in "abz"]
    found = SupportMap.of([yes("a"), no("b"), yes("c")]).pretend(mark)
    assert [v.node for v in found] == ["a", "b", "c"]
    assert [v.pretended for v in found] == [True, False, False]
    assert found.supported("a")
    assert not found.supported("b")
    assert not found.deny([no("a")]).verdicts["a"].pretended
