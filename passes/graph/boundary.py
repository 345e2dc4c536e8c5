"""What crosses the edge of a set of nodes: data in, weights in, values out. Shared by partition and extraction."""

from __future__ import annotations

from collections.abc import Container, Sequence

from onnx import ModelProto

from passes.graph.walk import iter_scopes
from passes.graph_index import GraphIndex

#: (inputs, weights, outputs), each as value names in the order that `passes.segments.Segment` asks for.
Boundary = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def constant_names(proto: ModelProto) -> frozenset[str]:
    """Names of all initializers of the main graph and of all bodies, as far as nobody can change them.

    An initializer that is a graph input too is only a default value, so it counts as data; so does a sparse one,
    which TensorRT cannot take as a weight.
    """
    names: set[str] = set()
    for _, graph in iter_scopes(proto):
        if graph.initializer:
            names.update({t.name for t in graph.initializer} - {i.name for i in graph.input})
    return frozenset(names)


def boundary(index: GraphIndex, members: Sequence[int], constants: Container[str]) -> Boundary:
    """The boundary of the nodes numbered `members`, which must ascend; captures of their bodies count as reads.

    Returns:
        inputs: data values from outside, in order of first use.
        weights: members of `constants` that are read, in order of first use.
        outputs: values that a node outside reads or that are graph outputs, in order of production.
    """
    inside = set(members)
    inputs: dict[str, None] = {}
    weights: dict[str, None] = {}
    outputs: list[str] = []
    for member in members:
        names = index.reads[member]
        sources = index.preds[member]
        if len(sources) < len(names) or not inside.issuperset(sources):
            for name in names:
                if index.producer.get(name, -1) not in inside:
                    (weights if name in constants else inputs)[name] = None
        outputs += _leaving(index, member, inside)
    return tuple(inputs), tuple(weights), tuple(outputs)


def _leaving(index: GraphIndex, member: int, inside: Container[int]) -> list[str]:
    """The outputs of one node that a node outside reads or that are graph outputs."""
    made = index.makes[member]
    outside = [user for user in index.succs[member] if user not in inside]
    if len(made) == 1:
        return list(made) if outside or made[0] in index.output_names else []
    read = {name for user in outside for name in index.reads[user]}
    return [name for name in made if name and (name in read or name in index.output_names)]
