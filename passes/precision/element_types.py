"""Element types of all values, from what the operators say: no shapes, no weights, models of any size."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import onnx
from onnx import GraphProto, NodeProto, TensorProto, TypeProto

from passes.graph.value_types import collect_infos
from passes.graph.walk import bodies_of, plain_domain
from passes.model import Model

#: Attributes that name the element type of a node's results.
DTYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "output_dtype")
#: Operators whose results have the (element) type of the first input, though their schemas do not say so.
_LIKE_FIRST = frozenset(
    {
        "Bernoulli", "ConcatFromSequence", "EyeLike", "Optional", "OptionalGetElement", "RandomNormalLike",
        "RandomUniformLike", "SequenceAt", "SequenceConstruct", "SplitToSequence",
    }
)  # fmt: skip
#: What operators give when neither an attribute nor an input tells.
_DEFAULTS = {
    "BlackmanWindow": TensorProto.FLOAT, "ConstantOfShape": TensorProto.FLOAT, "HammingWindow": TensorProto.FLOAT,
    "HannWindow": TensorProto.FLOAT, "LayerNormalization": TensorProto.FLOAT, "MelWeightMatrix": TensorProto.FLOAT,
    "Multinomial": TensorProto.INT32, "QuantizeLinear": TensorProto.UINT8, "RandomNormal": TensorProto.FLOAT,
    "RandomUniform": TensorProto.FLOAT, "SequenceEmpty": TensorProto.FLOAT,
}  # fmt: skip


def element_types(model: Model) -> dict[str, int]:
    """Value name -> onnx.TensorProto data type, bodies of If, Loop and Scan included.

    1. Inputs and initializers have the type that they declare.
    2. The results of a node have the type that its operator gives them: from an attribute, from a body, or from
       the input that shares their type in the operator's schema.
    3. Where the operator is unknown, the declared type counts, else that of the first input.

    A sequence or an optional has the type of its elements; a value of unknown type is missing. Computed types win over
    declared ones of inner values, which a rewrite may have left behind. Value names must be unique in the whole model,
    and the nodes sorted.
    """
    declared = {name: element_type(info.type) for name, info in collect_infos(model.proto).items()}
    versions = {plain_domain(o.domain): o.version for o in model.proto.opset_import}
    found: dict[str, int] = {}
    _visit(model.proto.graph, declared, versions, found)
    return found


def element_type(value: TypeProto) -> int:
    """The data type of a tensor, or of the elements of a sequence or optional; 0 where there is none."""
    kind = value.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        return int(getattr(value, kind).elem_type)
    if kind in ("sequence_type", "optional_type"):
        return element_type(getattr(value, kind).elem_type)
    return TensorProto.UNDEFINED


def _visit(graph: GraphProto, declared: Mapping[str, int], versions: Mapping[str, int], found: dict[str, int]) -> None:
    names = [value.name for value in graph.input]
    names += [tensor.name for tensor in graph.initializer]
    names += [sparse.values.name for sparse in graph.sparse_initializer]
    found.update((name, declared[name]) for name in names if declared.get(name))
    for node in graph.node:
        inner = [body for _, body in bodies_of(node)]
        for body in inner:
            _bind(node, body, found)
            _visit(body, declared, versions, found)
        types = _of_bodies(node, inner, found) if inner else _of_operator(node, versions, found)
        if types is None:
            first = next((found[name] for name in node.input if name in found), TensorProto.UNDEFINED)
            types = [declared.get(name) or first for name in node.output]
        for name, dtype in zip(node.output, types, strict=False):
            if name and (dtype or declared.get(name)):
                found[name] = dtype or declared[name]


def _bind(node: NodeProto, body: GraphProto, found: dict[str, int]) -> None:
    """Types of a body's inputs from the values that they start with; declared ones replace them."""
    start = 2 if node.op_type == "Loop" else 0
    if start:
        found.update(zip([v.name for v in body.input[:2]], (TensorProto.INT64, TensorProto.BOOL), strict=False))
    for value, source in zip(body.input[start:], node.input[start:], strict=False):
        if source in found:
            found[value.name] = found[source]


