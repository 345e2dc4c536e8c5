"""A schedule with everything that runs it: what discovery and plans share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

from rewriter.runtime.gpu.capture_rules import capture_hazard
from rewriter.runtime.gpu.island import Island
from rewriter.runtime.gpu.memory import SharedMemory
from rewriter.runtime.schedule import EngineStep, NativeStep, Schedule
from rewriter.runtime.slots import EngineSlot, Found, Miss
from rewriter.shapes.profiles import shape_tensors

if TYPE_CHECKING:
    from rewriter.runtime.gpu.cuda import Cuda
    from rewriter.runtime.gpu.discovery import Trace
    from rewriter.runtime.gpu.engine import LoadedEngine


class Pieces:
    """Engines, islands and shared memory of one schedule. Not thread-safe: the executor holds its lock.

    Args:
        schedule: the steps.
        slots: engine operator -> its engines, for every engine step.
        cuda: where all runs.
        host_islands: True runs the native steps in CPU memory (an ONNX Runtime without the CUDA provider).
        no_graphs: why nothing is captured; "" when it may be.
        can_capture: False on a stream on which nothing can be recorded, not even to look at it.
        threads: of what runs on the CPU, see `rewriter.runtime.native.session_options`.

    Attributes:
        dtypes: value name -> onnx.TensorProto data type number.
        readers: engine operator -> the tensors whose elements it needs in CPU memory.
        on_host: values that some engine needs in CPU memory.
        can_capture: as it was given.
        arena: memory of the values between the steps of fixed plans.
        scratch: memory of the engines' activations.
    """

    def __init__(
        self,
        schedule: Schedule,
        slots: Mapping[str, EngineSlot],
        cuda: Cuda,
        *,
        host_islands: bool = False,
        no_graphs: str = "",
        can_capture: bool = True,
        threads: int = 0,
    ) -> None:
        self.schedule = schedule
        self.slots = slots
        self.cuda = cuda
        self.dtypes = {name: spec.dtype for name, spec in schedule.specs.items()}
        self.arena = SharedMemory(cuda)
        self.scratch = SharedMemory(cuda)
        self._host_islands = host_islands
        self._no_graphs = no_graphs
        self._threads = threads
        self.can_capture = can_capture
        self._islands: dict[int, Island] = {}
        self._hazards: dict[int, str] = {}
        self._engines: dict[int, LoadedEngine] = {}
        engines = [step for step in schedule.steps if isinstance(step, EngineStep)]
        self.readers: Mapping[str, Collection[str]] = {step.op: _readers(step, slots[step.op]) for step in engines}
        self.on_host = frozenset(
            item.value for step in engines for item in step.inputs if item.tensor in self.readers[step.op]
        )

    @property
    def generation(self) -> tuple[int, int]:
        """Changes whenever shared memory was replaced: what was bound to it must be bound again."""
        return self.arena.generation, self.scratch.generation

    @property
    def device_bytes(self) -> int:
        """Bytes of the shared memory."""
        return self.arena.nbytes + self.scratch.nbytes

    def island(self, number: int) -> Island:
        """What runs step `number` natively: its island, or the native twin of an engine."""
        if number not in self._islands:
            step = self.schedule.steps[number]
            native = isinstance(step, NativeStep)
            self._islands[number] = Island(
                step.name if native else f"the native segment of {step.name}",
                step.model if isinstance(step, NativeStep) else step.native.model,
                step.inputs,
                step.outputs,
                self.cuda,
                on_host=self._host_islands or (isinstance(step, NativeStep) and step.on_host),
                threads=self._threads,
            )
        return self._islands[number]

    def engine(self, answer: Found) -> LoadedEngine:
        """The engine that a slot found."""
        engine = cast("LoadedEngine", answer.engine)
        self._engines[id(engine)] = engine
        return engine

    def still_hold(self, answers: Mapping[int, Found | Miss]) -> bool:
        """True while every slot would answer as it did: number of the engine step -> answer. Nothing is counted."""
        steps = self.schedule.steps
        return all(
            answer.version == self.slots[step.op].version
            for number, answer in answers.items()
            if isinstance(step := steps[number], EngineStep)
        )

    def open_engines(self) -> tuple[LoadedEngine, ...]:
        """The engines that were used and are still open."""
        self._engines = {key: engine for key, engine in self._engines.items() if not engine.closed}
        return tuple(self._engines.values())

    def graph_hazard(self, trace: Trace) -> str:
        """Why steps must not be captured at the shapes of a discovery; "" when they may be."""
        if self._no_graphs:
            return self._no_graphs
        for number in range(len(self.schedule.steps)):
            if number not in trace.found:
                hazard = self._hazard(number)
                if hazard:
                    return hazard
        return ""

    def release(self) -> None:
        """Gives the shared memory back; it is taken again when it is needed."""
        self.arena.release()
        self.scratch.release()

    def close(self) -> None:
        """Frees sessions, engines and memory; harmless when repeated."""
        for island in self._islands.values():
            island.close()
        for slot in self.slots.values():
            slot.close()
        self.release()

    def _hazard(self, number: int) -> str:
        if number not in self._hazards:
            step, island = self.schedule.steps[number], self.island(number)
            values = self.schedule.shape_values
            constants = {item.tensor for item in (*step.inputs, *step.outputs) if item.value in values}
            model = step.model if isinstance(step, NativeStep) else step.native.model
            self._hazards[number] = capture_hazard(model, island.host_nodes(), constants)
        return self._hazards[number]


def _readers(step: EngineStep, slot: EngineSlot) -> frozenset[str]:
    """Inputs whose elements decide shapes, or whose range an engine's profiles give as values."""
    said = (
        name
        for stored in slot.stored
        for profile in stored.entry.profiles
        for name, item in profile.items()
        if item.is_values
    )
    return frozenset((*said, *shape_tensors(step.native)))
