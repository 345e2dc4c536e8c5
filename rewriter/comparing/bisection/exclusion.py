"""Which nodes must be excluded for the outputs to come back into the tolerance: tried out, never guessed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

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


def find_exclusion(first: Names, ranked: Callable[[], Sequence[Names]], attempt: Callable[[Names], Trial]) -> Exclusion:
    """Looks for a small set of nodes that passes.

    1. `first` alone. 2. Where that is not enough, the first 2, 4, 8 ... of `ranked` with it, until it passes; then as
    few of them as pass. 3. Of few, those are left out that it passes without.

    Args:
        first: the node that was found.
        ranked: further nodes, the most promising first; called only when needed.
        attempt: computes the outputs with some nodes excluded.
    """
    trials: dict[frozenset[str], Trial] = {}

    def tried(units: Sequence[Names]) -> Trial:
        names = tuple(dict.fromkeys(name for unit in units for name in unit))
        key = frozenset(names)
        if key not in trials:
            trials[key] = attempt(names)
        return trials[key]

    alone = tried([first])
    if alone.passed:
        return Exclusion(first, alone, alone, len(trials))
    units = [first, *(unit for unit in ranked() if unit != first)][:MOST]
    low, high = 1, 1  # the first `low` fail, the first `high` are tried
    while high < len(units):
        low, high = high, min(2 * high, len(units))
        if tried(units[:high]).passed:
            break
    if not tried(units[:high]).passed:
        return Exclusion(first, alone, alone, len(trials))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tried(units[:middle]).passed else (middle, high)
    chosen = units[:high]
    if len(chosen) <= _FEW:
        for unit in list(chosen):
            fewer = [other for other in chosen if other != unit]
            if fewer and tried(fewer).passed:
                chosen = fewer
    names = tuple(dict.fromkeys(name for unit in chosen for name in unit))
    return Exclusion(names, tried(chosen), alone, len(trials))
