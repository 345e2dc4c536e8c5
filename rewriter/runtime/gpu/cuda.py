"""One device and one stream: memory, copies, events and graphs, by the CUDA runtime."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from rewriter.errors import CaptureError, ConverterStateError, CudaError, DeviceMemoryError
from rewriter.runtime.gpu.capture import capture, examine
from rewriter.runtime.gpu.cudart import (
    LEGACY_STREAM,
    PER_THREAD_STREAM,
    Calls,
    check_owner,
    describe,
    load_cudart,
    make_pool,
    order,
)
from rewriter.runtime.gpu.handles import Current, DeviceBuffer, Event, Graph
from rewriter.runtime.gpu.pinned import HostBuffer, PinnedPool


class Cuda:
    """A device and a stream on it. All work is enqueued on that one stream, so it runs in the order of the calls.

    Thread-safe: ``pinned``, ``record`` and everything of buffers and events that were handed out. What enqueues
    (copies, ``allocate``, ``capture``, ``Graph.launch``) is for one thread at a time: the executor's lock sees to that.

    Who owns what: this object owns the pool of device memory, the page-locked memory, the events and (unless the user
    gave one) the stream. Buffers that outlive ``close()`` stay valid: the stream and the pool are destroyed when the
    last one is freed.

    Attributes:
        stream: Handle of the stream; 0, the default stream, becomes 1, CUDA's explicit name of the same (ONNX Runtime
            takes 0 for "none").
        device: Index of the device.
        device_type: What ONNX Runtime's IOBinding calls the device's memory.
        dlpack_device: What DLPack calls the device: its type and index.
        gpu_name: The device's name.
        compute_capability: Its major and minor number.
        providers: ONNX Runtime's execution providers for sessions that run on this stream.
        closed: Whether ``close`` was called.

    Args:
        stream: Handle of a stream of the user's, on ``device``, which must outlive this object and all its buffers; it
            is never destroyed here. None: a stream of its own that does not wait for the default stream.
        device: Index of the device.
        runtime: The module ``cuda.bindings.runtime``, or something that looks like it. None: it is imported.

    Raises:
        MissingDependencyError: ``cuda-bindings`` is not installed.
        InvalidParameterError: The stream belongs to another device.
        CudaError: There is no such device, no driver, or the driver is too old.
    """

    device_type = "cuda"

    def __init__(self, *, stream: int | None = None, device: int = 0, runtime: Any = None):
        module = load_cudart() if runtime is None else runtime
        self._calls = calls = Calls(module)
        self._lock = threading.RLock()  # reentrant: the garbage collector may free a buffer while this thread holds it
        self.device = device
        self.dlpack_device = (2, device)
        self.closed = False
        self._capturing = False
        self._live = 0
        self._parked: deque[Callable[[], None]] = deque()
        self._kept: deque[tuple[Event, tuple[object, ...]]] = deque()
        self._events: list[Any] = []
        self._own_stream = stream is None
        self._stream: Any = None
        self._pool: Any = None
        with self.current():
            self.gpu_name, self.compute_capability = describe(calls, device)
            if stream is None:
                self._stream = calls.call("cudaStreamCreateWithFlags", module.cudaStreamNonBlocking)
            else:
                self._stream = module.cudaStream_t(stream or LEGACY_STREAM)
                check_owner(calls, self._stream, device)
            try:
                self._pool = make_pool(calls, device)
            except CudaError:
                self._destroy()
                raise
        self.stream = int(self._stream)
        self._pinned = PinnedPool(self._lock_pages, self._unlock_pages)
        self._to_device = module.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._to_host = module.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._on_device = module.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy, self._record_event = module.cudaMemcpyAsync, module.cudaEventRecord

    @property
    def providers(self) -> list[Any]:
        """What ``InferenceSession(providers=...)`` takes: CUDA on this stream, and the CPU for what CUDA cannot run.

        - ``user_compute_stream``: everything is on one stream, so nothing has to wait and a CUDA graph can hold all of
          it.
        - ``arena_extend_strategy``: the default doubles what a session keeps; many sessions and TensorRT share this
          device.
        - ``cudnn_conv_algo_search``: EXHAUSTIVE is ONNX Runtime's default too, said here because capture depends on
          the search being over after the first run at a shape; it costs that run some time and makes all others as
          quick as they can be.
        """
        options = {
            "device_id": str(self.device),
            "user_compute_stream": str(self.stream),
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
        }
        return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Memory on the device for work that is enqueued from now on. Its contents are undefined.

        Args:
            nbytes: Its size; for 0 there is a real address too, since TensorRT wants one.

        Raises:
            DeviceMemoryError: The device has not enough.
            CudaError: A capture is open (its replays would all use one address that is long freed), or another failure.
            ConverterStateError: It is closed.
        """
        with self._lock:
            self._check_open()
            if self._capturing:
                raise CudaError("device memory cannot be allocated while a CUDA graph is captured: allocate it before")
            error, pointer = self._calls.module.cudaMallocFromPoolAsync(nbytes or 1, self._pool, self._stream)
            if error:
                self._fail_allocation("cudaMallocFromPoolAsync", error, nbytes)
            self._live += 1
        return DeviceBuffer(self, pointer, nbytes)

    def pinned(self, nbytes: int) -> HostBuffer:
        """Page-locked host memory from a pool: ``release()`` gives it back, once no enqueued copy uses it any more.

        Raises:
            DeviceMemoryError: The system locks no more memory.
            ConverterStateError: It is closed.
        """
        self._check_open()
        return self._pinned.take(nbytes)

    def read(self, host: int, pointer: int, nbytes: int) -> None:
        """Copies device memory to host memory and waits, without using the stream: even in a capture or when closed.

        The caller has seen to it that the memory is written (``Event.synchronize``), and holds its buffer.
        """
        calls, module = self._calls, self._calls.module
        if nbytes:
            with self.current():
                stream = module.cudaStream_t(PER_THREAD_STREAM)
                calls.call("cudaMemcpyAsync", host, pointer, nbytes, self._to_host, stream)
                calls.call("cudaStreamSynchronize", stream)

    def device_of(self, pointer: int) -> int:
        """Index of the device on which an address lies.

        Raises:
            CudaError: CUDA does not know the address.
        """
        return int(self._calls.call("cudaPointerGetAttributes", pointer).device)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device. Freed memory that the pool keeps counts as used (see ``trim``)."""
        self._check_open()
        with self.current():
            free, total = self._calls.call("cudaMemGetInfo")
        return int(free), int(total)

    def trim(self) -> None:
        """Waits for the stream and gives the pool's unused memory back, for TensorRT and ONNX Runtime to take."""
        self.synchronize()
        self._calls.call("cudaMemPoolTrimTo", self._pool, 0)

    def to_device(self, pointer: int, host: int, nbytes: int) -> None:
        """Enqueues a copy from host memory; only page-locked memory is copied without waiting, and can be captured."""
        self._copy_bytes(pointer, host, nbytes, self._to_device)

    def to_host(self, host: int, pointer: int, nbytes: int) -> None:
        """Enqueues a copy to host memory, page-locked like that of ``to_device``."""
        self._copy_bytes(host, pointer, nbytes, self._to_host)

    def on_device(self, to: int, source: int, nbytes: int) -> None:
        """Enqueues a copy from device memory to device memory; they must not overlap."""
        self._copy_bytes(to, source, nbytes, self._on_device)

    def _copy_bytes(self, to: int, source: int, nbytes: int, kind: Any) -> None:
        if self.closed:
            self._check_open()
        if not nbytes:
            return
        (error,) = self._copy(to, source, nbytes, kind, self._stream)
        if error:
            self._calls.fail("cudaMemcpyAsync", error, f"{nbytes} bytes")

    def enqueue(self, work: Callable[[], None]) -> None:
        """Runs ``work``, which enqueues on this stream by its own means (a session of ONNX Runtime, an engine).

        Here that is no more than the call; it exists for the tests' double, where such work must be put into the
        stream's order.
        """
        work()

    def record(self) -> Event:
        """An event that happens when all that is enqueued so far is done. It is pooled: dropping it gives it back.

        Waiting threads spin (CUDA's default) and do not sleep on an interrupt: a call lasts a few hundred
        microseconds, and waking a sleeping thread costs tens of them. The GIL is released meanwhile.
        """
        self._check_open()
        try:
            event = self._events.pop()
        except IndexError:
            with self.current():
                event = self._calls.call("cudaEventCreateWithFlags", self._calls.module.cudaEventDisableTiming)
        (error,) = self._record_event(event, self._stream)
        if error:
            self._events.append(event)
            self._calls.fail("cudaEventRecord", error)
        return Event(self, event)

    def follow(self, stream: int) -> None:
        """Makes this stream wait for what was enqueued on another one so far: a producer's, whose data is read next."""
        self._check_open()
        if stream != self.stream:
            with self.current():
                order(self._calls, stream, self._stream)

    def keep(self, *things: object) -> None:
        """Keeps objects alive until all that is enqueued so far is done: a caller's device tensors, say."""
        event = self.record()
        while self._kept and self._kept[0][0].done():
            self._kept.popleft()
        self._kept.append((event, things))

    def capture(self, work: Callable[[], None]) -> Graph:
        """Records what ``work`` enqueues on the stream as a graph, without running it.

        Other threads may go on using CUDA (the capture is thread-local) but not this stream. Memory that is freed
        meanwhile, by the garbage collector for instance, is freed when the capture is over. The capture is ended in
        every case.

        Args:
            work: Enqueues; it must not allocate, wait, or copy from or to host memory that is not page-locked.

        Returns:
            The graph. Whatever memory it uses must live as long as it does.

        Raises:
            CaptureError: ``work`` raised, or did something that cannot be captured; the stream is as before.
        """
        with self._capture():
            return Graph(self, capture(self._calls, self._stream, work))

    def examine(self, work: Callable[[], None]) -> str:
        """Captures what ``work`` enqueues, throws it away, and says what in it needs the CPU; "" for nothing.

        Raises:
            CaptureError: as ``capture``.
        """
        with self._capture():
            return examine(self._calls, self._stream, work)

    @contextlib.contextmanager
    def _capture(self) -> Iterator[None]:
        """Holds back what must not happen inside a capture."""
        self._check_open()
        with self._lock:
            if self._capturing:
                raise CaptureError("a CUDA graph is being captured already")
            self._capturing = True
        try:
            with self.current():
                yield
        finally:
            with self._lock:
                self._capturing = False
                self._run_parked()

    def current(self) -> Current:
        """A context in which this device is the calling thread's current one; the thread's own comes back afterwards.

        TensorRT and the making of events and page-locked memory ask for the *current* device. Costs about a
        microsecond.
        """
        return Current(self._calls, self.device)

    def synchronize(self) -> None:
        """Waits until all that is enqueued is done."""
        self._check_open()
        (error,) = self._calls.module.cudaStreamSynchronize(self._stream)
        if error:
            self._calls.fail("cudaStreamSynchronize", error)
        self._kept.clear()
        with self._lock:
            self._run_parked()

    def close(self) -> None:
        """Waits for the stream and gives everything back that is not in use; a second call does nothing.

        Buffers that were handed out stay valid; what they need goes with the last of them.
        """
        if self.closed:
            return
        try:
            self.synchronize()
        finally:
            with self._lock:
                self.closed = True
                self._pinned.close()
                self._kept.clear()
                while self._events:
                    self._calls.attempt("cudaEventDestroy", self._events.pop())
                if not self._live:
                    self._destroy()

    def __enter__(self) -> Cuda:
        self._check_open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ConverterStateError("this CUDA stream was closed: load the model again")

    def _destroy(self) -> None:
        """Ends the pool and the own stream; once, when closed and no buffer is left."""
        pool, stream, self._pool, self._stream = self._pool, self._stream, None, None
        if pool is not None:
            self._calls.attempt("cudaMemPoolDestroy", pool)
        if self._own_stream and stream is not None:
            self._calls.attempt("cudaStreamDestroy", stream)

    def _fail_allocation(self, name: str, error: Any, nbytes: int) -> None:
        try:
            self._calls.fail(name, error, f"{nbytes} bytes")
        except DeviceMemoryError as e:
            free, total = self.memory()
            said = f"{e}; {free} of {total} bytes of {self.gpu_name} are free"
            raise DeviceMemoryError(f"{said}: smaller batches or fewer engines need less") from e

    def _lock_pages(self, nbytes: int) -> int:
        module = self._calls.module
        with self.current():
            error, pointer = module.cudaHostAlloc(nbytes, module.cudaHostAllocPortable)
        if error:
            self._calls.fail("cudaHostAlloc", error, f"{nbytes} bytes of page-locked host memory")
        return int(pointer)

    def _unlock_pages(self, pointer: int) -> None:
        self._when_not_capturing(lambda: self._calls.call("cudaFreeHost", pointer))

    def _free(self, pointer: int, readers: frozenset[int]) -> None:
        """Frees a buffer, in stream order, after what other streams do with it."""
        with self._lock:
            if self._capturing:
                self._parked.append(lambda: self._free_now(pointer, readers))
            else:
                self._run_parked()
                self._free_now(pointer, readers)

    def _free_now(self, pointer: int, readers: frozenset[int]) -> None:
        if readers and not self._readers_are_done(readers):
            self._parked.append(lambda: self._free_now(pointer, readers))
            return
        (error,) = self._calls.module.cudaFreeAsync(pointer, self._stream)
        if error:
            self._calls.fail("cudaFreeAsync", error)
        self._live -= 1
        if self.closed and not self._live:
            self._destroy()

    def _readers_are_done(self, readers: frozenset[int]) -> bool:
        """Orders the stream after other streams' reads; False: not now, for something else in the process captures."""
        with self.current():
            if readers - {self.stream, LEGACY_STREAM}:
                # The handle of a foreign stream may be gone by now: there is nothing to wait for but the whole device.
                return self._calls.attempt("cudaDeviceSynchronize") is None
            if self.stream not in readers or len(readers) > 1:
                order(self._calls, LEGACY_STREAM, self._stream)
        return True

    def _when_not_capturing(self, action: Callable[[], None]) -> None:
        """Now, or once the open capture is over: inside it, freeing would become a part of the graph and spoil it."""
        with self._lock:
            if self._capturing:
                self._parked.append(action)
            else:
                action()

    def _run_parked(self) -> None:
        for _ in range(len(self._parked)):  # an action may park itself again
            self._parked.popleft()()

    def _launch(self, executable: Any, stream: Any) -> Any:
        return self._calls.module.cudaGraphLaunch(executable, stream)

    def _destroy_graph(self, executable: Any) -> None:
        if not self.closed:  # closing waited already
            self._calls.attempt("cudaStreamSynchronize", self._stream)
        self._calls.attempt("cudaGraphExecDestroy", executable)

    def _return_event(self, event: Any) -> None:
        if self.closed:
            self._calls.attempt("cudaEventDestroy", event)
        else:
            self._events.append(event)
