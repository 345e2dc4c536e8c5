"""The x of boxes and bends whose order is known: near their neighbours, never too close to each other."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.reports.graph_picture.ordering import Chains

#: Sweeps down and up.
_SWEEPS = 20
#: What a link weighs by how many of its ends are bends: long edges shall be straight.
_WEIGHTS = (1.0, 2.0, 8.0)
#: What an item without neighbours in the direction of a sweep weighs.
_LIGHT = 0.01


def place(rows: Sequence[Sequence[int]], chains: Chains, widths: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """The centres.

    Args:
        rows: from top to bottom, each from left to right.
        chains: the links.
        widths: width of every box and bend.
        gaps: the room that each wants at either side.
    """
    centers = [0.0] * chains.count
    offsets = [_offsets(row, widths, gaps) for row in rows]
    for row, steps in zip(rows, offsets, strict=True):
        middle = (steps[-1] if steps else 0.0) / 2
        for item, step in zip(row, steps, strict=True):
            centers[item] = step - middle
    both = [[*b, *a] for b, a in zip(chains.before, chains.after, strict=True)]
    for sweep in range(_SWEEPS):
        neighbours = (chains.before, chains.after)[sweep % 2] if sweep < _SWEEPS // 2 else both
        numbers = range(len(rows)) if sweep % 2 == 0 else range(len(rows) - 1, -1, -1)
        for number in numbers:
            _settle(rows[number], offsets[number], neighbours, centers, chains.boxes)
    return centers


def _offsets(row: Sequence[int], widths: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """Where the items of a row would be, were they as close as may be and the first at 0."""
    steps = []
    at = 0.0
    for number, item in enumerate(row):
        if number:
            last = row[number - 1]
            at += widths[last] / 2 + gaps[last] + gaps[item] + widths[item] / 2
        steps.append(at)
    return steps


def _settle(
    row: Sequence[int], steps: Sequence[float], neighbours: Sequence[Sequence[int]], centers: list[float], boxes: int
) -> None:
    """Moves a row as near to its neighbours as its order and the gaps allow (least squares, exactly).

    With the gaps subtracted, the positions must not fall from left to right: isotonic regression, in which blocks of
    items that want to be closer than they may move as one.
    """
    blocks: list[tuple[float, float, int]] = []  # (weight, weight * position, number of items)
    for item, step in zip(row, steps, strict=True):
        weight = total = 0.0
        for near in neighbours[item]:
            link = _WEIGHTS[(item >= boxes) + (near >= boxes)]
            weight += link
            total += link * centers[near]
        if not weight:
            weight, total = _LIGHT, _LIGHT * centers[item]
        block = (weight, total - weight * step, 1)
        while blocks and blocks[-1][1] * block[0] > block[1] * blocks[-1][0]:
            last = blocks.pop()
            block = (last[0] + block[0], last[1] + block[1], last[2] + block[2])
        blocks.append(block)
    index = 0
    for weight, total, number in blocks:
        for _ in range(number):
            centers[row[index]] = total / weight + steps[index]
            index += 1
