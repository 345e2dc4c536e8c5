"""What a conversion would give, before anything is built: coverage, engines, what stays native, other segment sizes."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from passes.graph.flops import Estimate
from passes.graph_index import iter_scopes
from passes.model import Model
from passes.partition import PartitionOptions, propose
from passes.segments import Segmentation, SegmentModel, TensorSpec
from passes.support import SupportMap
from rewriter.building.planning import Plan
from rewriter.conversion import Conversion
from rewriter.params import check_switch
from rewriter.reports.operations import count_operations
from rewriter.reports.report import group_by_reason

DRY_RUN_SCHEMA_VERSION = 1
#: Sizes of the table, as far as the model has segments for them.
LADDER = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
#: What a recommended size must keep of the best size's operations, and of its nodes.
KEEP_FLOPS, KEEP_NODES = 0.99, 0.9


@dataclasses.dataclass(frozen=True)
class DryEngine:
    """One engine that would be built.

    Attributes:
        name: `TRTEngineOp_000` ...
        scope: where its nodes lie; () for the main graph.
        nodes: number of nodes, those in bodies included.
        effective_nodes: those that count towards `minimum_segment_size`.
        flops: estimated operations of one call.
        op_counts: op_type -> number of nodes, most frequent first.
        inputs, outputs: boundary tensors.
        not_runnable: why it would never be built (it holds nodes of the fake list); "" otherwise.
    """

    name: str
    scope: tuple[str, ...]
    nodes: int
    effective_nodes: int
    flops: int
    op_counts: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    not_runnable: str = ""


@dataclasses.dataclass(frozen=True)
class DryNative:
    """Nodes that would stay native, for one reason.

    Attributes:
        rule: who decided: "parser", "denylist", "tensorflow" (an island), "min_segment" ...
        reason: one sentence.
        op_counts: op_type -> number of nodes, most frequent first.
        flops: their estimated operations.
        nodes: their names.
    """

    rule: str
    reason: str
    op_counts: Mapping[str, int]
    flops: int
    nodes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SizeRow:
    """What one `minimum_segment_size` would give.

    Attributes:
        size: the minimum.
        engines: number of segments.
        nodes: effective nodes in them.
        coverage: the same as a fraction of all effective nodes.
        flops: operations in them.
        flops_coverage: the same as a fraction of all operations; None for a model without any.
    """

    size: int
    engines: int
    nodes: int
    coverage: float
    flops: int
    flops_coverage: float | None


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What a conversion would give; nothing is built.

    Attributes:
        source: one line about where the model came from.
        minimum_segment_size: the size in force.
        max_engines: the limit in force; None for none.
        total_nodes: nodes of the cleaned model, bodies included.
        effective_nodes: those that do work.
        coverage: fraction of these in engines.
        flops: estimated operations of one call of the whole model, multiply-add = 2.
        flops_coverage: fraction of them in engines; None when nothing could be counted.
        engines: what would be built.
        native: what would not, grouped by reason, most nodes first.
        sizes: what other minimum sizes would give, ascending.
        recommended: the size that the rule picks; None when no size gives an engine.
        rule: that rule, and what it picked, in words.
        assumptions: what the counts rest on, a line each.
    """

    source: str
    minimum_segment_size: int
    max_engines: int | None
    total_nodes: int
    effective_nodes: int
    coverage: float
    flops: int
    flops_coverage: float | None
    engines: tuple[DryEngine, ...]
    native: tuple[DryNative, ...]
    sizes: tuple[SizeRow, ...]
    recommended: int | None
    rule: str
    assumptions: tuple[str, ...]

    @property
    def unsupported(self) -> Mapping[str, int]:
        """op_type -> number of native nodes that are not left over by the cut alone, most frequent first."""
        found: Counter[str] = Counter()
        for group in self.native:
            if group.rule not in LEFT_OVER:
                found.update(group.op_counts)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return {"schema_version": DRY_RUN_SCHEMA_VERSION, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """The same as indented JSON text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)

    def render(self, line_length: int = 120, *, detailed: bool = True) -> str:
        """Text for a terminal.

        Args:
            line_length: characters a line, at least 80.
            detailed: with the inputs, outputs and operators of each engine.

        Raises:
            InvalidParameterError: line_length is too small, or `detailed` neither True nor False.
        """
        from rewriter.reports.dry_run_text import render_dry_run
        from rewriter.reports.summary import check_line_length

        return render_dry_run(self, check_line_length(line_length), detailed=check_switch("detailed", detailed))

    def __str__(self) -> str:
        return self.render()


#: Rules of nodes that TensorRT would take: the way the graph is cut leaves them over.
LEFT_OVER = frozenset({"min_segment", "pass_through", "dead_end", "constant", "main_graph_native", "max_engines"})


def make_dry_run(
    conversion: Conversion,
    options: PartitionOptions,
    *,
    sizes: Mapping[str, int] | None = None,
    default_dim: int = 1,
) -> DryRun:
    """Describes a conversion that has been cut and not been built.

    Args:
        conversion: what `start_conversion` returned.
        options: how it was cut (`Settings.partition`).
        sizes: dimension name -> the size to count operations for. Default: the first dimension of each input 1, the
            others as in the samples that the model was checked with.
        default_dim: the size of the dimensions that nothing is known of.
    """
    counted = count_operations(conversion.model, conversion.source, sizes, default_dim)
    return describe(conversion.source.origin, conversion.model, conversion.result.plan, options, counted)


def describe(source: str, model: Model, plan: Plan, options: PartitionOptions, counted: Estimate) -> DryRun:
    """The same out of its parts; nothing is asked of TensorRT.

    Args:
        source: one line about the model.
        model: the cleaned model.
        plan: how it is cut.
        options: the options of that cut.
        counted: the operations of its nodes.
    """
    cut = plan.segmentation
    rows = _table(model, plan, options, counted)
    recommended, rule = recommend(rows, options.minimum_segment_size)
    return DryRun(
        source=source,
        minimum_segment_size=options.minimum_segment_size,
        max_engines=options.max_engines,
        total_nodes=sum(len(graph.node) for _, graph in iter_scopes(model.proto)),
        effective_nodes=cut.effective_nodes,
        coverage=cut.coverage,
        flops=counted.total,
        flops_coverage=_share(counted, cut),
        engines=tuple(_engine(s, plan.not_runnable.get(s.segment.name, ""), counted) for s in plan.segments),
        native=_native(plan, counted),
        sizes=rows,
        recommended=recommended,
        rule=rule,
        assumptions=_assumptions(counted),
    )


def recommend(rows: Iterable[SizeRow], current: int) -> tuple[int | None, str]:
    """A size out of the table, and why.

    Every engine costs a launch, so few are better than many as long as the work stays in them: of the sizes that keep
    `KEEP_FLOPS` of the operations and `KEEP_NODES` of the nodes that any size puts into engines, those with the fewest
    engines are best; of these the one in force, else the smallest.

    Args:
        rows: the table.
        current: the size in force, for the words.
    """
    found = [row for row in rows if row.engines and row.size > 0]
    rule = (
        f"Of the sizes that keep at least {KEEP_FLOPS:.0%} of the operations and {KEEP_NODES:.0%} of the nodes that "
        "any size puts into engines, the one with the fewest engines (each costs a launch), then the smallest"
    )
    if not found:
        return None, f"{rule}: no size gives an engine."
    flops, nodes = max(row.flops for row in found), max(row.nodes for row in found)
    good = [row for row in found if row.flops >= KEEP_FLOPS * flops and row.nodes >= KEEP_NODES * nodes]
    # The best by operations need not be the best by nodes; operations decide then.
    good = good or [row for row in found if row.flops >= KEEP_FLOPS * flops]
    best = min(good, key=lambda row: (row.engines, row.size))
    now = next((row for row in found if row.size == current), None)
    if now is not None and now in good and now.engines == best.engines:
        best = now  # nothing would be won by another one
    words = "the one in force" if best.size == current else f"in force is {current}"
    plural = "s" if best.engines != 1 else ""
    return best.size, f"{rule}: {best.size}, with {best.engines} engine{plural} ({words})."


def _engine(segment: SegmentModel, not_runnable: str, counted: Estimate) -> DryEngine:
    ops = Counter(node.op_type for _, graph in iter_scopes(segment.model.proto) for node in graph.node)
    return DryEngine(
        name=segment.segment.name,
        scope=segment.segment.scope,
        nodes=sum(ops.values()),
        effective_nodes=segment.segment.effective_nodes,
        flops=counted.of(segment.segment.nodes),
        op_counts=dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        inputs=segment.inputs,
        outputs=segment.outputs,
        not_runnable=not_runnable,
    )


def _native(plan: Plan, counted: Estimate) -> tuple[DryNative, ...]:
    groups = group_by_reason(plan.segmentation.native)
    inner = frozenset(counted.repeated)  # their bodies' nodes are in the list, too
    return tuple(
        DryNative(g.rule, g.reason, g.ops, counted.of(n for n in g.nodes if n not in inner), g.nodes) for g in groups
    )


def _table(model: Model, plan: Plan, options: PartitionOptions, counted: Estimate) -> tuple[SizeRow, ...]:
    """One row a size; the cut in force as it is, the others as the verdicts known so far would have them."""
    most = _cut(model, plan.support, options, 1)
    largest = max((segment.effective_nodes for segment in most.segments), default=0)
    others = [size for size in LADDER if size <= largest and size != options.minimum_segment_size]
    cuts = {size: most if size == 1 else _cut(model, plan.support, options, size) for size in others}
    cuts[options.minimum_segment_size] = plan.segmentation
    return tuple(_row(size, cuts[size], counted) for size in sorted(cuts))


def _cut(model: Model, support: SupportMap, options: PartitionOptions, size: int) -> Segmentation:
    return propose(model, support, dataclasses.replace(options, minimum_segment_size=size))


def _row(size: int, cut: Segmentation, counted: Estimate) -> SizeRow:
    nodes = sum(segment.effective_nodes for segment in cut.segments)
    flops = sum(counted.of(segment.nodes) for segment in cut.segments)
    return SizeRow(size, len(cut.segments), nodes, cut.coverage, flops, _share(counted, cut))


def _share(counted: Estimate, cut: Segmentation) -> float | None:
    inside = sum(counted.of(segment.nodes) for segment in cut.segments)
    return inside / counted.total if counted.total else None


def _assumptions(counted: Estimate) -> tuple[str, ...]:
    lines = ["Operations are estimated from shapes: a multiply-add counts 2, moving data 0; nothing was run."]
    if counted.sizes:
        lines.append(f"Sizes: {', '.join(f'{name} = {size}' for name, size in counted.sizes.items())}.")
    if counted.guessed:
        lines.append(f"{counted.guessed} dimension(s) that are not known were taken as {counted.default_dim}.")
    if counted.repeated:
        lines.append(f"Bodies of {len(counted.repeated)} control-flow node(s) count once, however often they run.")
    if counted.unknown:
        ops = ", ".join(f"{op} x{number}" if number > 1 else op for op, number in counted.unknown.items())
        lines.append(f"Not counted, for their operations or shapes are unknown: {ops}.")
    lines.append("Other sizes rest on the verdicts known now: TensorRT's parser has not seen their segments.")
    return tuple(lines)
