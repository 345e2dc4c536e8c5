"""The export of a frozen graph, with what ONNX has no word for left in TensorFlow.

Numbered steps: 1. the nodes that must stay, by rule (`rules`). 2. The islands (`planning`) and the cut (`cutting`).
3. The exporter takes the rest. Nodes that it fails on go to TensorFlow too, and 2 begins anew, `TRIES` times at most.
4. Each island becomes a SavedModel (`saving`) and a node of the exported graph (`insertion`). Of a graph without such
nodes only step 1 is done before it is exported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto

from rewriter.errors import ExportError
from rewriter.frontend.callee import Callee
from rewriter.frontend.export import UnknownOpsError, export
from rewriter.frontend.freeze import Frozen
from rewriter.frontend.islands.blame import blamed, watched
from rewriter.frontend.islands.cutting import Cut, Known, Tensor, cut, exported_graph
from rewriter.frontend.islands.graph import Graph, reached_functions
from rewriter.frontend.islands.insertion import Crossing, describe, insert, operator
from rewriter.frontend.islands.knowledge import Inference, crossing, know, observe, of_unknown_rank
from rewriter.frontend.islands.planning import Plan, find_reasons, make_plan, ops_of
from rewriter.frontend.islands.rules import Limits
from rewriter.frontend.islands.saving import new_folder, remove_folder, save_island
from rewriter.frontend.onnx_types import onnx_dtype
from rewriter.frontend.samples import Run, with_texts
from rewriter.frontend.symbols import Dimension, output_symbols

#: Exports that are tried; each but the last may send further nodes to TensorFlow.
TRIES = 6
#: How a user lets operators stay in TensorFlow.
ISLANDS_ON = "tensorflow_islands=True, the default; on the command line without --no-tensorflow-islands"
_SHOWN = 4
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the caller wants of the islands.

    Attributes:
        enabled: False refuses what ONNX has no word for.
        keep: operators that stay in TensorFlow.
        tolerance: the relative error that is accepted.
        folder: where SavedModels go; None for a temporary folder, which goes when this process ends.
    """

    enabled: bool = True
    keep: tuple[str, ...] = ()
    tolerance: float = 1e-4
    folder: Path | None = None


@dataclasses.dataclass(frozen=True)
class Exported:
    """An export, with its islands.

    Attributes:
        proto: inputs and outputs are called like the frozen graph's tensors, in order.
        notes: a line for each thing that the user should know.
        crossings: per island the types of its outputs.
        folder: the one that holds the SavedModels; None where there are none.
    """

    proto: ModelProto
    notes: tuple[str, ...]
    crossings: tuple[tuple[Crossing, ...], ...] = ()
    folder: Path | None = None

    def describe(self, symbols: Mapping[Dimension, str]) -> None:
        """Writes the types of island outputs into `proto`, whose names may have changed since."""
        describe(self.proto, self.crossings, symbols)

    @contextlib.contextmanager
    def kept_if_good(self) -> Iterator[None]:
        """Deletes the SavedModels when the block fails, for nobody else knows of them then."""
        with _deleted_on_error(self.folder):
            yield


@dataclasses.dataclass(frozen=True)
class _Source:
    """What is exported."""

    graph: Graph
    frozen: Frozen
    callee: Callee
    inference: Inference
    runs: Sequence[Run]
    symbols: Mapping[Dimension, str]


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """A plan and its export."""

    proto: ModelProto
    notes: tuple[str, ...]
    parts: Cut
    known: Known
    seen: tuple[tuple[Run, Mapping[Tensor, tuple[int, ...]]], ...]
    stand_ins: tuple[str, ...]


