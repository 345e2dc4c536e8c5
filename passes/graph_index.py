"""The topology of one graph in plain integers, and the way through the bodies of If, Loop and Scan.

A node with bodies *reads* every outer value that its bodies read (its captures): to the graph around it a capture is
an edge like any other, so clustering, sorting and boundaries need no special case for control flow.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto

from passes.base import PassError
from passes.graph.order import stable_order
from passes.graph.walk import Scope, bodies_of, captures, free_names, has_bodies, iter_graphs, iter_scopes

__all__ = ["GraphIndex", "Scope", "bodies_of", "find_graph", "free_names", "has_bodies", "iter_graphs", "iter_scopes"]


@dataclasses.dataclass(frozen=True, eq=False)
class GraphIndex:
    """One graph as integers; nodes are numbered by their place in topological order.

    Attributes:
        graph: the graph that was indexed; it must not change while the index is used.
        nodes: its nodes in topological order: the order of the graph itself wherever that is sorted already.
        names: per node its name.
        makes: per node its outputs as they stand, '' for those that are left out.
        reads: per node the outer values it needs, in order of first use: inputs, then captures; no '' and no repeats.
        preds: per node the nodes that it reads from, ascending.
        succs: per node the nodes that read from it, ascending.
        producer: value name -> the node that makes it.
        captures: node -> what only its bodies read, for the nodes that have bodies.
        outputs: names of the graph's outputs, in order.
    """

    graph: GraphProto
    nodes: tuple[NodeProto, ...]
    names: tuple[str, ...]
    makes: tuple[tuple[str, ...], ...]
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
        nodes = tuple(graph.node)
        names = tuple([node.name for node in nodes])
        # A slice of a repeated field is much quicker than iterating over it.
        makes = tuple([tuple(node.output[:]) for node in nodes])
        reads, captured = _reads(nodes)
        producer = _producers(names, makes)
        preds = _preds(reads, producer)
        if any(sources and sources[-1] >= number for number, sources in enumerate(preds)):
            order, waiting = stable_order(preds)
            if len(order) < len(nodes):
                stuck = next(node for node, count in zip(nodes, waiting, strict=True) if count)
                raise PassError(
                    f"the graph has a cycle: node {stuck.name!r} ({stuck.op_type}) waits for its own result"
                )
            nodes, names, makes = (tuple([field[i] for i in order]) for field in (nodes, names, makes))
            reads = [reads[i] for i in order]
            place = {old: new for new, old in enumerate(order)}
            captured = {place[old]: values for old, values in captured.items()}
            producer = {name: place[old] for name, old in producer.items()}
            preds = _preds(reads, producer)
        return cls(
            graph,
            nodes,
            names,
            makes,
            tuple(reads),
            tuple(preds),
            _succs(preds),
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
        for number, name in enumerate(self.names):
            if not name or name in found:
                what = (
                    f"node name {name!r} is used twice" if name else f"a {self.nodes[number].op_type} node has no name"
                )
                raise PassError(f"{what} in graph {self.graph.name!r}: run canonicalize first")
            found[name] = number
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


def _reads(nodes: Sequence[NodeProto]) -> tuple[list[tuple[str, ...]], dict[int, tuple[str, ...]]]:
    """Per node what it reads, and node -> what its bodies read and the node itself does not, where it has bodies."""
    found = [tuple(node.input[:]) for node in nodes]
    captured: dict[int, tuple[str, ...]] = {}
    for number, node in enumerate(nodes):
        if node.attribute and has_bodies(node):
            own = found[number]
            captured[number] = tuple([name for name in captures(node) if name not in own])
            found[number] = own + captured[number]
    for number, names in enumerate(found):
        if (len(names) > 1 and len(set(names)) < len(names)) or "" in names:
            found[number] = tuple(dict.fromkeys([name for name in names if name]))
    return found, captured


def _producers(names: Sequence[str], makes: Sequence[Sequence[str]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, made in enumerate(makes):
        for value in made:
            if value in found:
                raise PassError(f"value {value!r} is made by two nodes: {names[found[value]]!r} and {names[number]!r}")
            if value:
                found[value] = number
    return found


def _preds(reads: Sequence[Sequence[str]], producer: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Per node the nodes it reads from, ascending."""
    found: list[tuple[int, ...]] = []
    for names in reads:
        sources = [producer[name] for name in names if name in producer]
        if len(sources) > 1:
            sources = sorted(set(sources))
        found.append(tuple(sources))
    return found


def _succs(preds: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Per node the nodes that read from it, ascending."""
    # Lists are of concern to the garbage collector, and most values have one reader: so a list only for the others.
    found: list[tuple[int, ...] | list[int]] = [()] * len(preds)
    for number, sources in enumerate(preds):
        for source in sources:
            known = found[source]
            if not known:
                found[source] = (number,)
            elif isinstance(known, list):
                known.append(number)
            else:
                found[source] = [*known, number]
    return tuple(map(tuple, found))
