"""Counts merge exactly: any order, any division of the values gives the same, bit for bit."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.precision.calibration import METHODS
from rewriter.precision.counts import Counts
from rewriter.precision.histogram import FINE, Extremes, Histogram

#: Every float32 that calibration may see: zeros of both signs, denormals, powers of two, the largest.
VALUES = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-4, 4, width=32),
    st.sampled_from(
        [0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-149), 2.0**-126, 2.0**127, float(np.finfo(np.float32).max)]
    ),
)
ARRAYS = st.lists(VALUES, max_size=30).map(lambda values: np.array(values, np.float32))


def counted(arrays, kind=Histogram):
    """The arrays, added one after the other to one histogram."""
    found = kind()
    for array in arrays:
        if array.size:
            found.add(array, float(array.min()), float(array.max()))
    return found


def state(seen):
    """All that there is in a histogram, bit for bit."""
    return {
        name: value.tobytes() if isinstance(value, np.ndarray) else repr(value) for name, value in vars(seen).items()
    }


@settings(max_examples=150, deadline=None)
@given(arrays=st.lists(ARRAYS, max_size=6), data=st.data())
@pytest.mark.parametrize("kind", [Histogram, Extremes])
def test_any_division_and_any_order_is_the_whole(kind, arrays, data):
    whole = np.concatenate([np.zeros(0, np.float32), *arrays])
    expected = state(counted([whole], kind))
    shuffled = whole[data.draw(st.permutations(range(whole.size)))]
    assert state(counted([shuffled], kind)) == expected
    parts = [counted([array], kind) for array in data.draw(st.permutations(arrays))]
    while len(parts) > 1:  # merged as any tree
        first = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        second = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        before = state(second)
        first.merge(second)
        assert state(second) == before
        parts.append(pickle.loads(pickle.dumps(first)))  # noqa: S301
    if parts:
        assert state(parts[0]) == expected


@settings(max_examples=150, deadline=None)
@given(array=ARRAYS.filter(len))
def test_a_value_lies_in_the_bin_that_holds_it(array):
    found = counted([array])
    exact = np.abs(array.astype(np.float64))
    if not exact.any():
        assert found.width == 0
        return
    limit = found.width * FINE
    assert exact.max() < limit <= 2 * exact.max()
    assert np.log2(limit) == np.floor(np.log2(limit))
    assert found._counts.tolist() == np.bincount((exact / found.width).astype(np.int64), minlength=FINE).tolist()
    assert found.zeros == np.count_nonzero(exact == 0)
    assert found.total == found._counts.sum() == array.size


def test_negative_zero_is_zero():
    for arrays in ([[0.0], [-0.0]], [[-0.0], [0.0]], [[-0.0]]):
        seen = counted([np.array(array, np.float32) for array in arrays], Extremes)
        assert repr((seen.minimum, seen.maximum)) == "(0.0, 0.0)"


def test_only_histograms_hold_counts():
    with pytest.raises(TypeError, match="another histogram"):
        Histogram().merge(Extremes())


TENSORS = ("a", "b")


def samples(seed, count=12):
    random = np.random.default_rng(seed)
    for number in range(count):
        a = (random.standard_normal(200) * 1.7 ** random.integers(-9, 9)).astype(np.float32)
        b = np.zeros(0, np.float32) if number % 5 == 3 else np.maximum(random.standard_normal(50), 0).astype(np.float32)
        b[: number % 3] = np.inf
        yield number, [("a", a), ("b", b)]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    places=st.lists(st.integers(0, 3), min_size=12, max_size=12),
    order=st.permutations(range(4)),
)
@pytest.mark.parametrize("method", METHODS)
def test_machines_count_what_one_counts(method, seed, places, order):
    one = Counts(TENSORS, method)
    parts = [Counts(TENSORS, method) for _ in range(4)]
    for (number, values), place in zip(samples(seed), places, strict=True):
        one.add(number, values)
        parts[place].add(number, values)
    merged = Counts(TENSORS, method)
    for place in order:
        merged.merge(parts[place])
    assert merged.samples == one.samples == 12
    assert merged.table(99.9).to_json() == one.table(99.9).to_json()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_odd_is_told_once_and_in_order(method, caplog):
    parts = [Counts(TENSORS, method) for _ in range(2)]
    for number, values in samples(0):
        parts[number % 2].add(number, values)
    parts[1].merge(parts[0])
    parts[1].tell(parts[1].table(99.9))
    assert [record.getMessage() for record in caplog.records] == [
        "calibration input batch 3 gave no value to 1 of 2 tensors: is it empty?",
        "calibration input batch 8 gave no value to 1 of 2 tensors: is it empty?",
        "calibration: 10 infinite values of tensor 'b' are left out of its range",
    ]


def test_counts_of_other_things_are_not_merged():
    with pytest.raises(ValueError, match="same tensors by the same method"):
        Counts(TENSORS, "entropy").merge(Counts(TENSORS, "percentile"))
    with pytest.raises(ValueError, match="same tensors"):
        Counts(TENSORS, "entropy").merge(Counts(("b", "a"), "entropy"))
