"""Quantised activations that TensorRT takes wrongly or not at all, in float arithmetic equal to the last bit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from passes.base import Change
from passes.graph.editing import replace_nodes
from passes.graph.walk import iter_graphs
from passes.model import Weights
from passes.steps.legalize_rules import Workshop
from passes.steps.quantized_constants import Constants, Quantization


def float_pairs(proto: ModelProto, weights: Weights, workshop: Workshop) -> list[Change]:
    """Rewrites QuantizeLinear -> DequantizeLinear pairs of any type but int8 with zero point 0.

    TensorRT refuses zero points and 16 bits, and computes uint8 as int8, so that it saturates at 127 without a word.
    With z the zero point, ONNX defines y = (saturate(round(x / s) + z) - z) * s, which is

        Div(x, s) -> Round (half to even) -> Clip(lowest - z, highest - z) -> Mul(s).

    A pair needs constant scales and zero points, equal on both sides; what QuantizeLinear gives must be read by such
    DequantizeLinear nodes alone, in its own graph. Only float32: others are left to the runtime outside TensorRT.

    Args:
        proto: a canonical model, edited in place.
        weights: data of its stubs.
        workshop: of the same model; makes nodes and constants.
    """
    constants = Constants.of(proto, weights)
    readers = _readers(proto)
    changes: list[Change] = []
    for graph in iter_graphs(proto.graph):
        _rewrite(graph, constants, readers, workshop, changes)
    return changes


def _readers(proto: ModelProto) -> Mapping[str, list[str]]:
    """Names of the nodes that read each value; "" for an output of a graph."""
    readers: dict[str, list[str]] = {}
    for graph in iter_graphs(proto.graph):
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node.name)
        for output in graph.output:
            readers.setdefault(output.name, []).append("")
    return readers


def _rewrite(
    graph: GraphProto,
    constants: Constants,
    readers: Mapping[str, list[str]],
    workshop: Workshop,
    changes: list[Change],
) -> None:
    ends: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and not node.domain:
            ends.setdefault(node.input[0], []).append(node)
    replaced: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.domain or workshop.dtype(node.input[0]) != TensorProto.FLOAT:
            continue
        plan = Quantization.of(node, constants)
        pairs = ends.get(node.output[0], [])
        if plan is None or plan.symmetric or sorted(readers.get(node.output[0], [])) != sorted(p.name for p in pairs):
            continue
        others = [Quantization.of(end, constants, plan.dtype) for end in pairs]
        if not pairs or not all(other is not None and other.equals(plan) for other in others):
            continue
        made = _chain(node, pairs, plan, workshop)
        if made is None:
            continue
        replaced[node.name] = made
        replaced.update((end.name, []) for end in pairs)
        kind = TensorProto.DataType.Name(plan.dtype)
        changes.append(Change("float-quantization", node.name, f"TensorRT does not compute {kind} as ONNX defines it"))
    if replaced:
        replace_nodes(graph, [new for node in graph.node for new in replaced.get(node.name, [node])])


def _chain(node: NodeProto, pairs: list[NodeProto], plan: Quantization, workshop: Workshop) -> list[NodeProto] | None:
    """The float nodes of one pair; further DequantizeLinear nodes become Identity."""
    shape = workshop.shape(node.input[0])
    rank = None if shape is None else len(shape)
    scale, zero = plan.spread(plan.scale, rank), plan.spread(plan.zero, rank)
    if scale is None or zero is None or plan.scale.dtype != np.float32:
        return None
    lowest, highest = (limit.reshape(zero.shape).astype(np.float32) for limit in plan.limits)

    def const(array: np.ndarray, what: str) -> str:
        return workshop.constant(np.asarray(array, np.float32), f"{node.name}/{what}")

    step = const(scale, "scale")
    made = [workshop.node(node, "Div", [node.input[0], step])]
    made.append(workshop.node(node, "Round", [made[-1].output[0]]))
    if zero.size == 1:
        limits = [const(lowest.reshape(()), "lowest"), const(highest.reshape(()), "highest")]
        made.append(workshop.node(node, "Clip", [made[-1].output[0], *limits]))
    else:
        made.append(workshop.node(node, "Max", [made[-1].output[0], const(lowest, "lowest")]))
        made.append(workshop.node(node, "Min", [made[-1].output[0], const(highest, "highest")]))
    first, *rest = pairs
    made.append(helper.make_node("Mul", [made[-1].output[0], step], [first.output[0]], first.name))
    made.extend(helper.make_node("Identity", [first.output[0]], [end.output[0]], end.name) for end in rest)
    return made
