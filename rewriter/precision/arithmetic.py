"""What the nodes of a lowered segment really compute in."""

from __future__ import annotations

from collections import Counter

from onnx import NodeProto, TensorProto

from passes.graph.walk import iter_nodes
from passes.model import Model
from passes.precision.element_types import element_types
from passes.precision.quantization.split_pairs import is_product

_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.DOUBLE: "FP64",
}
#: What the quantised side of a DequantizeLinear makes of the product that reads it.
_PRODUCTS: dict[int, str] = {TensorProto.INT8: "INT8", TensorProto.FLOAT8E4M3FN: "FP8"}
_ORDER = ("INT8", "FP8", "INT4 weights", "FP16", "BF16", "FP32", "FP64", "other")


def arithmetic(source: Model, lowered: Model) -> dict[str, int]:
    """Number of nodes by what they compute in: "INT8" or "FP8" for products of such values, else the output's type.

    Args:
        source: the segment; only its nodes count, not what lowering put between them.
        lowered: the same after lowering; nodes that it replaced (trained fake quantisation) count no more.

    Returns:
        Only what occurs, lowest first; a product with 4-bit weights is "INT4 weights"; integers, booleans and the like
        are "other".
    """
    own = {node.name for node in iter_nodes(source.proto.graph)}
    types = element_types(lowered)
    dequantised = {n.output[0]: n for n in iter_nodes(lowered.proto.graph) if n.op_type == "DequantizeLinear"}
    counts: Counter[str] = Counter()
    for node in iter_nodes(lowered.proto.graph):
        if node.name in own and node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            counts[_kind(node, types, dequantised)] += 1
    return {name: counts[name] for name in _ORDER if counts[name]}


def _kind(node: NodeProto, types: dict[str, int], dequantised: dict[str, NodeProto]) -> str:
    stored = [types.get(dequantised[name].input[0], 0) for name in node.input[:2] if name in dequantised]
    if is_product(node, dequantised) and stored[0] in _PRODUCTS:
        return _PRODUCTS[stored[0]]
    if TensorProto.INT4 in stored:
        return "INT4 weights"
    return _NAMES.get(next((types.get(name, 0) for name in node.output if name), 0), "other")
