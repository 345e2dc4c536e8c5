"""Counts of differences in logarithmic bins."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.comparing.histograms import Histogram, HistogramMeter


def counted(*arrays):
    meter = HistogramMeter()
    for array in arrays:
        meter.add(np.asarray(array, np.float64))
    return meter.histogram()


def test_equal_values_and_what_is_no_number_are_counted_apart():
    found = counted([[0.0, 1.5], [np.inf, 0.0]], [np.nan])
    assert (found.zeros, found.odd, found.first, found.counts) == (2, 2, 0, (1,))
    assert found.edges == (1.0, pytest.approx(10**0.25))
    assert found.total == 5


def test_bins_between_the_first_and_the_last_are_there_though_empty():
    found = counted([1e-3, 1.1])
    assert (found.first, len(found.counts), sum(found.counts)) == (-12, 13, 2)
    assert found.counts[0] == found.counts[-1] == 1


def test_nothing_and_equal_values_have_no_bins():
    assert counted() == Histogram(0, ())
    assert counted([0.0, 0.0]) == Histogram(0, (), 2)
    assert counted([0.0]).edges == ()


@pytest.mark.parametrize("gap", [5e-324, 1.7e308])
def test_the_ends_of_double_precision(gap):
    found = counted([gap])
    assert found.counts == (1,)
    assert found.edges[0] <= gap <= found.edges[1]


@settings(deadline=None)
@given(st.lists(st.floats(0) | st.just(math.nan), max_size=30), st.integers(0, 30))
def test_parts_add_up_to_the_whole(gaps, cut):
    assert counted(gaps[:cut], gaps[cut:]) == counted(gaps)
    assert counted(gaps).total == len(gaps)


@settings(deadline=None)
@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=30), st.floats(0, 1))
def test_a_quantile_is_a_bound_as_fine_as_the_bins(gaps, share):
    found = counted(gaps).quantile(share)
    assert sum(gap <= found * (1 + 1e-12) for gap in gaps) >= share * len(gaps)
    assert found <= max(gaps) * 10**0.25 * (1 + 1e-12)


def test_quantiles_of_equal_values_and_of_what_is_no_number():
    assert counted([0.0, 0.0, 5.0]).quantile(0.5) == 0.0
    assert counted([0.0, np.inf]).quantile(0.9) == math.inf


def test_to_dict_holds_edges_and_counts():
    assert counted([0.0, 1.0]).to_dict() == {"edges": (1.0, 10**0.25), "counts": (1,), "zeros": 1, "odd": 0}
