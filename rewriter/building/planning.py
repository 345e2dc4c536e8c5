"""From verdicts to segments that the parser has seen exactly as they will be built."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Protocol

from passes.extract import Extractor
from passes.graph.walk import iter_nodes
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
        """Denials by node name; for nodes of the fake list pretences in their place (see `Verdict.pretended`)."""
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

    @functools.cached_property
    def not_runnable(self) -> Mapping[str, str]:
        """Segment name -> why it is never built: it holds nodes of the fake list that TensorRT does not take."""
        found = {}
        for segment in self.segments:
            fakes = [
                verdict
                for node in iter_nodes(segment.model.proto)
                if (verdict := self.support.verdicts.get(node.name)) is not None and verdict.pretended
            ]
            if fakes:
                first, more = fakes[0], f" and {len(fakes) - 1} more" if len(fakes) > 1 else ""
                found[segment.segment.name] = (
                    f"{first.node!r}{more} counted as supported only because op_fakelist (TF_TRT_OP_FAKELIST) names "
                    f"{first.op_type}: {first.reason}"
                )
        return found

    @property
    def runnable(self) -> Plan:
        """The same plan without the segments that are never built; their nodes have no verdict in it."""
        if not self.not_runnable:
            return self
        kept = tuple(s for s in self.segments if s.segment.name not in self.not_runnable)
        cut = dataclasses.replace(self.segmentation, segments=tuple(s.segment for s in kept))
        return Plan(self.support, cut, kept)


def make_plan(
    model: Model,
    support: SupportMap,
    checker: SegmentChecker,
    options: PartitionOptions,
    extractor: Extractor | None = None,
) -> Plan:
    """Partitions, extracts and re-checks until every segment is accepted.

    A cut can change what the parser sees (a constant becomes an input), so a segment made of supported nodes may
    still be refused; the nodes named are denied and the graph is partitioned again. Nodes of the fake list are not
    denied; that the parser refuses them here only is noted in the support map.
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
            answers = checker.check_segment(segment)
            support = support.pretend(answer for answer in answers if answer.supported)
            found = tuple(answer for answer in answers if not answer.supported)
            if not answers:
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
