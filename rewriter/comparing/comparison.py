"""How two or three ways of computing the same outputs differ: frozen values, apart from any printing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rewriter.errors import ConversionError

COMPARISON_SCHEMA_VERSION = 1

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
    """

    output: str
    max_abs: float
    max_rel: float
    mean_abs: float
    cosine: float | None
    agreement: float | None
    elements: int
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two runners to compare.

    Attributes:
        reference, result: names of the runners; differences are relative to the reference.
        tolerance: largest `max_rel` that passes; None only reports.
    """

    reference: str
    result: str
    tolerance: float | None = None


@dataclasses.dataclass(frozen=True)
class PairDifference:
    """The differences of one pair, one entry an output."""

    pair: Pair
    differences: tuple[Difference, ...]

    @property
    def worst(self) -> float:
        """Largest relative difference of any output (0.0 for none)."""
        return max((d.max_rel for d in self.differences), default=0.0)

    @property
    def passed(self) -> bool:
        """True when no output differs by more than the tolerance."""
        return self.pair.tolerance is None or self.worst <= self.pair.tolerance


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
        data = {"schema_version": COMPARISON_SCHEMA_VERSION, "passed": self.passed, **dataclasses.asdict(self)}
        for entry, pair in zip(data["pairs"], self.pairs, strict=True):
            entry.update(worst=pair.worst, passed=pair.passed)
        plain: dict[str, Any] = finite_json(data)
        return plain


def compare(
    runners: Mapping[str, Runner],
    samples: Sequence[Mapping[str, np.ndarray]],
    pairs: Sequence[Pair],
    *,
    words: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Comparison:
    """Runs every sample through every runner and compares the outputs that the pairs name.

    Args:
        runners: name -> runner; the outputs of the first one set names and order.
        samples: inputs by public name; at least one.
        pairs: what to compare.
        words: runner name -> what it is; default: its name.
        notes: taken over.

    Raises:
        ValueError: no samples, or a pair of unknown runners.
        ConversionError: two runners give outputs of different names.
        Exception: whatever a runner raises.
    """
    unknown = {name for pair in pairs for name in (pair.reference, pair.result)} - set(runners)
    if not samples or unknown:
        raise ValueError(f"nothing to compare: {len(samples)} samples, unknown runners {sorted(unknown)}")
    results = {name: [dict(runner(sample)) for sample in samples] for name, runner in runners.items()}
    first = next(iter(runners))
    outputs = list(results[first][0])
    for name, found in results.items():
        if set(found[0]) != set(outputs):
            raise ConversionError(
                f"{name} gives the outputs {', '.join(found[0])}, {first} gives {', '.join(outputs)}: they were made "
                "from different models or signatures"
            )
    spreads = [spread(name, output, [r[output] for r in results[name]]) for output in outputs for name in runners]
    compared = []
    for pair in pairs:
        sides = results[pair.reference], results[pair.result]
        differences = [difference(o, [r[o] for r in sides[0]], [r[o] for r in sides[1]]) for o in outputs]
        compared.append(PairDifference(pair, tuple(differences)))
    shapes = tuple({name: tuple(np.shape(value)) for name, value in sample.items()} for sample in samples)
    said = {name: (words or {}).get(name, name) for name in runners}
    return Comparison(said, shapes, tuple(spreads), tuple(compared), tuple(notes))


def spread(runner: str, output: str, arrays: Sequence[np.ndarray]) -> Spread:
    """What one runner gave for an output over all samples."""
    first = np.asarray(arrays[0])
    dtype, shape = first.dtype.name, tuple(first.shape)
    if _is_text(first):
        return Spread(runner, output, "string", shape, None, None, None)
    values = _flat(arrays)
    finite = values[np.isfinite(values)]
    nans = int(np.isnan(values).sum())
    infinities = int(values.size - finite.size - nans)
    if not finite.size or finite.dtype.kind == "c":
        return Spread(runner, output, dtype, shape, None, None, None, nans, infinities)
    bounds = float(finite.min()), float(finite.max()), float(finite.mean())
    return Spread(runner, output, dtype, shape, *bounds, nans, infinities)


def difference(output: str, reference: Sequence[np.ndarray], result: Sequence[np.ndarray]) -> Difference:
    """Compares the values that two runners gave for one output, sample by sample, and sums up.

    Every kind of number counts as a number (booleans as 0 and 1); text is equal or infinitely different.

    Args:
        output: its name.
        reference: one array a sample; the largest of all its magnitudes is what differences are relative to.
        result: what is held against it.
    """
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(reference, result, strict=True)]
    elements = sum(a.size for a, _ in pairs)
    for a, b in pairs:
        if a.shape != b.shape:
            fault = f"has shape {list(b.shape)} instead of {list(a.shape)}"
            return Difference(output, math.inf, math.inf, math.inf, None, None, elements, fault)
        if _is_text(a) != _is_text(b):
            fault = f"holds {b.dtype.name} values instead of {a.dtype.name}"
            return Difference(output, math.inf, math.inf, math.inf, None, None, elements, fault)
    if any(_is_text(a) for a, _ in pairs):
        wrong = sum(int(np.sum(_text(a) != _text(b))) for a, b in pairs)
        far = math.inf if wrong else 0.0
        share = 1 - wrong / elements if elements else None
        return Difference(output, far, far, far, None, share, elements, f"has {wrong} other texts" if wrong else "")
    return _numbers(output, pairs, elements)


def _numbers(output: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]], elements: int) -> Difference:
    left, right = _flat([a for a, _ in pairs]), _flat([b for _, b in pairs])
    finite = np.isfinite(left) & np.isfinite(right)
    odd = ~finite
    fault = ""
    if not np.array_equal(left[odd], right[odd], equal_nan=True):
        with np.errstate(invalid="ignore"):
            same = (left[odd] == right[odd]) | (np.isnan(left[odd]) & np.isnan(right[odd]))
        fault = f"has NaN or infinity in {int((~same).sum())} other place(s)"
    left, right = left[finite], right[finite]
    gaps = np.abs(right - left)
    largest = float(np.abs(left).max(initial=0.0))
    max_abs = float(gaps.max(initial=0.0))
    if fault:
        max_rel = math.inf
    elif largest:
        max_rel = max_abs / largest
    else:
        max_rel = math.inf if max_abs else 0.0
    mean_abs = float(gaps.mean()) if gaps.size else 0.0
    floating = any(_is_floating(a.dtype) for a, _ in pairs)
    cosine = _cosine(left, right) if floating else None
    return Difference(output, max_abs, max_rel, mean_abs, cosine, _agreement(pairs), elements, fault)


def _cosine(left: np.ndarray, right: np.ndarray) -> float | None:
    # Scaled first: the squares of large values would overflow.
    scales = np.abs(left).max(initial=0.0), np.abs(right).max(initial=0.0)
    if not all(scales):
        return None
    left, right = left / scales[0], right / scales[1]
    norms = float(np.linalg.norm(left)) * float(np.linalg.norm(right))
    return float(np.real(np.vdot(left, right)) / norms)


def _agreement(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    counted = equal = 0
    for a, b in pairs:
        if not _is_floating(a.dtype):
            left, right = a, b
        elif a.ndim == 2 and a.shape[1] > 1 and a.dtype.kind != "c":
            left, right = _wide(a).argmax(-1), _wide(b).argmax(-1)
        else:
            return None
        counted += left.size
        equal += int(np.sum(left == right))
    return equal / counted if counted else None


def finite_json(value: Any) -> Any:
    """The value with tuples as lists, and floats that are not finite as text, for JSON."""
    if isinstance(value, Mapping):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([_wide(np.asarray(array)).reshape(-1) for array in arrays])


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _is_floating(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fc" or dtype.kind == "V"  # ml_dtypes (bfloat16, float8) have the kind "V"


def _is_text(array: np.ndarray) -> bool:
    return array.dtype.kind in "OSU"


def _text(array: np.ndarray) -> np.ndarray:
    decoded = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in array.reshape(-1).tolist()]
    return np.asarray(decoded, dtype=object)
