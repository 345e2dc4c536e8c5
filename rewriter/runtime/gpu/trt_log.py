"""TensorRT's log: it reports failures as None or False and explains them there only."""

from __future__ import annotations

import collections
import logging
import re
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from rewriter.backends import text
from rewriter.errors import ConversionError, DeviceMemoryError, EngineError

_LOG = logging.getLogger(__name__)
#: CUDA's words in a line about it: "... Cuda Runtime (In f at x.cpp:25 (cudaError 35: words))", "Cuda Runtime (words)".
#: TensorRT-RTX 1.4 only says where: "Cuda Runtime (In f at x.cpp:25)".
_CUDA = re.compile(r"cudaError \d+: ([^()]+)|Cuda Runtime \((?!In )([^()]+)|Cuda Runtime \(In (\w+) at [^(]*\)")
#: How a truncated engine is refused.
_CUT = "header.size == blobSize failed"
_ASSERTION = re.compile(r"^Serialization assertion .+? failed\.\s*(?=\S)")
_MEMORY = re.compile("out ?of ?memory|bad_alloc", re.IGNORECASE)
#: Error lines kept for the calls that are under way.
_KEPT = 256
#: TensorRT takes one logger per process and ignores every later one, so there is one for each module.
_LOGS: weakref.WeakKeyDictionary[Any, TrtLog] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


class TrtLog:
    """The last error lines of one TensorRT module; several threads may be in TensorRT at once.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.
    """

    def __init__(self, trt: Any) -> None:
        self._lines: collections.deque[tuple[int, int, str]] = collections.deque(maxlen=_KEPT)
        self.count = 0
        self.logger = _make_logger(trt, self._add)

    def _add(self, line: str) -> None:
        self.count += 1
        self._lines.append((self.count, threading.get_ident(), line))

    def since(self, mark: int) -> list[str]:
        """The lines that came after `count` was `mark`: those of this thread, or of all when it has none.

        TensorRT also logs from threads of its own, so no line of this thread does not mean that there is none for it.
        """
        recent = [(thread, line) for number, thread, line in tuple(self._lines) if number > mark]
        own = [line for thread, line in recent if thread == threading.get_ident()]
        return own or [line for _, line in recent]

    def error(self, mark: int, kind: type[EngineError], what: str) -> ConversionError:
        """The error for a call that failed.

        Args:
            mark: what `count` was before the call.
            kind: the class of the error, unless the log speaks of memory: then it is a `DeviceMemoryError`.
            what: the failure in our words; the log's words are put behind it.
        """
        lines = self.since(mark)
        message = f"{what}: {reason(lines)}"
        return DeviceMemoryError(message) if is_memory(lines) else kind(message)


def log_of(trt: Any) -> TrtLog:
    """The one log of a TensorRT module in this process."""
    with _LOCK:
        log = _LOGS.get(trt)
        if log is None:
            log = _LOGS[trt] = TrtLog(trt)
        return log


def is_memory(lines: Sequence[str]) -> bool:
    """True when the lines tell of memory that could not be had."""
    return text.classify(lines) in ("memory", "workspace") or any(_MEMORY.search(line) for line in lines)


def reason(lines: Sequence[str]) -> str:
    """The first line that tells something, in one sentence without TensorRT's source files.

    CUDA's own errors follow most others and explain none, so they count only when there is nothing else.
    """
    told = [words for words in (text.clean(line) for line in lines) if words]
    if told:
        return "the file is not whole" if _CUT in told[0] else _ASSERTION.sub("", told[0])
    found = [match for match in map(_CUDA.search, lines) if match]
    cuda = [match[1] or match[2] for match in found if match[1] or match[2]]
    cuda += [f"CUDA failed in {match[3]}" for match in found if match[3]]
    rest = [line.strip().splitlines()[0] for line in lines if line.strip()]
    return next(iter(cuda or rest), "TensorRT gave no reason")


def _make_logger(trt: Any, add: Any) -> Any:
    """A logger that hands error lines on; made here, for its base class belongs to the module."""
    severity = trt.ILogger.Severity
    kept = (severity.ERROR, severity.INTERNAL_ERROR)
    base = trt.ILogger  # not the module, which would keep itself alive in `_LOGS`

    class Collector(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 needs the explicit call

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:
                add(msg)
            else:
                _LOG.debug("TensorRT: %s", msg)

    return Collector()
