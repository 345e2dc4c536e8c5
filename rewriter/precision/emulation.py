"""The arithmetic of the engines as a model that ONNX Runtime computes honestly on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from passes.base import PassError
from passes.engine_node import engine_nodes, read_attributes
from passes.extract import Extractor
from passes.model import Model
from passes.precision.emulate import Emulate
from passes.precision.lower import lower
from passes.precision.ranges import RangeTable
from passes.precision.recipe import Recipe
from passes.precision.substitute import substitute
from passes.segments import ENGINE_DOMAIN, SegmentModel
from passes.splice import unsplice
from rewriter.precision.lowering import find_needs


def emulated_model(
    model: Model, segments: Sequence[SegmentModel], recipe: Recipe, ranges: RangeTable | None = None
) -> Model:
    """The model with every segment lowered as `recipe` says, written in float32 operators, Casts and Q/DQ pairs.

    What lies in no segment keeps its own arithmetic. Run the result with `NativeSession(..., honest=True)`: with its
    usual optimisations ONNX Runtime computes other roundings than the graph says.

    Args:
        model: the cleaned model; it stays as it is.
        segments: segments of it, each with the model that was extracted (not lowered).
        recipe: the arithmetic; one that changes nothing gives `model` itself.
        ranges: ranges of what INT8 and FP8 quantise.

    Raises:
        PassError: a range is none, or the segments belong to another model.
    """
    replacements = {}
    for segment in segments if recipe.changes else ():
        lowered = lower(segment.model, recipe, ranges or RangeTable())
        if lowered.modified:
            replacements[segment.segment.name] = Emulate().run(lowered.model).model
    return substitute(model, segments, replacements)


def emulated_artifact(model: Model, recipe: Recipe, ranges: RangeTable | None = None) -> Model:
    """`emulated_model` for a spliced model: of its engine nodes, those whose precision is not FP32 are emulated.

    Raises:
        PassError: an engine node has lost its function or its attributes, or a range is missing.
    """
    native = unsplice(model)
    segments = engine_segments(model, native)
    missing = (ranges or RangeTable()).missing(find_needs(segments, recipe).required)
    if missing:
        raise PassError(
            f"no range of {missing[0]!r} ({len(missing)} in all): build() was not called, or the file is gone"
        )
    return emulated_model(native, segments, recipe, ranges)


def engine_segments(
    spliced: Model, native: Model, *, every: bool = False, hashed: bool = False
) -> tuple[SegmentModel, ...]:
    """The segments behind the engine nodes, cut out of the unspliced model, in graph order.

    Args:
        spliced: the model with the engine nodes.
        native: `unsplice(spliced)`.
        every: False leaves out the nodes whose precision is FP32.
        hashed: True gives them their content hash, which reads all weights.

    Raises:
        PassError: an engine node has lost its function or its attributes.
    """
    extractor = Extractor(native)
    functions = {f.name: f for f in spliced.proto.functions if f.domain == ENGINE_DOMAIN}
    found = []
    for scope, node in engine_nodes(spliced.proto):
        if not every and read_attributes(node).precision == "FP32":
            continue
        if node.op_type not in functions:
            raise PassError(f"engine node {node.name!r} has lost its function: a tool dropped it, convert again")
        names = [inner.name for inner in functions[node.op_type].node]
        found.append(extractor.extract_nodes(scope, names, node.op_type, hashed=hashed))
    return tuple(found)
