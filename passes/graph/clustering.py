"""Convex clusters of supported nodes in a DAG, in plain integers and near-linear time.

Sources of the ideas: levels as in longest-path layering; Pearce and Kelly, "A dynamic topological sort algorithm for
directed acyclic graphs" (2006). The algorithm:

1. Every node gets an *epoch* that never falls along an edge and rises on every edge from a supported to an
   unsupported node.
2. Supported neighbours of equal epoch are joined. All these contractions together are acyclic: a cycle of the
   contracted graph would have one epoch throughout, so no edge from supported to unsupported, so it would be all
   supported (then its edges were contracted) or all unsupported (then the DAG had a cycle). The argument never uses
   that a cluster is connected, so any clusters of one epoch may be joined as well.
3. *Absorb*: clusters below the minimum join the largest one of their epoch.
4. *Refine*: neighbouring clusters of different epochs are joined where no second way leads from one to the other, in a
   topological order of the contracted graph that is repaired after every join.

The number of non-empty epochs is the least possible number of clusters, connected or not. Which nodes end up together
depends on where an epoch begins, so graphs of usual size (`TRIES_MAX`) are also clustered by the latest epochs and by
plain pairwise contraction from the outputs backwards, and the best result is kept. The searches of every road have a
budget in proportion to the graph; only graphs with very many edges over very long distances spend it.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

#: Edges that the searches of one clustering may follow, per node and edge of the graph: what keeps it near-linear.
SEARCH_BUDGET = 16
#: Edges that they may follow in any case (0.1 s or so): small graphs are always searched to the end.
SEARCH_FLOOR = 500_000
#: Graphs of more nodes are clustered in one way only.
TRIES_MAX = 16384


@dataclasses.dataclass(frozen=True)
class Dag:
    """A DAG whose nodes are numbered in topological order.

    Attributes:
        preds: per node the nodes it reads from, each with a smaller number.
        succs: per node the nodes that read from it.
        supported: per node whether it may lie in a cluster.
        weights: per node how much it counts towards the minimum, at least 0.
    """

    preds: Sequence[Sequence[int]]
    succs: Sequence[Sequence[int]]
    supported: Sequence[bool]
    weights: Sequence[int]

    @classmethod
    def of(cls, preds: Sequence[Sequence[int]], supported: Sequence[bool], weights: Sequence[int] | None = None) -> Dag:
        """A DAG from its predecessor lists alone; every weight is 1 by default.

        Raises:
            ValueError: lengths differ, or a node reads from a later one.
        """
        count = len(preds)
        if len(supported) != count or (weights is not None and len(weights) != count):
            raise ValueError(f"{count} nodes need as many support flags and weights")
        succs: list[list[int]] = [[] for _ in range(count)]
        for node, sources in enumerate(preds):
            for source in sources:
                if not 0 <= source < node:
                    raise ValueError(f"node {node} reads from {source}: nodes must be in topological order")
                succs[source].append(node)
        # Tuples of numbers are of no concern to the garbage collector, lists are.
        fixed = tuple(map(tuple, preds)), tuple(map(tuple, succs))
        return cls(*fixed, tuple(supported), (1,) * count if weights is None else tuple(weights))


def cluster(dag: Dag, minimum: int = 1, *, absorb: bool = True) -> tuple[tuple[int, ...], ...]:
    """Clusters the supported nodes of a DAG.

    Args:
        dag: the graph.
        minimum: weight below which a cluster is worth joining to an unconnected one; smaller clusters may remain and
            are for the caller to drop.
        absorb: False keeps every cluster connected, at the price of more and smaller ones.

    Returns:
        Ascending node numbers per cluster, clusters in topological order of the contracted graph, every supported node
        in exactly one. Each is convex, and contracting all of them (or any subset) at once gives no cycle.
    """
    early = epochs(dag)
    if len(early) > TRIES_MAX:
        return _by_epochs(dag, early if absorb else late_epochs(dag, early), minimum, absorb)
    tries = [
        _by_epochs(dag, early, minimum, absorb),
        _by_epochs(dag, late_epochs(dag, early), minimum, absorb),
        _backwards(dag),
    ]
    return max(tries, key=lambda found: _score(dag, found, minimum))


def _score(dag: Dag, found: Sequence[Sequence[int]], minimum: int) -> tuple[int, int, int]:
    """More weight in clusters that are large enough, then fewer of these, then fewer clusters in all."""
    sizes = [sum(dag.weights[node] for node in members) for members in found]
    enough = [size for size in sizes if size >= minimum]
    return sum(enough), -len(enough), -len(sizes)


def _by_epochs(dag: Dag, epoch: Sequence[int], minimum: int, absorb: bool) -> tuple[tuple[int, ...], ...]:
    """Steps 2 to 4."""
    label = _connected(dag, epoch)
    if absorb:
        _absorb(dag, epoch, label, minimum)
    contraction = _Contraction(dag, label)
    contraction.refine()
    return contraction.clusters()


def _backwards(dag: Dag) -> tuple[tuple[int, ...], ...]:
    """Pairwise contraction alone: from the last node to the first, into each the followers that it can take."""
    contraction = _Contraction(dag, range(len(dag.preds)))
    for node in range(len(dag.preds) - 1, -1, -1):
        while dag.supported[node] and not contraction.exhausted and contraction.take_follower(node):
            pass
    return contraction.clusters()


def epochs(dag: Dag) -> list[int]:
    """The earliest epoch of every node."""
    found: list[int] = []
    for sources, supported in zip(dag.preds, dag.supported, strict=True):
        latest = 0
        for source in sources:
            reached = found[source]
            if not supported and dag.supported[source]:
                reached += 1
            latest = max(latest, reached)
        found.append(latest)
    return found


def late_epochs(dag: Dag, early: Sequence[int]) -> list[int]:
    """The latest epochs that keep the rule, with every sink where it was: better when clusters must be connected."""
    found = list(early)
    for node in range(len(found) - 1, -1, -1):
        rise = dag.supported[node]
        followers = dag.succs[node]
        if followers:
            found[node] = min(found[s] - (rise and not dag.supported[s]) for s in followers)
    return found


def _find(parent: list[int], node: int) -> int:
    root = node
    while parent[root] != root:
        root = parent[root]
    while parent[node] != root:
        parent[node], node = root, parent[node]
    return root


def _connected(dag: Dag, epoch: Sequence[int]) -> list[int]:
    """Node -> the smallest node of its cluster after step 2; unsupported nodes are alone."""
    parent = list(range(len(epoch)))
    for node, sources in enumerate(dag.preds):
        if not dag.supported[node]:
            continue
        for source in sources:
            if dag.supported[source] and epoch[source] == epoch[node]:
                a, b = _find(parent, source), _find(parent, node)
                if a != b:
                    parent[max(a, b)] = min(a, b)
    return [_find(parent, node) for node in range(len(parent))]


def _absorb(dag: Dag, epoch: Sequence[int], label: list[int], minimum: int) -> None:
    """Step 3, in place. Clusters without any weight stay as they are: they would only be passed through."""
    size: dict[int, int] = {}
    for node, root in enumerate(label):
        if dag.supported[node]:
            size[root] = size.get(root, 0) + dag.weights[node]
    largest: dict[int, int] = {}
    for root, weight in size.items():
        best = largest.get(epoch[root])
        if best is None or weight > size[best]:
            largest[epoch[root]] = root
    target = {root: largest[epoch[root]] for root, weight in size.items() if 0 < weight < minimum}
    for node, root in enumerate(label):
        if root in target and dag.supported[node]:
            label[node] = target[root]


class _Contraction:
    """The contracted graph in a topological order that outlives joins; groups are numbered densely by first member."""

    def __init__(self, dag: Dag, label: Sequence[int]) -> None:
        self._dag = dag
        numbers: dict[int, int] = {}
        self._group = [numbers.setdefault(root, len(numbers)) for root in label]
        count = len(numbers)
        self._joinable = [False] * count
        self._ins: list[set[int]] = [set() for _ in range(count)]
        self._outs: list[set[int]] = [set() for _ in range(count)]
        for node, sources in enumerate(dag.preds):
            group = self._group[node]
            self._joinable[group] = self._joinable[group] or dag.supported[node]
            for source in sources:
                other = self._group[source]
                if other != group:
                    self._outs[other].add(group)
                    self._ins[group].add(other)
        self._parent = list(range(count))
        self._first = list(range(count))
        self._order = self._topological(count)
        self._budget = SEARCH_FLOOR + SEARCH_BUDGET * (len(dag.preds) + sum(map(len, dag.preds)))

    def _topological(self, count: int) -> list[int]:
        """Group -> position, by Kahn's algorithm; ties go to the group that was met first."""
        waiting = [len(s) for s in self._ins]
        ready = deque(group for group in range(count) if not waiting[group])
        position = [0] * count
        placed = 0
        while ready:
            group = ready.popleft()
            position[group] = placed
            placed += 1
            for follower in sorted(self._outs[group]):
                waiting[follower] -= 1
                if not waiting[follower]:
                    ready.append(follower)
        assert placed == count, "clusters of one epoch never form a cycle"  # noqa: S101 - the proof of step 2
        return position

    def refine(self) -> None:
        """Step 4: joins neighbours wherever no second way leads from one to the other, until the budget is spent."""
        joinable, order = self._joinable, self._order
        pairs = [(a, b) for a in range(len(joinable)) if joinable[a] for b in self._outs[a] if joinable[b]]
        queue = deque(sorted(pairs, key=lambda pair: (order[pair[0]], order[pair[1]])))
        while queue and not self.exhausted:
            first, second = (_find(self._parent, group) for group in queue.popleft())
            if second in self._outs[first] and self._between(first, second):
                joined, ins, outs = self._join(first, second)
                # Only neighbours of both can have become joinable: a second way through one of the two is gone.
                queue.extend((p, joined) for p in sorted(ins, key=order.__getitem__) if joinable[p])
                queue.extend((joined, s) for s in sorted(outs, key=order.__getitem__) if joinable[s])

    def take_follower(self, node: int) -> bool:
        """Joins the cluster of `node` to the first of its followers that it can be joined to; False when none is."""
        group = _find(self._parent, self._group[node])
        self._budget -= len(self._outs[group])
        for follower in sorted(self._outs[group], key=self._first.__getitem__):
            if self._joinable[follower] and self._between(group, follower):
                self._join(group, follower)
                return True
        return False

    @property
    def exhausted(self) -> bool:
        """True when the searches may follow no more edges; what is joined by then stands."""
        return self._budget < 0

    def clusters(self) -> tuple[tuple[int, ...], ...]:
        """The groups of supported nodes, in topological order."""
        members: dict[int, list[int]] = {}
        roots = [_find(self._parent, group) for group in range(len(self._parent))]
        for node, group in enumerate(self._group):
            if self._joinable[group]:
                members.setdefault(roots[group], []).append(node)
        return tuple(tuple(members[g]) for g in sorted(members, key=self._order.__getitem__))

    def _between(self, first: int, second: int) -> bool:
        """Repairs the order so that the two can be joined; False when a second way leads from one to the other."""
        order = self._order
        low, high = order[first], order[second]
        if high - low == 1:
            return True
        after = self._reach(self._outs, first, second, low, high)
        if after is None:
            return False
        before = self._reach(self._ins, second, first, low, high)
        if before is None:
            return False
        # In the positions they hold together: what leads to `second`, then both, then what `first` leads to.
        sequence = [*sorted(before, key=order.__getitem__), first, second, *sorted(after, key=order.__getitem__)]
        for group, place in zip(sequence, sorted(order[g] for g in sequence), strict=True):
            order[group] = place
        return True

    def _reach(self, edges: list[set[int]], start: int, goal: int, low: int, high: int) -> list[int] | None:
        """Groups between the two positions that `start` reaches; None when `goal` is one, or the budget is spent."""
        order = self._order
        self._budget -= len(edges[start])
        found = [g for g in edges[start] if g != goal and low < order[g] < high]
        seen = {start, *found}
        stack = list(found)
        while stack:
            followers = edges[stack.pop()]
            self._budget -= len(followers)
            if goal in followers or self._budget < 0:
                return None
            fresh = [g for g in followers if g not in seen and low < order[g] < high]
            seen.update(fresh)
            found += fresh
            stack += fresh
        return found

    def _join(self, first: int, second: int) -> tuple[int, set[int], set[int]]:
        """Contracts an edge; the group with more neighbours survives, at its position.

        Returns:
            The group that survives, and the other neighbours that the dropped one had before and behind it.
        """
        ins, outs = self._ins, self._outs
        keep, drop = first, second
        if len(ins[drop]) + len(outs[drop]) > len(ins[keep]) + len(outs[keep]):
            keep, drop = drop, keep
        before, behind = ins[drop] - {keep}, outs[drop] - {keep}
        for other in before:
            outs[other].discard(drop)
            outs[other].add(keep)
        for other in behind:
            ins[other].discard(drop)
            ins[other].add(keep)
        ins[keep] |= before
        outs[keep] |= behind
        for neighbours in (ins, outs):
            neighbours[keep].discard(drop)
            neighbours[drop] = set()
        self._parent[drop] = keep
        self._first[keep] = min(self._first[keep], self._first[drop])
        return keep, before, behind
