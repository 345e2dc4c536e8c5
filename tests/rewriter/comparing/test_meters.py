"""Measuring sample by sample."""

import gc
import math
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rewriter.comparing.comparison import Pair, compare, difference, spread
from rewriter.comparing.meters import DifferenceMeter

FLOATS = hnp.arrays(np.float32, st.integers(1, 12), elements=st.floats(-1e6, 1e6, width=32))


@settings(deadline=None)
@given(FLOATS, FLOATS, st.integers(0, 12))
def test_samples_add_up_to_what_they_are_as_one(left, right, cut):
    right = np.resize(right, left.shape)
    whole = difference("y", [left], [right])
    parts = difference("y", [left[:cut], left[cut:]], [right[:cut], right[cut:]])
    assert parts.max_abs == whole.max_abs
    assert parts.max_rel == whole.max_rel
    assert parts.mean_abs == pytest.approx(whole.mean_abs)
    assert parts.mean_rel == pytest.approx(whole.mean_rel)
    assert parts.cosine == pytest.approx(whole.cosine, abs=1e-9)
    values = left.astype(np.float64)
    found = spread("r", "y", [left[:cut], left[cut:]])
    assert found.mean == pytest.approx(values.mean())
    assert (found.minimum, found.maximum) == (values.min(), values.max())


def test_the_cosine_of_values_whose_squares_overflow():
    huge = [np.float64([1e-200]), np.float64([3e300, 4e300]), np.float64([1e-300])]
    assert difference("y", huge, huge).cosine == pytest.approx(1.0)
    turned = [huge[0], np.float64([4e300, -3e300]), huge[2]]
    assert difference("y", huge, turned).cosine == pytest.approx(0.0, abs=1e-12)


def test_the_mean_relative_difference():
    found = difference("y", [np.float32([1, -4, 0])], [np.float32([1, -3, 1])])
    assert found.mean_rel == pytest.approx(2 / 5)
    assert difference("y", [np.zeros(2)], [np.float32([0, 1])]).mean_rel == math.inf


def test_the_scale_is_the_largest_finite_magnitude_of_the_reference():
    found = difference("y", [np.float32([1, -4, np.nan]), np.float32([2])], [np.float32([9, -4, 1]), np.float32([2])])
    assert (found.scale, found.max_rel, found.max_abs) == (4.0, math.inf, 8.0)


def test_the_place_of_the_largest_difference():
    reference = [np.zeros((2, 2)), np.zeros((2, 2))]
    result = [np.float64([[0, 1], [0, 0]]), np.float64([[0, 0], [-3, 0]])]
    place = difference("y", reference, result).place
    assert (place.sample, place.index, place.reference, place.result) == (1, (1, 0), 0.0, -3.0)
    assert difference("y", reference, reference).place is None


def test_the_first_value_that_is_no_number_is_the_place_whatever_differs_more():
    reference = [np.float32([1, 2]), np.float32([1, 2])]
    result = [np.float32([1, np.nan]), np.float32([900, 2])]
    found = difference("y", reference, result)
    assert (found.place.sample, found.place.index) == (0, (1,))
    assert math.isnan(found.place.result)
    text = difference("y", [np.array([["a", "b"]], object)], [np.array([[b"a", b"c"]], object)])
    assert (text.place.index, text.place.reference, text.place.result) == ((0, 1), "b", "c")
    scalar = difference("y", [np.complex64(1)], [np.complex64(1j)])
    assert (scalar.place.index, scalar.place.result) == ((), "1j")


def test_top_k_is_of_scores_along_the_last_axis():
    meter = DifferenceMeter("y", top_k=(1, 2, 3))
    meter.add(np.float32([[3, 2, 1], [3, 2, 1]]), np.float32([[2, 3, 1], [1, 3, 2]]))
    meter.add(np.float32([[3, 2, 1]]), np.float32([[3, 2, 1]]))
    assert meter.difference().top_k == {1: pytest.approx(1 / 3), 2: pytest.approx(5 / 6)}
    for array in (np.int64([[3, 2]]), np.float32([3, 2]), np.array([["a", "b"]], object), np.complex64([[1, 2]])):
        other = DifferenceMeter("y", top_k=(1,))
        other.add(array, array)
        assert other.difference().top_k == {}


def test_figures_of_a_sample_of_another_shape_do_not_count_but_the_others_do():
    meter = DifferenceMeter("y", histogram=True, heat_map=True)
    assert meter.add(np.float32([1, 2]), np.float32([1, 2, 3])) == math.inf
    assert meter.add(np.float32([1, 2]), np.float32([1, 1])) == 0.5
    found = meter.difference()
    assert found.fault == "has shape [3] instead of [2]"
    assert (found.max_rel, found.histogram.total, found.heat_map.extent) == (math.inf, 2, (1, 2))


def test_a_difference_beyond_double_precision_is_infinite():
    found = difference("y", [np.float64([1.7e308])], [np.float64([-1.7e308])])
    assert found.max_abs == math.inf
    assert not found.fault


def test_nan_on_both_sides_is_no_difference():
    meter = DifferenceMeter("y", histogram=True)
    assert meter.add(np.float32([np.nan, 4]), np.float32([np.nan, 3])) == 0.25
    assert (meter.difference().histogram.odd, meter.difference().histogram.zeros) == (0, 1)


def test_samples_are_forgotten_but_the_worst():
    alive = []

    def samples():
        for number in range(6):
            x = np.full(4, float(number == 2) + 1)
            alive.append(weakref.ref(x))
            yield {"x": x}
            del x

    shares = []

    def count(_):
        gc.collect()
        shares.append(sum(ref() is not None for ref in alive))

    runners = {"a": lambda s: {"y": s["x"]}, "b": lambda s: {"y": s["x"] ** 2}}
    found = compare(runners, samples(), [Pair("a", "b", 0.5)], on_sample=count, histograms=True, heat_maps=True)
    assert max(shares) <= 3
    assert found.pairs[0].worst_inputs["x"].tolist() == [2, 2, 2, 2]
    assert len(found.samples) == 6
