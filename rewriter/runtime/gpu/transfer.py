"""Inputs on their way to the device and outputs on their way back; nothing here waits before the end of a call."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.errors import InputError
from rewriter.runtime.gpu.engine_step import to_device
from rewriter.runtime.gpu.tensors import DeviceTensor, device_view
from rewriter.runtime.gpu.values import DeviceValue, HostValue, Value, owned_buffer
from rewriter.runtime.inputs import check_dtype, check_shape
from rewriter.runtime.native import numpy_dtype

#: onnx.TensorProto types without a place on the device: what is no tensor, and strings.
_NOT_ON_DEVICE = (TensorProto.UNDEFINED, TensorProto.STRING)

#: Which outputs stay on the device: all, none, or those of these names.
OnDevice = bool | Collection[str]

if TYPE_CHECKING:
    from rewriter.runtime.gpu.cuda import Cuda
    from rewriter.runtime.gpu.handles import Event
    from rewriter.runtime.gpu.pinned import HostBuffer
    from rewriter.runtime.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Staged:
    """One input, ready to be enqueued.

    Attributes:
        shape: its dims.
        dtype: onnx.TensorProto data type number.
        array: it, when the caller gave it in CPU memory; None for a device tensor.
        memory: page-locked memory that holds it; None for strings and device tensors.
        pointer: address of a device tensor; 0 for others.
        owner: the caller's device tensor.
    """

    shape: tuple[int, ...]
    dtype: int
    array: np.ndarray | None = None
    memory: HostBuffer | None = None
    pointer: int = 0
    owner: object = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor on the device."""
        return DeviceValue(0, self.shape, self.dtype).nbytes

    def put(self, pointer: int, cuda: Cuda) -> None:
        """Enqueues the copy to device memory."""
        if self.memory is not None:
            cuda.to_device(pointer, self.memory.pointer, self.nbytes)
        else:
            cuda.on_device(pointer, self.pointer, self.nbytes)


def stage(specs: Sequence[TensorSpec], feeds: Mapping[str, Any], cuda: Cuda) -> dict[str, Staged]:
    """Brings host inputs into page-locked memory; device tensors are left for `view`, which needs the lock.

    Raises:
        DeviceMemoryError: the system locks no more memory.
    """
    staged: dict[str, Staged] = {}
    for spec in specs:
        value = feeds[spec.tensor]
        if not isinstance(value, np.ndarray):
            continue
        shape = tuple(int(size) for size in value.shape)
        if value.dtype.kind in "OSU":
            staged[spec.tensor] = Staged(shape, spec.dtype, value)
            continue
        memory = cuda.pinned(value.nbytes)
        copy = memory.array(value.dtype, shape)
        np.copyto(copy, value)
        staged[spec.tensor] = Staged(shape, spec.dtype, copy, memory)
    return staged


def view(spec: TensorSpec, value: Any, cuda: Cuda) -> Staged:
    """A device tensor of the caller's, after all that its own stream still does with it.

    Raises:
        InputError: it is none, lies on another device, is not contiguous, or does not fit the signature.
    """
    found = device_view(value, cuda)
    if found is None:
        raise InputError(f"input {spec.name!r} is a {type(value).__name__}, which is no array and no device tensor")
    check_dtype(found.dtype, spec)
    check_shape(found.shape, spec)
    return Staged(tuple(found.shape), spec.dtype, pointer=found.pointer, owner=found)


def device_tensor(value: Value, cuda: Cuda, *, fresh: bool) -> DeviceTensor:
    """An output as the caller's own device tensor.

    Args:
        value: the output.
        cuda: where it lies.
        fresh: True when nobody else uses its memory: then it is handed over, else it is copied.
    """
    if isinstance(value, HostValue):
        buffer = to_device(np.array(value.array, order="C"), cuda)
    elif fresh and (made := owned_buffer(value)) is not None:
        buffer = made
    else:
        buffer = cuda.allocate(value.nbytes)
        cuda.on_device(buffer.pointer, value.pointer, value.nbytes)
    return DeviceTensor(cuda, buffer, numpy_dtype(value.dtype), value.shape)


