"""Trained int8 weights as floats, for engines that do not compute in 8 bits."""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto

from passes.base import Change, PassResult
from passes.graph.editing import filter_initializers, finish, replace_nodes
from passes.graph.walk import iter_graphs, iter_nodes
from passes.model import Model
from passes.precision.quantization.split_pairs import is_product
from passes.steps.quantized_constants import Constants, Quantization


@dataclasses.dataclass(frozen=True)
class FloatWeights:
    """Replaces DequantizeLinear of an int8 constant by its values, exactly, where nothing multiplies it in 8 bits.

    A quantisation-aware model keeps int8 weights so that their scales are not lost. FP32 and FP16 engines have no use
    for them: there they would choose kernels for compressed weights, which are slower and rarer. Weights of products
    whose other operand is dequantised as well (Q/DQ of an ONNX source) stay: that is 8-bit arithmetic as trained.
    """

    name: str = "float_weights"

    def run(self, model: Model) -> PassResult:
        """Dequantises what it can; only for recipes that do not quantise themselves."""
        if not any(node.op_type == "DequantizeLinear" for node in iter_nodes(model.proto.graph)):
            return PassResult(model)
        proto, weights = model.copy_proto(), dict(model.weights)
        constants = Constants.of(proto, weights)
        exposed = {output.name for graph in iter_graphs(proto.graph) for output in graph.output}
        needed = exposed | _multiplied(proto.graph)
        renamed: dict[str, str] = {}
        changes: list[Change] = []
        for graph in iter_graphs(proto.graph):  # lazily: rewriting a graph copies its bodies
            _dequantise(graph, constants, needed, renamed, changes)
        if renamed:
            for node in iter_nodes(proto.graph):
                for index, name in enumerate(node.input):
                    node.input[index] = renamed.get(name, name)
            read = {name for node in iter_nodes(proto.graph) for name in node.input} | exposed
            for name in filter_initializers(proto.graph, lambda tensor: tensor.name in read):
                weights.pop(name, None)
        return finish(model, proto, weights, changes)


def _multiplied(graph: GraphProto) -> set[str]:
    """Values that a product of two dequantised operands reads, bodies included."""
    dequantised = {node.output[0]: node for node in iter_nodes(graph) if node.op_type == "DequantizeLinear"}
    return {name for node in iter_nodes(graph) if is_product(node, dequantised) for name in node.input[:2]}


def _dequantise(
    graph: GraphProto, constants: Constants, needed: set[str], renamed: dict[str, str], changes: list[Change]
) -> None:
    kept: list[NodeProto] = []
    for node in graph.node:
        values = None
        if node.op_type == "DequantizeLinear" and not node.domain and node.output[0] not in needed:
            values = _values(node, constants)
        if values is None:
            kept.append(node)
            continue
        renamed[node.output[0]] = constants.add(values, f"{node.output[0]}//values")
        changes.append(Change("float-weight", node.name, "the recipe computes in floating point"))
    if len(kept) != len(graph.node):
        replace_nodes(graph, kept)


def _values(node: NodeProto, constants: Constants) -> np.ndarray | None:
    """What a DequantizeLinear makes of an int8 constant; None for anything else."""
    stored = constants.array(node.input[0])
    plan = Quantization.of(node, constants, constants.dtype(node.input[0]))
    if stored is None or plan is None or plan.dtype != TensorProto.INT8 or plan.scale.dtype != np.float32:
        return None
    zero, scale = plan.spread(plan.zero, stored.ndim), plan.spread(plan.scale, stored.ndim)
    if zero is None or scale is None:
        return None
    return np.asarray((stored.astype(np.int64) - zero).astype(np.float32) * scale, np.float32)
