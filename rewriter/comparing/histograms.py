"""How many values differ by how much: counts in logarithmic bins, summed up sample by sample."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

#: Bins of equal width on a logarithmic axis. They are fixed, so that samples add up without being kept.
BINS_PER_DECADE = 4
#: Bins below zero that double precision can reach (the smallest is 4.9e-324), and bins in all.
_LOWEST, _BINS = -1300, 2600


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of |result - reference|.

    Attributes:
        first: number of the first bin; bin n holds 10**(n / 4) <= difference < 10**((n + 1) / 4).
        counts: of the bins from the first to the last that hold any; () where nothing differs.
        zeros: number of values that do not differ.
        odd: number of values whose difference is no number: NaN or infinity on one side, another text.
    """

    first: int
    counts: tuple[int, ...]
    zeros: int = 0
    odd: int = 0

    @property
    def edges(self) -> tuple[float, ...]:
        """The bounds of the bins, one more than there are bins; () where there are none."""
        numbers = range(self.first, self.first + len(self.counts) + 1) if self.counts else ()
        return tuple(_edge(number) for number in numbers)

    @property
    def total(self) -> int:
        """Number of values."""
        return self.zeros + sum(self.counts) + self.odd

    def quantile(self, share: float) -> float:
        """A bound that at least this share of all values stays below; as fine as the bins are.

        Args:
            share: 0..1.

        Returns:
            0.0 where that many do not differ; infinity where they reach into `odd`.
        """
        wanted = share * self.total
        seen = self.zeros
        if seen >= wanted:
            return 0.0
        for count, edge in zip(self.counts, self.edges[1:], strict=True):
            seen += count
            if seen >= wanted:
                return edge
        return math.inf

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON knows."""
        return {"edges": self.edges, "counts": self.counts, "zeros": self.zeros, "odd": self.odd}


class HistogramMeter:
    """Counts differences as they come; the memory that it takes does not depend on their number."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._zeros = self._odd = 0

    def add(self, gaps: np.ndarray) -> None:
        """Counts differences; each is at least 0, infinite or NaN where it is no number."""
        flat = gaps.reshape(-1)
        finite = flat[np.isfinite(flat)]
        different = finite[finite > 0]
        self._odd += flat.size - finite.size
        self._zeros += finite.size - different.size
        numbers = np.floor(np.log10(different) * BINS_PER_DECADE).astype(np.int64) - _LOWEST
        self._counts += np.bincount(numbers, minlength=_BINS)

    def histogram(self) -> Histogram:
        """What was counted so far."""
        used = np.flatnonzero(self._counts)
        if not used.size:
            return Histogram(0, (), self._zeros, self._odd)
        first, last = int(used[0]), int(used[-1])
        return Histogram(first + _LOWEST, tuple(self._counts[first : last + 1].tolist()), self._zeros, self._odd)


def _edge(number: int) -> float:
    try:
        return math.pow(10.0, number / BINS_PER_DECADE)
    except OverflowError:
        return math.inf
