"""INT4 weights: the graph, the numbers, and that TensorRT builds it."""

import shutil

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.base import PassError, Pipeline, verify
from passes.canonicalize import Canonicalize
from passes.graph.walk import iter_nodes
from passes.infer_shapes import InferShapes
from passes.model import from_proto, is_stub
from passes.precision import weight_only
from passes.precision.opset import opset_of
from passes.precision.qdq import InsertQDQ
from passes.precision.quantization.placement import quantized_tensors
from passes.precision.ranges import RangeTable, TensorRange
from passes.precision.recipe import Recipe, origin
from passes.precision.weight_only import Int4Weights
from passes.testing import random_feeds
from rewriter.backends.base import BuildOptions, BuiltEngine
from rewriter.runtime.native import NativeSession

CANONICAL = Pipeline((Canonicalize(), InferShapes()))
MLP = "g (float[2,64] x) => (float[2,48] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"


def canonical(text, **weights):
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]>\n{text}')
    rng = np.random.default_rng(0)
    for name, value in weights.items():
        array = rng.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else value
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in iter_nodes(proto):
        node.name = node.output[0]
    return CANONICAL.run(from_proto(proto))[0]


def converted(model, block, **recipe):
    """The changed model, checked, and what was done."""
    before = model.proto.SerializeToString(deterministic=True)
    result = Int4Weights(Recipe.of(recipe.pop("mode", "FP32"), int4_block=block, **recipe)).run(model)
    assert model.proto.SerializeToString(deterministic=True) == before
    verify(result.model, "int4_weights", canonical=True)
    names = {node.name for node in iter_nodes(model.proto)}
    assert {origin(node.name) for node in iter_nodes(result.model.proto)} <= names
    return result.model, [(c.rule, c.target, c.reason) for c in result.changes]


def constant(model, name):
    tensor = next(t for t in model.proto.graph.initializer if t.name == name)
    return model.weights[name] if is_stub(tensor) else numpy_helper.to_array(tensor)


def stored(model):
    return [n for n in iter_nodes(model.proto) if n.op_type == "DequantizeLinear"]


def test_in_full():
    model, changes = converted(canonical(MLP, w=(64, 96), v=(96, 48)), 32)
    assert opset_of(model.proto) == 21
    first, second = stored(model)
    assert (first.name, second.name) == ("h//weight", "y//weight")
    assert {a.name: helper.get_attribute_value(a) for a in first.attribute} == {"axis": 0, "block_size": 32}
    numbers, scales = constant(model, first.input[0]), constant(model, first.input[1])
    assert (numbers.dtype, numbers.shape) == (ml_dtypes.int4, (64, 96))
    assert (scales.dtype, scales.shape) == (np.float32, (2, 96))
    tensor = next(t for t in model.proto.graph.initializer if t.name == first.input[0])
    assert tensor.data_type == TensorProto.INT4
    assert not is_stub(tensor)
    assert len(tensor.raw_data) == 64 * 96 // 2
    assert {"w", "v"}.isdisjoint(t.name for t in model.proto.graph.initializer)
    assert {"w", "v"}.isdisjoint(model.weights)
    assert changes == [
        ("raise-opset", "model", "opset 18 -> 21"),
        ("int4-weight", "h", "'w' in blocks of 32"),
        ("int4-weight", "y", "'v' in blocks of 32"),
    ]


@pytest.mark.parametrize("block", [2, 16, 32])
def test_the_result_is_that_of_the_rounded_weights(block):
    source = canonical(MLP, w=(64, 96), v=(96, 48))
    model, _ = converted(source, block)
    feeds = random_feeds(source.proto, 0)
    got = NativeSession(model, honest=True).run(feeds)["y"]
    rounded = []
    for node in stored(model):
        numbers, scales = (constant(model, name).astype(np.float32) for name in node.input)
        rounded.append(numbers * np.repeat(scales, block, 0))
    for array, name in zip(rounded, "wv", strict=True):
        assert np.abs(array - constant(source, name)).max() <= np.abs(constant(source, name)).max() / 14 * 1.001
    want = np.maximum(feeds["x"] @ rounded[0], 0) @ rounded[1]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_a_shared_weight_is_stored_once_and_stays_where_others_need_it():
    text = """g (float[2,64] x) => (float[2,64] y, float[64,64] z) {
        h = MatMul(x, w) y = MatMul(h, w) z = Tanh(w) }"""
    model, _ = converted(canonical(text, w=(64, 64)), 16)
    assert len(stored(model)) == 1
    assert next(n for n in iter_nodes(model.proto) if n.op_type == "Tanh").input == ["w"]
    assert "w" in model.weights


