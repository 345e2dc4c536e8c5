"""One engine node at work: its context is given shapes, addresses and memory, and is enqueued."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from rewriter.errors import EngineRunError
from rewriter.runtime.gpu.island import to_host
from rewriter.runtime.gpu.values import DeviceValue, HostValue, Value, nbytes_of
from rewriter.runtime.native import numpy_dtype

if TYPE_CHECKING:
    from rewriter.runtime.gpu.context import Context
    from rewriter.runtime.gpu.cuda import Cuda
    from rewriter.runtime.gpu.engine import LoadedEngine
    from rewriter.runtime.gpu.handles import DeviceBuffer
    from rewriter.runtime.gpu.memory import SharedMemory
    from rewriter.runtime.schedule import EngineStep


def run_engine(
    step: EngineStep,
    engine: LoadedEngine,
    context: Context,
    values: Mapping[str, Value],
    cuda: Cuda,
    scratch: SharedMemory,
) -> dict[str, Value]:
    """Enqueues an engine on inputs whose shapes were not met before; its outputs are allocated.

    Args:
        step: the engine node.
        engine: what `context` belongs to.
        context: one for the profile that the inputs fit.
        values: value name -> tensor, for every input.
        cuda: where it runs.
        scratch: memory for activations.

    Returns:
        Value name -> output; device memory is owned by the values.

    Raises:
        EngineError: the engine does not take the inputs or cannot be enqueued.
        DeviceMemoryError: no memory for its outputs or activations.
    """
    inputs: list[DeviceBuffer] = []
    buffers: dict[str, DeviceBuffer] = {}
    try:
        for item in step.inputs:
            _give(engine, context, item.tensor, values[item.value], cuda, inputs)
        outputs = _enqueue(step, engine, context, cuda, scratch, buffers)
    except BaseException:
        for buffer in buffers.values():
            buffer.free()
        raise
    finally:
        for buffer in inputs:
            buffer.free()
    return outputs


def _enqueue(
    step: EngineStep,
    engine: LoadedEngine,
    context: Context,
    cuda: Cuda,
    scratch: SharedMemory,
    buffers: dict[str, DeviceBuffer],
) -> dict[str, Value]:
    """Allocates the outputs into `buffers` (by tensor), enqueues, and says what came out."""
    shapes = context.output_shapes()
    arrays: dict[str, np.ndarray] = {}
    for item in step.outputs:
        info, shape = engine.tensors[item.tensor], shapes[item.tensor]
        if -1 in shape:
            context.set_allocator(item.tensor, _allocator(cuda, buffers, item.tensor))
        elif info.on_host:
            arrays[item.tensor] = np.empty(shape, numpy_dtype(info.dtype))
            context.set_address(item.tensor, arrays[item.tensor].ctypes.data)
        else:
            buffers[item.tensor] = cuda.allocate(nbytes_of(shape, info.dtype))
            context.set_address(item.tensor, buffers[item.tensor].pointer)
    scratch.ensure(context.memory_needed())
    context.set_memory(scratch.pointer, scratch.nbytes)
    context.enqueue()
    if arrays:
        cuda.synchronize()
    outputs: dict[str, Value] = {}
    for item in step.outputs:
        dtype, shape = engine.tensors[item.tensor].dtype, shapes[item.tensor]
        if item.tensor in arrays:
            outputs[item.value] = HostValue(arrays[item.tensor], dtype)
            continue
        if -1 in shape:
            shape = context.allocated_shape(item.tensor)
        if item.tensor not in buffers:
            raise EngineRunError(f"output {item.tensor!r}: TensorRT asked for no memory for it")
        outputs[item.value] = DeviceValue(buffers[item.tensor].pointer, shape, dtype, buffers[item.tensor])
    return outputs


def bind_engine(
    step: EngineStep,
    context: Context,
    inputs: Mapping[str, Value],
    outputs: Mapping[str, DeviceValue],
    scratch: SharedMemory,
) -> Callable[[], None]:
    """Binds an engine to fixed memory; each call of the result enqueues it and waits for nothing.

    The context may be used by others in between, with other shapes: all is told again, which costs nothing where it
    is what the context was told last.

    Args:
        step: the engine node.
        context: one for the profile that the shapes fit.
        inputs: value name -> memory that is read; a HostValue where TensorRT reads the elements itself.
        outputs: value name -> memory that is written.
        scratch: memory for activations; it must not be replaced while the result is in use.

    Raises:
        EngineError: the engine does not take the shapes.
        DeviceMemoryError: no memory for its activations.
    """
    shaped: list[tuple[str, tuple[int, ...], int]] = []
    hosted: list[tuple[str, np.ndarray]] = []
    for item in step.inputs:
        value = inputs[item.value]
        if isinstance(value, HostValue):
            hosted.append((item.tensor, value.array))
        else:
            shaped.append((item.tensor, value.shape, value.pointer))
    addressed = [(item.tensor, outputs[item.value].pointer) for item in step.outputs]

    def tell() -> None:
        for tensor, shape, pointer in shaped:
            context.set_shape(tensor, shape)
            context.set_address(tensor, pointer)
        for tensor, array in hosted:
            context.set_values(tensor, array)
        for tensor, pointer in addressed:
            context.set_address(tensor, pointer)

    def run() -> None:
        tell()
        context.memory_needed()  # TensorRT divides the memory anew after every change of shapes
        context.set_memory(scratch.pointer, scratch.nbytes)
        context.enqueue()

    tell()
    scratch.ensure(context.memory_needed())
    return run


def _give(
    engine: LoadedEngine, context: Context, tensor: str, value: Value, cuda: Cuda, made: list[DeviceBuffer]
) -> None:
    """Tells a context one input; device memory that had to be made for it is appended to `made`."""
    if engine.tensors[tensor].on_host:
        context.set_values(tensor, to_host(value, cuda))
        return
    if isinstance(value, HostValue):
        made.append(to_device(value.array, cuda))
        pointer = made[-1].pointer
    else:
        pointer = value.pointer
    context.set_shape(tensor, value.shape)
    context.set_address(tensor, pointer)


def to_device(array: np.ndarray, cuda: Cuda) -> DeviceBuffer:
    """A copy of an array in device memory of its own, which the caller frees.

    Raises:
        EngineRunError: its elements are objects, texts for instance.
    """
    if array.dtype.hasobject:
        raise EngineRunError(f"values of the type {array.dtype} have no place on the device")
    staging = cuda.pinned(array.nbytes)
    try:
        staging.array(array.dtype, array.shape)[...] = array
        buffer = cuda.allocate(array.nbytes)
        cuda.to_device(buffer.pointer, staging.pointer, array.nbytes)
        cuda.synchronize()  # the staging memory goes back to the pool: a rare road, and a small tensor
    finally:
        staging.release()
    return buffer


def _allocator(cuda: Cuda, made: dict[str, DeviceBuffer], tensor: str) -> Callable[[int], int]:
    def allocate(nbytes: int) -> int:
        made[tensor] = cuda.allocate(nbytes)
        return made[tensor].pointer

    return allocate
