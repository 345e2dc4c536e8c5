"""Topological order of a graph and of every body below it, stable: nodes move only when they must."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import GraphProto

from passes.base import Change, PassError
from passes.graph.editing import label, place, replace_nodes
from passes.graph.order import stable_order
from passes.graph.walk import Scope, bodies_of, definitions, reads


def sort_nodes(graph: GraphProto) -> list[Change]:
    """Sorts `graph` and the bodies below it in place.

    Raises:
        PassError: a cycle, or a value that nothing defines; the message names the nodes.
    """
    changes: list[Change] = []
    _sort(graph, (), [], changes)
    return changes


def _sort(graph: GraphProto, scope: Scope, outer: list[set[str]], changes: list[Change]) -> None:
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    visible = [*outer, set(definitions(graph))]
    needs: list[list[int]] = []
    in_order = True
    for i, node in enumerate(graph.node):
        before = []
        for name in reads(node):
            producer = producers.get(name)
            if producer is not None:
                before.append(producer)
                in_order = in_order and producer < i
            elif name in node.input and not any(name in names for names in visible):
                # What a body reads is judged when it is that body's turn, so that the message names the right node.
                raise PassError(f"node {label(node)} in {place(scope)} reads {name!r}, which nothing produces")
        needs.append(before)
    _check_outputs(graph, scope, visible[-1])
    if not in_order:
        order = _kahn(graph, scope, needs)
        replace_nodes(graph, [graph.node[i] for i in order])
        changes.append(Change("sort", place(scope), "nodes were not in topological order"))
    for node in graph.node:
        for entry, body in bodies_of(node):
            _sort(body, (*scope, entry), visible, changes)


def _check_outputs(graph: GraphProto, scope: Scope, defined: set[str]) -> None:
    for output in graph.output:
        if output.name not in defined:
            raise PassError(f"output {output.name!r} of {place(scope)} is produced by none of its nodes")


def _kahn(graph: GraphProto, scope: Scope, needs: Sequence[Sequence[int]]) -> list[int]:
    """Node indices in topological order; of several ready nodes the one that stood first goes first."""
    order, waiting = stable_order(needs)
    if len(order) < len(needs):
        names = [label(graph.node[i]) for i in _cycle(needs, waiting)]
        raise PassError(f"{place(scope)} has a cycle: {' -> '.join([*names, names[0]])}")
    return order


def _cycle(needs: Sequence[Sequence[int]], waiting: Sequence[int]) -> list[int]:
    """One cycle among the nodes that never became ready, in direction of the data."""
    node = next(i for i, count in enumerate(waiting) if count)
    place_of: dict[int, int] = {}
    walked: list[int] = []
    while node not in place_of:
        place_of[node] = len(walked)
        walked.append(node)
        node = next(p for p in needs[node] if waiting[p])
    return walked[place_of[node] :][::-1]
