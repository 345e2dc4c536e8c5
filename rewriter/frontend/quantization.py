"""Translations of TensorFlow's quantisation emulation (QAT): activations stay float chains, weights become int8.

An activation is rounded in float arithmetic, bit for bit as TensorFlow's CPU kernels do; `passes.precision` finds
these chains and makes int8 or FP8 pairs of them, in the copy that TensorRT builds. A constant is rounded here and
now: int8 levels and DequantizeLinear where they hold it exactly, so that its scale is not lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from onnx import TensorProto

from rewriter.frontend.maker import Maker
from rewriter.frontend.patches import replaced

_FAKE_QUANT = ("FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel")
_ROUND_TRIP = ("QuantizeAndDequantizeV2", "QuantizeAndDequantizeV3", "QuantizeAndDequantizeV4")


def fake_quant(notes: list[str], graph: Any, node: Any, *_: Any) -> None:
    """FakeQuant in float arithmetic, bit for bit as TensorFlow's CPU kernels.

    The range is nudged so that zero lies on the grid (all in float32):
    1. scale = (max - min) / (quant_max - quant_min); zero = quant_min - min / scale.
    2. zero point = quant_min, quant_max, or zero rounded half away from zero, whichever clamps.
    3. nudged range = (quant_min - zero point) * scale .. (quant_max - zero point) * scale.
    4. origin = floor(-nudged min * (1 / scale) + 0.5).
    5. y = floor((clip(x) - nudged min) * (1 / scale) - origin + 0.5) * scale; FakeQuantWithMinMaxVars alone
       divides by the scale instead, which tips some values between two quanta the other way.
    QuantizeLinear rounds half to even and is up to one quantum off.
    """
    make = Maker(graph, node)
    bits, narrow = node.get_attr_value("num_bits", 8), bool(node.get_attr_value("narrow_range", 0))
    low, high = _fake_quant_range(node)
    scale, inverse, lowest, highest = nudge(low, high, bits, narrow)
    origin = np.floor(-lowest * inverse + np.float32(0.5))
    divides = node.type == "FakeQuantWithMinMaxVars" and scale != 0
    constant = _constant_input(node)
    if constant is not None:
        above = np.maximum(np.minimum(constant, highest), lowest) - lowest
        steps = above / scale if divides else above * inverse
        levels = np.where(scale == 0, np.float32(0), np.floor((steps - origin) + np.float32(0.5)))
        axis = constant.ndim - 1 if scale.size > 1 else None
        _finish_constant(make, Levels(node.name, levels, scale, axis, f"{bits} bits"), notes)
        return
    # Opset 18's Min and Max broadcast, and clip per channel as Clip cannot.
    clipped = make("Max", make("Min", node.input[0], make.const(highest)), make.const(lowest))
    above = make("Sub", clipped, make.const(lowest))
    steps = make("Div", above, make.const(scale)) if divides else make("Mul", above, make.const(inverse))
    level = make("Floor", make("Add", make("Sub", steps, make.const(origin)), make.const(0.5)))
    make.finish("Mul", [level, make.const(scale)])


def _fake_quant_range(node: Any) -> tuple[Any, Any]:
    """(minimum, maximum) in float32: scalars or one entry a channel."""
    if node.type == "FakeQuantWithMinMaxArgs":
        return np.float32(node.get_attr_value("min", -6.0)), np.float32(node.get_attr_value("max", 6.0))
    found = [_constant_input(node, index) for index in (1, 2)]
    if found[0] is None or found[1] is None:
        raise ValueError(f"{node.type} {node.name} computes its range at run time")
    low, high = (np.asarray(value, np.float32) for value in found)
    return low, high


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


def quantize_and_dequantize(notes: list[str], graph: Any, node: Any, *_: Any) -> None:
    """QuantizeAndDequantizeV2, V3 and V4 in float arithmetic, bit for bit as TensorFlow's CPU kernels.

    With levels quant_min .. quant_max and the range given, or that of the input (per channel along `axis`):
    1. from min = quant_min / min if quant_min * min > 0, else the largest float; from max likewise.
    2. The side with the smaller one decides: scale = that side's level / bound, step = its bound / level; the other
       bound becomes its level * step.
    3. y = round(clip(x) * scale) * step. No clipping where the range was not given; HALF_UP is floor(. + 0.5).
    """
    make = Maker(graph, node)
    plan = _RoundTrip.of(graph, node)
    x = _constant_input(node)
    bounds = plan.given_bounds(node)
    if x is not None and bounds is None and not plan.given:
        bounds = x.min(plan.reduced, keepdims=True), x.max(plan.reduced, keepdims=True)
    if bounds is None:
        notes.append(
            f"{node.type} {node.name!r} takes its range from the data of each run: it is computed in float "
            "arithmetic and cannot become INT8 or FP8"
        )
        plan.emit_dynamic(make, node)
        return
    scale, step, lowest, highest = plan.grid(*bounds)
    if x is None:
        within = make("Max", make("Min", node.input[0], make.const(highest)), make.const(lowest))
        plan.emit_rounding(make, make("Mul", within, make.const(scale)), make.const(step))
        return
    clipped = np.maximum(np.minimum(x, highest), lowest) if plan.given else x
    with np.errstate(over="ignore"):
        levels = plan.rounded(clipped * scale)
    _finish_constant(make, Levels(node.name, levels, step.reshape(-1), plan.axis, f"{plan.bits} bits"), notes)


@dataclasses.dataclass(frozen=True)
class _RoundTrip:
    """The attributes of a QuantizeAndDequantize node.

    Attributes:
        low, high: its levels.
        bits: width of a level.
        half_up: rounding mode; False for half to even.
        given: the range is an input.
        axis: of the channels; None for one range.
        rank: of the input; None when unknown.
        dtype: numpy type of the arithmetic.
    """

    low: int
    high: int
    bits: int
    half_up: bool
    given: bool
    axis: int | None
    rank: int | None
    dtype: Any

    @classmethod
    def of(cls, graph: Any, node: Any) -> _RoundTrip:
        from tf2onnx import utils

        if node.type == "QuantizeAndDequantizeV3":
            width = _constant_input(node, 3)
            if width is None:
                raise ValueError(f"{node.type} {node.name} computes num_bits at run time")
            bits = int(width)
        else:
            bits = node.get_attr_value("num_bits", 8)
        mode = node.get_attr_value("round_mode", b"HALF_TO_EVEN")
        axis, rank = node.get_attr_value("axis", -1), graph.get_rank(node.input[0])
        if axis >= 0 and rank is None:
            raise ValueError(f"{node.type} {node.name} has an axis, and its input is of unknown rank")
        signed, narrow = node.get_attr_value("signed_input", 1), node.get_attr_value("narrow_range", 0)
        half = 1 << (bits - 1)
        low, high = (-half + int(narrow), half - 1) if signed else (0, 2 * half - 1)
        return cls(
            low,
            high,
            bits,
            (mode.decode() if isinstance(mode, bytes) else mode) == "HALF_UP",
            bool(node.get_attr_value("range_given", node.type == "QuantizeAndDequantizeV3")),
            axis if axis >= 0 else None,
            rank,
            utils.map_onnx_to_numpy_type(graph.get_dtype(node.input[0])),
        )

    @property
    def reduced(self) -> tuple[int, ...] | None:
        """Axes that share a range; None for all."""
        if self.axis is None or self.rank is None:
            return None
        return tuple(axis for axis in range(self.rank) if axis != self.axis)

    @property
    def spread(self) -> tuple[int, ...]:
        """The shape in which a range meets the input; () where there is only one."""
        return () if self.axis is None or self.rank is None else (-1, *[1] * (self.rank - self.axis - 1))

    def given_bounds(self, node: Any) -> tuple[Any, Any] | None:
        """The constant range, in a shape that broadcasts."""
        if not self.given:
            return None
        low, high = (_constant_input(node, index) for index in (1, 2))
        if low is None or high is None:
            return None
        shape = self.spread if np.size(low) > 1 else ()
        return np.reshape(low, shape), np.reshape(high, shape)

    def grid(self, low: Any, high: Any) -> tuple[Any, Any, Any, Any]:
        """(scale, step, lowest, highest): rules 1 and 2."""
        low, high = np.asarray(low, self.dtype), np.asarray(high, self.dtype)
        bottom, top, largest = self.dtype(self.low), self.dtype(self.high), np.finfo(self.dtype).max
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            from_low = np.where(bottom * low > 0, bottom / low, largest)
            from_high = np.where(top * high > 0, top / high, largest)
            by_low = from_low < from_high
            step = np.where(by_low, low / bottom, high / top).astype(self.dtype)
            highest = np.where(by_low, top * step, high).astype(self.dtype)
            lowest = np.where(by_low, low, bottom * step).astype(self.dtype)
        return np.where(by_low, from_low, from_high).astype(self.dtype), step, lowest, highest

    def rounded(self, value: Any) -> Any:
        """Whole numbers, by the rounding mode."""
        return np.floor(value + self.dtype(0.5)) if self.half_up else np.rint(value)

    def emit_rounding(self, make: Maker, scaled: str, step: str) -> None:
        """The end of the chain: rounds, and multiplies with the step."""
        level = make("Floor", make("Add", scaled, make.const(0.5))) if self.half_up else make("Round", scaled)
        make.finish("Mul", [level, step])

    def emit_dynamic(self, make: Maker, node: Any) -> None:
        """Rules 1 to 3 as nodes, with a range that is known at run time only."""
        x, boolean = node.input[0], TensorProto.BOOL
        if self.given:
            low, high = node.input[1], node.input[2]
            if self.spread:
                shape = make.tensor(np.array(self.spread, np.int64))
                low, high = make("Reshape", low, shape), make("Reshape", high, shape)
        else:
            axes = () if self.reduced is None else (make.tensor(np.array(self.reduced, np.int64)),)
            low, high = make("ReduceMin", x, *axes, keepdims=1), make("ReduceMax", x, *axes, keepdims=1)
        bottom, top, zero = make.const(self.low), make.const(self.high), make.const(0)
        largest = make.const(np.finfo(self.dtype).max)
        from_high = make("Where", make("Greater", high, zero, kind=boolean), make("Div", top, high), largest)
        step, scale, lowest, highest = make("Div", high, top), from_high, zero, high
        if self.low:
            from_low = make("Where", make("Less", low, zero, kind=boolean), make("Div", bottom, low), largest)
            by_low = make("Less", from_low, from_high, kind=boolean)
            scale = make("Where", by_low, from_low, from_high)
            step = make("Where", by_low, make("Div", low, bottom), step)
            if self.given:
                lowest = make("Where", by_low, low, make("Mul", bottom, step))
                highest = make("Where", by_low, make("Mul", top, step), high)
        clipped = make("Max", make("Min", x, highest), lowest) if self.given else x
        self.emit_rounding(make, make("Mul", clipped, scale), step)


@dataclasses.dataclass(frozen=True)
class Levels:
    """A constant on its grid: value = level * scale.

    Attributes:
        name: of the node that put it there.
        level: whole numbers, as floats.
        scale: one number, or one a channel.
        axis: of the channels; None for one scale.
        width: for people.
    """

    name: str
    level: np.ndarray
    scale: np.ndarray
    axis: int | None
    width: str

    @property
    def fits(self) -> bool:
        """True when int8 holds the levels and the scales are ones that TensorRT takes."""
        within = bool(np.all((self.level >= -128) & (self.level <= 127)))
        return within and bool(np.all(np.isfinite(self.scale) & (self.scale >= 0)))

    @property
    def value(self) -> np.ndarray:
        """The numbers themselves, in the dtype of the scale."""
        shape = () if self.axis is None or self.scale.size == 1 else (-1, *[1] * (self.level.ndim - self.axis - 1))
        return np.asarray(self.level * self.scale.reshape(shape), self.scale.dtype)


def _finish_constant(make: Maker, constant: Levels, notes: list[str]) -> None:
    """Replaces a quantised constant: int8 and DequantizeLinear where that is exact, else the numbers themselves.

    Vectors (biases) stay numbers: TensorRT adds them in float. What follows is an Identity, because tf2onnx looks for
    a QuantizeLinear before any DequantizeLinear that feeds a convolution.
    """
    if constant.level.ndim < 2 or make.dtype != TensorProto.FLOAT:
        make.finish("Identity", [make.const(constant.value)])
        return
    if not constant.fits:
        low, high = (f"{bound:.6g}" for bound in (constant.value.min(), constant.value.max()))
        notes.append(
            f"the constant behind {constant.name!r} ({constant.width}, values {low}..{high}) lies on a grid that int8 "
            "does not hold with zero point 0: it stays in float numbers, and INT8 engines quantise it anew"
        )
        make.finish("Identity", [make.const(constant.value)])
        return
    # All levels are 0 where the scale is, and TensorRT wants a positive one.
    scale = np.where(constant.scale == 0, np.float32(1), constant.scale).astype(np.float32)
    per_channel = scale.size > 1 and constant.axis is not None
    scale = scale if per_channel else scale.reshape(())
    inputs = [
        make.tensor(constant.level.astype(np.int8)),
        make.tensor(scale),
        make.tensor(np.zeros(scale.shape, np.int8)),
    ]
    attributes = {"axis": constant.axis} if per_channel else {}
    make.finish("Identity", [make("DequantizeLinear", *inputs, **attributes)])


def _constant_input(node: Any, index: int = 0) -> np.ndarray | None:
    """The value of an input that is constant, seen through Identity nodes."""
    source = node.inputs[index]
    while source is not None and source.type == "Identity":
        source = source.inputs[0]
    return source.get_tensor_value(as_list=False) if source is not None and source.is_const() else None


#: TensorFlow op -> handler; each takes the list of notes before tf2onnx's arguments.
HANDLERS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(_FAKE_QUANT, fake_quant),
    **dict.fromkeys(_ROUND_TRIP, quantize_and_dequantize),
}


@contextlib.contextmanager
def left_to_us() -> Iterator[None]:
    """Keeps tf2onnx's hands off quantisation for the time of the block (under the lock of `noise`).

    1. Its constant folding would compute FakeQuant of constants, and the scales of weights would be gone.
    2. Its rewriter of QuantizeAndDequantize makes uint8 pairs and gives up on constants that it cannot read.
    3. Its folding of Transpose into dequantised constants forgets that these may be outputs of the graph, which then
       come out transposed. `passes.steps.quantized_constants` does the same work later.
    4. Its transpose optimizer stops at Floor, Round and Div, so a Transpose would stay inside every chain.
    """
    from tf2onnx import tfonnx
    from tf2onnx.optimizer.const_dequantize_optimizer import ConstDequantizeOptimizer
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    fold, handlers = tfonnx.compute_const_folding_using_tf, TransposeOptimizer._initialize_handlers

    def fold_others(graph: Any, values: Any, outputs: Any) -> Any:
        kept = [o.name for op in graph.get_operations() if op.type in HANDLERS for o in op.outputs]
        return fold(graph, values, [*outputs, *kept])

    def more_handlers(self: Any) -> None:
        handlers(self)
        self._handler_map |= dict.fromkeys(("Floor", "Round"), self._simple_through_handler)
        self._handler_map["Div"] = lambda transpose, node: divide(self, transpose, node)

    def divide(self: Any, transpose: Any, node: Any) -> bool:
        divisor = node.inputs[1]
        if not divisor.is_const() or divisor.get_tensor_value(as_list=False).ndim:
            return False
        return bool(self._simple_through_handler(transpose, node))

    with (
        replaced(tfonnx, "compute_const_folding_using_tf", fold_others),
        replaced(tfonnx, "rewrite_quantize_and_dequantize", lambda graph, _ops: graph.get_nodes()),
        replaced(ConstDequantizeOptimizer, "_fold_node", lambda _self, _node, _graph: False),
        replaced(TransposeOptimizer, "_initialize_handlers", more_handlers),
    ):
        yield
