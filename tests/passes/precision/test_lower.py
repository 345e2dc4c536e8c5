"""The lowering steps in their order, and what they leave of boundaries and names."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from passes.base import verify
from passes.canonicalize import Canonicalize
from passes.infer_shapes import InferShapes
from passes.model import from_proto
from passes.precision.lower import lower, lowering_pipeline
from passes.precision.ranges import RangeTable, TensorRange
from passes.precision.recipe import MODES, Recipe, origin
from passes.testing import random_model

RANGES = RangeTable({"x": TensorRange(-3, 3), "r": TensorRange(0, 4)})


def mlp(opset=18):
    """MatMul-Relu-MatMul on [4, 32]."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (32, 16)), ("v", (16, 8)))
    ]
    graph = h.make_graph(
        [
            h.make_node("MatMul", ["x", "w"], ["m"], "first"),
            h.make_node("Relu", ["m"], ["r"], "relu"),
            h.make_node("MatMul", ["r", "v"], ["y"], "second"),
        ],
        "g",
        [h.make_tensor_value_info("x", T.FLOAT, [4, 32])],
        [h.make_tensor_value_info("y", T.FLOAT, [4, 8])],
        weights,
        value_info=[h.make_tensor_value_info(name, T.FLOAT, [4, 16]) for name in "mr"],
    )
    return from_proto(h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=10))


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [
        (Recipe.of("FP32"), ["float_weights"]),
        (Recipe.of("TF32"), ["float_weights"]),
        (Recipe.of("FP16"), ["float_weights", "lower_floats"]),
        (Recipe.of("INT8"), ["collapse_fake_quant", "insert_qdq", "split_pairs", "lower_floats"]),
        (Recipe.of("INT8", "FP32"), ["collapse_fake_quant", "insert_qdq"]),
        (Recipe.of("FP8"), ["raise_opset", "collapse_fake_quant", "insert_qdq", "split_pairs", "lower_floats"]),
        (Recipe.of("BF16", int4_block=16), ["raise_opset", "float_weights", "int4_weights", "lower_floats"]),
        (
            Recipe.of("INT8", int4_block=16),
            ["raise_opset", "collapse_fake_quant", "int4_weights", "insert_qdq", "split_pairs", "lower_floats"],
        ),
    ],
)
def test_the_steps_of_a_recipe(recipe, steps):
    assert [step.name for step in lowering_pipeline(recipe, RANGES).passes] == steps


@pytest.mark.parametrize("mode", MODES)
def test_boundaries_and_names_stay(mode):
    model = mlp()
    lowered = lower(model, Recipe.of(mode), RANGES).model
    assert list(lowered.proto.graph.input) == list(model.proto.graph.input)
    assert list(lowered.proto.graph.output) == list(model.proto.graph.output)
    names = {node.name for node in lowered.proto.graph.node}
    assert {"first", "relu", "second"} <= names
    assert {origin(name) for name in names} <= {"first", "relu", "second", "x", "m", "r", "y", "w", "v"}


@pytest.mark.parametrize("mode", MODES)
def test_the_model_given_stays_as_it_is(mode):
    model = mlp()
    before, weights = model.proto.SerializeToString(), {n: w.copy() for n, w in model.weights.items()}
    lower(model, Recipe.of(mode, int4_block=16), RANGES)
    assert model.proto.SerializeToString() == before
    for name, weight in weights.items():
        np.testing.assert_array_equal(model.weights[name], weight)


@pytest.mark.parametrize("mode", MODES)
def test_lowering_is_deterministic(mode):
    one, two = (lower(mlp(), Recipe.of(mode), RANGES).model for _ in range(2))
    assert one.proto.SerializeToString() == two.proto.SerializeToString()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(8))
def test_random_models_stay_valid(mode, seed):
    model = InferShapes().run(Canonicalize().run(from_proto(random_model(seed))).model).model
    lowered = lower(model, Recipe.of(mode), RangeTable()).model
    verify(lowered, f"lowering to {mode}", canonical=True)
    assert [o.name for o in lowered.proto.graph.output] == [o.name for o in model.proto.graph.output]


def test_int4_weights_keep_their_product_out_of_int8():
    lowered = lower(mlp(), Recipe.of("INT8", "FP32", int4_block=16), RANGES)
    types = {t.data_type for t in lowered.model.proto.graph.initializer}
    assert T.INT4 in types
    assert not any(node.op_type == "QuantizeLinear" for node in lowered.model.proto.graph.node)


def test_everything_kept_changes_nothing():
    model = mlp()
    lowered = lower(model, Recipe.of("INT8", kept=frozenset({"first", "relu", "second"})), RANGES)
    assert lowered.model.proto == model.proto
    assert {change.rule for change in lowered.changes} == {"skip-quantize"}


def test_nodes_that_are_not_quantised_get_the_float_type_all_the_same():
    recipe = Recipe.of("INT8", unquantized=frozenset({"first", "second"}))
    lowered = lower(mlp(), recipe, RANGES).model
    alone = lower(mlp(), Recipe.of("FP16")).model
    assert lowered.proto == alone.proto


@pytest.mark.parametrize("mode", ["INT8", "FP8"])
@pytest.mark.parametrize("bound", [3e-5, 1e-3, 0.0066, 4.0])
def test_float16_holds_the_reciprocal_of_every_scale_that_it_quantises_with(mode, bound):
    """E4M3 has no infinity: x * (1 / scale) with an infinite factor makes every value NaN."""
    ranges = RangeTable({"x": TensorRange(-bound, bound), "r": TensorRange(0, bound)})
    result = lower(mlp(), Recipe.of(mode), ranges)
    model = result.model
    constants = {t.name: numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    scales = [constants[n.input[1]] for n in model.proto.graph.node if n.op_type == "QuantizeLinear"]
    assert len(scales) == 2
    with np.errstate(over="ignore"):
        assert all(np.isfinite(np.reciprocal(scale)) for scale in scales)
