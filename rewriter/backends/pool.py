"""Several child processes behind one backend: threads that build at the same time do not wait for each other."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from passes.model import Model
from rewriter.backends.base import BuildFailure, BuildOptions, BuiltEngine, ParserError, Profile, Progress
from rewriter.backends.client import NotStartedError, ProcessBackend, Timeouts
from rewriter.backends.flavours import Flavour
from rewriter.backends.spool import WeightPlaces
from rewriter.errors import BackendError

_LOG = logging.getLogger(__name__)
#: What the start of a child takes: 0.12 s measured with TensorRT-RTX 1.7.
START_SECONDS = 0.15


class PoolBackend:
    """One TensorRT package in up to `jobs` child processes; implements `rewriter.backends.base.Backend`.

    Rules:
        1. A build takes a child that is free, or waits for one. Another one is started when builds have waited for as
           long as a start takes, so that engines that are built in no time cost no start. Who builds one engine at a
           time has one child, as with a `ProcessBackend`.
        2. Everything else (parsing, the version) is asked of the first child.
        3. A crash or hang ends its own child alone, which the next request starts again.
        4. A further child that does not start (there may be no memory for it) is given up, and its build waits for
           another one; from then on there are no more children than there were.
        5. The process may be forked: the copy starts its own children.

    Args:
        flavour: the package to use.
        targets: as for `ProcessBackend`.
        jobs: children at the same time, at most; None: as many as builds are asked for at the same time.
        timeouts: as for `ProcessBackend`.
        command: as for `ProcessBackend`.
        patience: seconds that builds wait, in all, before another child is started for them.

    Raises:
        InvalidParameterError: a target is not a compute capability, or `jobs` no integer of at least 1.
    """

    def __init__(
        self,
        flavour: Flavour,
        targets: Iterable[str] = (),
        *,
        jobs: int | None = None,
        timeouts: Timeouts | None = None,
        command: Sequence[str] | None = None,
        patience: float = START_SECONDS,
    ) -> None:
        from rewriter.params import check_count

        self._jobs = check_count("jobs", jobs)
        self._flavour = flavour
        self._arguments: dict[str, Any] = {"targets": tuple(targets), "timeouts": timeouts, "command": command}
        self._patience = patience
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        """Begins with one child that is not started yet."""
        self._owner = os.getpid()
        self._changed = threading.Condition()
        self._places = _SharedPlaces()
        self._first = self._opened()
        self._children = [self._first]
        self._free = [self._first]
        #: Seconds that builds have waited since the last child was opened.
        self._waited = 0.0

    @property
    def flavour(self) -> str:
        """The package: "tensorrt_rtx" or "tensorrt"."""
        return self._flavour.name

    @property
    def jobs(self) -> int | None:
        """Children at the same time, at most; None for any number."""
        return self._jobs

    @property
    def version(self) -> str:
        """The package's version; starts the first child.

        Raises:
            MissingDependencyError, BackendError: there is no such package, or it cannot be loaded.
        """
        return self._primary().version

    @property
    def known_targets(self) -> tuple[str, ...]:
        """Compute capabilities that the installed version can build for; starts the first child."""
        return self._primary().known_targets

    @property
    def default_targets(self) -> tuple[str, ...]:
        """Those given to the constructor, else the package's default; starts the first child.

        Raises:
            InvalidParameterError: a target that the installed version does not know.
        """
        return self._primary().default_targets

    def start(self) -> None:
        """Has the first child begin to start, and does not wait."""
        self._primary().start()

    def parse(self, model: Model) -> tuple[ParserError, ...]:
        """All errors of parsing `model` as it is; a crash or hang is one error of stage "crash".

        Raises:
            MissingDependencyError, BackendError: TensorRT cannot be loaded, or a weight cannot be handed over.
        """
        return self._primary().parse(model)

    def build(
        self,
        model: Model,
        profiles: tuple[Profile, ...],
        options: BuildOptions,
        output: Path,
        progress: Progress | None = None,
    ) -> BuiltEngine | BuildFailure:
        """Builds `model` in a child that is free and writes the engine to `output`; see `ProcessBackend.build`.

        Raises:
            InvalidParameterError: a target that the installed version does not know, or an optimization level.
            MissingDependencyError, BackendError: TensorRT cannot be loaded, or a file cannot be read or written.
        """
        while True:
            with self._borrowed() as child:
                try:
                    return child.build(model, profiles, options, output, progress)
                except NotStartedError as error:
                    if child is self._first:
                        raise
                    self._give_up(child, error)

    def interrupt(self, thread: int) -> None:
        """Ends the build that is in work for another thread, which is cancelled then; the others go on.

        Args:
            thread: its `threading.get_ident()`.
        """
        for child in tuple(self._children):
            child.interrupt(thread)

    def trim(self) -> None:
        """Ends the children that are idle, but for the first: what TensorRT keeps of a build goes with them."""
        self._primary()
        with self._changed:
            idle = [child for child in self._free if child is not self._first]
            self._free = [child for child in self._free if child is self._first]
            self._children = [child for child in self._children if child not in idle]
        for child in idle:
            child.close()

    def close(self) -> None:
        """Ends the child processes, each when its build has ended; harmless when repeated, final."""
        self._after_fork()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            children = tuple(self._children)
        for child in children:
            child.close()
        self._places.close()

    def __enter__(self) -> PoolBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> ProcessBackend:
        return ProcessBackend(self._flavour, **self._arguments, places=self._places)

    def _after_fork(self) -> None:
        """In a forked copy nobody gives back the children that were in use, nor a lock that was held."""
        if self._owner != os.getpid():
            self._reset()

    def _primary(self) -> ProcessBackend:
        self._after_fork()
        if self._closed:
            raise BackendError(f"the {self.flavour} backend is closed; open a new one")
        return self._first

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[ProcessBackend]:
        """A child that nobody else builds with meanwhile."""
        self._primary()
        changed = self._changed
        with changed:
            child = self._claimed()
        try:
            yield child
        finally:
            with changed:
                if child not in self._children:
                    pass  # given up
                elif child is self._first:  # in front: who builds one engine at a time always has that one
                    self._free.insert(0, child)
                else:
                    self._free.append(child)
                changed.notify()

    def _give_up(self, child: ProcessBackend, error: NotStartedError) -> None:
        """Goes on without a child that is in use here, and without any further one."""
        with self._changed:
            self._children.remove(child)
            self._jobs = len(self._children)
        child.close()
        _LOG.warning("%s: engines are built by %d process(es) from now on: %s", self.flavour, self._jobs, error)

    def _claimed(self) -> ProcessBackend:
        """A child that is free now, or a new one; called with the lock held."""
        while not self._free:
            if self._jobs is not None and len(self._children) >= self._jobs:
                self._changed.wait()
            elif self._waited < self._patience:
                begun = time.monotonic()
                self._changed.wait(self._patience - self._waited)
                self._waited += time.monotonic() - begun
            else:
                self._waited = 0.0
                self._children.append(self._opened())
                return self._children[-1]
            self._primary()  # it may be closed by now
        return self._free.pop(0)


class _SharedPlaces(WeightPlaces):
    """Places of weights for several threads: what one child was told of is not written again for another."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def of(self, model: Model) -> list[dict[str, Any]]:
        with self._lock:
            return super().of(model)
