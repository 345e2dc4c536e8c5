"""A model with island nodes on the CPU: ONNX Runtime for its sections, TensorFlow between them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from passes.model import Model
from rewriter.runtime.native import NativeSession
from rewriter.runtime.sections import IslandStep, Route, Section, graph_outputs
from rewriter.runtime.strings import to_valid_text
from rewriter.runtime.tensorflow_island import TensorFlowIsland

logger = logging.getLogger(__name__)


class SectionedSession:
    """What `NativeSession` is to a model without island nodes; thread-safe as well.

    All that any graph output needs runs, whatever is asked for, as in ONNX Runtime. Values in between are let go as
    soon as nothing needs them any more.

    Args:
        model: the graph, with island nodes; its large weights must not change while the session lives.
        outputs: graph outputs to compute; default all, in graph order.
        optimize, honest, threads, lean: of every section, see `NativeSession`.
        profile: prefix of the files that become the one record of `end_profiling`.

    Raises:
        MissingDependencyError: ONNX Runtime or TensorFlow is not installed.
        SourceError: the SavedModel of an island cannot be loaded.
        PassError: see `rewriter.runtime.sections.split`.
    """

    def __init__(
        self,
        model: Model,
        outputs: Sequence[str] | None = None,
        *,
        optimize: bool = True,
        honest: bool = False,
        threads: int = 0,
        profile: Path | None = None,
        lean: bool = False,
    ) -> None:
        every = graph_outputs(model)
        self.output_names: tuple[str, ...] = tuple(outputs or every)
        self._route = Route.of(model, (*every, *self.output_names))
        self._feed = SectionFeeds(self._route)
        self.input_names: tuple[str, ...] = self._route.inputs
        self._profile = profile
        self._parts: list[NativeSession | TensorFlowIsland] = []
        for number, step in enumerate(self._route.steps):
            if isinstance(step, IslandStep):
                self._parts.append(TensorFlowIsland(step))
                continue
            prefix = profile.with_name(f"{profile.name}_{number:03d}") if profile is not None else None
            self._parts.append(
                NativeSession(
                    step.model,
                    step.outputs,
                    optimize=optimize,
                    honest=honest,
                    threads=threads,
                    profile=prefix,
                    lean=lean,
                )
            )

    def run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Maps ONNX input names to arrays; returns ONNX output name -> array."""
        found = self._route.run(feeds, self._compute)
        return {name: found[name] for name in self.output_names}

    def end_profiling(self) -> Path:
        """Ends the recording that `profile` began; returns one file for all sections, run by run.

        A run of which a section's record is cut off is not in it.
        """
        assert self._profile is not None, "the session was not opened with profile="  # noqa: S101
        records = [_by_run(part.end_profiling()) for part in self._parts if isinstance(part, NativeSession)]
        merged: list[Any] = []
        for runs in zip(*records, strict=False):
            merged += [event for run in runs for event in run[:-1]]
            merged.append(runs[-1][-1])
        path = self._profile.with_name(f"{self._profile.name}.json")
        path.write_text(json.dumps(merged), "utf-8")
        return path

    def _compute(self, number: int, values: Mapping[str, Any]) -> Mapping[str, Any]:
        step, part = self._route.steps[number], self._parts[number]
        if isinstance(step, Section):
            values = {name: self._feed(name, value) for name, value in values.items()}
        return part.run(values)


class SectionFeeds:
    """What sections are given: an island's strings as ONNX Runtime takes them, anything else as it is. Thread-safe.

    That bytes are lost on the way is logged, once for each value.
    """

    def __init__(self, route: Route) -> None:
        self._made = route.made_by_islands
        self._told: set[str] = set()

    def __call__(self, name: str, value: Any) -> Any:
        """The value called `name`, ready for a section."""
        if name not in self._made or not isinstance(value, np.ndarray) or value.dtype.kind != "O":
            return value
        text = to_valid_text(value)
        if name not in self._told and not np.array_equal(text, value):
            self._told.add(name)
            logger.warning(
                "strings of %r hold bytes that are not UTF-8 text: TensorFlow made them, and ONNX Runtime, which reads "
                "them, gets U+FFFD in their place",
                name,
            )
        return text


def _by_run(path: Path) -> list[list[Any]]:
    """The events of an ONNX Runtime record, run by run; each ends with the event of the run itself."""
    runs: list[list[Any]] = []
    current: list[Any] = []
    for event in json.loads(path.read_text("utf-8")):
        current.append(event)
        if event.get("cat") == "Session" and event.get("name") == "model_run":
            runs.append(current)
            current = []
    return runs
