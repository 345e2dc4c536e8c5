"""What a recipe says, keeps and remembers."""

import pytest
from onnx import helper

from passes.precision.recipe import MODES, Recipe, origin


@pytest.mark.parametrize(
    ("mode", "float_type", "label"),
    [
        ("FP32", "FP32", "FP32"),
        ("TF32", "FP32", "TF32"),
        ("FP16", "FP16", "FP16"),
        ("BF16", "BF16", "BF16"),
        ("INT8", "FP16", "INT8+FP16"),
        ("FP8", "FP16", "FP8+FP16"),
    ],
)
def test_the_mode_decides_what_floats_compute_in(mode, float_type, label):
    recipe = Recipe.of(mode)
    assert (recipe.float_type, recipe.label) == (float_type, label)


def test_labels_tell_recipes_apart():
    assert Recipe.of("INT8", "FP32").label == "INT8"
    assert Recipe.of("INT8", "BF16").label == "INT8+BF16"
    assert Recipe.of("FP16", int4_block=32).label == "FP16+INT4"


@pytest.mark.parametrize("mode", MODES)
def test_only_fp32_and_tf32_change_nothing(mode):
    assert Recipe.of(mode).changes == (mode not in ("FP32", "TF32"))
    assert Recipe.of(mode, int4_block=16).changes


@pytest.mark.parametrize(
    ("recipe", "kept"),
    [
        (Recipe(), False),
        (Recipe(keep_ops=("Conv",)), True),
        (Recipe(keep_ops=("Con",)), False),
        (Recipe(keep_nodes=("block1/",)), True),
        (Recipe(keep_nodes=("^conv",)), False),
        (Recipe(kept=frozenset({"block1/conv"})), True),
        (Recipe(kept=frozenset({"block1"})), False),
    ],
)
def test_what_is_kept(recipe, kept):
    assert recipe.keeps(helper.make_node("Conv", ["x", "w"], ["y"], "block1/conv")) is kept


def test_a_node_made_by_lowering_is_kept_with_the_node_it_stems_from():
    node = helper.make_node("Cast", ["x"], ["y"], "block1/conv//cast")
    assert origin(node.name) == "block1/conv"
    assert Recipe(kept=frozenset({"block1/conv"})).keeps(node)


def test_json_keeps_every_field():
    recipe = Recipe.of(
        "INT8", "BF16", keep_ops=("Add",), kept=frozenset({"b", "a"}), asymmetric="refuse", int4_block=32
    )
    data = recipe.to_json()
    assert data["kept"] == ["a", "b"]
    assert Recipe.from_json(data) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "FP64"}, "unknown precision 'FP64'"),
        ({"float_type": "FP8"}, "unknown precision 'INT8' with 'FP8'"),
        ({"speed": 1}, "lacks or misspells"),
    ],
)
def test_a_recipe_of_another_kind_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_json({**Recipe.of("INT8").to_json(), **change})


def test_a_recipe_without_a_field_is_refused():
    data = Recipe.of("INT8").to_json()
    del data["kept"]
    with pytest.raises(ValueError, match="kept"):
        Recipe.from_json(data)
