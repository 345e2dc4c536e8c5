"""Casting uint8 before it is moved around rather than afterwards."""

from __future__ import annotations

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from passes.base import Change
from passes.graph.editing import replace_nodes
from passes.graph.walk import captures, iter_graphs
from passes.steps.legalize_rules import Workshop

#: Operators that only move elements of their first input, and give one output.
_MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile"})
_TARGETS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT32, TensorProto.INT64}
)


def cast_earlier(proto: ModelProto, workshop: Workshop) -> list[Change]:
    """Moves a Cast from uint8 ahead of the Transposes, Slices, Reshapes ... that come before it.

    TensorRT takes uint8 only as the input of a Cast ("does not support UINT8 types for intermediate tensors"), and an
    image model often transposes or crops its uint8 input first. Moving elements commutes with casting them, so the
    result is the same bit for bit. It is done where all that is made of the moved value ends in Casts to one type.
    """
    changes: list[Change] = []
    # A table that is gathered from would grow fourfold.
    constants = {t.name for t in proto.graph.initializer}
    for graph in iter_graphs(proto.graph):
        targets = _targets(graph, workshop, constants)
        if targets:
            _move(graph, workshop, targets, changes)
    return changes


def _targets(graph: GraphProto, workshop: Workshop, constants: set[str]) -> dict[str, int]:
    """uint8 results of moving nodes -> the type that all of their uses are cast to."""
    wanted: dict[str, int] = {}
    blocked = {o.name for o in graph.output}
    for node in reversed(graph.node):
        if _moves(node, workshop, constants) and node.output[0] not in blocked and node.output[0] in wanted:
            _want(wanted, blocked, node.input[0], wanted[node.output[0]])
            blocked.update(node.input[1:])
        elif node.op_type == "Cast" and not node.domain:
            _want(wanted, blocked, node.input[0], next(a.i for a in node.attribute if a.name == "to"))
        else:
            blocked.update(node.input)
            blocked.update(captures(node))
    return {
        node.output[0]: wanted[node.output[0]]
        for node in graph.node
        if _moves(node, workshop, constants) and node.output[0] in wanted and node.output[0] not in blocked
    }


def _moves(node: NodeProto, workshop: Workshop, constants: set[str]) -> bool:
    if node.op_type not in _MOVES or node.domain or node.input[0] in constants:
        return False
    return workshop.dtype(node.input[0]) == TensorProto.UINT8


def _want(wanted: dict[str, int], blocked: set[str], name: str, to: int) -> None:
    if to not in _TARGETS or wanted.setdefault(name, to) != to:
        blocked.add(name)


def _move(graph: GraphProto, workshop: Workshop, targets: dict[str, int], changes: list[Change]) -> None:
    """Inserts the early Casts; the late ones become no-ops, which `Canonicalize` removes."""
    nodes: list[NodeProto] = []
    casts: dict[tuple[str, int], str] = {}
    for node in graph.node:
        to = targets.get(node.output[0]) if node.output else None
        if to is not None and node.input[0] not in targets:
            key = (node.input[0], to)
            if key not in casts:
                cast = workshop.node(node, "Cast", [node.input[0]], to=to)
                nodes.append(cast)
                casts[key] = cast.output[0]
            node.input[0] = casts[key]
            changes.append(Change("cast-earlier", node.name, "TensorRT takes uint8 only as the input of a Cast"))
        nodes.append(node)
    for value in graph.value_info:
        if value.name in targets:
            value.type.tensor_type.elem_type = targets[value.name]
    replace_nodes(graph, nodes)
