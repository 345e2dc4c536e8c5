"""From what was asked about precision to the lowering of a plan: which ranges are missing, and where they come from."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from passes.model import Model
from passes.precision.ranges import RangeTable
from passes.precision.recipe import Recipe
from passes.segments import SegmentModel
from rewriter.accuracy.guard import guard_lowering
from rewriter.accuracy.target import AccuracyTarget
from rewriter.backends.base import Backend
from rewriter.by_signature import by_signature
from rewriter.errors import InvalidParameterError
from rewriter.params import ConversionParams, check_input_fn, check_kind
from rewriter.precision.calibration import calibrate, fetchable
from rewriter.precision.given import GivenRanges, RangesBySignature, check_calibration, find_ranges, serves
from rewriter.precision.lowering import Lowering, Needs, find_needs
from rewriter.precision.options import PrecisionOptions
from rewriter.precision.work import CalibrationInputs, Calibrator, work_for_segments
from rewriter.precision.workarounds import avoid_faults
from rewriter.progress import ProgressEvent, Stages
from rewriter.runtime.inputs import iterate_samples, sample_feeds
from rewriter.source import Signature

#: Tensors that an error names before it counts the rest.
_NAMED = 5

CalibrationProgress = Callable[[int, "int | None"], object]


@dataclasses.dataclass(frozen=True)
class PrecisionPlan:
    """What was asked for, before anything is known of the model.

    Attributes:
        recipe: mode and options.
        options: how ranges are chosen.
        use_calibration: whether missing ranges are found by calibration.
        given: ranges of an earlier calibration, of whatever signatures; None without.
        accuracy: what must not get lost; None without.
        table: those of this signature, once it is known (`by_signature`); None without.
        input_fn: yields calibration inputs for it, or goes through them by itself; None without.
        notes: what is doubtful about all this, one sentence each, for the report.
    """

    recipe: Recipe
    options: PrecisionOptions
    use_calibration: bool = True
    given: GivenRanges | None = None
    accuracy: AccuracyTarget | None = None
    table: RangeTable | None = None
    input_fn: Callable[[], Iterable[Any]] | Calibrator | None = None
    notes: tuple[str, ...] = ()

    @property
    def waits(self) -> bool:
        """True when there is something to find out before anything can be lowered: ranges, or what breaks a target."""
        return self.recipe.quantizes or self.accuracy is not None

    def on(self, backend: Backend) -> tuple[PrecisionPlan, tuple[str, ...]]:
        """The plan without what this TensorRT gets wrong, and what was left out, a sentence each."""
        if not self.recipe.quantizes:  # asking for the version starts TensorRT
            return self, ()
        recipe, notes = avoid_faults(self.recipe, backend.flavour, backend.version)
        return dataclasses.replace(self, recipe=recipe), notes

    def check_inputs(self, inputs: CalibrationInputs) -> None:
        """Refuses calibration inputs before it is known which signatures there are.

        Args:
            inputs: as `convert()` was given them.

        Raises:
            InvalidParameterError: there are inputs, but nothing to calibrate with them; or they are no function
                without arguments.
        """
        functions = list(inputs.items()) if isinstance(inputs, Mapping) else [(None, inputs)]
        for key, function in functions:
            if function is None:
                continue
            if not self.recipe.quantizes:
                raise _unneeded(f"precision_mode={self.recipe.mode!r} needs no calibration")
            if not self.use_calibration:
                raise _unneeded("use_calibration is False (--no-calibration)")
            if serves(self.given, key):
                raise _unneeded("the ranges are given as calibration= (--calibration)")
            if not isinstance(function, Calibrator):
                check_input_fn("calibration_input_fn", function)

    def by_signature(self, keys: Sequence[str], inputs: CalibrationInputs) -> dict[str, PrecisionPlan]:
        """The plan of every signature: with the ranges that were given for it, else with its calibration inputs.

        Args:
            keys: the signatures.
            inputs: as `convert()` was given them, checked by `check_inputs`. One function for all serves those that
                have no ranges.

        Raises:
            InvalidParameterError: ranges or inputs name a signature that is not converted; an artifact has no ranges
                for one; or the inputs are needed by none.
        """
        functions = by_signature("calibration_input_fn", inputs, keys)
        if isinstance(self.given, RangesBySignature):
            by_signature("calibration", self.given.given, keys)
        found = {key: find_ranges(self.given, key, alone=len(keys) == 1) for key in keys}
        if functions and all(one.table is not None for one in found.values()):
            raise _unneeded("the ranges are given as calibration= (--calibration)")
        return {
            key: dataclasses.replace(
                self, table=one.table, notes=one.notes, input_fn=functions.get(key) if one.table is None else None
            )
            for key, one in found.items()
        }

    def check(self, model: Model, segments: Sequence[SegmentModel]) -> Needs:
        """What has to be calibrated.

        Raises:
            InvalidParameterError: ranges are missing that nobody can give; the message names the tensors.
        """
        needs = find_needs(segments, self.recipe)
        known = self.table or RangeTable()
        missing = known.missing(needs.required)
        if not self.use_calibration and missing:
            raise InvalidParameterError(
                f"use_calibration is False (--no-calibration), but {_tensors(missing)} no range in the model: quantise "
                "the model in training (fake quantisation or Q/DQ), exclude the nodes (keep_ops, keep_nodes), or "
                "calibrate"
            )
        if self.table is not None:
            reachable = fetchable(model)
            absent = [name for name in missing if name in reachable]
            if absent:
                raise InvalidParameterError(
                    f"calibration= (--calibration) was made for another model: {_tensors(absent)} no range in it; "
                    "calibrate again"
                )
        elif self.use_calibration and needs.required and self.input_fn is None:
            raise InvalidParameterError(
                f"precision_mode={self.recipe.mode!r} needs calibration_input_fn (--calibration-inputs): "
                f"{_tensors(needs.required)} no range yet; give typical inputs, or an earlier result as calibration= "
                "(--calibration)"
            )
        return needs

    def settle(
        self, model: Model, signature: Signature, segments: Sequence[SegmentModel], stages: Stages
    ) -> tuple[Lowering, Mapping[str, Any] | None]:
        """The lowering that the accuracy guard is content with, and what it measured (None without a guard).

        Raises:
            InvalidParameterError, InputError, ConversionError: as `lowering` and `guard_lowering` raise them.
        """
        with stages.stage("calibration") if self.input_fn else contextlib.nullcontext():
            found = self.lowering(
                model,
                signature,
                segments,
                lambda done, total: stages.emit(
                    ProgressEvent("calibration", done, total or 0, f"{done} input batches")
                ),
            )
        if self.accuracy is None:
            return found, None
        with stages.stage("accuracy"):
            found, measured = guard_lowering(
                model,
                signature,
                segments,
                found,
                self.accuracy,
                budget=self.accuracy.runs,
                progress=lambda done, total, words: stages.emit(ProgressEvent("accuracy", done, total, words)),
            )
        return found.completed(segments), measured.to_dict()

    def lowering(
        self,
        model: Model,
        signature: Signature,
        segments: Sequence[SegmentModel],
        progress: CalibrationProgress | None = None,
    ) -> Lowering:
        """Calibrates what needs it; nodes whose ranges nobody can know are not quantised, with the reason.

        Raises:
            InvalidParameterError: as `check` raises it.
            InputError, ConversionError: calibration inputs do not fit, or the model fails on one.
        """
        needs = self.check(model, segments)
        table = self.table or RangeTable()
        if self.input_fn is not None and self.use_calibration and needs.tensors:
            work = work_for_segments(model, signature, segments, self.recipe, self.options)
            if isinstance(self.input_fn, Calibrator):
                table = self.input_fn.calibrate(work, progress)
            else:
                feeds = sample_feeds(signature, iterate_samples(self.input_fn()))
                table = calibrate(
                    model, work.tensors, feeds, method=work.method, percentile=work.percentile, progress=progress
                )
        return Lowering(self.recipe, table).completed(segments)


def make_precision_plan(
    params: ConversionParams, precision: object, calibration: object, accuracy: object
) -> PrecisionPlan:
    """The plan that a converter's arguments mean.

    Raises:
        InvalidParameterError: one of them is of another kind, holds a value that is not allowed, or means nothing to
            the precision mode.
        ArtifactError: `calibration` names a file that is no range table.
    """
    options = check_kind("precision", precision, PrecisionOptions) or PrecisionOptions()
    target = check_kind("accuracy", accuracy, AccuracyTarget)
    recipe = options.recipe(params.precision_mode)
    if target is not None and not recipe.changes:
        raise InvalidParameterError(
            f"leave accuracy out: precision_mode={recipe.mode!r} lowers nothing that could be judged by emulation"
        )
    given = check_calibration(calibration)
    if given is not None and not recipe.quantizes:
        raise InvalidParameterError(
            f"leave calibration (--calibration) out: precision_mode={recipe.mode!r} needs no ranges"
        )
    return PrecisionPlan(recipe, options, params.use_calibration, given, target)


def _unneeded(reason: str) -> InvalidParameterError:
    return InvalidParameterError(f"leave calibration_input_fn (--calibration-inputs) out: {reason}")


def _tensors(names: Sequence[str]) -> str:
    """`the tensors 'a', 'b' have`, `the tensor 'a' has`."""
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"the tensor{'s' if len(names) > 1 else ''} {shown}{more} {'have' if len(names) > 1 else 'has'}"
