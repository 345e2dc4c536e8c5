"""Which nodes do work: what counts towards `minimum_segment_size` and coverage."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx import NodeProto, TensorProto, ValueInfoProto

from passes.graph.walk import bodies_of, iter_nodes, plain_domain

#: Operators that only pass a value on (Dropout at inference does) or hold one.
PASS_THROUGH = frozenset({"Identity", "Constant", "Dropout"})
#: Of these alone it has to be looked at more than the operator.
_SUSPECTS = PASS_THROUGH | {"Cast"}

#: Gives value name -> declared type; a function, for only Casts need the types and collecting them takes time.
Infos = Callable[[], Mapping[str, ValueInfoProto]]


def is_effective(node: NodeProto, infos: Infos) -> bool:
    """False for Identity, Constant, Dropout with one used output, and Cast to the type that the value has already.

    Args:
        node: the node.
        infos: declared types, to tell a Cast that does nothing; one of unknown input type counts.
    """
    op_type = node.op_type
    if op_type not in _SUSPECTS or plain_domain(node.domain):
        return True
    if op_type == "Cast":
        info = infos().get(node.input[0])
        known = info.type.tensor_type.elem_type if info is not None else TensorProto.UNDEFINED
        return known == TensorProto.UNDEFINED or all(a.i != known for a in node.attribute if a.name == "to")
    return op_type == "Dropout" and sum(map(bool, node.output)) > 1


def effective_weight(node: NodeProto, infos: Infos) -> int:
    """1 for an effective node, plus the weights of all nodes in its bodies (so a Loop of two nodes counts 3)."""
    weight = int(is_effective(node, infos))
    if node.attribute:
        weight += sum(is_effective(inner, infos) for _, body in bodies_of(node) for inner in iter_nodes(body))
    return weight
