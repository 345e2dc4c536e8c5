# ruff: noqa: N801, N815 (the names are those of CUDA)
"""A strict double of the GPU: the real ``Cuda`` class over a CUDA runtime whose device memory is checked host memory.

What a real GPU forgives or punishes late fails here at once with an AssertionError: unknown, freed or out-of-bounds
addresses, writes past the end of an allocation, memory that is never given back. Fresh memory is 0xCD, freed memory
0xDD.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import enum
import threading
from types import SimpleNamespace

import numpy as np

from rewriter.runtime.gpu.cuda import Cuda

FRESH, FREED, GUARD = 0xCD, 0xDD, 0xFD
GUARD_BYTES = 64
ALIGNMENT = 256


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


OK = cudaError_t.cudaSuccess


class Handle(int):
    """A handle of the runtime: an int that is its own type."""


class Block:
    """One allocation, between two guards."""

    def __init__(self, nbytes, kind):
        self.nbytes = nbytes
        self.kind = kind
        self.live = True
        self.raw = np.full(nbytes + 2 * GUARD_BYTES + ALIGNMENT, GUARD, np.uint8)
        base = self.raw.ctypes.data + GUARD_BYTES
        self.pointer = -(-base // ALIGNMENT) * ALIGNMENT
        self.start = self.pointer - self.raw.ctypes.data
        self.bytes[:] = FRESH

    @property
    def bytes(self):
        return self.raw[self.start : self.start + self.nbytes]

    def check_guards(self):
        before, after = self.raw[: self.start], self.raw[self.start + self.nbytes :]
        name = f"the {self.kind} memory of {self.nbytes} bytes at {self.pointer:#x}"
        assert (before == GUARD).all(), f"something was written before {name}"
        assert (after == GUARD).all(), f"something was written past the end of {name}"


class FakeRuntime:
    """``cuda.bindings.runtime`` as ``Cuda`` sees it; work runs at once, or when it is waited for (``lazy``)."""

    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaHostAllocPortable = 1
    cudaError_t = cudaError_t
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice="to_device",
        cudaMemcpyDeviceToHost="to_host",
        cudaMemcpyDeviceToDevice="on_device",
        cudaMemcpyDefault="default",
    )
    cudaGraphNodeType = SimpleNamespace(cudaGraphNodeTypeHost="host", cudaGraphNodeTypeMemcpy="memcpy")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaMemAllocationType = SimpleNamespace(cudaMemAllocationTypePinned=1)
    cudaMemLocationType = SimpleNamespace(cudaMemLocationTypeDevice=1)
    cudaMemPoolAttr = SimpleNamespace(cudaMemPoolAttrReleaseThreshold=4)
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76)
    cudaMemPoolProps = cudaMemLocation = SimpleNamespace
    cudaStream_t = cuuint64_t = Handle

    def __init__(self, lazy=False):
        self.lazy = lazy
        self.memory_limit = 80 << 30
        self.failures = {}  # function -> errors of its next calls
        self.calls = []  # names, in order
        self.blocks = {}
        self.starts = []
        self.pending = []
        self.captured = None  # the work of the open capture
        self.spoilt = False
        self.live = {}  # handles: number -> kind
        self.graphs = {}
        self.nodes = ()  # what captured graphs are said to hold: "kernel", "host", or the kind of a copy
        self.waits = []  # (stream, event's stream)
        self.devices = 1
        self.thread = threading.local()
        self.last_error = OK
        self._next = 1000

    # --- checked memory

    def find(self, pointer, nbytes, what="an access"):
        index = bisect.bisect_right(self.starts, pointer) - 1
        block = self.blocks[self.starts[index]] if index >= 0 else None
        if block is None or not pointer <= block.pointer + block.nbytes:
            return None
        assert block.live, f"{what} of {nbytes} bytes at {pointer:#x}: the {block.kind} memory was freed"
        left = block.pointer + block.nbytes - pointer
        assert nbytes <= left, (
            f"{what} of {nbytes} bytes at {pointer:#x}: only {left} bytes of {block.kind} memory there"
        )
        return block

    def device(self, pointer, nbytes, what):
        block = self.find(pointer, nbytes, what)
        assert block is not None, f"{what} of {nbytes} bytes at {pointer:#x}: no memory of this device"
        assert block.kind == "device", f"{what} of {nbytes} bytes at {pointer:#x}: that is page-locked host memory"

    def bytes_of(self, kind):
        return sum(block.nbytes for block in self.blocks.values() if block.live and block.kind == kind)

    def check_guards(self):
        for block in self.blocks.values():
            block.check_guards()

    def allocate(self, nbytes, kind):
        assert nbytes > 0, "CUDA gives no address for 0 bytes"
        if kind == "device" and self.bytes_of("device") + nbytes > self.memory_limit:
            return cudaError_t.cudaErrorMemoryAllocation, None
        block = Block(nbytes, kind)
        self.blocks[block.pointer] = block
        bisect.insort(self.starts, block.pointer)
        return OK, block.pointer

    def release(self, pointer, kind):
        block = self.blocks.get(pointer)
        assert block is not None, f"{pointer:#x} is freed but was never allocated"
        assert block.kind == kind, f"{kind} memory is freed at {pointer:#x}, but that is {block.kind} memory"
        assert block.live, f"the {kind} memory at {pointer:#x} is freed twice"
        block.check_guards()
        block.bytes[:] = FREED
        block.live = False

    # --- the stream

    def enqueue(self, work):
        if self.captured is not None:
            self.captured.append(work)
        elif self.lazy:
            self.pending.append(work)
        else:
            work()

    def drain(self):
        while self.pending:
            self.pending.pop(0)()

    def failing(self, name):
        self.calls.append(name)
        errors = self.failures.get(name)
        if errors:
            self.last_error = errors.pop(0)
            return self.last_error
        return OK

    def make(self, kind):
        self._next += 1
        self.live[self._next] = kind
        return Handle(self._next)

    def end(self, handle, kind):
        assert self.live.pop(int(handle), None) == kind, f"{kind} {int(handle)} is destroyed twice or is none"

    def handles(self, kind):
        return sum(1 for k in self.live.values() if k == kind)


def _function(name):
    """Wraps a function of the fake runtime: it is counted, and fails first where it was told to."""

    def wrap(run):
        values = getattr(run, "values", 0)

        def call(self, *arguments):
            error = self.failing(name)
            if error:
                if name == "cudaStreamEndCapture":  # a capture is over in either case
                    self.captured = None
                return (error, *([None] * values))
            result = run(self, *arguments)
            return result if isinstance(result, tuple) else (OK,) if result is None else (OK, result)

        setattr(FakeRuntime, name, call)
        return run

    return wrap


def _gives(run):
    """Marks a function that gives a value, so that its failure gives one place more as well."""
    run.values = 1
    return run


@_function("cudaGetLastError")
def _get_last_error(self):
    error, self.last_error = self.last_error, OK
    return (error,)


@_function("cudaGetErrorName")
def _get_error_name(self, error):
    return error.name.encode()


@_function("cudaGetErrorString")
def _get_error_string(self, error):
    return error.name.removeprefix("cudaError").lower().encode()


@_function("cudaGetDevice")
@_gives
def _get_device(self):
    return getattr(self.thread, "device", 0)


@_function("cudaSetDevice")
def _set_device(self, device):
    if not 0 <= device < self.devices:
        return (cudaError_t.cudaErrorInvalidValue,)
    self.thread.device = device
    return None


@_function("cudaGetDeviceProperties")
@_gives
def _properties(self, device):
    return SimpleNamespace(name=b"Fake GPU\0\0\0")


@_function("cudaDeviceGetAttribute")
@_gives
def _attribute(self, attribute, device):
    return {75: 9, 76: 0}[attribute]


@_function("cudaDeviceSynchronize")
def _device_synchronize(self):
    if self.captured is not None:
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    return self.drain()


@_function("cudaStreamCreateWithFlags")
@_gives
def _create_stream(self, flags):
    assert flags == self.cudaStreamNonBlocking
    return self.make("stream")


@_function("cudaStreamDestroy")
def _destroy_stream(self, stream):
    self.end(stream, "stream")


@_function("cudaStreamGetDevice")
@_gives
def _stream_device(self, stream):
    return 1 if int(stream) == 0xD1 else getattr(self.thread, "device", 0)


@_function("cudaStreamSynchronize")
def _synchronize(self, stream):
    if int(stream) == 2:
        return None
    if self.captured is not None:
        self.spoilt = True
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    return self.drain()


@_function("cudaStreamWaitEvent")
def _wait_event(self, stream, event, flags):
    assert self.live.get(int(event)) == "event"
    self.waits.append((int(stream), int(event)))


@_function("cudaMemPoolCreate")
@_gives
def _create_pool(self, wanted):
    assert wanted.location.id < self.devices
    return self.make("pool")


@_function("cudaMemPoolSetAttribute")
def _set_pool(self, pool, attribute, value):
    assert (attribute, int(value)) == (4, 2**64 - 1)


@_function("cudaMemPoolTrimTo")
def _trim(self, pool, keep):
    assert self.live[int(pool)] == "pool"


@_function("cudaMemPoolDestroy")
def _destroy_pool(self, pool):
    self.end(pool, "pool")


@_function("cudaMallocFromPoolAsync")
@_gives
def _malloc(self, nbytes, pool, stream):
    assert self.live[int(pool)] == "pool"
    assert self.captured is None, "memory is allocated during a capture"
    return self.allocate(nbytes, "device")


@_function("cudaFreeAsync")
def _free(self, pointer, stream):
    assert self.captured is None, "memory is freed during a capture"
    self.enqueue(lambda: self.release(pointer, "device"))


@_function("cudaHostAlloc")
@_gives
def _host_alloc(self, nbytes, flags):
    return self.allocate(nbytes, "host")


@_function("cudaFreeHost")
def _free_host(self, pointer):
    self.drain()
    self.release(pointer, "host")


@_function("cudaMemGetInfo")
@_gives
def _memory(self):
    return OK, max(0, self.memory_limit - self.bytes_of("device")), 80 << 30


@_function("cudaPointerGetAttributes")
@_gives
def _pointer_attributes(self, pointer):
    self.device(pointer, 0, "a question")
    return SimpleNamespace(device=0)


@_function("cudaMemcpyAsync")
def _memcpy(self, to, source, nbytes, kind, stream):
    if int(stream) == 2:  # the thread's own stream is in no capture
        self.device(source, nbytes, "a read")
        ctypes.memmove(to, source, nbytes)
        return None
    ends = {"to_device": (False, True), "to_host": (True, False), "on_device": (False, False)}[kind]
    for pointer, on_host, what in ((to, ends[0], "a write"), (source, ends[1], "a read")):
        if not on_host:
            self.device(pointer, nbytes, what)
        elif self.captured is not None and self.find(pointer, nbytes, what) is None:
            self.spoilt = True
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)

    def copy():
        for pointer, on_host, what in ((to, ends[0], "a write"), (source, ends[1], "a read")):
            self.find(pointer, nbytes, what) if on_host else self.device(pointer, nbytes, what)
        ctypes.memmove(to, source, nbytes)

    return self.enqueue(copy)


@_function("cudaEventCreateWithFlags")
@_gives
def _create_event(self, flags):
    assert flags == self.cudaEventDisableTiming
    return self.make("event")


@_function("cudaEventRecord")
def _record(self, event, stream):
    assert self.live[int(event)] == "event"


@_function("cudaEventQuery")
def _query(self, event):
    assert self.live[int(event)] == "event"
    return (cudaError_t.cudaErrorNotReady,) if self.pending else None


@_function("cudaEventSynchronize")
def _event_synchronize(self, event):
    assert self.live[int(event)] == "event"
    self.drain()


@_function("cudaEventDestroy")
def _destroy_event(self, event):
    self.end(event, "event")


@_function("cudaStreamBeginCapture")
def _begin(self, stream, mode):
    assert self.captured is None
    assert mode == 1, "only a thread-local capture leaves other threads alone"
    if int(stream) == 1:
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    self.captured, self.spoilt = [], False
    return None


@_function("cudaStreamEndCapture")
@_gives
def _end(self, stream):
    assert self.captured is not None
    work, self.captured = self.captured, None
    if self.spoilt:
        return cudaError_t.cudaErrorStreamCaptureInvalidated, Handle(0)
    graph = self.make("graph")
    self.graphs[int(graph)] = work
    return graph


@_function("cudaGraphGetNodes")
def _nodes(self, graph, count=0):
    assert int(graph) in self.graphs
    return OK, tuple(self.nodes[:count]), len(self.nodes)


@_function("cudaGraphNodeGetType")
@_gives
def _node_type(self, node):
    return "memcpy" if node in ("to_device", "to_host", "on_device") else node


@_function("cudaGraphMemcpyNodeGetParams")
@_gives
def _memcpy_node(self, node):
    return SimpleNamespace(kind=node)


@_function("cudaGraphInstantiate")
@_gives
def _instantiate(self, graph, flags):
    executable = self.make("executable")
    self.graphs[int(executable)] = self.graphs[int(graph)]
    return executable


@_function("cudaGraphDestroy")
def _destroy_graph(self, graph):
    self.end(graph, "graph")
    del self.graphs[int(graph)]


@_function("cudaGraphExecDestroy")
def _destroy_executable(self, executable):
    self.end(executable, "executable")
    del self.graphs[int(executable)]


@_function("cudaGraphUpload")
def _upload(self, executable, stream):
    assert self.live[int(executable)] == "executable"


@_function("cudaGraphLaunch")
def _launch_graph(self, executable, stream):
    assert self.live.get(int(executable)) == "executable", "a destroyed graph is launched"
    for work in self.graphs[int(executable)]:
        self.enqueue(work)


METHODS = {
    "allocate": ("cudaMallocFromPoolAsync", "cudaErrorMemoryAllocation"),
    "pinned": ("cudaHostAlloc", "cudaErrorMemoryAllocation"),
    "to_device": ("cudaMemcpyAsync", "cudaErrorInvalidValue"),
    "to_host": ("cudaMemcpyAsync", "cudaErrorInvalidValue"),
    "on_device": ("cudaMemcpyAsync", "cudaErrorInvalidValue"),
    "record": ("cudaEventRecord", "cudaErrorInvalidResourceHandle"),
    "event.synchronize": ("cudaEventSynchronize", "cudaErrorIllegalAddress"),
    "capture": ("cudaStreamEndCapture", "cudaErrorStreamCaptureInvalidated"),
    "graph.launch": ("cudaGraphLaunch", "cudaErrorIllegalAddress"),
    "synchronize": ("cudaStreamSynchronize", "cudaErrorIllegalAddress"),
}
"""Method of ``Cuda`` -> the runtime's function that fails in it, and how."""


