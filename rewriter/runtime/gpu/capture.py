"""From work on a stream to a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rewriter.errors import CaptureError
from rewriter.runtime.gpu.cudart import Calls


def capture(calls: Calls, stream: Any, work: Callable[[], None]) -> Any:
    """Captures what ``work`` enqueues on a stream; the capture is ended in every case.

    Returns:
        The handle of an executable graph, which the caller destroys.

    Raises:
        CaptureError: ``work`` raised, or did something that cannot be captured.
    """
    module = calls.module
    (error,) = module.cudaStreamBeginCapture(stream, module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    if error:
        raise _failed(calls, "cudaStreamBeginCapture", error)
    try:
        work()
    except BaseException as e:
        _, graph = module.cudaStreamEndCapture(stream)
        _drop(calls, graph)
        if isinstance(e, Exception):
            raise CaptureError(f"the work could not be captured as a CUDA graph: {e}") from e
        raise
    error, graph = module.cudaStreamEndCapture(stream)
    if error:
        _drop(calls, graph)
        raise _failed(calls, "cudaStreamEndCapture", error)
    error, executable = module.cudaGraphInstantiate(graph, 0)
    _drop(calls, graph)
    if error:
        raise _failed(calls, "cudaGraphInstantiate", error)
    error = calls.attempt("cudaGraphUpload", executable, stream)  # else the first launch pays for it
    if error:
        calls.attempt("cudaGraphExecDestroy", executable)
        raise CaptureError(f"the CUDA graph cannot be placed on the device: {error}") from error
    return executable


def _failed(calls: Calls, name: str, error: Any) -> CaptureError:
    reason = calls.reason(error)
    calls.module.cudaGetLastError()
    return CaptureError(f"no CUDA graph: {name} failed: {reason}")


def _drop(calls: Calls, graph: Any) -> None:
    module = calls.module
    if graph is not None and int(graph):
        module.cudaGraphDestroy(graph)
    module.cudaGetLastError()
