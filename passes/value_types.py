"""Types of values: between onnx.ValueInfoProto and TensorSpec, and all of a model's in one mapping."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, TypeProto, ValueInfoProto

from passes.graph_index import iter_scopes
from passes.segments import TensorSpec


def spec_of(value: ValueInfoProto) -> TensorSpec:
    """The dtype and shape of a value; dtype UNDEFINED (0) for what is no tensor or has no type."""
    if not value.type.HasField("tensor_type"):
        return TensorSpec(value.name, TensorProto.UNDEFINED, None)
    tensor = value.type.tensor_type
    return TensorSpec(value.name, tensor.elem_type, shape_of(tensor))


def shape_of(tensor: TypeProto.Tensor) -> tuple[int | str | None, ...] | None:
    """The shape of a tensor type: numbers, symbols and None for unknown dimensions; None for unknown rank."""
    if not tensor.HasField("shape"):
        return None
    shape: list[int | str | None] = []
    for dim in tensor.shape.dim:
        kind = dim.WhichOneof("value")
        shape.append(None if kind is None or (kind == "dim_param" and not dim.dim_param) else getattr(dim, kind))
    return tuple(shape)


def value_info_of(name: str, spec: TensorSpec | None) -> ValueInfoProto:
    """A value of that dtype and shape under `name`; without a type where the spec has none."""
    value = ValueInfoProto(name=name)
    if spec is None or spec.dtype == TensorProto.UNDEFINED:
        return value
    tensor = value.type.tensor_type
    tensor.elem_type = spec.dtype
    if spec.shape is not None:
        tensor.shape.SetInParent()
        for size in spec.shape:
            dim = tensor.shape.dim.add()
            if isinstance(size, str):
                dim.dim_param = size
            elif size is not None:
                dim.dim_value = size
    return value


def collect_infos(proto: ModelProto) -> dict[str, ValueInfoProto]:
    """Every typed value of the main graph and all bodies; inputs and outputs win over value_info.

    Relies on value names that are unique in the whole model, which canonicalize sees to.
    """
    found: dict[str, ValueInfoProto] = {}
    for _, graph in iter_scopes(proto):
        for values in (graph.value_info, graph.output, graph.input):
            found.update((v.name, v) for v in values if v.HasField("type"))
        for tensor in graph.initializer:
            if tensor.name not in found:
                spec = TensorSpec(tensor.name, tensor.data_type, tuple(tensor.dims))
                found[tensor.name] = value_info_of(tensor.name, spec)
        for sparse in graph.sparse_initializer:
            name = sparse.values.name
            found.setdefault(name, value_info_of(name, TensorSpec(name, sparse.values.data_type, tuple(sparse.dims))))
    return found
