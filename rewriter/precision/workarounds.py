"""What certain versions of TensorRT compute wrongly or not at all, and how it is avoided.

Every entry was measured; benchmarks/RESULTS.md says where.
"""

from __future__ import annotations

import dataclasses

from passes.precision.recipe import Recipe
from passes.segments import SegmentModel
from rewriter.precision.lowering import Lowered, Lowering


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault of one TensorRT package.

    Attributes:
        flavour: the package.
        versions: beginning of its version numbers.
        mode: precision mode.
        ops: operators that are not quantised because of it.
        reason: what goes wrong, for people.
    """

    flavour: str
    versions: str
    mode: str
    ops: frozenset[str]
    reason: str


_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
FAULTS = (
    Fault("tensorrt_rtx", "1.4.", "INT8", _CONVOLUTIONS, "it has no INT8 convolution, with or without a GPU"),
    Fault("tensorrt_rtx", "1.4.", "FP8", _CONVOLUTIONS, "its FP8 convolution gives numbers of 1e37 on an H100"),
)


def avoid_faults(recipe: Recipe, flavour: str, version: str) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe without what this TensorRT gets wrong, and one sentence for each thing left out.

    Args:
        recipe: what is asked for.
        flavour: the TensorRT package.
        version: its version.
    """
    notes = []
    for fault in FAULTS:
        hit = fault.ops & set(recipe.quantize_ops)
        if recipe.mode == fault.mode and flavour == fault.flavour and version.startswith(fault.versions) and hit:
            left = tuple(op for op in recipe.quantize_ops if op not in hit and op != "Add")
            # Without quantised convolutions there is nothing that a residual Add could be fused with.
            recipe = dataclasses.replace(recipe, quantize_ops=left)
            named = " and ".join(sorted(hit))
            notes.append(f"{fault.mode}: {named} stay in {recipe.float_type} with {flavour} {version}: {fault.reason}")
    return recipe, tuple(notes)


def why_faulty(lowering: Lowering, segment: SegmentModel, lowered: Lowered, flavour: str, version: str) -> str:
    """Why a TensorRT must not build a segment in the arithmetic of an artifact, in one line; "" when it may.

    Another version than that of the conversion may compute it wrongly. Without what that gets wrong its engine would
    have another arithmetic than the artifact's other engines, which nobody asked for.

    Args:
        lowering: the artifact's arithmetic.
        segment: the segment before lowering.
        lowered: the segment after it.
        flavour: the TensorRT package.
        version: its version.
    """
    safe, notes = avoid_faults(lowering.recipe, flavour, version)
    if not notes:
        return ""
    without = dataclasses.replace(lowering, recipe=safe).apply(segment)
    if without.segment.content_hash == lowered.segment.content_hash:
        return ""
    return f"{notes[0]}, and the engines of one node must compute in one arithmetic"
