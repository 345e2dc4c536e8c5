"""Differences and spreads measured sample by sample: what is kept does not grow with the number of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter.comparing.heat_maps import HeatMapMeter
from rewriter.comparing.histograms import HistogramMeter
from rewriter.comparing.ranking import shared_top
from rewriter.comparing.sums import PIECE, Gaps
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
        flat = array.reshape(-1)
        for start in range(0, flat.size, PIECE):
            self._add_piece(wide(flat[start : start + PIECE]))

    def _add_piece(self, values: np.ndarray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            total = float(np.abs(values).sum())
        if not math.isfinite(total):
            finite = values[np.isfinite(values)]
            nans = int(np.isnan(values).sum())
            self._nans += nans
            self._infinities += values.size - finite.size - nans
            values = finite
        if values.size and self._numbers:
            self._finite += values.size
            self._minimum = min(self._minimum, float(values.min()))
            self._maximum = max(self._maximum, float(values.max()))
            with np.errstate(over="ignore"):
                self._sum += float(values.sum())

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
        self._fault, self._other_texts = "", 0
        self._place: Place | None = None
        self._misplaced = False
        self._gaps = Gaps()
        self._agreement = _Agreement()
        self._floating = self._text = False
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
        self._agreement.add(left, right)
        return self._add_text(left, right) if is_text(left) else self._add_numbers(left, right)

    def difference(self) -> Difference:
        """What was measured so far."""
        far = bool(self._fault or self._gaps.misplaced or self._other_texts)
        gaps = self._gaps
        mean_abs = gaps.total / gaps.count if gaps.count else 0.0
        broken = bool(self._fault) or bool(self._other_texts)  # there is no number for how far off it is
        tops = {k: shared / counted for k, (shared, counted) in self._top.items() if counted}
        return Difference(
            self._output,
            math.inf if broken else gaps.largest,
            math.inf if far else _ratio(gaps.largest, gaps.reference),
            math.inf if broken else mean_abs,
            gaps.cosine.value() if self._floating and not self._fault else None,
            None if self._fault else self._agreement.share(),
            self._elements,
            self._words(),
            math.inf if far else _ratio(gaps.total, gaps.reference_total),
            tops if not self._fault else {},
            self._place,
            gaps.reference,
            self._histogram.histogram() if self._histogram else None,
            self._heat_map.heat_map() if self._heat_map else None,
            self._text,
        )

    def _words(self) -> str:
        if self._fault:
            return self._fault
        if self._other_texts:
            return f"has {self._other_texts} other texts"
        odd = self._gaps.misplaced
        return f"has NaN or infinity in {odd} other place(s)" if odd else ""

    def _add_text(self, left: np.ndarray, right: np.ndarray) -> float:
        """Counts other texts; infinite where there are some."""
        self._text = True
        sides = texts(left), texts(right)
        gaps = np.where(sides[0] != sides[1], np.inf, 0.0)
        wrong = int(np.count_nonzero(gaps))
        self._other_texts += wrong
        if wrong and not self._misplaced:
            self._misplaced = True
            at = int(gaps.reshape(-1).argmax())
            self._set_place(at, left.shape, sides[0].reshape(-1)[at], sides[1].reshape(-1)[at])
        for meter in (self._histogram, self._heat_map):
            if meter is not None:
                meter.add(gaps)
        return math.inf if wrong else 0.0

    def _add_numbers(self, left: np.ndarray, right: np.ndarray) -> float:
        """Adds all figures of numbers, a piece at a time; the sample's own largest relative difference."""
        self._floating |= is_floating(left.dtype)
        if self._top:
            self._add_top(left, right)
        a, b = left.reshape(-1), right.reshape(-1)
        mapped = np.empty(a.size, np.float32) if self._heat_map is not None else None
        largest = scale = 0.0
        for start in range(0, a.size, PIECE):
            piece = slice(start, start + PIECE)
            before = self._gaps.largest
            sides = wide(a[piece]), wide(b[piece])
            gaps, own_scale = self._gaps.add(*sides)
            top, scale = float(gaps.max()), max(scale, own_scale)
            if top > before and not self._misplaced:
                self._misplaced = self._gaps.misplaced > 0
                at = int(gaps.argmax())
                self._set_place(start + at, left.shape, sides[0][at].item(), sides[1][at].item())
            largest = max(largest, top)
            if self._histogram is not None:
                self._histogram.add(gaps)
            if mapped is not None:
                with np.errstate(over="ignore"):
                    mapped[piece] = gaps
        if self._heat_map is not None and mapped is not None:
            self._heat_map.add(mapped.reshape(left.shape))
        return _ratio(largest, scale)

    def _add_top(self, left: np.ndarray, right: np.ndarray) -> None:
        if not is_floating(left.dtype) or left.dtype.kind == "c" or left.ndim < 2 or not left.size:
            return
        for k, counts in self._top.items():
            if k < left.shape[-1]:
                for place, number in enumerate(shared_top(comparable(left), comparable(right), k)):
                    counts[place] += number

    def _set_place(self, at: int, shape: tuple[int, ...], *values: float | complex | str) -> None:
        index = tuple(int(i) for i in np.unravel_index(at, shape))
        said = [str(v) if isinstance(v, (complex, str)) else float(v) for v in values]
        self._place = Place(self._samples - 1, index, *said)


class _Agreement:
    """See `Difference.agreement`."""

    def __init__(self) -> None:
        self._equal = self._counted = 0
        self._possible = True

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        if is_text(left):
            left, right = texts(left), texts(right)
        elif is_floating(left.dtype):
            if left.ndim != 2 or left.shape[1] < 2 or left.dtype.kind == "c":
                self._possible = False
                return
            left, right = comparable(left).argmax(-1), comparable(right).argmax(-1)
        self._counted += left.size
        self._equal += int(np.sum(left == right))

    def share(self) -> float | None:
        return self._equal / self._counted if self._possible and self._counted else None


def wide(array: np.ndarray) -> np.ndarray:
    """A copy in double precision, complex where it is."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def comparable(array: np.ndarray) -> np.ndarray:
    """The array in a type of numpy's own; as it is where it has one."""
    return array.astype(np.float32) if array.dtype.kind == "V" else array


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


def texts(array: np.ndarray) -> np.ndarray:
    """Strings of any kind as `str`, in the same shape; what is no UTF-8 is replaced."""
    decoded = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in array.reshape(-1).tolist()]
    return np.asarray(decoded, dtype=object).reshape(array.shape)
