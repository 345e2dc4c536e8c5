"""What the report says of precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rewriter.backends.base import Backend
from rewriter.building import BuildResult
from rewriter.report import PrecisionReport

#: Rules of lowering whose changes a user should read one by one.
_TOLD = ("symmetrise",)


def precision_report(
    result: BuildResult,
    backend: Backend,
    targets: tuple[str, ...],
    accuracy: Mapping[str, Any] | None,
    source_notes: Iterable[str] = (),
) -> PrecisionReport:
    """The arithmetic of the engines, and what was kept out of it."""
    lowering = result.lowering
    ranges = lowering.ranges
    notes = list(source_notes)
    for build in result.builds.values():
        notes += [f"{c.target}: {c.reason}" for c in build.lowered.changes if c.rule in _TOLD]
    left_out = [target for target in backend.default_targets if target not in targets]
    if left_out:
        notes.append(
            f"{lowering.recipe.mode}: no engine for {', '.join(left_out)}, which have no such arithmetic: there the "
            "native graph runs"
        )
    notes += _tf32_notes(lowering.recipe.mode, backend)
    return PrecisionReport(
        label=lowering.recipe.label,
        recipe=lowering.recipe.to_json(),
        kept=dict(sorted(lowering.reasons.items())),
        notes=tuple(dict.fromkeys(notes)),
        calibration=(
            {"method": ranges.method, "samples": ranges.samples, "tensors": len(ranges.ranges)} if ranges.ranges else {}
        ),
        accuracy=dict(accuracy or {}),
    )


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
