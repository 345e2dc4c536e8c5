"""Counts of values on a grid that grows with them: a fixed amount of memory, whatever comes and in how many pieces."""

from __future__ import annotations

import numpy as np

#: Bins on either side of zero. Far finer than what thresholds are searched on, so that the grid hardly matters there.
HALF = 1 << 14
#: Values counted at once: the temporary arrays stay in the processor's cache (7 times quicker than 1 << 20).
_CHUNK = 1 << 16
#: Scales that float32 arithmetic can hold with room to spare.
_FLOAT32_SCALES = (1e-30, 1e30)


class Histogram:
    """How often values fall into 2 * HALF equal bins over [-limit, limit].

    1. The first values that are not all zero set `limit` to their largest magnitude.
    2. A larger value doubles `limit` as often as needed; bins merge, none is split, so no count is ever guessed.
    3. Nothing depends on how the values are divided into calls, but for `limit`'s starting point.

    Attributes:
        minimum, maximum: the extremes so far (infinities the wrong way round before the first value).
        total: number of values.
        zeros: how many of them are exactly 0.
    """

    def __init__(self) -> None:
        self.minimum = np.inf
        self.maximum = -np.inf
        self.total = 0
        self.zeros = 0
        self._limit = 0.0
        self._early = 0  # zeros that came before there was a grid
        self._counts = np.zeros(2 * HALF, np.int64)

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
        self.minimum = min(self.minimum, minimum)
        self.maximum = max(self.maximum, maximum)
        self.total += values.size
        self.zeros += values.size - int(np.count_nonzero(values))
        if self.amax == 0.0:
            self._early += values.size
            return
        self._reach(self.amax)
        scale = HALF / self._limit
        kind = np.float32 if _FLOAT32_SCALES[0] < scale < _FLOAT32_SCALES[1] else np.float64
        counts = np.zeros(2 * HALF + 1, np.int64)
        for start in range(0, values.size, _CHUNK):
            places = values[start : start + _CHUNK] * kind(scale)
            places += HALF
            counts += np.bincount(places.astype(np.intp), minlength=counts.size)
        self._counts += counts[:-1]
        self._counts[-1] += counts[-1]  # the last bin includes its upper edge

    @property
    def width(self) -> float:
        """Width of a bin of the grid: so far may a count lie from where `absolute` puts it; 0.0 without a grid."""
        return self._limit / HALF

    def absolute(self, bins: int, high: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Counts of magnitudes in `bins` equal bins over [0, high] and their edges (float32).

        Each fine bin goes whole to the bin that its middle lies in.

        Args:
            bins: number of bins.
            high: upper end, above 0; what lies beyond is not counted. Default: `amax`, so that nothing does.
        """
        counts = self._counts[HALF:] + self._counts[HALF - 1 :: -1]
        counts[0] += self._early
        end = high or self.amax or 1.0
        places = ((np.arange(HALF) + 0.5) * ((self.width or end / HALF) * bins / end)).astype(np.intp)
        if high is None:
            places = np.minimum(places, bins - 1)
        coarse = np.zeros(bins + 1, np.int64)
        np.add.at(coarse, np.minimum(places, bins), counts)
        return coarse[:bins], np.linspace(0.0, end, bins + 1, dtype=np.float32)

    def _reach(self, amax: float) -> None:
        """Widens the grid until it covers `amax`."""
        if not self._limit:
            self._limit = amax
        doublings = 0
        while self._limit < amax:
            self._limit *= 2
            doublings += 1
        if doublings:
            # The bin of [j w, (j+1) w) goes to that of floor(j / 2^doublings); 62 is as far as int64 can be shifted.
            places = (np.arange(-HALF, HALF) >> min(doublings, 62)) + HALF
            merged = np.zeros_like(self._counts)
            np.add.at(merged, places, self._counts)
            self._counts = merged
