"""What the report says of precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from passes.base import Change
from passes.precision.recipe import Recipe
from rewriter.backends.base import Backend
from rewriter.building.builder import BuildResult, EngineBuilder
from rewriter.reports.report import PrecisionReport

#: Rules of lowering whose changes a user should read one by one.
_TOLD = ("symmetrise", "skip-float")
#: Rules of lowering whose changes are counted: what nodes that stay in floating point made of trained quantisation.
_COUNTED = {
    "float-fake-quant": "trained fake quantisation stays float arithmetic ({})",
    "float-weight": "trained 8-bit weights become floats ({})",
}


def make_precision_report(
    recipe: Recipe,
    result: BuildResult,
    builder: EngineBuilder,
    accuracy: Mapping[str, Any] | None,
    remarks: Iterable[str] = (),
) -> PrecisionReport:
    """The arithmetic of the engines, and what was kept out of it.

    Args:
        recipe: what is asked for, and once that is known, without what had to be kept out.
        result: what was built.
        builder: knows TensorRT and the targets.
        accuracy: what the accuracy guard measured.
        remarks: what the front end and others have to say.
    """
    lowering = result.lowering
    ranges = lowering.ranges
    notes = list(remarks)
    for build in result.builds.values():
        notes += [f"{c.target}: {c.reason}" for c in build.lowered.changes if c.rule in _TOLD]
    if recipe.quantizes:
        notes += _float_notes(recipe, [c for build in result.builds.values() for c in build.lowered.changes])
    left_out = [target for target in builder.backend.default_targets if target not in builder.targets]
    if left_out:
        notes.append(
            f"{recipe.mode}: no engine for {', '.join(left_out)}, for they have no such arithmetic: there the native "
            "graph runs"
        )
    notes += _tf32_notes(recipe.mode, builder.backend)
    return PrecisionReport(
        label=recipe.label,
        recipe=recipe.to_json(),
        kept=dict(sorted(lowering.reasons.items())),
        notes=tuple(dict.fromkeys(notes)),
        calibration=(
            {"method": ranges.method, "samples": ranges.samples, "tensors": len(ranges.ranges)} if ranges.ranges else {}
        ),
        accuracy=dict(accuracy or {}),
    )


def _float_notes(recipe: Recipe, changes: Iterable[Change]) -> list[str]:
    """One sentence about trained quantisation that is not computed in 8 bits; none without such."""
    targets: dict[str, set[str]] = {rule: set() for rule in _COUNTED}
    for change in changes:
        targets.get(change.rule, set()).add(change.target)
    told = [words.format(len(targets[rule])) for rule, words in _COUNTED.items() if targets[rule]]
    if not told:
        return []
    return [f"{recipe.mode}: for nodes that stay in {recipe.float_type}, {' and '.join(told)}"]


def _tf32_notes(mode: str, backend: Backend) -> list[str]:
    """FP32 and TF32 differ by a flag of the builder, which not every TensorRT obeys."""
    if mode not in ("FP32", "TF32"):
        return []
    if backend.flavour == "tensorrt_rtx":
        # Measured with 1.4 on an H100: the same differences from the reference, whichever way the flag was set.
        return [
            "TensorRT-RTX computes FP32 convolutions and matrix products in TF32 (10 bits of mantissa) whatever the "
            f"precision mode says; asked for: {mode}"
        ]
    words = "may compute in TF32 (10 bits of mantissa)" if mode == "TF32" else "computes in full FP32, TF32 is off"
    return [f"TensorRT {words}"]
