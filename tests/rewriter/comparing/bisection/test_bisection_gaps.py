"""Gaps of one value, and values in chunks."""

import math

import numpy as np
import pytest

from rewriter.comparing.bisection.exported import gap_in_any_layout
from rewriter.comparing.bisection.gaps import Gap, gap
from rewriter.comparing.bisection.sides import Sizes, measure


def test_differences_are_relative_to_the_largest_reference_of_all_samples():
    first = gap(np.array([1.0, -10.0]), np.array([1.1, -10.0]))
    second = gap(np.array([0.1]), np.array([0.3]))
    assert first.relative == pytest.approx(0.01)
    assert (first | second).relative == pytest.approx(0.02)
    assert (Gap() | first) == first


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (np.zeros(2), np.zeros(3), "has shape [3] instead of [2]"),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0]), "NaN or infinity in 1 other place"),
        (np.array([np.inf]), np.array([-np.inf]), "NaN or infinity in 1 other place"),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), "1 other texts"),
    ],
)
def test_what_is_no_number_is_infinitely_far(left, right, words):
    found = gap(left, right)
    assert math.isinf(found.relative)
    assert words in found.fault
    assert math.isinf((Gap() | found).relative)


def test_nan_in_the_same_places_is_equal():
    values = np.array([np.nan, np.inf, 1.0])
    assert gap(values, values.copy()).relative == 0.0


@pytest.mark.parametrize("kind", [bool, np.int64, np.float16, np.complex64])
def test_every_kind_of_number_counts(kind):
    assert gap(np.array([1, 0], kind), np.array([1, 1], kind)).relative == 1.0


def test_a_difference_from_zero_is_infinite_and_nothing_is_no_difference():
    assert math.isinf(gap(np.zeros(2), np.full(2, 1e-9)).relative)
    assert gap(np.zeros((0, 3)), np.zeros((0, 3))).relative == 0.0


def test_the_best_layout_counts():
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert gap_in_any_layout(values.transpose(0, 2, 3, 1), values).relative == 0.0
    assert gap_in_any_layout(values, values.transpose(0, 2, 3, 1)).relative == 0.0
    assert gap_in_any_layout(values, values + 1).relative > 0
    assert math.isinf(gap_in_any_layout(values, values[:1]).relative)


def test_values_are_looked_at_in_chunks():
    sizes = Sizes({"a": 60, "b": 60, "c": 10, "d": 500})
    assert list(sizes.chunks("abcd", 100)) == [["a"], ["b", "c"], ["d"]]
    opened = []

    class Recorder:
        def open(self, names):
            opened.append(tuple(names))
            return lambda feeds: dict.fromkeys(names, feeds["x"])

    found = measure(Recorder(), Recorder(), "abcd", [{"x": np.ones(1)}] * 2, sizes, most=100)
    assert opened == [("a",), ("a",), ("b", "c"), ("b", "c"), ("d",), ("d",)]
    assert {item.relative for item in found.values()} == {0.0}
