"""What comparing gives: frozen values, apart from how they are measured and printed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rewriter.comparing.heat_maps import HeatMap
from rewriter.comparing.histograms import Histogram

#: 2: tolerances of single outputs, mean relative differences, top-k, places, histograms.
COMPARISON_SCHEMA_VERSION = 2

#: Maps inputs by public name to outputs by public name.
Runner = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Spread:
    """The values that one runner gave for one output, over all samples.

    Attributes:
        runner, output: whose and which.
        dtype: numpy's name of it.
        shape: of the first sample.
        minimum, maximum, mean: of the finite values; None where there is none, or for text.
        nans, infinities: numbers of values.
    """

    runner: str
    output: str
    dtype: str
    shape: tuple[int, ...]
    minimum: float | None
    maximum: float | None
    mean: float | None
    nans: int = 0
    infinities: int = 0


@dataclasses.dataclass(frozen=True)
class Place:
    """Where two runners differ most, or where the first value stands that cannot be subtracted.

    Attributes:
        sample: number of the sample, from 0.
        index: position in the output.
        reference, result: the values there; what is no real number is a text.
    """

    sample: int
    index: tuple[int, ...]
    reference: float | str
    result: float | str


@dataclasses.dataclass(frozen=True)
class Difference:
    """One output of two runners, over all samples.

    Attributes:
        output: its public name.
        max_abs: max|result - reference|; infinite after a fault of shape; 0 or infinite for text.
        max_rel: max_abs / max|reference|; infinite also where NaN or infinities stand in other places.
        mean_abs: mean|result - reference|.
        cosine: of all values as one vector; None for whole numbers and text, and where a vector is zero.
        agreement: where the output looks like scores of classes (floating point, rank 2, more than one column) the
            share of rows with the same largest element ("top-1"); for whole numbers, booleans and text the share of
            equal values; else None.
        elements: number of values compared.
        fault: what is wrong beyond numbers ("has shape [2] instead of [3]"), or "".
        mean_rel: mean_abs / mean|reference|; infinite where `max_rel` is.
        top_k: k -> of the k largest elements of each row of the reference (along the last axis), the share that is
            among the k largest of the result, whatever their order; only the k asked for that have a meaning here.
        place: where the difference is largest, or the first fault; None where nothing differs.
        scale: max|reference| of the finite values.
        histogram: how many values differ by how much; None where it was not asked for.
        heat_map: where in the output the differences are; likewise.
        text: True for an output of text.
    """

    output: str
    max_abs: float
    max_rel: float
    mean_abs: float
    cosine: float | None
    agreement: float | None
    elements: int
    fault: str = ""
    mean_rel: float = 0.0
    top_k: Mapping[int, float] = dataclasses.field(default_factory=dict)
    place: Place | None = None
    scale: float = 0.0
    histogram: Histogram | None = dataclasses.field(default=None, repr=False)
    heat_map: HeatMap | None = dataclasses.field(default=None, repr=False, compare=False)
    text: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All but the heat map, which is a picture."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "heat_map"}
        return {
            **plain,
            "top_k": {str(k): share for k, share in self.top_k.items()},
            "place": dataclasses.asdict(self.place) if self.place else None,
            "histogram": self.histogram.to_dict() if self.histogram else None,
        }


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two runners to compare.

    Attributes:
        reference, result: names of the runners; differences are relative to the reference.
        tolerance: largest `max_rel` that passes; None only reports.
        outputs: output -> tolerance in the place of `tolerance`.
        absolute: `max_abs` up to which an output passes whatever its `max_rel` is; None: there is no such bound.
    """

    reference: str
    result: str
    tolerance: float | None = None
    outputs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    absolute: float | None = None

    def limit(self, output: str) -> float | None:
        """Largest `max_rel` of an output that passes; None for one that is only reported."""
        return self.outputs.get(output, self.tolerance)

    def passes(self, difference: Difference) -> bool:
        """True for an output that differs by no more than it may."""
        limit = self.limit(difference.output)
        return limit is None or difference.max_rel <= limit or self.by_absolute(difference)

    def by_absolute(self, difference: Difference) -> bool:
        """True for an output that passes by the absolute bound alone."""
        limit = self.limit(difference.output)
        if limit is None or difference.max_rel <= limit or self.absolute is None:
            return False
        return not difference.fault and difference.max_abs <= self.absolute


@dataclasses.dataclass(frozen=True)
class PairDifference:
    """The differences of one pair, one entry an output.

    Attributes:
        pair: who was compared.
        differences: one entry an output.
        worst_inputs: the inputs at which an output was furthest off, measured by its limit; None where nothing
            differed.
    """

    pair: Pair
    differences: tuple[Difference, ...]
    worst_inputs: Mapping[str, np.ndarray] | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def worst(self) -> float:
        """Largest relative difference of any output (0.0 for none)."""
        return max((d.max_rel for d in self.differences), default=0.0)

    @property
    def passed(self) -> bool:
        """True when no output differs by more than the tolerance."""
        return all(self.pair.passes(difference) for difference in self.differences)

    @property
    def failed(self) -> tuple[Difference, ...]:
        """The outputs that differ by more than they may, the furthest off first."""
        found = [d for d in self.differences if not self.pair.passes(d)]
        return tuple(sorted(found, key=lambda d: -(d.max_rel / (self.pair.limit(d.output) or 1.0))))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All runners on the same samples.

    Attributes:
        runners: name -> what it is, in words.
        samples: per sample: input name -> shape.
        spreads: one entry an output and runner.
        pairs: one entry a pair.
        notes: what was left out, or is worth knowing.
    """

    runners: Mapping[str, str]
    samples: tuple[Mapping[str, tuple[int, ...]], ...]
    spreads: tuple[Spread, ...]
    pairs: tuple[PairDifference, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True when every pair passes."""
        return all(pair.passed for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON knows; what is not finite becomes a text ("inf"), for JSON has no number for it."""
        pairs = [
            {
                "pair": dataclasses.asdict(pair.pair),
                "differences": [
                    {**d.to_dict(), "limit": pair.pair.limit(d.output), "passed": pair.pair.passes(d)}
                    for d in pair.differences
                ],
                "worst": pair.worst,
                "passed": pair.passed,
            }
            for pair in self.pairs
        ]
        plain: dict[str, Any] = finite_json(
            {
                "schema_version": COMPARISON_SCHEMA_VERSION,
                "passed": self.passed,
                "runners": dict(self.runners),
                "samples": self.samples,
                "spreads": [dataclasses.asdict(entry) for entry in self.spreads],
                "pairs": pairs,
                "notes": self.notes,
            }
        )
        return plain


def finite_json(value: Any) -> Any:
    """The value with tuples as lists, and floats that are not finite as text, for JSON."""
    if isinstance(value, Mapping):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
