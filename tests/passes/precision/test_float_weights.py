"""Trained int8 weights in engines that compute in floating point."""

import numpy as np
import onnx.parser
import pytest
from onnx import TensorProto

from passes.base import verify
from passes.graph.walk import iter_nodes
from passes.model import from_proto
from passes.precision.float_weights import FloatWeights
from passes.precision.lower import lower
from passes.precision.recipe import Recipe
from rewriter.runtime.native import NativeSession

PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"


def net(body, scale="{0.5}", shape=""):
    """The body on x [2, 3] with an int8 weight w [3, 2] whose scale is t (a number, or one a column)."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 18]> g (float[2,3] x) => (float[2,2] y)
        <float s = {{0.1}}, int8 z = {{0}}, float{shape} t = {scale}, int8[3,2] w = {{1, -2, 3, -4, 127, -127}}> {{
            v = DequantizeLinear{"<axis=1>" if shape else ""}(w, t) {body} }}"""
    )
    for node in proto.graph.node:
        node.name = node.output[0]
    return from_proto(proto)


@pytest.mark.parametrize(("scale", "shape"), [("{0.3}", ""), ("{0.3, 0.7}", "[2]")])
def test_values_are_equal_to_the_last_bit(scale, shape):
    model = net("y = MatMul(x, v)", scale, shape)
    result = FloatWeights().run(model)
    verify(result.model, "float_weights", canonical=True)
    assert [node.op_type for node in result.model.proto.graph.node] == ["MatMul"]
    assert {t.data_type for t in result.model.proto.graph.initializer} == {TensorProto.FLOAT}
    assert [(c.rule, c.target) for c in result.changes] == [("float-weight", "v")]
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}
    before, after = (NativeSession(m).run(feeds)["y"] for m in (model, result.model))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "body",
    [
        f"{PAIR} y = MatMul(d, v)",  # 8-bit arithmetic, as the source has it
        "m = MatMul(x, v) y = Identity(m)",
    ],
)
def test_only_weights_that_nothing_multiplies_in_8_bits_change(body):
    result = FloatWeights().run(net(body))
    assert result.modified == ("Identity" in body)


def test_without_quantised_constants_nothing_is_copied():
    model = from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 18]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
        )
    )
    assert FloatWeights().run(model).model is model


@pytest.mark.parametrize(("mode", "kept"), [("FP32", 0), ("FP16", 0), ("INT8", 1)])
def test_only_int8_engines_keep_them(mode, kept):
    lowered = lower(net("y = MatMul(x, v)"), Recipe.of(mode)).model
    assert sum(node.op_type == "DequantizeLinear" for node in lowered.proto.graph.node) == kept


def test_weights_in_a_body_are_floats_too():
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18]> g (float[2,3] x, bool c) => (float[2,2] y)
        <float t = {0.5}, int8[3,2] w = {1, -2, 3, -4, 127, -127}> {
            v = DequantizeLinear(w, t) m = MatMul(x, v)
            y = If(c) <
                then_branch = a () => (float[2,2] am) { av = DequantizeLinear(w, t) am = MatMul(x, av) },
                else_branch = b () => (float[2,2] bm) { bm = Identity(m) }
            > }"""
    )
    for node in iter_nodes(proto.graph):
        node.name = node.output[0]
    result = FloatWeights().run(from_proto(proto))
    verify(result.model, "float_weights", canonical=True)
    assert "DequantizeLinear" not in {node.op_type for node in iter_nodes(result.model.proto.graph)}
    assert [change.target for change in result.changes] == ["v", "av"]
