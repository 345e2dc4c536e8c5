"""From counts to a range: ONNX Runtime's entropy and percentile rules, on any number of bins.

`onnxruntime.quantization` computes the same, but takes half a second a tensor for the entropy; here it is a fiftieth
of that. Tests hold both against each other.
"""

from __future__ import annotations

import numpy as np

#: What ONNX Runtime adds to empty bins before it compares distributions.
_SMOOTHING = 0.0001


def entropy_range(
    counts: np.ndarray, edges: np.ndarray, minimum: float, maximum: float, levels: int
) -> tuple[float, float]:
    """The range whose quantised distribution says most about the true one (least Kullback-Leibler divergence).

    Args:
        counts: number of values in each bin; the bins lie symmetrically around zero.
        edges: their borders, one more than bins.
        minimum: least value; the range never goes below it.
        maximum: greatest value; the range never exceeds it.
        levels: number of quantised values a candidate range is divided into.
    """
    size = counts.size
    middle, half = size // 2, levels // 2
    sums = np.concatenate(([0], np.cumsum(counts)))
    filled = np.concatenate(([0], np.cumsum(counts != 0)))
    best, bounds = np.inf, (edges[middle - half], edges[min(middle + half + 1, size)])
    for reach in range(half, middle + 1):
        start, end = middle - reach, min(middle + reach + 1, size)
        divergence = _divergence(counts, sums, filled, start, end, levels)
        if divergence < best:
            best, bounds = divergence, (edges[start], edges[end])
    return max(float(bounds[0]), minimum), min(float(bounds[1]), maximum)


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
    return max(-bound, minimum), min(bound, maximum)


def _divergence(counts: np.ndarray, sums: np.ndarray, filled: np.ndarray, start: int, end: int, levels: int) -> float:
    """How badly the bins start..end, quantised to `levels`, stand for all bins."""
    true = counts[start:end].copy()
    true[0] += sums[start]
    true[-1] += sums[-1] - sums[end]
    width = true.size // levels
    cuts = start + width * np.arange(levels + 1)
    merged = np.diff(sums[cuts])
    merged[-1] += sums[end] - sums[cuts[-1]]
    used = np.diff(filled[cuts])
    # The outer bins hold the outliers in `true`, so they may be in use although they are empty in `counts`.
    used[0] += int(true[0] != 0) - int(counts[start] != 0)
    if end == cuts[-1]:
        used[-1] += int(true[-1] != 0) - int(counts[end - 1] != 0)
    heights = np.where(used > 0, merged / np.maximum(used, 1), 0).astype(np.int64)
    quantised = np.zeros(true.size, np.int64)
    quantised[: width * levels] = np.repeat(heights, width)
    p, q = _smooth(true), _smooth(quantised)
    if p is None or q is None:
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))


def _smooth(counts: np.ndarray) -> np.ndarray | None:
    """Gives empty bins a little of the others; None when all are empty."""
    empty = counts == 0
    zeros = int(empty.sum())
    if zeros == counts.size:
        return None
    share = _SMOOTHING * zeros / (counts.size - zeros)
    return counts.astype(np.float32) + np.where(empty, _SMOOTHING, -share).astype(np.float32)
