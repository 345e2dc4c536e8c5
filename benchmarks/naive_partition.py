"""The baseline: pairwise contraction with a depth-first search before every one, as TF-TRT's segmenter is described.

Written from the description alone: nodes are visited in reverse topological order, and an edge between two
supported clusters is contracted when no other way leads from its source to its target; after a contraction the joined
cluster's edges are tried again. Every check searches the graph, so the time grows about with the square of its size.
"""

from __future__ import annotations

from passes.graph.clustering import Dag


def naive_clusters(dag: Dag) -> tuple[tuple[int, ...], ...]:
    """Clusters of the supported nodes, ascending node numbers each."""
    count = len(dag.preds)
    ins = [set(p) for p in dag.preds]
    outs = [set(s) for s in dag.succs]
    members = [[node] for node in range(count)]
    owner = list(range(count))
    for node in range(count - 1, -1, -1):
        if not dag.supported[node]:
            continue
        changed = True
        while changed:
            changed = False
            source = owner[node]
            for target in sorted(outs[source]):
                if not dag.supported[target] or _other_way(outs, source, target):
                    continue
                _contract(ins, outs, source, target)
                for member in members[target]:
                    owner[member] = source
                members[source] += members[target]
                members[target] = []
                changed = True
                break
    return tuple(tuple(sorted(m)) for node, m in enumerate(members) if m and dag.supported[node])


def _other_way(outs: list[set[int]], source: int, target: int) -> bool:
    """True when `target` can be reached from `source` without their edge."""
    seen = {source}
    stack = [s for s in outs[source] if s != target]
    while stack:
        group = stack.pop()
        if group == target:
            return True
        if group not in seen:
            seen.add(group)
            stack.extend(outs[group])
    return False


def _contract(ins: list[set[int]], outs: list[set[int]], source: int, target: int) -> None:
    for other in ins[target]:
        outs[other].discard(target)
        if other != source:
            outs[other].add(source)
            ins[source].add(other)
    for other in outs[target]:
        ins[other].discard(target)
        ins[other].add(source)
        outs[source].add(other)
    ins[target], outs[target] = set(), set()
    ins[source].discard(source)
    outs[source].discard(source)
