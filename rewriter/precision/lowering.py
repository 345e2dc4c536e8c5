"""Segments in the arithmetic that was asked for: a recipe, its ranges, and what had to be kept out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from passes.base import Change, PassError
from passes.extract import rehash
from passes.precision.cast import LowerFloats
from passes.precision.fake_quant import CollapseFakeQuant
from passes.precision.lower import lower
from passes.precision.quantization.placement import Placement, quantized_tensors
from passes.precision.ranges import RangeTable
from passes.precision.recipe import Recipe, origin
from passes.segments import SegmentModel
from passes.support import Verdict
from rewriter.errors import ConversionError
from rewriter.precision.arithmetic import arithmetic


@dataclasses.dataclass(frozen=True)
class Lowered:
    """One segment as TensorRT gets it; boundary names and types are those of the segment.

    Attributes:
        segment: the segment with its lowered model and that model's own content hash.
        changes: what lowering did and did not do, each with its reason.
        arithmetic: what the segment's own nodes compute in -> how many do (see `arithmetic`).
    """

    segment: SegmentModel
    changes: tuple[Change, ...] = ()
    arithmetic: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Lowering:
    """How every segment is lowered.

    Attributes:
        recipe: what is asked for; its `kept` and `unquantized` name the nodes that `reasons` speaks of.
        ranges: calibrated ranges by value name.
        reasons: node of the cleaned model -> why it does not get the arithmetic that was asked for.
    """

    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    ranges: RangeTable = dataclasses.field(default_factory=RangeTable)
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def keeping(self, reasons: Mapping[str, str]) -> Lowering:
        """The same with more nodes in the source's arithmetic."""
        recipe = dataclasses.replace(self.recipe, kept=self.recipe.kept | frozenset(reasons))
        return dataclasses.replace(self, recipe=recipe, reasons={**self.reasons, **reasons})

    def unquantized(self, reasons: Mapping[str, str]) -> Lowering:
        """The same with more nodes in `float_type` instead of 8 bits."""
        recipe = dataclasses.replace(self.recipe, unquantized=self.recipe.unquantized | frozenset(reasons))
        return dataclasses.replace(self, recipe=recipe, reasons={**self.reasons, **reasons})

    def completed(self, segments: Sequence[SegmentModel]) -> Lowering:
        """The same without quantised nodes that read a value whose range nobody knows.

        Either it cannot be calibrated, or it was trained and its fake quantisation is kept out by now.

        Raises:
            ConversionError: a trained range is refused.
        """
        lowering = self
        while True:
            needs = find_needs(segments, lowering.recipe)
            lost = {
                node: f"{self.recipe.mode}: the range of {tensor!r} is not known (it lies in a loop or branch, was "
                "never computed, or was trained by a node that is kept)"
                for tensor in self.ranges.missing(needs.required)
                for node in needs.readers[tensor]
            }
            if not lost:
                return lowering
            lowering = lowering.unquantized(lost)

    def absorb(self, blamed: Sequence[Verdict]) -> tuple[Lowering, list[Verdict]]:
        """(The lowering without what a build failed for, nodes that fail in the source's own arithmetic, too).

        A quantised node goes one step up, to `float_type`; any other lowered node to the source's arithmetic; one that
        has that already is to be denied.
        """
        floats: dict[str, str] = {}
        kept: dict[str, str] = {}
        denials: dict[str, Verdict] = {}
        for verdict in blamed:
            name, reason = origin(verdict.node), f"in {self.recipe.label} {verdict.reason}"
            if self.recipe.quantizes and name not in self.recipe.unquantized | self.recipe.kept:
                floats[name] = reason
            elif self.recipe.changes and name not in self.recipe.kept:
                kept[name] = reason
            else:
                denials.setdefault(name, dataclasses.replace(verdict, node=name))
        return self.unquantized(floats).keeping(kept), list(denials.values())

    def apply(self, segment: SegmentModel) -> Lowered:
        """Lowers one segment.

        Raises:
            ConversionError: a range is missing, or a trained range is refused; the message names the node.
        """
        try:
            result = lower(segment.model, self.recipe, self.ranges)
        except PassError as error:
            raise _refused(segment, self.recipe, error) from error
        changes = result.changes
        if self.recipe.float_type != "FP32" and not any(change.rule == "lower-floats" for change in changes):
            changes = (*changes, *LowerFloats(self.recipe).explain(result.model))
        counts = arithmetic(segment.model, result.model)
        if not result.modified:
            return Lowered(segment, changes, counts)
        return Lowered(rehash(dataclasses.replace(segment, model=result.model)), changes, counts)


@dataclasses.dataclass(frozen=True)
class Needs:
    """Which tensors of a plan INT8 or FP8 would quantise without knowing a range.

    Attributes:
        required: inputs of convolutions and matrix products.
        optional: operands of residual additions, which stay in floating point where there is no range.
        readers: tensor -> the nodes that read it quantised.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    readers: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def tensors(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.required, *self.optional)


def find_needs(segments: Iterable[SegmentModel], recipe: Recipe) -> Needs:
    """The tensors that need a calibrated range; trained ranges (fake quantisation, Q/DQ) are known and left out.

    Raises:
        ConversionError: a trained range is refused; the message names the node.
    """
    required: dict[str, None] = {}
    optional: dict[str, None] = {}
    readers: dict[str, list[str]] = {}
    if recipe.quantizes:
        for segment in segments:
            placement = _placement(segment, recipe)
            required.update(dict.fromkeys(placement.required))
            optional.update(dict.fromkeys(placement.tensors))
            for edge in placement.edges:
                readers.setdefault(edge.tensor, []).append(edge.node)
    return Needs(
        tuple(required),
        tuple(name for name in optional if name not in required),
        {name: tuple(nodes) for name, nodes in readers.items()},
    )


def _placement(segment: SegmentModel, recipe: Recipe) -> Placement:
    try:
        return quantized_tensors(CollapseFakeQuant(recipe).run(segment.model).model, recipe)
    except PassError as error:
        raise _refused(segment, recipe, error) from error


def _refused(segment: SegmentModel, recipe: Recipe, error: PassError) -> ConversionError:
    return ConversionError(f"{segment.segment.name} cannot be lowered to {recipe.label}: {error}")
