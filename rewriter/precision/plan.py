"""From what was asked about precision to the lowering of a plan: which ranges are missing, and where they come from."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from passes.model import Model
from passes.precision.ranges import RangeTable
from passes.precision.recipe import Recipe
from passes.segments import SegmentModel
from rewriter.accuracy.guard import guard_lowering
from rewriter.accuracy.target import AccuracyTarget
from rewriter.artifact import manifest as manifests
from rewriter.artifact.manifest_json import manifest_from_json
from rewriter.backends.base import Backend
from rewriter.errors import ArtifactError, InvalidParameterError
from rewriter.params import ConversionParams, check_kind
from rewriter.precision.calibration import calibrate, fetchable, read_ranges
from rewriter.precision.lowering import Lowering, Needs, find_needs
from rewriter.precision.options import PrecisionOptions
from rewriter.precision.workarounds import avoid_faults
from rewriter.progress import ProgressEvent, Stages
from rewriter.runtime.inputs import first_line, iterate_samples, sample_feeds
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
        table: ranges of an earlier calibration; None without.
        input_fn: yields calibration inputs; None without.
        accuracy: what must not get lost; None without.
    """

    recipe: Recipe
    options: PrecisionOptions
    use_calibration: bool = True
    table: RangeTable | None = None
    input_fn: Callable[[], Iterable[Any]] | None = None
    accuracy: AccuracyTarget | None = None

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

    def with_inputs(self, input_fn: Callable[[], Iterable[Any]] | None) -> PrecisionPlan:
        """The plan with the calibration inputs that `convert()` was given.

        Raises:
            InvalidParameterError: there are inputs, but nothing to calibrate with them.
        """
        if input_fn is None:
            return self
        unneeded = ""
        if not self.recipe.quantizes:
            unneeded = f"precision_mode={self.recipe.mode!r} needs no calibration"
        elif not self.use_calibration:
            unneeded = "use_calibration is False (--no-calibration)"
        elif self.table is not None:
            unneeded = "the ranges are given as calibration= (--calibration)"
        if unneeded:
            raise InvalidParameterError(f"leave calibration_input_fn (--calibration-inputs) out: {unneeded}")
        if not callable(input_fn):
            raise InvalidParameterError(
                f"calibration_input_fn must be a function that yields inputs, not {type(input_fn).__name__}"
            )
        return dataclasses.replace(self, input_fn=input_fn)

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
            reachable = fetchable(model)
            table = calibrate(
                model,
                [name for name in needs.tensors if name in reachable],
                sample_feeds(signature, iterate_samples(self.input_fn())),
                method=self.options.calibration_method,
                percentile=self.options.percentile,
                progress=progress,
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
    table = check_calibration(calibration)
    if table is not None and not recipe.quantizes:
        raise InvalidParameterError(
            f"leave calibration (--calibration) out: precision_mode={recipe.mode!r} needs no ranges"
        )
    return PrecisionPlan(recipe, options, params.use_calibration, table, accuracy=target)


def check_calibration(value: object) -> RangeTable | None:
    """Ranges of an earlier calibration: a table, a `calibration.json`, or an artifact that holds one; None without.

    Raises:
        InvalidParameterError: it is none of these.
        ArtifactError: the file is damaged, or is not what the artifact's manifest says.
    """
    if value is None or isinstance(value, RangeTable):
        return value
    if not isinstance(value, (str, Path)):
        raise InvalidParameterError(
            f"calibration must be a RangeTable or a path to calibration.json, not {type(value).__name__}"
        )
    path = Path(value)
    return _artifact_ranges(path) if path.is_dir() else read_ranges(path)


def _artifact_ranges(folder: Path) -> RangeTable:
    """The ranges of an artifact, if they are those that were saved with it.

    Raises:
        ArtifactError: it is no artifact, holds no ranges, or they were changed.
    """
    try:
        data = json.loads((folder / manifests.MANIFEST_FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"calibration: {folder} is no artifact ({manifests.MANIFEST_FILE}: {first_line(error)}): give an artifact "
            f"or the path of a {manifests.RANGES_FILE}"
        ) from error
    record = manifest_from_json(data, str(folder)).files.get(manifests.RANGES_FILE)
    if record is None:
        raise ArtifactError(f"calibration: {folder} holds no {manifests.RANGES_FILE}: nothing was calibrated for it")
    path = folder / manifests.RANGES_FILE
    table = read_ranges(path)
    if manifests.hash_file(path) != record:
        raise ArtifactError(
            f"{folder}: {manifests.RANGES_FILE} is not the file that was saved (its sha256 differs from "
            f"{manifests.MANIFEST_FILE}): save the artifact again, or give the path of the file itself to use it as "
            "it is"
        )
    return table


def _tensors(names: Sequence[str]) -> str:
    """`the tensors 'a', 'b' have`, `the tensor 'a' has`."""
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"the tensor{'s' if len(names) > 1 else ''} {shown}{more} {'have' if len(names) > 1 else 'has'}"
