"""What becomes of a call that fails on the GPU as a whole."""

from __future__ import annotations

import collections
import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rewriter.errors import ConversionError, ConverterStateError, CudaError
from rewriter.runtime.executor import Execution, NativeExecutor
from rewriter.runtime.gpu.discovery import reason_of
from rewriter.runtime.gpu.tensors import DeviceTensor

_LOG = logging.getLogger(__name__)


class LastResort:
    """The whole model on the CPU, for calls that fail on the GPU. Thread-safe.

    Its session is made with the first such call, and kept: a second copy of the weights in CPU memory.

    Args:
        make: makes the executor.
        nodes: engine nodes that one such call runs natively.
        strict: True raises instead.
    """

    def __init__(self, make: Callable[[], NativeExecutor], nodes: int, *, strict: bool) -> None:
        self._make = make
        self._nodes = nodes
        self._strict = strict
        self._lock = threading.Lock()
        self._closed = False
        self._cpu: NativeExecutor | None = None
        self._failures: collections.Counter[str] = collections.Counter()

    def run(self, feeds: Mapping[str, Any], error: Exception, *, on_device: bool) -> Execution:
        """Computes a call on the CPU, counted; an error of the model itself is raised there again.

        Args:
            feeds: of the call.
            error: what the GPU said.
            on_device: whether its outputs were to stay on the device.

        Raises:
            ConversionError: `strict`; or outputs are to stay on the device; or inputs of another library lie there, or
                can be read no more.
            ConverterStateError: it is closed.
        """
        reason = f"the call failed on the GPU: {reason_of(error)}"
        if self._strict or on_device:
            raise ConversionError(reason) from error
        feeds = {name: _on_host(value) for name, value in feeds.items()}
        if any(not isinstance(value, np.ndarray) for value in feeds.values()):
            raise ConversionError(f"{reason}; inputs on the device cannot be computed on the CPU instead") from error
        with self._lock:
            first = not self._failures[reason]
            self._failures[reason] += 1
            if self._closed:
                raise ConverterStateError("this function is closed: load the artifact again")
            if self._cpu is None:
                self._cpu = self._make()
            cpu = self._cpu
        # As text: a log record with the error itself would keep all memory of the call alive.
        details = "".join(traceback.format_exception(error))
        _LOG.log(logging.WARNING if first else logging.DEBUG, "%s\n%s", reason, details)
        return Execution(cpu.run(feeds).outputs, 0, {reason: self._nodes})

    def close(self) -> None:
        """Frees the session; harmless when repeated."""
        with self._lock:
            self._closed = True
            cpu, self._cpu = self._cpu, None
        if cpu is not None:
            cpu.close()


def _on_host(value: Any) -> Any:
    """What an executor of ours left on the device as an array, if the device still gives it; else the value itself."""
    if not isinstance(value, DeviceTensor):
        return value
    try:
        return value.numpy()
    except CudaError as error:
        _LOG.debug("a tensor on the device cannot be read any more: %s", error)
        return value
