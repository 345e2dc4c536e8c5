"""The one literal list of the lowering steps."""

from __future__ import annotations

from passes.base import Change, Pass, PassResult, Pipeline
from passes.model import Model
from passes.precision.cast import LowerFloats
from passes.precision.fake_quant import CollapseFakeQuant
from passes.precision.float_weights import FloatWeights
from passes.precision.opset import RaiseOpset
from passes.precision.qdq import InsertQDQ
from passes.precision.quantization.split_pairs import SplitPairs
from passes.precision.ranges import RangeTable
from passes.precision.recipe import Recipe
from passes.precision.weight_only import Int4Weights

#: Operator set that a feature needs: FP8 and INT4 constants are no ONNX types before.
_FP8_OPSET, _INT4_OPSET = 19, 21


def lowering_pipeline(recipe: Recipe, ranges: RangeTable) -> Pipeline:
    """The steps from a segment's own arithmetic to that of `recipe`, in their order.

    1. The operator set is raised to what FP8 or INT4 needs.
    2. Trained fake quantisation becomes Q/DQ pairs, so that calibrated ranges never replace trained ones. Recipes that
       do not quantise make trained int8 weights floats again; so do others for the nodes that they leave in floating
       point, whose fake quantisation stays float arithmetic.
    3. Weights become INT4, before the rest is quantised: a MatMul with INT4 weights keeps float activations.
    4. Q/DQ pairs go in front of what INT8 or FP8 computes.
    5. What floating point is left is lowered last. Products of 8-bit values and their scales stay float32, so what
       else reads such a value gets a pair of its own before.
    """
    steps: list[Pass] = []
    if recipe.int4_block or recipe.mode == "FP8":
        steps.append(RaiseOpset(_INT4_OPSET if recipe.int4_block else _FP8_OPSET))
    steps.append(CollapseFakeQuant(recipe) if recipe.quantizes else FloatWeights())
    if recipe.int4_block:
        steps.append(Int4Weights(recipe))
    if recipe.quantizes:
        steps.append(InsertQDQ(recipe, ranges))
    if recipe.float_type != "FP32":
        steps += [SplitPairs(), LowerFloats(recipe)] if recipe.quantizes else [LowerFloats(recipe)]
    return Pipeline(tuple(steps))


def lower(model: Model, recipe: Recipe, ranges: RangeTable | None = None) -> PassResult:
    """The model in the arithmetic of `recipe`; its inputs and outputs keep names and types.

    Args:
        model: a stand-alone segment, as `passes.extract` makes it; it stays as it is.
        recipe: what is asked for.
        ranges: ranges of the tensors that INT8 and FP8 quantise; those with trained Q/DQ need none.

    Raises:
        PassError: a range is none, or a trained range is one that `recipe.asymmetric` refuses.
    """
    lowered, records = lowering_pipeline(recipe, ranges or RangeTable()).run(model)
    changes: list[Change] = [change for record in records for change in record.changes]
    return PassResult(lowered, tuple(changes))