@pytest.mark.parametrize(
    ("text", "weights", "recipe", "reason"),
    [
        (MLP, {"w": (64, 40), "v": (40, 48)}, {}, "the inner dimension 40 of 'v' is no multiple of 32"),
        (MLP, {"w": (64, 96), "v": (96, 48)}, {"keep_nodes": ("^y$",)}, "the recipe keeps the node as it is"),
        (
            "g (float[2,2,64] x) => (float[2,2,8] y) { y = MatMul(x, w) }",
            {"w": (2, 64, 8)}, {}, "'w' is no matrix",
        ),
        ("g (float[2,64] x) => (float[2] y) { y = MatMul(x, w) }", {"w": (64,)}, {}, "'w' is no matrix"),
        (
            "g (double[2,64] x) => (double[2,8] y) { y = MatMul(x, w) }",
            {"w": np.ones((64, 8))}, {}, "'w' is DOUBLE",
        ),
    ],
)  # fmt: skip
def test_what_stays_has_a_reason(text, weights, recipe, reason):
    _, changes = converted(canonical(text, **weights), 32, **recipe)
    assert ("skip-quantize", "y", f"no INT4 weight: {reason}") in changes


def test_the_proto_stays_below_its_limit(monkeypatch):
    monkeypatch.setattr(weight_only, "_INLINE_LIMIT", 64 * 96 // 2)
    _, changes = converted(canonical(MLP, w=(64, 96), v=(96, 48)), 32)
    assert [c[1] for c in changes if c[0] == "int4-weight"] == ["h"]
    assert any(c[1] == "y" and "limited to 2 GB" in c[2] for c in changes)


def test_no_block_no_change():
    model = canonical(MLP, w=(64, 96), v=(96, 48))
    assert not Int4Weights(Recipe.of("INT8")).run(model).modified


def test_weights_that_are_not_finite_are_refused():
    model = canonical(MLP, w=np.full((64, 96), np.nan, np.float32), v=(96, 48))
    with pytest.raises(PassError, match=r"weight 'w' cannot be stored as INT4: .*infinite"):
        Int4Weights(Recipe.of("FP32", int4_block=32)).run(model)


def test_bodies_read_int4_weights():
    text = """g (float[2,64] x, bool c) => (float[2,64] y) {
        y = If(c) <then_branch = t () => (float[2,64] a) { a = MatMul(x, w) },
                   else_branch = e () => (float[2,64] b) { h = Relu(x) b = MatMul(h, w) }>
    }"""
    model, _ = converted(canonical(text, w=(64, 64)), 16)
    assert [n.name for n in stored(model)] == ["b//weight", "a//weight"]
    assert len({n.input[0] for n in stored(model)}) == 1


def test_int8_leaves_int4_alone_and_takes_the_rest():
    source = canonical(MLP, w=(64, 40), v=(40, 48))
    recipe = Recipe.of("INT8", int4_block=32)
    model, _ = converted(source, 32, mode="INT8")
    placement = quantized_tensors(model, recipe)
    assert [e.node for e in placement.edges] == ["y"]
    assert [c.target for c in placement.skipped] == ["h"]
    result = InsertQDQ(recipe, RangeTable({"r": TensorRange(0, 9)})).run(model)
    verify(result.model, "insert_qdq", canonical=True)


@pytest.mark.rtx
@pytest.mark.parametrize(("block", "mode"), [(16, "FP32"), (32, "FP32"), (128, "FP32"), (32, "INT8"), (64, "FP8")])
def test_tensorrt_builds_it(block, mode, rtx, tmp_path):
    if rtx.version.startswith("1.4") and shutil.which("nvidia-smi") is None:
        pytest.skip("TensorRT-RTX 1.4 builds Q/DQ only where a GPU is (it asks for the current device)")
    source = canonical(MLP.replace("64", "512"), w=(512, 512), v=(512, 48))
    recipe = Recipe.of(mode, int4_block=block, keep_nodes=("^y$",))
    model = Int4Weights(recipe).run(source).model
    if mode != "FP32":
        recipe = Recipe.of(mode, int4_block=block)
        model = InsertQDQ(recipe, RangeTable({"r": TensorRange(0, 90)})).run(model).model
    options = BuildOptions(targets=("SM89",) if mode == "FP8" else ())
    outcome = rtx.build(model, (), options, tmp_path / "e.engine")
    assert isinstance(outcome, BuiltEngine), outcome
    # 512 x 512 numbers of half a byte, the scales, a small second weight, and kernels.
    assert outcome.size < 512 * 512 + 4 * 512 * 512 // block + 4 * 512 * 48 + (300 << 10)
