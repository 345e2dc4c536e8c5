"""From verdicts to segments that the parser has seen exactly as they will be built."""

from __future__ import annotations

import dataclasses
import logging
from typing import Protocol

from passes.extract import Extractor
from passes.model import Model
from passes.partition import PartitionOptions, propose
from passes.segments import Segmentation, SegmentModel
from passes.support import SupportMap, Verdict

logger = logging.getLogger(__name__)

#: After so many rounds a segment that is still refused is denied as a whole, so that planning ends.
MAX_REFINEMENTS = 8


class SegmentChecker(Protocol):
    """Re-parses a segment; returns denials of its nodes, () when the parser takes all of it."""

    def check_segment(self, segment: SegmentModel) -> tuple[Verdict, ...]:
        """Denials by node name."""
        ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """A segmentation in which every segment has passed the parser on its own.

    Attributes:
        support: the verdicts it rests on.
        segmentation: segments and native verdicts.
        segments: the stand-alone models, in the order of `segmentation.segments`.
    """

    support: SupportMap
    segmentation: Segmentation
    segments: tuple[SegmentModel, ...]


def make_plan(
    model: Model,
    support: SupportMap,
    checker: SegmentChecker,
    options: PartitionOptions,
    extractor: Extractor | None = None,
) -> Plan:
    """Partitions, extracts and re-checks until every segment is accepted.

    A cut can change what the parser sees (a constant becomes an input), so a segment made of supported nodes may
    still be refused; the nodes named are denied and the graph is partitioned again.
    """
    extractor = extractor or Extractor(model)
    accepted: set[str] = set()
    refinements = 0
    while True:
        segmentation = propose(model, support, options)
        segments = tuple(extractor.extract(segment) for segment in segmentation.segments)
        denials: list[Verdict] = []
        for segment in segments:
            if segment.content_hash in accepted:
                continue
            found = checker.check_segment(segment)
            if not found:
                accepted.add(segment.content_hash)
            denials += whole(segment, found) if found and refinements >= MAX_REFINEMENTS else found
        if not denials:
            return Plan(support, segmentation, segments)
        refinements += 1
        logger.debug("round %d denies %d nodes: %s", refinements, len(denials), [d.node for d in denials])
        support = support.deny(denials)


def whole(segment: SegmentModel, findings: tuple[Verdict, ...]) -> list[Verdict]:
    """Denies every node of a segment with the reason of the first finding."""
    first = findings[0]
    operators = {n.name: n.op_type for n in segment.model.proto.graph.node}
    return [
        Verdict(
            node, operators[node], False, first.rule, f"its segment stayed refused after repeated cuts: {first.reason}"
        )
        for node in segment.segment.nodes
    ]
