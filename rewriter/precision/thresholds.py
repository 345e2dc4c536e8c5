"""From counts to a range: NVIDIA's entropy rule and ONNX Runtime's percentile rule."""

from __future__ import annotations

import numpy as np

from rewriter.precision.histogram import Histogram

#: "entropy" never cuts more than the rest of the nonzero values, nor of the sum of magnitudes.
HELD, MASS = 0.99, 0.95
#: Times the narrowest range allowed that candidates of "entropy" reach.
REACH = 4.0
#: Divergences (nats) that differ by less are equal.
TIE = 1e-4
#: Bins of magnitudes in which the narrowest range allowed is looked for.
_SEARCHED = 1 << 14


def entropy_range(seen: Histogram, bins: int, levels: int) -> tuple[float, float]:
    """The symmetric range whose quantised distribution says most about the true one; NVIDIA's rule, made safe.

    1. A range must hold `HELD` of the nonzero values and `MASS` of the sum of magnitudes. The divergence alone knows
       no such limit: all values in one bin have a divergence of 0, so that it throws nearly everything away when
       values lie on few points or far from zero (outputs of a sigmoid, whole numbers). The sum is there for rare
       values that matter most: the ones among the many small values of a softmax.
    2. The search goes to `REACH` times the narrowest range of rule 1, so that one outlier does not press all other
       values into a few bins.
    3. Fewer bins in use than `levels` say nothing of what quantisation loses: then the whole range of rule 2 is taken.
    4. Else candidates end at every border of a bin. What lies beyond is counted in the last bin in use. The quantised
       distribution gives all bins in use of one level the same share; bins beyond have none.
    5. The candidate of least Kullback-Leibler divergence from the true distribution to the quantised one wins; of
       those that are within `TIE` of it the widest.
    6. The first bin counts as much as the second: zeros are exact in any range, and half of what a Relu makes would
       pull every range to nothing. (ONNX Runtime's Entropy lacks this rule: with enough bins to choose from it cuts a
       third of the range off Relu's values, and five points of top-1 off a small CNN.)

    Args:
        seen: the values; not all of them 0.
        bins: number of bins of magnitudes that are searched.
        levels: number of quantised magnitudes.
    """
    least = _narrowest(seen)
    high = min(seen.amax, REACH * least)
    counts, edges = seen.absolute(bins, high if high < seen.amax else None)
    bound = high
    if np.count_nonzero(counts) >= levels:
        values = counts.astype(np.float64)
        values[0] = values[1]
        first = min(max(levels, int(np.searchsorted(edges, least))), bins)
        ends = np.arange(first, bins + 1)
        divergences = divergences_of(values, ends, levels, seen.total - int(counts.sum()))
        near = np.flatnonzero(divergences <= divergences.min() + TIE)
        bound = high if ends[near[-1]] == bins else float(edges[ends[near[-1]]])
    return _within(bound, seen.minimum, seen.maximum)


def _narrowest(seen: Histogram) -> float:
    """The least magnitude below which `HELD` of the nonzero values lie, and `MASS` of the sum of magnitudes."""
    counts, edges = seen.absolute(_SEARCHED)
    counts[0] -= seen.zeros
    held, mass = np.cumsum(counts), np.cumsum(counts * edges[:-1].astype(np.float64))
    enough = (held >= HELD * held[-1]) & (mass >= MASS * mass[-1])
    # One bin more, for a count may lie a bin from its value.
    return min(float(edges[int(np.argmax(enough)) + 1]) + seen.width, seen.amax)


def percentile_range(
    counts: np.ndarray, edges: np.ndarray, minimum: float, maximum: float, percentile: float
) -> tuple[float, float]:
    """The symmetric range that holds `percentile` percent of the values, within their extremes.

    Args:
        counts: number of magnitudes in each bin over [0, largest magnitude].
        edges: borders of the bins.
        minimum: least value; the range never goes below it.
        maximum: greatest value; the range never exceeds it.
        percentile: 0 < percentile <= 100.
    """
    if percentile >= 100:
        return minimum, maximum
    share = np.cumsum(counts / counts.sum())
    place = min(int(np.searchsorted(share, percentile / 100.0)), counts.size - 1)
    # Nearly all in the first bin (a tensor that is mostly zero): its lower border would be a range of nothing.
    bound = float(edges[max(place, 1)])
    return _within(bound, minimum, maximum)


def _within(bound: float, minimum: float, maximum: float) -> tuple[float, float]:
    """-bound..bound without what no value reaches; a single point where all values lie beyond."""
    return min(max(-bound, minimum), bound), max(min(bound, maximum), -bound)


def divergences_of(counts: np.ndarray, ends: np.ndarray, levels: int, outside: int = 0) -> np.ndarray:
    """Kullback-Leibler divergence of each candidate: the bins 0..end for `levels` levels.

    With r the bins (outliers o in the last one in use), T and M a level's sum and its mean over bins in use, N and Q
    all values and those inside, it is (sum r log r - sum T log M - o log M_last) / N + log(Q / N): no loop is needed.

    Args:
        counts: number of magnitudes in each bin.
        ends: number of bins of each candidate.
        levels: number of quantised magnitudes.
        outside: number of magnitudes beyond all bins.
    """
    total = counts.sum() + outside
    sums, used, logs = (np.concatenate(([0.0], np.cumsum(v))) for v in (counts, counts != 0, _xlogx(counts)))
    # Bin j of a candidate that ends at e belongs to level floor(j levels / e).
    cuts = -(-np.arange(levels + 1) * ends[:, None] // levels)
    sizes, filled = np.diff(sums[cuts]), np.diff(used[cuts])
    log_means = np.log(np.where(sizes > 0, sizes / np.maximum(filled, 1), 1.0))
    inside = sums[ends]
    beyond = total - inside
    place = np.maximum.accumulate(np.where(counts != 0, np.arange(counts.size), 0))[ends - 1]
    last = counts[place]
    last_means = log_means[np.arange(ends.size), place * levels // ends]
    true = logs[ends] - _xlogx(last) + _xlogx(last + beyond)
    found = (true - (sizes * log_means).sum(axis=1) - beyond * last_means) / total
    found += np.log(np.where(inside > 0, inside, 1.0) / total)
    return np.where(inside > 0, found, np.inf)


def _xlogx(values: np.ndarray) -> np.ndarray:
    return np.asarray(values * np.log(np.where(values > 0, values, 1.0)))
