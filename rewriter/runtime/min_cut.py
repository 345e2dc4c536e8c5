"""The cheapest cut between two ends of a small network (Dinic's algorithm)."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Hashable, Iterable

#: A capacity that is never cut.
INFINITE = math.inf
Arc = tuple[Hashable, Hashable, float]


def sink_side(arcs: Iterable[Arc], source: Hashable, sink: Hashable) -> set[Hashable]:
    """The nodes on the sink's side of a cheapest cut; of several such cuts the one with the fewest nodes there.

    Args:
        arcs: (from, to, capacity), in any order; capacities of parallel arcs add up.
        source: on the other side of the cut. There must be no way of infinite capacity from it to `sink`.
        sink: on this side; part of the result.
    """
    network = _Network(arcs, source, sink)
    while network.levels():
        while network.augment():
            pass
    # What can still reach the sink has to be on its side; all else may be on the source's.
    found = {sink}
    stack = [sink]
    while stack:
        node = stack.pop()
        for other in network.residual[node]:
            if other not in found and network.residual[other].get(node, 0) > 0:
                found.add(other)
                stack.append(other)
    return found


class _Network:
    """What can still flow, and the way there."""

    def __init__(self, arcs: Iterable[Arc], source: Hashable, sink: Hashable) -> None:
        #: node -> neighbour -> what can still flow there; both ways are listed.
        self.residual: dict[Hashable, dict[Hashable, float]] = collections.defaultdict(dict)
        for start, end, capacity in arcs:
            self.residual[start][end] = self.residual[start].get(end, 0) + capacity
            self.residual[end].setdefault(start, 0)
        self._source, self._sink = source, sink
        self._level: dict[Hashable, int] = {}
        self._left: dict[Hashable, list[Hashable]] = {}

    def levels(self) -> bool:
        """Numbers the nodes by their distance from the source; False when the sink is out of reach."""
        self._level = {self._source: 0}
        queue = collections.deque([self._source])
        while queue:
            node = queue.popleft()
            for other, capacity in self.residual[node].items():
                if capacity > 0 and other not in self._level:
                    self._level[other] = self._level[node] + 1
                    queue.append(other)
        self._left = {node: list(self.residual[node]) for node in self._level}
        return self._sink in self._level

    def augment(self) -> bool:
        """Lets as much flow as one way takes; False when there is none on these levels."""
        way = [self._source]
        while way[-1] != self._sink:
            node = way[-1]
            ahead = self._left[node]
            while ahead and not self._leads(node, ahead[-1]):
                ahead.pop()
            if ahead:
                way.append(ahead[-1])
                continue
            way.pop()
            if not way:
                return False
            self._left[way[-1]].pop()
        steps = list(itertools.pairwise(way))
        flow = min(self.residual[a][b] for a, b in steps)
        for a, b in steps:
            self.residual[a][b] -= flow
            self.residual[b][a] += flow
        return True

    def _leads(self, node: Hashable, other: Hashable) -> bool:
        return self.residual[node][other] > 0 and self._level.get(other) == self._level[node] + 1
