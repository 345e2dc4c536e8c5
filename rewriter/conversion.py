"""What a converter has made so far, as one frozen value, and how it begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from passes.base import PassRecord
from passes.extract import Extractor
from passes.graph.content_hash import WeightDigests
from passes.graph.flops import Estimate
from passes.model import Model, spool
from passes.precision.recipe import Recipe
from passes.splice import splice
from rewriter.backends.oracle import ParserOracle
from rewriter.building.builder import BuildResult, EngineBuilder, SegmentBuild
from rewriter.building.entries import engine_attributes
from rewriter.building.planning import make_plan
from rewriter.denylists import idle_entries
from rewriter.precision.calibration import suspicious
from rewriter.precision.notes import make_precision_report
from rewriter.precision.plan import PrecisionPlan
from rewriter.progress import Stages
from rewriter.reports.making import make_report
from rewriter.reports.operations import count_operations
from rewriter.reports.report import Failure, Report
from rewriter.runtime.native import evaluate
from rewriter.settings import Settings
from rewriter.source import SourceModel


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What `convert()` made; calibration and `build()` replace the result.

    Attributes:
        source: origin, signature and samples; its weights are gone, for the cleaned model has them.
        model: the cleaned model, weights in a file.
        records: what the passes did.
        result: the plan and its lowering, and one build a segment once `build()` has run.
        notes: denylist entries that deny nothing.
        counted: the operations of its nodes.
        pending: how the lowering is to be found; None once it is.
        accuracy: what the accuracy guard measured; None without one.
    """

    source: SourceModel
    model: Model
    records: tuple[PassRecord, ...]
    result: BuildResult
    notes: tuple[Failure, ...]
    counted: Estimate
    pending: PrecisionPlan | None
    accuracy: Mapping[str, Any] | None = None

    @property
    def recipe(self) -> Recipe:
        """What is asked for, and once the lowering is found, without the nodes that had to be kept out."""
        return self.pending.recipe if self.pending else self.result.lowering.recipe

    def settled(self, stages: Stages) -> Conversion:
        """With its lowering: calibrates and asks the accuracy guard, unless that is done.

        Raises:
            InvalidParameterError, InputError, ConversionError: as `PrecisionPlan.settle` raises them.
        """
        if self.pending is None:
            return self
        lowering, measured = self.pending.settle(
            self.model, self.source.signature, self.result.plan.runnable.segments, stages
        )
        result = dataclasses.replace(self.result, lowering=lowering)
        return dataclasses.replace(self, result=result, pending=None, accuracy=measured)

    def report(
        self,
        builder: EngineBuilder,
        timings: Mapping[str, float],
        params: Mapping[str, Any],
        faults: tuple[str, ...] = (),
    ) -> Report:
        """What was done so far.

        Args:
            builder: knows TensorRT and the targets.
            timings: stage -> seconds.
            params: the parameters in force, as plain values.
            faults: what this TensorRT gets wrong and is therefore not asked for.
        """
        remarks = (*faults, *self.source.notes, *suspicious(self.result.lowering.ranges))
        return make_report(
            self.source,
            self.model,
            self.result,
            notes=self.notes,
            records=self.records,
            timings=timings,
            builder=builder,
            params=params,
            precision=make_precision_report(self.recipe, self.result, builder, self.accuracy, remarks),
            counted=self.counted,
        )

    def spliced(self, builds: Mapping[str, SegmentBuild], builder: EngineBuilder) -> Model:
        """The cleaned model with engine nodes; those that `builds` leaves out have no engine files."""
        attributes = engine_attributes(self.result, builds, builder, self.recipe.label)
        return splice(self.model, self.result.plan.segmentation, attributes)


def start_conversion(
    source: SourceModel,
    settings: Settings,
    precision: PrecisionPlan,
    oracle: ParserOracle,
    stages: Stages,
    folder: Path,
) -> Conversion:
    """Cleans and cuts a model; nothing is calibrated or built yet.

    Args:
        source: the exported model.
        settings: what the converter was told.
        precision: how the lowering is to be found.
        oracle: knows what TensorRT supports.
        stages: times the steps.
        folder: where the weights are put; it must outlive the conversion.

    Raises:
        BackendError, MissingDependencyError: TensorRT cannot be asked.
    """
    with stages.stage("passes"):
        model, records = settings.selection.pipeline(evaluate).run(source.model)
        model = spool(model, folder / "weights.data")
    digests = WeightDigests()
    digests.begin(model.weights.values())  # while the parser is asked
    idle = idle_entries(
        model,
        settings.op_denylist,
        settings.node_denylist,
        op_fakelist=settings.op_fakelist,
        translations=settings.switches.translations,
        keep_ops=precision.recipe.keep_ops,
        keep_nodes=precision.recipe.keep_nodes,
    )
    with stages.stage("support"):
        support = oracle.examine(model)
    with stages.stage("partition"):
        plan = make_plan(model, support, oracle, settings.partition, Extractor(model, digests=digests))
    source = dataclasses.replace(source, model=Model(onnx.ModelProto()))
    counted = count_operations(model, source)
    return Conversion(source, model, records, BuildResult(plan, {}, ()), idle, counted, precision)
