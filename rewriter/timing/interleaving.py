"""Several systems timed in turns, and their ratios with the spread that the turns show."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewriter.timing.latencies import Latencies
from rewriter.timing.measuring import Call, Clock, measure

#: What a system's rounds are summed up by before two systems are divided.
Figure = Callable[[Latencies], float]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as long one system takes as another.

    Attributes:
        middle: the median over the rounds.
        low, high: the 10th and 90th percentile over the rounds; how far they lie apart says how sure `middle` is.
        rounds: how many there were.
    """

    middle: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} .. {self.high:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)


def interleaved(
    systems: Mapping[str, Call],
    *,
    rounds: int = 10,
    iterations: int = 10,
    warmup: int = 10,
    settle: int = 1,
    finish: Call | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, tuple[Latencies, ...]]:
    """Times several systems in turns, so that the machine's moods meet all alike.

    Every round begins with another system, and every second one goes through them backwards: nobody always follows the
    same one, and finds its caches or its threads that still spin.

    Args:
        systems: name -> one call.
        rounds: turns of each system.
        iterations: timed calls of a turn.
        warmup: calls of each system before the first round.
        settle: calls at the start of each turn that are not timed: threads of the system before fall asleep, caches
            fill again.
        finish: waits for what a call began.
        clock: gives seconds.

    Returns:
        Name -> the latencies of each round, in the order of the rounds.

    Raises:
        ValueError: no round, no iteration, or a negative number.
    """
    if rounds < 1:
        raise ValueError(f"at least one round must be timed, not {rounds!r}")
    for call in systems.values():
        measure(call, iterations=max(warmup, 1), finish=finish, clock=clock)
    names = list(systems)
    found: dict[str, list[Latencies]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % max(len(names), 1)
        order = names[first:] + names[:first]
        for name in order if turn % 2 else reversed(order):
            found[name].append(measure(systems[name], iterations=iterations, warmup=settle, finish=finish, clock=clock))
    return {name: tuple(turns) for name, turns in found.items()}


def joined(rounds: Sequence[Latencies]) -> Latencies:
    """The calls of all rounds."""
    return Latencies.of(value for part in rounds for value in part.seconds)


def ratio_of(
    system: Sequence[Latencies], other: Sequence[Latencies], figure: Figure = lambda found: found.median
) -> Ratio:
    """How many times as long as `other` takes `system`, round by round.

    Args:
        system: its rounds.
        other: those of the other one, of the same turns.
        figure: sums a round up; default its median.

    Raises:
        ValueError: there are no rounds, not equally many, or one of `other` took no time.
    """
    if not system or len(system) != len(other):
        raise ValueError(f"a ratio needs the same rounds of both, not {len(system)} and {len(other)}")
    below = [figure(part) for part in other]
    if not all(below):
        raise ValueError("the clock saw no time pass in a round: more iterations are needed")
    quotients = Latencies.of(figure(one) / two for one, two in zip(system, below, strict=True))
    return Ratio(quotients.median, quotients.percentile(10), quotients.percentile(90), quotients.calls)
