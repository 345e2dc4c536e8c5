"""Which nodes do work: what counts towards `minimum_segment_size` and coverage."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto, TensorProto, ValueInfoProto

from passes.graph.walk import bodies_of

#: Operators that only pass a value on (Dropout at inference does) or hold one.
PASS_THROUGH = frozenset({"Identity", "Constant", "Dropout"})


def is_effective(node: NodeProto, infos: Mapping[str, ValueInfoProto]) -> bool:
    """False for Identity, Constant, Dropout with one used output, and Cast to the type that the value has already.

    Args:
        node: the node.
        infos: value name -> type, to tell a Cast that does nothing; one of unknown input type counts.
    """
    if node.domain not in ("", "ai.onnx"):
        return True
    if node.op_type == "Cast":
        info = infos.get(node.input[0])
        known = info.type.tensor_type.elem_type if info is not None else TensorProto.UNDEFINED
        return known == TensorProto.UNDEFINED or all(a.i != known for a in node.attribute if a.name == "to")
    if node.op_type == "Dropout":
        return sum(map(bool, node.output)) > 1
    return node.op_type not in PASS_THROUGH


def effective_weight(node: NodeProto, infos: Mapping[str, ValueInfoProto]) -> int:
    """1 for an effective node, plus the weights of all nodes in its bodies (so a Loop of two nodes counts 3)."""
    weight = int(is_effective(node, infos))
    stack = [body for _, body in bodies_of(node)] if node.attribute else []
    while stack:
        for inner in stack.pop().node:
            weight += is_effective(inner, infos)
            stack.extend(body for _, body in bodies_of(inner))
    return weight
