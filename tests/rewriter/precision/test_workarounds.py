"""Known faults of TensorRT versions are not asked for, and that is told."""

import pytest

from passes.precision.recipe import Recipe
from rewriter.precision.workarounds import avoid_faults


@pytest.mark.parametrize("mode", ["INT8", "FP8"])
def test_an_old_rtx_gets_no_quantised_convolutions(mode):
    recipe, notes = avoid_faults(Recipe.of(mode), "tensorrt_rtx", "1.4.0.76")
    assert recipe.quantize_ops == ("MatMul", "Gemm")
    (note,) = notes
    assert note.startswith(f"{mode}: Conv and ConvTranspose stay in FP16 with tensorrt_rtx 1.4.0.76: ")


@pytest.mark.parametrize(
    ("recipe", "flavour", "version"),
    [
        (Recipe.of("INT8"), "tensorrt_rtx", "1.7.1.116"),
        (Recipe.of("INT8"), "tensorrt_rtx", "1.40.0.1"),
        (Recipe.of("INT8"), "tensorrt", "1.4.0"),
        (Recipe.of("FP16"), "tensorrt_rtx", "1.4.0.76"),
        (Recipe.of("INT8", quantize_ops=("MatMul",)), "tensorrt_rtx", "1.4.0.76"),
    ],
)
def test_everything_else_stays(recipe, flavour, version):
    assert avoid_faults(recipe, flavour, version) == (recipe, ())
