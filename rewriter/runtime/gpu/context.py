"""One execution context of an engine: what it was told is remembered, so that equal calls cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from rewriter.errors import ConverterStateError, EngineRunError, EngineShapeError
from rewriter.runtime.gpu.trt_log import TrtLog

if TYPE_CHECKING:
    from rewriter.runtime.gpu.engine import LoadedEngine, TensorInfo

#: Gives device memory of so many bytes and returns its address; whoever passes it owns the memory.
Allocate = Callable[[int], int]


class Context:
    """One execution context at one optimization profile. Made by `LoadedEngine.context`.

    Not thread-safe: the caller holds a lock from the first `set_...` of a call until `enqueue` returned, and has made
    the device the current one of its thread (`Cuda.current`) for `enqueue`. All device
    memory (tensors and activations) belongs to the caller and must live until the stream is past the enqueued work.

    Args:
        engine: the engine; it closes its contexts before itself.
        raw: TensorRT's context.
        profile: index of its profile.
        stream: handle of the one stream that it is enqueued on.
        log: the log of the module.
        make_allocator: makes an object of TensorRT's IOutputAllocator out of an `_Outlet`.
        keep: what TensorRT's context refers to and does not own.
    """

    def __init__(
        self,
        engine: LoadedEngine,
        raw: Any,
        profile: int,
        stream: int,
        log: TrtLog,
        make_allocator: Callable[[_Outlet], Any],
        keep: object = None,
    ) -> None:
        self.profile = profile
        self.engine = engine
        self._raw = raw
        self._keep = keep
        self._stream = stream
        self._log = log
        self._make_allocator = make_allocator
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._values: dict[str, np.ndarray] = {}
        self._outlets: dict[str, _Outlet] = {}
        self._allocators: dict[str, Any] = {}  # TensorRT keeps a bare pointer to each
        self._memory: tuple[int, int] | None = None
        self._needed: int | None = None
        self._inferred: dict[str, tuple[int, ...]] | None = None

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._raw is None

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Tells the shape of an input.

        Raises:
            EngineShapeError: it is outside the profile.
        """
        if self._shapes.get(name) == shape:  # the usual case, and the quick one
            return
        wanted = tuple(int(size) for size in shape)
        if self._shapes.get(name) == wanted:
            return
        context, mark = self._open(), self._log.count
        self._forget_shapes()
        if not context.set_input_shape(name, wanted):
            self._shapes.pop(name, None)
            limits = self.engine.describe_range(name, self.profile)
            raise self._log.error(mark, EngineShapeError, f"input {name!r} cannot have shape {list(wanted)}{limits}")
        self._shapes[name] = wanted

    def set_values(self, name: str, array: np.ndarray) -> None:
        """Gives an input whose elements TensorRT reads in CPU memory (`TensorInfo.on_host`); sets its shape as well.

        A copy of the array is kept until other values are given or the context is closed.

        Raises:
            EngineShapeError: its shape does not fit, or its elements do not fit the engine's type.
        """
        info = self._info(name)
        kept = self._values.get(name)
        if kept is not None and kept.shape == array.shape and np.array_equal(kept, array):
            return
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(info.dtype))
        copy = np.array(array, dtype=dtype, order="C")
        if not np.array_equal(copy, array):
            raise EngineShapeError(f"input {name!r}: values {array.tolist()} do not fit its type, {dtype}")
        self.set_shape(name, copy.shape)
        self._forget_shapes()
        self._address(name, copy.ctypes.data)
        self._values[name] = copy

    def set_address(self, name: str, pointer: int) -> None:
        """Tells where a tensor's elements lie: on the device, or in CPU memory when `TensorInfo.on_host`.

        An output that had an allocator has none any more.
        """
        info = self._info(name)
        if name in self._outlets:
            self._open().set_output_allocator(name, None)
            del self._outlets[name], self._allocators[name]
        if info.is_input and info.on_host:  # other values may lie at the same place
            self._forget_shapes()
            self._address(name, pointer)
            self._values.pop(name, None)
        elif self._addresses.get(name) != pointer:
            self._address(name, pointer)

    def set_allocator(self, name: str, allocate: Allocate) -> None:
        """For an output whose size is only known while it is computed: `allocate(nbytes)` is called by `enqueue`.

        The memory it returns is the caller's; what it raises is raised by `enqueue`.
        """
        outlet = self._outlets.get(name)
        if outlet is not None:
            outlet.allocate = allocate
            return
        outlet = _Outlet(allocate)
        allocator = self._make_allocator(outlet)
        mark = self._log.count
        if not self._open().set_output_allocator(name, allocator):
            raise self._log.error(mark, EngineRunError, f"output {name!r} cannot have an allocator")
        self._outlets[name], self._allocators[name] = outlet, allocator

    def allocated_shape(self, name: str) -> tuple[int, ...]:
        """The shape of an output with an allocator, after `enqueue`.

        Raises:
            EngineRunError: TensorRT told none.
        """
        outlet = self._outlets.get(name)
        if outlet is None or outlet.shape is None:
            raise EngineRunError(f"output {name!r}: TensorRT did not tell its shape")
        return outlet.shape

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Output -> shape for the inputs' shapes and values; -1 where the data decide.

        Raises:
            EngineShapeError: inputs are missing (they are named), or the shapes do not go together.
        """
        if self._inferred is None:
            context, mark = self._open(), self._log.count
            try:
                missing = list(context.infer_shapes())
            except RuntimeError as error:
                raise self._log.error(mark, EngineShapeError, "the inputs' shapes do not go together") from error
            if missing:
                raise EngineShapeError(f"shapes or values of inputs are missing: {', '.join(sorted(missing))}")
            outputs = [name for name, info in self.engine.tensors.items() if not info.is_input]
            self._inferred = {name: tuple(int(d) for d in context.get_tensor_shape(name)) for name in outputs}
        return dict(self._inferred)

    def memory_needed(self) -> int:
        """Bytes of activation memory at the inputs' shapes, all of which must be set; 256-byte aligned is enough."""
        if self._needed is None:
            context = self._open()
            if hasattr(context, "update_device_memory_size_for_shapes"):
                self._needed = int(context.update_device_memory_size_for_shapes())
                self._memory = None  # TensorRT divides the memory anew, so it must be told again
            else:
                self._needed = self.engine.activation_bytes
        return self._needed

    def set_memory(self, pointer: int, nbytes: int) -> None:
        """Lends activation memory (device, 256-byte aligned), at least `memory_needed()` bytes, until told otherwise.

        Contexts that run one after the other on one stream may share it.
        """
        if self._memory == (pointer, nbytes):
            return
        context = self._open()
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(pointer, nbytes)
        else:
            context.device_memory = pointer
        self._memory = (pointer, nbytes)

    def capturable(self) -> bool:
        """False when TensorRT knows that `enqueue` cannot be captured in a CUDA graph at these shapes."""
        context = self._open()
        return bool(context.is_stream_capturable(self._stream)) if hasattr(context, "is_stream_capturable") else True

    def enqueue(self) -> None:
        """Puts the computation on the stream and returns; with allocators TensorRT may wait for the stream itself.

        Raises:
            EngineRunError, DeviceMemoryError: TensorRT refused; the message has the reason.
        """
        context, mark = self._open(), self._log.count
        for outlet in self._outlets.values():
            outlet.start()
        done = context.execute_async_v3(self._stream)
        for outlet in self._outlets.values():
            if outlet.error is not None:
                raise outlet.error
        if not done:
            raise self._log.error(mark, EngineRunError, "the engine did not run")

    def close(self) -> None:
        """Frees TensorRT's context; the caller has waited for the stream. A second call does nothing."""
        if self._raw is not None:
            self._raw = self._keep = None
            self._allocators.clear()
            self._outlets.clear()
            self._values.clear()
            self.engine.forget(self)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Any:
        if self._raw is None:
            raise ConverterStateError("this engine context is closed: ask its engine for another one")
        return self._raw

    def _info(self, name: str) -> TensorInfo:
        info: TensorInfo | None = self.engine.tensors.get(name)
        if info is None:
            known = ", ".join(self.engine.tensors)
            raise EngineShapeError(f"the engine has no tensor {name!r}; it has {known}")
        return info

    def _address(self, name: str, pointer: int) -> None:
        mark = self._log.count
        self._addresses.pop(name, None)
        if not self._open().set_tensor_address(name, pointer):
            raise self._log.error(mark, EngineRunError, f"tensor {name!r} cannot lie at address {pointer:#x}")
        self._addresses[name] = pointer

    def _forget_shapes(self) -> None:
        self._needed = None
        self._inferred = None


