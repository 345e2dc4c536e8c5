"""The CUDA runtime as a module of checked calls: every failure is an error that names the call and CUDA's reason."""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

from rewriter.errors import ConversionError, CudaError, DeviceMemoryError, InvalidParameterError, missing_dependency

LEGACY_STREAM = 1
"""``cudaStreamLegacy``, the default stream. 0 means the same to CUDA, but to ONNX Runtime and DLPack it does not."""

PER_THREAD_STREAM = 2
"""``cudaStreamPerThread``: a different stream in every thread that says it."""

_KEEP_ALL = (1 << 64) - 1
_OUT_OF_MEMORY = 2
_NOT_READY = 600

_LOST = frozenset(
    {
        "cudaErrorIllegalAddress",
        "cudaErrorLaunchFailure",
        "cudaErrorLaunchTimeout",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalInstruction",
        "cudaErrorMisalignedAddress",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorAssert",
        "cudaErrorECCUncorrectable",
        "cudaErrorContextIsDestroyed",
    }
)
"""Errors after which every later call of the process fails as well: only a new process helps."""


def load_cudart() -> Any:
    """The module ``cuda.bindings.runtime``.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as e:
        raise missing_dependency("cuda-bindings", "gpu", "running on a GPU") from e


class Calls:
    """The module's functions, with their results checked.

    Args:
        module: ``cuda.bindings.runtime``, or something that looks like it. Each of its functions returns a tuple that
            starts with the error.
    """

    def __init__(self, module: Any):
        self.module = module

    def call(self, name: str, *arguments: Any) -> Any:
        """Result of one call: None, one value, or a tuple of values. Not for the hot path: it looks functions up.

        Raises:
            DeviceMemoryError: CUDA says out of memory.
            CudaError: Any other failure.
        """
        error, *values = getattr(self.module, name)(*arguments)
        if error:
            self.fail(name, error)
        return None if not values else values[0] if len(values) == 1 else tuple(values)

    def fail(self, name: str, error: Any, about: str = "") -> NoReturn:
        """Raises the error that fits, after CUDA's "last error" was cleared: nobody else should find ours there."""
        self.module.cudaGetLastError()
        text = f"{name}{about and f' ({about})'} failed: {self.reason(error)}"
        if int(error) == _OUT_OF_MEMORY:
            raise DeviceMemoryError(text)
        raise CudaError(text)

    def reason(self, error: Any) -> str:
        """CUDA's name and words for an error, and what follows from it."""
        name, words = self._text("cudaGetErrorName", error), self._text("cudaGetErrorString", error)
        lost = "; the process's CUDA state is lost, restart it" if name in _LOST else ""
        return f"{name} ({words}){lost}"

    def _text(self, function: str, error: Any) -> str:
        _, text = getattr(self.module, function)(error)
        return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)

    def unsigned_64(self, value: int) -> Any:
        """A 64-bit attribute as the binding takes it: by the type of its driver module."""
        kind = getattr(self.module, "cuuint64_t", None) or importlib.import_module("cuda.bindings.driver").cuuint64_t
        return kind(value)

    @staticmethod
    def is_not_ready(error: Any) -> bool:
        """Whether the "error" only says that the work has not finished."""
        return int(error) == _NOT_READY

    def attempt(self, name: str, *arguments: Any) -> ConversionError | None:
        """Makes a call of which nothing depends (tidying up): its error is the answer, not raised."""
        try:
            self.call(name, *arguments)
        except CudaError as e:
            return e
        return None


def describe(calls: Calls, device: int) -> tuple[str, tuple[int, int]]:
    """Name and compute capability of a device."""
    attributes = calls.module.cudaDeviceAttr
    name = bytes(calls.call("cudaGetDeviceProperties", device).name).split(b"\0")[0].decode("utf-8", "replace")
    major = calls.call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, device)
    minor = calls.call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, device)
    return name, (int(major), int(minor))


def check_owner(calls: Calls, stream: Any, device: int) -> None:
    """Refuses a stream of another device.

    Raises:
        InvalidParameterError: It is one.
    """
    if not hasattr(calls.module, "cudaStreamGetDevice"):  # older than CUDA 12.8
        return
    owner = int(calls.call("cudaStreamGetDevice", stream))
    if owner != device:
        raise InvalidParameterError(
            f"the stream is of device {owner}, but the model runs on device {device}: make them the same"
        )


def make_pool(calls: Calls, device: int) -> Any:
    """A pool of its own: the process-wide one stays as others know it, and close() gives the memory back."""
    module = calls.module
    wanted = module.cudaMemPoolProps()
    wanted.allocType = module.cudaMemAllocationType.cudaMemAllocationTypePinned
    location = module.cudaMemLocation()
    location.type, location.id = module.cudaMemLocationType.cudaMemLocationTypeDevice, device
    wanted.location = location
    pool = calls.call("cudaMemPoolCreate", wanted)
    # Freed memory stays in the pool; by default every synchronisation would give it back to the driver.
    threshold = module.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
    calls.call("cudaMemPoolSetAttribute", pool, threshold, calls.unsigned_64(_KEEP_ALL))
    return pool


def order(calls: Calls, first: int, then: Any) -> None:
    """Makes the stream ``then`` wait for what was enqueued on ``first`` so far, both of the current device."""
    event = calls.call("cudaEventCreateWithFlags", calls.module.cudaEventDisableTiming)
    try:
        calls.call("cudaEventRecord", event, calls.module.cudaStream_t(first))
        calls.call("cudaStreamWaitEvent", then, event, 0)
    finally:
        calls.attempt("cudaEventDestroy", event)  # CUDA keeps it until the wait is over
