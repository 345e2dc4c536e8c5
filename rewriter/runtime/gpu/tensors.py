"""Tensors of the device that come from, or go to, other libraries: DLPack and ``__cuda_array_interface__``."""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.errors import InputError
from rewriter.runtime.gpu.cudart import LEGACY_STREAM

if TYPE_CHECKING:
    from rewriter.runtime.gpu.cuda import Cuda
    from rewriter.runtime.gpu.handles import DeviceBuffer, Event

UNKNOWN_STREAM = -1
"""Stands for a consumer's stream that it does not name."""

_DLPACK_VERSION = (1, 1)
_CUDA, _CUDA_MANAGED = 2, 13


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("index", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """``DLTensor``. An old capsule's ``DLManagedTensor`` starts with it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """``DLManagedTensorVersioned``, of DLPack 1.0 and later."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_NAME, _NAME_VERSIONED = b"dltensor", b"dltensor_versioned"
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


@functools.lru_cache(maxsize=1)
def _codes() -> dict[np.dtype[Any], tuple[int, int]]:
    """Numpy's dtypes and those of ml_dtypes -> DLPack's type code and bits."""
    import ml_dtypes

    kinds = {
        0: (np.int8, np.int16, np.int32, np.int64),
        1: (np.uint8, np.uint16, np.uint32, np.uint64),
        2: (np.float16, np.float32, np.float64),
        4: (ml_dtypes.bfloat16,),
        5: (np.complex64, np.complex128),
        6: (np.bool_,),
        10: (ml_dtypes.float8_e4m3fn,),
        11: (ml_dtypes.float8_e4m3fnuz,),
        12: (ml_dtypes.float8_e5m2,),
        13: (ml_dtypes.float8_e5m2fnuz,),
    }
    return {np.dtype(t): (code, 8 * np.dtype(t).itemsize) for code, types in kinds.items() for t in types}


@functools.lru_cache(maxsize=1)
def _dtypes() -> dict[tuple[int, int], np.dtype[Any]]:
    return {code: dtype for dtype, code in _codes().items()}


class DeviceTensor:
    """An output that stays on the device, [as its shape says], dense and in C order.

    It owns its memory: valid whatever the executor does later, also after it was closed, until the last of this object,
    its exports and the tensors that others made of them is gone. Reading it is ordered after the work that writes it,
    on whatever stream the reader names.

    A consumer on the default stream, or on the converted function's own, costs no waiting. When one on another stream
    drops the tensor, the host waits for the device: give ``load()`` that stream to avoid it.

    Args:
        cuda: Where it lives.
        buffer: Its memory. It must not be freed by hand.
        dtype: numpy dtype, also those of ml_dtypes.
        shape: Its shape.
        event: Happens when it is written. None: when all is done that is enqueued now.
    """

    __slots__ = ("__weakref__", "_buffer", "_cuda", "_event", "dtype", "shape")

    def __init__(
        self, cuda: Cuda, buffer: DeviceBuffer, dtype: Any, shape: tuple[int, ...], event: Event | None = None
    ):
        self._cuda = cuda
        self._buffer = buffer
        self._event = event or cuda.record()
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.shape = shape

    @property
    def pointer(self) -> int:
        """Address on the device."""
        return self._buffer.pointer

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __repr__(self) -> str:
        return (
            f"DeviceTensor(shape={self.shape}, dtype={self.dtype}, device={self._cuda.device_type}:{self._cuda.device})"
        )

    def numpy(self) -> np.ndarray:
        """A copy in host memory; waits until the tensor is written."""
        self._event.synchronize()
        array: np.ndarray = np.empty(self.shape, self.dtype)
        self._cuda.read(array.ctypes.data, self.pointer, array.nbytes)
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a tensor of the device cannot become an array without a copy")
        return self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._cuda.dlpack_device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule for one consumer.

        Args:
            stream: The consumer's stream, which is made to wait for the tensor: None or 1 the default stream, 2 that of
                the thread, -1 no waiting.
            max_version: The newest DLPack that the consumer knows.
            dl_device: Where it wants the tensor: None, or where it is.
            copy: Whether it wants a copy: None or False.

        Raises:
            BufferError: A copy or another device is asked for, or DLPack has no name for the type.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self._cuda.dlpack_device):
            raise BufferError("the tensor is exported where it is, without a copy: .numpy() copies it to the host")
        if self.dtype not in _codes():
            raise BufferError(f"DLPack has no name for {self.dtype}: .numpy() copies the tensor to the host")
        if self._cuda.device_type == "cuda":
            self._order(LEGACY_STREAM if stream is None else stream)
        return self._capsule(max_version is not None and max_version[0] >= 1)

    def _capsule(self, versioned: bool) -> Any:
        """Numpy makes the capsule, of an array that is never read, and its type and place are changed.

        So what frees it is numpy's C code, which minds the GIL, a pending exception and the end of the process; a
        callback in Python would lose the exception that is under way when a consumer drops its tensor.
        """
        array = np.asarray(_Memory(self))
        try:
            capsule = array.__dlpack__(max_version=_DLPACK_VERSION) if versioned else array.__dlpack__()
        except TypeError:  # numpy before 2.1 knows the old capsule only
            capsule = array.__dlpack__()
        tensor = _tensor_of(capsule)
        tensor.dtype.code, tensor.dtype.bits = _codes()[self.dtype]
        tensor.device.type, tensor.device.index = self._cuda.dlpack_device
        return capsule

    def _order(self, stream: int) -> None:
        self._buffer.read_on(stream)
        if stream not in (UNKNOWN_STREAM, self._cuda.stream):
            self._event.hold_back(stream)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3. The default stream is made to wait for the tensor and is the one that is named.

        Naming our own would let a consumer record events on it in the middle of a capture.
        """
        if self.dtype.isbuiltin != 1:
            raise AttributeError(f"__cuda_array_interface__ has no name for {self.dtype}: use DLPack")
        self._order(LEGACY_STREAM)
        self._buffer.read_on(UNKNOWN_STREAM)
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer if self.nbytes else 0, False),
            "version": 3,
            "strides": None,
            "stream": LEGACY_STREAM,
        }


class _Memory:
    """What an exported tensor's array holds on to: the buffer, not the tensor."""

    __slots__ = ("__array_interface__", "_buffer")

    def __init__(self, tensor: DeviceTensor):
        self._buffer = tensor._buffer
        self.__array_interface__ = {
            "shape": tensor.shape,
            "typestr": tensor.dtype.str if tensor.dtype.isbuiltin == 1 else f"<u{tensor.dtype.itemsize}",
            "data": (tensor.pointer, False),
            "version": 3,
        }


