"""A model with island nodes: every ONNX section with an executor of its own, TensorFlow between them."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.errors import InvalidParameterError
from rewriter.runtime.executor import Execution, Executor
from rewriter.runtime.sectioned import SectionFeeds
from rewriter.runtime.sections import IslandStep, Route, Section
from rewriter.runtime.stats import merged
from rewriter.runtime.tensorflow_island import TensorFlowIsland

if TYPE_CHECKING:
    from rewriter.runtime.slots import StoredEngine


class StagedExecutor:
    """Runs a route: an `Executor` over executors. Thread-safe, as all of these are.

    Inside a section on the GPU tensors stay on the device, as in a model without islands, and so does what only other
    sections on the GPU read. What an island reads or makes is an array of the host. Where outputs are to stay on the
    device, those that a section on the GPU makes do; what an island makes is an array of the host all the same.

    Args:
        route: the steps.
        open_section: makes the executor of a section; it is closed with this one.
        lazy: True loads islands with the first call.

    Raises:
        MissingDependencyError, SourceError: an island cannot be loaded.
        ConversionError: whatever `open_section` raises. What was opened before is closed then.
    """

    def __init__(self, route: Route, open_section: Callable[[Section], Executor], *, lazy: bool = False) -> None:
        self._route = route
        self._feed = SectionFeeds(route)
        self._islands: dict[int, TensorFlowIsland] = {}
        self._sections: dict[int, Executor] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for number, step in enumerate(route.steps):
                if isinstance(step, IslandStep):
                    self._islands[number] = TensorFlowIsland(step, lazy=lazy)
                else:
                    self._sections[number] = open_section(step)
            undo.pop_all()
        on_gpu = frozenset(number for number, section in self._sections.items() if section.provider == "cuda")
        self._provider = "cuda" if on_gpu else "cpu"
        self._on_gpu = on_gpu
        #: Values that no island, no section on the CPU and no caller reads.
        self._staying = _made_by(route, on_gpu) - _read_elsewhere(route, on_gpu) - set(route.outputs)

    @property
    def provider(self) -> str:
        """Where sections run: "cuda" when any of them does, else "cpu"."""
        return self._provider

    def run(self, feeds: Mapping[str, Any], *, on_device: bool | Collection[str] = False) -> Execution:
        """Computes all outputs once; engine runs and fallbacks are those of all sections together.

        Args:
            feeds: ONNX input name -> array, or where a section runs on the GPU a device tensor of the caller's.
            on_device: leave the outputs that sections on the GPU make on the device, or those of these names.

        Raises:
            InvalidParameterError: the outputs are to stay on a device, and no section runs on one.
            RuntimeError: TensorFlow fails on an island.
            ConversionError: as the executors of the sections raise it.
        """
        if on_device and self._provider != "cuda":
            raise InvalidParameterError("outputs can stay on the device only where there is one: this runs on the CPU")
        runs: list[int] = []
        fallbacks: collections.Counter[str] = collections.Counter()

        def compute(number: int, values: Mapping[str, Any]) -> Mapping[str, Any]:
            if number in self._islands:
                return self._islands[number].run({name: self._on_host(value) for name, value in values.items()})
            execution = self._run_section(number, values, on_device=on_device)
            runs.append(execution.engine_runs)
            fallbacks.update(execution.fallbacks)
            return execution.outputs

        outputs = self._route.run(feeds, compute)
        outputs = {
            name: value if on_device is True or (on_device and name in on_device) else self._on_host(value)
            for name, value in outputs.items()
        }
        return Execution(outputs, sum(runs), dict(fallbacks))

    def stats(self) -> dict[str, Any]:
        """The counters of all sections, added up, and those of the islands.

        Returns:
            sections: ONNX sections of a call.
            tensorflow: island -> its `ops`, the `reasons` why it stays in TensorFlow, `calls`, and the `seconds` that
            they took.
            And what the executors of the sections count (see `HybridExecutor.stats`).
        """
        return {
            **merged(section.stats() for section in self._sections.values()),
            "sections": len(self._sections),
            "tensorflow": {island.step.name: island.stats() for island in self._islands.values()},
        }

    def wait_for_builds(self) -> None:
        """Returns when the engines that are being built are ready or have failed."""
        for section in self._sections.values():
            section.wait_for_builds()

    def built_engines(self) -> tuple[StoredEngine, ...]:
        """The engines built at run time so far; their files live as long as the executor."""
        return tuple(engine for section in self._sections.values() for engine in section.built_engines())

    def to_host(self, value: Any) -> np.ndarray:
        """A tensor of the caller's as an array of the host."""
        return np.asarray(self._on_host(value))

    def close(self) -> None:
        """Frees sessions, engines and SavedModels; harmless when repeated."""
        with contextlib.ExitStack() as closing:  # all of it, whatever fails on the way
            for island in self._islands.values():
                closing.callback(island.close)
            for section in self._sections.values():
                closing.callback(section.close)

    def _run_section(self, number: int, values: Mapping[str, Any], *, on_device: bool | Collection[str]) -> Execution:
        step, section = self._route.steps[number], self._sections[number]
        if number not in self._on_gpu:
            return section.run({name: self._feed(name, self._on_host(value)) for name, value in values.items()})
        kept = self._staying.intersection(step.outputs)
        asked = self._route.outputs if on_device is True else on_device or ()
        kept |= set(asked).intersection(self._route.outputs, step.outputs)
        given = {name: self._feed(name, value) for name, value in values.items()}
        # With all of them asked for by the caller nothing is waited for; with names, the CPU may help out.
        return section.run(given, on_device=True if on_device is True and kept.issuperset(step.outputs) else kept)

    def _on_host(self, value: Any) -> Any:
        """A value as an array of the host: what lies on the device is copied; sequences and optionals never do."""
        if self._provider != "cuda" or value is None or isinstance(value, (np.ndarray, list)):
            return value
        return self._sections[min(self._on_gpu)].to_host(value)


def _made_by(route: Route, steps: Collection[int]) -> frozenset[str]:
    """What some steps make."""
    return frozenset(name for number in steps for name in route.steps[number].outputs)


def _read_elsewhere(route: Route, steps: Collection[int]) -> frozenset[str]:
    """What all other steps read."""
    others = (step for number, step in enumerate(route.steps) if number not in steps)
    return frozenset(name for step in others for name in step.inputs)
