"""The hybrid executor: engines on TensorRT, the rest on ONNX Runtime, every tensor on the device, one stream."""

from __future__ import annotations

import atexit
import collections
import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.errors import (
    ConversionError,
    ConverterStateError,
    CudaError,
    InputError,
    MissingDependencyError,
)
from rewriter.runtime.executor import Execution, NativeExecutor
from rewriter.runtime.gpu.discovery import Discovery, free, out_of_memory
from rewriter.runtime.gpu.graphs import examine, make_graph
from rewriter.runtime.gpu.island import absorb_capture_error
from rewriter.runtime.gpu.last_resort import LastResort
from rewriter.runtime.gpu.pieces import Pieces
from rewriter.runtime.gpu.plan import FixedPlan
from rewriter.runtime.gpu.plan_table import Key, PlanTable
from rewriter.runtime.gpu.tensors import device_view
from rewriter.runtime.gpu.transfer import OnDevice, Pending, Staged, deliver, discovery_inputs, stage, stays, view
from rewriter.runtime.slots import BUILDING

if TYPE_CHECKING:
    from rewriter.runtime.builds import BackgroundBuilds
    from rewriter.runtime.runtime_builder import RuntimeBuilder
    from rewriter.runtime.slots import StoredEngine

_LOG = logging.getLogger(__name__)
#: How often a call waits for builds: one for each engine node that the last build brought a shape to, within reason.
BUILD_ROUNDS = 8
#: Closed when the process ends: CUDA is gone when the objects of a process are, and ONNX Runtime aborts over that.
_OPEN: weakref.WeakSet[HybridExecutor] = weakref.WeakSet()