@dataclass(frozen=True)
class DeviceView:
    """A tensor on the device that somebody passed in.

    Attributes:
        pointer: Address of its first element.
        shape: Its shape.
        dtype: numpy dtype, also those of ml_dtypes.
        keep: Must be kept alive as long as the memory is read, by enqueued work too (``Cuda.keep``).
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    keep: object

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def device_view(value: Any, cuda: Cuda) -> DeviceView | None:
    """Reads where a tensor lies on the device; the stream of ``cuda`` waits for what its library enqueued to write it.

    To be called under the lock under which work is enqueued, and not while a graph is captured.

    Args:
        value: Anything. Tensors of the device are known by ``__dlpack__`` or ``__cuda_array_interface__``.
        cuda: Where it is wanted.

    Returns:
        The view, or None when the value is no tensor of a device.

    Raises:
        InputError: It is on another device, not dense in C order, of an unknown type, or its library refuses.
    """
    if isinstance(value, DeviceTensor) and value._cuda is cuda:
        return DeviceView(value.pointer, value.shape, value.dtype, value)
    if isinstance(value, (np.ndarray, np.generic)):
        return None
    if (found := _from_torch(value, cuda)) is not None:
        return found
    if hasattr(value, "__dlpack_device__"):
        kind, index = value.__dlpack_device__()
        home, here = cuda.dlpack_device
        if int(kind) not in ((home, _CUDA_MANAGED) if home == _CUDA else (home,)):
            return None
        if index != here:
            raise InputError(f"the tensor is on device {index}, but the model runs on device {here}: copy it there")
        return _from_dlpack(value, cuda)
    interface = getattr(value, "__cuda_array_interface__", None)
    return None if interface is None else _from_interface(interface, value, cuda)


def _from_torch(value: Any, cuda: Cuda) -> DeviceView | None:
    """A plain PyTorch tensor, asked directly: its DLPack export takes several times as long. None for anything else."""
    torch = sys.modules.get("torch")
    if torch is None or type(value) is not getattr(torch, "Tensor", None) or not value.is_cuda:
        return None
    dtype = _torch_types().get(str(value.dtype))
    if cuda.device_type != "cuda" or dtype is None or value.device.index != cuda.device or not value.is_contiguous():
        return None  # DLPack knows more types, and has words for what is wrong
    if value.requires_grad or value.is_conj() or value.is_neg():
        return None
    cuda.follow(torch.cuda.current_stream(value.device).cuda_stream or LEGACY_STREAM)
    return DeviceView(value.data_ptr(), tuple(value.shape), dtype, value)


@functools.lru_cache(maxsize=1)
def _torch_types() -> dict[str, np.dtype[Any]]:
    import ml_dtypes

    names = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
    return {**{f"torch.{name}": np.dtype(name) for name in names}, "torch.bfloat16": np.dtype(ml_dtypes.bfloat16)}


def _from_dlpack(value: Any, cuda: Cuda) -> DeviceView:
    stream = cuda.stream if cuda.device_type == "cuda" else None
    try:
        try:
            capsule = value.__dlpack__(stream=stream, max_version=_DLPACK_VERSION)
        except TypeError:  # a library from before DLPack 1.0
            capsule = value.__dlpack__(stream=stream)
    except (BufferError, RuntimeError, TypeError, ValueError) as e:
        raise InputError(f"the tensor of type {type(value).__name__} cannot be read by DLPack: {e}") from e
    tensor = _tensor_of(capsule)
    shape = tuple(tensor.shape[: tensor.ndim]) if tensor.ndim else ()
    dtype = _dtypes().get((tensor.dtype.code, tensor.dtype.bits))
    if dtype is None or tensor.dtype.lanes != 1:
        name = f"code {tensor.dtype.code}, {tensor.dtype.bits} bits, {tensor.dtype.lanes} lanes"
        raise InputError(f"the tensor has a DLPack type that is not known here ({name}): convert it first")
    if tensor.strides and tensor.ndim:
        _check_dense(shape, tuple(tensor.strides[: tensor.ndim]))
    # The capsule is not marked as used, so dropping it is what gives the tensor back.
    return DeviceView((tensor.data or 0) + tensor.byte_offset, shape, dtype, (capsule, value))


def _tensor_of(capsule: Any) -> _Tensor:
    if _is_valid(capsule, _NAME_VERSIONED):
        managed = _Versioned.from_address(_get_pointer(capsule, _NAME_VERSIONED))
        if managed.major != _DLPACK_VERSION[0]:
            raise InputError(
                f"the tensor comes with DLPack {managed.major}, of which only {_DLPACK_VERSION[0]} is known"
            )
        tensor: _Tensor = managed.tensor
        return tensor
    if not _is_valid(capsule, _NAME):
        raise InputError("the tensor gives no DLPack capsule that is not used yet")
    return _Tensor.from_address(_get_pointer(capsule, _NAME))


def _from_interface(interface: dict[str, Any], value: Any, cuda: Cuda) -> DeviceView:
    if interface.get("mask") is not None:
        raise InputError("masked device arrays are not supported: fill the masked elements first")
    dtype = np.dtype(interface["typestr"])
    if dtype not in _codes():
        raise InputError(f"the device array has the type {interface['typestr']!r}, which is not known here: use DLPack")
    shape, pointer = tuple(interface["shape"]), int(interface["data"][0] or 0)
    strides = interface.get("strides")
    if strides is not None:
        _check_dense(shape, tuple(step // dtype.itemsize for step in strides))
    if pointer:
        owner = cuda.device_of(pointer)
        if owner != cuda.device:
            raise InputError(
                f"the array is on device {owner}, but the model runs on device {cuda.device}: copy it there"
            )
    if interface.get("stream") is not None:
        cuda.follow(int(interface["stream"]))
    return DeviceView(pointer, shape, dtype, value)


def _check_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    expected = 1
    for size, step in zip(reversed(shape), reversed(strides), strict=True):
        if size == 0:
            return
        if size != 1 and step != expected:
            break
        expected *= size
    else:
        return
    if math.prod(shape):
        raise InputError(f"the device tensor of shape {list(shape)} is not dense in C order: make it contiguous first")
