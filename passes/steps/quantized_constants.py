"""Quantised constants in the one form that TensorRT takes: int8, zero point 0, DequantizeLinear right at the reader."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from passes.base import Change
from passes.graph.editing import Namer, replace_nodes, value_namer
from passes.graph.walk import iter_graphs
from passes.model import Weights, is_stub, stow

#: Integer types that a quantisation node may hold.
INTEGERS = (TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16, TensorProto.INT32)
#: Nodes that only put elements in another order or shape.
_MOVES = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten")


@dataclasses.dataclass
class Constants:
    """The initializers of a model, to read and to add to.

    Attributes:
        main: the main graph; new initializers are added at once.
        weights: data of its stubs; those of new ones are added.
    """

    main: GraphProto
    weights: Weights
    _tensors: dict[str, TensorProto]
    _namer: Namer

    @classmethod
    def of(cls, proto: ModelProto, weights: Weights) -> Constants:
        """Those of a canonical model."""
        return cls(proto.graph, weights, {t.name: t for t in proto.graph.initializer}, value_namer(proto.graph))

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def array(self, name: str) -> np.ndarray | None:
        """The value of an initializer; None for anything else."""
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        return self.weights[name] if is_stub(tensor) else numpy_helper.to_array(tensor)

    def dtype(self, name: str) -> int:
        """The element type of an initializer; 0 for anything else."""
        tensor = self._tensors.get(name)
        return tensor.data_type if tensor is not None else 0

    def add(self, array: np.ndarray, base: str) -> str:
        """The name of a new initializer, made from `base`."""
        name = self._namer.fresh(base)
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)
        self.main.initializer.append(stow(tensor, self.weights))
        self._tensors[name] = self.main.initializer[-1]
        return name


@dataclasses.dataclass(frozen=True)
class Quantization:
    """The constant parameters of a QuantizeLinear or DequantizeLinear: value = (q - zero) * scale.

    Attributes:
        scale: one number or one a channel, in the float type of the node.
        zero: the zero points, of the same shape, as int64.
        dtype: element type of the quantised side.
        axis: of the channels, counted from either end.
    """

    scale: np.ndarray
    zero: np.ndarray
    dtype: int
    axis: int

    @classmethod
    def of(cls, node: NodeProto, constants: Constants, dtype: int = 0) -> Quantization | None:
        """Reads a node; None when it is blocked, or its parameters are not constant or make no grid.

        Args:
            node: a QuantizeLinear or DequantizeLinear.
            constants: where the parameters are looked up.
            dtype: of the quantised side, where no zero point tells it.
        """
        attributes = {a.name: a.i for a in node.attribute}
        scale = constants.array(node.input[1])
        if scale is None or attributes.get("block_size") or scale.ndim > 1:
            return None
        if not bool(np.all(np.isfinite(scale) & (scale > 0))):
            return None
        zero_name = node.input[2] if len(node.input) > 2 else ""
        if zero_name:
            zero = constants.array(zero_name)
            dtype = constants.dtype(zero_name)
            if zero is None or dtype not in INTEGERS or zero.size != scale.size:
                return None
            zero = zero.astype(np.int64).reshape(scale.shape)
        else:
            zero = np.zeros(scale.shape, np.int64)
            dtype = dtype or attributes.get("output_dtype") or TensorProto.UINT8
        return cls(scale, zero, dtype, attributes.get("axis", 1)) if dtype in INTEGERS else None

    @property
    def symmetric(self) -> bool:
        """True for what TensorRT takes: int8 with zero point 0."""
        return self.dtype == TensorProto.INT8 and not self.zero.any()

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest level, the zero point taken off."""
        info = np.iinfo(helper.tensor_dtype_to_np_dtype(self.dtype))
        return info.min - self.zero, info.max - self.zero

    def spread(self, values: np.ndarray, rank: int | None) -> np.ndarray | None:
        """Parameters in a shape that broadcasts with a tensor of `rank`; None when that cannot be told."""
        if values.size == 1:
            return values.reshape(())
        if self.axis < 0:
            return values.reshape([-1, *[1] * (-self.axis - 1)])
        return None if rank is None else values.reshape([-1, *[1] * (rank - self.axis - 1)])

    def equals(self, other: Quantization) -> bool:
        """True for the same grid."""
        return (
            self.dtype == other.dtype
            and (self.scale.size == 1 or self.axis == other.axis)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
        )


