"""What a value stems from, as far as quantisation is concerned: a constant, a Q/DQ pair of the model, or neither."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from passes.graph.boundary import constant_names
from passes.graph.value_types import Shape, value_types
from passes.graph.walk import iter_graphs, iter_nodes
from passes.model import Model, is_stub
from passes.segments import TensorSpec

#: Element types of quantised values that TensorRT multiplies, and what this package calls them.
FORMATS = {TensorProto.INT8: "INT8", TensorProto.FLOAT8E4M3FN: "FP8"}
#: Operators that only move values of their first input about, or set them to zero: a quantised value stays one.
PRESERVING = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Relu", "Reshape", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """What a value stems from.

    Attributes:
        constant: it is, or is dequantised from, an initializer.
        format: "INT8" or "FP8" when a DequantizeLinear with zero point 0 lies behind it, else "".
        scale: that of the DequantizeLinear of a computed value; 0 without one.
        direct: the DequantizeLinear itself gives the value.
        refusal: why a node that reads it cannot be quantised ("is INT4 ..."), else "".
    """

    constant: bool = False
    format: str = ""
    scale: float = 0.0
    direct: bool = False
    refusal: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Graphs:
    """A model as quantisation sees it: nodes of interest with what lies around them. Value names are unique in it."""

    nodes: tuple[NodeProto, ...]
    model: Model
    types: Mapping[str, TensorSpec]
    constants: frozenset[str]
    tensors: Mapping[str, TensorProto]
    made_by: Mapping[str, NodeProto]
    read_by: Mapping[str, Sequence[NodeProto]]
    use_count: Mapping[str, int]
    order: Mapping[str, int]

    @classmethod
    def of(cls, model: Model, nodes: Collection[str] | None = None) -> Graphs:
        """The view on the nodes named in `nodes` (None: all), in order, main graph before bodies."""
        wanted = None if nodes is None else frozenset(nodes)
        members = tuple(n for n in iter_nodes(model.proto) if wanted is None or n.name in wanted)
        read_by: dict[str, list[NodeProto]] = {}
        for node in members:
            for name in node.input:
                read_by.setdefault(name, []).append(node)
        counts: dict[str, int] = {}
        for graph in iter_graphs(model.proto):
            names = [name for node in graph.node for name in node.input] + [o.name for o in graph.output]
            for name in names:
                counts[name] = counts.get(name, 0) + 1
        return cls(
            members,
            model,
            value_types(model),
            constant_names(model.proto),
            {t.name: t for graph in iter_graphs(model.proto) for t in graph.initializer},
            {name: node for node in members for name in node.output if name},
            read_by,
            counts,
            {node.name: i for i, node in enumerate(members)},
        )

    def is_constant(self, name: str) -> bool:
        """True for an initializer that nobody can change."""
        return name in self.constants

    def producer(self, name: str) -> NodeProto | None:
        """The node of interest that makes a value; None for inputs, constants and what is made outside."""
        return self.made_by.get(name)

    def uses(self, name: str) -> int:
        """How often a value is read in the whole model, as an output of a graph included."""
        return self.use_count.get(name, 0)

    def readers(self, node: NodeProto) -> list[NodeProto]:
        """Nodes of interest that read a result of `node`."""
        return [reader for name in node.output for reader in self.read_by.get(name, ())]

    def sources(self, node: NodeProto) -> list[NodeProto]:
        """Nodes of interest that `node` reads from."""
        return [self.made_by[name] for name in node.input if name in self.made_by]

    def position(self, node: str) -> int:
        """Place of a node of interest in their order."""
        return self.order[node]

    def dtype(self, name: str) -> int:
        """Element type of a value; 0 when unknown."""
        spec = self.types.get(name)
        return spec.dtype if spec is not None else 0

    def shape(self, name: str) -> Shape | None:
        """Shape of a value; None when even the rank is unknown."""
        spec = self.types.get(name)
        return spec.shape if spec is not None else None

    def rank(self, name: str) -> int | None:
        """Rank of a value; None when unknown."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def array(self, name: str) -> np.ndarray | None:
        """The value of an initializer; None for anything else."""
        tensor = self.tensors.get(name)
        if tensor is None or name not in self.constants:
            return None
        return self.model.weights[name] if is_stub(tensor) else numpy_helper.to_array(tensor)

    def source(self, name: str) -> Source:
        """What `name` stems from."""
        if name in self.constants:
            return Source(constant=True)
        direct = True
        while True:
            node = self.made_by.get(name)
            if node is None or node.domain:
                return Source()
            if node.op_type == "DequantizeLinear":
                return self._dequantized(node, direct=direct)
            indices = node.op_type == "MaxPool" and name != node.output[0]
            if node.op_type not in PRESERVING or indices:
                return Source()
            direct, name = False, node.input[0]

    def _dequantized(self, node: NodeProto, *, direct: bool) -> Source:
        """What a DequantizeLinear gives: a stored weight, a value of a known scale, or something else to us."""
        data = node.input[0]
        maker = self.made_by.get(data)
        quantizes = maker is not None and maker.op_type == "QuantizeLinear"
        constant = data in self.constants or (quantizes and maker is not None and maker.input[0] in self.constants)
        dtype = self._stored_type(node)
        found = _format(dtype) if self._zero_is_zero(node) and not attribute(node, "block_size", 0) else ""
        if constant:
            kind = TensorProto.DataType.Name(dtype) if dtype else "something unknown"
            return Source(True, found, 0.0, direct, "" if found else f"is stored as {kind}, for its size alone")
        scale = self.array(node.input[1])
        if not found or scale is None or scale.size != 1 or not np.isfinite(scale).all() or not (scale > 0).all():
            return Source()
        return Source(False, found, float(scale.reshape(())), direct)

    def _stored_type(self, node: NodeProto) -> int:
        """Element type of what a DequantizeLinear reads; 0 when unknown."""
        for name in (node.input[0], *node.input[2:3]):
            if name and self.dtype(name):
                return self.dtype(name)
        maker = self.made_by.get(node.input[0])
        if maker is not None and maker.op_type == "QuantizeLinear":
            return int(attribute(maker, "output_dtype", 0)) or self.dtype(
                maker.input[2] if len(maker.input) > 2 else ""
            )
        return 0

    def _zero_is_zero(self, node: NodeProto) -> bool:
        """True when the zero point is absent or a constant of zeros."""
        if len(node.input) < 3 or not node.input[2]:
            return True
        zero = self.array(node.input[2])
        return zero is not None and not np.asarray(zero, np.float32).any()


def _format(dtype: int) -> str:
    return next((name for kind, name in FORMATS.items() if kind == dtype), "")


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute, or `default`."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
