"""Differences and spreads measured sample by sample: what is kept does not grow with the number of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter.comparing.heat_maps import HeatMapMeter
from rewriter.comparing.histograms import HistogramMeter
from rewriter.comparing.ranking import shared_top
from rewriter.comparing.values import Difference, Place, Spread


class SpreadMeter:
    """Measures the values of one output of one runner."""

    def __init__(self, runner: str, output: str) -> None:
        self._of = runner, output
        self._dtype, self._shape = "", ()  # type: tuple[str, tuple[int, ...]]
        self._minimum, self._maximum, self._sum = math.inf, -math.inf, 0.0
        self._finite = self._nans = self._infinities = 0
        self._started = self._numbers = False

    def add(self, value: np.ndarray) -> None:
        """Counts the values of one sample."""
        array = np.asarray(value)
        if not self._started:
            self._started = True
            self._numbers = not is_text(array) and array.dtype.kind != "c"
            self._dtype, self._shape = "string" if is_text(array) else array.dtype.name, tuple(array.shape)
        if is_text(array):
            return
        values = wide(array).reshape(-1)
        finite = values[np.isfinite(values)]
        nans = int(np.isnan(values).sum())
        self._nans += nans
        self._infinities += int(values.size - finite.size - nans)
        if finite.size and self._numbers:
            self._finite += finite.size
            self._minimum = min(self._minimum, float(finite.min()))
            self._maximum = max(self._maximum, float(finite.max()))
            with np.errstate(over="ignore"):
                self._sum += float(finite.sum())

    def spread(self) -> Spread:
        """What was measured so far."""
        known = (None, None, None)  # type: tuple[float | None, float | None, float | None]
        if self._finite:
            known = self._minimum, self._maximum, self._sum / self._finite
        return Spread(*self._of, self._dtype, self._shape, *known, self._nans, self._infinities)


class DifferenceMeter:
    """Measures how one output of two runners differs.

    Every kind of number counts as a number (booleans as 0 and 1); text is equal or infinitely different.

    Args:
        output: its name.
        top_k: the k of `Difference.top_k`.
        histogram, heat_map: whether to make them.
    """

    def __init__(
        self, output: str, *, top_k: Sequence[int] = (), histogram: bool = False, heat_map: bool = False
    ) -> None:
        self._output = output
        self._elements = self._samples = 0
        self._fault, self._other_places, self._other_texts = "", 0, 0
        self._place: Place | None = None
        self._misplaced = False
        self._gaps = _Gaps()
        self._sample_scale = 0.0  # the largest magnitude of the reference in the latest sample
        self._cosine = _Cosine()
        self._agreement = _Agreement()
        self._floating, self._text = False, False
        self._top = {k: [0, 0] for k in top_k}
        self._histogram = HistogramMeter() if histogram else None
        self._heat_map = HeatMapMeter() if heat_map else None

    def add(self, reference: np.ndarray, result: np.ndarray) -> float:
        """Measures one sample.

        Returns:
            The sample's own largest relative difference: infinite where something is wrong beyond numbers.
        """
        left, right = np.asarray(reference), np.asarray(result)
        self._samples += 1
        self._elements += left.size
        fault = _mismatch(left, right)
        if fault:
            self._fault = self._fault or fault
            return math.inf
        self._floating |= is_floating(left.dtype)
        self._agreement.add(left, right)
        gaps = self._add_text(left, right) if is_text(left) else self._add_numbers(left, right)
        for meter in (self._histogram, self._heat_map):
            if meter is not None:
                meter.add(gaps)
        return _ratio(float(gaps.max(initial=0.0)), self._sample_scale)

    def difference(self) -> Difference:
        """What was measured so far."""
        far = bool(self._fault or self._other_places or self._other_texts)
        gaps = self._gaps
        mean_abs = gaps.total / gaps.count if gaps.count else 0.0
        broken = bool(self._fault) or bool(self._other_texts)  # there is no number for how far off it is
        tops = {k: shared / counted for k, (shared, counted) in self._top.items() if counted}
        return Difference(
            self._output,
            math.inf if broken else gaps.largest,
            math.inf if far else _ratio(gaps.largest, gaps.reference),
            math.inf if broken else mean_abs,
            self._cosine.value() if self._floating and not self._fault else None,
            None if self._fault else self._agreement.share(),
            self._elements,
            self._words(),
            math.inf if far else _ratio(gaps.total, gaps.reference_total),
            tops if not self._fault else {},
            self._place,
            self._histogram.histogram() if self._histogram else None,
            self._heat_map.heat_map() if self._heat_map else None,
        )

    def _words(self) -> str:
        if self._fault:
            return self._fault
        if self._other_texts:
            return f"has {self._other_texts} other texts"
        return f"has NaN or infinity in {self._other_places} other place(s)" if self._other_places else ""

    def _add_text(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Counts other texts; an array of 0 for equal ones and infinity for others."""
        texts = _text(left), _text(right)
        gaps = np.where(texts[0] != texts[1], np.inf, 0.0)
        self._other_texts += int(np.count_nonzero(gaps))
        if np.any(gaps) and not self._misplaced:
            self._misplaced = True
            at = int(gaps.reshape(-1).argmax())
            self._set_place(at, left.shape, texts[0].reshape(-1)[at], texts[1].reshape(-1)[at])
        return gaps

    def _add_numbers(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Adds all figures of numbers; their differences, infinite where one is no number."""
        shape = left.shape
        if self._top:
            self._add_top(left, right)
        a, b = wide(left).reshape(-1), wide(right).reshape(-1)
        finite = np.isfinite(a) & np.isfinite(b)
        with np.errstate(invalid="ignore", over="ignore"):
            gaps = np.abs(b - a)
            misplaced = ~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))
        gaps[~finite] = 0.0
        previous = self._gaps.largest
        self._sample_scale = self._gaps.add(gaps, a, finite)
        if self._floating:
            self._cosine.add(a[finite], b[finite])
        wrong = int(np.count_nonzero(misplaced))
        self._other_places += wrong
        if wrong and not self._misplaced:
            self._misplaced = True
            at = int(misplaced.argmax())
            self._set_place(at, shape, a[at].item(), b[at].item())
        elif gaps.size and not self._misplaced and self._gaps.largest > previous:
            at = int(gaps.argmax())
            self._set_place(at, shape, a[at].item(), b[at].item())
        gaps[misplaced] = np.inf
        found: np.ndarray = gaps.reshape(shape)
        return found

    def _add_top(self, left: np.ndarray, right: np.ndarray) -> None:
        if not is_floating(left.dtype) or left.dtype.kind == "c" or left.ndim < 2 or not left.size:
            return
        for k, counts in self._top.items():
            if k < left.shape[-1]:
                for place, number in enumerate(shared_top(wide(left), wide(right), k)):
                    counts[place] += number

    def _set_place(self, at: int, shape: tuple[int, ...], *values: float | complex | str) -> None:
        index = tuple(int(i) for i in np.unravel_index(at, shape))
        said = [str(v) if isinstance(v, (complex, str)) else float(v) for v in values]
        self._place = Place(self._samples - 1, index, *said)


class _Gaps:
    """Sums and largest values of differences and of the finite values that they are relative to."""

    def __init__(self) -> None:
        self.largest = self.total = self.reference = self.reference_total = 0.0
        self.count = 0

    def add(self, gaps: np.ndarray, reference: np.ndarray, finite: np.ndarray) -> float:
        """Adds those of one sample; returns the largest magnitude of its reference."""
        with np.errstate(over="ignore", invalid="ignore"):
            sizes = np.abs(np.where(finite, reference, 0.0))
            self.largest = max(self.largest, float(gaps.max(initial=0.0)))
            largest = float(sizes.max(initial=0.0))
            self.reference = max(self.reference, largest)
            self.total += float(gaps.sum())
            self.reference_total += float(sizes.sum())
        self.count += int(np.count_nonzero(finite))
        return largest


class _Cosine:
    """The angle between two long vectors. What is kept is scaled, for the squares of large values would overflow."""

    def __init__(self) -> None:
        self._scales = (0.0, 0.0)
        self._squares = (0.0, 0.0)
        self._dot = 0.0

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        old = self._scales
        new = tuple(max(s, float(np.abs(v).max(initial=0.0))) for s, v in zip(old, (left, right), strict=True))
        shrink = [o / n if n else 1.0 for o, n in zip(old, new, strict=True)]
        a, b = left / (new[0] or 1.0), right / (new[1] or 1.0)
        self._squares = (
            self._squares[0] * shrink[0] ** 2 + float(np.real(np.vdot(a, a))),
            self._squares[1] * shrink[1] ** 2 + float(np.real(np.vdot(b, b))),
        )
        self._dot = self._dot * shrink[0] * shrink[1] + float(np.real(np.vdot(a, b)))
        self._scales = (new[0], new[1])

    def value(self) -> float | None:
        if not all(self._scales):
            return None
        cosine = self._dot / (math.sqrt(self._squares[0]) * math.sqrt(self._squares[1]))
        return max(-1.0, min(1.0, cosine))


class _Agreement:
    """See `Difference.agreement`."""

    def __init__(self) -> None:
        self._equal = self._counted = 0
        self._possible = True

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        if is_text(left):
            left, right = _text(left), _text(right)
        elif is_floating(left.dtype):
            if left.ndim != 2 or left.shape[1] < 2 or left.dtype.kind == "c":
                self._possible = False
                return
            left, right = wide(left).argmax(-1), wide(right).argmax(-1)
        self._counted += left.size
        self._equal += int(np.sum(left == right))

    def share(self) -> float | None:
        return self._equal / self._counted if self._possible and self._counted else None


def wide(array: np.ndarray) -> np.ndarray:
    """A copy in double precision, complex where it is."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def is_floating(dtype: np.dtype[Any]) -> bool:
    """True for what has a fraction."""
    return dtype.kind in "fc" or dtype.kind == "V"  # ml_dtypes (bfloat16, float8) have the kind "V"


def is_text(array: np.ndarray) -> bool:
    """True for every kind of strings."""
    return array.dtype.kind in "OSU"


def _mismatch(left: np.ndarray, right: np.ndarray) -> str:
    """Why the values cannot be held against each other; "" where they can."""
    if left.shape != right.shape:
        return f"has shape {list(right.shape)} instead of {list(left.shape)}"
    if is_text(left) != is_text(right):
        return f"holds {right.dtype.name} values instead of {left.dtype.name}"
    return ""


def _ratio(part: float, whole: float) -> float:
    if whole:
        return part / whole
    return math.inf if part else 0.0


def _text(array: np.ndarray) -> np.ndarray:
    decoded = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in array.reshape(-1).tolist()]
    return np.asarray(decoded, dtype=object).reshape(array.shape)
