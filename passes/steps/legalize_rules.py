"""The rules of `Legalize`, one function each: node in, equivalent nodes out.

Each was checked against the parser of TensorRT-RTX 1.7, which refuses the left side and takes the right side, and
against ONNX Runtime, where both sides are equal to the last bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from passes.graph.editing import Namer, node_namer, value_namer
from passes.graph.value_types import value_types
from passes.graph.walk import iter_graphs
from passes.model import Model
from passes.segments import TensorSpec


@dataclasses.dataclass(frozen=True)
class Workshop:
    """What rules need beside the node.

    Attributes:
        opset: version of the default domain.
        types: value name -> type.
        used: names that a node or a graph output reads.
        values: gives new value names.
        names: gives new node names.
        made: constants that rules asked for, to be added to the main graph.
    """

    opset: int
    types: Mapping[str, TensorSpec]
    used: frozenset[str]
    values: Namer
    names: Namer
    made: list[TensorProto] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, model: Model) -> Workshop:
        """The workshop for one canonical model."""
        graph = model.proto.graph
        used = {name for g in iter_graphs(graph) for node in g.node for name in node.input}
        used.update(o.name for g in iter_graphs(graph) for o in g.output)
        opset = next((o.version for o in model.proto.opset_import if not o.domain), 0)
        return cls(opset, value_types(model), frozenset(used), value_namer(graph), node_namer(graph))

    def constant(self, array: np.ndarray, base: str) -> str:
        """The name of a constant with this value: one made before, or a new one called after `base`."""
        tensor = numpy_helper.from_array(array)
        for made in self.made:
            if (made.data_type, made.dims, made.raw_data) == (tensor.data_type, tensor.dims, tensor.raw_data):
                return made.name
        tensor.name = self.values.fresh(base)
        self.made.append(tensor)
        return tensor.name

    def node(self, origin: NodeProto, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> NodeProto:
        """A new node that stems from `origin`; without `output` it gets a new value name."""
        name = self.names.fresh(f"{origin.name}/{op}")
        output = output or self.values.fresh(f"{origin.output[0]}/{op}")
        return helper.make_node(op, inputs, [output], name, **attributes)

    def dtype(self, name: str) -> int:
        """Element type of a value; 0 when unknown."""
        spec = self.types.get(name)
        return spec.dtype if spec is not None else 0

    def shape(self, name: str) -> tuple[int | str | None, ...] | None:
        """Shape of a value; None when even the rank is unknown."""
        spec = self.types.get(name)
        return spec.shape if spec is not None else None


@dataclasses.dataclass(frozen=True)
class Rule:
    """A named rewrite.

    Attributes:
        name: slug for the report.
        reason: what the parser says without it.
        rewrite: the nodes that replace the given one (itself among them, if it was edited); None where it does not fit.
    """

    name: str
    reason: str
    rewrite: Callable[[Workshop, NodeProto], list[NodeProto] | None]


def loop_condition(workshop: Workshop, node: NodeProto) -> list[NodeProto] | None:
    """Loop without an initial condition: an absent one means true, so true is given."""
    if node.op_type != "Loop" or (len(node.input) > 1 and node.input[1]):
        return None
    condition = workshop.constant(np.array(True), f"{node.name}/true")
    node.input[1:2] = [condition]
    return [node]


def slice_axes(workshop: Workshop, node: NodeProto) -> list[NodeProto] | None:
    """Slice without axes that limits fewer dimensions than there are: the axes are the first ones, as the default."""
    if node.op_type != "Slice" or workshop.opset < 10 or (len(node.input) > 3 and node.input[3]):
        return None
    starts = workshop.shape(node.input[1])
    if starts is None or len(starts) != 1 or not isinstance(starts[0], int):
        return None
    rank = workshop.shape(node.input[0])
    if rank is not None and len(rank) == starts[0]:
        return None
    # axes must have the type of starts.
    dtype = np.int32 if workshop.dtype(node.input[1]) == TensorProto.INT32 else np.int64
    node.input[3:4] = [workshop.constant(np.arange(starts[0], dtype=dtype), f"{node.name}/axes")]
    return [node]


def eye_like(workshop: Workshop, node: NodeProto) -> list[NodeProto] | None:
    """EyeLike of unknown size: compares row and column numbers, column == row + k."""
    if node.op_type != "EyeLike" or workshop.opset < 11:
        return None
    shape = workshop.shape(node.input[0])
    if shape is not None and all(isinstance(d, int) for d in shape):
        return None
    attributes = {a.name: a.i for a in node.attribute}
    dtype = attributes.get("dtype") or workshop.dtype(node.input[0])
    if not dtype:
        return None
    made: list[NodeProto] = []

    def add(op: str, inputs: Sequence[str], **options: Any) -> str:
        made.append(workshop.node(node, op, inputs, **options))
        return str(made[-1].output[0])

    def number(value: int) -> str:
        return workshop.constant(np.array(value, np.int64), f"{node.name}/{value}")

    sizes = add("Shape", [node.input[0]])
    rows, columns = (add("Range", [number(0), add("Gather", [sizes, number(axis)]), number(1)]) for axis in (0, 1))
    if attributes.get("k"):
        rows = add("Add", [rows, number(attributes["k"])])
    rows = add("Reshape", [rows, workshop.constant(np.array([-1, 1], np.int64), f"{node.name}/column")])
    columns = add("Reshape", [columns, workshop.constant(np.array([1, -1], np.int64), f"{node.name}/row")])
    diagonal = add("Equal", [columns, rows])
    made.append(helper.make_node("Cast", [diagonal], [node.output[0]], node.name, to=dtype))
    return made


def unused_outputs(workshop: Workshop, node: NodeProto) -> list[NodeProto] | None:
    """Optional outputs at the end that nothing reads (indices of MaxPool, statistics of LayerNormalization)."""
    last = len(node.output)
    while last > 1 and node.output[last - 1] not in workshop.used:
        last -= 1
    if last == len(node.output) or not onnx.defs.has(node.op_type, workshop.opset, ""):
        return None
    if node.op_type == "BatchNormalization" and workshop.opset < 14:
        return None  # there the number of outputs says whether it trains
    schema = onnx.defs.get_schema(node.op_type, workshop.opset)
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    if len(node.output) > len(schema.outputs) or any(o.option != optional for o in schema.outputs[last:]):
        return None
    del node.output[last:]
    return [node]


def boolean_reduce(workshop: Workshop, node: NodeProto) -> list[NodeProto] | None:
    """ReduceMax and ReduceMin of booleans (any and all): the same over 0 and 1."""
    if node.op_type not in ("ReduceMax", "ReduceMin") or workshop.dtype(node.input[0]) != TensorProto.BOOL:
        return None
    before = workshop.node(node, "Cast", [node.input[0]], to=TensorProto.INT32)
    reduce = NodeProto()
    reduce.CopyFrom(node)
    reduce.name = workshop.names.fresh(f"{node.name}/{node.op_type}")
    reduce.input[0] = before.output[0]
    reduce.output[0] = workshop.values.fresh(f"{node.output[0]}/{node.op_type}")
    return [before, reduce, helper.make_node("Cast", [reduce.output[0]], node.output, node.name, to=TensorProto.BOOL)]


def bitwise_not(workshop: Workshop, node: NodeProto) -> list[NodeProto] | None:
    """BitwiseNot of signed numbers: -1 - x, which never overflows in two's complement."""
    dtype = _signed(workshop, node, "BitwiseNot")
    if dtype is None:
        return None
    minus_one = workshop.constant(np.array(-1, dtype), f"{node.name}/minus_one")
    return [helper.make_node("Sub", [minus_one, node.input[0]], node.output, node.name)]


