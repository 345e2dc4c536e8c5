"""One ONNX model as plain steps with fixed shapes, which the interpreters of `_rivals_torch` and `_rivals_jax` follow.

`fixed` cleans a model for exactly one shape of its inputs with this project's passes, so that no shape arithmetic is
left for anybody; `program_of` turns it into steps: static operands (axes, shapes, limits) become arguments, what only
changes a shape becomes one "Reshape", and padding is written out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from _common import add_project_to_path
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

add_project_to_path()

#: Steps that take their operands as they are and need no arguments.
PLAIN = frozenset({
    "Add", "Sub", "Mul", "Div", "And", "Less", "Where", "MatMul", "Max", "Relu", "Sigmoid", "Tanh", "Erf", "Sqrt",
    "Reciprocal", "Neg",
})  # fmt: skip
#: All words that a step can have.
STEPS = PLAIN | {
    "Reshape", "Expand", "Transpose", "Concat", "Slice", "Gather", "Cast", "Clip", "Pad", "Softmax", "ReduceMean",
    "Gemm", "Conv", "ConvTranspose", "MaxPool",
}  # fmt: skip
HALF_MAX = 65504.0


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        op: one of `STEPS`.
        inputs: names of its operands; weights are among them.
        output: name of its result.
        arguments: everything else, plain values.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Program:
    """A model for one shape of its inputs.

    Attributes:
        inputs: names, in order.
        outputs: names, in order.
        weights: arrays by name that the steps read.
        steps: in an order in which they can run.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, np.ndarray]
    steps: tuple[Step, ...]


class UnknownOperatorError(RuntimeError):
    """A node that there is no step for; the message names it."""


def fixed(proto: ModelProto, shapes: Mapping[str, Sequence[int]]) -> ModelProto:
    """The model for inputs of exactly these shapes, with all that follows from them folded away."""
    from passes.base import Pipeline
    from passes.canonicalize import Canonicalize
    from passes.fold_constants import FoldConstants
    from passes.infer_shapes import InferShapes
    from passes.model import from_proto, to_proto

    model = ModelProto()
    model.CopyFrom(proto)
    for value in model.graph.input:
        if value.name in shapes:
            value.type.tensor_type.CopyFrom(
                helper.make_tensor_type_proto(
                    value.type.tensor_type.elem_type, list(shapes[value.name])
                ).tensor_type
            )
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    passes = (Canonicalize(), *(InferShapes(), FoldConstants()) * 3, Canonicalize(), InferShapes())
    done, _ = Pipeline(passes, canonical=True).run(from_proto(model))
    return to_proto(done)


def program_of(proto: ModelProto) -> Program:
    """The steps of a model that `fixed` returned.

    Raises:
        UnknownOperatorError: there is no step for a node, or a shape that it needs is not fixed.
    """
    graph = proto.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }
    shapes |= {name: array.shape for name, array in weights.items()}
    steps = []
    for node in graph.node:
        try:
            steps.append(_step(node, weights, shapes))
        except KeyError as error:
            raise UnknownOperatorError(
                f"Error: {node.op_type} {node.name!r} cannot be interpreted: {error.args[0]!r} is not constant or known"
            ) from error
    read = {name for step in steps for name in step.inputs} | {value.name for value in graph.output}
    return Program(
        tuple(value.name for value in graph.input if value.name not in weights),
        tuple(value.name for value in graph.output),
        {name: array for name, array in weights.items() if name in read},
        tuple(steps),
    )


