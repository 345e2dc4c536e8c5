"""The topology of one graph in plain integers, and the way through the bodies of If, Loop and Scan.

A node with bodies *reads* every outer value that its bodies read (its captures): to the graph around it a capture is
an edge like any other, so clustering, sorting and boundaries need no special case for control flow.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from passes.base import PassError

#: The way to a graph: () for the main graph, else one "<node name>/<attribute name>" per level.
Scope = tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class GraphIndex:
    """One graph as integers; nodes are numbered by their place in topological order.

    Attributes:
        graph: the graph that was indexed; it must not change while the index is used.
        nodes: its nodes in topological order: the order of the graph itself wherever that is sorted already.
        reads: per node the outer values it needs, in order of first use: inputs, then captures; no '' and no repeats.
        preds: per node the nodes that it reads from, ascending.
        succs: per node the nodes that read from it, ascending.
        producer: value name -> the node that makes it.
        captures: node -> what only its bodies read, for the nodes that have bodies.
        outputs: names of the graph's outputs, in order.
    """

    graph: GraphProto
    nodes: tuple[NodeProto, ...]
    reads: tuple[tuple[str, ...], ...]
    preds: tuple[tuple[int, ...], ...]
    succs: tuple[tuple[int, ...], ...]
    producer: Mapping[str, int]
    captures: Mapping[int, tuple[str, ...]]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, graph: GraphProto) -> GraphIndex:
        """Indexes `graph` (not its bodies, apart from what they capture).

        Raises:
            PassError: a value has two producers, or the nodes form a cycle; the message names one.
        """
        nodes = list(graph.node)
        captured = _captured(nodes)
        reads = [_reads(node, captured.get(i, ())) for i, node in enumerate(nodes)]
        producer = _producers(nodes)
        order = _sorted_order(nodes, reads, producer)
        if order is not None:
            nodes = [nodes[i] for i in order]
            reads = [reads[i] for i in order]
            place = {old: new for new, old in enumerate(order)}
            captured = {place[old]: names for old, names in captured.items()}
            producer = {name: place[old] for name, old in producer.items()}
        preds: list[tuple[int, ...]] = []
        succs: list[list[int]] = [[] for _ in nodes]
        for number, names in enumerate(reads):
            sources = {producer[name] for name in names if name in producer}
            preds.append(tuple(sorted(sources)))
            for source in sources:
                succs[source].append(number)
        return cls(
            graph,
            tuple(nodes),
            tuple(reads),
            tuple(preds),
            tuple(map(tuple, succs)),
            producer,
            captured,
            tuple(o.name for o in graph.output),
        )

    @functools.cached_property
    def consumers(self) -> Mapping[str, Sequence[int]]:
        """Value name -> the nodes that read it, ascending; also for graph inputs and initializers."""
        found: dict[str, list[int]] = {}
        for number, names in enumerate(self.reads):
            for name in names:
                found.setdefault(name, []).append(number)
        return found

    @functools.cached_property
    def output_names(self) -> frozenset[str]:
        """The graph's outputs as a set."""
        return frozenset(self.outputs)

    @functools.cached_property
    def position(self) -> Mapping[str, int]:
        """Node name -> number.

        Raises:
            PassError: a node has no name, or two share one (canonicalize gives unique names).
        """
        found: dict[str, int] = {}
        for number, node in enumerate(self.nodes):
            if not node.name or node.name in found:
                what = f"node name {node.name!r} is used twice" if node.name else f"a {node.op_type} node has no name"
                raise PassError(f"{what} in graph {self.graph.name!r}: run canonicalize first")
            found[node.name] = number
        return found

    def positions(self, names: Iterable[str]) -> tuple[int, ...]:
        """The numbers of the named nodes, ascending, that is in topological order.

        Raises:
            PassError: there is no such node in this graph.
        """
        try:
            return tuple(sorted({self.position[name] for name in names}))
        except KeyError as error:
            raise PassError(f"there is no node {error.args[0]!r} in graph {self.graph.name!r}") from error


