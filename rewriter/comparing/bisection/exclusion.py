"""Which nodes must be excluded for the outputs to come back into the tolerance: tried out, never guessed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

#: Nodes that are excluded together, at most.
MOST = 64
#: Up to so many, it is tried whether each of them is needed.
_FEW = 8

#: The names of one node (its bodies' nodes among them).
Names = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Trial:
    """The outputs with some nodes excluded.

    Attributes:
        worst: largest difference of an output.
        passed: all are within their tolerances.
    """

    worst: float
    passed: bool


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """What a search found.

    Attributes:
        names: what to exclude: what passes, or where nothing does what was asked for first.
        trial: the outputs with these excluded.
        first: the outputs with only those excluded that were asked for first.
        runs: how often the outputs were computed.
    """

    names: Names
    trial: Trial
    first: Trial
    runs: int


def find_exclusion(
    first: Names,
    following: Callable[[Names], Names],
    rankings: Callable[[], Iterable[Sequence[Names]]],
    attempt: Callable[[Names], Trial],
) -> Exclusion:
    """Looks for a small set of nodes that passes.

    1. `first` alone.
    2. Where that is not enough, what breaks in its place goes with it, and so on (the reader of a value that is
       beyond float16, for example).
    3. Where that ends without passing, as few of the first of a ranking go with it as pass; the first `MOST` are tried
       at once, for where these are not enough fewer are not either, and the next ranking is taken.
    4. Of few, those are left out that it passes without.

    Args:
        first: the node that was found.
        following: the names of what breaks when these are excluded; () for nothing.
        rankings: lists of further nodes, the most promising first; asked for only when needed.
        attempt: computes the outputs with some nodes excluded.
    """
    trials: dict[frozenset[str], Trial] = {}

    def tried(units: Sequence[Names]) -> Trial:
        names = _joined(units)
        key = frozenset(names)
        if key not in trials:
            trials[key] = attempt(names)
        return trials[key]

    alone = tried([first])
    units = _chase([first], following, tried)
    if not tried(units).passed:
        for ranking in rankings():
            found = _widen([_joined(units)], ranking, tried)
            if tried(found).passed:
                units = found
                break
    if not tried(units).passed:
        return Exclusion(first, alone, alone, len(trials))
    units = _needed(units, tried)
    return Exclusion(_joined(units), tried(units), alone, len(trials))


def _joined(units: Sequence[Names]) -> Names:
    return tuple(dict.fromkeys(name for unit in units for name in unit))


def _chase(
    units: list[Names], following: Callable[[Names], Names], tried: Callable[[Sequence[Names]], Trial]
) -> list[Names]:
    """One node after another, as long as there is a next one and the outputs do not pass."""
    while len(units) < _FEW and not tried(units).passed:
        known = _joined(units)
        new = tuple(name for name in following(known) if name not in known)
        if not new:
            break
        units = [*units, new]
    return units


def _widen(units: list[Names], ranked: Sequence[Names], tried: Callable[[Sequence[Names]], Trial]) -> list[Names]:
    """As few of the ranked nodes as pass; where all of them do not, these."""
    every = [*units, *(unit for unit in ranked if not set(unit) <= set(units[0]))][:MOST]
    low, high = 1, len(every)  # the first `low` fail
    if high == low or not tried(every).passed:
        return every
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tried(every[:middle]).passed else (middle, high)
    return every[:high]


def _needed(units: Sequence[Names], tried: Callable[[Sequence[Names]], Trial]) -> list[Names]:
    """The units without those that it passes without, where these are few."""
    chosen = list(units)
    for unit in units if len(units) <= _FEW else ():
        fewer = [other for other in chosen if other != unit]
        if fewer and tried(fewer).passed:
            chosen = fewer
    return chosen
