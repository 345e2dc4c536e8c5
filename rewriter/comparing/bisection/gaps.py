"""How far one value is off, summed over samples without keeping any of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from rewriter.comparing.meters import is_text, texts, wide


@dataclasses.dataclass(frozen=True)
class Gap:
    """What was seen of one value in two computations, over all samples so far.

    Attributes:
        max_abs: largest |result - reference| where both are finite.
        largest: largest |reference| where both are finite.
        fault: what is wrong beyond numbers (another shape, NaN or infinity in other places, other texts), or "".
    """

    max_abs: float = 0.0
    largest: float = 0.0
    fault: str = ""

    @property
    def relative(self) -> float:
        """max_abs / largest, as `Difference.max_rel`; infinite after a fault, or where the reference is all zero."""
        if self.fault:
            return math.inf
        if self.largest:
            return self.max_abs / self.largest
        return math.inf if self.max_abs else 0.0

    def __or__(self, other: Gap) -> Gap:
        """Both together."""
        return Gap(max(self.max_abs, other.max_abs), max(self.largest, other.largest), self.fault or other.fault)


def gap(reference: Any, result: Any) -> Gap:
    """Compares one value of one sample; numbers of every kind count as numbers, booleans as 0 and 1."""
    left, right = np.asarray(reference), np.asarray(result)
    if left.shape != right.shape:
        return Gap(math.inf, 0.0, f"has shape {list(right.shape)} instead of {list(left.shape)}")
    if is_text(left) or is_text(right):
        wrong = int(np.sum(texts(left) != texts(right)))
        return Gap(fault=f"has {wrong} other texts") if wrong else Gap()
    left, right = wide(left), wide(right)
    finite = np.isfinite(left) & np.isfinite(right)
    if not finite.all():
        odd = ~finite
        with np.errstate(invalid="ignore"):
            same = (left[odd] == right[odd]) | (np.isnan(left[odd]) & np.isnan(right[odd]))
        left, right = left[finite], right[finite]
        if not same.all():
            fault = f"has NaN or infinity in {int((~same).sum())} other place(s)"
            return Gap(_most(right - left), _most(left), fault)
    return Gap(_most(right - left), _most(left))


def _most(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))
