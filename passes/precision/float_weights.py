"""Trained int8 weights as floats, for engines that do not compute in 8 bits."""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

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
            kinds = constants.dtype(node.input[0]), constants.dtype(node.input[1])
            values = float_values(node, constants) if kinds == (TensorProto.INT8, TensorProto.FLOAT) else None
        if values is None:
            kept.append(node)
            continue
        renamed[node.output[0]] = constants.add(values, f"{node.output[0]}//values")
        changes.append(Change("float-weight", node.name, "the recipe computes in floating point"))
    if len(kept) != len(graph.node):
        replace_nodes(graph, kept)


def float_values(node: NodeProto, constants: Constants, start: NodeProto | None = None) -> np.ndarray | None:
    """What a DequantizeLinear makes of a constant of int8 or E4M3, in the type of its scales; None for anything else.

    Args:
        node: the DequantizeLinear.
        constants: of its model.
        start: the QuantizeLinear that makes its int8 data of a float constant; None where these are stored.
    """
    if constants.dtype(node.input[0]) == TensorProto.FLOAT8E4M3FN:
        return _float8_values(node, constants)
    stored = constants.array(node.input[0])
    plan = Quantization.of(node, constants, constants.dtype(node.input[0]))
    if start is not None and start.op_type == "QuantizeLinear" and not start.domain:
        plan = Quantization.of(start, constants)
        stored = _levels(plan, constants.array(start.input[0])) if plan is not None else None
        other = Quantization.of(node, constants, plan.dtype) if plan is not None else None
        if plan is None or other is None or not other.equals(plan):
            return None
    if stored is None or plan is None or plan.dtype != TensorProto.INT8:
        return None
    zero, scale = plan.spread(plan.zero, stored.ndim), plan.spread(plan.scale, stored.ndim)
    if zero is None or scale is None:
        return None
    # Differences of two int8 are exact in every float type that scales have, so this rounds once, as ONNX does.
    return np.asarray((stored.astype(np.int64) - zero).astype(scale.dtype) * scale, scale.dtype)


def _levels(plan: Quantization, array: np.ndarray | None) -> np.ndarray | None:
    """What a QuantizeLinear makes of a constant, as integers."""
    if array is None:
        return None
    zero, scale = plan.spread(plan.zero, array.ndim), plan.spread(plan.scale, array.ndim)
    if zero is None or scale is None:
        return None
    info = np.iinfo(helper.tensor_dtype_to_np_dtype(plan.dtype))
    return np.asarray(np.clip(np.rint(array / scale) + zero, info.min, info.max).astype(np.int64))


def _float8_values(node: NodeProto, constants: Constants) -> np.ndarray | None:
    """The E4M3 numbers of a constant times their scales."""
    stored, scale = constants.array(node.input[0]), constants.array(node.input[1])
    zero = constants.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    attributes = {a.name: a.i for a in node.attribute}
    if stored is None or scale is None or zero is None or zero.astype(np.float32).any():
        return None
    if attributes.get("block_size") or scale.ndim > 1:
        return None
    axis = attributes.get("axis", 1)
    spread = scale.reshape(() if scale.size == 1 else [-1, *[1] * ((-axis if axis < 0 else stored.ndim - axis) - 1)])
    return np.asarray(stored.astype(np.float32) * spread.astype(np.float32)).astype(scale.dtype)
