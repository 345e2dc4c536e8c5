"""Constants in a lower type: what they hold, whether they fit, and the arrays that replace them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from passes.model import Model, is_stub, make_stub

#: Elements that are looked at or converted at a time: what bounds the memory beside the result.
CHUNK = 1 << 22
#: Smallest magnitude with full precision (normal), by lower type.
SMALLEST_NORMAL: Mapping[int, float] = {TensorProto.FLOAT16: 2.0**-14, TensorProto.BFLOAT16: 2.0**-126}
#: Largest finite magnitude, by lower type.
LARGEST: Mapping[int, float] = {TensorProto.FLOAT16: 65504.0, TensorProto.BFLOAT16: 255 * 2.0**120}
#: What masks are clamped to, 3/8 of the range: two of them and a score still fit, and a score below 8 vanishes in it.
MASK: Mapping[int, float] = {TensorProto.FLOAT16: 1.5 * 2.0**14, TensorProto.BFLOAT16: 1.5 * 2.0**126}
#: Halfway to the number that would follow: from here on rounding gives infinity.
OVERFLOW: Mapping[int, float] = {TensorProto.FLOAT16: 65520.0, TensorProto.BFLOAT16: 511 * 2.0**119}


@dataclasses.dataclass(frozen=True)
class Magnitudes:
    """What decides whether a constant can be lowered; infinities and NaNs, which every type has, are left out.

    Attributes:
        size: number of elements.
        largest: largest magnitude.
        smallest: smallest magnitude that is not zero; 0.0 where all are, and in constants of more than a `CHUNK`.
        positive: True when an element above zero is among them.
        between: largest magnitude below the overflow of the lower type.
    """

    size: int
    largest: float
    smallest: float
    positive: bool
    between: float


class Constants:
    """The float32 constants of one model, measured and converted when they are asked for.

    Args:
        model: their owner; the arrays of stubs are read where they lie.
        low: the lower element type.
    """

    def __init__(self, model: Model, low: int) -> None:
        self._model = model
        self._low = low
        inputs = {value.name for value in model.proto.graph.input}
        self._tensors = {
            t.name: t
            for t in model.proto.graph.initializer
            if t.data_type == TensorProto.FLOAT and t.name not in inputs
        }
        self._measured: dict[str, Magnitudes] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def array(self, name: str) -> np.ndarray:
        """The values as float32."""
        tensor = self._tensors[name]
        return self._model.weights[name] if is_stub(tensor) else numpy_helper.to_array(tensor)

    def magnitudes(self, name: str) -> Magnitudes:
        """What a constant holds."""
        if name not in self._measured:
            self._measured[name] = measure(self.array(name), OVERFLOW[self._low])
        return self._measured[name]

    def overflows(self, name: str) -> bool:
        """True when rounding turns a finite element into an infinity."""
        return self.magnitudes(name).largest >= OVERFLOW[self._low]

    def lowered(self, name: str, new_name: str, *, mask: bool = False) -> tuple[TensorProto, np.ndarray | None]:
        """The constant in the lower type, what is out of range clamped: an initializer, or a stub and its array.

        Args:
            name: of the constant.
            new_name: of the result.
            mask: clamp to `MASK`, so that sums with it do not overflow.
        """
        source = self._tensors[name]
        array = lower_array(self.array(name), self._low, (MASK if mask else LARGEST)[self._low])
        if not is_stub(source):
            return numpy_helper.from_array(array, new_name), None
        array.flags.writeable = False
        return make_stub(new_name, self._low, source.dims), array


def measure(array: np.ndarray, overflow: float) -> Magnitudes:
    """Looks at every element, chunk by chunk; large constants with nothing odd in them get two quick looks a chunk."""
    largest = smallest = between = 0.0
    positive = False
    flat = array.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        chunk = flat[start : start + CHUNK]
        peak = _peak(chunk)
        if flat.size > CHUNK and peak < overflow:
            largest, between = max(largest, peak), max(between, peak)
            positive = positive or bool(chunk.max() > 0)
            continue
        size = np.abs(chunk)
        size = size[np.isfinite(size) & (size > 0)]
        if not size.size:
            continue
        largest = max(largest, float(size.max()))
        low = float(size.min())
        smallest = min(smallest, low) if smallest else low
        between = max(between, float(size[size < overflow].max(initial=0)))
        positive = positive or bool((chunk > 0).any())
    return Magnitudes(int(flat.size), largest, smallest if flat.size <= CHUNK else 0.0, positive, between)


def lower_array(array: np.ndarray, low: int, bound: float | None = None) -> np.ndarray:
    """A float32 array in the lower type, rounded to nearest; finite values out of range become +-`bound`.

    Args:
        array: of float32.
        low: the lower element type.
        bound: default is the largest finite number of the lower type.
    """
    bound = LARGEST[low] if bound is None else bound
    result = np.empty(array.shape, _numpy_type(low))
    source, target = array.reshape(-1), result.reshape(-1)
    for start in range(0, source.size, CHUNK):
        chunk = np.asarray(source[start : start + CHUNK])
        if not _peak(chunk) < OVERFLOW[low]:
            beyond = np.isfinite(chunk) & (np.abs(chunk) >= OVERFLOW[low])
            chunk = np.where(beyond, np.copysign(np.float32(bound), chunk), chunk)
        target[start : start + CHUNK] = chunk
    return result


def _peak(chunk: np.ndarray) -> float:
    """Largest magnitude; NaN when there is one among them."""
    return float(max(chunk.max(), -chunk.min())) if chunk.size else 0.0


def rounding_error(array: np.ndarray, low: int) -> float:
    """Largest relative change of an element by lowering: 1.0 for one that becomes zero, inf for one that overflows."""
    values = np.asarray(array, np.float64).reshape(-1)
    values = values[values != 0]
    if not values.size:
        return 0.0
    with np.errstate(over="ignore"):
        lowered = np.asarray(array).reshape(-1).astype(_numpy_type(low)).astype(np.float64)
    lowered = lowered[np.asarray(array).reshape(-1) != 0]
    return float((np.abs(lowered - values) / np.abs(values)).max())


@functools.lru_cache(maxsize=8)
def _numpy_type(low: int) -> Any:
    return np.dtype(helper.tensor_dtype_to_np_dtype(low))
