"""The figures of a comparison in words: what its table on the terminal and its page have in common."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from rewriter.comparing.values import Comparison, Difference, Pair, PairDifference, Spread


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of differences: its heading, and the figure of an output ("-" for none)."""

    heading: str
    cell: Callable[[Difference], str]


def difference_columns(pair: PairDifference) -> list[Column]:
    """The columns that say something of at least one output."""
    tops = sorted({k for found in pair.differences for k in found.top_k})
    columns = [
        Column("max abs", lambda d: _number(d, d.max_abs)),
        Column("max rel", lambda d: _number(d, d.max_rel)),
        Column("mean abs", lambda d: _number(d, d.mean_abs)),
        Column("mean rel", lambda d: _number(d, d.mean_rel)),
        Column("cosine", lambda d: "-" if d.cosine is None else f"{d.cosine:.6f}"),
        Column("agree", lambda d: share(d.agreement)),
        *(Column(f"top-{k}", lambda d, k=k: share(d.top_k.get(k))) for k in tops),  # type: ignore[misc]
    ]
    if len({pair.pair.limit(d.output) for d in pair.differences}) > 1:
        columns.append(Column("limit", lambda d: size(pair.pair.limit(d.output))))
    return [column for column in columns if any(column.cell(d) != "-" for d in pair.differences)]


def mark(pair: Pair, found: Difference) -> str:
    """Whether an output passes, "ok abs" by the absolute bound alone; "" where that is not judged."""
    if pair.limit(found.output) is None:
        return ""
    if pair.by_absolute(found):
        return "ok abs"
    return "ok" if pair.passes(found) else "FAILED"


def verdict(pair: PairDifference) -> str:
    """One line about a pair: how far it is off, in which output, and how far it may be."""
    names = f"{pair.pair.result} differs from {pair.pair.reference}"
    failed = pair.failed
    found = failed[0] if failed else max(pair.differences, key=lambda d: d.max_rel, default=None)
    if found is None:
        return f"{names} in nothing: there are no outputs"
    limit = pair.pair.limit(found.output)
    more = f", and in {len(failed) - 1} other output(s) by more than they may" if len(failed) > 1 else ""
    if found.fault:
        return f"{pair.pair.result} differs from {pair.pair.reference}: output {found.output!r} {found.fault}{more}"
    if found.text:
        return f"{names} in no text"
    where = f" in {found.output!r}" if len(pair.differences) > 1 and found.max_rel else ""
    told = [] if limit is None else [f"limit {limit:.1e}"]
    told += filter(None, [absolute_words(pair)])
    amount = f"{size(found.max_abs)} where all of it is 0" if math.isinf(found.max_rel) else size(found.max_rel)
    limits = f" ({'; '.join(told)})" if told else ""
    return f"{names} by {amount}{where}{limits}{more}"


def absolute_words(pair: PairDifference) -> str:
    """Which outputs pass by the absolute bound alone; "" for none."""
    names = [repr(d.output) for d in pair.differences if pair.pair.by_absolute(d)]
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown} within the absolute bound {pair.pair.absolute:.1e}"


def failure(pair: Pair, found: Difference) -> str:
    """What is wrong with an output, beyond the figures: its fault, and where it is furthest off; "" for nothing."""
    faults = f" {found.fault}" if found.fault else ""
    names = f"{pair.reference} -> {pair.result}: output {found.output!r}"
    if found.place is None:
        return f"{names}{faults}" if faults else ""
    place = found.place
    at = f"at {list(place.index)} of sample {place.sample}" if place.index else f"in sample {place.sample}"
    values = f"{_value(place.result)} instead of {_value(place.reference)}"
    differs = f"{faults}, first {at}" if faults else f" differs most {at}"
    return f"{names}{differs}: {values}"


def sample_words(comparison: Comparison, most: int = 6) -> str:
    """How many samples of which shapes."""
    shapes = [
        ", ".join(f"{name} {shape_words(shape)}" for name, shape in sample.items()) or "no inputs"
        for sample in comparison.samples
    ]
    found = list(dict.fromkeys(shapes))
    more = f"; and {len(found) - most} other shapes" if len(found) > most else ""
    return f"{len(shapes)} sample(s): {'; '.join(found[:most])}{more}"


def shape_words(shape: Sequence[int]) -> str:
    """A shape as "8x224x224x3"."""
    return "x".join(map(str, shape)) or "scalar"


def spread_cells(spread: Spread) -> list[str]:
    """Minimum, maximum and mean, NaN and infinities."""
    values = [figure(value) for value in (spread.minimum, spread.maximum, spread.mean)]
    return [*values, str(spread.nans or "-"), str(spread.infinities or "-")]


def furthest_off(comparison: Comparison) -> list[str]:
    """The outputs, those first that are furthest off in any pair (by their limits); of equals in their own order."""
    excess: dict[str, float] = {}
    for pair in comparison.pairs:
        for found in pair.differences:
            by = found.max_rel / (pair.pair.limit(found.output) or 1.0)
            excess[found.output] = max(excess.get(found.output, 0.0), by)
    return sorted(excess, key=lambda output: -excess[output])


def size(value: float | None) -> str:
    """A difference in two digits; "0" for none at all."""
    if value is None:
        return "-"
    return f"{value:.1e}" if value else "0"


def _number(found: Difference, value: float) -> str:
    """A figure of numbers: text has none."""
    return "-" if found.text else size(value)


def share(value: float | None) -> str:
    """A share in percent, never rounded up to all."""
    if value is None:
        return "-"
    return "100%" if value == 1 else f"{min(value, 0.9999):.2%}"


def figure(value: float | None) -> str:
    """A value in four digits."""
    return "-" if value is None else f"{value:.4g}"


def _value(value: float | str) -> str:
    return repr(value) if isinstance(value, str) else f"{value:.7g}"
