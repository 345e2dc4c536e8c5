"""Whether two outputs put the same classes on top."""

from __future__ import annotations

import numpy as np

#: Elements that are ranked at once.
_PIECE = 1 << 18


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
    marked: np.ndarray = scores >= least
    if np.count_nonzero(marked) > k * (marked.size // marked.shape[-1]):
        # Those that come first among equals, as many as there is room for.
        above = scores > least
        level = marked & ~above
        room = k - above.sum(axis=-1, keepdims=True)
        marked = above | (level & (np.cumsum(level, axis=-1) <= room))
    return marked


def shared_top(reference: np.ndarray, result: np.ndarray, k: int) -> tuple[int, int]:
    """How many of the k largest elements of each row of the reference are among those of the result.

    Args:
        reference: [..., classes].
        result: [..., classes].
        k: 1 up to the number of classes.

    Returns:
        (so many, out of so many): summed over all rows.
    """
    classes = reference.shape[-1]
    a, b = reference.reshape(-1, classes), result.reshape(-1, classes)
    step = max(1, _PIECE // classes)
    shared = sum(
        int(np.count_nonzero(top(a[row : row + step], k) & top(b[row : row + step], k)))
        for row in range(0, len(a), step)
    )
    return shared, k * len(a)
