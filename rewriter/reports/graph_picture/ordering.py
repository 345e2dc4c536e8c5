"""The order of boxes and bends inside the layers of a drawing: few crossings."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

#: Sweeps down and up, at most; they end early when nothing gets better.
_SWEEPS = 6
#: An edge over more layers runs beside the drawing.
_LONGEST = 40
#: Bends for every box and edge, at most; the longest edges go without.
_BENDS = 3


@dataclasses.dataclass(frozen=True)
class Chains:
    """Boxes and bends with the links between neighbouring layers; bends are numbered behind the boxes.

    Attributes:
        layers: layer of every box and bend.
        before, after: neighbours one layer up, and one layer down.
        bends: per edge its bends from top to bottom; () for an edge to the next layer, or one without a chain.
        detours: numbers of the edges that have no chain, for they are too long.
        boxes: how many of them are boxes.
    """

    layers: list[int]
    before: list[list[int]]
    after: list[list[int]]
    bends: list[list[int]]
    detours: frozenset[int]
    boxes: int

    @property
    def count(self) -> int:
        """Boxes and bends."""
        return len(self.layers)


def make_chains(layers: Sequence[int], edges: Sequence[tuple[int, int]]) -> Chains:
    """Cuts edges into links between neighbouring layers, the short ones first, while there are bends left."""
    found = list(layers)
    before: list[list[int]] = [[] for _ in layers]
    after: list[list[int]] = [[] for _ in layers]
    bends: list[list[int]] = [[] for _ in edges]
    detours = set()
    left = _BENDS * (len(layers) + len(edges))
    spans = [layers[target] - layers[source] - 1 for source, target in edges]
    for number in sorted(range(len(edges)), key=lambda i: spans[i]):
        if spans[number] > min(left, _LONGEST):
            detours.add(number)
            continue
        left -= spans[number]
        last, target = edges[number]
        for layer in range(layers[last] + 1, layers[target]):
            bend = len(found)
            found.append(layer)
            before.append([last])
            after.append([])
            after[last].append(bend)
            bends[number].append(bend)
            last = bend
        after[last].append(target)
        before[target].append(last)
    return Chains(found, before, after, bends, frozenset(detours), len(layers))


def order_layers(chains: Chains) -> list[list[int]]:
    """The rows from top to bottom, each from left to right: the best that the sweeps found."""
    rows = _first_rows(chains)
    best, fewest = [row[:] for row in rows], crossings(rows, chains)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        for downwards in (True, False) if sweep % 2 == 0 else (False, True):
            _sweep(rows, chains, downwards=downwards)
            number = crossings(rows, chains)
            if number < fewest:
                best, fewest = [row[:] for row in rows], number
    return best


def crossings(rows: Sequence[Sequence[int]], chains: Chains) -> int:
    """How often links cross between all neighbouring rows."""
    total = 0
    position = [0] * chains.count
    for row in rows:
        for number, item in enumerate(row):
            position[item] = number
    for upper, lower in itertools.pairwise(rows):
        total += _inversions([p for item in upper for p in sorted(position[a] for a in chains.after[item])], len(lower))
    return total


def _first_rows(chains: Chains) -> list[list[int]]:
    """Depth first from the top, which keeps what hangs together side by side."""
    rows: list[list[int]] = [[] for _ in range(max(chains.layers, default=-1) + 1)]
    seen = [False] * chains.count
    starts = sorted(range(chains.count), key=lambda i: (len(chains.before[i]) > 0, chains.layers[i], i))
    for start in starts:
        stack = [start]
        while stack:
            item = stack.pop()
            if seen[item]:
                continue
            seen[item] = True
            rows[chains.layers[item]].append(item)
            stack.extend(reversed(chains.after[item]))
    return rows


def _sweep(rows: list[list[int]], chains: Chains, *, downwards: bool) -> None:
    """Sorts every row by the mean position of its neighbours in the row that was sorted before."""
    neighbours = chains.before if downwards else chains.after
    position = [0.0] * chains.count
    for index in range(len(rows)) if downwards else reversed(range(len(rows))):
        row = rows[index]
        for number, item in enumerate(row):
            near = neighbours[item]
            # One without neighbours there keeps its place among the others, as a fraction of the row.
            position[item] = sum([position[n] for n in near]) / len(near) if near else number / len(row)
        row.sort(key=position.__getitem__)
        for number, item in enumerate(row):
            position[item] = (number + 0.5) / len(row)


def _inversions(values: Sequence[int], size: int) -> int:
    """Pairs in the wrong order, by a binary indexed tree: values are 0 .. size-1."""
    tree = [0] * (size + 1)
    total = 0
    for seen, value in enumerate(values):
        smaller_or_equal, index = 0, value + 1
        while index:
            smaller_or_equal += tree[index]
            index &= index - 1
        total += seen - smaller_or_equal
        index = value + 1
        while index <= size:
            tree[index] += 1
            index += index & -index
    return total