class HybridExecutor:
    """Runs a schedule on one GPU. Thread-safe: calls are enqueued one after the other and waited for side by side.

    A plan's life: the first call at new shapes is a discovery; the second makes a fixed plan and runs it; the third
    captures it in a CUDA graph; from then on a call is two copies and one launch. With shapes that depend on data
    every call is a discovery.

    Args:
        pieces: the schedule with all that runs it; owned by the executor from now on.
        cpu: makes the executor of last resort, for calls that fail on the GPU.
        blocked: reason -> engine nodes that run inside native islands for it, with every call.
        strict: True raises where a node runs natively.
        builds: builds engines at run time; None where that is not allowed.
        builder: what `builds` builds with; both are closed with the executor.
        waits: True lets a call wait for engines that are being built for it.
        chosen: tells which engines are used and why (see `rewriter.runtime.choosing.chosen`), by engine operator.
    """

    provider = "cuda"

    def __init__(
        self,
        pieces: Pieces,
        cpu: Callable[[], NativeExecutor],
        *,
        blocked: Mapping[str, int] | None = None,
        strict: bool = False,
        builds: BackgroundBuilds | None = None,
        builder: RuntimeBuilder | None = None,
        waits: bool = False,
        chosen: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._pieces = pieces
        self._chosen = chosen
        self._cuda = pieces.cuda
        self._discovery = Discovery(pieces)
        self._blocked = dict(blocked or {})
        self._strict = strict
        nodes = len(pieces.slots) + sum(self._blocked.values())
        self._last_resort = LastResort(cpu, max(nodes, 1), strict=strict)
        self._builds = builds
        self._builder = builder
        self._waits = waits
        self._lock = threading.Lock()
        self._closed = False
        self._plans = PlanTable(pieces)
        self._counts: collections.Counter[str] = collections.Counter()
        self._in_flight: collections.deque[Pending] = collections.deque()
        _OPEN.add(self)

    def run(self, feeds: Mapping[str, Any], *, on_device: OnDevice = False) -> Execution:
        """Computes all outputs once.

        Args:
            feeds: ONNX input name -> array, or a device tensor of the caller's; the caller keeps ownership of them and
                may change arrays (not device tensors, whose reading is only enqueued) when this returns.
            on_device: leave the outputs on the device, as `DeviceTensor`; then nothing is waited for. With names, these
                outputs stay, and the others are waited for.

        Raises:
            InputError: a device tensor does not fit the signature.
            ConversionError: `strict`, and an engine node would run natively; or `on_device`, and the GPU failed.
            ConverterStateError: it is closed.
        """
        for last in (False,) * BUILD_ROUNDS + (True,):
            try:
                return self._run(feeds, on_device, wait_for_builds=self._waits and not last)
            except _BuildingError:
                self.wait_for_builds()  # outside the lock: other calls go on, and close() ends the builds
            except (InputError, ConverterStateError, MissingDependencyError, _StrictError):
                raise
            except Exception as error:  # noqa: BLE001 -- ONNX Runtime's have no common base; the CPU answers, or raises
                return self._last_resort.run(feeds, error, on_device=on_device is True)
        raise AssertionError("the last round neither waits nor goes on")

    def _run(self, feeds: Mapping[str, Any], on_device: OnDevice, *, wait_for_builds: bool) -> Execution:
        """One attempt on the GPU.

        Raises:
            _BuildingError: `wait_for_builds`, and an engine is being built.
        """
        schedule = self._pieces.schedule
        staged = stage(schedule.inputs, feeds, self._cuda)
        pending = Pending(schedule.outputs, held=[item.memory for item in staged.values() if item.memory is not None])
        with self._lock, self._cuda.current():
            try:
                self._check_open()
                self._sweep()
                for spec in schedule.inputs:
                    if spec.tensor not in staged:
                        staged[spec.tensor] = view(spec, feeds[spec.tensor], self._cuda)
                runs, fallbacks = self._enqueue_with_room(staged, pending, on_device)
                if wait_for_builds and BUILDING in fallbacks:
                    raise _BuildingError
                self._judge(fallbacks)
                owners = [item.owner for item in staged.values() if item.owner is not None]
                pending.done = self._cuda.record()
                if owners:
                    self._cuda.keep(*owners)
            except BaseException:
                self._abandon(pending)
                raise
            if on_device is True:
                outputs, pending.arrays = pending.arrays, {}
                self._in_flight.append(pending)
                return Execution(outputs, runs, fallbacks)
        return Execution(pending.result(), runs, fallbacks)

    def stats(self) -> dict[str, Any]:
        """Counters of this executor.

        Returns:
            steps, islands: steps of a call, and how many of them ONNX Runtime computes.
            discoveries: calls that ran step by step with allocations (new shapes, or shapes that depend on data).
            plans: input shapes that are bound and ready. graphs: those with a CUDA graph.
            graph_launches: calls that launched a graph.
            no_plan, no_graph: reason -> calls, and plans, that do without.
            memory_retries: calls for which all plans were given up, because memory ran out.
            device_bytes: shared memory of values and activations.
            slots: engine operator -> counters of its engines (see `EngineSlot.stats`).
            engines_chosen: engine operator -> its engines in memory, and why not the others.
        """
        with self._lock:
            steps = self._pieces.schedule.steps
            slots = self._pieces.slots
            return {
                "steps": len(steps),
                "islands": len(steps) - len(slots),
                "discoveries": self._counts["discoveries"],
                **self._plans.stats(),
                "graph_launches": self._counts["graph_launches"],
                "memory_retries": self._counts["memory_retries"],
                "device_bytes": self._pieces.device_bytes,
                "slots": {op: slot.stats() for op, slot in slots.items()},
                "engines_chosen": dict(self._chosen()),
            }

    def to_host(self, value: Any) -> np.ndarray:
        """A copy of a device tensor of the caller's in host memory; waits until it is written.

        Raises:
            InputError: it is none, or cannot be read.
            ConverterStateError: it is closed.
        """
        with self._lock, self._cuda.current():
            self._check_open()
            found = device_view(value, self._cuda)
            if found is None:
                raise InputError(f"a {type(value).__name__} is no array and no device tensor")
            written = self._cuda.record()
        written.synchronize()
        array: np.ndarray = np.empty(found.shape, found.dtype)
        self._cuda.read(array.ctypes.data, found.pointer, array.nbytes)
        return array

    def wait_for_builds(self) -> None:
        """Returns when the engines that are being built are ready or have failed."""
        if self._builds is not None:
            self._builds.wait()

    def built_engines(self) -> tuple[StoredEngine, ...]:
        """The engines built at run time so far; their files live as long as the executor."""
        return tuple(stored for slot in self._pieces.slots.values() for stored in slot.built)

    def close(self) -> None:
        """Waits for what is enqueued and frees everything; harmless when repeated."""
        if self._builds is not None:
            self._builds.close()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with contextlib.ExitStack() as closing:  # all of it, whatever fails on the way
                if self._builder is not None:
                    closing.callback(self._builder.close)
                closing.callback(self._last_resort.close)
                # A device that has failed fails here as well: its memory goes with the process.
                for part in (self._cuda.close, self._pieces.close, self._plans.clear, self._finish):
                    closing.callback(_quietly, part)

    def _finish(self) -> None:
        """Waits for what is enqueued, and keeps what TensorRT compiled."""
        try:
            if not self._cuda.closed:
                self._cuda.synchronize()
            self._save_runtime_caches()
        finally:
            self._sweep(everything=True)

    # --- one call, under the lock

    def _enqueue_with_room(
        self, staged: Mapping[str, Staged], pending: Pending, on_device: OnDevice
    ) -> tuple[int, dict[str, int]]:
        """Enqueues a call; when memory runs out, once more after everything that can be made again was given up."""
        try:
            return self._enqueue(staged, pending, on_device)
        except Exception as error:  # ONNX Runtime has no kind of error for it
            if not out_of_memory(error):
                raise
            _LOG.debug("out of memory, once more with what can be freed: %s", error)
            self._plans.clear()
            self._pieces.release()
            self._cuda.trim()
            self._counts["memory_retries"] += 1
            pending.arrays.clear()
            return self._enqueue(staged, pending, on_device)

    def _enqueue(
        self, staged: Mapping[str, Staged], pending: Pending, on_device: OnDevice
    ) -> tuple[int, dict[str, int]]:
        key = tuple(staged[spec.tensor].shape for spec in self._pieces.schedule.inputs)
        plan = self._plans.get(key)
        if plan is not None:
            try:
                return self._run_plan(plan, staged, pending, on_device)
            except CudaError as error:
                self._plans.fail(key, error)
                raise
            except Exception as error:  # noqa: BLE001 -- of an engine or of ONNX Runtime: step by step they may go on
                self._plans.fail(key, error)
        return self._discover(key, staged, pending, on_device)

    def _run_plan(
        self, plan: FixedPlan, staged: Mapping[str, Staged], pending: Pending, on_device: OnDevice
    ) -> tuple[int, dict[str, int]]:
        def put() -> None:
            for name, value in plan.inputs.items():
                staged[name].put(value.pointer, self._cuda)

        plan.bind()
        if plan.runs and not plan.settled:
            self._settle(plan, put)
        put()
        plan.run()
        self._counts["graph_launches"] += plan.captured
        deliver(self._pieces.schedule, plan.outputs, staged, pending, self._cuda, on_device=on_device, fresh=False)
        return plan.engine_runs, self._with_blocked(plan.fallbacks)

    def _settle(self, plan: FixedPlan, put: Callable[[], None]) -> None:
        """What is done once for a plan that ran: islands stop waiting, all steps become one graph, where they can."""
        had = plan.no_graph
        sound = plan.examined or not self._pieces.can_capture or examine(plan)
        if sound and not plan.no_graph:
            sound = make_graph(plan, put, self._cuda)
        if not sound:
            absorb_capture_error(self._cuda)
        plan.settle()
        if plan.no_graph != had:
            self._plans.count_graph(plan)
        self._save_runtime_caches()

    def _discover(
        self, key: Key, staged: Mapping[str, Staged], pending: Pending, on_device: OnDevice
    ) -> tuple[int, dict[str, int]]:
        with discovery_inputs(staged, self._pieces.on_host, self._cuda) as inputs:
            trace = self._discovery.run(inputs)
        self._counts["discoveries"] += 1
        try:
            deliver(self._pieces.schedule, trace.outputs, staged, pending, self._cuda, on_device=on_device, fresh=True)
        finally:
            for name, value in trace.outputs.items():
                if not stays(name, on_device):
                    free(value)
        if any(item.array is not None and item.memory is None for item in staged.values()):
            trace.unfixable = trace.unfixable or "strings stay in CPU memory"
        self._plans.remember(key, trace)
        return len(trace.found), self._with_blocked(trace.fallbacks)

    def _with_blocked(self, fallbacks: Mapping[str, int]) -> dict[str, int]:
        """All fallbacks of a call."""
        return dict(collections.Counter(self._blocked) + collections.Counter(fallbacks))

    def _judge(self, fallbacks: Mapping[str, int]) -> None:
        """With `strict` any fallback is an error."""
        if self._strict and fallbacks:
            raise _StrictError(f"strict: an engine was not used: {next(iter(fallbacks))}")

    def _abandon(self, pending: Pending) -> None:
        """Lets a call go that failed: its memory is given back when the stream is past what was enqueued of it."""
        pending.arrays = {}
        try:
            pending.done = self._cuda.record()
        except (CudaError, ConverterStateError):  # nothing is enqueued on a closed stream, or on one that has failed
            pending.release()
        else:
            self._in_flight.append(pending)

    # --- last resorts, and upkeep

    def _sweep(self, *, everything: bool = False) -> None:
        """Gives back page-locked memory of calls that nobody waited for."""
        while self._in_flight:
            pending = self._in_flight[0]
            if not everything and pending.done is not None and not pending.done.done():
                return
            self._in_flight.popleft()
            pending.release()

    def _save_runtime_caches(self) -> None:
        """Writes what TensorRT compiled for this GPU, where there is a place for it."""
        for engine in self._pieces.open_engines():
            engine.save_runtime_cache()

    def _check_open(self) -> None:
        if self._closed:
            raise ConverterStateError("this function is closed: load the artifact again")

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()


@atexit.register
def _close_open() -> None:
    """Closes the executors that nobody closed."""
    for executor in tuple(_OPEN):
        try:
            executor.close()
        except ConversionError as error:
            _LOG.warning("%s", error)


class _BuildingError(Exception):
    """An engine is being built that the call is to wait for."""


def _quietly(work: Callable[[], None]) -> None:
    """Closes something; what a failed device says about it is only logged."""
    try:
        work()
    except CudaError as error:
        _LOG.warning("while closing: %s", error)


class _StrictError(ConversionError):
    """`strict` was asked for, and an engine node would run natively."""
