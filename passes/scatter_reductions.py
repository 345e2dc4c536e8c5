"""ScatterND with a reduction, as ScatterElements.

ONNX Runtime's CPU kernel of ScatterND (seen in 1.32) spreads the updates over threads and lets two threads reduce into
one place at once, so sums come out wrong now and then. Its ScatterElements does not.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from passes.base import Change, PassResult
from passes.graph.editing import finish, replace_nodes
from passes.graph.walk import iter_graphs, plain_domain
from passes.infer_shapes import InferShapes
from passes.model import Model
from passes.steps.legalize_rules import Workshop

_log = logging.getLogger(__name__)
_END = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class ScatterReductions:
    """Rewrites every ScatterND that reduces, in bodies of control flow too.

    Needs shapes (`InferShapes`); the shape arithmetic that it makes is for `FoldConstants`. A ScatterND whose last
    dimension of indices is not known stays, which is logged.
    """

    name: str = "scatter_reductions"

    def run(self, model: Model) -> PassResult:
        """Rewrites the nodes; a model without such a node comes back as it is."""
        if not has_scatter_reductions(model.proto):
            return PassResult(model)
        proto = model.copy_proto()
        workshop = Workshop.of(model)
        changes: list[Change] = []
        for graph in iter_graphs(proto.graph):
            nodes: list[NodeProto] = []
            for node in graph.node:
                made = _rewritten(workshop, node)
                if made is not None:
                    changes.append(Change("scatter-reduction", node.name, "ONNX Runtime's ScatterND adds in a race"))
                nodes.extend([node] if made is None else made)
            if len(nodes) > len(graph.node):
                replace_nodes(graph, nodes)
        proto.graph.initializer.extend(workshop.made)
        return finish(model, proto, {}, changes)


def settle_scatters(model: Model) -> Model:
    """The model with these nodes rewritten, for those who run it before the pipeline."""
    if not has_scatter_reductions(model.proto):
        return model
    return ScatterReductions().run(InferShapes().run(model).model).model


def has_scatter_reductions(proto: ModelProto) -> bool:
    """True where a ScatterND of the model reduces."""
    return any(_reduction(node) for graph in iter_graphs(proto.graph) for node in graph.node)


def _rewritten(workshop: Workshop, node: NodeProto) -> list[NodeProto] | None:
    """Scatters by element: data of [D1 ... DK, E ...] become D1 * ... * DK rows, indices of [..., K] their numbers.

    1. Negative indices count from the end, as ScatterND's do.
    2. A row's number is the sum of its indices times the sizes behind each.
    3. Indices of [n, 1] are the rows' numbers already, so they are only spread over each row.

    None where K is not known, and for other nodes.
    """
    reduction = _reduction(node)
    if not reduction:
        return None
    shape = workshop.shape(node.input[1])
    if not shape or not isinstance(shape[-1], int) or not shape[-1]:
        _log.warning("%r reduces, in a race of ONNX Runtime: its indices have no known last dimension", node.name)
        return None
    made: list[NodeProto] = []

    def add(op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        made.append(workshop.node(node, op, inputs, output, **attributes))
        return str(made[-1].output[0])

    def number(value: Any) -> str:
        return workshop.constant(np.asarray(value, np.int64), f"{node.name}/constant")

    data, indices, updates = node.input
    depth, table_shape = shape[-1], workshop.shape(data)
    if depth == 1 and len(shape) == 2 and table_shape is not None:
        targets = indices
        if len(table_shape) == 1:
            targets = add("Reshape", [indices, number([-1])])
        elif len(table_shape) > len(shape):
            targets = add("Unsqueeze", [indices, number(list(range(len(shape), len(table_shape))))])
        if len(table_shape) > 1:
            targets = add("Expand", [targets, add("Shape", [updates])])
        add("ScatterElements", [data, targets, updates], node.output[0], axis=0, reduction=reduction)
        return made
    dims = add("Shape", [data])
    outer = add("Slice", [dims, number([0]), number([depth])])
    inner = add("Slice", [dims, number([depth]), number([_END])])
    negative = add("Less", [indices, number(0)])
    places = add("Where", [negative, add("Add", [indices, outer]), indices])
    if depth > 1:
        behind = [add("ReduceProd", [add("Slice", [outer, number([j + 1]), number([_END])])]) for j in range(depth - 1)]
        strides = add("Concat", [*behind, number([1])], axis=0)
        places = add("ReduceSum", [add("Mul", [places, strides]), number([-1])], keepdims=0)
    rows = add("Reshape", [places, number([-1])])
    width = add("ReduceProd", [add("Concat", [inner, number([1])], axis=0)])
    table = add("Reshape", [data, add("Concat", [add("ReduceProd", [outer]), width], axis=0)], allowzero=1)
    shape_of_updates = add("Concat", [add("Shape", [rows]), width], axis=0)
    values = add("Reshape", [updates, shape_of_updates], allowzero=1)
    targets = add("Expand", [add("Unsqueeze", [rows, number([1])]), shape_of_updates])
    joined = add("ScatterElements", [table, targets, values], axis=0, reduction=reduction)
    add("Reshape", [joined, dims], node.output[0], allowzero=1)
    return made


def _reduction(node: NodeProto) -> str:
    """The reduction of a ScatterND; "" for none and for other nodes."""
    if node.op_type != "ScatterND" or plain_domain(node.domain):
        return ""
    found = next((a.s.decode() for a in node.attribute if a.name == "reduction"), "none")
    return "" if found == "none" else found
