"""Counts of values in a fixed amount of memory, which are the same however the values are divided and in what order.

That holds bit for bit, so counts of several machines may be merged: nothing here adds floating-point numbers up.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

#: Bins of magnitudes. At least half of them are in use, far more than thresholds are searched on.
FINE = 1 << 15
#: Values counted at once: the temporary arrays stay in the processor's cache (7 times quicker than 1 << 20).
_CHUNK = 1 << 16
#: Up to this power of two scales are float32 themselves; beyond it the tiny values of such a grid need float64.
_FLOAT32_POWER = 127


class Extremes:
    """The least and the greatest of all values.

    Attributes:
        minimum, maximum: the extremes so far (infinities the wrong way round before the first value); never -0.0,
            which would depend on the order.
        total: number of values.
    """

    def __init__(self) -> None:
        self.minimum = math.inf
        self.maximum = -math.inf
        self.total = 0

    @property
    def amax(self) -> float:
        """Largest magnitude so far; 0.0 before the first value."""
        return max(abs(self.minimum), abs(self.maximum)) if self.total else 0.0

    def add(self, values: np.ndarray, minimum: float, maximum: float) -> None:
        """Counts values.

        Args:
            values: float32, one dimension, all finite, not empty.
            minimum: the least of them.
            maximum: the greatest of them.
        """
        self._widen(minimum, maximum, values.size)

    def merge(self, other: Extremes) -> None:
        """Adds what another one counted, which must be of the same kind; it is left as it was."""
        self._widen(other.minimum, other.maximum, other.total)

    def _widen(self, minimum: float, maximum: float, total: int) -> None:
        self.minimum = min(self.minimum, minimum) + 0.0
        self.maximum = max(self.maximum, maximum) + 0.0
        self.total += total


class Histogram(Extremes):
    """How often magnitudes fall into `FINE` equal bins over [0, limit).

    1. `limit` is the least power of two above the largest magnitude: of all values, not of the first ones.
    2. A value v lies in bin floor(|v| / width). The width is a power of two, too, so this is exact; on a grid twice as
       wide the value lies in half that bin, rounded down. So bins merge when `limit` grows, none is split, and no
       count is ever guessed or moved.
    3. By 1 and 2 the counts depend on the values alone: `add` and `merge` in any order, of any parts, give the same.

    Attributes:
        zeros: how many values are exactly 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.zeros = 0
        self._power: int | None = None  # limit = 2 ** _power; None while all values are 0
        self._counts = np.zeros(FINE, np.int64)

    def add(self, values: np.ndarray, minimum: float, maximum: float) -> None:
        """Counts values; see `Extremes.add`."""
        super().add(values, minimum, maximum)
        self.zeros += values.size - int(np.count_nonzero(values))
        self._reach(_power_above(self.amax))
        if self._power is None:
            self._counts[0] += values.size
            return
        power = FINE.bit_length() - 1 - self._power
        kind = np.float32 if power <= _FLOAT32_POWER else np.float64
        for start in range(0, values.size, _CHUNK):
            # Below the normal numbers of float32 a product is rounded, but never up to 1: its bin is 0 all the same.
            places = np.multiply(np.abs(values[start : start + _CHUNK]), kind(2.0**power), dtype=kind)
            self._counts += np.bincount(places.astype(np.intp), minlength=FINE)

    def merge(self, other: Extremes) -> None:
        """Adds what another histogram counted; it is left as it was.

        Raises:
            TypeError: the other one has no counts.
        """
        if not isinstance(other, Histogram):
            raise TypeError("a histogram can be merged with another histogram only")
        super().merge(other)
        self.zeros += other.zeros
        self._reach(other._power)
        self._counts += _coarser(other._counts, other._doublings(self._power))

    @property
    def width(self) -> float:
        """Width of a bin of the grid: so far may a count lie from where `absolute` puts it; 0.0 without a grid."""
        return 0.0 if self._power is None else math.ldexp(1.0, self._power) / FINE

    def absolute(self, bins: int, high: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Counts of magnitudes in `bins` equal bins over [0, high] and their edges (float32).

        Each fine bin goes whole to the bin that its middle lies in.

        Args:
            bins: number of bins.
            high: upper end, above 0; what lies beyond is not counted. Default: `amax`, so that nothing does.
        """
        end = high or self.amax or 1.0
        places = ((np.arange(FINE) + 0.5) * ((self.width or end / FINE) * bins / end)).astype(np.intp)
        if high is None:
            places = np.minimum(places, bins - 1)
        coarse = np.zeros(bins + 1, np.int64)
        np.add.at(coarse, np.minimum(places, bins), self._counts)
        return coarse[:bins], np.linspace(0.0, end, bins + 1, dtype=np.float32)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the counts in as few bytes as they need, for they travel between machines."""
        used = int(np.max(np.flatnonzero(self._counts), initial=-1)) + 1
        small = np.min_scalar_type(int(self._counts.max()))
        return {**vars(self), "_counts": self._counts[:used].astype(small)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._counts = np.zeros(FINE, np.int64)
        self._counts[: state["_counts"].size] = state["_counts"]

    def _reach(self, power: int | None) -> None:
        """Widens the grid to 2 ** power, if it is narrower."""
        if power is not None and (self._power is None or power > self._power):
            self._counts = _coarser(self._counts, self._doublings(power))
            self._power = power

    def _doublings(self, power: int | None) -> int:
        """How often the grid has to be doubled to reach 2 ** power; 0 where all values are 0: they lie in any bin 0."""
        return 0 if self._power is None or power is None else power - self._power


def _power_above(amax: float) -> int | None:
    """The least n with amax < 2 ** n; None for 0."""
    return math.frexp(amax)[1] if amax else None


def _coarser(counts: np.ndarray, doublings: int) -> np.ndarray:
    """The counts on a grid that is 2 ** doublings times as wide; the same array where it is the same grid."""
    if not doublings:
        return counts
    merged = np.zeros_like(counts)
    size = 1 << min(doublings, FINE.bit_length() - 1)
    merged[: FINE // size] = counts.reshape(-1, size).sum(axis=1)
    return merged
