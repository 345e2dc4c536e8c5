"""Whether two outputs put the same classes on top."""

from __future__ import annotations

import numpy as np


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Marks the k largest elements of each row; of equal ones those that come first.

    NaN is the largest, as it is for numpy's argmax.

    Args:
        scores: [..., classes], real numbers.
        k: 1 up to the number of classes.

    Returns:
        Booleans of the same shape, k of them True in a row.
    """
    scores = np.where(np.isnan(scores), np.inf, scores)
    least = np.partition(scores, -k, axis=-1)[..., -k, None]
    above = scores > least
    level = scores == least
    # Those that come first among equals, as many as there is room for.
    room = k - above.sum(axis=-1, keepdims=True)
    marked: np.ndarray = above | (level & (np.cumsum(level, axis=-1) <= room))
    return marked


def shared_top(reference: np.ndarray, result: np.ndarray, k: int) -> tuple[int, int]:
    """How many of the k largest elements of each row of the reference are among those of the result.

    Returns:
        (so many, out of so many): summed over all rows.
    """
    shared = top(reference, k) & top(result, k)
    rows = shared.size // shared.shape[-1]
    return int(shared.sum()), k * rows