def as_half(proto: ModelProto) -> ModelProto:
    """The model in float16 throughout, with float32 inputs and outputs; what float16 cannot hold becomes its largest.

    For models that `fixed` returned, whose only Casts to float32 are of values that the network computes with.
    """
    from _runtime_rivals import as_float16

    model = ModelProto()
    model.CopyFrom(proto)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor)
            if array.size and np.abs(array).max() > HALF_MAX:
                tensor.CopyFrom(numpy_helper.from_array(np.clip(array, -HALF_MAX, HALF_MAX), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    return as_float16(model)


def _step(node: NodeProto, weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> Step:
    inputs, output = tuple(node.input), node.output[0]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type in PLAIN:
        return Step(node.op_type, inputs, output)
    if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
        return Step("Reshape", inputs[:1], output, {"shape": shapes[output]})
    if node.op_type == "Identity":
        return Step("Reshape", inputs, output, {"shape": shapes[output]})
    if node.op_type not in _MAKERS:
        raise UnknownOperatorError(f"Error: there is no step for {node.op_type} ({node.name!r})")
    read, arguments = _MAKERS[node.op_type](inputs, output, attributes, weights, shapes)
    return Step(node.op_type, read, output, arguments)


_Made = tuple[tuple[str, ...], dict[str, Any]]


def _expand(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    return inputs[:1], {"shape": shapes[output]}


def _transpose(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    return inputs, {"perm": tuple(attributes.get("perm") or reversed(range(len(shapes[inputs[0]]))))}


def _concat(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    return inputs, {"axis": attributes["axis"]}


def _slice(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    starts, ends = ([int(n) for n in weights[name]] for name in inputs[1:3])
    rank = len(shapes[inputs[0]])
    axes = [int(n) % rank for n in weights[inputs[3]]] if len(inputs) > 3 and inputs[3] else range(len(starts))
    steps = [int(n) for n in weights[inputs[4]]] if len(inputs) > 4 and inputs[4] else [1] * len(starts)
    cuts: list[slice] = [slice(None)] * rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise UnknownOperatorError(f"Error: there is no step for a Slice backwards ({output!r})")
        cuts[axis] = slice(*slice(start, end, step).indices(shapes[inputs[0]][axis]))
    return inputs[:1], {"cuts": tuple(cuts)}


def _gather(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    return inputs, {"axis": attributes.get("axis", 0) % len(shapes[inputs[0]])}


def _cast(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    return inputs, {"to": str(helper.tensor_dtype_to_np_dtype(attributes["to"]))}


def _clip(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    low, high = (
        float(weights[inputs[place]]) if len(inputs) > place and inputs[place] else limit
        for place, limit in ((1, -np.inf), (2, np.inf))
    )
    return inputs[:1], {"low": low, "high": high}


def _pad(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    pads = [int(n) for n in weights[inputs[1]]]
    half = len(pads) // 2
    value = float(weights[inputs[2]]) if len(inputs) > 2 and inputs[2] else 0.0
    return inputs[:1], {"pads": tuple(zip(pads[:half], pads[half:], strict=True)), "value": value}


def _softmax(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    return inputs, {"axis": attributes.get("axis", -1)}


def _reduce_mean(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    axes = weights[inputs[1]].tolist() if len(inputs) > 1 and inputs[1] else attributes.get("axes")
    rank = len(shapes[inputs[0]])
    axes = tuple(axis % rank for axis in axes) if axes else tuple(range(rank))
    return inputs[:1], {"axes": axes, "keepdims": bool(attributes.get("keepdims", 1))}


def _gemm(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    wanted = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    return inputs, {name: attributes.get(name, value) for name, value in wanted.items()}


def _window(inputs: Any, attributes: Any, kernel: Sequence[int], size: Sequence[int]) -> dict[str, Any]:
    """Strides, dilations and written-out padding, (before, after) for each spatial axis."""
    rank = len(kernel)
    strides = tuple(attributes.get("strides") or [1] * rank)
    dilations = tuple(attributes.get("dilations") or [1] * rank)
    pads = attributes.get("pads") or [0] * 2 * rank
    pairs = tuple(zip(pads[:rank], pads[rank:], strict=True))
    word = attributes.get("auto_pad", b"NOTSET")
    if word in (b"SAME_UPPER", b"SAME_LOWER"):
        found = []
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            found.append((total // 2, total - total // 2) if word == b"SAME_UPPER" else (total - total // 2, total // 2))
        pairs = tuple(found)
    elif word == b"VALID":
        pairs = ((0, 0),) * rank
    return {"strides": strides, "dilations": dilations, "pads": pairs}


def _conv(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    kernel = shapes[inputs[1]][2:]
    return inputs, {**_window(inputs, attributes, kernel, shapes[inputs[0]][2:]), "group": attributes.get("group", 1)}


def _conv_transpose(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    kernel, sizes = shapes[inputs[1]][2:], (shapes[inputs[0]][2:], shapes[output][2:])
    rank = len(kernel)
    strides = tuple(attributes.get("strides") or [1] * rank)
    plain = all(out == n * s for n, out, s in zip(*sizes, strides, strict=True)) and tuple(kernel) == strides
    if not plain or attributes.get("group", 1) != 1 or any(n != 1 for n in attributes.get("dilations") or ()):
        raise UnknownOperatorError(f"Error: there is no step for a ConvTranspose whose windows overlap ({output!r})")
    return inputs, {"strides": strides}


def _max_pool(inputs: Any, output: Any, attributes: Any, weights: Any, shapes: Any) -> _Made:
    kernel = tuple(attributes["kernel_shape"])
    window = _window(inputs, attributes, kernel, shapes[inputs[0]][2:])
    if attributes.get("ceil_mode") or any(n != 1 for n in window["dilations"]):
        raise UnknownOperatorError(f"Error: there is no step for a MaxPool with ceil_mode or dilations ({output!r})")
    return inputs, {"kernel": kernel, "strides": window["strides"], "pads": window["pads"]}


_MAKERS: dict[str, Callable[[Any, Any, Any, Any, Any], _Made]] = {
    "Expand": _expand, "Transpose": _transpose, "Concat": _concat, "Slice": _slice, "Gather": _gather, "Cast": _cast,
    "Clip": _clip, "Pad": _pad, "Softmax": _softmax, "ReduceMean": _reduce_mean, "Gemm": _gemm, "Conv": _conv,
    "ConvTranspose": _conv_transpose, "MaxPool": _max_pool,
}  # fmt: skip