@dataclasses.dataclass
class Pending:
    """The outputs of a call that is enqueued but not over.

    Attributes:
        names: all outputs, in order.
        done: happens when they are there; None when nothing is to be waited for.
        arrays: name -> output that lies in CPU memory already, or stays on the device.
        fetched: name -> page-locked memory that the stream fills.
        held: page-locked memory of the inputs, which the stream reads until then.
    """

    names: tuple[str, ...] = ()
    done: Event | None = None
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)
    fetched: dict[str, tuple[HostBuffer, np.ndarray]] = dataclasses.field(default_factory=dict)
    held: list[HostBuffer] = dataclasses.field(default_factory=list)

    def fetch(self, name: str, value: DeviceValue, cuda: Cuda) -> None:
        """Enqueues the copy of an output to the host."""
        memory = cuda.pinned(value.nbytes)
        cuda.to_host(memory.pointer, value.pointer, value.nbytes)
        self.fetched[name] = memory, memory.array(numpy_dtype(value.dtype), value.shape)

    def result(self) -> dict[str, Any]:
        """Waits for the outputs; name -> array of the caller's own."""
        try:
            if self.done is not None:
                self.done.synchronize()
            fetched = {name: array.copy() for name, (_, array) in self.fetched.items()}
            return {name: fetched[name] if name in fetched else self.arrays[name] for name in self.names}
        finally:
            self.release()

    def release(self) -> None:
        """Gives the page-locked memory back; the stream must be past it."""
        for memory, _ in self.fetched.values():
            memory.release()
        for memory in self.held:
            memory.release()
        self.fetched, self.held = {}, []


@contextlib.contextmanager
def discovery_inputs(staged: Mapping[str, Staged], on_host: Collection[str], cuda: Cuda) -> Iterator[dict[str, Value]]:
    """The inputs as values of a discovery; memory that was made for them is given back afterwards.

    Args:
        staged: value name -> input.
        on_host: values that some engine needs in CPU memory.
        cuda: where they go.
    """
    values: dict[str, Value] = {}
    buffers = []
    try:
        for name, item in staged.items():
            if item.array is not None and (item.memory is None or name in on_host):
                values[name] = HostValue(item.array, item.dtype)
            elif item.memory is None:
                values[name] = DeviceValue(item.pointer, item.shape, item.dtype, _Borrowed(item.owner))
            else:
                buffers.append(cuda.allocate(item.nbytes))
                item.put(buffers[-1].pointer, cuda)
                values[name] = DeviceValue(buffers[-1].pointer, item.shape, item.dtype)
        yield values
    finally:
        for buffer in buffers:
            buffer.free()


def stays(name: str, on_device: OnDevice) -> bool:
    """Whether an output stays on the device."""
    return on_device if isinstance(on_device, bool) else name in on_device


def deliver(
    schedule: Schedule,
    made: Mapping[str, Value],
    staged: Mapping[str, Staged],
    pending: Pending,
    cuda: Cuda,
    *,
    on_device: OnDevice,
    fresh: bool,
) -> None:
    """Enqueues the way of the outputs to the caller.

    Args:
        schedule: names them.
        made: value name -> output, of those that a step made.
        staged: the inputs, for outputs that are inputs.
        pending: takes them.
        cuda: where they lie.
        on_device: which of them stay there; strings and what is no tensor never do.
        fresh: whether the memory of `made` may be handed over.
    """
    for name in schedule.outputs:
        value = made[name] if name in made else _passed_through(schedule, name, staged)
        stay = stays(name, on_device)
        if isinstance(value, HostValue) and (value.dtype in _NOT_ON_DEVICE or not stay):
            pending.arrays[name] = value.array.copy()
        elif stay:
            pending.arrays[name] = device_tensor(value, cuda, fresh=fresh and name in made)
        elif isinstance(value, DeviceValue):
            pending.fetch(name, value, cuda)


def _passed_through(schedule: Schedule, name: str, staged: Mapping[str, Staged]) -> Value:
    """An output that no step makes: an input, or a constant."""
    if name in schedule.direct:
        return HostValue(np.asarray(schedule.direct[name]), schedule.specs[name].dtype)
    item = staged[name]
    if item.array is not None:
        return HostValue(item.array, item.dtype)
    return DeviceValue(item.pointer, item.shape, item.dtype, _Borrowed(item.owner))


class _Borrowed:
    """Holds a tensor of the caller's, and cannot free it."""

    def __init__(self, owner: object) -> None:
        self.owner = owner
