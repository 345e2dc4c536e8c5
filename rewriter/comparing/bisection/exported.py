"""TensorFlow -> native: the operator whose export computes something else, and whether it may stay in TensorFlow."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.pipeline import default_pipeline
from rewriter.comparing.bisection.gaps import Gap, gap
from rewriter.comparing.bisection.notes import place_notes
from rewriter.comparing.bisection.options import option_line
from rewriter.comparing.bisection.report import OUTDATED, Bisection
from rewriter.comparing.bisection.sides import Feeds, ModelSide, Run
from rewriter.comparing.bisection.subject import Subject
from rewriter.comparing.bisection.walk import Place
from rewriter.errors import ConversionError, ExportError
from rewriter.temporary import TemporaryFolder

if TYPE_CHECKING:
    from rewriter.frontend.callee import Callee
    from rewriter.frontend.freeze import Frozen

_PAIR = ("source", "native")
#: Operators that are tried, at most: each is an export.
_TRIALS = 8
_TENSOR = re.compile(r"(.+):(\d+)")


def bisect_export(subject: Subject, callee: Callee, native: ModelSide, failed: Mapping[str, float]) -> Bisection:
    """Compares the tensors that TensorFlow's frozen graph and the native model share by name.

    Args:
        subject: what is bisected.
        callee: the source.
        native: the artifact's native model.
        failed: public names of the outputs beyond their limits -> difference.

    Raises:
        ConversionError: TensorFlow, or ONNX Runtime, cannot run its graph.
    """
    limit = subject.limit(failed)
    try:
        specialized = _specialized(subject, callee)
        side = FrozenSide.of(subject, specialized)
    except ExportError as error:
        return Bisection(*_PAIR, limit, failed, notes=(f"TensorFlow's graph cannot be looked into: {error}",))
    fresh = _exported_again(subject, specialized, side)
    if fresh is not None and fresh.passed:
        note = f"exported again by this version, the source and its export differ by {fresh.worst:.1e}"
        return Bisection(*_PAIR, limit, failed, notes=(note,), cause=OUTDATED)
    place, gaps = find_export(subject, side, native, failed)
    if place is None:
        return Bisection(*_PAIR, limit, failed, notes=("no tensor that both have is beyond the tolerance",))
    index = subject.index
    name = index.names[place.node]
    found = Bisection(
        *_PAIR,
        limit,
        failed,
        node=name,
        op_type=side.operator(place.value) or index.nodes[place.node].op_type,
        value=place.value,
        difference=gaps[place.value].relative,
        before=place.before,
        notes=(
            *place_notes(subject, place, accumulated=False, engines=False),
            f"its operator is TensorFlow's; {len(gaps)} tensors have the same name in ONNX and were compared",
        ),
    )
    return _advised(subject, specialized, found, _Attempt(max(failed.values()), False, side, place, gaps))


def _exported_again(subject: Subject, callee: Callee, side: FrozenSide) -> _Attempt | None:
    """The source's export as the conversion made it, without a further option; None where it cannot be made or run."""
    with TemporaryFolder("trt-rewriter-") as folder:
        return _Trials(subject, callee, side, folder).attempt(_already_kept(subject))


def _already_kept(subject: Subject) -> tuple[str, ...]:
    """The operators that the conversion was told to leave in TensorFlow."""
    return tuple(subject.artifact.params.get("keep_in_tensorflow") or ())


def _specialized(subject: Subject, callee: Callee) -> Callee:
    """The source with the dimensions that the conversion fixed."""
    from rewriter.frontend.specialize import specialize_callee

    sizes = subject.artifact.params.get("specialize")
    return specialize_callee(callee, sizes, None) if isinstance(sizes, Mapping) and sizes else callee


