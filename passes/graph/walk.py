"""Walking over a graph and the bodies of its If, Loop and Scan nodes, and what names these define and read.

A *scope* is the way to a graph: () for the main graph, else one entry "<node name>/<attribute name>" a level.
Protobuf itself refuses messages nested more than about a hundred deep, so recursion over bodies is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

#: The way to a graph: () for the main graph, else one "<node name>/<attribute name>" a level.
Scope = tuple[str, ...]

_GRAPH, _GRAPHS = AttributeProto.GRAPH, AttributeProto.GRAPHS


def bodies_of(node: NodeProto) -> Sequence[tuple[str, GraphProto]]:
    """The graphs in a node's attributes with their scope path entries, in order of the attributes' names.

    A list of graphs (no operator of ONNX has one) gives "<node name>/<attribute name>[<index>]".
    """
    attributes = node.attribute
    if not attributes:
        return ()
    found: list[tuple[str, str, GraphProto]] = []
    for attribute in attributes:
        kind = attribute.type
        if kind == _GRAPH:
            found.append((attribute.name, "", attribute.g))
        elif kind == _GRAPHS:
            found.extend((attribute.name, f"[{i}]", graph) for i, graph in enumerate(attribute.graphs))
    if len(found) > 1:
        found.sort(key=lambda entry: entry[0])
    return [(f"{node.name}/{name}{index}", graph) for name, index, graph in found] if found else ()


def has_bodies(node: NodeProto) -> bool:
    """True for If, Loop, Scan and every other node with a graph among its attributes."""
    return any(a.type in (_GRAPH, _GRAPHS) for a in node.attribute)


def iter_scopes(root: ModelProto | GraphProto) -> Iterator[tuple[Scope, GraphProto]]:
    """Every graph with its scope: the main graph (or `root` itself) first, then all bodies, depth first in node order.

    The nodes of a graph are looked at after it was handed out, so the caller may replace them by then.
    """
    stack: list[tuple[Scope, GraphProto]] = [((), root.graph if isinstance(root, ModelProto) else root)]
    while stack:
        scope, graph = stack.pop()
        yield scope, graph
        inner = [((*scope, entry), body) for node in graph.node if node.attribute for entry, body in bodies_of(node)]
        stack.extend(reversed(inner))


def iter_graphs(root: ModelProto | GraphProto) -> Iterator[GraphProto]:
    """The graphs of `iter_scopes` alone."""
    for _, graph in iter_scopes(root):
        yield graph


def iter_nodes(root: ModelProto | GraphProto) -> Iterator[NodeProto]:
    """Every node, those of the bodies included, graph by graph in the order of `iter_scopes`."""
    for _, graph in iter_scopes(root):
        yield from graph.node


def definitions(graph: GraphProto) -> list[str]:
    """Names that `graph` itself defines: inputs, initializers, node outputs; a name that is given twice comes twice."""
    names = [value.name for value in graph.input]
    names += [tensor.name for tensor in graph.initializer]
    names += [sparse.values.name for sparse in graph.sparse_initializer]
    for node in graph.node:
        # A slice of a repeated field is much quicker than iterating over it.
        names += node.output[:]
    return [name for name in names if name]


def defined_names(graph: GraphProto) -> set[str]:
    """The names of `definitions` as a set."""
    return set(definitions(graph))


def free_names(graphs: Iterable[GraphProto]) -> tuple[str, ...]:
    """Names that the graphs read but do not define: their captures, in order of first use.

    Recursion is as deep as bodies are nested.
    """
    found: dict[str, None] = {}
    for graph in graphs:
        defined = defined_names(graph)
        for node in graph.node:
            found.update((name, None) for name in reads(node) if name not in defined)
        found.update((o.name, None) for o in graph.output if o.name and o.name not in defined)
    return tuple(found)


def captures(node: NodeProto) -> tuple[str, ...]:
    """What the bodies of a node read from outside, in order of first use; its own inputs may be among them."""
    inner = bodies_of(node)
    return free_names(body for _, body in inner) if inner else ()


def reads(node: NodeProto) -> list[str]:
    """Names that a node reads: its inputs, then what its bodies capture; no optional inputs that are left out."""
    names = node.input[:]
    if node.attribute:
        names += captures(node)
    return [name for name in names if name] if "" in names else names


def plain_domain(domain: str) -> str:
    """The default domain as "", in whichever way it is spelt; any other as it is."""
    return "" if domain == "ai.onnx" else domain
