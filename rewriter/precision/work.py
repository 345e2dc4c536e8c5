"""What a calibration has to look at, as one value: for those who run it elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from passes.base import PassError
from passes.infer_shapes import InferShapes
from passes.island_node import island_nodes
from passes.model import Model
from passes.precision.fake_quant import CollapseFakeQuant
from passes.precision.quantization.placement import quantized_tensors
from passes.precision.ranges import LARGEST, RangeTable
from passes.precision.recipe import Recipe
from passes.segments import SegmentModel
from passes.splice import unsplice
from rewriter.artifact import load_artifact
from rewriter.by_signature import InputFns
from rewriter.errors import ConversionError, InvalidParameterError
from rewriter.frontend import load_source
from rewriter.pass_selection import PassSelection
from rewriter.precision.calibration import Progress, fetchable
from rewriter.precision.lowering import find_needs
from rewriter.precision.options import PrecisionOptions
from rewriter.runtime.native import evaluate
from rewriter.source import Signature

_DEFAULTS = PrecisionOptions()


@dataclasses.dataclass(frozen=True)
class CalibrationWork:
    """A calibration that has not been run.

    Attributes:
        model: the cleaned whole model, not spliced.
        signature: its inputs.
        tensors: names of the values whose ranges are looked for.
        method: how ranges are chosen.
        percentile: of the method "percentile".
    """

    model: Model
    signature: Signature
    tensors: tuple[str, ...]
    method: str = _DEFAULTS.calibration_method
    percentile: float = _DEFAULTS.percentile


@runtime_checkable
class Calibrator(Protocol):
    """Calibration inputs that are gone through in a way of their own, by several machines say."""

    def calibrate(self, work: CalibrationWork, progress: Progress | None = None) -> RangeTable:
        """The ranges that one machine would find with these inputs.

        Raises:
            InputError, ConversionError: inputs do not fit, or the model fails on one.
        """
        ...


#: What `convert()` takes as calibration inputs: for all signatures, for some by their keys, or nothing.
CalibrationInputs = InputFns | Calibrator | Mapping[str, Calibrator | Callable[[], Iterable[Any]]]


def work_for_segments(
    model: Model, signature: Signature, segments: Iterable[SegmentModel], recipe: Recipe, options: PrecisionOptions
) -> CalibrationWork:
    """What `Converter.calibrate()` looks at for these segments.

    Raises:
        ConversionError: a trained range is refused.
    """
    reachable = fetchable(model)
    tensors = [name for name in find_needs(segments, recipe).tensors if name in reachable]
    return CalibrationWork(model, signature, tuple(tensors), options.calibration_method, options.percentile)


def work_for_model(model: Model, signature: Signature) -> CalibrationWork:
    """All that INT8 or FP8 may ask about a model, however it is cut.

    Args:
        model: the cleaned whole model, not spliced.
        signature: its inputs.

    Raises:
        ConversionError: a trained range is refused.
    """
    tensors: dict[str, None] = {}
    for mode in LARGEST:
        recipe = Recipe.of(mode)
        try:
            placement = quantized_tensors(CollapseFakeQuant(recipe).run(model).model, recipe)
        except PassError as error:
            raise ConversionError(f"the model cannot be calibrated for {mode}: {error}") from error
        tensors.update(dict.fromkeys(placement.tensors))
    reachable = fetchable(model)
    return CalibrationWork(model, signature, tuple(name for name in tensors if name in reachable))


def work_for_artifact(path: str | Path, signature: str | None = None) -> CalibrationWork:
    """The same for the model of an artifact, whatever its engines compute in.

    Args:
        path: the folder.
        signature: which one; None for the default one.

    Raises:
        ArtifactError: not an artifact, or a damaged one.
        InvalidParameterError: no such signature.
        ConversionError: a trained range is refused, or engine nodes have lost their functions.
    """
    artifact = load_artifact(path, signature=signature)
    try:
        model = InferShapes().run(unsplice(artifact.model)).model
    except PassError as error:
        raise ConversionError(f"{artifact.path}: {error}") from error
    return work_for_model(model, artifact.signature)


def work_for_source(source: Any) -> CalibrationWork:
    """The same for a model that is read and cleaned as a `Converter` with default settings does it.

    Args:
        source: what `load_source` takes, without further arguments: an .onnx file, a ModelProto, a SavedModel ...

    Raises:
        SourceError, ExportError, VerificationError: it cannot be read or expressed.
        ConversionError: a trained range is refused.
    """
    found = load_source(source)
    model, _ = PassSelection().pipeline(evaluate).run(found.model)
    return work_for_model(model, found.signature)


def check_portable(work: CalibrationWork) -> CalibrationWork:
    """The work, if ONNX Runtime alone can do it.

    Raises:
        InvalidParameterError: there is nothing to find out; or a piece of the model stays in TensorFlow.
    """
    if not work.tensors:
        raise InvalidParameterError(
            "there is nothing to calibrate: the model has no tensor that would be quantised and whose range is not "
            "known already; convert it without ranges"
        )
    islands = [node.name for node in island_nodes(work.model.proto)]
    if islands:
        raise InvalidParameterError(
            f"the model keeps a piece in TensorFlow ({islands[0]}), which other machines may not have: calibrate it "
            "where it is converted (calibration_input_fn), or convert with tensorflow_islands=False"
        )
    return work
