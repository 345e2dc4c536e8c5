"""Makes the report out of the values of a conversion."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from passes.base import PassRecord, count_by_rule
from passes.graph.flops import Estimate
from passes.graph_index import iter_scopes
from passes.model import Model
from passes.precision.recipe import origin
from passes.segments import SegmentModel
from rewriter.artifact.manifest import installed_versions, profile_to_json
from rewriter.backends.base import BuiltEngine
from rewriter.building.builder import BuildResult, EngineBuilder, SegmentBuild
from rewriter.params import ConversionParams
from rewriter.reports.report import EngineReport, Failure, PassSummary, PrecisionReport, Report
from rewriter.source import SourceModel

NOT_BUILT = "not built yet: build() has not run"


def make_report(
    source: SourceModel,
    model: Model,
    result: BuildResult,
    *,
    notes: tuple[Failure, ...],
    records: Iterable[PassRecord],
    timings: Mapping[str, float],
    builder: EngineBuilder,
    params: Mapping[str, Any],
    precision: PrecisionReport,
    counted: Estimate | None = None,
) -> Report:
    """Collects everything that a user may ask about a conversion (see `Report`)."""
    plan = result.plan
    engines = tuple(
        _engine(
            segment,
            result.builds.get(segment.segment.name),
            precision.label,
            counted,
            plan.not_runnable.get(segment.segment.name, ""),
        )
        for segment in plan.segments
    )
    built = {e.name for e in engines if e.built}
    inside = sum(s.effective_nodes for s in plan.segmentation.segments if s.name in built)
    total = plan.segmentation.effective_nodes
    return Report(
        source=source.origin,
        engines=engines,
        native=plan.segmentation.native,
        coverage=plan.segmentation.coverage,
        built_coverage=inside / total if total else 1.0,
        total_nodes=sum(len(graph.node) for _, graph in iter_scopes(model.proto)),
        verification=dict(source.verification.max_rel_diff) if source.verification else {},
        failures=(*notes, *result.failures),
        timings=dict(timings),
        passes=tuple(
            PassSummary(r.name, r.options, r.seconds, r.nodes_before, r.nodes_after, count_by_rule(r.changes))
            for r in records
        ),
        versions={
            "python": platform.python_version(),
            **installed_versions(),
            "backend": f"{builder.backend.flavour} {builder.backend.version}",
            "targets": " ".join(builder.targets),
        },
        params=dict(params),
        precision=precision,
        cache=builder.cache.stats if builder.cache else None,
        flops=None if counted is None else counted.total,
    )


def params_to_json(params: ConversionParams, **more: Any) -> dict[str, Any]:
    """Parameters as plain values, with the keyword arguments that TF-TRT did not have."""
    return {**params._asdict(), **more}


def _engine(
    segment: SegmentModel, build: SegmentBuild | None, precision: str, counted: Estimate | None, what_if: str
) -> EngineReport:
    nodes = segment.model.proto.graph.node
    outcome = build.outcome if build else None
    engine = outcome if isinstance(outcome, BuiltEngine) else None
    waits = f"not runnable: {what_if}" if what_if else NOT_BUILT
    reason = "" if engine else (f"{outcome.kind}: {outcome.reason}" if outcome else waits)  # type: ignore[union-attr]
    return EngineReport(
        name=segment.segment.name,
        scope=segment.segment.scope,
        nodes=len(nodes),
        op_counts=dict(sorted(Counter(n.op_type for n in nodes).items(), key=lambda item: (-item[1], item[0]))),
        inputs=segment.inputs,
        outputs=segment.outputs,
        precision=precision,
        built=engine is not None,
        reason=reason,
        size=engine.size if engine else 0,
        seconds=engine.seconds if engine else 0.0,
        layers=engine.layers if engine else 0,
        profiles=tuple(profile_to_json(p) for p in build.profiles) if build else (),
        arithmetic=build.lowered.arithmetic if build else {},
        lowering=count_by_rule(build.lowered.changes) if build else {},
        decisions=_decisions(build) if build else (),
        flops=None if counted is None else counted.of(segment.segment.nodes),
    )


def _decisions(build: SegmentBuild) -> tuple[tuple[str, str, str], ...]:
    """What was left alone; a product of 8-bit values is not, though its sum stays float32, nor are nodes put in."""
    told = [c for c in build.lowered.changes if c.rule.startswith(("keep-", "skip-", "clamp-"))]
    return tuple(
        (c.rule, c.target, c.reason) for c in told if c.rule != "keep-product" and origin(c.target) == c.target
    )
