"""The figures made of latencies."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.timing import Latencies, Throughput

SECONDS = st.lists(st.floats(0, 1e6), min_size=1, max_size=40)


def test_known_figures():
    found = Latencies.of([0.003, 0.001, 0.002, 0.010])
    assert (found.calls, found.minimum, found.maximum) == (4, 0.001, 0.010)
    assert found.mean == pytest.approx(0.004)
    assert found.median == pytest.approx(0.0025)
    assert found.trimmed_mean(0.25) == pytest.approx(0.0025)
    assert found.trimmed_mean(0.1) == found.mean  # of four calls a tenth is none
    assert list(found.to_dict(0.25)) == [
        *("calls", "mean_ms", "trimmed_mean_ms", "min_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms"),
        "deviation_ms",
    ]
    assert found.to_dict(0.25)["trimmed_mean_ms"] == pytest.approx(2.5)


@given(SECONDS, st.floats(0, 100))
def test_percentiles_are_numpys(seconds, percent):
    found = Latencies.of(seconds).percentile(percent)
    assert found == pytest.approx(np.percentile(seconds, percent), rel=1e-9, abs=1e-12)


@given(SECONDS, st.floats(0, 0.49))
def test_figures_stay_between_the_fastest_and_the_slowest(seconds, share):
    found = Latencies.of(seconds)
    room = 1e-9 * found.maximum
    for value in (found.mean, found.median, found.trimmed_mean(share), found.percentile(99)):
        assert found.minimum - room <= value <= found.maximum + room
    assert found.deviation == pytest.approx(np.std(seconds), rel=1e-6, abs=1e-6 * (1 + found.maximum))
    assert found == Latencies.of(list(seconds))


@pytest.mark.parametrize(("seconds", "words"), [([], "no call"), ([-1.0], "negative"), ([math.nan], "not finite")])
def test_what_is_no_latency(seconds, words):
    with pytest.raises(ValueError, match=words):
        Latencies.of(seconds)


@pytest.mark.parametrize("share", [-0.1, 0.5, math.nan])
def test_shares_that_cannot_be_trimmed(share):
    with pytest.raises(ValueError, match="and below"):
        Latencies.of([1]).trimmed_mean(share)


def test_percentiles_beyond_the_ends():
    with pytest.raises(ValueError, match="between 0 and 100"):
        Latencies.of([1]).percentile(101)


def test_throughput():
    found = Throughput(50, 2.0, 4)
    assert found.to_dict(8) == {
        "calls": 50, "seconds": 2.0, "threads": 4, "inferences_per_s": 25.0, "items_per_s": 200.0,
    }  # fmt: skip
    assert Throughput(1, 0.0).per_second == math.inf
