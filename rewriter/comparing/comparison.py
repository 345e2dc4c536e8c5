"""How two or more ways of computing the same outputs differ, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from rewriter.comparing.meters import DifferenceMeter, SpreadMeter
from rewriter.comparing.values import (
    COMPARISON_SCHEMA_VERSION,
    Comparison,
    Difference,
    Pair,
    PairDifference,
    Place,
    Runner,
    Spread,
    finite_json,
)
from rewriter.errors import ConversionError

__all__ = [
    "COMPARISON_SCHEMA_VERSION",
    "Comparison",
    "Difference",
    "Pair",
    "PairDifference",
    "Place",
    "Runner",
    "Spread",
    "compare",
    "difference",
    "finite_json",
    "spread",
]

Arrays = Mapping[str, np.ndarray]


def compare(
    runners: Mapping[str, Runner],
    samples: Iterable[Arrays],
    pairs: Sequence[Pair],
    *,
    words: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    top_k: Sequence[int] = (),
    histograms: bool = False,
    heat_maps: bool = False,
    on_sample: Callable[[int], object] | None = None,
) -> Comparison:
    """Runs every sample through every runner and compares the outputs that the pairs name.

    A sample and its outputs are forgotten before the next one is asked for; of each pair the inputs of its worst
    sample are kept.

    Args:
        runners: name -> runner; the outputs of the first one set names and order.
        samples: inputs by public name; at least one.
        pairs: what to compare.
        words: runner name -> what it is; default: its name.
        notes: taken over.
        top_k: see `Difference.top_k`.
        histograms: whether to make `Difference.histogram`.
        heat_maps: whether to make `Difference.heat_map`.
        on_sample: called before each sample with its number, from 0.

    Raises:
        ValueError: no samples, or a pair of unknown runners.
        ConversionError: two runners give outputs of different names.
        Exception: whatever a runner raises.
    """
    unknown = {name for pair in pairs for name in (pair.reference, pair.result)} - set(runners)
    if unknown:
        raise ValueError(f"nothing to compare: unknown runners {sorted(unknown)}")
    meters: _Meters | None = None
    shapes = []
    for number, sample in enumerate(samples):
        if on_sample is not None:
            on_sample(number)
        results = {name: dict(runner(sample)) for name, runner in runners.items()}
        _check_names(results)
        if meters is None:
            outputs = list(next(iter(results.values())))
            meters = _Meters(list(runners), outputs, pairs, top_k, histograms=histograms, heat_maps=heat_maps)
        meters.add(sample, results)
        shapes.append({name: tuple(np.shape(value)) for name, value in sample.items()})
    if meters is None:
        raise ValueError("nothing to compare: 0 samples")
    said = {name: (words or {}).get(name, name) for name in runners}
    pairs_found = meters.differences()
    told = (*notes, *_untold(pairs_found, top_k))
    return Comparison(said, tuple(shapes), meters.spreads(), pairs_found, told)


def spread(runner: str, output: str, arrays: Sequence[np.ndarray]) -> Spread:
    """What one runner gave for an output over all samples."""
    meter = SpreadMeter(runner, output)
    for array in arrays:
        meter.add(array)
    return meter.spread()


def difference(output: str, reference: Sequence[np.ndarray], result: Sequence[np.ndarray]) -> Difference:
    """Compares the values that two runners gave for one output, sample by sample, and sums up.

    Every kind of number counts as a number (booleans as 0 and 1); text is equal or infinitely different.

    Args:
        output: its name.
        reference: one array a sample; the largest of all its magnitudes is what differences are relative to.
        result: what is held against it.
    """
    meter = DifferenceMeter(output)
    for a, b in zip(reference, result, strict=True):
        meter.add(a, b)
    return meter.difference()


class _Meters:
    """Everything that is measured while samples go by."""

    def __init__(
        self,
        runners: Sequence[str],
        outputs: Sequence[str],
        pairs: Sequence[Pair],
        top_k: Sequence[int],
        *,
        histograms: bool,
        heat_maps: bool,
    ) -> None:
        self._pairs = pairs
        self._spreads = {(output, name): SpreadMeter(name, output) for output in outputs for name in runners}
        self._meters = [
            {o: DifferenceMeter(o, top_k=top_k, histogram=histograms, heat_map=heat_maps) for o in outputs}
            for _ in pairs
        ]
        self._excess = [0.0] * len(pairs)
        self._worst: list[dict[str, np.ndarray] | None] = [None] * len(pairs)

    def add(self, sample: Arrays, results: Mapping[str, Arrays]) -> None:
        for (output, name), meter in self._spreads.items():
            meter.add(results[name][output])
        for number, (pair, meters) in enumerate(zip(self._pairs, self._meters, strict=True)):
            sides = results[pair.reference], results[pair.result]
            excess = max(
                (m.add(sides[0][o], sides[1][o]) / (pair.limit(o) or 1.0) for o, m in meters.items()), default=0.0
            )
            if excess > self._excess[number]:
                self._excess[number] = excess
                self._worst[number] = dict(sample)

    def spreads(self) -> tuple[Spread, ...]:
        return tuple(meter.spread() for meter in self._spreads.values())

    def differences(self) -> tuple[PairDifference, ...]:
        return tuple(
            PairDifference(pair, tuple(meter.difference() for meter in meters.values()), worst)
            for pair, meters, worst in zip(self._pairs, self._meters, self._worst, strict=True)
        )


def _untold(pairs: Sequence[PairDifference], top_k: Sequence[int]) -> Iterator[str]:
    """What the figures do not show by themselves: outputs without a value pass, and some k have no meaning."""
    found = [difference for pair in pairs for difference in pair.differences]
    empty = dict.fromkeys(d.output for d in found if not d.elements)
    if empty:
        yield f"no value was compared of {', '.join(empty)}: empty in every sample"
    idle = [f"top-{k}" for k in top_k if not any(k in d.top_k for d in found)]
    if idle:
        yield f"{', '.join(idle)}: no output has rows of more scores (floating point, rank 2 or more) than that"


def _check_names(results: Mapping[str, Arrays]) -> None:
    """Tells outputs of other names, which cannot be compared."""
    first = next(iter(results))
    for name, found in results.items():
        if set(found) != set(results[first]):
            raise ConversionError(
                f"{name} gives the outputs {', '.join(found)}, {first} gives {', '.join(results[first])}: they were "
                "made from different models or signatures"
            )
