"""Writes FP16 and BF16 arithmetic in float32 operators, so that a runtime without such kernels computes it honestly."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from passes.base import Change, PassError, PassResult
from passes.graph.editing import Namer, finish, node_namer, replace_names, replace_nodes, value_namer
from passes.graph.walk import bodies_of, iter_graphs, plain_domain
from passes.model import Model, Weights, is_stub, make_stub
from passes.precision.element_types import DTYPE_ATTRIBUTES, element_types
from passes.precision.recipe import MARK

#: Types whose values are held as float32, with the name that people know them by.
NARROW: Mapping[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
#: Operators whose results are values that they read, or are exact in the type of these: nothing to round.
EXACT = frozenset(
    {
        "Abs", "Ceil", "CenterCropPad", "Clip", "Compress", "Concat", "ConcatFromSequence", "ConstantOfShape",
        "Constant", "DepthToSpace", "Dropout", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND",
        "GlobalMaxPool", "Identity", "Max", "MaxPool", "MaxUnpool", "Min", "Neg", "OneHot", "Optional",
        "OptionalGetElement", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "ReverseSequence", "Round",
        "ScatterElements", "ScatterND", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase",
        "SequenceInsert", "Sign", "Slice", "SpaceToDepth", "Split", "SplitToSequence", "Squeeze", "Tile", "TopK",
        "Transpose", "Trilu", "Unique", "Unsqueeze", "Where",
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Emulate:
    """Holds every float16 and bfloat16 value as float32 and rounds it, by a pair of Casts, where it is made.

    ONNX Runtime on the CPU lacks kernels for most operators in these types: it computes in float32 and drops the Casts
    between, so that overflow and rounding cannot be seen, or it refuses the model. Casts around float32 operators it
    obeys.

    1. Initializers and constants in a narrow type become float32, with the same values.
    2. A node with a narrow result computes in float32; behind it stand a Cast to the narrow type and one back.
       Operators that only move or choose values (`EXACT`) need none: their results lie on the grid already.
    3. A Cast to a narrow type is such a pair itself; a Cast from one to float32 becomes an Identity.
    4. Inputs and outputs of bodies, and attributes that name a type, say float32; QuantizeLinear and
       DequantizeLinear stay, with float32 scales of the same values.
    5. Inputs and outputs of the graph keep name and type: a Cast stands behind or before them.

    How it differs from TensorRT: every node sums in float32 and rounds once; TensorRT rounds less often where it fuses
    nodes, and may sum in another order. Values of float8 and int4 stay as they are: they occur between Casts or Q/DQ
    only. Needs a model without functions, whose value names are unique and whose nodes are sorted.
    """

    name: str = "emulate"

    def run(self, model: Model) -> PassResult:
        """Emulates every graph of the model.

        Raises:
            PassError: the model has model-local functions.
        """
        if model.proto.functions:
            raise PassError("emulate: the model has model-local functions: run canonicalize (or unsplice) first")
        types = element_types(model)
        if NARROW.keys().isdisjoint(types.values()):
            return PassResult(model)
        proto = model.copy_proto()
        work = _Work(types, value_namer(proto.graph), node_namer(proto.graph), dict(model.weights), [])
        for graph in iter_graphs(proto):
            _emulate_nodes(graph, work)
        inputs = {value.name for value in proto.graph.input}
        for number, graph in enumerate(iter_graphs(proto)):
            _widen_constants(graph, set() if number else inputs, work)
            _retype(graph, work, boundary=not number)
        _keep_boundary(proto.graph, work)
        return finish(model, proto, work.weights, work.changes)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What all steps share.

    Attributes:
        types: value name -> element type, in the graph as it was.
        values: gives names to new values.
        nodes: gives names to new nodes.
        weights: all stubs' arrays; those that were narrow are replaced.
        changes: what was done so far.
    """

    types: Mapping[str, int]
    values: Namer
    nodes: Namer
    weights: Weights
    changes: list[Change]

    def narrow(self, name: str) -> bool:
        """True for a value that is float16 or bfloat16 in the graph as it was."""
        return self.types.get(name) in NARROW

    def cast(self, origin: str, what: str, source: str, target: str, to: int) -> NodeProto:
        """A new Cast beside the node (or value) `origin`."""
        return helper.make_node("Cast", [source], [target], self.nodes.fresh(f"{origin}{MARK}{what}"), to=to)

    def note(self, rule: str, target: str, reason: str) -> None:
        """Records one change."""
        self.changes.append(Change(rule, target, reason))


