"""Which units must not be lowered? A search by measuring sets of them; it knows nothing of models.

A *unit* is a segment or a node; a measurement says whether the model meets the target with certain units lowered and
all others kept. The search ends with a set of lowered units that was itself measured and passed, or with no unit
lowered at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

#: So many attempts in a row to lower a kept unit again may fail before the search stops trying.
PATIENCE = 8
#: Measurements kept back for the end of a search whose units fail only jointly.
RESERVE = 16
#: Measurements that refine the ranking before it is tried again.
ROUND = 12

Item = TypeVar("Item")
Units = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """What one measurement says.

    Attributes:
        passed: the target is met.
        excess: how far off, in the target's own measure: larger is worse; not NaN.
        value: the figure that was compared with the target's limit.
        text: the finding in words.
    """

    passed: bool
    excess: float
    value: float = 0.0
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One measurement, for the report: how many units were lowered and what came out."""

    lowered: int
    value: float
    passed: bool


@dataclasses.dataclass(frozen=True)
class Finding:
    """Why a unit is kept.

    Attributes:
        kind: "alone": the target is missed when only this unit, or the `group` it lies in, is lowered. "joint": it is
            missed when this unit, or its group, is lowered beside others. "untried": the budget was spent before
            anything was measured about it.
        score: the measurement that says so; for "untried" the one with everything lowered.
        group: number of units in that measurement that one cannot tell apart; 1 for this unit by itself.
    """

    kind: Literal["alone", "joint", "untried"]
    score: Score
    group: int = 1


@dataclasses.dataclass(frozen=True)
class Search:
    """The outcome.

    Attributes:
        kept: unit -> why it must stay as it is, in the order of the units.
        measurements: every measurement, in order.
        before: the score with everything lowered.
        after: the score with all but `kept` lowered; None when everything is kept, which is not measured.
        exhausted: the budget was spent before the search was done, so more may be kept than necessary.
    """

    kept: Mapping[str, Finding]
    measurements: tuple[Measurement, ...]
    before: Score
    after: Score | None
    exhausted: bool = False


class _BudgetSpentError(Exception):
    """No measurement is left."""


def find_guilty(
    units: Sequence[str], measure: Callable[[frozenset[str]], Score], budget: int, ideal: float = 0.0
) -> Search:
    """Finds units to keep so that the target is met with all others lowered.

    1. Everything lowered passes: nothing is kept, after one measurement.
    2. Bisection: a set of neighbours that fails alone is halved, the worst set first; a unit that fails alone is
       guilty. That takes half of the budget at most. One guilty unit among n costs 2 * ceil(log2(n)) + 2 measurements.
    3. All but the guilty units lowered passes: done. Otherwise units fail only jointly, or some sets could not be
       halved to the end. Sets go on being halved, the most harmful one first, `ROUND` measurements at a time; then
       all are ranked by harm per unit, and binary search finds how many of the less harmful ones can be lowered
       together. That is repeated until only single units are left out, or `RESERVE` measurements are left.
    4. What is kept beyond the guilty units is tried again in ever smaller sets, as long as that succeeds now and then
       (`PATIENCE`) and the budget lasts.

    The measurements need not be monotone (more units lowered may be better): every state that is accepted was
    measured, so the outcome always passes. It is deterministic if `measure` is.

    Args:
        units: in topological order, each once; at least one.
        measure: scores the model with exactly these units lowered; called at most once for a set.
        budget: largest number of measurements, at least 1.
        ideal: the `excess` with nothing lowered: what goes beyond it is the harm that a set of units does.

    Raises:
        ValueError: no units, a unit twice, or no budget.
    """
    if not units or len(set(units)) != len(units) or budget < 1:
        raise ValueError("a search needs units, each once, and a budget of at least one measurement")
    return _Searcher(tuple(units), measure, budget, ideal).run()


