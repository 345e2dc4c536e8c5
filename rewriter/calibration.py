"""Calibration: ranges of tensors, seen by running the native model on representative inputs.

The rules are those of ONNX Runtime's calibrators (MinMax, Entropy, Percentile), but nothing is kept of a sample once
it was counted, so memory does not grow with their number. What differs from ONNX Runtime's:

1. "entropy" searches on 2048 bins. ONNX Runtime's default of 128 bins for 128 levels leaves it a single candidate,
   the whole range: its Entropy is its MinMax.
2. Counts lie on a fine grid that doubles with the values (`calibrating.histogram`), and are gathered in the bins of
   the final range at the end. ONNX Runtime's own grid, fed piece by piece, adds bins of the first piece's width, which
   has no bound when that piece is small; fed in one go it needs all samples in memory.
3. Infinite values (masks of attention) are left out and logged; NaN is an error.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path

import numpy as np

from passes.model import Model
from passes.precision.ranges import RANGES_SCHEMA_VERSION, RangeTable, TensorRange
from rewriter.calibrating.histogram import Histogram
from rewriter.calibrating.probe import Probe, fetchable, listed
from rewriter.calibrating.thresholds import entropy_range, percentile_range
from rewriter.errors import ArtifactError, ConversionError, InputError, InvalidParameterError
from rewriter.runtime.inputs import first_line

__all__ = ["METHODS", "calibrate", "fetchable", "read_ranges", "write_ranges"]

#: How ranges are chosen.
METHODS = ("entropy", "percentile", "minmax")
#: Bins over which ranges are searched, and quantised levels that "entropy" compares them with.
BINS = 2048
LEVELS = 128

#: Called after every sample with the number of samples done and in all (None: not known).
Progress = Callable[[int, "int | None"], object]

logger = logging.getLogger(__name__)


def calibrate(
    model: Model,
    tensors: Sequence[str],
    inputs: Iterable[Mapping[str, np.ndarray]],
    *,
    method: str = "entropy",
    percentile: float = 99.99,
    progress: Progress | None = None,
) -> RangeTable:
    """Ranges of `tensors` over all samples.

    Args:
        model: the cleaned whole model, not spliced.
        tensors: names of values, all of them `fetchable`.
        inputs: feeds by ONNX input name; gone through once, one sample in memory at a time.
        method: "minmax": the extremes. "entropy": the range that loses least information. "percentile": the symmetric
            range that holds `percentile` percent of the values. The last two need the values themselves: one sample's
            values of all `tensors` are in memory at once.
        percentile: above 0, at most 100.
        progress: called after every sample.

    Returns:
        The table. Tensors that never had a finite element are missing in it, and named in the log.

    Raises:
        InvalidParameterError: an unknown method, a percentile out of bounds, or tensors that are not fetchable.
        InputError: there is no sample.
        ConversionError: the model fails on a sample, or a tensor has NaN in it; the message names both.
        SourceError: ONNX Runtime refuses the model.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    check_method(method, percentile)
    names = list(dict.fromkeys(tensors))
    known = fetchable(model)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidParameterError(
            f"{listed(unknown)} cannot be calibrated: only floating-point values of the main graph can be observed "
            "(no constants, nothing inside If, Loop or Scan); keep their nodes out of INT8"
        )
    watch = _Extremes(model, names) if method == "minmax" else _Counts(model, names)
    total = len(inputs) if isinstance(inputs, Sized) else None
    samples = 0
    for samples, feeds in enumerate(inputs, 1):
        watch.see(samples - 1, feeds)
        if progress is not None:
            progress(samples, total)
    if not samples:
        raise InputError("the calibration inputs are empty: ranges are learnt from at least one sample")
    ranges = watch.ranges(method, percentile)
    _tell(names, ranges, watch.infinite)
    label = f"percentile {percentile:g}" if method == "percentile" else method
    return RangeTable(ranges, label, samples)


def check_method(method: str, percentile: float = 99.99) -> None:
    """Refuses what `calibrate` would refuse, early.

    Raises:
        InvalidParameterError: an unknown method, or a percentile out of bounds.
    """
    if method not in METHODS:
        raise InvalidParameterError(f"calibration method {method!r} is not known: use one of {', '.join(METHODS)}")
    if isinstance(percentile, bool) or not isinstance(percentile, (int, float)) or not 0 < percentile <= 100:
        raise InvalidParameterError(f"percentile must be above 0 and at most 100, not {percentile!r}")


def read_ranges(path: str | Path) -> RangeTable:
    """Reads what `write_ranges` wrote.

    Raises:
        ArtifactError: there is no such file, or it holds no range table that this version reads.
    """
    try:
        return RangeTable.from_json(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ArtifactError(f"the range table {str(path)!r} cannot be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{str(path)!r} is no JSON, or damaged ({error}): calibrate again") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{str(path)!r} cannot be used: {first_line(error)} (this version reads schema {RANGES_SCHEMA_VERSION}): "
            "calibrate again"
        ) from error


