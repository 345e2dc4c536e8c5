"""What a page shows of one signature."""

from __future__ import annotations

import dataclasses

from passes.model import Model
from passes.precision.ranges import RangeTable
from rewriter.artifact.manifest import EngineEntry
from rewriter.reports.report import Report
from rewriter.source import Signature


@dataclasses.dataclass(frozen=True)
class Shown:
    """One signature of a conversion.

    Attributes:
        model: the spliced model.
        report: what the conversion did.
        signature: what the user calls.
        ranges: what calibration found; None where nothing was calibrated.
        files: the engine files; those that cannot be used say why.
    """

    model: Model
    report: Report
    signature: Signature
    ranges: RangeTable | None = None
    files: tuple[EngineEntry, ...] = ()