class _Searcher:
    """One search: the cache of measurements, and what was accepted so far."""

    def __init__(self, units: Units, measure: Callable[[frozenset[str]], Score], budget: int, ideal: float) -> None:
        self._units = units
        self._measure = measure
        self._budget = budget
        self._ideal = ideal
        self._scores: dict[frozenset[str], Score] = {}
        self._record: list[Measurement] = []
        self._alone: dict[str, Score] = {}
        self._findings: dict[str, Finding] = {}
        self._lowered: frozenset[str] = frozenset()

    def run(self) -> Search:
        before = self._score(self._units)
        if before.passed:
            self._lowered = frozenset(self._units)
            return self._result(before)
        exhausted = False
        leaves: list[tuple[Units, Score]] = [(self._units, before)]
        try:
            leaves = self._isolate(before)
            rest = [unit for block, _ in leaves for unit in block]
            if not self._accept(rest, rest):
                leaves = self._lower_jointly(leaves)
        except _BudgetSpentError:
            exhausted = True
        self._explain(leaves)
        return self._result(before, exhausted)

    def _isolate(self, score: Score) -> list[tuple[Units, Score]]:
        """Step 2; returns the sets of units that are not guilty by themselves, each with its own score."""
        failing = [(self._units, score)]
        leaves: list[tuple[Units, Score]] = []
        limit = max(self._budget // 2, 1)
        while failing:
            failing.sort(key=lambda entry: -entry[1].excess)
            block, score = failing.pop(0)
            if len(block) == 1:
                self._alone[block[0]] = score
                continue
            halves = list(_halves(block))
            if len(self._record) + len(halves) > limit:
                return [*leaves, (block, score), *failing]
            for half in halves:
                found = self._score(half)
                (leaves if found.passed else failing).append((half, found))
        return leaves

    def _lower_jointly(self, leaves: list[tuple[Units, Score]]) -> list[tuple[Units, Score]]:
        """Steps 3 and 4; returns the sets as they are in the end."""
        while True:
            progress = self._refine(leaves)
            tail = self._lower_ranked(leaves)
            if not progress or all(len(block) == 1 for block in tail):
                break
        self._retry(tail)
        return leaves

    def _refine(self, leaves: list[tuple[Units, Score]]) -> bool:
        """Halves the most harmful sets, for some measurements; False when there is nothing more to do.

        A unit that turns out to fail alone is guilty and leaves the list.
        """
        limit = min(len(self._record) + ROUND, self._budget - RESERVE)
        while len(self._record) + 2 <= limit:
            worst = max((leaf for leaf in leaves if len(leaf[0]) > 1), key=self._harm, default=None)
            if worst is None or self._harm(worst) <= 0:
                return False
            leaves.remove(worst)
            for half in _halves(worst[0]):
                score = self._score(half)
                if len(half) == 1 and not score.passed:
                    self._alone[half[0]] = score
                else:
                    leaves.append((half, score))
        return len(self._record) + 2 <= self._budget - RESERVE

    def _harm(self, leaf: tuple[Units, Score]) -> float:
        return leaf[1].excess - self._ideal

    def _lower_ranked(self, leaves: Sequence[tuple[Units, Score]]) -> list[Units]:
        """Lowers as many of the less harmful sets as can be together; returns what is left of the others."""
        ranked = [block for block, _ in sorted(leaves, key=lambda entry: self._harm(entry) / len(entry[0]))]
        low, high = 0, len(ranked)  # the first `low` sets pass together, the first `high` do not
        while high - low > 1:
            middle = (low + high) // 2
            prefix = [unit for block in ranked[:middle] for unit in block]
            added = [unit for block in ranked[low:middle] for unit in block]
            low, high = (middle, high) if self._accept(prefix, added) else (low, middle)
        left = (tuple(unit for unit in block if unit not in self._lowered) for block in ranked)
        return [block for block in left if block]

    def _retry(self, blocks: Iterable[Units]) -> None:
        """Step 4: largest sets first, in the order given."""
        queue, failures = list(blocks), 0
        while queue and failures < PATIENCE:
            block = queue.pop(0)
            measured = len(self._record)
            if self._accept([*self._lowered, *block], block):
                failures = 0
                continue
            failures += len(self._record) - measured  # what was known already is no news
            if len(block) > 1:
                queue += _halves(block)

    def _accept(self, wanted: Iterable[str], added: Sequence[str]) -> bool:
        """True if `wanted` passes; otherwise notes what stands against the units `added`.

        It becomes the outcome unless more units were lowered before.
        """
        state = frozenset(wanted)
        score = self._score(state)
        if score.passed:
            self._lowered = max(self._lowered, state, key=len)
            return True
        for unit in added:
            self._findings[unit] = Finding("joint", score, len(added))
        return False

    def _score(self, lowered: Iterable[str]) -> Score:
        key = frozenset(lowered)
        if not key:
            return Score(passed=True, excess=0.0, text="nothing is lowered")
        if key not in self._scores:
            if len(self._record) >= self._budget:
                raise _BudgetSpentError
            score = self._scores[key] = self._measure(key)
            self._record.append(Measurement(len(key), score.value, score.passed))
        return self._scores[key]

    def _explain(self, leaves: Sequence[tuple[Units, Score]]) -> None:
        """Gives every unit its finding; those that nothing was measured about get the nearest measurement."""
        for block, score in leaves:
            for unit in block if not score.passed else ():
                if unit not in self._findings or self._findings[unit].group >= len(block):
                    self._findings[unit] = Finding("alone", score, len(block))
        for unit, score in self._alone.items():
            self._findings[unit] = Finding("alone", score)

    def _result(self, before: Score, exhausted: bool = False) -> Search:
        untried = Finding("untried", before, len(self._units))
        kept = {u: self._findings.get(u, untried) for u in self._units if u not in self._lowered}
        after = self._scores[self._lowered] if self._lowered else None
        return Search(kept, tuple(self._record), before, after, exhausted)


def _halves(block: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    middle = (len(block) + 1) // 2
    yield tuple(block[:middle])
    yield tuple(block[middle:])