def write_ranges(table: RangeTable, path: str | Path) -> None:
    """Writes a table as JSON; an existing file is replaced.

    Raises:
        ArtifactError: the file cannot be written.
    """
    try:
        Path(path).write_text(table.to_json() + "\n", "utf-8")
    except OSError as error:
        raise ArtifactError(f"the range table {str(path)!r} cannot be written: {error.strerror or error}") from error


class _Watch:
    """What the methods share.

    Attributes:
        infinite: name -> number of infinite elements that were left out.
    """

    def __init__(self) -> None:
        self.infinite: dict[str, int] = {}

    def finite(self, name: str, number: int, values: np.ndarray) -> tuple[np.ndarray, float, float]:
        """The finite values of one sample (maybe none) and their extremes.

        Raises:
            ConversionError: there is NaN among the values.
        """
        if not values.size:
            return values, np.inf, -np.inf
        low, high = float(values.min()), float(values.max())
        if np.isnan(low) or np.isnan(high):
            raise ConversionError(
                f"calibration sample {number}: tensor {name!r} has NaN in {int(np.isnan(values).sum())} of "
                f"{values.size} elements: mend or leave out this sample, or keep the node that makes it out of INT8"
            )
        if np.isinf(low) or np.isinf(high):
            kept = values[np.isfinite(values)]
            self.infinite[name] = self.infinite.get(name, 0) + values.size - kept.size
            return self.finite(name, number, kept)
        return values, low, high


class _Counts(_Watch):
    """A histogram for each tensor."""

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        super().__init__()
        self._probe = Probe(model, names)
        self._histograms = {name: Histogram() for name in names}

    def see(self, number: int, feeds: Mapping[str, np.ndarray]) -> None:
        """Counts one sample."""
        found = self._probe.run(number, feeds)
        for name, histogram in self._histograms.items():
            values, low, high = self.finite(name, number, found.pop(name))
            if values.size:
                histogram.add(values, low, high)

    def ranges(self, method: str, percentile: float) -> dict[str, TensorRange]:
        """The range of every tensor that was seen."""
        return {n: _range(h, method, percentile) for n, h in self._histograms.items() if h.total}


class _Extremes(_Watch):
    """Minimum and maximum of each tensor, computed in the graph; only three numbers a tensor are fetched."""

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        super().__init__()
        self._model = model
        self._inputs = {value.name for value in model.proto.graph.input}
        self._names = names
        inside = [name for name in names if name not in self._inputs]
        self._probe = Probe(model, [name for name in names if name in self._inputs], inside)
        self._odd: dict[str, None] = {}
        self._whole: Probe | None = None
        self._bounds: dict[str, tuple[float, float]] = {}

    def see(self, number: int, feeds: Mapping[str, np.ndarray]) -> None:
        """Widens the ranges by one sample."""
        found = self._probe.run(number, feeds)
        odd = []
        for name in self._names:
            if name in self._inputs:
                self._widen(name, *self.finite(name, number, found[name])[1:])
                continue
            low, high, total = (float(value) for value in found[name])
            # ONNX Runtime's reductions pass NaN over, but its sum does not. An empty tensor gives inf, -inf and 0.
            if np.isfinite(total):
                self._widen(name, low, high)
            else:
                odd.append(name)
        if odd:
            # Rare (NaN, infinite masks, a sum that overflows): look at these tensors themselves.
            values = self._fetch(odd).run(number, feeds)
            for name in odd:
                self._widen(name, *self.finite(name, number, values[name])[1:])

    def ranges(self, method: str, percentile: float) -> dict[str, TensorRange]:  # noqa: ARG002 (as _Counts)
        """The range of every tensor that was seen."""
        return {name: TensorRange(*self._bounds[name]) for name in self._names if name in self._bounds}

    def _fetch(self, names: Sequence[str]) -> Probe:
        """A probe for the values of `names`, and of those that it was asked for before."""
        if self._whole is None or not self._odd.keys() >= set(names):
            self._odd.update(dict.fromkeys(names))
            self._whole = Probe(self._model, list(self._odd))
        return self._whole

    def _widen(self, name: str, low: float, high: float) -> None:
        if low <= high:
            before = self._bounds.get(name, (low, high))
            self._bounds[name] = (min(low, before[0]), max(high, before[1]))


def _range(histogram: Histogram, method: str, percentile: float) -> TensorRange:
    bounds = (float(histogram.minimum), float(histogram.maximum))
    if histogram.amax > 0 and method == "entropy":
        bounds = entropy_range(*histogram.signed(BINS), *bounds, LEVELS)
    elif histogram.amax > 0:
        bounds = percentile_range(*histogram.absolute(BINS), *bounds, percentile)
    return TensorRange(*bounds)


def _tell(names: Sequence[str], ranges: Mapping[str, TensorRange], infinite: Mapping[str, int]) -> None:
    """Logs what is not in the ranges."""
    for name, count in infinite.items():
        logger.warning("calibration: %d infinite values of tensor %r are left out of its range", count, name)
    unseen = [name for name in names if name not in ranges]
    if unseen:
        logger.warning("calibration: no range for %s: no sample gave a finite element", listed(unseen))