class _Outlet:
    """What an output allocator remembers. No exception may travel through TensorRT's frames: it is kept here."""

    def __init__(self, allocate: Allocate) -> None:
        self.allocate = allocate
        self.shape: tuple[int, ...] | None = None
        self.error: BaseException | None = None

    def start(self) -> None:
        self.shape = None
        self.error = None

    def reallocate(self, nbytes: int) -> int:
        """The address of new memory; 0, which TensorRT takes for a failure, when there is none."""
        try:
            return self.allocate(max(nbytes, 1))
        except BaseException as error:  # noqa: BLE001 -- `enqueue` raises it again
            self.error = error
            return 0


def allocator_class(trt: Any) -> Callable[[_Outlet], Any]:
    """The subclass of the module's IOutputAllocator; made once per module, for its base class belongs to it."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self, outlet: _Outlet) -> None:
            trt.IOutputAllocator.__init__(self)  # pybind11 needs the explicit call
            self._outlet = outlet

        def reallocate_output_async(self, _name: str, _memory: int, size: int, _alignment: int, _stream: int) -> int:
            return self._outlet.reallocate(int(size))

        def reallocate_output(self, _name: str, _memory: int, size: int, _alignment: int) -> int:
            return self._outlet.reallocate(int(size))

        def notify_shape(self, _name: str, shape: Sequence[int]) -> None:
            self._outlet.shape = tuple(int(size) for size in shape)

    return Allocator