class FakeCuda(Cuda):
    """The GPU's double.

    Attributes:
        events: Every call in order, as tuples: ("allocate", pointer, nbytes), ("to_device", pointer, nbytes),
            ("launch", name) ...
        runtime: The fake CUDA runtime under it.
        peak_bytes: Most device bytes that were live at a time.

    Args:
        stream: As for ``Cuda``; 0xD1 is a stream of another device.
        device: As for ``Cuda``.
        memory_limit: Bytes of device memory.
        lazy: True runs enqueued work only when something waits for it, so that results read too early are 0xCD.
    """

    device_type = "cpu"

    def __init__(self, *, stream=None, device=0, memory_limit=80 << 30, lazy=False, runtime=None):
        self.events = []
        self.peak_bytes = 0
        self.runtime = runtime or FakeRuntime(lazy)
        self.runtime.memory_limit = memory_limit
        super().__init__(stream=stream, device=device, runtime=self.runtime)
        self.dlpack_device = (1, 0)

    @property
    def providers(self):
        return ["CPUExecutionProvider"]

    # --- what the tests ask and set

    @property
    def live_bytes(self):
        return self.runtime.bytes_of("device")

    @property
    def capturing(self):
        return self.runtime.captured is not None

    @property
    def memory_limit(self):
        return self.runtime.memory_limit

    @memory_limit.setter
    def memory_limit(self, nbytes):
        self.runtime.memory_limit = nbytes

    @property
    def fail_capture(self):
        return bool(self.runtime.failures.get("cudaStreamEndCapture"))

    @fail_capture.setter
    def fail_capture(self, fail):
        errors = [cudaError_t.cudaErrorStreamCaptureInvalidated] * 10_000 if fail else []
        self.runtime.failures["cudaStreamEndCapture"] = errors

    def fail_next(self, call, error=None):
        """The next call of a method (``allocate``, ``event.synchronize``, ...) or of a runtime function fails."""
        function, usual = METHODS.get(call, (call, "cudaErrorInvalidValue"))
        self.runtime.failures.setdefault(function, []).append(cudaError_t[error or usual])

    def check(self, pointer, nbytes):
        """Fails unless these are live bytes of device memory."""
        self.runtime.device(pointer, nbytes, "an access")

    def array(self, pointer, dtype, shape):
        """Device memory as an array, checked."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self.check(pointer, nbytes)
        return np.ndarray(shape, dtype, (ctypes.c_char * max(nbytes, 1)).from_address(pointer))

    def launch(self, function, name="launch"):
        """Enqueues a function on the stream, as a kernel would be."""
        self.events.append((name,) if name == "launch" else ("launch", name))
        self.runtime.enqueue(function)

    def assert_clean(self):
        """Fails when device memory, events, graphs, streams or pools are left over, or a write was out of bounds."""
        self.runtime.check_guards()
        left = [(b.nbytes, hex(b.pointer)) for b in self.runtime.blocks.values() if b.live]
        assert not left, f"memory was never given back: {left}"
        assert not self.runtime.live, f"never destroyed: {self.runtime.live}"

    # --- the calls, noted

    def allocate(self, nbytes):
        buffer = super().allocate(nbytes)
        self.events.append(("allocate", buffer.pointer, nbytes))
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return buffer

    def _free_now(self, pointer, readers):
        self.events.append(("free", pointer))
        super()._free_now(pointer, readers)

    def pinned(self, nbytes):
        buffer = super().pinned(nbytes)
        self.events.append(("pinned", buffer.pointer, nbytes))
        return buffer

    def to_device(self, pointer, host, nbytes):
        self.events.append(("to_device", pointer, nbytes))
        super().to_device(pointer, host, nbytes)

    def to_host(self, host, pointer, nbytes):
        self.events.append(("to_host", pointer, nbytes))
        super().to_host(host, pointer, nbytes)

    def on_device(self, to, source, nbytes):
        self.events.append(("on_device", to, source, nbytes))
        super().on_device(to, source, nbytes)

    def enqueue(self, work):
        self.launch(work, "enqueue")

    def record(self):
        self.events.append(("record",))
        return super().record()

    def capture(self, work):
        self.events.append(("capture",))
        return super().capture(work)

    def _launch(self, executable, stream):
        self.events.append(("graph",))
        return self.runtime.cudaGraphLaunch(executable, stream)

    def synchronize(self):
        self.events.append(("synchronize",))
        super().synchronize()

    def close(self):
        self.events.append(("close",))
        super().close()


@contextlib.contextmanager
def opened(**options):
    """A double that is closed and must be clean afterwards."""
    cuda = FakeCuda(**options)
    try:
        yield cuda
    finally:
        cuda.close()
    cuda.assert_clean()
