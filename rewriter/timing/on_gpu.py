"""A stream to time on: inputs that lie on the GPU already, waiting for its work, and the time as the GPU sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.timing.latencies import Latencies
from rewriter.timing.measuring import Call

if TYPE_CHECKING:
    from rewriter.runtime.gpu.cuda import Cuda


class GpuStream:
    """A stream of one GPU, for `load(stream=...)`; a context manager that must outlive the function.

    Args:
        cuda: the stream; owned by this object from now on.
        runtime: the module `cuda.bindings.runtime`; None: it is imported.
    """

    def __init__(self, cuda: Cuda, runtime: Any = None) -> None:
        from rewriter.runtime.gpu.cudart import Calls, load_cudart

        self._cuda = cuda
        module = load_cudart() if runtime is None else runtime
        self._calls = Calls(module)
        self._stream = module.cudaStream_t(cuda.stream)

    @classmethod
    def open(cls, device: int = 0) -> GpuStream:
        """A new stream; the first one of a process also starts CUDA.

        Raises:
            MissingDependencyError: `cuda-bindings` is not installed.
            CudaError: there is no such device, no driver, or the driver is too old.
        """
        from rewriter.runtime.gpu.cuda import Cuda

        return cls(Cuda(device=device))

    @property
    def handle(self) -> int:
        """The stream's handle."""
        return self._cuda.stream

    @property
    def gpu(self) -> dict[str, Any]:
        """Name and compute capability of the GPU."""
        major, minor = self._cuda.compute_capability
        return {"name": self._cuda.gpu_name, "compute_capability": f"{major}.{minor}"}

    def finish(self) -> None:
        """Waits until all that is enqueued so far is done; callable from any thread."""
        self._cuda.record().synchronize()

    def put(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with its arrays in the GPU's memory (strings stay where they are)."""
        from rewriter.runtime.gpu.tensors import DeviceTensor

        found: dict[str, Any] = {}
        for name, value in sample.items():
            array = np.ascontiguousarray(value).reshape(np.shape(value))
            if array.dtype.kind in "OSU":
                found[name] = value
                continue
            buffer = self._cuda.allocate(array.nbytes)
            self._cuda.to_device(buffer.pointer, array.ctypes.data, array.nbytes)
            self._cuda.synchronize()  # the array may go
            found[name] = DeviceTensor(self._cuda, buffer, array.dtype, array.shape)
        return found

    def measure(self, call: Call, iterations: int) -> Latencies:
        """How long the GPU takes for a call: from one event on the stream before it to one after it.

        Each call is waited for before the next begins. Where the host enqueues more slowly than the GPU computes, the
        GPU's waiting for it counts.

        Args:
            call: enqueues work, and leaves its outputs on the GPU.
            iterations: timed calls.
        """
        calls = self._calls
        with self._cuda.current():
            first, last = calls.call("cudaEventCreate"), calls.call("cudaEventCreate")
        milliseconds = []
        try:
            for _ in range(iterations):
                calls.call("cudaEventRecord", first, self._stream)
                held = call()
                calls.call("cudaEventRecord", last, self._stream)
                calls.call("cudaEventSynchronize", last)
                milliseconds.append(float(calls.call("cudaEventElapsedTime", first, last)))
                del held
        finally:
            for event in (first, last):
                calls.attempt("cudaEventDestroy", event)
        return Latencies.of(value / 1e3 for value in milliseconds)

    def close(self) -> None:
        """Waits for the stream and gives it back; harmless when repeated."""
        self._cuda.close()

    def __enter__(self) -> GpuStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
