"""Engines built at run time: how one is built, and the thread that builds them while calls go on natively."""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from passes.segments import SegmentModel
from rewriter.backends.base import BuildFailure, Progress
from rewriter.errors import ConversionError, ConverterStateError
from rewriter.runtime.other_errors import first_line
from rewriter.runtime.runtime_builder import RuntimeBuilder
from rewriter.runtime.slot_values import BuildOutcome, SetKey, StoredEngine, profile_of, set_key
from rewriter.shapes.harvest import InputSet

__all__ = ["BackgroundBuilds", "Builder", "RuntimeBuilder"]

logger = logging.getLogger(__name__)


class Builder(Protocol):
    """What `BackgroundBuilds` builds with; `RuntimeBuilder` is one."""

    @property
    def most_sets(self) -> int | None:
        """How many input sets one build can be for; None for any number."""
        ...

    def build(
        self,
        segment: SegmentModel,
        sets: Sequence[InputSet],
        counts: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> StoredEngine | BuildFailure:
        """Builds one engine that takes all of `sets`."""
        ...


@dataclasses.dataclass
class _Node:
    """What is known of one engine node.

    Attributes:
        segment: what its engines are built of.
        seen: input sets that an engine was built for, oldest first.
        waiting: those that no build has begun for.
        running: those that the running build is for.
        also: neighbours of the waiting ones.
        counts: how often each set was asked for.
        failed: set -> why it can have no engine.
        broken: why nothing can be built for the node at all.
        done: whom to tell.
    """

    segment: SegmentModel
    seen: dict[SetKey, InputSet] = dataclasses.field(default_factory=dict)
    waiting: dict[SetKey, InputSet] = dataclasses.field(default_factory=dict)
    running: dict[SetKey, InputSet] = dataclasses.field(default_factory=dict)
    also: dict[SetKey, InputSet] = dataclasses.field(default_factory=dict)
    counts: collections.Counter[SetKey] = dataclasses.field(default_factory=collections.Counter)
    failed: dict[SetKey, BuildFailure] = dataclasses.field(default_factory=dict)
    broken: BuildFailure | None = None
    done: list[Callable[[BuildOutcome], None]] = dataclasses.field(default_factory=list)


class BackgroundBuilds:
    """Builds engines in one thread, one after another, while calls run natively. Thread-safe, a context manager.

    Rules:
        1. One build at a time; a request for a node whose build waits or runs joins it. What comes while the build
           runs is built next, unless the finished engine takes it.
        2. A build is for all input sets of its node that were asked for so far, so that with the strategy "Range" the
           second build covers two alternating shapes (the builder says how many sets one engine can have).
        3. When a build for several sets fails, each new set is tried alone, once. A set that fails alone is
           remembered with its reason, left out of later builds and never tried again.
        4. An exception of the builder (TensorRT not installed, its process cannot run) ends the builds of the node.
        5. Nothing polls: the thread begins with a request and ends when nothing waits.

    Args:
        builder: makes the engines; the caller owns and closes it, after this object.
        wait: True makes `request` return only when the builds of its node are done.
    """

    def __init__(self, builder: Builder, *, wait: bool = False) -> None:
        self._builder = builder
        self._waits = wait
        self._changed = threading.Condition()
        self._nodes: dict[str, _Node] = {}
        self._queue: dict[str, None] = {}
        self._running: str | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def waits(self) -> bool:
        """True when `request` returns only after the build."""
        return self._waits

    def request(
        self,
        op: str,
        segment: SegmentModel,
        wanted: InputSet,
        *,
        also: Sequence[InputSet] = (),
        done: Callable[[BuildOutcome], None] | None = None,
    ) -> None:
        """Asks for an engine; returns at once, unless `wait` was asked for.

        Args:
            op: the engine node.
            segment: its native segment; the first one given for a node is kept.
            wanted: what the engine must take.
            also: what it should take as well, where one engine can.
            done: told what came of each build of the node from now on, in the building thread (at once, in this one,
                when it is known that there can be no engine). It must not raise.

        Raises:
            ConverterStateError: it is closed.
        """
        key, known = set_key(wanted), None
        with self._changed:
            if self._closed:
                raise ConverterStateError("no engine can be built any more: load the artifact again")
            node = self._nodes.setdefault(op, _Node(segment))
            if done is not None and done not in node.done:
                node.done.append(done)
            node.counts[key] += 1
            known = node.broken or node.failed.get(key)
            if known is None and key not in node.running:
                node.waiting[key] = wanted
                node.also.update((set_key(item), item) for item in also)
                self._queue[op] = None
                self._start()
        if known is not None and done is not None:
            done(BuildOutcome(known, (wanted,), 0.0))
        if self._waits:
            self.wait(op)

    def building(self, op: str | None = None) -> bool:
        """True while builds of a node (of any node) wait or run."""
        with self._changed:
            return self._busy(op)

    def wait(self, op: str | None = None, timeout: float | None = None) -> bool:
        """Blocks until the builds of a node (of all nodes) are done, or all is closed; False after `timeout` seconds.

        Never call it from `done`, or while a lock is held that `done` needs.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or not self._busy(op), timeout)

    def close(self) -> None:
        """Cancels the running build, drops waiting ones and waits for the thread's end; harmless when repeated.

        TensorRT is asked to stop at its next sign of progress.
        """
        with self._changed:
            self._closed = True
            self._queue.clear()
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> BackgroundBuilds:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _busy(self, op: str | None) -> bool:
        if op is None:
            return bool(self._queue) or self._running is not None
        return op in self._queue or op == self._running

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="trt-rewriter-builds", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """The thread: builds until nothing waits."""
        while True:
            with self._changed:
                self._running = None
                self._changed.notify_all()
                if self._closed or not self._queue:
                    self._thread = None
                    return
                op = self._running = next(iter(self._queue))
                del self._queue[op]
            try:
                self._build(op, self._nodes[op])
            except Exception as error:  # a fault of ours ends the builds of one node, not the thread
                logger.exception("%s: building an engine failed", op)
                self._break(op, self._nodes[op], _failure(error))

    def _build(self, op: str, node: _Node) -> None:
        """One build for all sets of a node, and where it fails one for each new set."""
        with self._changed:
            batch = _first(node.waiting, self._builder.most_sets)
            node.waiting = {key: item for key, item in node.waiting.items() if key not in batch}
            node.running = dict(batch)
            if not batch:  # an engine that was finished meanwhile takes them
                return
            if node.waiting:
                self._queue[op] = None
            together = _last({**node.also, **node.seen, **batch}, self._builder.most_sets)
            node.also = {}
        result, seconds = self._try(op, node, together)
        if isinstance(result, StoredEngine):
            self._succeed(node, result, batch, seconds)
            return
        if _is_final(node, result):
            self._fail(node, result, batch, seconds)
            return
        if together.keys() == batch.keys() and len(batch) == 1:
            self._fail(node, result, batch, seconds)
            return
        self._tell(node, BuildOutcome(result, (), seconds))
        for key, item in batch.items():
            result, seconds = self._try(op, node, {key: item})
            if isinstance(result, StoredEngine):
                self._succeed(node, result, {key: item}, seconds)
            else:
                self._fail(node, result, {key: item}, seconds)

    def _try(self, op: str, node: _Node, sets: Mapping[SetKey, InputSet]) -> tuple[StoredEngine | BuildFailure, float]:
        """One build; an exception is a failure that holds for the whole node."""
        started = time.perf_counter()
        if self._closed or node.broken is not None:
            return node.broken or BuildFailure("cancelled", "the function was closed"), 0.0
        result: StoredEngine | BuildFailure
        try:
            counts = [node.counts[key] for key in sets]
            result = self._builder.build(node.segment, tuple(sets.values()), counts, lambda *_: not self._closed)
        except ConversionError as error:
            result = node.broken = _failure(error)
        seconds = time.perf_counter() - started
        if isinstance(result, StoredEngine):
            logger.info("%s: built an engine for %d input shapes in %.1f s", op, len(sets), seconds)
        else:
            level = logging.DEBUG if result.kind == "cancelled" else logging.WARNING
            logger.log(level, "%s: no engine for %d input shapes (%s): %s", op, len(sets), result.kind, result.reason)
        return result, seconds

    def _succeed(self, node: _Node, stored: StoredEngine, built: Mapping[SetKey, InputSet], seconds: float) -> None:
        with self._changed:
            settled = {**built, **{key: s for key, s in node.waiting.items() if _takes(stored, s)}}
            node.waiting = {key: item for key, item in node.waiting.items() if key not in settled}
            node.seen = {**{key: item for key, item in node.seen.items() if key not in settled}, **settled}
            self._forget(node, settled)
        self._tell(node, BuildOutcome(stored, tuple(settled.values()), seconds))

    def _fail(self, node: _Node, failure: BuildFailure, sets: Mapping[SetKey, InputSet], seconds: float) -> None:
        with self._changed:
            if failure.kind != "cancelled":
                node.failed.update(dict.fromkeys(sets, failure))
            self._forget(node, sets)
        self._tell(node, BuildOutcome(failure, tuple(sets.values()), seconds))

    def _break(self, op: str, node: _Node, failure: BuildFailure) -> None:
        """Ends the builds of a node: whatever it waits for has failed."""
        with self._changed:
            node.broken = failure
            sets = {**node.running, **node.waiting}
            node.waiting = {}
            self._queue.pop(op, None)
        self._fail(node, failure, sets, 0.0)

    def _forget(self, node: _Node, sets: Iterable[SetKey]) -> None:
        node.running = {key: item for key, item in node.running.items() if key not in set(sets)}

    def _tell(self, node: _Node, outcome: BuildOutcome) -> None:
        for done in tuple(node.done):
            try:
                done(outcome)
            except Exception:
                logger.exception("telling of a build failed")


def _is_final(node: _Node, failure: BuildFailure) -> bool:
    """True for a failure that other shapes would not change."""
    return failure.kind == "cancelled" or node.broken is not None


def _first(sets: Mapping[SetKey, InputSet], most: int | None) -> dict[SetKey, InputSet]:
    return dict(list(sets.items())[:most])


def _last(sets: Mapping[SetKey, InputSet], most: int | None) -> dict[SetKey, InputSet]:
    items = list(sets.items())
    return dict(items if most is None else items[-most:])


def _takes(stored: StoredEngine, seen: InputSet) -> bool:
    shapes = {name: item.shape for name, item in seen.items()}
    values = {name: item.values for name, item in seen.items() if item.values is not None}
    return profile_of(stored.entry.profiles, shapes, values) is not None


def _failure(error: Exception) -> BuildFailure:
    return BuildFailure("backend", f"engines cannot be built here: {first_line(error)}")
