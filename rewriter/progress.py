"""Progress of a conversion: plain events for programs, a bar for people at a terminal."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rewriter.errors import InvalidParameterError


@dataclasses.dataclass(frozen=True)
class EngineStep:
    """Which of several engines an event speaks of; those that are built side by side take turns.

    Attributes:
        name: the engine ("TRTEngineOp_003").
        index: its place among them, from 0.
        total: how many there are.
        finished: how many have come to their end, with an engine or without.
        ended: True in the last event of this engine; False as an answer to it has no effect.
    """

    name: str
    index: int
    total: int
    finished: int = 0
    ended: bool = False


@dataclasses.dataclass(frozen=True)
class ProgressEvent:
    """One step.

    Attributes:
        stage: "load", "passes", "support", "partition", "build", "splice", "save" ...
        done, total: steps done and steps in all; `done == total` ends the stage.
        detail: what is worked on ("TRTEngineOp_003: Building Engine").
        seconds: how long the stage took, in its last event only.
        engine: the engine that `done`, `total` and `detail` are about; None for other work.
    """

    stage: str
    done: int
    total: int
    detail: str = ""
    seconds: float | None = None
    engine: EngineStep | None = None


#: Called with every event, by the thread that called for the work; returning False during "build" cancels the engine
#: that the event is about, and no other.
ProgressCallback = Callable[[ProgressEvent], "bool | None"]


class ProgressDisplay(abc.ABC):
    """A callback that holds something which must be given back when the work ends with an exception: the terminal."""

    @abc.abstractmethod
    def __call__(self, event: ProgressEvent) -> bool:
        """Shows one event."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Gives back what it holds; harmless when repeated. It may be called again with events of other work."""


class Stages:
    """Times named stages and passes events on.

    Attributes:
        timings: stage -> seconds, summed over repeats, in order of first appearance.
    """

    def __init__(self, callback: ProgressCallback | None = None) -> None:
        self.timings: dict[str, float] = {}
        self._callback = callback

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the block under `name`; after an exception there is no closing event, and a display is stopped."""
        try:
            self.emit(ProgressEvent(name, 0, 1))
            start = time.perf_counter()
            yield
            self.add(name, time.perf_counter() - start)
        except BaseException:
            if isinstance(self._callback, ProgressDisplay):
                self._callback.stop()
            raise

    def add(self, name: str, seconds: float) -> None:
        """Books a stage that was timed elsewhere."""
        self.timings[name] = self.timings.get(name, 0.0) + seconds
        self.emit(ProgressEvent(name, 1, 1, seconds=seconds))

    def emit(self, event: ProgressEvent) -> bool:
        """Passes one event on; False when the callback asked to cancel."""
        return self._callback is None or self._callback(event) is not False


class ProgressBar(ProgressDisplay):
    """A transient progress bar on stderr (rich), for stages longer than a moment.

    While engines are built it counts them, and has a line below for each engine in work.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
        )
        self._bar: Any = Progress(*columns, console=Console(stderr=True), transient=True)
        #: The stage's line under None, and one for each engine in work under its index.
        self._lines: dict[int | None, Any] = {}

    def __call__(self, event: ProgressEvent) -> bool:
        """Shows one event."""
        engine = event.engine
        if event.seconds is not None:
            self.stop()
        elif engine is None:
            self._show(None, event.stage, event.done, event.total, event.detail)
        else:
            count = f"{engine.finished} of {engine.total} engine{'s' * (engine.total != 1)}"
            self._show(None, event.stage, engine.finished, engine.total, count)
            if engine.ended:
                self._remove(engine.index)
            else:
                phase = event.detail.rpartition(": ")[2]
                self._show(engine.index, f"  {engine.name}", event.done, event.total, phase)
        return True

    def stop(self) -> None:
        """Takes the bar away."""
        if self._lines:
            self._bar.stop()
        for key in tuple(self._lines):
            self._remove(key)

    def _show(self, key: int | None, description: str, done: int, total: int, detail: str) -> None:
        """Adds or changes one line."""
        if key in self._lines:
            self._bar.update(
                self._lines[key], description=description, completed=done, total=total or None, detail=detail
            )
            return
        self._lines[key] = self._bar.add_task(description, total=total or None, completed=done, detail=detail)
        if len(self._lines) == 1:
            self._bar.start()

    def _remove(self, key: int | None) -> None:
        if key in self._lines:
            self._bar.remove_task(self._lines.pop(key))


def resolve(progress: ProgressCallback | bool | None) -> ProgressCallback | None:
    """What the `progress` argument means: a callback as given; True a bar; None a bar at a terminal; False nothing.

    Raises:
        InvalidParameterError: anything else.
    """
    if progress is None:
        progress = sys.stderr.isatty()
    if not isinstance(progress, bool) and not callable(progress):
        raise InvalidParameterError(f"progress must be True, False, None or a function, not {progress!r}")
    if progress is True:
        return ProgressBar()
    return progress or None