def export_parts(
    frozen: Frozen, callee: Callee, runs: Sequence[Run], symbols: Mapping[Dimension, str], wishes: Wishes
) -> Exported:
    """Exports a graph; what ONNX has no word for becomes island nodes.

    Args:
        frozen: the graph.
        callee: what it was made from.
        runs: samples, by whose shapes the dimensions of crossing tensors are named.
        symbols: of the inputs' unknown dimensions.
        wishes: what the caller wants.

    Raises:
        ExportError: nothing would be left for ONNX, an island cannot be saved, or as of `export`.
    """
    if not wishes.enabled:
        return _whole(frozen, callee.origin)
    graph = Graph.of(frozen.graph_def, frozen.inputs, frozen.outputs)
    source = _Source(graph, frozen, callee, Inference(frozen.graph_def), runs, symbols)
    limits = Limits(frozenset(wishes.keep), wishes.tolerance)
    reasons = find_reasons(graph, limits, source.inference.first_input)
    attempt = _try(source, reasons)
    if not attempt.parts.pieces:
        return Exported(attempt.proto, (*attempt.notes, *_unused(graph, wishes.keep)))
    parent = new_folder(wishes.folder)
    with _deleted_on_error(parent):
        crossings = _inserted(source, attempt, parent)
        notes = _notes(graph, attempt.parts)
        for note in notes:
            _LOG.warning("%s", note)
        return Exported(attempt.proto, (*attempt.notes, *notes, *_unused(graph, wishes.keep)), crossings, parent)


def _inserted(source: _Source, attempt: _Attempt, parent: Path) -> tuple[tuple[Crossing, ...], ...]:
    """Step 4, in `attempt.proto`; returns per island the types of its outputs."""
    graph, frozen, known = source.graph, source.frozen, attempt.known
    pieces = attempt.parts.pieces
    folders = [parent / operator(index) for index in range(len(pieces))]
    for piece, folder in zip(pieces, folders, strict=True):
        save_island(graph, piece, known, frozen.tables, folder, source.callee.origin, frozen.weights)
    types = {t: onnx_dtype(kind) for t, kind in known.dtypes.items()}
    insert(attempt.proto, graph, attempt.parts, attempt.stand_ins, [str(folder) for folder in folders], types)
    return tuple(tuple(_crossing(source, attempt, t) for t in piece.outputs) for piece in pieces)