def _emulate_nodes(graph: GraphProto, work: _Work) -> None:
    """Rule 2, 3 and the attributes of rule 4 for the nodes of one graph."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Cast" and not plain_domain(node.domain):
            nodes += _emulate_cast(node, work)
            continue
        for attribute in node.attribute:
            if attribute.name in DTYPE_ATTRIBUTES and attribute.i in NARROW:
                attribute.i = TensorProto.FLOAT
                work.note("retype", node.name, f"its attribute {attribute.name!r} names float32 now")
        if any(True for _ in bodies_of(node)) or _is_exact(node):
            continue
        for i, name in enumerate(node.output):
            if name and work.narrow(name):
                nodes += _round(node, i, work)
    if len(nodes) > len(graph.node):
        replace_nodes(graph, nodes)


def _is_exact(node: NodeProto) -> bool:
    if plain_domain(node.domain) or node.op_type not in EXACT:
        return False
    # Scattering with a reduction computes.
    return all(a.name != "reduction" or a.s == b"none" for a in node.attribute)


def _emulate_cast(node: NodeProto, work: _Work) -> list[NodeProto]:
    source, target = work.types.get(node.input[0], 0), work.types[node.output[0]]
    if source in NARROW and target in (source, TensorProto.FLOAT):
        node.op_type = "Identity"
        del node.attribute[:]
        work.note("widen_cast", node.name, f"its {NARROW[source]} input is held as float32 already")
        return []
    if target not in NARROW:
        return []
    name = node.output[0]
    node.output[0] = work.values.fresh(f"{name}{MARK}narrow")
    work.note("round_cast", node.name, f"its {NARROW[target]} result is widened again")
    return [work.cast(node.name, "widen", node.output[0], name, TensorProto.FLOAT)]


def _round(node: NodeProto, i: int, work: _Work) -> list[NodeProto]:
    """A Cast there and back behind output `i`, whose name the last one gets."""
    name = node.output[i]
    dtype = work.types[name]
    node.output[i] = work.values.fresh(f"{name}{MARK}exact")
    narrow = work.values.fresh(f"{name}{MARK}narrow")
    work.note("round", node.name, f"{name!r} is float32, rounded to {NARROW[dtype]}")
    return [
        work.cast(node.name, "round", node.output[i], narrow, dtype),
        work.cast(node.name, "widen", narrow, name, TensorProto.FLOAT),
    ]


def _widen_constants(graph: GraphProto, inputs: set[str], work: _Work) -> None:
    """Rule 1 for the initializers of a graph, and for the tensors in the attributes of its nodes."""
    for tensor in graph.initializer:
        # The default of an input keeps the type of the input.
        if tensor.data_type not in NARROW or tensor.name in inputs:
            continue
        work.note("widen", tensor.name, f"{NARROW[tensor.data_type]} values held as float32")
        if is_stub(tensor):
            array = work.weights[tensor.name].astype(np.float32)
            array.flags.writeable = False
            work.weights[tensor.name] = array
            tensor.CopyFrom(make_stub(tensor.name, TensorProto.FLOAT, tensor.dims))
        else:
            _widen(tensor)
    for sparse in graph.sparse_initializer:
        if sparse.values.data_type in NARROW:
            work.note("widen", sparse.values.name, "values held as float32")
            _widen(sparse.values)
    for node in graph.node:
        for attribute in node.attribute:
            for tensor in (attribute.t, attribute.sparse_tensor.values, *attribute.tensors):
                if tensor.data_type in NARROW:
                    work.note("widen", node.name, f"{NARROW[tensor.data_type]} values held as float32")
                    _widen(tensor)


def _widen(tensor: TensorProto) -> None:
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _retype(graph: GraphProto, work: _Work, *, boundary: bool) -> None:
    """Rule 4 for the declared types of a graph; `boundary` leaves its inputs and outputs alone."""
    values = [*graph.value_info] if boundary else [*graph.value_info, *graph.input, *graph.output]
    for value in values:
        if _widen_type(value.type):
            work.note("retype", value.name, "held as float32")


def _widen_type(value: TypeProto) -> bool:
    """Turns a narrow element type into float32, in place; True when it was one."""
    kind = value.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return _widen_type(getattr(value, kind).elem_type)
    if kind not in ("tensor_type", "sparse_tensor_type") or getattr(value, kind).elem_type not in NARROW:
        return False
    getattr(value, kind).elem_type = TensorProto.FLOAT
    return True


def _keep_boundary(graph: GraphProto, work: _Work) -> None:
    """Rule 5: inside, narrow inputs and outputs get other names; Casts join the two."""
    inputs = [v.name for v in graph.input if v.type.tensor_type.elem_type in NARROW]
    outputs = [v.name for v in graph.output if v.type.tensor_type.elem_type in NARROW and v.name not in inputs]
    wide = {name: work.values.fresh(f"{name}{MARK}wide") for name in (*inputs, *outputs)}
    if not wide:
        return
    _rename(graph, wide, set(inputs), work.weights)
    first = [work.cast(name, "widen", name, wide[name], TensorProto.FLOAT) for name in inputs]
    last = [work.cast(name, "narrow", wide[name], name, work.types[name]) for name in outputs]
    for name in wide:
        work.note("boundary", name, f"stays {NARROW[work.types[name]]}, held as float32 inside")
    replace_nodes(graph, [*first, *graph.node, *last])


def _rename(graph: GraphProto, names: Mapping[str, str], inputs: Collection[str], weights: Weights) -> None:
    """Renames values everywhere but in the main graph's own inputs and outputs."""
    for number, inner in enumerate(iter_graphs(graph)):
        for node in inner.node:
            replace_names(node.input, names)
            replace_names(node.output, names)
        for value in (*inner.value_info, *(inner.output if number else ())):
            value.name = names.get(value.name, value.name)
        for tensor in inner.initializer:
            # The default of an input goes with the input.
            if tensor.name in names and tensor.name not in inputs:
                if is_stub(tensor):
                    weights[names[tensor.name]] = weights.pop(tensor.name)
                tensor.name = names[tensor.name]
