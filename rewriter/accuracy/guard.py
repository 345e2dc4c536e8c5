"""The accuracy guard: finds, in emulation, the nodes that must keep their precision for a target to be met."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnx import NodeProto, TensorProto

from passes.base import PassError
from passes.graph.walk import iter_nodes
from passes.model import Model
from passes.precision.element_types import element_types
from passes.precision.recipe import Recipe
from passes.segments import SegmentModel
from rewriter.accuracy.bisect import Finding, Score, find_guilty
from rewriter.accuracy.report import GuardReport, GuardResult, KeptNode
from rewriter.accuracy.target import AccuracyTarget, Judgement, Outputs
from rewriter.errors import ConversionError, InputError
from rewriter.source import Signature

if TYPE_CHECKING:
    from rewriter.precision.lowering import Lowering

#: Runs of the emulated model over all data that one search may take.
BUDGET = 64

#: The two ways out of lower precision: fields of `Recipe` that name nodes.
UNQUANTIZED, KEPT = "unquantized", "kept"

#: Types that lowering makes narrower; a value of unknown type may be one of them.
_LOWERED_TYPES = (TensorProto.FLOAT, TensorProto.UNDEFINED)

#: The outputs of the emulated model, one dict an input, when it is lowered by this recipe.
Evaluate = Callable[[Recipe], Sequence[Outputs]]
#: Called before every run with (runs done, runs at most, what is lowered in this one).
GuardProgress = Callable[[int, int, str], object]


def guard_lowering(
    model: Model,
    signature: Signature,
    segments: Sequence[SegmentModel],
    lowering: Lowering,
    target: AccuracyTarget,
    *,
    budget: int = BUDGET,
    progress: GuardProgress | None = None,
) -> tuple[Lowering, GuardReport]:
    """Runs `guard` on a model in emulation; the lowering that comes back meets the target there.

    Args:
        model: the cleaned model that `segments` were cut from.
        signature: what the target's data are bound to, and what outputs are called.
        segments: those of the plan.
        lowering: recipe and ranges (calibrated by now).
        target: what to meet.
        budget: runs of the emulated model at most (one more when no node can be lowered).
        progress: called before every run.

    Raises:
        InputError: an input of the target does not fit the signature.
        InvalidParameterError: the native model misses the target itself, or the metric fails.
        ConversionError: the model fails on the data, or the target is missed with nothing lowered.
    """
    from rewriter.precision.emulation import emulated_model
    from rewriter.runtime.inputs import sample_feeds

    try:
        feeds = list(sample_feeds(signature, target.samples()))
    except InputError as error:
        raise InputError(f"AccuracyTarget: data: {error}") from error

    def evaluate(recipe: Recipe) -> list[Outputs]:
        try:
            emulated = emulated_model(model, segments, recipe, lowering.ranges)
        except PassError as error:
            raise ConversionError(f"the engines cannot be emulated: {error}") from error
        return run_model(emulated, signature, feeds, honest=True)

    native = run_model(model, signature, feeds)
    result = guard(target, segments, lowering.recipe, evaluate, native, budget=budget, progress=progress)
    step = lowering.unquantized if result.report.rung == UNQUANTIZED else lowering.keeping
    return step(result.kept), result.report


def run_model(
    model: Model, signature: Signature, feeds: Iterable[Mapping[str, Any]], *, honest: bool = False
) -> list[Outputs]:
    """Outputs by public name for every feed, computed by ONNX Runtime on the CPU.

    Args:
        model: the model.
        signature: what its outputs are called.
        feeds: by ONNX input name.
        honest: see `NativeSession`; for emulated models.

    Raises:
        ConversionError: ONNX Runtime refuses the model or fails on an input; the message says which.
    """
    from rewriter.runtime.native import open_native
    from rewriter.runtime.other_errors import first_line

    names = list(dict.fromkeys(spec.tensor for spec in signature.outputs))
    try:
        session = open_native(model, names, honest=honest)
    except ConversionError:
        raise
    except Exception as error:  # ONNX Runtime's errors share no narrower base class
        kind = "emulated" if honest else "native"
        raise ConversionError(f"ONNX Runtime refuses the {kind} model: {first_line(error)}") from error
    outputs: list[Outputs] = []
    for number, feed in enumerate(feeds):
        try:
            found = session.run(feed)
        except Exception as error:
            raise ConversionError(
                f"the model fails on input {number} of AccuracyTarget: {first_line(error)}"
            ) from error
        outputs.append({spec.name: found[spec.tensor] for spec in signature.outputs})
    return outputs


def guard(
    target: AccuracyTarget,
    segments: Sequence[SegmentModel],
    recipe: Recipe,
    evaluate: Evaluate,
    native: Sequence[Outputs],
    *,
    budget: int = BUDGET,
    progress: GuardProgress | None = None,
) -> GuardResult:
    """Finds nodes to keep so that the target is met.

    First whole segments are tried (which of them break the target?), then the nodes of those that do; see
    `find_guilty`. Where INT8 or FP8 goes with a lower float type and that type alone meets the target, guilty nodes are
    left in it; else, and in all other modes, they stay as the source has them.

    Args:
        target: what to meet.
        segments: those of the plan.
        recipe: how they are to be lowered; what it keeps already stays kept.
        evaluate: runs the emulated model on the target's data; called once for a set of kept nodes.
        native: the outputs of the native model for the same data.
        budget: runs at most, at least 1 (one more when no node can be lowered).
        progress: called before every run.

    Raises:
        InvalidParameterError: the native model misses the target itself, or the metric fails.
        ConversionError: the target is missed although nothing is lowered.
    """
    start = time.perf_counter()
    target.check_native(native)
    runs = _climb(_Runs(target, recipe, segments, evaluate, native, budget, progress, UNQUANTIZED))
    if not runs.all:  # a recipe that changes nothing, or a model without segments
        same = target.judge(native, native)
        return _result(runs, {}, same, same, exhausted=False, start=start)
    reasons, exhausted = _search(runs, budget)
    before = runs.judge(runs.all, "all")
    after = runs.judge(runs.all.difference(reasons), "rest")
    if not after.passed:
        raise ConversionError(
            f"the accuracy target cannot be met: with nothing lowered {after.text}; allow a larger difference"
        )
    return _result(runs, reasons, before, after, exhausted=exhausted, start=start)


def _climb(gentle: _Runs) -> _Runs:
    """Runs whose guilty nodes are left in the float type, if that is enough for the target; else the others."""
    recipe = gentle.recipe
    strict = gentle.on(KEPT)
    if not (recipe.quantizes and recipe.float_type != "FP32" and gentle.all):
        return strict
    everything = gentle.judge(gentle.all, "all")
    if everything.passed or gentle.judge(frozenset(), "floats").passed:
        return gentle
    strict.remember(strict.all, everything)
    return strict


def lowered_nodes(segment: SegmentModel, recipe: Recipe, rung: str = KEPT) -> tuple[str, ...]:
    """Names of the nodes that lowering may change, in topological order, bodies included.

    With `UNQUANTIZED` these are those that may be quantised. Else, with FP16 or BF16 all that read or make FP32 values
    (or such of unknown type); with FP32 beside INT8, FP8 or INT4 only those of the operators that are quantised. What
    the recipe keeps is left out.
    """
    if not recipe.changes or (rung == UNQUANTIZED and not recipe.quantizes):
        return ()
    types = element_types(segment.model)

    def changes(node: NodeProto) -> bool:
        if rung == UNQUANTIZED:
            return node.op_type in recipe.quantize_ops and not recipe.leaves(node)
        if recipe.float_type != "FP32":
            return any(types.get(name, TensorProto.UNDEFINED) in _LOWERED_TYPES for name in _values(node))
        return (recipe.quantizes and node.op_type in recipe.quantize_ops) or (
            recipe.int4_block > 0 and node.op_type == "MatMul"
        )

    return tuple(
        node.name for node in iter_nodes(segment.model.proto.graph) if not recipe.keeps(node) and changes(node)
    )


class _Runs:
    """Runs of the emulated model, each set of lowered nodes once."""

    def __init__(
        self,
        target: AccuracyTarget,
        recipe: Recipe,
        segments: Sequence[SegmentModel],
        evaluate: Evaluate,
        native: Sequence[Outputs],
        budget: int,
        progress: GuardProgress | None,
        rung: str,
        measurements: list[Mapping[str, Any]] | None = None,
    ) -> None:
        self.target, self.recipe, self.native, self.rung = target, recipe, native, rung
        found = {s.segment.name: lowered_nodes(s, recipe, rung) for s in segments}
        self.nodes = {name: nodes for name, nodes in found.items() if nodes}
        self.all = self.of(self.nodes)
        self.operators = {n.name: n.op_type for s in segments for n in iter_nodes(s.model.proto.graph)}
        self.measurements: list[Mapping[str, Any]] = [] if measurements is None else measurements
        self._segments, self._evaluate, self._budget, self._progress = segments, evaluate, budget, progress
        self._known: dict[frozenset[str], Judgement] = {}

    def on(self, rung: str) -> _Runs:
        """Runs with another way out; measurements go on being counted together."""
        return _Runs(
            self.target,
            self.recipe,
            self._segments,
            self._evaluate,
            self.native,
            self._budget,
            self._progress,
            rung,
            self.measurements,
        )

    def remember(self, lowered: frozenset[str], judgement: Judgement) -> None:
        """Takes over what was measured on another way."""
        self._known[lowered] = judgement

    @property
    def count(self) -> int:
        """Runs so far."""
        return len(self.measurements)

    def of(self, segments: Iterable[str]) -> frozenset[str]:
        """All nodes of these segments."""
        return frozenset(node for name in segments for node in self.nodes[name])

    def without(self, names: Iterable[str]) -> Recipe:
        """The recipe with more nodes out of lower precision."""
        more = getattr(self.recipe, self.rung) | frozenset(names)
        return dataclasses.replace(self.recipe, **{self.rung: more})

    def score(self, lowered: frozenset[str], level: str) -> Score:
        """The judgement as the search wants it."""
        judgement = self.judge(lowered, level)
        return Score(judgement.passed, judgement.excess, judgement.value, judgement.text)

    def judge(self, lowered: frozenset[str], level: str) -> Judgement:
        """The judgement with these nodes lowered and all others kept."""
        if lowered not in self._known:
            if self._progress is not None:
                words = f"{len(lowered)} of {len(self.all)} nodes in {self.recipe.label}"
                self._progress(self.count, self._budget, words)
            recipe = self.without(self.all - lowered)
            judgement = self.target.judge(self.native, self._evaluate(recipe))
            self._known[lowered] = judgement
            self.measurements.append(
                {"level": level, "lowered": len(lowered), "value": judgement.value, "passed": judgement.passed}
            )
        return self._known[lowered]


def _search(runs: _Runs, budget: int) -> tuple[dict[str, str], bool]:
    """(node to keep -> reason, whether the runs allowed were used up)."""
    guilty, exhausted = tuple(runs.nodes), False
    spent = f"{runs.recipe.label}: the runs allowed ({budget}) were used up before this node was tried"
    if runs.count >= budget:  # asking whether the float type alone is enough took them all
        if runs.judge(runs.all, "all").passed:  # known by then
            return {}, False
        return dict.fromkeys((node for nodes in runs.nodes.values() for node in nodes), spent), True
    ideal = runs.target.judge(runs.native, runs.native).excess
    if len(runs.nodes) > 1:
        found = find_guilty(guilty, lambda names: runs.score(runs.of(names), "segments"), max(budget // 2, 1), ideal)
        guilty, exhausted = tuple(found.kept), found.exhausted
    units = [node for name in guilty for node in runs.nodes[name]]
    free = runs.all.difference(units)
    if not units:
        return {}, False
    if runs.count >= budget:
        return dict.fromkeys(units, spent), True
    if free:
        ideal = runs.judge(free, "segments").excess  # measured before: the first search ended there
    search = find_guilty(units, lambda lowered: runs.score(free | lowered, "nodes"), budget - runs.count, ideal)
    beside = " beside the segments that can be" if free else ""
    reasons = {unit: _reason(runs.recipe, finding, beside) for unit, finding in search.kept.items()}
    return reasons, exhausted or search.exhausted


def _reason(recipe: Recipe, finding: Finding, beside: str) -> str:
    """One line for people: what was measured, and with what lowered."""
    which = "this node" if finding.group == 1 else f"a group of {finding.group} nodes with this one"
    if finding.kind == "untried":
        when = "with everything lowered; the runs allowed were used up before this node was tried"
    elif finding.kind == "alone":
        when = f"when {which} is lowered{beside}" if beside else f"when {which} alone is lowered"
    else:
        when = f"when {which} is lowered beside those that can be"
    return f"{recipe.label}: {finding.score.text} {when}"


def _result(
    runs: _Runs, reasons: Mapping[str, str], before: Judgement, after: Judgement, *, exhausted: bool, start: float
) -> GuardResult:
    homes = {node: name for name, found in runs.nodes.items() for node in found}
    report = GuardReport(
        target=runs.target.text,
        precision=runs.recipe.label,
        before=before,
        after=after,
        kept=tuple(KeptNode(node, runs.operators[node], homes[node], reason) for node, reason in reasons.items()),
        rung=runs.rung,
        nodes=len(homes),
        inputs=len(runs.native),
        runs=runs.count,
        seconds=time.perf_counter() - start,
        exhausted=exhausted,
        measurements=tuple(runs.measurements),
    )
    return GuardResult(runs.without(reasons), dict(reasons), before, after, report)


def _values(node: NodeProto) -> tuple[str, ...]:
    return tuple(name for name in (*node.input, *node.output) if name)