@contextlib.contextmanager
def _deleted_on_error(folder: Path | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if folder is not None:
            remove_folder(folder)
        raise


def _whole(frozen: Frozen, origin: str) -> Exported:
    """The export of a model of which nothing may stay in TensorFlow."""
    try:
        return Exported(*export(frozen, origin))
    except UnknownOpsError as error:
        hint = f"{error}, or let them stay in TensorFlow ({ISLANDS_ON})"
        raise UnknownOpsError(hint, error.nodes) from error


def _try(source: _Source, reasons: dict[str, str]) -> _Attempt:
    """Steps 2 and 3; nodes that the exporter fails on are added to `reasons`.

    Raises:
        ExportError: as of `export`, when nothing new can be sent to TensorFlow; or all work would be there.
    """
    for number in range(TRIES):
        plan = make_plan(source.graph, reasons)
        if plan.islands and not plan.remaining:
            raise ExportError(_nothing_left(source.graph, plan, source.callee.origin))
        failure: ExportError | None = None
        attempt: _Attempt | None = None
        failed: Sequence[tuple[str, str]] = ()
        with watched() as names:
            try:
                attempt = _export(source, plan)
            except UnknownOpsError as error:
                failure, failed = error, error.nodes
            except ExportError as error:
                failure = error
        fresh = blamed(source.graph, [*failed, *(("", name) for name in names)], reasons)
        if fresh and number < TRIES - 1:
            _LOG.debug("export %d failed on %s: these go to TensorFlow", number + 1, ", ".join(fresh))
            reasons.update(fresh)
            continue
        if attempt is not None:
            return attempt
        assert failure is not None  # noqa: S101 - one of the two is set
        raise failure
    raise AssertionError("the last round returns or raises")


def _export(source: _Source, plan: Plan) -> _Attempt:
    """One export of what a plan leaves."""
    graph, frozen, origin = source.graph, source.frozen, source.callee.origin
    if not plan.islands:
        proto, notes = export(frozen, origin)
        return _Attempt(proto, notes, Cut((), tuple(graph.nodes), (), ()), Known({}, {}), (), ())
    parts = cut(graph, plan)
    tensors = crossing(parts)
    seen = _observed(source, tensors)
    ends = tuple(t for t in (*graph.outputs, *((name, 0) for name in graph.inputs)) if t not in tensors)
    known = know(source.inference, (*tensors, *ends), [shapes for _, shapes in seen])
    turned = of_unknown_rank(graph, source.inference, parts, known)
    if turned:
        told = f"{origin} transposes matrices of unknown rank ({', '.join(turned)}): give them a rank (tf.ensure_shape)"
        raise UnknownOpsError(told, tuple((graph.nodes[name].op, name) for name in turned))
    made, stand_ins = exported_graph(graph, parts, known)
    outputs = [t for t in graph.outputs if t[0] in set(parts.exported)]
    part = dataclasses.replace(
        frozen,
        graph_def=made,
        inputs=(*frozen.inputs, *(f"{name}:0" for name in stand_ins)),
        outputs=tuple(f"{node}:{port}" for node, port in (*outputs, *parts.exits)),
    )
    proto, notes = export(part, origin)
    return _Attempt(proto, notes, parts, known, seen, stand_ins)


def _observed(source: _Source, tensors: Sequence[Tensor]) -> tuple[tuple[Run, Mapping[Tensor, tuple[int, ...]]], ...]:
    """Shapes of crossing tensors in each run, and in runs with other strings; what TensorFlow refuses is left out."""
    names = [argument.name for argument in source.callee.inputs]
    worded = [run for run in source.runs if any(array.dtype.kind in "OSU" for array in run.inputs.values())]
    runs = [*source.runs, *(Run({name: with_texts(run.inputs[name]) for name in names}, {}) for run in worded)]
    feeds = [[np.asarray(run.inputs[name]) for name in names] for run in runs]
    found = observe(source.graph, tensors, source.frozen, feeds, source.callee.origin, taken=len(source.runs))
    return tuple((run, shapes) for run, shapes in zip(runs, found, strict=True) if shapes is not None)


def _crossing(source: _Source, attempt: _Attempt, tensor: Tensor) -> Crossing:
    """The type of an island's output; a dimension that equals one of the inputs in every run has its symbol."""
    shape = attempt.known.shapes[tensor]
    equal: tuple[str | None, ...] = (None,) * len(shape or ())
    if shape is not None and attempt.seen:
        # The symbols are found by the shapes alone, so the values need not be kept.
        shown = [Run(run.inputs, {"": np.broadcast_to(np.int8(0), shapes[tensor])}) for run, shapes in attempt.seen]
        equal = output_symbols(shown, source.symbols, "", len(shape))
    return Crossing(onnx_dtype(attempt.known.dtypes[tensor]), shape, equal)


def _notes(graph: Graph, parts: Cut) -> list[str]:
    """A line per island."""
    lines = []
    for index, piece in enumerate(parts.pieces):
        ops = ops_of(graph, (*piece.island.members, *piece.island.copies))
        told = ", ".join(ops[:_SHOWN]) + (f" and {len(ops) - _SHOWN} other operators" if len(ops) > _SHOWN else "")
        why = "; ".join(_why(graph, piece.island.reasons))
        count = len(piece.island.members) + len(piece.island.copies)
        lines.append(f"{operator(index)} stays in TensorFlow: {count} node{'s' * (count != 1)} ({told}). {why}")
    return lines


def _why(graph: Graph, reasons: Mapping[str, str]) -> list[str]:
    """Each reason with the operators that it holds for."""
    found: dict[str, list[str]] = {}
    for node, reason in reasons.items():
        found.setdefault(reason, []).append(node)
    return [f"{reason}: {', '.join(ops_of(graph, nodes)[:_SHOWN])}" for reason, nodes in found.items()]


def _nothing_left(graph: Graph, plan: Plan, origin: str) -> str:
    reasons = {node: reason for island in plan.islands for node, reason in island.reasons.items()}
    return (
        f"all work of {origin} would stay in TensorFlow, so there is nothing to convert: "
        f"{'; '.join(_why(graph, reasons))}"
    )


def _unused(graph: Graph, keep: Sequence[str]) -> list[str]:
    """A note for each operator of keep_in_tensorflow that the model has not."""
    inner = [n for name in reached_functions(graph.nodes.values(), graph.library) for n in graph.library[name].node_def]
    present = {node.op for node in (*graph.nodes.values(), *inner)}
    return [f"keep_in_tensorflow names {op}, and the frozen graph has no such node" for op in keep if op not in present]
