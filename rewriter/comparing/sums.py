"""Figures of two long vectors of numbers, added up piece by piece."""

from __future__ import annotations

import math

import numpy as np

#: Elements of a piece: so few that its copies in double precision stay in a processor's cache.
PIECE = 1 << 16
#: Squares and products of values of this size neither overflow nor vanish.
_SMALL, _LARGE = 1e-100, 1e100


class Gaps:
    """Sums and largest values of differences, and of the finite values that they are relative to.

    Attributes:
        largest, total: of |result - reference| where both are finite.
        reference, reference_total: largest value and sum of |reference|, likewise.
        count: number of such places.
        misplaced: number of places where NaN or an infinity stands on one side only, or two infinities differ.
    """

    def __init__(self) -> None:
        self.largest = self.total = self.reference = self.reference_total = 0.0
        self.count = self.misplaced = 0
        self.cosine = Cosine()

    def add(self, reference: np.ndarray, result: np.ndarray) -> tuple[np.ndarray, float]:
        """Adds one piece.

        Args:
            reference: [n], double precision or complex.
            result: [n], likewise.

        Returns:
            |result - reference| [n]: infinite at misplaced values, 0 where both are the same infinity or NaN; and the
            largest finite |reference|.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            gaps: np.ndarray = np.abs(result - reference)
            total = float(gaps.sum())
            if math.isfinite(total):  # so all values are
                return gaps, self._add_finite(reference, result, gaps, total)
            finite = np.isfinite(reference) & np.isfinite(result)
            same = (reference == result) | (np.isnan(reference) & np.isnan(result))
            kept = gaps[finite]
            scale = self._add_finite(reference[finite], result[finite], kept, float(kept.sum()))
            gaps[~finite] = np.where(same[~finite], 0.0, np.inf)
            self.misplaced += int(np.count_nonzero(~finite & ~same))
        return gaps, scale

    def _add_finite(self, reference: np.ndarray, result: np.ndarray, gaps: np.ndarray, total: float) -> float:
        sizes = np.abs(reference)
        scale = float(sizes.max(initial=0.0))
        self.largest = max(self.largest, float(gaps.max(initial=0.0)))
        self.total += total
        self.reference = max(self.reference, scale)
        self.reference_total += float(sizes.sum())
        self.count += gaps.size
        self.cosine.add(reference, result, scale)
        return scale


class Cosine:
    """The angle between two long vectors. What is kept is scaled, for the squares of large values would overflow."""

    def __init__(self) -> None:
        self._scales = (0.0, 0.0)
        self._squares = (0.0, 0.0)
        self._dot = 0.0

    def add(self, left: np.ndarray, right: np.ndarray, largest: float) -> None:
        """Adds one piece of finite values; `largest` is that of the left ones' magnitudes."""
        own = largest, max(float(np.abs(right).max(initial=0.0)), 0.0)
        if not any(own):
            return
        new = max(self._scales[0], own[0]), max(self._scales[1], own[1])
        shrink = [old / scale if scale else 1.0 for old, scale in zip(self._scales, new, strict=True)]
        a, b = new[0] or 1.0, new[1] or 1.0
        if not all(_SMALL < size < _LARGE for size in own):
            left, right, rest = left / a, right / b, (1.0, 1.0)
        else:
            rest = a, b
        squares = _dot(left, left), _dot(right, right)
        # One division after the other: the product of two scales may overflow.
        self._squares = (
            self._squares[0] * shrink[0] ** 2 + squares[0] / rest[0] / rest[0],
            self._squares[1] * shrink[1] ** 2 + squares[1] / rest[1] / rest[1],
        )
        dot = _dot(left, right)
        self._dot = self._dot * shrink[0] * shrink[1] + dot / rest[0] / rest[1]
        self._scales = new

    def value(self) -> float | None:
        """The cosine; None where one of the vectors is zero."""
        if not all(self._scales):
            return None
        cosine = self._dot / (math.sqrt(self._squares[0]) * math.sqrt(self._squares[1]))
        return max(-1.0, min(1.0, cosine))


def _dot(left: np.ndarray, right: np.ndarray) -> float:
    # Not by BLAS: its threads cost more than these few numbers, above all where others compute, too.
    if left.dtype.kind == "c":
        return float(np.real(left.conj() * right).sum())
    return float(np.einsum("i,i->", left, right))
