"""From counts to a range: NVIDIA's entropy rule and ONNX Runtime's percentile rule."""

from __future__ import annotations

import numpy as np


def entropy_range(
    counts: np.ndarray, edges: np.ndarray, minimum: float, maximum: float, levels: int
) -> tuple[float, float]:
    """The symmetric range whose quantised distribution says most about the true one, as TensorRT's calibrator chose it.

    1. Candidates end at every border of a bin from the `levels`-th on. What lies beyond is counted in the
       last bin in use.
    2. The quantised distribution gives all bins in use of one level the same share; bins beyond have none.
    3. The candidate of least Kullback-Leibler divergence from the true distribution to the quantised one wins; of
       equal ones, the widest.
    4. The first bin counts as much as the second: zeros are exact in any range, and half of what a Relu makes would
       pull every range to nothing. (ONNX Runtime's Entropy lacks this rule: with enough bins to choose from it cuts a
       third of the range off Relu's values, and five points of top-1 off a small CNN.)

    Args:
        counts: number of magnitudes in each bin over [0, largest magnitude]; the last is not 0.
        edges: borders of the bins.
        minimum: least value; the range never goes below it.
        maximum: greatest value; the range never exceeds it.
        levels: number of quantised magnitudes.
    """
    counts = counts.astype(np.float64)
    counts[0] = counts[1]
    ends = np.arange(levels, counts.size + 1)
    divergences = _divergences(counts, ends, levels)
    best = ends[::-1][int(np.argmin(divergences[::-1]))]
    bound = float(edges[best])
    return _within(bound, minimum, maximum)


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


def _divergences(counts: np.ndarray, ends: np.ndarray, levels: int) -> np.ndarray:
    """Kullback-Leibler divergence of each candidate: the bins 0..end for `levels` levels.

    With r the bins (outliers o in the last one in use), T and M a level's sum and its mean over bins in use, N and Q
    all values and those inside, it is (sum r log r - sum T log M - o log M_last) / N + log(Q / N): no loop is needed.
    """
    total = counts.sum()
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
