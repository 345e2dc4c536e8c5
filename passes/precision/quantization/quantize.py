"""Arrays to 8-bit and 4-bit numbers and their scales: numpy alone, no graphs."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from passes.precision.ranges import LARGEST

#: What the formats are called in ONNX.
ELEMENTS = {"INT8": TensorProto.INT8, "FP8": TensorProto.FLOAT8E4M3FN}
#: Largest magnitude of symmetric INT4.
LARGEST_INT4 = 7.0
#: Numbers that are worked on at once: what a conversion needs beside its result stays small.
_CHUNK = 1 << 22


def smallest_scale(dtype: np.dtype) -> float:
    """The smallest normal number of a float type: GPUs take what is below it for zero, and a scale is positive."""
    return {"float16": 2.0**-14}.get(dtype.name, 2.0**-126)


def scale_array(scale: float, data_type: int) -> np.ndarray:
    """A scale as a scalar of an ONNX float type, no less than `smallest_scale`.

    Raises:
        ValueError: it is not finite or not positive.
    """
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
    if not np.isfinite(scale) or scale <= 0:
        raise ValueError(f"its scale would be {scale}; a scale is finite and positive")
    with np.errstate(over="ignore"):  # looked for in the next line
        array = np.asarray(max(scale, smallest_scale(dtype)), np.float64).astype(dtype)
    if not np.isfinite(array.astype(np.float64)):
        raise ValueError(f"its scale {scale} is beyond {dtype.name}")
    return array


def weight_scales(array: np.ndarray, axis: int | None, kind: str) -> np.ndarray:
    """Scales of a weight in its own float type: one for each entry of `axis` (1-D), or a scalar without axis.

    A channel of zeros gets 1 / largest, as an all-zero value does (`TensorRange.scale`).

    Raises:
        ValueError: the weight has infinite or NaN entries.
    """
    others = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
    # The maximum of the magnitudes without making an array of them; NaN comes through both.
    high = np.maximum(np.max(array, others, initial=0), -np.min(array, others, initial=0)).astype(np.float64)
    return _finished(high, LARGEST[kind], array.dtype)


def _finished(high: np.ndarray, largest: float, dtype: np.dtype) -> np.ndarray:
    if not np.isfinite(high).all():
        raise ValueError("it has entries that are infinite or no numbers")
    scales = np.where(high == 0, 1.0, high) / largest
    return np.asarray(np.maximum(scales, smallest_scale(dtype))).astype(dtype)


def quantize(array: np.ndarray, scales: np.ndarray, axis: int | None, kind: str) -> np.ndarray:
    """The integers (int8, -127 .. 127, halves to even) or FP8 numbers that stand for a weight."""
    result = np.empty(array.shape, helper.tensor_dtype_to_np_dtype(ELEMENTS[kind]))
    spread = [1] * array.ndim
    if axis is not None:
        spread[axis] = -1
    steps = scales.astype(np.float32).reshape(spread)
    rows = max(1, _CHUNK // max(1, array[:1].size)) if array.ndim else 1
    for start in range(0, array.shape[0] if array.ndim else 0, rows):
        part = slice(start, start + rows)
        quotient = array[part].astype(np.float32) / (steps[part] if axis == 0 else steps)
        if kind == "INT8":
            np.rint(quotient, out=quotient)
        result[part] = np.clip(quotient, -LARGEST[kind], LARGEST[kind], out=quotient).astype(result.dtype)
    return result


def int4_scales(array: np.ndarray, block: int) -> np.ndarray:
    """Scales [K / block, N] of a weight [K, N], in its own float type; zeros as in `weight_scales`.

    Raises:
        ValueError: the weight has infinite or NaN entries.
    """
    rows, columns = array.shape
    blocks = array.reshape(rows // block, block, columns)
    high = np.maximum(blocks.max(1), -blocks.min(1)).astype(np.float64)
    return _finished(high, LARGEST_INT4, array.dtype)


def quantize_int4(array: np.ndarray, scales: np.ndarray, block: int) -> np.ndarray:
    """The integers -7 .. 7 that stand for a weight [K, N], in numpy's int4 (one a byte)."""
    result = np.empty(array.shape, helper.tensor_dtype_to_np_dtype(TensorProto.INT4))
    for number, steps in enumerate(scales.astype(np.float32)):
        part = slice(number * block, (number + 1) * block)
        quotient = np.rint(array[part].astype(np.float32) / steps)
        result[part] = np.clip(quotient, -LARGEST_INT4, LARGEST_INT4).astype(np.int8).astype(result.dtype)
    return result
