"""A backend whose TensorRT runs in a child process: a crash there is an answer here."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from passes.model import Model
from rewriter.backends.base import BuildFailure, BuildOptions, BuiltEngine, ParserError, Profile, Progress
from rewriter.backends.flavours import Flavour, normalize_target
from rewriter.backends.frames import Header
from rewriter.backends.process import Child, ChildDied
from rewriter.backends.spool import WeightPlaces
from rewriter.errors import BackendError, InvalidParameterError, missing_dependency

_LOG = logging.getLogger(__name__)
#: The reason of a build that was cancelled.
CANCELLED = "the build was cancelled"
#: Runs the worker with this process's search path. The packages around it are made bare, without running their
#: `__init__`, so that the child imports nothing but numpy and TensorRT.
_BOOT = """
import json, sys, types
path, packages = json.loads(sys.argv.pop(1))
sys.path[:] = path
for name, folder in packages.items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from rewriter.backends.worker import main
sys.exit(main())
"""


@dataclasses.dataclass(frozen=True)
class Timeouts:
    """Seconds without a sign of life after which the child counts as hung.

    Attributes:
        start: until TensorRT is imported.
        parse: of a parse, plus `parse_per_node` for every node of the model.
        build: between two signs of progress of a build.
    """

    start: float = 300.0
    parse: float = 60.0
    parse_per_node: float = 0.02
    build: float = 3600.0


class NotStartedError(BackendError):
    """The child did not come to life: there is no memory for it, for example."""


class ProcessBackend:
    """TensorRT in a child process; implements `rewriter.backends.base.Backend`.

    The child starts with the first request (or `start()`), lives until `close()`, and is started again after a crash.
    Calls from several threads are served one after another. The process may be forked: the copy starts its own child.

    Args:
        flavour: the package to use.
        targets: compute capabilities to build for ("SM89", "sm89" or "8.9"); () for the package's default.
        timeouts: when a silent child counts as hung.
        command: the child's command line; default: this Python with `rewriter.backends.worker`.
        places: where weights that are in no file are written, when others use it too; whoever made it closes it.

    Raises:
        InvalidParameterError: a target is not a compute capability.
    """

    def __init__(
        self,
        flavour: Flavour,
        targets: Iterable[str] = (),
        *,
        timeouts: Timeouts | None = None,
        command: Sequence[str] | None = None,
        places: WeightPlaces | None = None,
    ) -> None:
        self._flavour = flavour
        self._targets = tuple(dict.fromkeys(normalize_target(t) for t in targets))
        self._timeouts = timeouts or Timeouts()
        self._command = tuple(command) if command is not None else _worker_command(flavour)
        self._lock = threading.RLock()
        self._child: Child | None = None
        #: Begun by `start()`, and not heard of yet.
        self._begun: Child | None = None
        self._finalizer: weakref.finalize[..., ProcessBackend] | None = None
        self._info: Header | None = None
        self._owns_places = places is None
        self._places = WeightPlaces() if places is None else places
        self._numbers = itertools.count(1)
        self._closed = False
        self._service = _Service()

    @property
    def flavour(self) -> str:
        """The package: "tensorrt_rtx" or "tensorrt"."""
        return self._flavour.name

    @property
    def version(self) -> str:
        """The package's version, as the child reports it; starts the child.

        Raises:
            MissingDependencyError, BackendError: there is no such package, or it cannot be loaded.
        """
        return str(self._get_info()["version"])

    @property
    def known_targets(self) -> tuple[str, ...]:
        """Compute capabilities that the installed version can build for; starts the child."""
        return tuple(self._get_info()["targets"])

    @property
    def default_targets(self) -> tuple[str, ...]:
        """Those given to the constructor, else the package's default; starts the child.

        Raises:
            InvalidParameterError: a target that the installed version does not know.
        """
        known = self.known_targets
        return self._flavour.check_targets(self._targets, known) or self._flavour.default_targets(known)

    def start(self) -> None:
        """Has the child begin to start, and does not wait: TensorRT is imported there while other work goes on here.

        Harmless when it runs already. What goes wrong is told by the first request.
        """
        with self._lock:
            if self._closed or self._begun is not None or self._child is not None:
                return
            with contextlib.suppress(OSError):
                self._begun = self._spawned()

    def parse(self, model: Model) -> tuple[ParserError, ...]:
        """All errors of parsing `model` as it is; a crash or hang is one error of stage "crash".

        Raises:
            MissingDependencyError, BackendError: TensorRT cannot be loaded, or a weight cannot be handed over.
        """
        timeout = self._timeouts.parse + self._timeouts.parse_per_node * len(model.proto.graph.node)
        with self._lock, self._service:
            try:
                answer = self._request({"command": "parse"}, model, timeout)
            except ChildDied as death:
                message = f"TensorRT's parser did not survive this model: {death}"
                return (ParserError(-1, "", "", "CRASH", message, "crash"),)
        return tuple(ParserError(**e) for e in answer["errors"])

    def build(
        self,
        model: Model,
        profiles: tuple[Profile, ...],
        options: BuildOptions,
        output: Path,
        progress: Progress | None = None,
    ) -> BuiltEngine | BuildFailure:
        """Builds `model` and writes the engine to `output`; a crash or hang is a failure of kind "crash".

        Raises:
            InvalidParameterError: a target that the installed version does not know, or an optimization level.
            MissingDependencyError, BackendError: TensorRT cannot be loaded, or a file cannot be read or written.
        """
        level = options.optimization_level
        if level is not None and not 0 <= level <= 5:
            raise InvalidParameterError(f"optimization_level={level}: it is one of 0, 1, 2, 3, 4, 5")
        header = {
            "command": "build",
            "profiles": [{name: dataclasses.asdict(p) for name, p in profile.items()} for profile in profiles],
            "output": str(Path(output).resolve()),
            "progress": True,
        }
        watch = _Watch(progress)
        with self._lock, self._service:
            try:
                targets = self._flavour.check_targets(options.targets, self.known_targets) or self.default_targets
                header["options"] = {**dataclasses.asdict(options), "targets": list(targets)}
                answer = self._request(header, model, self._timeouts.build, watch)
            except (ChildDied, NotStartedError) as death:
                if self._service.interrupted:
                    return BuildFailure("cancelled", CANCELLED)
                if isinstance(death, NotStartedError):
                    raise
                return BuildFailure("crash", f"TensorRT's builder did not survive this model: {death}")
        if watch.cancelled:  # a small engine may have been finished before the child heard of it
            Path(output).unlink(missing_ok=True)
            return BuildFailure("cancelled", CANCELLED)
        if "failure" in answer:
            failure = answer["failure"]
            return BuildFailure(failure["kind"], failure["reason"], tuple(failure["log"]))
        return BuiltEngine(**{**answer["engine"], "path": Path(output)})

    def interrupt(self, thread: int) -> None:
        """Ends what is in work for another thread, by killing the child; the next request starts a new one.

        A build ends as cancelled then. Harmless when nothing is in work for that thread.

        Args:
            thread: its `threading.get_ident()`.
        """
        self._service.interrupt(thread)

    def close(self) -> None:
        """Ends the child process; harmless when repeated, final."""
        with self._lock:
            self._closed = True
            self._child = self._begun = None
            if self._finalizer is not None:
                self._finalizer()  # closes the child, once
            if self._owns_places:
                self._places.close()

    def __enter__(self) -> ProcessBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get_info(self) -> Header:
        if self._info is not None:  # known for good, also while a build of another thread holds the lock
            return self._info
        with self._lock:
            if self._info is None:
                self._started()
            assert self._info is not None  # noqa: S101 -- _started() sets it or raises
            return self._info

    def _started(self) -> Child:
        """The running child; starts one when there is none."""
        if self._closed:
            raise BackendError(f"the {self.flavour} backend is closed; open a new one")
        child = self._child
        if child is not None and child.owner == os.getpid() and child.alive:
            return child
        if child is not None and child.owner == os.getpid():
            child.kill()  # it died between two requests: reap it
        begun, self._child, self._begun = self._begun, None, None
        try:
            child = begun if begun is not None and begun.owner == os.getpid() else self._spawned()
        except OSError as error:
            raise NotStartedError(f"the process for {self.flavour} cannot be started: {error}") from error
        try:
            hello, _ = child.receive(self._timeouts.start)
        except ChildDied as death:
            raise NotStartedError(f"the process for {self.flavour} did not start: {death}") from death
        except BaseException:
            child.kill()
            raise
        if hello.get("event") != "ready":
            child.close()
            raise self._import_failure(str(hello.get("reason", hello)))
        _LOG.debug("started %s %s in a process of its own", self.flavour, hello["version"])
        self._child, self._info = child, hello
        return child

    def _spawned(self) -> Child:
        """A child that has begun to start.

        Raises:
            OSError: it cannot be started.
        """
        child = Child(self._command)
        # The child's reader threads keep it alive: a backend that is dropped without close() must end it.
        self._finalizer = weakref.finalize(self, child.close)
        self._service.child = child
        return child

    def _import_failure(self, reason: str) -> Exception:
        if importlib.util.find_spec(self._flavour.module) is None:
            return missing_dependency(self.flavour, self._flavour.extra, "building engines")
        return BackendError(f"{self.flavour} is installed but cannot be loaded: {reason}")

    def _request(self, header: Header, model: Model, timeout: float, progress: Progress | None = None) -> Header:
        """Sends one request and waits for its answer, at most `timeout` seconds between two signs of life.

        Raises:
            ChildDied: the child crashed or hung.
            BackendError: the child could not do what was asked, for a reason that says nothing about the model.
        """
        child = self._started()
        number = next(self._numbers)
        try:
            places = self._places.of(model)
        except OSError as error:
            raise BackendError(f"the weights cannot be written for TensorRT: {error}") from error
        try:
            child.send({**header, "id": number, "weights": places}, model.proto.SerializeToString())
            return self._await(child, number, timeout, progress)
        except BaseException as error:
            if not isinstance(error, BackendError):  # nothing is known about the child's state any more
                child.kill()
                self._child = None
            raise

    def _await(self, child: Child, number: int, timeout: float, progress: Progress | None) -> Header:
        cancelled = False
        while True:
            answer, _ = child.receive(timeout)
            if answer.get("id") != number:
                continue
            if answer.get("event") == "progress":
                phase, done, total = answer["step"]
                if progress is not None and not cancelled and not progress(phase, done, total):
                    cancelled = True
                    child.send({"command": "cancel", "id": number})
                continue
            if "error" in answer:
                raise BackendError(f"{self.flavour}: {answer['error']}")
            return answer


class _Service:
    """Which thread the child works for, so that another thread can end that work and no other.

    Attributes:
        child: the child that was started last; it may still be starting.
        interrupted: True when the work that is going on, or was last, has been ended by another thread.
    """

    def __init__(self) -> None:
        self.child: Child | None = None
        self.interrupted = False
        self._lock = threading.Lock()
        self._thread: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._thread, self.interrupted = threading.get_ident(), False

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._thread = None

    def interrupt(self, thread: int) -> None:
        """Kills the child if it works for `thread`, and waits until it is dead: nobody is to be given a dying one."""
        with self._lock:
            if self._thread == thread and self.child is not None and self.child.owner == os.getpid():
                self.interrupted = True
                self.child.interrupt()


class _Watch:
    """A progress callback that remembers whether it was told to cancel."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self.cancelled = False

    def __call__(self, phase: str, done: int, total: int) -> bool:
        if self._progress is not None and not self._progress(phase, done, total):
            self.cancelled = True
        return not self.cancelled


def _worker_command(flavour: Flavour) -> tuple[str, ...]:
    """This Python, with the module search path of this process, running the worker."""
    here = Path(__file__).resolve().parent
    path = [entry for entry in sys.path if isinstance(entry, str)]
    packages = {"rewriter": str(here.parent), "rewriter.backends": str(here)}
    return (sys.executable, "-c", _BOOT, json.dumps([path, packages]), "--module", flavour.module)
