"""Progress of a conversion: plain events for programs, a bar for people at a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rewriter.errors import InvalidParameterError


@dataclasses.dataclass(frozen=True)
class ProgressEvent:
    """One step.

    Attributes:
        stage: "load", "passes", "support", "partition", "build", "splice", "save" ...
        done, total: steps done and steps in all; `done == total` ends the stage.
        detail: what is worked on ("TRTEngineOp_003: Building Engine").
        seconds: how long the stage took, in its last event only.
    """

    stage: str
    done: int
    total: int
    detail: str = ""
    seconds: float | None = None


#: Called with every event; returning False during "build" cancels the engine in work.
ProgressCallback = Callable[[ProgressEvent], "bool | None"]


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
        """Times the block under `name`; an exception leaves the stage without its closing event."""
        self.emit(ProgressEvent(name, 0, 1))
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Books a stage that was timed elsewhere."""
        self.timings[name] = self.timings.get(name, 0.0) + seconds
        self.emit(ProgressEvent(name, 1, 1, seconds=seconds))

    def emit(self, event: ProgressEvent) -> bool:
        """Passes one event on; False when the callback asked to cancel."""
        return self._callback is None or self._callback(event) is not False


class ProgressBar:
    """A transient progress bar on stderr (rich), for stages longer than a moment."""

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
        self._task: Any = None

    def __call__(self, event: ProgressEvent) -> bool:
        """Shows one event."""
        if event.seconds is not None:
            if self._task is not None:
                self._bar.stop()
                self._bar.remove_task(self._task)
                self._task = None
        elif self._task is None:
            self._task = self._bar.add_task(event.stage, total=event.total or None, detail=event.detail)
            self._bar.start()
        else:
            self._bar.update(
                self._task,
                description=event.stage,
                completed=event.done,
                total=event.total or None,
                detail=event.detail,
            )
        return True


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
