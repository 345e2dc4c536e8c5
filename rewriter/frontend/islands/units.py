"""Nodes that cannot be parted from each other, as the nodes of a DAG.

Handles of resources and variants (TensorArrays and TensorLists, ragged values in a box) exist within one runtime only,
so the two ends of such an edge lie together. So do the nodes of a TF1 loop or branch (`lowered`). What lies on a way
from a unit back to itself belongs to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from rewriter.frontend.islands.graph import Graph, postorder
from rewriter.frontend.islands.lowered import lowered_edges

_HANDLES = frozenset({20, 21})


@dataclasses.dataclass(frozen=True)
class Units:
    """The computing nodes of a graph in units.

    Attributes:
        members: nodes of each unit; units are in topological order.
        preds: per unit the units that it reads from.
        succs: per unit the units that read from it.
        of: node -> its unit; sources and fed Placeholders have none.
    """

    members: tuple[tuple[str, ...], ...]
    preds: tuple[tuple[int, ...], ...]
    succs: tuple[tuple[int, ...], ...]
    of: Mapping[str, int]


def find_units(graph: Graph) -> Units:
    """Groups the nodes of a graph that compute something."""
    names = [name for name in graph.nodes if name not in graph.inputs and not graph.is_source(name)]
    number = {name: index for index, name in enumerate(names)}
    edges = [[number[s] for s, _ in graph.reads(name) if s in number] for name in names]
    parent = list(range(len(names)))
    lowered = lowered_edges(graph)
    for reader, name in enumerate(names):
        for read in graph.reads(name):
            if read[0] in number and (graph.dtype(read) in _HANDLES or (read, name) in lowered):
                _join(parent, number[read[0]], reader)
    return _contract(names, edges, [_root(parent, index) for index in range(len(names))])


def _contract(names: Sequence[str], edges: Sequence[Sequence[int]], label: Sequence[int]) -> Units:
    """Units of equal label, joined further until they form a DAG."""
    preds: dict[int, dict[int, None]] = {root: {} for root in label}
    for reader, sources in enumerate(edges):
        for source in sources:
            if label[source] != label[reader]:
                preds[label[reader]][label[source]] = None
    components = _components({root: tuple(sources) for root, sources in preds.items()})
    unit_of_root = {root: unit for unit, roots in enumerate(components) for root in roots}
    members: list[list[str]] = [[] for _ in components]
    of = {}
    for index, name in enumerate(names):
        unit = unit_of_root[label[index]]
        members[unit].append(name)
        of[name] = unit
    before: list[dict[int, None]] = [{} for _ in components]
    behind: list[dict[int, None]] = [{} for _ in components]
    for root, reads in preds.items():
        for source in reads:
            first, second = unit_of_root[source], unit_of_root[root]
            if first != second:
                before[second][first] = None
                behind[first][second] = None
    return Units(tuple(map(tuple, members)), tuple(map(tuple, before)), tuple(map(tuple, behind)), of)


def _components(preds: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Strongly connected components, each behind those that it reads from (Kosaraju's algorithm)."""
    succs: dict[int, list[int]] = {node: [] for node in preds}
    for node, sources in preds.items():
        for source in sources:
            succs[source].append(node)
    assigned: set[int] = set()
    # Behind all that it leads to, whatever cycles there are, so a search back from it finds its component alone.
    order = postorder(preds, preds.__getitem__, set())
    found = [postorder([node], succs.__getitem__, assigned) for node in reversed(order)]
    return [sorted(component) for component in reversed(found) if component]


def _root(parent: list[int], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


def _join(parent: list[int], a: int, b: int) -> None:
    a, b = _root(parent, a), _root(parent, b)
    parent[max(a, b)] = min(a, b)
