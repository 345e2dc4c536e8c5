"""Our own translations of TensorFlow ops that tf2onnx 1.17 does not know or gets wrong.

They are handed to one export at a time (`custom_op_handlers`), so a user's own use of tf2onnx does not change.
A handler is called with (graph, node, name, arguments) and replaces `node` in tf2onnx's graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from onnx import TensorProto

from rewriter.frontend import quantization
from rewriter.frontend.handlers_convolution import SPATIAL, conv_transpose
from rewriter.frontend.handlers_indexing import one_hot, reverse, reverse_sequence, select, split
from rewriter.frontend.handlers_integers import WIDENED, add_n, compare, invert_permutation, shift, top_k, widened
from rewriter.frontend.handlers_segments import SEGMENTS, scatter_nd, segments
from rewriter.frontend.maker import Maker

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_UNSIGNED = (TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64)


def handlers(notes: list[str]) -> dict[str, tuple[Any, list[Any]]]:
    """TensorFlow op -> (handler, arguments), as tf2onnx wants them.

    Args:
        notes: what the user should know of the export is added to it, a line each.
    """
    table: dict[str, Callable[..., None]] = {
        "AddN": add_n,
        "Erfc": erfc,
        "FloorDiv": floor_div,
        "FloorMod": floor_mod,
        "Greater": compare,
        "GreaterEqual": compare,
        "InvertPermutation": invert_permutation,
        "LeftShift": shift,
        "Less": compare,
        "LessEqual": compare,
        "OneHot": one_hot,
        "ResizeNearestNeighbor": resize_nearest,
        "ReverseSequence": reverse_sequence,
        "ReverseV2": reverse,
        "RightShift": shift,
        "ScatterNd": scatter_nd,
        "Select": select,
        "SelectV2": select,
        "SplitV": split,
        "TopKV2": top_k,
        **dict.fromkeys(SPATIAL, conv_transpose),
        **dict.fromkeys(SEGMENTS, segments),
        **{op: widened(op) for op in WIDENED},
    }
    # tf2onnx takes a first argument for the name of an operator, so the notes are bound.
    quantizers = {op: functools.partial(handler, notes) for op, handler in quantization.HANDLERS.items()}
    return {op: (handler, []) for op, handler in (table | quantizers).items()}


#: erfc(x) * exp(x^2) / t as a polynomial in t = 1 / (1 + x / 2), highest power first: a minimax fit of the relative
#: error on 1 <= x <= 10.2, where it is 8e-7.
_ERFC_TAIL = (-0.13282290953598605, 0.16132843840854713, 0.15633856006456107, 0.24850203445392166,
              0.2822379387280534, 0.2820720985164218)  # fmt: skip


def erfc(graph: Any, node: Any, *_: Any) -> None:
    """Erfc(x): 1 - Erf(x) below 1, and exp(-x^2) * t * P(t) with t = 1 / (1 + x / 2) from there on.

    1 - Erf(x) alone is 0 beyond about 4, where TensorFlow still has all digits. The form of the tail is that of Press
    et al., "Numerical Recipes", section 6.2 (erfcc), with a polynomial of our own in place of its second exponential.

    Where the result is only multiplied by the value that x is a multiple of (the exact GELU, x * erfc(-x / sqrt(2)),
    as TensorFlow and Keras write it), the tail counts for less than the rounding of that value: 1 - Erf(x), which
    TensorRT knows as a GELU.
    """
    make = Maker(graph, node)
    x, one = node.input[0], make.const(1.0)
    body = [one, _erf(make, x)]
    if _is_gelu(graph, node):
        make.finish("Sub", body)
        return
    t = make("Reciprocal", make("Add", make("Mul", x, make.const(0.5)), one))
    series = make.const(_ERFC_TAIL[0])
    for coefficient in _ERFC_TAIL[1:]:
        series = make("Add", make("Mul", series, t), make.const(coefficient))
    decay = make("Exp", make("Neg", make("Mul", x, x)))
    tail = make("Mul", decay, make("Mul", t, series))
    is_tail = make("Greater", x, one, kind=TensorProto.BOOL)
    make.finish("Where", [is_tail, tail, make("Sub", *body)])


def _erf(make: Maker, x: str) -> str:
    """Erf, for which ONNX Runtime has no kernel of float64."""
    if make.dtype != TensorProto.DOUBLE:
        return make("Erf", x)
    single = int(TensorProto.FLOAT)
    return make("Cast", make("Erf", make("Cast", x, kind=single, to=single), kind=single), to=make.dtype)


def _is_gelu(graph: Any, node: Any) -> bool:
    """True for an Erfc(c * x) whose readers all multiply it by a multiple of x."""
    source = _multiple_of(graph, node.input[0])
    readers = graph.find_output_consumers(node.output[0])
    others = [name for reader in readers for name in reader.input if name != node.output[0]]
    return (
        bool(readers)
        and node.output[0] not in graph.outputs
        and all(reader.type == "Mul" for reader in readers)
        and len(others) == len(readers)
        and all(_multiple_of(graph, name) == source for name in others)
    )


def _multiple_of(graph: Any, name: str) -> str:
    """The tensor that `name` is a constant multiple of."""
    node = graph.get_node_by_output(name)
    if node is None or node.type not in ("Mul", "Neg", "Identity", "RealDiv", "Div"):
        return name
    varying = [
        source for source, made in zip(node.input, node.inputs, strict=True) if made is None or not made.is_const()
    ]
    if len(varying) != 1 or (node.type in ("RealDiv", "Div") and varying[0] != node.input[0]):
        return name
    return _multiple_of(graph, varying[0])


def floor_div(graph: Any, node: Any, *_: Any) -> None:
    """Division rounded towards minus infinity, as Python's `//`.

    Integers: ONNX Div truncates towards zero; where the rest is not zero and its sign is not the divisor's, the
    floor is one less. Unsigned integers need no correction.
    """
    make = Maker(graph, node)
    x, y = node.input
    if make.dtype in _FLOATS:
        make.finish("Floor", [make("Div", x, y)])
        return
    if make.dtype in _UNSIGNED:
        make.finish("Div", [x, y])
        return
    quotient = make("Div", x, y)
    rest = make("Sub", x, make("Mul", quotient, y))
    make.finish("Sub", [quotient, make("Cast", _wrong_sign(make, rest, y), to=make.dtype)])


def floor_mod(graph: Any, node: Any, *_: Any) -> None:
    """The remainder with the sign of the divisor, as Python's `%`.

    Integers: ONNX Mod with fmod=0 is just that. Floats: x - floor(x / y) * y loses digits for large quotients, so
    TensorFlow's own rule is used: m = fmod(x, y), plus y where m is not zero and its sign is not that of y.
    """
    make = Maker(graph, node)
    x, y = node.input
    if make.dtype not in _FLOATS:
        make.finish("Mod", [x, y], fmod=0)
        return
    rest = make("Mod", x, y, fmod=1)
    make.finish("Where", [_wrong_sign(make, rest, y), make("Add", rest, y), rest])


def _wrong_sign(make: Maker, rest: str, divisor: str) -> str:
    """BOOL: the rest of a truncated division is not zero and its sign is not the divisor's."""
    zero, boolean = make.const(0), TensorProto.BOOL
    inexact = make("Not", make("Equal", rest, zero, kind=boolean), kind=boolean)
    negative = make("Less", rest, zero, kind=boolean), make("Less", divisor, zero, kind=boolean)
    return make("And", inexact, make("Xor", *negative, kind=boolean), kind=boolean)


def resize_nearest(graph: Any, node: Any, *_: Any) -> None:
    """Nearest-neighbour resize; enlarging by whole numbers is written in the form that TensorRT takes.

    With half-pixel centres the source of x is floor((x + 1/2) / k), which for whole k is floor(x / k): the
    "asymmetric" form. Otherwise tf2onnx writes "tf_half_pixel_for_nn", which TensorRT refuses.
    """
    from tf2onnx.onnx_opset.nn import Resize

    source, target = graph.get_shape(node.input[0]), node.inputs[1]
    if node.get_attr_value("half_pixel_centers", 0) and source and target.is_const():
        factors = [
            divmod(new, old) if old > 0 else (0, 1)
            for new, old in zip(target.get_tensor_value(), source[1:3], strict=True)
        ]
        if all(factor >= 1 and rest == 0 for factor, rest in factors):
            node.set_attr("half_pixel_centers", 0)
    Resize.version_11(graph, node)
