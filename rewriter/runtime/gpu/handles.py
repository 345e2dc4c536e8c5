"""What ``Cuda`` hands out: device memory, events, graphs, and the choice of the current device."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rewriter.errors import ConverterStateError

if TYPE_CHECKING:
    from rewriter.runtime.gpu.cuda import Cuda
    from rewriter.runtime.gpu.cudart import Calls


class DeviceBuffer:
    """Memory on the device; it belongs to whoever holds this object, and is freed, in stream order, with it or before.

    It stays valid after the ``Cuda`` object that made it was closed.

    Attributes:
        pointer: Address.
        nbytes: Bytes asked for.
    """

    __slots__ = ("__weakref__", "_cuda", "_readers", "nbytes", "pointer")

    def __init__(self, cuda: Cuda, pointer: int, nbytes: int):
        self._cuda: Cuda | None = cuda
        self._readers: frozenset[int] = frozenset()
        self.pointer = pointer
        self.nbytes = nbytes

    def read_on(self, stream: int) -> None:
        """Notes that another stream may use the memory: it is not used again before that stream is done with it.

        For the default stream (1) that is a wait on the device; for others the host waits for the device when the
        buffer is freed.
        """
        self._readers |= {stream}

    def free(self) -> None:
        """Gives the memory back, after all that was enqueued so far; a second call does nothing."""
        cuda, self._cuda = self._cuda, None
        if cuda is not None:
            cuda._free(self.pointer, self._readers)

    def __del__(self) -> None:
        if not sys.is_finalizing():  # the process ends, and all its memory with it
            self.free()


class Event:
    """A point on the stream. It goes back to the pool of events when nothing refers to it any more."""

    __slots__ = ("_cuda", "_event")

    def __init__(self, cuda: Cuda, event: Any):
        self._cuda = cuda
        self._event = event

    def synchronize(self) -> None:
        """Waits, with the GIL released, until the stream has come to this point.

        Raises:
            CudaError: Work that was enqueued before failed.
        """
        calls = self._cuda._calls
        (error,) = calls.module.cudaEventSynchronize(self._event)
        if error:
            calls.fail("cudaEventSynchronize", error)

    def done(self) -> bool:
        """Whether the stream has come to this point; does not wait."""
        calls = self._cuda._calls
        (error,) = calls.module.cudaEventQuery(self._event)
        if error and not calls.is_not_ready(error):
            calls.fail("cudaEventQuery", error)
        return not error

    def hold_back(self, stream: int) -> None:
        """Makes another stream wait for this point (the stream of one who reads an output)."""
        calls = self._cuda._calls
        calls.call("cudaStreamWaitEvent", calls.module.cudaStream_t(stream), self._event, 0)

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self._cuda._return_event(self._event)


class Graph:
    """Captured work. It owns no memory: the buffers that the work uses must live as long as the graph."""

    __slots__ = ("_cuda", "_executable")

    def __init__(self, cuda: Cuda, executable: Any):
        self._cuda = cuda
        self._executable = executable

    def launch(self) -> None:
        """Enqueues the work on the stream.

        Raises:
            CudaError: CUDA refuses.
            ConverterStateError: The graph was closed.
        """
        if self._executable is None:
            raise ConverterStateError("the CUDA graph was closed: capture it again")
        cuda = self._cuda
        (error,) = cuda._launch(self._executable, cuda._stream)
        if error:
            cuda._calls.fail("cudaGraphLaunch", error)

    def close(self) -> None:
        """Waits for the stream and destroys the graph; a second call does nothing."""
        executable, self._executable = self._executable, None
        if executable is not None:
            self._cuda._when_not_capturing(lambda: self._cuda._destroy_graph(executable))

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()


class Current:
    """A context in which one device is the calling thread's current one."""

    __slots__ = ("_before", "_calls", "_device")

    def __init__(self, calls: Calls, device: int):
        self._calls = calls
        self._device = device
        self._before = device

    def __enter__(self) -> None:
        module = self._calls.module
        error, before = module.cudaGetDevice()
        if error:
            self._calls.fail("cudaGetDevice", error)
        self._before = int(before)
        if self._before != self._device:
            self._calls.call("cudaSetDevice", self._device)

    def __exit__(self, *error: object) -> None:
        if self._before != self._device:
            self._calls.call("cudaSetDevice", self._before)