def _of_bodies(node: NodeProto, inner: list[GraphProto], found: Mapping[str, int]) -> list[int]:
    """The results of control flow are those of its (first) body; the first one of a Loop is its condition."""
    outputs = inner[0].output[1 if node.op_type == "Loop" else 0 :]
    return [found.get(value.name, 0) or element_type(value.type) for value in outputs]


def _of_operator(node: NodeProto, versions: Mapping[str, int], found: Mapping[str, int]) -> list[int] | None:
    """One entry an output, 0 where the operator does not tell; None for an unknown operator."""
    attribute = next((a for a in node.attribute if a.name in DTYPE_ATTRIBUTES and a.i), None)
    if attribute is not None:
        return [attribute.i] * len(node.output)
    if node.op_type in ("Constant", "ConstantOfShape") and not plain_domain(node.domain):
        return [_of_constant(node)]
    if node.op_type == "DequantizeLinear" and node.input[1] in found:
        # TensorRT takes scales of any float type, but the schemas below opset 19 say float32.
        return [found[node.input[1]]]
    first = next((found[name] for name in node.input if name in found), TensorProto.UNDEFINED)
    types = _formal(node.op_type, plain_domain(node.domain), versions.get(plain_domain(node.domain), 1))
    if types is None:
        return None
    if node.op_type in _LIKE_FIRST:
        return [first] * len(node.output)
    formal_inputs, formal_outputs = types
    bound: dict[str, int] = {}
    for i, name in enumerate(node.input):
        if name in found and formal_inputs:
            bound.setdefault(formal_inputs[min(i, len(formal_inputs) - 1)], found[name])
    default = _DEFAULTS.get(node.op_type, TensorProto.UNDEFINED)
    if node.op_type == "LayerNormalization":
        # Its mean and deviation have the type that it computes in.
        default = next((a.i for a in node.attribute if a.name == "stash_type"), default)
    formal = [formal_outputs[min(i, len(formal_outputs) - 1)] for i in range(len(node.output))]
    return [bound.get(text) or _concrete(text) or default for text in formal]


def _of_constant(node: NodeProto) -> int:
    kinds = {
        "value_float": TensorProto.FLOAT, "value_floats": TensorProto.FLOAT,
        "value_int": TensorProto.INT64, "value_ints": TensorProto.INT64,
        "value_string": TensorProto.STRING, "value_strings": TensorProto.STRING,
    }  # fmt: skip
    for attribute in node.attribute:
        if attribute.name == "value":
            return int(attribute.t.data_type)
        if attribute.name == "sparse_value":
            return int(attribute.sparse_tensor.values.data_type)
        if attribute.name in kinds:
            return kinds[attribute.name]
    return _DEFAULTS.get(node.op_type, TensorProto.UNDEFINED)


@functools.lru_cache(maxsize=4096)
def _formal(op_type: str, domain: str, version: int) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The type texts of an operator's formal inputs and outputs; None for an unknown one."""
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None
    # A variable that can be one type only is as good as that type.
    sole = {c.type_param_str: c.allowed_type_strs[0] for c in schema.type_constraints if len(c.allowed_type_strs) == 1}
    inputs, outputs = ([sole.get(v.type_str, v.type_str) for v in values] for values in (schema.inputs, schema.outputs))
    return tuple(inputs), tuple(outputs)


def _concrete(formal: str) -> int:
    """The data type that "tensor(int64)" names; 0 for a type variable."""
    if not formal.startswith("tensor("):
        return TensorProto.UNDEFINED
    return int(dict(TensorProto.DataType.items()).get(formal[len("tensor(") : -1].upper(), TensorProto.UNDEFINED))