def integer_relu(workshop: Workshop, node: NodeProto) -> list[NodeProto] | None:
    """Relu of integers: Max with zero."""
    dtype = _signed(workshop, node, "Relu")
    if dtype is None:
        return None
    zero = workshop.constant(np.array(0, dtype), f"{node.name}/zero")
    return [helper.make_node("Max", [node.input[0], zero], node.output, node.name)]


def _signed(workshop: Workshop, node: NodeProto, op: str) -> type[np.signedinteger[Any]] | None:
    """The numpy type when `node` is an `op` on one of the integers that TensorRT computes with."""
    if node.op_type != op:
        return None
    types: dict[int, type[np.signedinteger[Any]]] = {TensorProto.INT32: np.int32, TensorProto.INT64: np.int64}
    return types.get(workshop.dtype(node.input[0]))


RULES = (
    Rule("loop-condition", "a Loop needs an initial condition: 'Node input was not registered'", loop_condition),
    Rule("slice-axes", "Slice needs axes: 'shape of input starts misaligns with the shape of input axes'", slice_axes),
    Rule("eye-like", "'Eyelike does not work for dynamically shaped tensors'", eye_like),
    Rule("unused-outputs", "the outputs are not supported, and nothing reads them", unused_outputs),
    Rule("boolean-reduce", "'Found unsupported input type of BOOL'", boolean_reduce),
    Rule("bitwise-not", "there is no BitwiseNot", bitwise_not),
    Rule("integer-relu", "'Found unsupported input type' of integers", integer_relu),
)
