"""The engines in memory of one engine node: which one takes a call, and what happens when none does.

TF-TRT's rules: at most `maximum_cached_engines` engines of a node are in memory. A call that none of them can take
opens another one where there is room; where there is none, `cache_full` decides. A call that no engine at all can take
asks for one to be built, where that is allowed, and runs natively meanwhile.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from passes.segments import SegmentModel
from rewriter.artifact.manifest import EngineEntry
from rewriter.errors import (
    ConversionError,
    ConverterStateError,
    DeviceMemoryError,
    EngineRefusedError,
    InvalidParameterError,
)
from rewriter.params import CACHE_FULL_RULES, check_choice
from rewriter.runtime.choosing import EVICTED, KEPT_OUT
from rewriter.runtime.slot_values import (
    BuildOutcome,
    Builds,
    Dims,
    Found,
    Miss,
    OpenEngine,
    SetKey,
    StoredEngine,
    corners,
    profile_of,
    set_key,
)
from rewriter.shapes.harvest import InputSet, Observed

__all__ = ["BuildOutcome", "Builds", "EngineSlot", "Found", "Miss", "OpenEngine", "StoredEngine"]

#: Reasons of a miss. They hold no shapes, for they are keys of counters.
NO_ENGINE = "it has no engine"
OUTSIDE = "its shapes are outside every profile"
FULL = "maximum_cached_engines is reached, and no engine in memory takes its shapes"
BUILDING = "an engine for its shapes is being built"
NOT_TAKEN = "the engine that was built for its shapes does not take them"


class EngineSlot:
    """The engines of one engine node. Thread-safe, and a context manager.

    Rules of a lookup:
        1. An engine in memory that takes the shapes, in the order in which they were opened.
        2. Else a stored one that does, in the order given: opened where there is room. With no room "native" is a
           miss and leaves memory as it is; "evict" closes the engine that was not used for longest, then opens.
        3. Whether a stored engine takes the shapes is judged from the profiles in its entry; one without profiles is
           opened and asked.
        4. An engine that cannot be used (`entry.problem`), or that TensorRT refuses, is never opened (again).
        5. Where no engine can be used, one is asked of `builds`, once for each input set; not when "native" is full.

    An answer holds as long as `version` is the answer's own. `version` grows when an engine is evicted, refused or
    added, and when a build ends; opening an engine into free room changes no other answer.

    Args:
        op: the operator of the engine node, "TRTEngineOp_000".
        stored: its engines, in order of preference.
        open_engine: deserialises one; raises EngineRefusedError when TensorRT will never take it. Any other
            ConversionError (out of memory) is a miss of this lookup only. It is called under the slot's lock.
        maximum: engines in memory, at least 1.
        cache_full: "native" or "evict".
        builds: builds engines; None never builds (allow_build_at_runtime False).
        segment: what engines are built of; needed beside `builds`.

    Raises:
        InvalidParameterError: a value that is not allowed.
    """

    def __init__(
        self,
        op: str,
        stored: Sequence[StoredEngine],
        open_engine: Callable[[StoredEngine], OpenEngine],
        *,
        maximum: int = 1,
        cache_full: str = "native",
        builds: Builds | None = None,
        segment: SegmentModel | None = None,
    ) -> None:
        check_choice("cache_full", cache_full, CACHE_FULL_RULES)
        if maximum < 1:
            raise InvalidParameterError(f"maximum_cached_engines must be at least 1, not {maximum}")
        if builds is not None and segment is None:
            raise InvalidParameterError(f"{op}: engines can be built of a segment only: give segment=")
        self.op = op
        self._open_engine = open_engine
        self._maximum = maximum
        self._evicts = cache_full == "evict"
        self._builds = builds
        self._segment = segment
        self._lock = threading.RLock()
        self._closed = False
        self._version = 0
        self._clock = 0
        self._stored: dict[str, StoredEngine] = {}
        self._memory: dict[Path, OpenEngine] = {}  # in order of opening
        self._used: dict[Path, int] = {}
        self._refused: dict[Path, str] = {}
        self._waiting: dict[Path, str] = {}  # wanted by a call, but not in memory -> why not
        self._declined: set[tuple[Path, SetKey]] = set()
        self._asked: dict[SetKey, str] = {}  # input set -> BUILDING, or why there is still no engine for it
        self._counts: collections.Counter[str] = collections.Counter()
        self._refusals: collections.Counter[str] = collections.Counter()
        self._failures: collections.Counter[str] = collections.Counter()
        self._build_seconds = 0.0
        self._built: dict[str, StoredEngine] = {}
        for item in stored:
            self._put(item)
        self._version = 0

    @property
    def version(self) -> int:
        """Grows whenever the answer of an equal lookup may have changed."""
        return self._version

    @property
    def stored(self) -> tuple[StoredEngine, ...]:
        """All engines of the node, usable or not, in order of preference."""
        with self._lock:
            return tuple(self._stored.values())

    @property
    def built(self) -> tuple[StoredEngine, ...]:
        """Those that were built at run time."""
        with self._lock:
            return tuple(self._built.values())

    def lookup(self, shapes: Dims, values: Dims) -> Found | Miss:
        """The engine for these inputs, or why there is none; one count.

        Blocks while an engine is opened, and, when `builds.waits`, until its build is done.

        Args:
            shapes: segment tensor name of every data input -> dims.
            values: the same for the elements of inputs that hold shapes (see `rewriter.shapes.profiles.shape_tensors`).

        Raises:
            ConverterStateError: the slot is closed.
        """
        wanted = {name: Observed(tuple(dims), values.get(name)) for name, dims in shapes.items()}
        key = set_key(wanted)
        also: tuple[InputSet, ...] = ()
        with self._lock:
            answer = self._search(key, shapes, values)
            ask = isinstance(answer, Miss) and self._may_ask(key, answer)
            if ask and self._builds is not None:
                self._asked.setdefault(key, BUILDING)
                also = self._neighbours(wanted)
        if ask and self._builds is not None and self._segment is not None:
            # Outside the lock: the request may wait for the build, whose end needs the lock.
            try:
                self._builds.request(self.op, self._segment, wanted, also=also, done=self._on_build)
            except ConversionError:  # closed in another thread: nothing is being built
                with self._lock:
                    self._asked.pop(key, None)
                raise
        with self._lock:
            if ask:
                answer = self._search(key, shapes, values)
            self._counts["hits" if isinstance(answer, Found) else "misses"] += 1
            return answer

    def repeat(self, answer: Found | Miss) -> bool:
        """True when an answer still holds: it is counted as one more lookup, and its engine as used."""
        with self._lock:
            if self._closed or answer.version != self._version:
                return False
            if isinstance(answer, Found):
                self._touch(answer.stored.path)
            self._counts["hits" if isinstance(answer, Found) else "misses"] += 1
            return True

    def add(self, stored: StoredEngine) -> None:
        """Adds an engine; one with a known key only where the known one cannot be used.

        Raises:
            ConverterStateError: the slot is closed.
        """
        with self._lock:
            self._check_open()
            self._put(stored)

    def stats(self) -> dict[str, Any]:
        """What was asked and done so far.

        Returns:
            engines: engines in memory now.
            hits, misses: lookups with and without an engine.
            loads: engines opened. evictions: engines closed to make room.
            refused: reason -> engines that cannot be used.
            builds, build_seconds: engines built at run time, and the wall time of all builds.
            failed_builds: reason -> builds that gave none.
            building: True while an engine is waited for.
        """
        with self._lock:
            return {
                "engines": len(self._memory),
                **{name: self._counts[name] for name in ("hits", "misses", "loads", "evictions", "builds")},
                "refused": dict(self._refusals),
                "build_seconds": self._build_seconds,
                "failed_builds": dict(self._failures),
                "building": BUILDING in self._asked.values(),
            }

    def fates(self) -> tuple[dict[str, EngineEntry], dict[str, str], dict[str, str]]:
        """Key -> entry of the engines in memory; why one cannot be used; why one that a call wanted is not there."""
        with self._lock:
            by_path = {stored.path: stored.entry for stored in self._stored.values()}
            opened = {by_path[path].key: by_path[path] for path in self._memory}
            refused, waiting = (
                {by_path[path].key: text for path, text in reasons.items() if path in by_path}
                for reasons in (self._refused, self._waiting)
            )
            return opened, refused, waiting

    def close(self) -> None:
        """Closes the engines in memory; harmless when repeated. A build that ends later is ignored."""
        with self._lock, contextlib.ExitStack() as closing:
            self._closed = True
            self._version += 1
            for engine in self._memory.values():
                closing.callback(engine.close)
            self._memory.clear()

    def __enter__(self) -> EngineSlot:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ConverterStateError(f"the engines of {self.op} are closed: load the artifact again")

    def _search(self, key: SetKey, shapes: Dims, values: Dims) -> Found | Miss:
        """Rules 1 to 4; why there is no engine when no build is thought of."""
        self._check_open()
        by_path = {stored.path: stored for stored in self._stored.values()}
        for path in self._memory:
            profile = self._profile(by_path[path], key, shapes, values)
            if profile is not None:
                return self._found(by_path[path], profile)
        reasons = []
        for path, stored in by_path.items():
            if path in self._memory or not self._may_take(stored, key, shapes, values):
                continue
            if path in self._refused:
                reasons.append(self._refused[path])
                continue
            if self._full:
                self._waiting[path] = KEPT_OUT
                return Miss(FULL, self._version)
            problem = self._load(stored)
            if problem is not None:
                if path not in self._refused:  # it may go well next time: this answer is out of date at once
                    self._version += 1
                    return Miss(problem, self._version - 1)
                reasons.append(problem)
                continue
            profile = self._profile(stored, key, shapes, values)
            if profile is not None:
                return self._found(stored, profile)
        return Miss(self._why(key, reasons), self._version)

    @property
    def _full(self) -> bool:
        """True when no further engine may be opened."""
        return len(self._memory) >= self._maximum and not self._evicts

    def _why(self, key: SetKey, refusals: Sequence[str]) -> str:
        """Why no engine takes an input set: what became of its build says most."""
        state = self._asked.get(key)
        if state is not None and state != NOT_TAKEN:
            return state
        if refusals:
            return refusals[0]
        if state is None and self._builds is not None and self._full:
            return FULL
        return state or (OUTSIDE if self._stored else NO_ENGINE)

    def _may_ask(self, key: SetKey, answer: Miss) -> bool:
        """True when a build is to be requested, or the one under way to be waited for."""
        if self._builds is None or answer.version != self._version or answer.reason == FULL or self._full:
            return False
        if key in self._asked:
            return self._asked[key] == BUILDING and self._builds.waits
        return True

    def _neighbours(self, wanted: InputSet) -> tuple[InputSet, ...]:
        """Input sets that a new engine should take as well.

        Those of engines that cannot be used, for somebody wanted them; and where engines are evicted those of all
        others, or calls that alternate between old and new shapes would load an engine each time.
        """
        taken = [s for s in self._stored.values() if self._evicts or s.path in self._refused]
        sets = [item for stored in taken for item in corners(stored.entry.profiles, wanted)]
        return tuple({set_key(item): item for item in sets}.values())

    def _found(self, stored: StoredEngine, profile: int) -> Found:
        self._touch(stored.path)
        return Found(self._memory[stored.path], profile, stored, self._version)

    def _touch(self, path: Path) -> None:
        self._clock += 1
        self._used[path] = self._clock

    def _may_take(self, stored: StoredEngine, key: SetKey, shapes: Dims, values: Dims) -> bool:
        """Whether an engine that is not in memory takes the inputs, as far as can be known without opening it."""
        if stored.entry.profiles:
            return profile_of(stored.entry.profiles, shapes, values) is not None
        return (stored.path, key) not in self._declined

    def _profile(self, stored: StoredEngine, key: SetKey, shapes: Dims, values: Dims) -> int | None:
        """The profile of an engine in memory that takes the inputs."""
        if stored.entry.profiles:
            return profile_of(stored.entry.profiles, shapes, values)
        profile = self._memory[stored.path].profile_for(shapes, values)
        if profile is None:
            self._declined.add((stored.path, key))
        return profile

    def _load(self, stored: StoredEngine) -> str | None:
        """Opens an engine, after making room; why that is not possible."""
        if len(self._memory) >= self._maximum:
            self._evict()
        try:
            engine = self._open_engine(stored)
        except EngineRefusedError as error:
            self._refuse(stored, str(error))
            return str(error)
        except DeviceMemoryError:
            return "out of GPU memory"
        except ConversionError as error:
            return str(error)
        self._counts["loads"] += 1
        self._memory[stored.path] = engine
        self._waiting.pop(stored.path, None)
        self._touch(stored.path)
        return None

    def _evict(self) -> None:
        oldest = min(self._memory, key=self._used.__getitem__)
        engine = self._memory.pop(oldest)
        self._counts["evictions"] += 1
        self._version += 1
        self._waiting[oldest] = EVICTED
        engine.close()

    def _refuse(self, stored: StoredEngine, reason: str) -> None:
        self._refused[stored.path] = reason
        self._refusals[reason] += 1
        self._version += 1

    def _put(self, stored: StoredEngine) -> None:
        known = self._stored.get(stored.entry.key)
        if known is not None and (known.path == stored.path or known.path not in self._refused):
            return
        self._stored[stored.entry.key] = stored
        self._version += 1
        if stored.entry.problem:
            self._refuse(stored, stored.entry.problem)

    def _on_build(self, outcome: BuildOutcome) -> None:
        """The end of a build, told by the thread that builds."""
        with self._lock:
            if self._closed:
                return
            self._version += 1
            self._build_seconds += outcome.seconds
            if isinstance(outcome.result, StoredEngine):
                self._counts["builds"] += 1
                self._built[outcome.result.entry.key] = outcome.result
                self._put(outcome.result)
                state: str | None = NOT_TAKEN
            else:
                self._failures[outcome.result.reason] += 1
                cancelled = outcome.result.kind == "cancelled"
                state = None if cancelled else f"an engine for its shapes cannot be built: {outcome.result.reason}"
            for seen in outcome.sets:
                if state is None:
                    self._asked.pop(set_key(seen), None)
                else:
                    self._asked[set_key(seen)] = state
