"""Our own translations of TensorFlow ops that tf2onnx 1.17 does not know or gets wrong.

They are handed to one export at a time (`custom_op_handlers`), so a user's own use of tf2onnx does not change.
A handler is called with (graph, node, name, arguments) and replaces `node` in tf2onnx's graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_UNSIGNED = (TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64)


def handlers() -> dict[str, tuple[Any, list[Any]]]:
    """TensorFlow op -> (handler, arguments), as tf2onnx wants them."""
    table = {
        "Erfc": erfc,
        "FloorDiv": floor_div,
        "FloorMod": floor_mod,
        "FakeQuantWithMinMaxArgs": fake_quant,
        "FakeQuantWithMinMaxVars": fake_quant,
        "FakeQuantWithMinMaxVarsPerChannel": fake_quant,
        "ResizeNearestNeighbor": resize_nearest,
    }
    return {op: (handler, []) for op, handler in table.items()}


def erfc(graph: Any, node: Any, *_: Any) -> None:
    """Erfc(x) = 1 - Erf(x); Keras 3 writes exact GELU with it."""
    make = _Maker(graph, node)
    one = make.const(1.0)
    make.finish("Sub", [one, make("Erf", node.input[0])])


def floor_div(graph: Any, node: Any, *_: Any) -> None:
    """Division rounded towards minus infinity, as Python's `//`.

    Integers: ONNX Div truncates towards zero; where the rest is not zero and its sign is not the divisor's, the
    floor is one less. Unsigned integers need no correction.
    """
    make = _Maker(graph, node)
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
    make = _Maker(graph, node)
    x, y = node.input
    if make.dtype not in _FLOATS:
        make.finish("Mod", [x, y], fmod=0)
        return
    rest = make("Mod", x, y, fmod=1)
    make.finish("Where", [_wrong_sign(make, rest, y), make("Add", rest, y), rest])


def _wrong_sign(make: _Maker, rest: str, divisor: str) -> str:
    """BOOL: the rest of a truncated division is not zero and its sign is not the divisor's."""
    zero, boolean = make.const(0), TensorProto.BOOL
    inexact = make("Not", make("Equal", rest, zero, kind=boolean), kind=boolean)
    negative = make("Less", rest, zero, kind=boolean), make("Less", divisor, zero, kind=boolean)
    return make("And", inexact, make("Xor", *negative, kind=boolean), kind=boolean)


def fake_quant(graph: Any, node: Any, *_: Any) -> None:
    """FakeQuant in float arithmetic, bit for bit as TensorFlow's CPU kernels.

    The range is nudged so that zero lies on the grid (all in float32):
    1. scale = (max - min) / (quant_max - quant_min); zero = quant_min - min / scale.
    2. zero point = quant_min, quant_max, or zero rounded half away from zero, whichever clamps.
    3. nudged range = (quant_min - zero point) * scale .. (quant_max - zero point) * scale.
    4. origin = floor(-nudged min * (1 / scale) + 0.5).
    5. y = floor((clip(x) - nudged min) * (1 / scale) - origin + 0.5) * scale.
    QuantizeLinear rounds half to even and is up to one quantum off.
    """
    make = _Maker(graph, node)
    bits, narrow = node.get_attr_value("num_bits", 8), bool(node.get_attr_value("narrow_range", 0))
    if node.type == "FakeQuantWithMinMaxArgs":
        low = np.float32(node.get_attr_value("min", -6.0))
        high = np.float32(node.get_attr_value("max", 6.0))
    else:
        for index in (1, 2):
            if not node.inputs[index].is_const():
                raise ValueError(f"{node.type} {node.name} computes its range at run time")
        low, high = (np.asarray(node.inputs[i].get_tensor_value(as_list=False), np.float32) for i in (1, 2))
    scale, inverse, lowest, highest = nudge(low, high, bits, narrow)
    origin = np.floor(-lowest * inverse + np.float32(0.5))
    # Opset 18's Min and Max broadcast, and clip per channel as Clip cannot.
    clipped = make("Max", make("Min", node.input[0], make.const(highest)), make.const(lowest))
    steps = make("Mul", make("Sub", clipped, make.const(lowest)), make.const(inverse))
    level = make("Floor", make("Add", make("Sub", steps, make.const(origin)), make.const(0.5)))
    make.finish("Mul", [level, make.const(scale)])


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


def nudge(low: Any, high: Any, bits: int, narrow: bool) -> tuple[Any, Any, Any, Any]:
    """(scale, 1 / scale, nudged minimum, nudged maximum) of a FakeQuant, in float32.

    A range of 0 .. 0 gives a scale of 0, and so y = 0, which is what TensorFlow returns.
    """
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    quant_low, quant_high = np.float32(1 if narrow else 0), np.float32((1 << bits) - 1)
    empty = (low == 0) & (high == 0)
    width = np.where(empty, np.float32(1), high - low).astype(np.float32)
    scale = (width / (quant_high - quant_low)).astype(np.float32)
    inverse = ((quant_high - quant_low) / width).astype(np.float32)
    zero = np.clip((quant_low - low / scale).astype(np.float32), quant_low, quant_high)
    zero = np.floor(zero + np.float32(0.5)).astype(np.float32)
    lowest = ((quant_low - zero) * scale).astype(np.float32)
    highest = ((quant_high - zero) * scale).astype(np.float32)
    return np.where(empty, np.float32(0), scale), inverse, lowest, highest


class _Maker:
    """Makes nodes of one replacement in the dtype of the node's first input."""

    def __init__(self, graph: Any, node: Any) -> None:
        from tf2onnx import utils

        self._graph, self._node, self._unique = graph, node, utils.make_name
        self.dtype: int = graph.get_dtype(node.input[0])
        self._numpy = utils.map_onnx_to_numpy_type(self.dtype)

    def __call__(self, op: str, *inputs: str, kind: int | None = None, **attributes: Any) -> str:
        made = self._graph.make_node(
            op, list(inputs), attr=attributes, op_name_scope=self._node.name, name=self._unique(op)
        )
        self._graph.set_dtype(made.output[0], kind or self.dtype)
        return str(made.output[0])

    def const(self, value: Any) -> str:
        made = self._graph.make_const(self._unique(self._node.name + "_const"), np.asarray(value, self._numpy))
        return str(made.output[0])

    def finish(self, op: str, inputs: list[str], **attributes: Any) -> None:
        """The last node takes over the name and the output of the replaced one."""
        node = self._node
        shapes, dtypes = node.output_shapes, node.output_dtypes
        self._graph.remove_node(node.name)
        self._graph.make_node(
            op, inputs, attr=attributes, name=node.name, outputs=node.output, shapes=shapes, dtypes=dtypes
        )
