"""From an output that is off back to where that begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from passes.graph_index import GraphIndex
from rewriter.comparing.bisection.gaps import Gap


@dataclasses.dataclass(frozen=True)
class Place:
    """Where values begin to be off.

    Attributes:
        value: the first value beyond the limit.
        node: number of the node that makes it, in the index.
        before: largest relative difference of the values that go into it (0.0 where these are the model's inputs).
        between: numbers of the nodes between those values and `value` whose results could not be compared; `node`
            comes last.
    """

    value: str
    node: int
    before: float
    between: tuple[int, ...]


def first_beyond(index: GraphIndex, gaps: Mapping[str, Gap], limit: float, starts: Iterable[str]) -> Place | None:
    """Follows the values beyond the limit from `starts` upwards, and gives the topologically first one.

    A value within the limit ends the way: what is off above it recovers there, and does no harm. A value that has no
    gap was not compared, and is passed through.

    Args:
        index: the graph.
        gaps: value name -> what was measured.
        limit: largest relative difference that passes.
        starts: values to begin with, outputs of the model for example.

    Returns:
        The place, or None where every start is within the limit, or leads to no value beyond it.
    """
    beyond: list[tuple[int, int, str]] = []
    stack, seen = list(starts), set[str]()
    while stack:
        value = stack.pop()
        if value in seen or value not in index.producer:
            continue
        seen.add(value)
        number = index.producer[value]
        if value in gaps:
            if gaps[value].relative <= limit:
                continue
            beyond.append((number, index.makes[number].index(value), value))
        stack.extend(index.reads[number])
    if not beyond:
        return None
    number, _, value = min(beyond)
    between, before = _above(index, gaps, number)
    return Place(value, number, before, between)


def _above(index: GraphIndex, gaps: Mapping[str, Gap], number: int) -> tuple[tuple[int, ...], float]:
    """(the nodes from the nearest compared values down to node `number`, the largest difference of these values)."""
    members, before = {number}, 0.0
    stack, seen = list(index.reads[number]), set[str]()
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in gaps:
            before = max(before, gaps[value].relative)
        elif value in index.producer:
            members.add(index.producer[value])
            stack.extend(index.reads[index.producer[value]])
    return tuple(sorted(members)), before


def ancestors(index: GraphIndex, values: Iterable[str]) -> frozenset[int]:
    """Numbers of all nodes that the values are computed with."""
    found: set[int] = set()
    stack = [index.producer[value] for value in values if value in index.producer]
    while stack:
        number = stack.pop()
        if number not in found:
            found.add(number)
            stack.extend(index.preds[number])
    return frozenset(found)
