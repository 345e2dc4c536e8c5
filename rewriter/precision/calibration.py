"""Calibration: ranges of tensors, seen by running the native model on representative inputs.

"minmax" and "percentile" choose as ONNX Runtime's calibrators do, "entropy" as TensorRT's did, but within limits (see
`thresholds`). Nothing is kept of a sample once it was counted, so memory does not grow with their number:

1. Counts lie on a fine grid that doubles with the values (`histogram`), and are gathered in the bins of
   the final range at the end. ONNX Runtime's own grid, fed piece by piece, adds bins of the first piece's width, which
   has no bound when that piece is small; fed in one go it needs all samples in memory. Here neither the order of the
   samples matters nor how they are divided among machines: ranges of the same values are equal bit for bit.
2. ONNX Runtime's "entropy" is not used: its default of 128 bins for 128 levels leaves it a single candidate, the whole
   range, and with more bins the zeros of a Relu drive it to ranges that are far too small.
3. Infinite values (masks of attention) are left out and logged; NaN is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path

import numpy as np

from passes.model import Model
from passes.precision.ranges import RANGES_SCHEMA_VERSION, RangeTable
from rewriter.errors import ArtifactError, InputError, InvalidParameterError
from rewriter.precision.counts import Counts, suspicious
from rewriter.precision.probe import Probe, fetchable, listed
from rewriter.runtime.inputs import first_line

__all__ = [
    "METHODS",
    "SampleCounter",
    "calibrate",
    "check_method",
    "check_tensors",
    "fetchable",
    "finished",
    "read_ranges",
    "suspicious",
    "write_ranges",
]

#: How ranges are chosen.
METHODS = ("percentile", "entropy", "minmax")

#: Called after every sample with the number of samples done and in all (None: not known).
Progress = Callable[[int, "int | None"], object]


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
    counter = SampleCounter(model, tensors, method)
    total = len(inputs) if isinstance(inputs, Sized) else None
    counts = counter.none()
    for number, feeds in enumerate(inputs):
        counter.add(counts, number, feeds)
        if progress is not None:
            progress(number + 1, total)
    return finished(counts, percentile)


class SampleCounter:
    """A model that is run on samples, to count the values of some tensors.

    Args:
        model: the cleaned whole model, not spliced.
        tensors: names of values, all of them `fetchable`; equal ones are counted once.
        method: one of `METHODS`.
        threads: threads of ONNX Runtime; 0 for its default.

    Raises:
        InvalidParameterError: tensors that are not fetchable.
        SourceError: ONNX Runtime refuses the model.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def __init__(self, model: Model, tensors: Sequence[str], method: str, *, threads: int = 0) -> None:
        self._names = check_tensors(model, tensors)
        self._method = method
        self._probe = Probe(model, self._names, threads=threads)

    def none(self) -> Counts:
        """Counts of no sample."""
        return Counts(self._names, self._method)

    def add(self, counts: Counts, number: int, feeds: Mapping[str, np.ndarray], where: str = "") -> None:
        """Runs one sample and counts it.

        Args:
            counts: from `none`, of this counter.
            number: which sample it is, for messages.
            feeds: by ONNX input name.
            where: further words on its place, for messages.

        Raises:
            ConversionError: the model fails, or a tensor has NaN in it; `counts` is of no use then.
        """
        counts.add(number, self._probe.run(number, feeds, where), where)


def finished(counts: Counts, percentile: float) -> RangeTable:
    """The ranges of all samples; what is odd about them is logged.

    Raises:
        InputError: there was no sample.
    """
    if not counts.samples:
        raise InputError("the calibration inputs are empty: ranges are learnt from at least one sample")
    table = counts.table(percentile)
    counts.tell(table)
    return table


def check_tensors(model: Model, tensors: Sequence[str]) -> list[str]:
    """The tensors, each once.

    Raises:
        InvalidParameterError: some are not fetchable.
    """
    names = list(dict.fromkeys(tensors))
    known = fetchable(model)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidParameterError(
            f"{listed(unknown)} cannot be calibrated: only floating-point values of the main graph can be observed "
            "(no constants, nothing inside If, Loop or Scan); keep their nodes out of INT8"
        )
    return names


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
