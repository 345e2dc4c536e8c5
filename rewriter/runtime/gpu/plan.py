"""A schedule at fixed shapes: every address known, every step bound once, and all of it in one CUDA graph."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from rewriter.errors import CudaError, EngineError
from rewriter.runtime.buffers import BufferPlan, plan_buffers
from rewriter.runtime.gpu.discovery import Trace
from rewriter.runtime.gpu.engine_step import bind_engine, to_device
from rewriter.runtime.gpu.pieces import Pieces
from rewriter.runtime.gpu.values import DeviceValue, HostValue, Value, nbytes_of
from rewriter.runtime.schedule import EngineStep
from rewriter.runtime.slots import Found, Miss

if TYPE_CHECKING:
    from rewriter.runtime.gpu.context import Context
    from rewriter.runtime.gpu.handles import DeviceBuffer, Graph


class FixedPlan:
    """What one set of input shapes needs, bound and ready. Not thread-safe: the executor holds its lock.

    Values live in the arena that all plans share, at places that other plans use for other values: that is right, for
    there is one stream, and whoever runs a plan puts its inputs there first. Values that depend on shapes alone are
    constants of the plan, in memory of their own.

    Args:
        pieces: the schedule with all that runs it.
        trace: what the discovery at these shapes found out.

    Attributes:
        inputs: value name -> where the caller puts the model's inputs before `run`.
        outputs: value name -> where the model's outputs are found after it.
        fallbacks: reason -> number of engine nodes that run natively.
        engine_runs: number of engine nodes that an engine computes.
        runs: how often it was run.
        no_graph: why it is not captured; "" when it is, or may still be.
        examined: whether `examine` was asked.

    Raises:
        EngineError: an engine does not take the shapes after all.
        DeviceMemoryError: no memory for the arena, the constants or activations.
    """

    def __init__(self, pieces: Pieces, trace: Trace) -> None:
        self._pieces = pieces
        self._answers: dict[int, Found | Miss] = dict(trace.answers)
        self.fallbacks: Mapping[str, int] = dict(trace.fallbacks)
        self.engine_runs = len(trace.found)
        self.runs = 0
        self.no_graph = pieces.graph_hazard(trace)
        self.examined = False
        self._settled = False
        self._ran = frozenset(trace.found)
        self._shapes = trace.shapes
        self._arrays = {name: np.array(array, order="C") for name, array in trace.constants.items()}
        self._buffers: dict[str, DeviceBuffer] = {}
        self._own: dict[int, Context] = {}
        self._graph: Graph | None = None
        self._work: list[Callable[[], None]] = []
        self._island_work: list[Callable[[], Callable[[], None]]] = []
        self._free = False
        self._generation: tuple[int, int] | None = None
        self.inputs: dict[str, DeviceValue] = {}
        self.outputs: dict[str, Value] = {}
        try:
            for name, array in self._arrays.items():
                self._buffers[name] = to_device(array, pieces.cuda)
            self._layout = self._plan_layout()
            self.bind()
        except BaseException:
            self.close()
            raise

    @property
    def captured(self) -> bool:
        """True when `run` launches a CUDA graph."""
        return self._graph is not None and self._generation == self._pieces.generation

    def holds(self) -> bool:
        """True when every engine node would get the answer that this plan was made with; counts as their lookups."""
        slots, steps = self._pieces.slots, self._pieces.schedule.steps
        return all(slots[steps[number].op].repeat(answer) for number, answer in self._answers.items())  # type: ignore[union-attr]

    def bind(self) -> None:
        """Binds all steps to the shared memory as it is now; needed again after that was replaced.

        Raises:
            EngineError, DeviceMemoryError: as the constructor.
        """
        pieces = self._pieces
        if self._generation != pieces.generation:
            self._drop_graph()
            self._work = self._bind_all(pieces.arena.ensure(self._layout.nbytes))
            self._generation = pieces.generation  # now: binding may have replaced the memory for activations

    def run(self) -> None:
        """Enqueues all steps, or launches the graph. The inputs are in their places; nothing is waited for.

        Raises:
            EngineRunError, CudaError: a step cannot be enqueued.
        """
        self.bind()
        self.runs += 1
        if self._graph is not None:
            self._graph.launch()
            return
        for work in self._work:
            work()

    @property
    def settled(self) -> bool:
        """True when nothing is left to be prepared: it has its graph, or will not get one."""
        return self._settled and (bool(self.no_graph) or self.captured)

    def settle(self) -> None:
        """Notes that preparing was tried; a graph that is dropped, because shared memory grew, is tried again."""
        self._settled = True

    def examine(self) -> str:
        """Finds out whether the islands can do without waiting for the device, and lets them, if so.

        ONNX Runtime frees CPU memory of some kernels by a call back from the stream, and copies what others need from
        CPU memory. Without waiting such an island may end the process, and in a graph it repeats old data.

        Returns:
            Why an island must wait; "" when none must.

        Raises:
            CaptureError: an island cannot be recorded at all.
        """
        self.examined = True
        for number, bound in enumerate(self._island_work):
            reason = self._pieces.cuda.examine(bound())
            if reason:
                return f"native island {number}: {reason}"
        self._free = True
        self._generation = None
        return ""

    def why_not_capturable(self) -> str:
        """What TensorRT says against capturing its engines at these shapes, once they ran; "" for nothing."""
        for number in sorted(self._own):
            if not self._own[number].capturable():
                return f"TensorRT cannot capture the engine of {self._pieces.schedule.steps[number].name}"
        return ""

    def use_own_contexts(self) -> None:
        """Gives the engines contexts that no other plan uses: a graph needs them to stay as they are.

        Raises:
            EngineError, DeviceMemoryError: a context cannot be made.
        """
        for number in self._ran:
            if number not in self._own:
                answer = self._answers[number]
                assert isinstance(answer, Found)  # noqa: S101 - narrows the type
                engine = self._pieces.engine(answer)
                self._own[number] = engine.context(answer.profile, own=True)
        self._generation = None
        self.bind()

    def capture(self) -> None:
        """Records all steps as one graph. Each step has run at these addresses before, so nothing is made on the way.

        Raises:
            CaptureError: a step cannot be recorded; the plan goes on without a graph.
        """
        self.bind()
        work = tuple(self._work)

        def enqueue() -> None:
            for step in work:
                step()

        self._drop_graph()
        self._graph = self._pieces.cuda.capture(enqueue)

    def give_up_graph(self, reason: str) -> None:
        """Runs step by step from now on; the first reason stays."""
        self.no_graph = self.no_graph or reason
        self._drop_graph()
        self._close_contexts()
        self._generation = None

    def close(self) -> None:
        """Frees the graph, its contexts and constants; harmless when repeated."""
        self._drop_graph()
        self._close_contexts()
        self._work = []
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers = {}

    def _plan_layout(self) -> BufferPlan:
        schedule = self._pieces.schedule
        dtypes = self._pieces.dtypes
        placed = {name for name in self._shapes if name not in self._arrays}
        steps = [
            (
                {item.value for item in step.inputs} & placed,
                {item.value for item in step.outputs} & placed,
            )
            for step in schedule.steps
        ]
        sizes = {name: max(nbytes_of(self._shapes[name], dtypes[name]), 1) for name in placed}
        inputs = [spec.tensor for spec in schedule.inputs]
        return plan_buffers(steps, sizes, inputs, [name for name in schedule.outputs if name in placed])

    def _bind_all(self, base: int) -> list[Callable[[], None]]:
        pieces, schedule = self._pieces, self._pieces.schedule
        places: dict[str, DeviceValue] = {}
        for name, shape in self._shapes.items():
            own = self._buffers.get(name)
            pointer = own.pointer if own else base + self._layout.offsets[name]
            places[name] = DeviceValue(pointer, shape, pieces.dtypes[name])
        self.inputs = {spec.tensor: places[spec.tensor] for spec in schedule.inputs}
        self.outputs = {
            name: HostValue(self._arrays[name], pieces.dtypes[name]) if name in self._arrays else places[name]
            for name in schedule.outputs
            if name in places
        }
        work: list[Callable[[], None]] = []
        self._island_work = []
        for number, step in enumerate(schedule.steps):
            if number in self._ran and isinstance(step, EngineStep):
                work.append(self._bind_engine(number, step, places))
                continue
            island = pieces.island(number)
            # Nobody waits for constants, and a copy of theirs from CPU memory must not get into a graph.
            wanted = {i.value: places[i.value] for i in step.outputs if i.value not in self._arrays}
            if wanted:
                reads = {i.value: places[i.value] for i in step.inputs}
                work.append(island.bind(reads, wanted, waits=not self._free))
                self._island_work.append(functools.partial(island.bind, reads, wanted, waits=False))
        return work

    def _bind_engine(self, number: int, step: EngineStep, places: Mapping[str, DeviceValue]) -> Callable[[], None]:
        answer = self._answers[number]
        assert isinstance(answer, Found)  # noqa: S101 - narrows the type
        engine = self._pieces.engine(answer)
        context = self._own.get(number) or engine.context(answer.profile)
        inputs: dict[str, Value] = {}
        for item in step.inputs:
            inputs[item.value] = places[item.value]
            if engine.tensors[item.tensor].on_host:
                inputs[item.value] = HostValue(self._arrays[item.value], self._pieces.dtypes[item.value])
        outputs = {item.value: places[item.value] for item in step.outputs}
        for item in step.outputs:
            if engine.tensors[item.tensor].on_host:
                pointer = self._arrays[item.value].ctypes.data
                outputs[item.value] = DeviceValue(pointer, outputs[item.value].shape, outputs[item.value].dtype)
        return bind_engine(step, context, inputs, outputs, self._pieces.scratch)

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def _close_contexts(self) -> None:
        contexts, self._own = self._own, {}
        if contexts:
            with contextlib.suppress(CudaError):  # the device has failed: nothing runs on it any more
                self._pieces.cuda.synchronize()
        for context in contexts.values():
            with contextlib.suppress(EngineError):
                context.close()
