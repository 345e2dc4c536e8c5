"""Reductions behind a Transpose that may as well stand before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from passes.base import Change
from passes.graph.editing import Namer, label, replace_nodes, value_namer
from passes.graph.walk import iter_graphs
from passes.model import is_stub

_REDUCTIONS = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
})  # fmt: skip


def reduce_before_transposes(proto: ModelProto) -> list[Change]:
    """Lets reductions read what is before a Transpose, where the result is the same; needs unique names.

    1. The reduction drops its axes (keepdims 0) and these are known: an attribute, or a constant second input.
    2. The axes that are left come in the same order before the Transpose and behind it.
    3. Nobody else reads the Transpose, which goes. New constants become main-graph initializers.
    """
    main = proto.graph
    constants = {t.name: t for t in main.initializer}
    readers: Counter[str] = Counter()
    for graph in iter_graphs(main):
        readers.update(value.name for value in graph.output)
        readers.update(a.tensor_name for a in graph.quantization_annotation)
        for node in graph.node:
            readers.update(set(node.input))
    changes: list[Change] = []
    namer = value_namer(main)
    for graph in iter_graphs(main):
        makers = {node.output[0]: node for node in graph.node if node.op_type == "Transpose" and not node.domain}
        gone = set()
        for node in graph.node:
            first = makers.get(node.input[0]) if node.op_type in _REDUCTIONS and not node.domain else None
            if first is None or readers[first.output[0]] != 1:
                continue
            axes = _axes(node, constants)
            permutation = next((tuple(a.ints) for a in first.attribute if a.name == "perm"), ())
            places = _old_places(permutation, axes) if axes else None
            if places is None:
                continue
            _set_axes(node, places, main, namer)
            node.input[0] = first.input[0]
            gone.add(first.name)
            changes.append(Change("reduce-before-transpose", first.name, f"{label(node)} reads what is before it"))
        if gone:
            replace_nodes(graph, [node for node in graph.node if node.name not in gone])
    return changes


def _axes(node: NodeProto, constants: Mapping[str, TensorProto]) -> list[int] | None:
    """The axes of a reduction that drops them; None where it keeps them, or they are not known."""
    attributes = {a.name: a for a in node.attribute}
    if "keepdims" not in attributes or attributes["keepdims"].i != 0:
        return None
    if "axes" in attributes:
        return list(attributes["axes"].ints)
    tensor = constants.get(node.input[1]) if len(node.input) > 1 else None
    if tensor is None or is_stub(tensor):
        return None
    return [int(axis) for axis in numpy_helper.to_array(tensor).reshape(-1)]


def _old_places(permutation: Sequence[int], axes: Sequence[int]) -> list[int] | None:
    """Where reduced axes were before the Transpose; None where the others do not keep their order."""
    rank = len(permutation)
    if any(not -rank <= axis < rank for axis in axes):
        return None
    reduced = {axis % rank for axis in axes}
    left = [permutation[axis] for axis in range(rank) if axis not in reduced]
    return sorted(permutation[axis] for axis in reduced) if left == sorted(left) else None


def _set_axes(node: NodeProto, axes: Sequence[int], main: GraphProto, namer: Namer) -> None:
    for attribute in node.attribute:
        if attribute.name == "axes":
            attribute.CopyFrom(AttributeProto(name="axes", type=AttributeProto.INTS, ints=axes))
            return
    name = namer.fresh(f"{node.output[0]}_axes")
    main.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), name))
    node.input[1] = name
