"""A model with island nodes: every ONNX section with an executor of its own, TensorFlow between them."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.errors import InvalidParameterError
from rewriter.runtime.executor import Execution, Executor
from rewriter.runtime.sectioned import section_feed
from rewriter.runtime.sections import IslandStep, Route, Section
from rewriter.runtime.stats import merged
from rewriter.runtime.tensorflow_island import TensorFlowIsland

if TYPE_CHECKING:
    from rewriter.runtime.slots import StoredEngine


class StagedExecutor:
    """Runs a route: an `Executor` over executors. Thread-safe, as all of these are.

    Inside a section on the GPU tensors stay on the device, as in a model without islands; between sections and islands
    values are arrays of the host. Where outputs are to stay on the device, those that a section on the GPU makes do;
    what an island makes is an array of the host all the same.

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
        on_gpu = any(section.provider == "cuda" for section in self._sections.values())
        self._provider = "cuda" if on_gpu else "cpu"

    @property
    def provider(self) -> str:
        """Where sections run: "cuda" when any of them does, else "cpu"."""
        return self._provider

    def run(self, feeds: Mapping[str, Any], *, on_device: bool = False) -> Execution:
        """Computes all outputs once; engine runs and fallbacks are those of all sections together.

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
        if not on_device:
            outputs = {name: self._on_host(value) for name, value in outputs.items()}
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

    def _run_section(self, number: int, values: Mapping[str, Any], *, on_device: bool) -> Execution:
        step, section = self._route.steps[number], self._sections[number]
        on_gpu = section.provider == "cuda"
        given = {
            name: section_feed(name, value if on_gpu else self._on_host(value), self._route)
            for name, value in values.items()
        }
        final = not set(self._route.outputs).isdisjoint(step.outputs)
        return section.run(given, on_device=on_device and on_gpu and final)

    def _on_host(self, value: Any) -> Any:
        """A value as an array of the host: what lies on the device is copied."""
        if isinstance(value, np.ndarray) or self._provider != "cuda":
            return value
        return next(s for s in self._sections.values() if s.provider == "cuda").to_host(value)
