"""What a pass is: a frozen dataclass whose fields are its options and whose `run` maps a model to a result."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import onnx

from passes.graph.walk import definitions, iter_graphs
from passes.model import Model, stubs_as_inputs


class PassError(RuntimeError):
    """A pass could not do its work, or left an invalid graph; the message names the pass."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One edit: which rule touched which object, and why."""

    rule: str
    target: str
    reason: str


@dataclasses.dataclass(frozen=True)
class PassResult:
    """The model after a pass; `modified` is derived from the changes and equals 'the proto differs'."""

    model: Model
    changes: tuple[Change, ...] = ()

    @property
    def modified(self) -> bool:
        """True when the pass changed the model."""
        return bool(self.changes)


@runtime_checkable
class Pass(Protocol):
    """A graph transformation: pure, deterministic, valid graph in and valid graph out."""

    @property
    def name(self) -> str:
        """A short lower-case name, unique within a pipeline."""
        ...

    def run(self, model: Model) -> PassResult:
        """Transforms `model`, which stays as it was."""
        ...


@dataclasses.dataclass(frozen=True)
class PassRecord:
    """What the report keeps of one pass: its name, options, time and edits."""

    name: str
    options: str
    seconds: float
    nodes_before: int
    nodes_after: int
    changes: tuple[Change, ...]


#: Called after every pass with its record and its result (for dumps and progress).
Hook = Callable[[PassRecord, Model], None]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """An ordered list of passes; the graph is verified after each one that changed it.

    Attributes:
        passes: in order of application.
        canonical: the first pass establishes, and every other one keeps, the canonical form; this is checked, too.
    """

    passes: tuple[Pass, ...]
    canonical: bool = False

    def run(self, model: Model, hook: Hook | None = None) -> tuple[Model, tuple[PassRecord, ...]]:
        """Runs every pass in order.

        Raises:
            PassError: a pass left an invalid graph; the message names it and the checker's finding.
        """
        records = []
        for step in self.passes:
            before = len(model.proto.graph.node)
            start = time.perf_counter()
            result = step.run(model)
            if result.modified:
                verify(result.model, step.name, canonical=self.canonical)
            model = result.model
            record = PassRecord(
                step.name,
                repr(step),
                time.perf_counter() - start,
                before,
                len(model.proto.graph.node),
                result.changes,
            )
            records.append(record)
            if hook is not None:
                hook(record, model)
        return model, tuple(records)


def verify(model: Model, after: str, *, canonical: bool = False) -> None:
    """Checks the graph with onnx.checker, that every stub has its weights, and the canonical form if asked.

    Args:
        model: the model to check.
        after: who made it, for the message.
        canonical: check as well that node names are unique and not empty and value names unique, both in the whole
            model, and that no functions are left.

    Raises:
        PassError: the graph is invalid; `after` names who left it so.
    """
    try:
        onnx.checker.check_model(_checkable(model))
    except onnx.checker.ValidationError as error:
        raise PassError(f"the graph is invalid after {after}: {error}") from error
    missing = {t.name for t in model.proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    missing -= set(model.weights)
    if missing:
        raise PassError(f"the graph is invalid after {after}: no data for the weights {', '.join(sorted(missing))}")
    if canonical:
        _verify_canonical(model, after)


def _checkable(model: Model) -> onnx.ModelProto:
    """What the checker is shown: it insists on typed inputs and outputs with a rank, but real models may lack them."""
    proto = stubs_as_inputs(model)
    for value in (*proto.graph.input, *proto.graph.output):
        kind = value.type.WhichOneof("value")
        if kind is None or (kind == "tensor_type" and not value.type.tensor_type.elem_type):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return proto


def _verify_canonical(model: Model, after: str) -> None:
    if model.proto.functions:
        raise PassError(f"the graph is not canonical after {after}: it has model-local functions")
    nodes: set[str] = set()
    values: set[str] = set()
    for graph in iter_graphs(model.proto.graph):
        for node in graph.node:
            if not node.name or node.name in nodes:
                raise PassError(f"the graph is not canonical after {after}: node name {node.name!r} is not unique")
            nodes.add(node.name)
        # A body's initializer may share the name of an input of that body, so each graph counts a name once.
        for name in dict.fromkeys(definitions(graph)):
            if name in values:
                raise PassError(f"the graph is not canonical after {after}: value name {name!r} is not unique")
            values.add(name)


def count_by_rule(changes: Iterable[Change]) -> dict[str, int]:
    """Number of changes per rule, in order of first appearance."""
    counts: dict[str, int] = {}
    for change in changes:
        counts[change.rule] = counts.get(change.rule, 0) + 1
    return counts