@dataclasses.dataclass(frozen=True)
class FrozenSide:
    """TensorFlow's frozen graph, from which the export was made.

    Attributes:
        frozen: the graph.
        origin: what it was made from.
        tensors: value of the native model -> tensor of the graph.
        specs: tf.TensorSpec of every input, with the ONNX name of what it is fed with.
    """

    frozen: Frozen
    origin: str
    tensors: Mapping[str, str]
    specs: Sequence[tuple[str, Any]]

    @classmethod
    def of(cls, subject: Subject, callee: Callee) -> FrozenSide:
        """Freezes the source once more.

        Raises:
            ExportError: it cannot be frozen, or is so large that its weights lie outside its graph.
        """
        from rewriter.frontend.callee import import_tensorflow
        from rewriter.frontend.freeze import freeze
        from rewriter.frontend.noise import quiet

        tf = import_tensorflow()
        with quiet():
            frozen = freeze(callee)
        if frozen.weights is not None:
            raise ExportError("its weights are too large for a graph of one piece")
        specs = [(a.name, tf.TensorSpec(a.shape, a.dtype)) for a in callee.inputs]
        return cls(frozen, callee.origin, {}, specs).published(subject)

    def published(self, subject: Subject) -> FrozenSide:
        """The same for an export of it: which of its values are tensors of the graph, and what feeds the inputs."""
        from rewriter.frontend.short_names import without_calls

        full: dict[str, list[str]] = {}
        for node in self.frozen.graph_def.node:
            full.setdefault(without_calls(node.name), []).append(node.name)
        tensors: dict[str, str] = {}
        for value in subject.values:
            match = _TENSOR.fullmatch(value)
            nodes = full.get(match[1], []) if match else []
            if match and len(nodes) == 1:
                tensors[value] = f"{nodes[0]}:{match[2]}"
        theirs = dict(zip(self.frozen.output_names, self.frozen.outputs, strict=True))
        tensors.update((spec.tensor, theirs[spec.name]) for spec in subject.signature.outputs if spec.name in theirs)
        given = [spec.tensor for spec in subject.signature.inputs]
        specs = [(name, spec) for name, (_, spec) in zip(given, self.specs, strict=True)]
        return dataclasses.replace(self, tensors=tensors, specs=specs)

    def open(self, names: Sequence[str]) -> Run:
        """A function of the graph that returns these tensors.

        Raises:
            ConversionError: TensorFlow cannot import the graph.
        """
        from rewriter.frontend.callee import import_tensorflow
        from rewriter.frontend.islands.loading import callable_functions, load_graph
        from rewriter.frontend.noise import quiet
        from rewriter.frontend.samples import one_line, tensorflow_errors, without_bfloat16

        tf = import_tensorflow()
        graph_def = type(self.frozen.graph_def)()
        graph_def.CopyFrom(self.frozen.graph_def)
        inputs = [
            (tensor.partition(":")[0], spec) for tensor, (_, spec) in zip(self.frozen.inputs, self.specs, strict=True)
        ]
        wanted = [self.tensors[name] for name in names]
        with quiet():
            loaded = load_graph(graph_def, inputs, wanted, self.frozen.tables, self.origin)

        def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
            try:
                with quiet(), callable_functions(graph_def), tf.device("/CPU:0"):
                    given = [tf.constant(feeds[name], dtype=spec.dtype) for name, spec in self.specs]
                    found = loaded.function(*given)
            except tensorflow_errors() as error:
                raise ConversionError(f"TensorFlow cannot run {self.origin}: {one_line(error)}") from error
            arrays = (np.asarray(found[f"output_{i}"].numpy()) for i in range(len(wanted)))
            return dict(zip(names, map(without_bfloat16, arrays), strict=True))

        return run

    def operator(self, value: str) -> str:
        """The TensorFlow operator that makes a value; "" where it is not shared."""
        node = self._nodes.get(self.tensors.get(value, "").partition(":")[0])
        return self._through(node).op if node is not None else ""

    def operators(self, value: str, good: Iterable[str]) -> list[str]:
        """The operators between the nearest good tensors and the value, its own first; those that compute."""
        from rewriter.frontend.islands.vocabulary import MOVES

        known = {self.tensors[name] for name in good if name in self.tensors}
        nodes, found = self._nodes, dict[str, None]()
        stack, seen = [self.tensors[value].partition(":")[0]], set[str]()
        while stack:
            node = nodes.get(stack.pop(0))
            if node is None or node.name in seen:
                continue
            seen.add(node.name)
            found[node.op] = None
            for source in node.input:
                name = source.lstrip("^")
                if (name if ":" in name else f"{name}:0") not in known:
                    stack.append(name.partition(":")[0])
        return [op for op in found if op not in MOVES and op not in ("Const", "Placeholder", "NoOp")]

    @property
    def _nodes(self) -> dict[str, Any]:
        return {node.name: node for node in self.frozen.graph_def.node}

    def _through(self, node: Any) -> Any:
        """The node itself, or what an Identity (every output has one) reads."""
        nodes = self._nodes
        while node.op == "Identity" and node.input and node.input[0].partition(":")[0] in nodes:
            node = nodes[node.input[0].partition(":")[0]]
        return node


def gap_in_any_layout(reference: Any, result: Any) -> Gap:
    """The gap in the layout that fits best: as it is, channels first, or channels last."""
    left, right = np.asarray(reference), np.asarray(result)
    best = gap(left, right)
    if best.relative == 0 or left.ndim != right.ndim or left.ndim < 3:
        return best
    last = left.ndim - 1
    for order in ((0, last, *range(1, last)), (0, *range(2, left.ndim), 1)):
        moved = left.transpose(order)
        if moved.shape == right.shape:
            best = min(best, gap(moved, right), key=lambda item: item.relative)
    return best


