"""Public names, dtypes and readable dimension symbols on the exported graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, ValueInfoProto

from passes.segments import TensorSpec
from rewriter.frontend.callee import Argument
from rewriter.frontend.structure import unique
from rewriter.source import Signature

Shape = Sequence["int | str | None"]


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Renames values everywhere in `graph`, bodies included."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]
        for index, name in enumerate(node.output):
            if name in names:
                node.output[index] = names[name]
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                rename(attribute.g, names)
            for body in attribute.graphs:
                rename(body, names)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if value.name in names:
            value.name = names[value.name]


def value_names(graph: GraphProto) -> set[str]:
    """All value names of `graph` and its bodies."""
    names = {v.name for v in (*graph.input, *graph.output, *graph.initializer)}
    for node in graph.node:
        names.update(node.input, node.output)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                names |= value_names(attribute.g)
            for body in attribute.graphs:
                names |= value_names(body)
    return names


def publish(
    proto: ModelProto,
    inputs: Sequence[str],
    outputs: Sequence[str],
    public_inputs: Sequence[str],
    public_outputs: Sequence[str],
) -> tuple[list[str], list[str]]:
    """Gives graph inputs and outputs their public names; returns the ONNX names.

    An output called like an input becomes `<name>_out`; inner values that bear a public name are renamed.
    """
    taken: set[str] = set()
    ins = [unique(name, taken) for name in public_inputs]
    outs = [unique(name if name not in taken else f"{name}_out", taken) for name in public_outputs]
    names = dict(zip([*inputs, *outputs], [*ins, *outs], strict=True))
    present = value_names(proto.graph)
    for clash in sorted(taken & (present - names.keys())):
        names[clash] = unique(f"{clash}_inner", taken | present)
    rename(proto.graph, names)
    return ins, outs


def set_types(
    proto: ModelProto,
    arguments: Sequence[Argument],
    symbols: Mapping[tuple[str, int], str],
    outputs: Sequence[tuple[str, str, int, Shape]],
) -> Signature:
    """Writes input and output types with readable symbols; value_info is dropped (its symbols mean nothing).

    Args:
        proto: the model, changed in place.
        arguments: the inputs, in graph order.
        symbols: (public input name, axis) -> symbol.
        outputs: (public name, ONNX name, dtype, shape as known from TensorFlow), in graph order.
    """
    shapes: list[tuple[int | str | None, ...] | None] = []
    for value, argument in zip(proto.graph.input, arguments, strict=True):
        shape = argument.shape
        named = (
            None if shape is None else tuple(symbols[argument.name, i] if d is None else d for i, d in enumerate(shape))
        )
        shapes.append(named)
        _set_shape(value, named)
    del proto.graph.value_info[:]
    inferred = _inferred(proto, set(symbols.values()))
    taken = set(symbols.values())
    specs = []
    for value, (name, tensor, dtype, known) in zip(proto.graph.output, outputs, strict=True):
        guess = inferred.get(tensor)
        if guess is None or len(guess) != len(known):
            guess = (None,) * len(known)
        shape = tuple(
            k if k is not None else (g if g is not None else unique(f"{name}_dim{axis}", taken))
            for axis, (k, g) in enumerate(zip(known, guess, strict=True))
        )
        value.type.tensor_type.elem_type = dtype
        _set_shape(value, shape)
        specs.append(TensorSpec(name, dtype, shape, tensor))
    ins = tuple(
        TensorSpec(a.name, v.type.tensor_type.elem_type, s, v.name)
        for a, v, s in zip(arguments, proto.graph.input, shapes, strict=True)
    )
    return Signature(ins, tuple(specs))


def _set_shape(value: ValueInfoProto, shape: Shape | None) -> None:
    tensor = value.type.tensor_type
    tensor.ClearField("shape")
    if shape is None:
        return
    tensor.shape.SetInParent()
    for dim in shape:
        entry = tensor.shape.dim.add()
        if isinstance(dim, int):
            entry.dim_value = dim
        elif dim is not None:
            entry.dim_param = dim


def _inferred(proto: ModelProto, symbols: set[str]) -> dict[str, tuple[int | str | None, ...]]:
    """Output shapes that ONNX's own inference finds, with only the symbols that inputs carry."""
    bare = ModelProto()
    bare.CopyFrom(stripped(proto))
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        bare = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return {}
    shapes: dict[str, tuple[int | str | None, ...]] = {}
    for value in bare.graph.output:
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else (d.dim_param if d.dim_param in symbols else None)
                for d in value.type.tensor_type.shape.dim
            )
    return shapes


def stripped(proto: ModelProto) -> ModelProto:
    """The model with large initializers as inputs: cheap to copy and to infer shapes on."""
    from passes.model import from_proto, stubs_as_inputs

    return stubs_as_inputs(from_proto(proto))
