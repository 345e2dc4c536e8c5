"""Walking over a graph and the bodies of its If, Loop and Scan nodes.

A *scope* is the way to a graph: () for the main graph, else one entry "<node name>/<attribute name>" a level.
Protobuf itself refuses messages nested more than about a hundred deep, so recursion over bodies is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, NodeProto

Scope = tuple[str, ...]


def bodies(node: NodeProto) -> list[tuple[str, GraphProto]]:
    """The graphs a node carries, as (attribute name, graph); of a GRAPHS attribute as "name[0]", "name[1]" ..."""
    found: list[tuple[str, GraphProto]] = []
    attributes = node.attribute
    if not attributes:
        return found
    for attribute in attributes:
        if attribute.HasField("g"):
            found.append((attribute.name, attribute.g))
        elif attribute.graphs:
            found.extend((f"{attribute.name}[{i}]", graph) for i, graph in enumerate(attribute.graphs))
    return found


def graphs(graph: GraphProto, scope: Scope = ()) -> Iterator[tuple[Scope, GraphProto]]:
    """`graph` and then every body below it, in node order, outer before inner."""
    yield scope, graph
    for node in graph.node:
        for name, body in bodies(node):
            yield from graphs(body, (*scope, f"{node.name}/{name}"))


def nodes(graph: GraphProto) -> Iterator[tuple[Scope, NodeProto]]:
    """Every node of `graph` and of the bodies below it."""
    for scope, inner in graphs(graph):
        for node in inner.node:
            yield scope, node


def definitions(graph: GraphProto) -> Iterator[str]:
    """Names that `graph` itself defines: inputs, initializers, node outputs; a name that is given twice comes twice."""
    for value in graph.input:
        yield value.name
    for tensor in graph.initializer:
        yield tensor.name
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in graph.node:
        for name in node.output:
            if name:
                yield name


def captures(graph: GraphProto) -> list[str]:
    """Names that a body reads from the graphs around it, in order of first use."""
    defined = set(definitions(graph))
    found = (
        name
        for names in (*(reads(node) for node in graph.node), [o.name for o in graph.output])
        for name in names
        if name not in defined
    )
    return list(dict.fromkeys(found))


def reads(node: NodeProto) -> list[str]:
    """Names that a node reads: its inputs and what its bodies capture, without the empty optional ones."""
    names = [name for name in node.input if name]
    for _, body in bodies(node):
        names.extend(captures(body))
    return names