def settle_constants(proto: ModelProto, weights: Weights) -> list[Change]:
    """Brings every dequantised constant into TensorRT's form; the values stay the same to the last bit.

    1. Constant -> QuantizeLinear (of anything but int8 with zero point 0) is computed, half to even and saturating.
    2. DequantizeLinear of a constant with another type or zero point becomes one of int8 with zero point 0 where the
       levels fit, else the numbers themselves (int32 biases always).
    3. A Transpose, Reshape, Unsqueeze, Squeeze or Flatten behind a DequantizeLinear of a constant moves
       into the constant, if the scales still lie along one axis.

    Args:
        proto: a canonical model, edited in place.
        weights: data of its stubs; new ones are added.
    """
    constants = Constants.of(proto, weights)
    changes: list[Change] = []
    uses = _Uses.of(proto)
    renamed: dict[str, str] = {}
    for graph in iter_graphs(proto.graph):  # a body comes after the graph whose values it reads
        _settle_graph(graph, constants, uses, renamed, changes)
    return changes


@dataclasses.dataclass(frozen=True)
class _Uses:
    """How often each value is read, in the whole model; an output of a graph counts as well."""

    count: dict[str, int]

    @classmethod
    def of(cls, proto: ModelProto) -> _Uses:
        count: dict[str, int] = {}
        for graph in iter_graphs(proto.graph):
            names: Iterable[str] = [name for node in graph.node for name in node.input]
            for name in (*names, *(o.name for o in graph.output)):
                count[name] = count.get(name, 0) + 1
        return cls(count)

    def once(self, name: str) -> bool:
        """True when there is one reader."""
        return self.count.get(name, 0) == 1


def _settle_graph(
    graph: GraphProto, constants: Constants, uses: _Uses, renamed: dict[str, str], changes: list[Change]
) -> None:
    """All three rules on the nodes of one graph, in order."""
    exposed = {o.name for o in graph.output}
    dequantized: dict[str, NodeProto] = {}
    kept: list[NodeProto] = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        keep = True
        if node.op_type == "QuantizeLinear" and not node.domain:
            keep = not _quantize(node, constants, exposed, renamed, changes)
        elif node.op_type == "DequantizeLinear" and not node.domain and node.input[0] in constants:
            keep = not _dequantize(node, constants, exposed, renamed, changes)
            if keep:
                dequantized[node.output[0]] = node
        elif node.op_type in _MOVES and not node.domain and node.input[0] in dequantized:
            source = dequantized[node.input[0]]
            if uses.once(source.output[0]) and _move(source, node, constants, changes):
                source.output[0] = node.output[0]
                dequantized[node.output[0]] = source
                keep = False
        if keep:
            kept.append(node)
    if len(kept) != len(graph.node):
        replace_nodes(graph, kept)


def _quantize(
    node: NodeProto, constants: Constants, exposed: set[str], renamed: dict[str, str], changes: list[Change]
) -> bool:
    """Rule 1; True when the node is gone."""
    value = constants.array(node.input[0])
    plan = Quantization.of(node, constants)
    if value is None or plan is None or plan.symmetric or node.output[0] in exposed:
        return False
    scale, zero = (plan.spread(values, value.ndim) for values in (plan.scale, plan.zero))
    if scale is None or zero is None:
        return False
    dtype = helper.tensor_dtype_to_np_dtype(plan.dtype)
    info = np.iinfo(dtype)
    level = np.clip(np.rint(value / scale) + zero, info.min, info.max).astype(dtype)
    renamed[node.output[0]] = constants.add(level, f"{node.output[0]}/quantized")
    changes.append(Change("quantize-constant", node.name, "TensorRT takes int8 with zero point 0 alone"))
    return True


