"""Ranges of tensors: what calibration found, as a value that outlives the run, the shapes and the GPU."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

RANGES_SCHEMA_VERSION = 1
#: Largest magnitudes that the two 8-bit formats hold: int8 without -128, for it must be symmetric; E4M3.
LARGEST = {"INT8": 127.0, "FP8": 448.0}

_SMALLEST_NORMAL = 2.0**-126


@dataclasses.dataclass(frozen=True)
class TensorRange:
    """The values of a tensor that are worth representing: minimum <= x <= maximum; both are finite."""

    minimum: float
    maximum: float

    @property
    def amax(self) -> float:
        """Largest magnitude."""
        return max(abs(self.minimum), abs(self.maximum))

    def scale(self, mode: str) -> float:
        """What one step of symmetric quantisation is worth: amax / the format's largest value.

        A tensor that was always zero gets a scale of 1 / largest: zero stays exact, and a scale must be positive. So no
        scale is below the smallest normal float32 either.
        """
        return max((self.amax or 1.0) / LARGEST[mode], _SMALLEST_NORMAL)


@dataclasses.dataclass(frozen=True)
class RangeTable:
    """Ranges by value name of the cleaned model.

    Attributes:
        ranges: value name -> range.
        method: the calibrator that chose them: "minmax", "entropy", "percentile 99.99".
        samples: number of calibration inputs (calls of the model).
    """

    ranges: Mapping[str, TensorRange] = dataclasses.field(default_factory=dict)
    method: str = ""
    samples: int = 0

    def missing(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of `names` that have no range, in their order."""
        return tuple(name for name in names if name not in self.ranges)

    def to_json(self) -> str:
        """Indented JSON text: what `calibration.json` holds. Floats keep all their digits."""
        data = {
            "format": "trt-rewriter ranges",
            "schema_version": RANGES_SCHEMA_VERSION,
            "method": self.method,
            "samples": self.samples,
            "ranges": {name: [r.minimum, r.maximum] for name, r in sorted(self.ranges.items())},
        }
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> RangeTable:
        """The inverse of `to_json`.

        Raises:
            ValueError: no range table, a newer schema, or a range that is not finite or upside down (it is named).
        """
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != "trt-rewriter ranges":
            raise ValueError("this is no range table")
        if data.get("schema_version") != RANGES_SCHEMA_VERSION:
            raise ValueError(f"range table schema {data.get('schema_version')!r} is not {RANGES_SCHEMA_VERSION}")
        try:
            ranges = {str(name): _range(str(name), pair) for name, pair in data["ranges"].items()}
            return cls(ranges, str(data["method"]), int(data["samples"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the range table lacks or misspells a field: {error}") from error


def _range(name: str, pair: Any) -> TensorRange:
    low, high = (float(bound) for bound in pair)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"the range of {name!r} is no range: {low} .. {high}")
    return TensorRange(low, high)
