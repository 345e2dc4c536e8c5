"""One DequantizeLinear for products of 8-bit values, another for everything else that reads the same value."""

from __future__ import annotations

import dataclasses

from onnx import GraphProto, NodeProto

from passes.base import Change, PassResult
from passes.graph.editing import Namer, finish, node_namer, replace_nodes, value_namer
from passes.graph.walk import iter_graphs, plain_domain
from passes.model import Model
from passes.precision.recipe import MARK

#: Operators that TensorRT multiplies in 8 bits when both operands come from a DequantizeLinear.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


@dataclasses.dataclass(frozen=True)
class SplitPairs:
    """Gives readers of different kinds a DequantizeLinear each, before floating point is lowered.

    Products of dequantised values stay float32, their neighbours (a residual Add, say) do not. If both read one
    DequantizeLinear, a Cast would stand between it and one of them, and TensorRT would no longer see the pair.
    Readers inside bodies of control flow keep the one that is there.
    """

    name: str = "split_pairs"

    def run(self, model: Model) -> PassResult:
        """Copies DequantizeLinear nodes where that is so."""
        proto = model.copy_proto()
        values, names = value_namer(proto.graph), node_namer(proto.graph)
        changes: list[Change] = []
        for graph in iter_graphs(proto.graph):  # lazily: rewriting a graph copies its bodies
            changes.extend(_split(graph, values, names))
        return finish(model, proto, model.weights, changes)


def is_product(node: NodeProto, dequantised: dict[str, NodeProto]) -> bool:
    """True for a node that TensorRT multiplies in 8 bits."""
    return (
        node.op_type in PRODUCTS
        and not plain_domain(node.domain)
        and all(name in dequantised for name in node.input[:2])
    )


def _split(graph: GraphProto, values: Namer, names: Namer) -> list[Change]:
    dequantised = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    products = [node for node in graph.node if is_product(node, dequantised)]
    shared = {name for node in products for name in node.input[:2]}
    copies: dict[str, NodeProto] = {}
    inside = {id(node) for node in products}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in shared and (id(node) not in inside or index > 1):
                if name not in copies:
                    copies[name] = _copy(dequantised[name], values, names)
                node.input[index] = copies[name].output[0]
    if not copies:
        return []
    kept: list[NodeProto] = []
    for node in graph.node:
        kept.append(node)
        if node.op_type == "DequantizeLinear" and node.output[0] in copies:
            kept.append(copies[node.output[0]])
    replace_nodes(graph, kept)
    return [
        Change("split-pair", dequantised[name].name, f"{name!r} is read by a product and others") for name in copies
    ]


def _copy(node: NodeProto, values: Namer, names: Namer) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = names.fresh(f"{node.name}{'_' if MARK in node.name else MARK}beside")
    copy.output[0] = values.fresh(f"{node.output[0]}{MARK}beside")
    return copy
