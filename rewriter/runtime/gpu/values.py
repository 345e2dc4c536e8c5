"""Tensors on their way from one step to the next."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from rewriter.runtime.native import numpy_dtype

if TYPE_CHECKING:
    from rewriter.runtime.gpu.handles import DeviceBuffer


@dataclasses.dataclass(frozen=True)
class DeviceValue:
    """A dense tensor in device memory.

    Attributes:
        pointer: its address.
        shape: its dims.
        dtype: onnx.TensorProto data type number.
        owner: what keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: int
    owner: object = None

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes."""
        return nbytes_of(self.shape, self.dtype)


@dataclasses.dataclass(frozen=True)
class HostValue:
    """A value in CPU memory: strings, what is no tensor, or a tensor whose elements TensorRT wants to read itself.

    Attributes:
        array: the tensor; nobody writes to it. A list for a sequence, None for an optional without a value.
        dtype: onnx.TensorProto data type number; 0 for what is no tensor.
    """

    array: Any
    dtype: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dims; () for what is no tensor."""
        return tuple(int(size) for size in getattr(self.array, "shape", ()))


Value = DeviceValue | HostValue


def owned_buffer(value: Value) -> DeviceBuffer | None:
    """The buffer that holds a value; None when ONNX Runtime or the caller owns its memory."""
    from rewriter.runtime.gpu.handles import DeviceBuffer

    owner = value.owner if isinstance(value, DeviceValue) else None
    return owner if isinstance(owner, DeviceBuffer) else None


def nbytes_of(shape: tuple[int, ...], dtype: int) -> int:
    """Bytes of a dense tensor; `dtype` is an onnx.TensorProto number."""
    return math.prod(shape) * numpy_dtype(dtype).itemsize
