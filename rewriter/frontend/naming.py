"""Public names, dtypes and readable dimension symbols on the exported graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from passes.island_node import is_island
from passes.model import without_weights
from passes.segments import TensorSpec
from rewriter.frontend.callee import Argument
from rewriter.frontend.structure import unique
from rewriter.source import Signature

Shape = tuple["int | str | None", ...]


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Renames values everywhere in `graph`, bodies included."""
    for node in graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                if name in names:
                    values[index] = names[name]
        for body in bodies(node):
            rename(body, names)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)


def value_names(graph: GraphProto) -> set[str]:
    """All value names of `graph` and its bodies."""
    names = {v.name for v in (*graph.input, *graph.output, *graph.initializer)}
    for node in graph.node:
        names.update(node.input, node.output)
        for body in bodies(node):
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

    That of values which TensorFlow islands compute stays: it was written with readable symbols.

    Args:
        proto: the model, changed in place.
        arguments: the inputs, in graph order.
        symbols: (public input name, axis) -> symbol.
        outputs: (public name, ONNX name, dtype, shape as known from TensorFlow), in graph order.
    """
    ins = []
    for value, argument in zip(proto.graph.input, arguments, strict=True):
        shape: Shape | None = None
        if argument.shape is not None:
            shape = tuple(symbols[argument.name, i] if d is None else d for i, d in enumerate(argument.shape))
        _set_shape(value, shape)
        ins.append(TensorSpec(argument.name, value.type.tensor_type.elem_type, shape, value.name))
    _forget_inner_shapes(proto.graph)
    taken = set(symbols.values())
    inferred = _inferred(proto, frozenset(taken))
    outs = []
    for value, (name, tensor, dtype, known) in zip(proto.graph.output, outputs, strict=True):
        guess = inferred.get(tensor, ())
        guess = guess if len(guess) == len(known) else (None,) * len(known)
        dims = [k if k is not None else g for k, g in zip(known, guess, strict=True)]
        shape = tuple(d if d is not None else unique(f"{name}_dim{i}", taken) for i, d in enumerate(dims))
        value.type.tensor_type.elem_type = dtype
        _set_shape(value, shape)
        outs.append(TensorSpec(name, dtype, shape, tensor))
    return Signature(tuple(ins), tuple(outs))


def _forget_inner_shapes(graph: GraphProto) -> None:
    """Drops value_info, and the converter's unknown dimensions ("unk__17", another each run) in bodies."""
    islands = {name for node in graph.node if is_island(node) for name in node.output}
    kept = [value for value in graph.value_info if value.name in islands]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for node in graph.node:
        for body in bodies(node):
            _forget_inner_shapes(body)
            for value in (*body.input, *body.output):
                for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
                    if dim.dim_param.startswith("unk__"):
                        dim.ClearField("dim_param")


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


def _inferred(proto: ModelProto, symbols: frozenset[str]) -> dict[str, Shape]:
    """Output shapes that ONNX's own inference finds, with only the symbols that inputs carry."""
    bare = without_weights(proto)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        bare = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return {}
    shapes: dict[str, Shape] = {}
    for value in bare.graph.output:
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else (d.dim_param if d.dim_param in symbols else None)
                for d in value.type.tensor_type.shape.dim
            )
    return shapes
