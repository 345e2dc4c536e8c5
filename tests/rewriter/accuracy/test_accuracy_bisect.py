"""The search on synthetic models: what it finds, what it costs, and that its outcome always passes."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.accuracy.bisect import Score, find_guilty

LIMIT = 1.0


def names(count):
    return [f"n{i:03}" for i in range(count)]


class Additive:
    """Errors add up; `pairs` add more when both are lowered. Counts its calls and refuses repeats."""

    def __init__(self, errors, pairs=(), noise=0.0):
        self.errors, self.pairs, self.noise = dict(errors), dict(pairs), noise
        self.seen = []

    def __call__(self, lowered):
        assert lowered not in self.seen, "measured twice"
        self.seen.append(lowered)
        return self.score(lowered)

    def score(self, lowered):
        value = math.fsum(self.errors.get(u, 0.0) for u in lowered)
        value += math.fsum(error for pair, error in self.pairs.items() if lowered >= set(pair))
        value *= 1 + self.noise * random.Random(",".join(sorted(lowered))).uniform(-1, 1)  # noqa: S311
        return Score(value <= LIMIT, value - LIMIT, value, f"differs by {value:.3g}")


def search(model, units, budget=64):
    found = find_guilty(units, model, budget)
    lowered = frozenset(units) - set(found.kept)
    assert len(model.seen) == len(found.measurements) <= budget
    assert list(found.kept) == [u for u in units if u in found.kept], "order of the units"
    if lowered:
        assert lowered in model.seen
        assert model.score(lowered).passed
        assert found.after == model.score(lowered)
    else:
        assert found.after is None
    return found


def test_all_passes_after_one_measurement():
    found = search(Additive({}), names(50))
    assert not found.kept
    assert [(m.lowered, m.passed) for m in found.measurements] == [(50, True)]
    assert found.before == found.after


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 500])
def test_one_guilty_unit_costs_two_measurements_a_level(count):
    for guilty in {0, count // 2, count - 1}:
        units = names(count)
        found = search(Additive({units[guilty]: math.inf}), units)
        assert list(found.kept) == [units[guilty]]
        assert not found.exhausted
        finding = found.kept[units[guilty]]
        assert (finding.kind, finding.group, finding.score.value) == ("alone", 1, math.inf)
        assert len(found.measurements) <= 2 * math.ceil(math.log2(count)) + 3


def test_several_guilty_units():
    units = names(100)
    guilty = [units[3], units[40], units[41], units[99]]
    found = search(Additive(dict.fromkeys(guilty, 3.0)), units, 100)
    assert list(found.kept) == guilty
    assert {f.kind for f in found.kept.values()} == {"alone"}


def test_of_an_interacting_pair_one_unit_is_kept():
    units = names(32)
    model = Additive({}, {(units[3], units[20]): 5.0})
    found = search(model, units)
    assert len(found.kept) == 1
    assert set(found.kept) <= {units[3], units[20]}
    finding = next(iter(found.kept.values()))
    assert (finding.kind, finding.group) == ("joint", 1)


def test_guilty_unit_and_pair_together():
    units = names(40)
    model = Additive({units[30]: 9.0}, {(units[1], units[2]): 5.0})
    found = search(model, units)
    assert units[30] in found.kept
    assert len(found.kept) == 2


def test_even_noise_over_all_units_keeps_about_what_is_too_much():
    units = names(128)
    found = search(Additive(dict.fromkeys(units, 2.0 / 128)), units)
    assert 64 <= len(found.kept) <= 80


def test_the_worst_units_are_kept_first():
    units = names(64)
    errors = dict.fromkeys(units, 0.004) | dict.fromkeys(units[10:14], 0.6)
    found = search(Additive(errors), units)
    assert set(units[10:14]) & set(found.kept)
    assert len(found.kept) <= 8


@pytest.mark.parametrize("budget", [1, 2, 3, 5])
def test_a_spent_budget_keeps_more_and_never_less(budget):
    units = names(64)
    found = search(Additive({units[5]: 9.0, units[50]: 9.0}), units, budget)
    assert found.exhausted
    assert {units[5], units[50]} <= set(found.kept)
    assert all(f.score is not None for f in found.kept.values())


def test_nothing_can_be_lowered():
    units = names(6)
    found = search(Additive(dict.fromkeys(units, 2.0)), units)
    assert list(found.kept) == units
    assert found.after is None
    assert not found.exhausted


@pytest.mark.parametrize(("units", "budget"), [([], 5), (["a", "a"], 5), (["a"], 0)])
def test_senseless_calls(units, budget):
    with pytest.raises(ValueError, match="a search needs units"):
        find_guilty(units, Additive({}), budget)


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(1, 40),
    budget=st.integers(1, 80),
    noise=st.sampled_from([0.0, 0.1, 0.9]),
    data=st.data(),
)
def test_the_outcome_passes_whatever_the_model_does(count, budget, noise, data):
    units = names(count)
    sizes = st.sampled_from([0.0, 0.01, 0.2, 0.7, 3.0, math.inf])
    errors = {u: data.draw(sizes) for u in units}
    some = st.tuples(st.sampled_from(units), st.sampled_from(units))
    pairs = {pair: data.draw(st.sampled_from([-2.0, 0.5, 4.0])) for pair in data.draw(st.lists(some, max_size=4))}
    if any(math.isinf(e) for e in errors.values()):
        pairs = {pair: abs(error) for pair, error in pairs.items()}
    found = search(Additive(errors, pairs, noise), units, budget)
    again = find_guilty(units, Additive(errors, pairs, noise), budget)
    assert again == found


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 24), data=st.data())
def test_with_enough_budget_nothing_kept_could_be_lowered_by_itself(count, data):
    """Minimal by single units, for monotone models and as long as patience lasts."""
    units = names(count)
    guilty = data.draw(st.lists(st.sampled_from(units), max_size=3, unique=True))
    some = st.tuples(st.sampled_from(units), st.sampled_from(units)).filter(lambda p: p[0] != p[1])
    pairs = dict.fromkeys(data.draw(st.lists(some, max_size=2)), 4.0)
    model = Additive(dict.fromkeys(guilty, 2.0), pairs)
    found = search(model, units, 400)
    lowered = frozenset(units) - set(found.kept)
    assert not found.exhausted
    if len(found.kept) <= 5:
        assert not any(model.score(lowered | {unit}).passed for unit in found.kept)


@pytest.mark.parametrize("seed", range(4))
def test_of_errors_with_a_heavy_tail_about_the_fewest_units_are_kept(seed):
    """60 nodes of which a few make most of the error; too much by half."""
    units = names(60)
    random_ = random.Random(seed)  # noqa: S311
    errors = {u: random_.lognormvariate(0, 2) for u in units}
    total = math.fsum(errors.values())
    model = Additive({u: 1.5 * error / total for u, error in errors.items()})
    found = find_guilty(units, model, 64, ideal=-LIMIT)
    fewest, rest = 0, 1.5
    for error in sorted(model.errors.values(), reverse=True):
        if rest <= LIMIT:
            break
        fewest, rest = fewest + 1, rest - error
    assert fewest <= len(found.kept) <= fewest + 4