def _dequantize(
    node: NodeProto, constants: Constants, exposed: set[str], renamed: dict[str, str], changes: list[Change]
) -> bool:
    """Rule 2; True when the node is gone."""
    stored = constants.array(node.input[0])
    plan = Quantization.of(node, constants, constants.dtype(node.input[0]))
    if stored is None or plan is None or plan.symmetric:
        return False
    zero, scale = plan.spread(plan.zero, stored.ndim), plan.spread(plan.scale, stored.ndim)
    if zero is None or scale is None:
        return False
    level = stored.astype(np.int64) - zero
    kind = TensorProto.DataType.Name(plan.dtype)
    if plan.dtype != TensorProto.INT32 and level.size and level.min() >= -128 and level.max() <= 127:
        node.input[0] = constants.add(level.astype(np.int8), f"{node.input[0]}/int8")
        del node.input[2:]
        node.input.append(constants.add(np.zeros(plan.scale.shape, np.int8), f"{node.input[0]}/zero"))
        changes.append(Change("requantize-constant", node.name, f"{kind} becomes INT8 with zero point 0"))
        return False
    if node.output[0] in exposed:
        return False
    value = (level.astype(plan.scale.dtype) * scale).astype(plan.scale.dtype)
    renamed[node.output[0]] = constants.add(value, f"{node.output[0]}/value")
    changes.append(Change("dequantize-constant", node.name, f"TensorRT has no {kind} weights with such a zero point"))
    return True


def _move(source: NodeProto, node: NodeProto, constants: Constants, changes: list[Change]) -> bool:
    """Rule 3: moves `node` into the constant that `source` dequantises; False when it has to stay."""
    stored, plan = constants.array(source.input[0]), Quantization.of(source, constants, TensorProto.INT8)
    if stored is None or plan is None or not plan.symmetric:
        return False
    scale = plan.spread(plan.scale, stored.ndim)
    if scale is None:
        return False
    moved = _moved(node, stored, constants)
    if moved is None:
        return False
    found = None
    if scale.size > 1:
        spread = _moved(node, np.broadcast_to(scale, stored.shape), constants)
        found = _axis_of(spread) if spread is not None else None
        if found is None:
            return False
    source.input[0] = constants.add(moved, f"{source.input[0]}/{node.op_type}")
    if found is not None:
        axis, values = found
        source.input[1] = constants.add(values, f"{source.input[1]}/{node.op_type}")
        source.input[2:] = [constants.add(np.zeros(values.shape, np.int8), f"{source.input[0]}/zero")]
        kept = [a for a in source.attribute if a.name != "axis"]
        del source.attribute[:]
        source.attribute.extend([*kept, helper.make_attribute("axis", axis)])
    changes.append(Change("move-into-constant", node.name, f"{node.op_type} of the int8 constant {source.name!r}"))
    return True


def _moved(node: NodeProto, array: np.ndarray, constants: Constants) -> np.ndarray | None:
    """What `node` makes of an array; None where that is not known."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    second = constants.array(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    if node.op_type == "Transpose":
        return np.transpose(array, attributes.get("perm"))
    if node.op_type == "Flatten":
        axis = int(attributes.get("axis", 1)) % (array.ndim + 1)
        return array.reshape(int(np.prod(array.shape[:axis], dtype=np.int64)), -1)
    if node.op_type == "Squeeze" and not (len(node.input) > 1 and node.input[1]):
        return np.squeeze(array)
    if second is None:
        return None
    if node.op_type in ("Squeeze", "Unsqueeze"):
        change = np.squeeze if node.op_type == "Squeeze" else np.expand_dims
        return np.asarray(change(array, tuple(int(a) for a in second)))
    zero_copies = not attributes.get("allowzero")
    shape = [array.shape[i] if not size and zero_copies else int(size) for i, size in enumerate(second)]
    return array.reshape(shape)


def _axis_of(spread: np.ndarray) -> tuple[int, np.ndarray] | None:
    """(axis, values) of an array that changes along one axis only; None for any other."""
    varying = [a for a in range(spread.ndim) if spread.shape[a] > 1 and not np.all(spread == spread.take([0], a))]
    if len(varying) > 1 or not spread.ndim:
        return None
    # Equal scales everywhere may go along any axis; the longest keeps them one a channel.
    axis = varying[0] if varying else int(np.argmax(spread.shape))
    index = tuple(slice(None) if a == axis else 0 for a in range(spread.ndim))
    return axis, np.ascontiguousarray(spread[index])
