"""Several engines at the same time: each build in a thread of its own that waits for a child process."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from rewriter.backends.base import BuildFailure, BuiltEngine, Profile
from rewriter.building.jobs import JobLimits, check_jobs, default_jobs, job_limits
from rewriter.building.segment_builder import SegmentBuild, SegmentBuilder
from rewriter.errors import ConversionError
from rewriter.precision.lowering import Lowered
from rewriter.progress import EngineStep, ProgressCallback, ProgressEvent

__all__ = ["BuildProgress", "BuildTask", "check_jobs", "default_jobs", "run_builds"]

#: Called with events of the stage "build" that have an `engine`, by the thread that called `run_builds`; returning
#: False cancels that engine.
BuildProgress = ProgressCallback
#: Kinds of failure that may come of other builds on the same machine: a process without memory may be killed.
SHARED_FAILURES = ("crash", "memory")
#: Seconds between two looks at builds that are being ended: a child that was just starting is found by the next one.
_PATIENCE = 0.05
#: Seconds that this thread waits at once; where the system does not wake it, Ctrl-C is heard in between.
_DEAF = 0.5


@dataclasses.dataclass(frozen=True)
class BuildTask:
    """One engine to build.

    Attributes:
        label: what progress calls it, for example "TRTEngineOp_003".
        builder: what builds it; tasks may share one.
        lowered: the segment as TensorRT is to get it.
        profiles: what it is built for, or why it can have no profiles.
    """

    label: str
    builder: SegmentBuilder
    lowered: Lowered
    profiles: tuple[Profile, ...] | str


def run_builds(
    tasks: Iterable[BuildTask], jobs: int | None = None, progress: BuildProgress | None = None
) -> list[SegmentBuild]:
    """Builds engines, several at the same time where the backend can; nothing in what comes of it depends on `jobs`.

    Rules:
        1. A backend with an attribute `jobs`, as `PoolBackend` has it, builds so many engines at the same time; any
           other one. None means any number.
        2. Tasks of equal key and folder are built once, unless the first of them was cancelled.
        3. A failed or cancelled build is a result; the other builds go on.
        4. A build that crashed or ran out of memory beside others is built again alone, and that counts.
        5. An exception of a task ends the builds after it; those before it are finished, and the first exception in the
           order of the tasks is raised: the one that building them one by one raises.
        6. KeyboardInterrupt, and what `progress` raises, end all builds; their children are killed.
        7. When it returns or raises, none of its threads is left.

    Args:
        tasks: the engines to build.
        jobs: engines at the same time, at most; None: `default_jobs` of the backend. 1: no threads.
        progress: told of every step of every engine, and of its end.

    Returns:
        What became of each task, in the order of the tasks.

    Raises:
        InvalidParameterError: `jobs` is no integer of at least 1; or a target or level that TensorRT does not know.
        BackendError, MissingDependencyError: TensorRT cannot be run, or a file cannot be read or written.
    """
    check_jobs(jobs)
    display = _Display(tuple(tasks), progress)
    limits = job_limits([(task.builder.backend, _weight_bytes(task.lowered)) for task in display.tasks], jobs)
    most = min(limits.total, len(display.tasks))
    if most <= 1:
        return [_build(task, index, display) for index, task in enumerate(display.tasks)]
    return _Run(display, limits).results()


def _weight_bytes(lowered: Lowered) -> int:
    return sum(array.nbytes for array in lowered.segment.model.weights.values())


class _Display:
    """Makes events of what the builds tell.

    Attributes:
        tasks: the tasks.
        finished: how many have come to their end.
    """

    def __init__(self, tasks: Sequence[BuildTask], progress: BuildProgress | None) -> None:
        self.tasks = tasks
        self.finished = 0
        self._progress = progress

    @property
    def wanted(self) -> bool:
        """True when somebody listens."""
        return self._progress is not None

    def step(self, index: int, phase: str, done: int, steps: int) -> bool:
        """Tells one step of one engine; False cancels it."""
        return self._tell(index, phase, done, max(steps, 1), ended=False)

    def end(self, index: int, build: SegmentBuild) -> SegmentBuild:
        """Tells that one engine has come to its end."""
        self.finished += 1
        outcome = build.outcome
        words = "built" if isinstance(outcome, BuiltEngine) else f"no engine ({outcome.kind})"
        self._tell(index, words, 1, 1, ended=True)
        return build

    def _tell(self, index: int, words: str, done: int, steps: int, *, ended: bool) -> bool:
        if self._progress is None:
            return True
        label, total = self.tasks[index].label, len(self.tasks)
        engine = EngineStep(label, index, total, self.finished, ended)
        event = ProgressEvent("build", done, steps, f"{label} ({index + 1}/{total}): {words}", engine=engine)
        return self._progress(event) is not False


def _build(task: BuildTask, index: int, display: _Display) -> SegmentBuild:
    """Builds one engine in this thread."""

    def step(phase: str, done: int, steps: int) -> bool:
        return display.step(index, phase, done, steps)

    build = task.builder.build(task.lowered, task.profiles, step if display.wanted else None)
    return display.end(index, build)


@dataclasses.dataclass(frozen=True)
class _Step:
    """What a thread tells while it builds; it waits for the answer, so that a cancel comes at the same step as alone.

    Attributes:
        index: of the task.
        step: phase, steps done, steps in all.
        answer: False cancels.
    """

    index: int
    step: tuple[str, int, int]
    answer: queue.SimpleQueue[bool]


@dataclasses.dataclass(frozen=True)
class _End:
    """The last that a thread tells."""

    index: int
    result: SegmentBuild | BaseException


class _Run:
    """Builds tasks in threads; one object serves one call."""

    def __init__(self, display: _Display, limits: JobLimits) -> None:
        self._display = display
        self._tasks = display.tasks
        self._limits = limits
        self._inbox: queue.SimpleQueue[_Step | _End] = queue.SimpleQueue()
        #: Indices of tasks that are not begun, in order, and the threads of those in work.
        self._waiting: list[int] = []
        self._threads: dict[int, threading.Thread] = {}
        #: Tasks in work that had others beside them, and those that are to be built again, alone.
        self._accompanied: set[int] = set()
        self._again: list[int] = []
        self._keys: dict[int, tuple[Path, str]] = {}
        self._results: dict[int, SegmentBuild] = {}
        self._errors: dict[int, BaseException] = {}
        #: Tasks after this one are to end.
        self._last = len(self._tasks)

    def results(self) -> list[SegmentBuild]:
        """Builds all of them."""
        try:
            self._prepare()
            while self._begin() or self._threads:
                self._take(self._next())
        except BaseException:
            self._end_all()
            raise
        if self._errors:
            raise self._errors[min(self._errors)]
        return [self._results[index] for index in range(len(self._tasks))]

    def _prepare(self) -> None:
        """Finds the keys, and takes what needs no build."""
        for index, task in enumerate(self._tasks):
            try:
                known = task.builder.known(task.lowered, task.profiles)
                if known is None and not isinstance(task.profiles, str):
                    key = task.builder.key(task.lowered, task.profiles)
                    self._keys[index] = (task.builder.scratch, key)
            except (ConversionError, OSError) as error:  # as in a build: what comes before it is built first
                self._take(_End(index, error))
                return
            if known is None:
                self._waiting.append(index)
            else:
                self._take(_End(index, known))

    def _begin(self) -> bool:
        """Begins what can be begun; True when anything was."""
        self._waiting = [index for index in self._waiting if index <= self._last]
        self._again = [index for index in self._again if index <= self._last]
        ready = False
        for index in tuple(self._waiting):
            if self._may_begin(index):
                self._waiting.remove(index)
                self._start(index)
                ready = True
        if not self._threads and self._again:
            self._start(self._again.pop(0))
            ready = True
        return ready

    def _may_begin(self, index: int) -> bool:
        """False while all children are in work, or the same engine is, or one that is to be alone."""
        backend = self._tasks[index].builder.backend
        beside = [i for i in self._threads if self._tasks[i].builder.backend is backend]
        if len(self._threads) >= self._limits.total or len(beside) >= self._limits.of(backend):
            return False
        return all(self._keys[i] != self._keys[index] for i in (*self._threads, *self._again))

    def _start(self, index: int) -> None:
        name = f"trt-rewriter-build-{self._tasks[index].label}"
        thread = threading.Thread(target=self._work, args=(index,), name=name, daemon=True)
        self._threads[index] = thread
        if len(self._threads) > 1:
            self._accompanied.update(self._threads)
        thread.start()

    def _next(self) -> _Step | _End:
        """What a thread tells next; ends the builds that are to end meanwhile."""
        while True:
            ending = [index for index in self._threads if index > self._last]
            for index in ending:
                self._interrupt(index)
            try:
                return self._inbox.get(timeout=_PATIENCE if ending else _DEAF)
            except queue.Empty:
                continue

    def _take(self, message: _Step | _End) -> None:
        index = message.index
        if isinstance(message, _Step):
            answer = False
            try:
                answer = index <= self._last and self._display.step(index, *message.step)
            finally:
                message.answer.put(answer)
            return
        if index in self._threads:
            self._threads.pop(index).join()
        if index > self._last:
            return
        if isinstance(message.result, BaseException):
            self._errors[index] = message.result
            self._last = index
        elif index in self._accompanied and self._suspect(message.result):
            self._accompanied.remove(index)
            self._tasks[index].builder.forget(message.result.key)
            self._again.append(index)
            self._again.sort()
        else:
            self._results[index] = self._display.end(index, message.result)

    @staticmethod
    def _suspect(build: SegmentBuild) -> bool:
        """True for a failure that builds at the same time may have brought about."""
        return isinstance(build.outcome, BuildFailure) and build.outcome.kind in SHARED_FAILURES

    def _end_all(self) -> None:
        """Ends every build, whatever was told of it, and waits for the threads."""
        self._last = -1
        while alive := {index: thread for index, thread in self._threads.items() if thread.is_alive()}:
            for index in alive:
                self._interrupt(index)
            next(iter(alive.values())).join(_PATIENCE)

    def _interrupt(self, index: int) -> None:
        """Kills the child that builds this task; of a backend that cannot, the next step ends the build."""
        backend, thread = self._tasks[index].builder.backend, self._threads[index]
        interrupt = getattr(backend, "interrupt", None)
        if interrupt is not None and thread.ident is not None:
            interrupt(thread.ident)

    def _work(self, index: int) -> None:
        """Builds one engine; runs in a thread of its own."""
        task = self._tasks[index]

        def step(phase: str, done: int, steps: int) -> bool:
            answer: queue.SimpleQueue[bool] = queue.SimpleQueue()
            if index <= self._last:
                self._inbox.put(_Step(index, (phase, done, steps), answer))
            while index <= self._last:
                with contextlib.suppress(queue.Empty):
                    return answer.get(timeout=_PATIENCE)
            return False

        result: SegmentBuild | BaseException
        try:
            result = task.builder.build(task.lowered, task.profiles, step)
        except BaseException as error:  # noqa: BLE001 -- the thread that called for it raises it
            result = error
        self._inbox.put(_End(index, result))
