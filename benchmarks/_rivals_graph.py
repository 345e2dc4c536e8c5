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
                helper.make_tensor_type_proto(value.type.tensor_type.elem_type, list(shapes[value.name])).tensor_type
            )
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    done, before = from_proto(model), 0
    done, _ = Pipeline((Canonicalize(), InferShapes()), canonical=True).run(done)
    # Each round makes more shapes known, whose arithmetic the next one folds.
    while len(done.proto.graph.node) != before:
        before = len(done.proto.graph.node)
        done, _ = Pipeline((FoldConstants(), InferShapes()), canonical=True).run(done)
    done, _ = Pipeline((Canonicalize(), InferShapes()), canonical=True).run(done)
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
    read, arguments = _MAKERS[node.op_type](_Given(inputs, output, attributes, weights, shapes))
    return Step(node.op_type, read, output, arguments)


@dataclasses.dataclass(frozen=True)
class _Given:
    """A node, and the constants and shapes around it."""

    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]

    def constant(self, place: int) -> np.ndarray | None:
        """The operand at a place, which must be constant; None for one that is left out."""
        return self.weights[self.inputs[place]] if len(self.inputs) > place and self.inputs[place] else None

    def integers(self, place: int) -> list[int] | None:
        found = self.constant(place)
        return None if found is None else [int(n) for n in found.reshape(-1)]

    def shape(self, place: int = 0) -> tuple[int, ...]:
        return self.shapes[self.inputs[place]]


#: (operands that stay operands, arguments).
_Made = tuple[tuple[str, ...], dict[str, Any]]


def _expand(given: _Given) -> _Made:
    return given.inputs[:1], {"shape": given.shapes[given.output]}


def _transpose(given: _Given) -> _Made:
    return given.inputs, {"perm": tuple(given.attributes.get("perm") or reversed(range(len(given.shape()))))}


def _concat(given: _Given) -> _Made:
    return given.inputs, {"axis": given.attributes["axis"]}


def _slice(given: _Given) -> _Made:
    shape = given.shape()
    starts, ends = given.integers(1) or [], given.integers(2) or []
    axes = given.integers(3) or list(range(len(starts)))
    steps = given.integers(4) or [1] * len(starts)
    cuts: list[slice] = [slice(None)] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise UnknownOperatorError(f"Error: there is no step for a Slice backwards ({given.output!r})")
        cuts[axis] = slice(*slice(start, end, step).indices(shape[axis]))
    return given.inputs[:1], {"cuts": tuple(cuts)}


def _gather(given: _Given) -> _Made:
    return given.inputs, {"axis": given.attributes.get("axis", 0) % len(given.shape())}


def _cast(given: _Given) -> _Made:
    return given.inputs, {"to": str(helper.tensor_dtype_to_np_dtype(given.attributes["to"]))}


def _clip(given: _Given) -> _Made:
    low, high = given.constant(1), given.constant(2)
    limits = {"low": -np.inf if low is None else low, "high": np.inf if high is None else high}
    return given.inputs[:1], {name: float(value) for name, value in limits.items()}


def _pad(given: _Given) -> _Made:
    pads = given.integers(1) or []
    pairs = tuple(zip(pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=True))
    value = given.constant(2)
    return given.inputs[:1], {"pads": pairs, "value": 0.0 if value is None else float(value)}


def _softmax(given: _Given) -> _Made:
    return given.inputs, {"axis": given.attributes.get("axis", -1)}


def _reduce_mean(given: _Given) -> _Made:
    rank = len(given.shape())
    axes = given.integers(1) or given.attributes.get("axes") or range(rank)
    keepdims = bool(given.attributes.get("keepdims", 1))
    return given.inputs[:1], {"axes": tuple(axis % rank for axis in axes), "keepdims": keepdims}


def _gemm(given: _Given) -> _Made:
    wanted = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    return given.inputs, {name: given.attributes.get(name, value) for name, value in wanted.items()}


def _window(attributes: Mapping[str, Any], kernel: Sequence[int], size: Sequence[int]) -> dict[str, Any]:
    """Strides, dilations and written-out padding, (before, after) for each spatial axis."""
    rank = len(kernel)
    strides = tuple(attributes.get("strides") or [1] * rank)
    dilations = tuple(attributes.get("dilations") or [1] * rank)
    pads = attributes.get("pads") or [0] * 2 * rank
    pairs = list(zip(pads[:rank], pads[rank:], strict=True))
    word = attributes.get("auto_pad", b"NOTSET")
    if word == b"VALID":
        pairs = [(0, 0)] * rank
    elif word in (b"SAME_UPPER", b"SAME_LOWER"):
        pairs = []
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            less, more = total // 2, total - total // 2
            pairs.append((less, more) if word == b"SAME_UPPER" else (more, less))
    return {"strides": strides, "dilations": dilations, "pads": tuple(pairs)}


def _conv(given: _Given) -> _Made:
    window = _window(given.attributes, given.shape(1)[2:], given.shape()[2:])
    return given.inputs, {**window, "group": given.attributes.get("group", 1)}


def _conv_transpose(given: _Given) -> _Made:
    kernel, attributes = given.shape(1)[2:], given.attributes
    strides = tuple(attributes.get("strides") or [1] * len(kernel))
    grown = tuple(n * s for n, s in zip(given.shape()[2:], strides, strict=True))
    plain = grown == given.shapes[given.output][2:] and kernel == strides
    if not plain or attributes.get("group", 1) != 1 or any(n != 1 for n in attributes.get("dilations") or ()):
        raise UnknownOperatorError(f"Error: no step for a ConvTranspose whose windows overlap ({given.output!r})")
    return given.inputs, {"strides": strides}


def _max_pool(given: _Given) -> _Made:
    kernel = tuple(given.attributes["kernel_shape"])
    window = _window(given.attributes, kernel, given.shape()[2:])
    if given.attributes.get("ceil_mode") or any(n != 1 for n in window["dilations"]):
        raise UnknownOperatorError(f"Error: no step for a MaxPool with ceil_mode or dilations ({given.output!r})")
    return given.inputs, {"kernel": kernel, "strides": window["strides"], "pads": window["pads"]}


_MAKERS: dict[str, Callable[[_Given], _Made]] = {
    "Expand": _expand, "Transpose": _transpose, "Concat": _concat, "Slice": _slice, "Gather": _gather, "Cast": _cast,
    "Clip": _clip, "Pad": _pad, "Softmax": _softmax, "ReduceMean": _reduce_mean, "Gemm": _gemm, "Conv": _conv,
    "ConvTranspose": _conv_transpose, "MaxPool": _max_pool,
}  # fmt: skip