class _Trials:
    """Exports with operators left in TensorFlow.

    Args:
        subject: what is bisected.
        callee: the source.
        side: its frozen graph.
        folder: where the SavedModels of what stays go.
    """

    def __init__(self, subject: Subject, callee: Callee, side: FrozenSide, folder: Path) -> None:
        self._subject, self._callee, self._side, self._folder = subject, callee, side, folder
        self._wanted = _wanted(subject, callee)
        self.exports = 0
        self.notes: list[str] = []

    def attempt(self, operators: tuple[str, ...]) -> _Attempt | None:
        """The export with these operators kept; None, and a note, where it cannot be made or run."""
        from rewriter.frontend.tensorflow import Clock, Options, convert
        from rewriter.runtime.native import evaluate

        self.exports += 1
        options = Options(
            self._subject.samples, verify=False, keep_in_tensorflow=operators, folder=self._folder / str(self.exports)
        )
        try:
            source = convert(self._callee, options, Clock())
            model, _ = default_pipeline(evaluate).run(source.model)
            artifact = dataclasses.replace(self._subject.artifact, model=model, signature=source.signature)
            subject = Subject.of(artifact, self._subject.samples, self._subject.limits, self._subject.most)
            native = ModelSide(subject.native, "exported")
            side = self._side.published(subject)
            outputs = self._outputs(subject, native)
            failed = subject.beyond(outputs)
            worst = max((outputs[name].relative for name in subject.limits), default=0.0)
            if not failed:
                return _Attempt(worst, True, side)
            return _Attempt(worst, False, side, *find_export(subject, side, native, failed))
        except ConversionError as error:
            self.notes.append(f"keeping {', '.join(operators) or 'nothing'} in TensorFlow could not be tried: {error}")
            return None

    def _outputs(self, subject: Subject, native: ModelSide) -> dict[str, Gap]:
        """Public output name -> gap from what TensorFlow computed."""
        tensors = {spec.name: spec.tensor for spec in subject.signature.outputs}
        run = native.open(list(tensors.values()))
        found = dict.fromkeys(tensors, Gap())
        for feeds, wanted in zip(subject.feeds, self._wanted, strict=True):
            values = run(feeds)
            for name, tensor in tensors.items():
                found[name] |= gap(wanted[name], values[tensor])
        return found


def _wanted(subject: Subject, callee: Callee) -> list[Mapping[str, np.ndarray]]:
    """What TensorFlow itself computes, per sample."""
    from rewriter.frontend.noise import quiet
    from rewriter.frontend.samples import given_runs

    with quiet():
        return [given_runs(callee, [dict(sample)])[0].outputs for sample in subject.samples]


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """What became of one export.

    Attributes:
        worst: largest difference of an output.
        passed: all outputs are within their tolerances.
        side: TensorFlow's graph, by the names of this export.
        place: where it is beyond the tolerance by then; None where it is not, or no shared tensor shows it.
        gaps: what was measured.
    """

    worst: float
    passed: bool
    side: FrozenSide
    place: Place | None = None
    gaps: Mapping[str, Gap] = dataclasses.field(default_factory=dict)


def find_export(
    subject: Subject, side: FrozenSide, native: ModelSide, failed: Mapping[str, float]
) -> tuple[Place | None, dict[str, Gap]]:
    """`Subject.find` for tensors that keep their names in ONNX also where the export moved their channels."""
    layouts = dataclasses.replace(subject, compare=gap_in_any_layout)
    return layouts.find(side, native, side.tensors.keys(), failed)


def _advised(subject: Subject, callee: Callee, found: Bisection, place: _Attempt) -> Bisection:
    """With what is to stay in TensorFlow.

    An operator is innocent when the same tensor is the first to differ although it stays; where another one is by
    then, that one is looked for next.
    """
    before = _already_kept(subject)
    kept: tuple[str, ...] = ()
    current, state = place, None
    with TemporaryFolder("trt-rewriter-") as folder:
        trials = _Trials(subject, callee, place.side, folder)
        while current.place is not None and trials.exports < _TRIALS:
            limit = found.tolerance
            good = {name for name, item in current.gaps.items() if item.relative <= limit}
            suspects = [op for op in current.side.operators(current.place.value, good) if op not in (*before, *kept)]
            moved = None
            for op in suspects[: _TRIALS - trials.exports]:
                attempt = trials.attempt((*before, *kept, op))
                if attempt is not None and (attempt.place is None or attempt.place.value != current.place.value):
                    moved, kept = attempt, (*kept, op)
                    break
            if moved is None:
                kept = kept or tuple(suspects[:1])
                break
            current = state = moved
    if not kept:
        return dataclasses.replace(found, notes=(*found.notes, *trials.notes))
    return dataclasses.replace(
        found,
        option=option_line("--keep-in-tensorflow", [",".join((*before, *kept))]),
        excluded=kept,
        verified=state.worst if state else None,
        passed=state.passed if state else None,
        notes=(*found.notes, *trials.notes),
    )
