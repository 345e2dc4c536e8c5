"""Types of values as a model *declares* them, and the ways between onnx.TypeProto and TensorSpec.

`collect_infos` gives the declarations themselves, of every kind of value; `value_types` reads the tensors among them.
What can be *inferred* is `passes.infer_shapes`' business, which writes it into the model as declarations.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto

from passes.graph.walk import iter_graphs
from passes.model import Model
from passes.segments import TensorSpec

#: One entry a dimension: a number, a symbol, or None for unknown.
Shape = tuple[int | str | None, ...]


def tensor_type(value: TypeProto) -> tuple[int, Shape | None]:
    """Element type (0: unknown or no tensor) and shape (None: unknown rank); negative numbers count as unknown."""
    if not value.HasField("tensor_type"):
        return TensorProto.UNDEFINED, None
    tensor = value.tensor_type
    if not tensor.HasField("shape"):
        return tensor.elem_type, None
    return tensor.elem_type, tuple([_size(dim) for dim in tensor.shape.dim])


def _size(dim: TensorShapeProto.Dimension) -> int | str | None:
    number = int(dim.dim_value)
    if number > 0:
        return number
    return 0 if not number and dim.HasField("dim_value") else (dim.dim_param or None)


def set_tensor_type(value: TypeProto, dtype: int, shape: Shape | None) -> None:
    """Writes element type and shape (None: unknown rank) into a type."""
    tensor = value.tensor_type
    tensor.elem_type = dtype
    tensor.ClearField("shape")
    if shape is None:
        return
    tensor.shape.SetInParent()
    for size in shape:
        dim = tensor.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size


def spec_of(value: ValueInfoProto) -> TensorSpec:
    """The dtype and shape of a value; dtype UNDEFINED (0) for what is no tensor or has no type."""
    return TensorSpec(value.name, *tensor_type(value.type))


def value_info_of(name: str, spec: TensorSpec | None) -> ValueInfoProto:
    """A value of that dtype and shape under `name`; without a type where the spec has none."""
    value = ValueInfoProto(name=name)
    if spec is not None and spec.dtype != TensorProto.UNDEFINED:
        set_tensor_type(value.type, spec.dtype, spec.shape)
    return value


def collect_infos(proto: ModelProto) -> dict[str, ValueInfoProto]:
    """Every value with a declared type, of the main graph and all bodies; sequences and optionals among them.

    Inputs win over initializers (an input may be given in other shapes than its default has), these over outputs, and
    all of them over value_info. Relies on value names that are unique in the whole model, as canonicalize leaves them.
    """
    found: dict[str, ValueInfoProto] = {}
    for graph in iter_graphs(proto):
        for values in (graph.value_info, graph.output, graph.input):
            found.update((v.name, v) for v in values if v.HasField("type"))
        inputs = {value.name for value in graph.input}
        for tensor in graph.initializer:
            if tensor.name not in inputs or tensor.name not in found:
                spec = TensorSpec(tensor.name, tensor.data_type, tuple(tensor.dims))
                found[tensor.name] = value_info_of(tensor.name, spec)
        for sparse in graph.sparse_initializer:
            name = sparse.values.name
            found.setdefault(name, value_info_of(name, TensorSpec(name, sparse.values.data_type, tuple(sparse.dims))))
    return found


def value_types(model: Model) -> Mapping[str, TensorSpec]:
    """The tensors among the declared values: value name -> dtype and shape, bodies of If/Loop/Scan included.

    Values of unknown type and values that are no tensors (sequences, optionals) are missing. Value names must be
    unique in the whole model, as `Canonicalize` leaves them; run `InferShapes` first to have nearly all of them.
    """
    found: dict[str, TensorSpec] = {}
    for name, info in collect_infos(model.proto).items():
        dtype, shape = tensor_type(info.type)
        if dtype:
            found[name] = TensorSpec(name, dtype, shape)
    return found
