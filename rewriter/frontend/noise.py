"""TensorFlow and its converters are talkative; what they say goes to this package's debug log."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import warnings
from collections.abc import Iterator

_LOG = logging.getLogger(__name__)
_LOGGERS = ("tensorflow", "tf2onnx", "absl")
#: tf2onnx keeps state in module globals, and logging and warning filters are global too.
LOCK = threading.RLock()
_FILTERS = threading.Lock()


class _Forward(logging.Handler):
    """Hands records on at DEBUG, with the name of the logger that they come from."""

    def emit(self, record: logging.LogRecord) -> None:
        _LOG.debug("%s %s: %s", record.name, record.levelname, record.getMessage())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Sends log records and Python warnings of TensorFlow and tf2onnx to the debug log while the block runs.

    Handlers and propagation of their loggers are put back afterwards; levels are not touched. One thread at a time.
    """
    with LOCK, contextlib.ExitStack() as stack:
        handler = _Forward()
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            stack.callback(_restore, logger, logger.handlers[:], logger.propagate)
            logger.handlers[:] = [handler]
            logger.propagate = False
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


class _OfThread(logging.Filter):
    """Drops the records of the thread that made it, which are handed on at DEBUG; others pass."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self._forward = _Forward()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread:
            return True
        self._forward.emit(record)
        return False


@contextlib.contextmanager
def quiet_thread() -> Iterator[None]:
    """Sends what TensorFlow logs in this thread to the debug log while the block runs.

    Nobody waits for anybody, unlike in `quiet`: this is for calls of a converted model, which must not wait for the
    conversion of another. Python's warnings are left alone, for their filters are one for all threads.
    """
    own = _OfThread()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    with _FILTERS:
        for logger in loggers:
            logger.filters = [*logger.filters, own]  # a new list: another thread may be going through the old one
    try:
        yield
    finally:
        with _FILTERS:
            for logger in loggers:
                logger.filters = [known for known in logger.filters if known is not own]


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Keeps TensorFlow's C++ start-up notes off the terminal during its first import; a level the user set stays.

    And lets it give memory back: by default TensorFlow for x86 keeps all that it ever took for tensors, so a model that
    is not needed any more would go on to fill it. That switch is read at the first tensor, so it is left in place; it
    does nothing where TensorFlow is imported already, and a value that the user set stays.
    """
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    name = "TF_CPP_MIN_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "2"
    try:
        yield
    finally:
        os.environ.pop(name, None)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Stops Python's cyclic garbage collector for the block, unless it is off anyway.

    Importing TensorFlow and building graphs makes millions of long-lived objects, which the collector walks again
    and again: about a fifth of the time of an export.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _restore(logger: logging.Logger, handlers: list[logging.Handler], propagate: bool) -> None:
    logger.handlers[:] = handlers
    logger.propagate = propagate
