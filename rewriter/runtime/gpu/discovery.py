"""One run of a schedule in which everything is found out on the way: the road of new shapes, and of shapes in the data.

Every step allocates what it makes; what nobody reads any more is freed at once (in the order of the stream).
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import re
from collections.abc import Mapping

import numpy as np

from rewriter.errors import DeviceMemoryError, EngineError
from rewriter.runtime.gpu.engine_step import run_engine
from rewriter.runtime.gpu.island import to_host
from rewriter.runtime.gpu.pieces import Pieces
from rewriter.runtime.gpu.values import DeviceValue, HostValue, Value
from rewriter.runtime.other_errors import first_line
from rewriter.runtime.schedule import EngineStep, Schedule
from rewriter.runtime.slots import Found, Miss

_LOG = logging.getLogger(__name__)
#: How ONNX Runtime and CUDA say it.
_NO_MEMORY = re.compile(r"failed to allocate memory|out ?of ?memory|bad_alloc", re.IGNORECASE)
_SHAPES = re.compile(r"[\[{][-\d, ]+[\]}]")


@dataclasses.dataclass
class Trace:
    """What one discovery found out.

    Attributes:
        shapes: value name -> dims, of every value between steps.
        constants: value name -> elements, of the values that depend on the inputs' shapes alone.
        outputs: value name -> those of the model's outputs that a step made; the caller frees them.
        answers: number of an engine step -> what its slot said.
        found: those that an engine computed.
        fallbacks: reason -> number of engine nodes that ran natively for it.
        unfixable: why there can be no fixed plan for these inputs; "" when there can.
    """

    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    outputs: dict[str, Value] = dataclasses.field(default_factory=dict)
    answers: dict[int, Found | Miss] = dataclasses.field(default_factory=dict)
    found: dict[int, Found] = dataclasses.field(default_factory=dict)
    fallbacks: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    unfixable: str = ""


class Discovery:
    """Runs a schedule step by step. Not thread-safe: the executor holds its lock.

    Args:
        pieces: the schedule with all that runs it.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._last = _last_readers(pieces.schedule)

    def run(self, inputs: Mapping[str, Value]) -> Trace:
        """Runs all steps.

        Args:
            inputs: value name -> the model's inputs; the caller keeps and frees them.

        Raises:
            DeviceMemoryError: the native way needs more memory than there is.
            SourceError: ONNX Runtime refuses an island.
        """
        schedule = self._pieces.schedule
        trace = Trace(unfixable="" if schedule.is_fixed else "shapes depend on the data")
        values: dict[str, Value] = dict(inputs)
        trace.shapes.update((name, value.shape) for name, value in inputs.items())
        try:
            for number in range(len(schedule.steps)):
                made = self._step(number, values, trace)
                values.update(made)
                trace.shapes.update((name, value.shape) for name, value in made.items())
                if not trace.unfixable:
                    self._keep_constants(made, trace)
                for name in self._last[number]:
                    free(values.pop(name))
            for name in schedule.outputs:
                if name in values and name not in inputs:
                    trace.outputs[name] = values.pop(name)
        finally:
            for name, value in values.items():
                if name not in inputs:
                    free(value)
        return trace

    def _step(self, number: int, values: Mapping[str, Value], trace: Trace) -> dict[str, Value]:
        pieces = self._pieces
        step = pieces.schedule.steps[number]
        if not isinstance(step, EngineStep):
            island = pieces.island(number)
            if island.on_host:
                trace.unfixable = trace.unfixable or f"{island.name} runs in CPU memory"
            return island.run(values, pieces.on_host)
        answer = trace.answers[number] = self._look_up(step, values, trace)
        if isinstance(answer, Found):
            try:
                engine = pieces.engine(answer)
                context = engine.context(answer.profile)
                made = run_engine(step, engine, context, values, pieces.cuda, pieces.scratch)
            except (EngineError, DeviceMemoryError) as error:
                _LOG.debug("%s: %s", step.name, error)
                reason = reason_of(error)
                trace.unfixable = trace.unfixable or reason  # so that the engine is tried again with the next call
            else:
                trace.found[number] = answer
                known = pieces.schedule.shape_values
                if any(isinstance(value, HostValue) and name not in known for name, value in made.items()):
                    trace.unfixable = trace.unfixable or f"{step.name} gives shapes that the data decide"
                return made
        else:
            reason = answer.reason
        trace.fallbacks[reason] += 1
        twin = pieces.island(number)
        if twin.on_host:
            trace.unfixable = trace.unfixable or f"{twin.name} runs in CPU memory"
        return twin.run(values, pieces.on_host)

    def _look_up(self, step: EngineStep, values: Mapping[str, Value], trace: Trace) -> Found | Miss:
        pieces = self._pieces
        shapes = {item.tensor: values[item.value].shape for item in step.inputs}
        held: dict[str, tuple[int, ...]] = {}
        for item in step.inputs:
            if item.tensor in pieces.readers[step.op]:
                array = to_host(values[item.value], pieces.cuda)
                held[item.tensor] = tuple(int(v) for v in array.reshape(-1))
                if item.value not in pieces.schedule.shape_values:
                    trace.unfixable = trace.unfixable or f"{step.name} reads shapes that the data decide"
        return pieces.slots[step.op].lookup(shapes, held)

    def _keep_constants(self, made: Mapping[str, Value], trace: Trace) -> None:
        for name, value in made.items():
            if name in self._pieces.schedule.shape_values:
                trace.constants[name] = to_host(value, self._pieces.cuda)


def reason_of(error: Exception) -> str:
    """A counter's key for an engine that did not run: without sizes and addresses where that is possible."""
    if out_of_memory(error):
        return "out of GPU memory"
    return _SHAPES.sub("[...]", first_line(error))


def out_of_memory(error: BaseException) -> bool:
    """True for any package's way to say that there is no memory left on the device."""
    return isinstance(error, DeviceMemoryError) or bool(_NO_MEMORY.search(str(error)))


def free(value: Value) -> None:
    """Gives the memory of a value back, in the order of the stream; ONNX Runtime's own goes with the object."""
    if isinstance(value, DeviceValue) and hasattr(value.owner, "free"):
        value.owner.free()


def _last_readers(schedule: Schedule) -> tuple[tuple[str, ...], ...]:
    """Per step the values that no later step reads and that are neither inputs nor outputs of the model."""
    kept = {spec.tensor for spec in schedule.inputs} | set(schedule.outputs)
    last: dict[str, int] = {}
    for number, step in enumerate(schedule.steps):
        last.update((item.value, number) for item in (*step.outputs, *step.inputs) if item.value not in kept)
    found: list[list[str]] = [[] for _ in schedule.steps]
    for name, number in last.items():
        found[number].append(name)
    return tuple(map(tuple, found))
