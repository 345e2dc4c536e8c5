"""What repeated calls took, and the figures made of it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

#: The percentiles of every report; 50 is the median.
PERCENTILES = (50, 90, 95, 99)
#: Share of the fastest and of the slowest calls that a trimmed mean leaves out unless the user says otherwise.
TRIM = 0.1


@dataclasses.dataclass(frozen=True)
class Latencies:
    """How long each of some calls took.

    Attributes:
        seconds: of each call, in the order in which they were made; at least one.

    Raises:
        ValueError: there is none, or one is negative or not finite.
    """

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds:
            raise ValueError("no call was timed: a latency needs at least one")
        if not all(math.isfinite(value) and value >= 0 for value in self.seconds):
            raise ValueError("a latency is negative or not finite: the clock must never go back")

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latencies:
        """From any series of seconds."""
        return cls(tuple(map(float, seconds)))

    @functools.cached_property
    def _sorted(self) -> tuple[float, ...]:
        return tuple(sorted(self.seconds))

    @property
    def calls(self) -> int:
        """How many there are."""
        return len(self.seconds)

    @property
    def total(self) -> float:
        """Seconds of all together."""
        return math.fsum(self.seconds)

    @property
    def mean(self) -> float:
        """Seconds of a call on average."""
        return self.total / self.calls

    @property
    def median(self) -> float:
        """The 50th percentile, in seconds."""
        return self.percentile(50)

    @property
    def minimum(self) -> float:
        """The fastest call, in seconds."""
        return self._sorted[0]

    @property
    def maximum(self) -> float:
        """The slowest call, in seconds."""
        return self._sorted[-1]

    @property
    def deviation(self) -> float:
        """Standard deviation of the calls (of these, not of all that could be made), in seconds."""
        mean = self.mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.seconds) / self.calls)

    def percentile(self, percent: float) -> float:
        """The time that `percent` of the calls stay within, in seconds; between two calls linear, as numpy has it.

        Raises:
            ValueError: `percent` is not between 0 and 100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"a percentile is between 0 and 100, not {percent!r}")
        place = (self.calls - 1) * percent / 100
        low = math.floor(place)
        first, second = self._sorted[low], self._sorted[min(low + 1, self.calls - 1)]
        return min(first + (second - first) * (place - low), second)

    def trimmed_mean(self, share: float = TRIM) -> float:
        """The mean without the fastest and the slowest calls, in seconds.

        Args:
            share: part of all calls that is left out at each end, rounded down; 0.1 leaves 80 % of them.

        Raises:
            ValueError: `share` is not at least 0 and below 0.5.
        """
        if not 0 <= share < 0.5:
            raise ValueError(f"the share that is trimmed must be at least 0 and below 0.5, not {share!r}")
        cut = int(self.calls * share)
        kept = self._sorted[cut : self.calls - cut]
        return math.fsum(kept) / len(kept)

    def to_dict(self, trim: float = TRIM) -> dict[str, Any]:
        """All figures in milliseconds under names with that unit, and the number of calls."""
        return {
            "calls": self.calls,
            "mean_ms": 1e3 * self.mean,
            "trimmed_mean_ms": 1e3 * self.trimmed_mean(trim),
            "min_ms": 1e3 * self.minimum,
            **{f"p{percent}_ms": 1e3 * self.percentile(percent) for percent in PERCENTILES},
            "max_ms": 1e3 * self.maximum,
            "deviation_ms": 1e3 * self.deviation,
        }


@dataclasses.dataclass(frozen=True)
class Throughput:
    """How many calls a stretch of time saw.

    Attributes:
        calls: finished calls, at least one.
        seconds: from the start of the first to the end of the last.
        threads: callers at a time.
    """

    calls: int
    seconds: float
    threads: int = 1

    @property
    def per_second(self) -> float:
        """Calls a second; infinite where the clock saw no time pass."""
        return self.calls / self.seconds if self.seconds else math.inf

    def to_dict(self, items: int = 1) -> dict[str, Any]:
        """Calls, seconds, inferences a second, and items a second when a call has `items` of them."""
        return {
            "calls": self.calls,
            "seconds": self.seconds,
            "threads": self.threads,
            "inferences_per_s": self.per_second,
            "items_per_s": items * self.per_second,
        }
