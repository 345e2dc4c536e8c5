"""What the report says of precision."""

from types import SimpleNamespace

import pytest

from passes.base import Change
from passes.precision.recipe import Recipe
from rewriter.precision.lowering import Lowered, Lowering
from rewriter.precision.notes import make_precision_report


def notes(recipe, changes):
    """The notes about one segment with these changes."""
    builds = {"TRTEngineOp_000": SimpleNamespace(lowered=Lowered(None, tuple(changes)))}
    backend = SimpleNamespace(flavour="tensorrt_rtx", default_targets=("SM89",))
    result = SimpleNamespace(lowering=Lowering(recipe), builds=builds)
    return make_precision_report(recipe, result, SimpleNamespace(backend=backend, targets=("SM89",)), None).notes


FLOATS = [
    Change("float-fake-quant", "range", "it stays"),
    Change("float-fake-quant", "range", "it stays"),
    Change("float-weight", "kernel", "its reader computes in floating point"),
    Change("float-weight", "other", "its reader computes in floating point"),
]


@pytest.mark.parametrize(
    ("recipe", "changes", "told"),
    [
        (
            Recipe.of("INT8"),
            FLOATS,
            "INT8: for nodes that stay in FP16, trained fake quantisation stays float arithmetic (1) and trained 8-bit "
            "weights become floats (2)",
        ),
        (
            Recipe.of("FP8", "BF16"),
            FLOATS[2:],
            "FP8: for nodes that stay in BF16, trained 8-bit weights become floats (2)",
        ),
        (Recipe.of("INT8"), [Change("skip-float", "pair", "it has no float form")], "pair: it has no float form"),
        (Recipe.of("INT8"), [Change("symmetrise", "range", "it is wider")], "range: it is wider"),
    ],
)
def test_trained_quantisation_is_told(recipe, changes, told):
    assert notes(recipe, changes) == (told,)


def test_engines_without_8_bits_say_nothing_of_it():
    assert notes(Recipe.of("FP16"), FLOATS) == ()
    assert notes(Recipe.of("INT8"), []) == ()
