"""Values that follow from static dimensions: Shape and Size, and the index arithmetic behind them.

A dynamic batch makes `Shape(x)` unknown as a whole although most of its entries are numbers. Here every small
integer vector is a tuple whose entries are numbers or None, and it becomes a constant as soon as no None is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from passes.graph.walk import bodies_of
from passes.model import is_stub
from passes.segments import TensorSpec

#: Entries of a 1-D integer tensor, or the one entry of a scalar; None where the number is unknown.
Entries = tuple[int | None, ...]
#: Longer vectors are no shapes.
_MAX_ENTRIES = 64


class StaticShapes:
    """One walk over a sorted graph and its bodies; unique value names, imports of opset 10 or later.

    Args:
        main: the main graph, not changed.
        types: value name -> type, as `passes.graph.value_types.value_types` gives them.

    Attributes:
        constants: name of a node output -> its value (int64 or int32), for all that are wholly known.
    """

    def __init__(self, main: GraphProto, types: Mapping[str, TensorSpec]) -> None:
        self.constants: dict[str, np.ndarray] = {}
        self._types = types
        self._entries: dict[str, Entries] = {}
        self._scalars: set[str] = set()
        for tensor in main.initializer:
            self._add_initializer(tensor)
        self._walk(main)

    def _add_initializer(self, tensor: TensorProto) -> None:
        if tensor.data_type not in (TensorProto.INT64, TensorProto.INT32) or len(tensor.dims) > 1 or is_stub(tensor):
            return
        if tensor.dims and not 0 <= tensor.dims[0] <= _MAX_ENTRIES:
            return
        array = numpy_helper.to_array(tensor)
        self._entries[tensor.name] = tuple(int(v) for v in array.reshape(-1))
        if not tensor.dims:
            self._scalars.add(tensor.name)

    def _walk(self, graph: GraphProto) -> None:
        for node in graph.node:
            rule = _RULES.get(node.op_type) if not node.domain else None
            if rule is not None and node.output and node.output[0]:
                found = rule(self, node)
                if found is not None:
                    self._add(node, *found)
            for _, body in bodies_of(node):
                self._walk(body)

    def _add(self, node: NodeProto, entries: Entries, scalar: bool) -> None:
        if len(entries) > _MAX_ENTRIES:
            return
        name = node.output[0]
        self._entries[name] = entries
        if scalar:
            self._scalars.add(name)
        if None in entries:
            return
        to = _attribute(node, "to", TensorProto.INT64) if node.op_type == "Cast" else self._dtype(name)
        dtype = np.int32 if to == TensorProto.INT32 else np.int64
        self.constants[name] = np.array(entries[0] if scalar else entries, dtype)

    def _dtype(self, name: str) -> int:
        spec = self._types.get(name)
        return spec.dtype if spec is not None else TensorProto.INT64

    def _vector(self, name: str) -> Entries | None:
        """Entries of a 1-D value."""
        return None if name in self._scalars else self._entries.get(name)

    def _dims(self, name: str) -> Entries | None:
        spec = self._types.get(name)
        if spec is None or spec.shape is None:
            return None
        return tuple(d if isinstance(d, int) else None for d in spec.shape)

    def _numbers(self, name: str) -> tuple[int, ...] | None:
        """Entries of a scalar or vector that is wholly known."""
        entries = self._entries.get(name)
        return None if entries is None or None in entries else tuple(d for d in entries if d is not None)

    def shape(self, node: NodeProto) -> tuple[Entries, bool] | None:
        """Shape, with its optional start and end."""
        dims = self._dims(node.input[0])
        if dims is None:
            return None
        end = _attribute(node, "end", len(dims))
        return dims[_attribute(node, "start", 0) : end], False

    def size(self, node: NodeProto) -> tuple[Entries, bool] | None:
        """Size: the product of the dimensions."""
        dims = self._dims(node.input[0])
        if dims is None or None in dims:
            return None
        return (math.prod(d for d in dims if d is not None),), True

    def gather(self, node: NodeProto) -> tuple[Entries, bool] | None:
        """Gather of known positions."""
        data, positions = self._vector(node.input[0]), self._numbers(node.input[1])
        if data is None or positions is None or not all(-len(data) <= p < len(data) for p in positions):
            return None
        return tuple(data[p] for p in positions), node.input[1] in self._scalars

    def slice(self, node: NodeProto) -> tuple[Entries, bool] | None:
        """Slice of a vector with known limits."""
        data = self._vector(node.input[0])
        if data is None or len(node.input) < 3:
            return None
        limits = [self._numbers(name) for name in node.input[1:3]]
        step = self._numbers(node.input[4]) if len(node.input) > 4 and node.input[4] else (1,)
        values = [*limits, step]
        if any(v is None or len(v) != 1 for v in values):
            return None
        start, end, stride = (v[0] for v in values if v is not None)
        if stride <= 0:
            return None
        return data[_clamped(start, len(data)) : _clamped(end, len(data)) : stride], False

    def concat(self, node: NodeProto) -> tuple[Entries, bool] | None:
        """Concat of vectors."""
        parts = [self._vector(name) for name in node.input]
        if any(part is None for part in parts):
            return None
        return tuple(d for part in parts if part is not None for d in part), False

    def cast(self, node: NodeProto) -> tuple[Entries, bool] | None:
        """Cast between the two integer types, of numbers that both can hold."""
        entries = self._entries.get(node.input[0])
        if entries is None or _attribute(node, "to", 0) not in (TensorProto.INT64, TensorProto.INT32):
            return None
        if any(d is not None and not -(2**31) <= d < 2**31 for d in entries):
            return None
        return entries, node.input[0] in self._scalars

    def squeeze(self, node: NodeProto) -> tuple[Entries, bool] | None:
        """Squeeze of a vector with one entry to a scalar."""
        entries = self._vector(node.input[0])
        return (entries, True) if entries is not None and len(entries) == 1 else None

    def unsqueeze(self, node: NodeProto) -> tuple[Entries, bool] | None:
        """Unsqueeze of a scalar along one axis."""
        axes = self._numbers(node.input[1]) if len(node.input) > 1 else _attribute(node, "axes", ())
        if node.input[0] not in self._scalars or axes is None or len(axes) != 1:
            return None
        return self._entries[node.input[0]], False


_RULES: dict[str, Callable[[StaticShapes, NodeProto], tuple[Entries, bool] | None]] = {
    "Shape": StaticShapes.shape,
    "Size": StaticShapes.size,
    "Gather": StaticShapes.gather,
    "Slice": StaticShapes.slice,
    "Concat": StaticShapes.concat,
    "Cast": StaticShapes.cast,
    "Squeeze": StaticShapes.squeeze,
    "Unsqueeze": StaticShapes.unsqueeze,
}


def _clamped(position: int, length: int) -> int:
    """A slice limit as ONNX reads it: negative counts from the end, and nothing lies outside."""
    return min(max(position + length if position < 0 else position, 0), length)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default
