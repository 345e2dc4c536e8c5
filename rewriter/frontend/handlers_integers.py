"""Translations of TensorFlow ops whose export by tf2onnx computes integers in floating point, or not at all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from rewriter.frontend.handlers_stock import stock
from rewriter.frontend.maker import Maker

_BOOL, _FLOAT, _DOUBLE = TensorProto.BOOL, TensorProto.FLOAT, TensorProto.DOUBLE
_I8, _I16, _I32, _I64 = TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64
_U8, _U16, _U32, _U64 = TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64
_SMALL: Mapping[int, int] = {_I8: _I32, _U8: _I32, _I16: _I32, _U16: _I32}
_ORDERED: Mapping[int, int] = {**_SMALL, _U32: _I64}
_SUMMED: Mapping[int, int] = {**_ORDERED, _U64: _I64}
_SIGNED: Mapping[int, int] = {_I8: _U8, _I16: _U16, _I32: _U32, _I64: _U64}

#: TensorFlow op -> (how many inputs are data, type that ONNX Runtime has no kernel for -> the type to compute in).
#: Sums and products of a wider integer, cut to the narrow one, are those of the narrow one.
WIDENED: Mapping[str, tuple[int, Mapping[int, int]]] = {
    **dict.fromkeys(("Sum", "Prod", "Cumsum"), (1, _SUMMED)),
    **dict.fromkeys(("Mean", "Max", "Min"), (1, _ORDERED)),
    **dict.fromkeys(("Maximum", "Minimum"), (2, {_I16: _I32, _U16: _I32})),
    **dict.fromkeys(("ArgMax", "ArgMin"), (1, {**_ORDERED, _BOOL: _I32})),
    "Relu": (1, {_U8: _I32, _I16: _I32, _U16: _I32, _U32: _I64}),
    **dict.fromkeys(("ResizeBilinear", "ResizeBicubic"), (1, dict.fromkeys((*_SUMMED, _I32, _I64), _FLOAT))),
    **dict.fromkeys(("Erf", "Acos", "Asin", "Atan", "Tan", "Asinh", "Acosh", "Atanh"), (1, {_DOUBLE: _FLOAT})),
}


def widened(op: str) -> Callable[..., None]:
    """A handler that computes in a type that ONNX Runtime has a kernel for, and casts the result back.

    float64 functions that are there for float32 alone are computed in it.
    """
    count, kinds = WIDENED[op]

    def handler(graph: Any, node: Any, *_: Any) -> None:
        kind, result = graph.get_dtype(node.input[0]), graph.get_dtype(node.output[0])
        wide = kinds.get(kind)
        if wide is not None:
            make = Maker(graph, node)
            for index in range(count):
                graph.replace_input(node, node.input[index], make("Cast", node.input[index], kind=wide, to=wide), index)
            if result == kind:
                graph.set_dtype(node.output[0], wide)
                back = graph.insert_new_node_on_output("Cast", node.output[0], to=kind)
                graph.copy_shape(node.output[0], back.output[0])
                graph.set_dtype(back.output[0], kind)
        stock(op, graph, node)

    return handler


def compare(graph: Any, node: Any, *_: Any) -> None:
    """Comparisons of integers as they are; tf2onnx compares them in float32, where 2^24 and 2^24 + 1 are equal.

    1. Integers of 8 and 16 bits are compared as INT32, which TensorRT takes.
    2. Others get a Cast to the type they have: tf2onnx makes an INT64 of the counter of a loop without telling those
       that read it. Where it is idle, it goes away.
    """
    make = Maker(graph, node)
    op = {"GreaterEqual": "GreaterOrEqual", "LessEqual": "LessOrEqual"}.get(node.type, node.type)
    inputs = list(node.input)
    if make.dtype in (*_SUMMED, _I32, _I64):
        to = _SMALL.get(make.dtype, make.dtype)
        inputs = [make("Cast", name, kind=to, to=to) for name in inputs]
    make.finish(op, inputs)


def top_k(graph: Any, node: Any, *_: Any) -> None:
    """TopK of integers as they are, not in float32; 16 bits and unsigned ones in a wider integer."""
    from tf2onnx import utils

    make = Maker(graph, node)
    x, k = node.input
    kind = make.dtype
    wide = _ORDERED.get(kind)
    shapes, dtypes, outputs = node.output_shapes, node.output_dtypes, list(node.output)
    if wide is not None:
        x = make("Cast", x, kind=wide, to=wide)
    count = make("Unsqueeze", make("Cast", k, kind=_I64, to=_I64), make.tensor(np.zeros(1, np.int64)), kind=_I64)
    arguments = {"sorted": int(node.get_attr_value("sorted", 1))}
    graph.remove_node(node.name)
    name = utils.make_name(node.name)
    made = graph.make_node("TopK", [x, count], attr=arguments, output_count=2, name=name, shapes=shapes,
                           dtypes=[wide or kind, _I64])  # fmt: skip
    for index, to in enumerate(dtypes):
        op, attributes = ("Cast", {"to": to}) if (wide, _I64)[index] not in (None, to) else ("Identity", {})
        graph.make_node(op, [made.output[index]], attr=attributes, outputs=[outputs[index]], shapes=[shapes[index]],
                        dtypes=[to])  # fmt: skip


def shift(graph: Any, node: Any, *_: Any) -> None:
    """Shifts of signed integers, of which ONNX has only the unsigned ones, of the same bits.

    1. To the left: the bits are the same.
    2. To the right: x >> y of a negative x is not(not(x) >> y), whose inner shift brings in zeros.
    """
    make = Maker(graph, node)
    x, y = node.input
    kind = make.dtype
    direction = "LEFT" if node.type == "LeftShift" else "RIGHT"
    bits = _SIGNED.get(kind)
    if bits is None:
        make.finish("BitShift", [x, y], direction=direction)
        return
    # Where has no kernel for 16 bits.
    final = _I32 if kind == _I16 else kind
    negative = make("Less", x, make.const(0), kind=_BOOL)
    if direction == "RIGHT":
        positive = make("Max", make("Cast", x, kind=final, to=final),
                        make("BitwiseNot", make("Cast", x, kind=final, to=final), kind=final), kind=final)  # fmt: skip
        x = make("Cast", positive, to=kind) if final != kind else positive
    unsigned = [make("Cast", name, kind=bits, to=bits) for name in (x, y)]
    shifted = make("BitShift", *unsigned, kind=bits, direction=direction)
    if direction == "LEFT":
        make.finish("Cast", [shifted], to=kind)
        return
    result = make("Cast", shifted, kind=final, to=final)
    chosen = make("Where", negative, make("BitwiseNot", result, kind=final), result, kind=final)
    make.finish("Cast", [chosen], to=kind)


def add_n(graph: Any, node: Any, *_: Any) -> None:
    """AddN of integers is a chain of Add: ONNX's Sum takes floating point only."""
    make = Maker(graph, node)
    inputs = list(node.input)
    if make.dtype in (_FLOAT, _DOUBLE, TensorProto.FLOAT16) or len(inputs) == 1:
        make.finish("Sum", inputs)
        return
    total = functools.reduce(lambda a, b: make("Add", a, b), inputs[:-1])
    make.finish("Add", [total, inputs[-1]])


def invert_permutation(graph: Any, node: Any, *_: Any) -> None:
    """y[x[i]] = i: ScatterElements of 0, 1, ... at x."""
    make = Maker(graph, node)
    x = node.input[0]
    number = np.int64 if make.dtype == _I64 else np.int32
    size = make("Cast", make("Size", x, kind=_I64), to=make.dtype)
    count = make("Range", make.tensor(np.asarray(0, number)), size, make.tensor(np.asarray(1, number)))
    make.finish("ScatterElements", [x, x, count], axis=0)
