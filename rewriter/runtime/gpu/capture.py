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
    graph = _record(calls, stream, work)
    error, executable = calls.module.cudaGraphInstantiate(graph, 0)
    _drop(calls, graph)
    if error:
        raise _failed(calls, "cudaGraphInstantiate", error)
    error = calls.attempt("cudaGraphUpload", executable, stream)  # else the first launch pays for it
    if error:
        calls.attempt("cudaGraphExecDestroy", executable)
        raise CaptureError(f"the CUDA graph cannot be placed on the device: {error}") from error
    return executable


def examine(calls: Calls, stream: Any, work: Callable[[], None]) -> str:
    """Records ``work`` without running it, and says what in it needs the CPU; "" when all is done by the device.

    A graph repeats a copy from or to CPU memory with the address of the first time, where other data are by then, and
    a call back to the CPU with the arguments of the first time.

    Raises:
        CaptureError: as ``capture`` raises it.
    """
    graph = _record(calls, stream, work)
    try:
        return _host_work(calls, graph)
    finally:
        _drop(calls, graph)


def _record(calls: Calls, stream: Any, work: Callable[[], None]) -> Any:
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
    return graph


def _host_work(calls: Calls, graph: Any) -> str:
    module = calls.module
    types, kinds = module.cudaGraphNodeType, module.cudaMemcpyKind
    within = (kinds.cudaMemcpyDeviceToDevice, kinds.cudaMemcpyDefault)
    _, count = calls.call("cudaGraphGetNodes", graph)
    nodes, _ = calls.call("cudaGraphGetNodes", graph, count) if count else ((), 0)
    for node in nodes:
        kind = calls.call("cudaGraphNodeGetType", node)
        if kind == types.cudaGraphNodeTypeHost:
            return "it calls back to the CPU"
        if kind == types.cudaGraphNodeTypeMemcpy:
            error, parameters = module.cudaGraphMemcpyNodeGetParams(node)
            if error or parameters.kind not in within:
                module.cudaGetLastError()
                return "it copies from or to CPU memory"
    return ""


def _failed(calls: Calls, name: str, error: Any) -> CaptureError:
    reason = calls.reason(error)
    calls.module.cudaGetLastError()
    return CaptureError(f"no CUDA graph: {name} failed: {reason}")


def _drop(calls: Calls, graph: Any) -> None:
    module = calls.module
    if graph is not None and int(graph):
        module.cudaGraphDestroy(graph)
    module.cudaGetLastError()
