"""Quantisation that a source already has as int8, for engines that compute in FP8: TensorRT mixes the two nowhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from passes.base import Change
from passes.graph.editing import replace_nodes, substitute
from passes.graph.walk import iter_graphs
from passes.precision.ranges import LARGEST
from passes.steps.quantized_constants import Constants, Quantization


def has_int8(proto: ModelProto, constants: Constants) -> bool:
    """True when there is something for `int8_to_fp8` to do."""
    graphs = list(iter_graphs(proto))
    return any(True for graph in graphs for _ in _pairs(graph, constants)) or any(
        _weights(node, constants) is not None for graph in graphs for node in graph.node
    )


def int8_to_fp8(proto: ModelProto, constants: Constants) -> list[Change]:
    """Rewrites symmetric int8 quantisation; opset 19 or later.

    1. QuantizeLinear -> DequantizeLinear becomes a pair of E4M3 for the same range: scale' = scale * 127 / 448.
    2. A dequantised int8 constant becomes the float numbers that it stands for, exactly; whoever quantises weights to
       FP8 then does so with these as with all others.

    Args:
        proto: a canonical model, edited in place.
        constants: of the same model.
    """
    changes: list[Change] = []
    renamed: dict[str, str] = {}
    exposed = {o.name for graph in iter_graphs(proto) for o in graph.output}
    for graph in iter_graphs(proto):
        for start, ends in list(_pairs(graph, constants)):
            _convert(start, ends, constants)
            changes.append(Change("int8-to-fp8", start.name, "the pair keeps its range, in E4M3"))
        kept = []
        for node in graph.node:
            value = _weights(node, constants) if node.output[0] not in exposed else None
            if value is None:
                kept.append(node)
                continue
            renamed[node.output[0]] = constants.add(value, f"{node.output[0]}/value")
            reason = "int8 weights become float numbers, and FP8 ones where the engine quantises them"
            changes.append(Change("int8-to-fp8", node.name, reason))
        if len(kept) != len(graph.node):
            replace_nodes(graph, kept)
    substitute(proto.graph, renamed)
    return changes


def _pairs(graph: GraphProto, constants: Constants) -> Iterator[tuple[NodeProto, list[NodeProto]]]:
    """int8 QuantizeLinear nodes that only DequantizeLinear nodes of the same graph and scale read, with these."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.output}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.domain or node.output[0] in outputs:
            continue
        plan, ends = Quantization.of(node, constants), readers.get(node.output[0], [])
        if plan is None or not plan.symmetric or not ends:
            continue
        others = [
            Quantization.of(end, constants, plan.dtype) if end.op_type == "DequantizeLinear" else None for end in ends
        ]
        if all(other is not None and other.equals(plan) for other in others):
            yield node, ends


def _convert(start: NodeProto, ends: list[NodeProto], constants: Constants) -> None:
    scale = constants.array(start.input[1])
    assert scale is not None  # noqa: S101 - `_pairs` has read it
    wider = (scale.astype(np.float64) * (LARGEST["INT8"] / LARGEST["FP8"])).astype(scale.dtype)
    zero = np.zeros(scale.shape, helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN))
    parameters = [constants.add(wider, f"{start.input[1]}/fp8"), constants.add(zero, f"{start.output[0]}/zero")]
    for node in (start, *ends):
        node.input[1:] = parameters


def _weights(node: NodeProto, constants: Constants) -> np.ndarray | None:
    """The numbers behind a dequantised int8 constant; None for any other node."""
    if node.op_type != "DequantizeLinear" or node.domain or constants.dtype(node.input[0]) != TensorProto.INT8:
        return None
    plan, level = Quantization.of(node, constants, TensorProto.INT8), constants.array(node.input[0])
    if plan is None or level is None or not plan.symmetric:
        return None
    scale = plan.spread(plan.scale, level.ndim)
    return None if scale is None else (level.astype(plan.scale.dtype) * scale).astype(plan.scale.dtype)
