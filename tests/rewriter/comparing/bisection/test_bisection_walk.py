"""From an output upwards to where values begin to be off; prefixes; sets of nodes to exclude; option lines."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.graph_index import GraphIndex
from rewriter.comparing.bisection.exclusion import Trial, find_exclusion
from rewriter.comparing.bisection.gaps import Gap
from rewriter.comparing.bisection.options import names_of, option_line, patterns
from rewriter.comparing.bisection.prefixes import shortest_failing
from rewriter.comparing.bisection.walk import ancestors, first_beyond
from tests.rewriter.comparing.bisection.bisection_models import parse

#: x -> a -> b -> d -> y, and x -> c -> d
DIAMOND = "g (float[2] x) => (float[2] y) { a = Abs(x) b = Neg(a) c = Exp(x) d = Add(b, c) y = Tanh(d) }"


@pytest.fixture
def index():
    return GraphIndex.of(parse(DIAMOND).graph)


def gaps(**values):
    return {name: Gap(value, 1.0) for name, value in values.items()}


def test_the_first_value_beyond_is_found(index):
    place = first_beyond(index, gaps(a=0.0, b=0.3, c=0.01, d=0.5, y=0.4), 0.1, ["y"])
    assert (place.value, index.names[place.node], place.before) == ("b", "n_b", 0.0)
    assert place.between == (place.node,)


def test_what_recovers_on_the_way_does_no_harm(index):
    place = first_beyond(index, gaps(a=9.0, b=0.0, c=0.05, d=0.5, y=0.4), 0.1, ["y"])
    assert (place.value, place.before) == ("d", 0.05)


def test_values_that_were_not_compared_are_passed_through(index):
    place = first_beyond(index, gaps(a=0.02, y=0.4), 0.1, ["y"])
    assert (place.value, place.before) == ("y", 0.02)
    assert [index.names[n] for n in place.between] == ["n_b", "n_c", "n_d", "n_y"]


def test_nothing_beyond_is_no_place(index):
    assert first_beyond(index, gaps(y=0.1), 0.1, ["y"]) is None
    assert first_beyond(index, gaps(y=0.5), 0.1, ["x"]) is None


def test_ancestors(index):
    assert {index.names[n] for n in ancestors(index, ["b", "x"])} == {"n_a", "n_b"}


@given(st.integers(1, 300), st.data())
def test_the_shortest_failing_beginning_takes_log2_tests(length, data):
    first = data.draw(st.integers(1, length))
    step = shortest_failing(length, lambda n: n >= first)
    assert (step.good, step.bad) == (first - 1, first)
    assert step.tests <= (length - 1).bit_length()


def test_beginnings_that_cannot_be_tested_are_stepped_around():
    step = shortest_failing(8, lambda n: None if n in (3, 4) else n >= 7)
    assert (step.good, step.bad) == (6, 7)
    step = shortest_failing(8, lambda n: None if n in (4, 5, 6) else n >= 6)
    assert (step.good, step.bad) == (3, 7)


def test_one_node_is_enough_or_more_are_tried():
    runs = []

    def attempt(names):
        runs.append(names)
        left = {"b", "d"} - set(names)
        return Trial(0.5 * len(left), not left)

    alone = find_exclusion(("b", "d"), pytest.fail, pytest.fail, attempt)
    assert (alone.names, alone.trial.passed, alone.runs) == (("b", "d"), True, 1)
    runs.clear()
    ranked = [("a",), ("b",), ("c",), ("d",), ("e",)]
    found = find_exclusion(("b",), lambda names: (), lambda: [[], ranked], attempt)
    assert found.names == ("b", "d")
    assert (found.trial.worst, found.first.worst) == (0.0, 0.5)
    assert found.runs == len(runs)
    found = find_exclusion(("b",), lambda names: ("d",), pytest.fail, attempt)
    assert (found.names, found.trial.passed) == (("b", "d"), True)


def test_where_nothing_is_enough_the_first_node_stays_the_answer():
    others = [("b",), ("c",)]
    found = find_exclusion(
        ("a",), lambda names: (), lambda: [others], lambda names: Trial(1 / len(names), passed=False)
    )
    assert (found.names, found.trial) == (("a",), Trial(1.0, passed=False))


def test_option_lines_are_for_a_shell():
    assert option_line("--keep-nodes", patterns(["a/b.c"])) == r"--keep-nodes '^a/b\.c$'"
    assert option_line("--keep-nodes", []) == ""
    assert shlex.split(option_line("-n", patterns(["it's"]))) == ["-n", "^it's$"]
    assert patterns(["a", "b", "a"]) == ("^a$", "^b$")
    assert patterns("abcde") == ("^(a|b|c|d|e)$",)


def test_a_node_with_bodies_is_named_with_all_that_is_in_it():
    proto = parse(
        "g (bool c, float[2] x) => (float[2] y) { y = If(c)"
        " <then_branch = t () => (float[2] p) { p = Abs(x) }, else_branch = e () => (float[2] q) { q = Neg(x) }> }"
    )
    assert set(names_of(proto.graph.node[0])) == {"n_y", "n_p", "n_q"}
