"""What a converter has made so far, as one frozen value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from passes.base import PassRecord
from passes.model import Model
from passes.splice import splice
from rewriter.building import BuildResult, EngineBuilder, SegmentBuild
from rewriter.emulation import emulated_model
from rewriter.engines import engine_attributes
from rewriter.precision_plan import PrecisionPlan
from rewriter.report import Failure
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
        pending: how the lowering is to be found; None once it is.
        accuracy: what the accuracy guard measured; None without one.
    """

    source: SourceModel
    model: Model
    records: tuple[PassRecord, ...]
    result: BuildResult
    notes: tuple[Failure, ...]
    pending: PrecisionPlan | None
    accuracy: Mapping[str, Any] | None = None

    def spliced(self, builds: Mapping[str, SegmentBuild], builder: EngineBuilder) -> Model:
        """The cleaned model with engine nodes; those that `builds` leaves out have no engine files."""
        attributes = engine_attributes(self.result, builds, builder.backend, builder.targets)
        return splice(self.model, self.result.plan.segmentation, attributes)

    def emulated(self) -> Model:
        """The cleaned model with the arithmetic of the engines in the place of every segment."""
        lowering = self.result.lowering
        return emulated_model(self.model, self.result.plan.segments, lowering.recipe, lowering.ranges)
