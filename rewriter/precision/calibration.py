"""Calibration: ranges of tensors, seen by running the native model on representative inputs.

"minmax" and "percentile" choose as ONNX Runtime's calibrators do, "entropy" as TensorRT's did, but within limits (see
`thresholds`). Nothing is kept of a sample once it was counted, so memory does not grow with their number:

1. Counts lie on a fine grid that doubles with the values (`histogram`), and are gathered in the bins of
   the final range at the end. ONNX Runtime's own grid, fed piece by piece, adds bins of the first piece's width, which
   has no bound when that piece is small; fed in one go it needs all samples in memory.
2. ONNX Runtime's "entropy" is not used: its default of 128 bins for 128 levels leaves it a single candidate, the whole
   range, and with more bins the zeros of a Relu drive it to ranges that are far too small.
3. Infinite values (masks of attention) are left out and logged; NaN is an error.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path

import numpy as np

from passes.model import Model
from passes.precision.ranges import RANGES_SCHEMA_VERSION, RangeTable, TensorRange
from rewriter.errors import ArtifactError, ConversionError, InputError, InvalidParameterError
from rewriter.precision.histogram import Histogram
from rewriter.precision.probe import Probe, fetchable, listed
from rewriter.precision.thresholds import entropy_range, percentile_range
from rewriter.runtime.inputs import first_line

__all__ = ["METHODS", "calibrate", "fetchable", "read_ranges", "suspicious", "write_ranges"]

#: How ranges are chosen.
METHODS = ("percentile", "entropy", "minmax")
#: Bins of magnitudes over which ranges are searched, and quantised magnitudes that "entropy" compares them with.
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
    method: str = "percentile",
    percentile: float = 99.999,
    progress: Progress | None = None,
) -> RangeTable:
    """Ranges of `tensors` over all samples.

    Args:
        model: the cleaned whole model, not spliced.
        tensors: names of values, all of them `fetchable`.
        inputs: feeds by ONNX input name; gone through once. One sample's values of all `tensors` are in memory at
            once, so a smaller batch needs less memory.
        method: "minmax": the extremes. "percentile": the symmetric range that holds `percentile` percent of the values.
            "entropy": the symmetric range that loses least information, and at most 1 % of the nonzero values.
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
    probe = Probe(model, names)
    seen: dict[str, Histogram | _Extremes] = {n: _Extremes() if method == "minmax" else Histogram() for n in names}
    infinite: Counter[str] = Counter()
    total = len(inputs) if isinstance(inputs, Sized) else None
    samples = empty = 0
    for samples, feeds in enumerate(inputs, 1):
        blank = 0
        for name, values in probe.run(samples - 1, feeds):
            blank += not values.size
            kept, low, high = _finite(name, samples - 1, values)
            if kept.size:
                seen[name].add(kept, low, high)
            infinite[name] += values.size - kept.size
        empty += bool(names) and blank == len(names)
        if blank:
            logger.warning(
                "calibration input batch %d gave no value to %d of %d tensors: is it empty?",
                samples - 1,
                blank,
                len(names),
            )
        if progress is not None:
            progress(samples, total)
    if not samples:
        raise InputError("the calibration inputs are empty: ranges are learnt from at least one sample")
    ranges = {name: _range(item, method, percentile) for name, item in seen.items() if item.total}
    label = f"percentile {percentile:g}" if method == "percentile" else method
    table = RangeTable(ranges, label, samples)
    _tell(names, table, +infinite, all_empty=empty == samples)
    return table


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


def check_method(method: str, percentile: float = 99.999) -> None:
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


class _Extremes:
    """Minimum and maximum; what `Histogram` is to the other methods."""

    def __init__(self) -> None:
        self.minimum, self.maximum, self.total = np.inf, -np.inf, 0

    def add(self, values: np.ndarray, minimum: float, maximum: float) -> None:
        """Widens the range."""
        self.minimum = min(self.minimum, minimum)
        self.maximum = max(self.maximum, maximum)
        self.total += values.size


def _finite(name: str, number: int, values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The finite values of one tensor in one sample (maybe none) and their extremes.

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
        return _finite(name, number, values[np.isfinite(values)])
    return values, low, high


def _range(seen: Histogram | _Extremes, method: str, percentile: float) -> TensorRange:
    bounds = (float(seen.minimum), float(seen.maximum))
    if isinstance(seen, Histogram) and seen.amax > 0:
        if method == "entropy":
            bounds = entropy_range(seen, BINS, LEVELS)
        else:
            bounds = percentile_range(*seen.absolute(BINS), *bounds, percentile)
    return TensorRange(*bounds)


def _tell(names: Sequence[str], table: RangeTable, infinite: Mapping[str, int], *, all_empty: bool) -> None:
    """Logs what is odd about the ranges, and what is not in them."""
    for name, count in infinite.items():
        logger.warning("calibration: %d infinite values of tensor %r are left out of its range", count, name)
    for text in suspicious(table):
        logger.warning("calibration: %s", text)
    unseen = table.missing(names)
    if unseen:
        why = (
            "all calibration input batches are empty" if all_empty else "no calibration input batch gave a finite value"
        )
        logger.warning("calibration: no range for %s: %s", listed(unseen), why)
