"""Where the differences of failed pairs begin: a bisection of each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from passes.base import PassError
from rewriter.comparing.values import Comparison, Difference, Pair, PairDifference
from rewriter.errors import ConversionError
from rewriter.runtime.other_errors import first_line

if TYPE_CHECKING:
    from rewriter.artifact import Artifact
    from rewriter.frontend.reference import Reference


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the bisection of one pair found.

    Attributes:
        pair: who differs from whom.
        text: some lines for people.
        details: the same as values that JSON knows; {} where the bisection was not possible.
    """

    pair: Pair
    text: str
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON knows."""
        return {"reference": self.pair.reference, "result": self.pair.result, "text": self.text, **self.details}


def pairs_to_search(comparison: Comparison) -> list[PairDifference]:
    """The failed pairs whose causes are to be found.

    The way from the source to what engines compute leads over the native run: where one of its halves failed, too,
    that half is searched alone.
    """
    failed = {(found.pair.reference, found.pair.result): found for found in comparison.pairs if not found.passed}
    kept = []
    for (reference, result), found in failed.items():
        halves = {("source", "native"), ("native", result)} - {(reference, result)}
        if reference == "source" and halves & set(failed):
            continue
        kept.append(found)
    return kept


def _limit(pair: Pair, found: Difference) -> float | None:
    """The relative difference up to which an output passes, its absolute bound included; None: it is not judged.

    An output that passes only by its absolute bound where the reference is all zero has no such number.
    """
    limit = pair.limit(found.output)
    if limit is None or pair.absolute is None:
        return limit
    if not found.scale:
        return None if pair.passes(found) else limit
    return max(limit, pair.absolute / found.scale)


def find_causes(
    comparison: Comparison,
    artifact: Artifact,
    reference: Reference,
    *,
    on_pair: Callable[[Pair], object] | None = None,
) -> list[Finding]:
    """Bisects every pair of `pairs_to_search`, on the inputs at which it is furthest off.

    What makes a bisection impossible is no error of the comparison: it is told in the finding.

    Args:
        comparison: what was compared.
        artifact: what was converted.
        reference: what it was converted from.
        on_pair: called before each pair.
    """
    from rewriter.comparing.bisection import bisect

    findings = []
    for found in pairs_to_search(comparison):
        pair = found.pair
        if on_pair is not None:
            on_pair(pair)
        limits = {d.output: limit for d in found.differences if (limit := _limit(pair, d)) is not None}
        try:
            result = bisect(
                artifact,
                [found.worst_inputs or {}],
                limits,
                reference=pair.reference,
                result=pair.result,
                source=reference if pair.reference == "source" else None,
            )
        except (ConversionError, PassError) as error:
            words = f"Bisection of {pair.result} against {pair.reference} is not possible: {first_line(error)}"
            findings.append(Finding(pair, words))
            continue
        findings.append(Finding(pair, result.text(), result.to_dict()))
    return findings