def bodies_of(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The graphs in a node's attributes with their scope path entries, in order of the attributes' names.

    A list of graphs (no operator of ONNX has one) gives "<node name>/<attribute name>[<index>]".
    """
    found: list[tuple[str, GraphProto]] = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found.append((f"{node.name}/{attribute.name}", attribute.g))
        elif attribute.type == AttributeProto.GRAPHS:
            found.extend((f"{node.name}/{attribute.name}[{i}]", g) for i, g in enumerate(attribute.graphs))
    yield from sorted(found, key=lambda pair: pair[0])


def has_bodies(node: NodeProto) -> bool:
    """True for If, Loop, Scan and every other node with a graph among its attributes."""
    return any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute)


def iter_scopes(proto: ModelProto) -> Iterator[tuple[Scope, GraphProto]]:
    """Every graph of the model: the main graph first, then all bodies, depth first in node order."""
    stack: list[tuple[Scope, GraphProto]] = [((), proto.graph)]
    while stack:
        scope, graph = stack.pop()
        yield scope, graph
        inner = [((*scope, entry), body) for node in graph.node if node.attribute for entry, body in bodies_of(node)]
        stack.extend(reversed(inner))


def iter_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and every body inside it, depth first."""
    stack = [graph]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(reversed([body for node in current.node for _, body in bodies_of(node)]))


def find_graph(proto: ModelProto, scope: Sequence[str]) -> GraphProto:
    """The graph at `scope`.

    Raises:
        PassError: there is no such graph; the message names the entry that leads nowhere.
    """
    graph = proto.graph
    for entry in scope:
        name = entry.rpartition("/")[0]
        found = [body for node in graph.node if node.name == name for label, body in bodies_of(node) if label == entry]
        if not found:
            raise PassError(f"scope entry {entry!r} leads nowhere: graph {graph.name!r} has no node with that body")
        graph = found[0]
    return graph


def free_names(graphs: Iterable[GraphProto]) -> tuple[str, ...]:
    """Names that the graphs read but do not define: their captures, in order of first use.

    Recursion is as deep as bodies are nested.
    """
    found: dict[str, None] = {}
    for graph in graphs:
        defined = defined_names(graph)
        for node in graph.node:
            inner = [g for _, g in bodies_of(node)] if node.attribute else []
            for name in (*node.input, *(free_names(inner) if inner else ())):
                if name and name not in defined:
                    found[name] = None
        found.update((o.name, None) for o in graph.output if o.name and o.name not in defined)
    return tuple(found)


def defined_names(graph: GraphProto) -> set[str]:
    """Names that a graph itself defines: inputs, initializers and node outputs."""
    names = {i.name for i in graph.input}
    names.update(t.name for t in graph.initializer)
    names.update(t.values.name for t in graph.sparse_initializer)
    for node in graph.node:
        names.update(node.output)
    return names


def _captured(nodes: Sequence[NodeProto]) -> dict[int, tuple[str, ...]]:
    """Node -> what its bodies read and the node itself does not, for the nodes with bodies."""
    found: dict[int, tuple[str, ...]] = {}
    for number, node in enumerate(nodes):
        if node.attribute and has_bodies(node):
            own = set(node.input)
            found[number] = tuple(n for n in free_names(g for _, g in bodies_of(node)) if n not in own)
    return found


def _reads(node: NodeProto, captured: Sequence[str]) -> tuple[str, ...]:
    names = tuple(node.input)
    if captured or "" in names or len(set(names)) < len(names):
        return tuple(dict.fromkeys(n for n in (*names, *captured) if n))
    return names


def _producers(nodes: Sequence[NodeProto]) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, node in enumerate(nodes):
        for name in node.output:
            if not name:
                continue
            if name in found:
                raise PassError(f"value {name!r} is made by two nodes: {nodes[found[name]].name!r} and {node.name!r}")
            found[name] = number
    return found


def _sorted_order(
    nodes: Sequence[NodeProto], reads: Sequence[Sequence[str]], producer: Mapping[str, int]
) -> list[int] | None:
    """A stable topological order, or None when the given order is one already."""
    if all(producer.get(name, -1) < number for number, names in enumerate(reads) for name in names):
        return None
    sources = [{producer[name] for name in names if name in producer} for names in reads]
    users: list[list[int]] = [[] for _ in nodes]
    for number, found in enumerate(sources):
        for source in found:
            users[source].append(number)
    waiting = [len(found) for found in sources]
    ready = [number for number, count in enumerate(waiting) if not count]
    order: list[int] = []
    while ready:
        number = heapq.heappop(ready)
        order.append(number)
        for user in users[number]:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, user)
    if len(order) < len(nodes):
        stuck = next(nodes[number] for number, count in enumerate(waiting) if count)
        raise PassError(f"the graph has a cycle: node {stuck.name!r} ({stuck.op_type}) waits for its own result")
    return order
