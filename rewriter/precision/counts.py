"""What calibration has counted, as values that merge into the same in any order and however the samples are divided."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from passes.precision.ranges import RangeTable, TensorRange
from rewriter.errors import ConversionError
from rewriter.precision.histogram import Extremes, Histogram
from rewriter.precision.probe import listed
from rewriter.precision.thresholds import entropy_range, percentile_range

#: Bins of magnitudes over which ranges are searched, and quantised magnitudes that "entropy" compares them with.
BINS = 2048
LEVELS = 128

logger = logging.getLogger(__name__)


class Counts:
    """Of every tensor what its range depends on; of the samples how many there were, and which gave no values.

    The memory does not grow with the samples: 8 bytes x `histogram.FINE` a tensor, next to nothing for "minmax". It can
    be pickled.

    Args:
        tensors: names of values.
        method: how ranges are chosen from them: "minmax", "percentile" or "entropy".

    Attributes:
        samples: how many were counted.
    """

    def __init__(self, tensors: Sequence[str], method: str) -> None:
        self.samples = 0
        self._method = method
        self._seen = {name: Extremes() if method == "minmax" else Histogram() for name in tensors}
        self._infinite: Counter[str] = Counter()
        self._blank: dict[int, int] = {}  # sample -> how many tensors had no element in it

    def add(self, number: int, values: Iterable[tuple[str, np.ndarray]], where: str = "") -> None:
        """Counts one sample.

        Args:
            number: which sample it is, for messages; every one has its own.
            values: value names with their elements, float32 in one dimension: what `Probe.run` yields.
            where: further words on the sample's place, for messages: " (rows 8 to 15)".

        Raises:
            ConversionError: a tensor has NaN in it; what was counted so far is of no use then.
        """
        blank = 0
        for name, array in values:
            blank += not array.size
            kept, low, high = _finite(name, f"calibration sample {number}{where}", array)
            if kept.size:
                self._seen[name].add(kept, low, high)
            self._infinite[name] += array.size - kept.size
        if blank:
            self._blank[number] = blank
        self.samples += 1

    def merge(self, other: Counts) -> None:
        """Adds what another one counted of the same tensors by the same method, on other samples; it stays as it was.

        Raises:
            ValueError: tensors or method are others.
        """
        if (self._method, list(self._seen)) != (other._method, list(other._seen)):
            raise ValueError("only counts of the same tensors by the same method can be merged")
        for name, seen in other._seen.items():
            self._seen[name].merge(seen)
        self.samples += other.samples
        self._infinite.update(other._infinite)
        self._blank.update(other._blank)

    def table(self, percentile: float) -> RangeTable:
        """The ranges. Tensors that never had a finite element are missing in it.

        Args:
            percentile: above 0, at most 100; of "percentile" only.
        """
        ranges = {name: self._range(seen, percentile) for name, seen in self._seen.items() if seen.total}
        label = f"percentile {percentile:g}" if self._method == "percentile" else self._method
        return RangeTable(ranges, label, self.samples)

    def tell(self, table: RangeTable) -> None:
        """Logs what is odd about these counts and the ranges made of them: once for all samples."""
        tensors = len(self._seen)
        for number, blank in sorted(self._blank.items()):
            logger.warning(
                "calibration input batch %d gave no value to %d of %d tensors: is it empty?", number, blank, tensors
            )
        for name in self._seen:
            if self._infinite[name]:
                logger.warning(
                    "calibration: %d infinite values of tensor %r are left out of its range", self._infinite[name], name
                )
        for text in suspicious(table):
            logger.warning("calibration: %s", text)
        unseen = table.missing(self._seen)
        if unseen:
            empty = sum(blank == tensors for blank in self._blank.values()) == self.samples
            why = (
                "all calibration input batches are empty" if empty else "no calibration input batch gave a finite value"
            )
            logger.warning("calibration: no range for %s: %s", listed(unseen), why)

    def _range(self, seen: Extremes, percentile: float) -> TensorRange:
        bounds = (float(seen.minimum), float(seen.maximum))
        if isinstance(seen, Histogram) and seen.amax > 0:
            if self._method == "entropy":
                bounds = entropy_range(seen, BINS, LEVELS)
            else:
                bounds = percentile_range(*seen.absolute(BINS), *bounds, percentile)
        return TensorRange(*bounds)


def suspicious(table: RangeTable, wanted: Iterable[str] = ()) -> list[str]:
    """What is odd about a calibration, one sentence a finding: for the report.

    Args:
        table: the result.
        wanted: tensors that should have a range: those without one are told, too.
    """
    inputs = f" in all {table.samples} calibration input batches" if table.samples > 1 else " in calibration"
    found = [
        f"tensor {name!r} was 0{inputs}, so any other value is clipped to -1..1: calibrate with typical inputs"
        for name, values in table.ranges.items()
        if values.amax == 0
    ]
    found += [
        f"tensor {name!r} has no range: calibration saw no finite value of it (an empty batch, or infinities only)"
        for name in table.missing(wanted)
    ]
    return found


def _finite(name: str, sample: str, values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The finite values of one tensor in one sample (maybe none) and their extremes.

    Raises:
        ConversionError: there is NaN among the values.
    """
    if not values.size:
        return values, np.inf, -np.inf
    low, high = float(values.min()), float(values.max())
    if np.isnan(low) or np.isnan(high):
        raise ConversionError(
            f"{sample}: tensor {name!r} has NaN in {int(np.isnan(values).sum())} of {values.size} elements: mend or "
            "leave out this sample, or keep the node that makes it out of INT8"
        )
    if np.isinf(low) or np.isinf(high):
        return _finite(name, sample, values[np.isfinite(values)])
    return values, low, high
