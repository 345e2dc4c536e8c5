"""Stages on the screen: one line a finished stage, a bar meanwhile."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from rewriter.progress import ProgressBar, ProgressDisplay, ProgressEvent
from rewriter.runtime.other_errors import import_failure

#: stage -> what a reader should know about it.
STAGE_WORDS = {
    "load": "load the model",
    "reference": "run it in TensorFlow on samples",
    "freeze": "freeze variables to constants",
    "export": "export to ONNX",
    "verify": "compare ONNX with TensorFlow",
    "passes": "clean, fold, infer shapes, legalise",
    "support": "ask TensorRT's parser about every node",
    "partition": "cut into segments, check each one",
    "calibration": "find the ranges of tensors on sample inputs",
    "accuracy": "find what must keep its precision",
    "build": "compile the engines with TensorRT",
    "save": "splice and save",
    "read": "read the artifact",
    "add": "add the engines to it",
}


class StageScreen(ProgressDisplay):
    """A progress callback that prints each stage as it ends, with its time.

    Args:
        console: where to.
        meanwhile: called once, in a thread of its own, when TensorRT has begun to build: this process only waits then.
    """

    def __init__(self, console: Console, meanwhile: Callable[[], object] | None = None) -> None:
        self._console = console
        self._meanwhile = meanwhile
        self._bar = ProgressBar() if console.is_terminal else None

    def __call__(self, event: ProgressEvent) -> bool:
        """Shows one event."""
        if self._meanwhile is not None and event.stage == "build" and event.detail:
            threading.Thread(target=self._meanwhile).start()
            self._meanwhile = None
        if self._bar is not None:
            self._bar(event)
        if event.seconds is not None:
            words = STAGE_WORDS.get(event.stage, "")
            self._console.print(f"  {event.stage:<11} {event.seconds:7.2f} s   {words}")
        return True

    def stop(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()


def title(console: Console, text: str) -> None:
    """A headline between two parts of the screen."""
    console.print()
    console.print(text, style="bold")


def import_tensorflow(purpose: str) -> Any:
    """The tensorflow module, started with its C++ start-up notes kept off the screen.

    For a process that runs one command: the million objects of TensorFlow's modules are never walked by the garbage
    collector, neither while they are made nor later.

    Raises:
        MissingDependencyError: it is not installed.
    """
    from rewriter.frontend.noise import collector_paused

    first = "tensorflow" not in sys.modules
    try:
        with _quiet_stderr(), collector_paused():
            import tensorflow as tf

            tf.constant(0)
            if first:
                gc.freeze()
    except ImportError as error:
        raise import_failure(error, "tensorflow", "TensorFlow", "tf", purpose) from error
    return tf


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Holds back what C++ code writes to stderr; it is shown after all when the block fails."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
