"""Quantised ONNX models: nothing but int8 with zero point 0 is left, and the results are equal to the last bit."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from passes.base import Pipeline, verify
from passes.canonicalize import Canonicalize
from passes.infer_shapes import InferShapes
from passes.legalize import Legalize
from passes.model import Model, from_proto, to_proto
from passes.pipeline import default_pipeline
from passes.steps.quantized_constants import Constants, Quantization
from rewriter.runtime.native import NativeSession

BEFORE = Pipeline((Canonicalize(), InferShapes()))
AFTER = Pipeline((Legalize(), Canonicalize(), InferShapes()), canonical=True)


def built(nodes, constants, shape=("N", 4, 5), opset=18, out=("y",)):
    """A model with the float input "x" and float outputs."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in out],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def legal(proto):
    before, _ = BEFORE.run(from_proto(proto))
    after, records = AFTER.run(before)
    verify(after, "legalize", canonical=True)
    return after, [change.rule for change in records[0].changes]


def same(proto, after, x):
    """Both give the same bits; ONNX Runtime must not fuse the original into integer kernels."""
    ours = NativeSession(after, optimize=False).run({"x": x})
    theirs = NativeSession(Model(proto), optimize=False).run({"x": x})
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)


def leftovers(model):
    """Quantisation nodes that TensorRT would refuse, or compute wrongly."""
    constants = Constants.of(model.proto, dict(model.weights))
    bad = []
    for node in model.proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            plan = Quantization.of(node, constants, constants.dtype(node.input[0]) or TensorProto.INT8)
            if plan is None or not plan.symmetric:
                bad.append(node.name)
    return bad


def pair(scale, zero, **attributes):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize", **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "dequantize", **attributes),
    ]
    return nodes, {"s": np.asarray(scale, np.float32), "z": zero}


def samples(scale, zero=0, shape=(3, 4, 5), seed=0):
    """Values in and out of range, and some exactly between two levels."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-400, 400, shape) * scale
    x[0] = (rng.integers(-300, 300, shape[1:]) + 0.5) * scale
    return x.astype(np.float32)


@pytest.mark.parametrize(
    ("dtype", "zero"),
    [("uint8", 0), ("uint8", 128), ("uint8", 3), ("int8", -128), ("int8", 5), ("uint16", 1000), ("int16", 0)],
)
def test_activation_pairs_become_float_chains(dtype, zero):
    opset = 21 if dtype in ("uint16", "int16") else 18
    nodes, constants = pair(0.037, np.array(zero, dtype))
    proto = built(nodes, constants, opset=opset)
    after, rules = legal(proto)
    assert rules == ["float-quantization"]
    assert [node.op_type for node in after.proto.graph.node] == ["Div", "Round", "Clip", "Mul"]
    assert after.proto.graph.node[-1].name == "dequantize"
    same(proto, after, samples(0.037))


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(2**-13, 8, width=32),
    zero=st.integers(0, 255),
    seed=st.integers(0, 99),
)
def test_a_uint8_pair_is_equal_for_every_grid(scale, zero, seed):
    proto = built(*pair(scale, np.array(zero, np.uint8)))
    after, _ = legal(proto)
    same(proto, after, samples(scale, seed=seed))


@pytest.mark.parametrize("axis", [1, -1, 2])
def test_ranges_per_channel(axis):
    size = 4 if axis == 1 else 5
    scale = np.linspace(0.01, 0.2, size, dtype=np.float32)
    proto = built(*pair(scale, np.arange(size).astype(np.uint8), axis=axis))
    after, rules = legal(proto)
    assert rules == ["float-quantization"]
    same(proto, after, samples(0.05))


def test_int8_with_zero_point_0_stays():
    before, _ = BEFORE.run(from_proto(built(*pair(0.1, np.array(0, np.int8)))))
    result = Legalize().run(before)
    assert not result.modified
    assert result.model is before


@pytest.mark.parametrize(
    ("case", "extra"),
    [
        ("read by another", [helper.make_node("Cast", ["q"], ["c"], "cast", to=1)]),
        ("other scale", [helper.make_node("DequantizeLinear", ["q", "t", "z"], ["c"], "d")]),
    ],
)
def test_left_alone(case, extra):
    nodes, constants = pair(0.1, np.array(7, np.uint8))
    proto = built([*nodes, *extra], {**constants, "t": np.float32(0.2)}, out=("y", "c"))
    before, _ = BEFORE.run(from_proto(proto))
    assert not Legalize().run(before).modified


def test_several_readers_share_one_chain():
    nodes, constants = pair(0.1, np.array(7, np.uint8))
    nodes.append(helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "second"))
    nodes.append(helper.make_node("Relu", ["d"], ["e"], "relu"))
    proto = built(nodes, constants, out=("y", "e"))
    after, _ = legal(proto)
    assert [node.op_type for node in after.proto.graph.node] == ["Div", "Round", "Clip", "Mul", "Relu"]
    same(proto, after, samples(0.1))


def weights(dtype, zero, low, high, *, scale=None, axis=None):
    """x @ DequantizeLinear(constant)."""
    rng = np.random.default_rng(1)
    stored = rng.integers(low, high, (5, 6), endpoint=True).astype(dtype)
    stored[0, :2] = low, high
    scale = np.float32(0.02) if scale is None else scale
    zeros = np.full(scale.shape, zero, dtype)
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], "weights", **attributes),
        helper.make_node("MatMul", ["x", "d"], ["y"], "matmul"),
    ]
    return built(nodes, {"w": stored, "s": scale, "z": zeros})


def test_constants_whose_levels_fit_become_int8():
    proto = weights("uint8", 128, 0, 255)
    after, rules = legal(proto)
    assert rules == ["requantize-constant"]
    assert leftovers(after) == []
    assert {t.data_type for t in after.proto.graph.initializer} == {TensorProto.INT8, TensorProto.FLOAT}
    same(proto, after, samples(1))


def test_constants_whose_levels_do_not_fit_become_numbers():
    proto = weights("uint8", 10, 0, 255)
    after, rules = legal(proto)
    assert rules == ["dequantize-constant"]
    assert [node.op_type for node in after.proto.graph.node] == ["MatMul"]
    same(proto, after, samples(1))


def test_per_channel_constants():
    proto = weights("uint8", 128, 0, 255, scale=np.linspace(0.01, 0.1, 6, dtype=np.float32), axis=1)
    after, _ = legal(proto)
    assert leftovers(after) == []
    same(proto, after, samples(1))


def test_a_quantised_bias_becomes_numbers():
    nodes = [
        helper.make_node("DequantizeLinear", ["b", "s"], ["d"], "bias"),
        helper.make_node("Add", ["x", "d"], ["y"], "add"),
    ]
    proto = built(nodes, {"b": np.array([1, -2, 70000, 4, 5], np.int32), "s": np.float32(3e-4)})
    after, rules = legal(proto)
    assert rules == ["dequantize-constant"]
    assert [node.op_type for node in after.proto.graph.node] == ["Add"]
    same(proto, after, samples(1))


def test_a_constant_that_the_graph_itself_quantises():
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantize"),
        helper.make_node("MatMul", ["x", "d"], ["y"], "matmul"),
    ]
    w = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    proto = built(nodes, {"w": w, "s": np.float32(0.02), "z": np.array(128, np.uint8)})
    after, rules = legal(proto)
    assert rules == ["quantize-constant", "requantize-constant"]
    assert leftovers(after) == []
    same(proto, after, samples(1))


@pytest.mark.parametrize("axis", [None, 0, 2, 3])
def test_what_moves_elements_goes_into_the_constant(axis):
    rng = np.random.default_rng(0)
    stored = rng.integers(-127, 128, (3, 3, 4, 6)).astype(np.int8)
    scale = np.float32(0.1) if axis is None else rng.uniform(0.1, 1, stored.shape[axis]).astype(np.float32)
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], "weights", **attributes),
        helper.make_node("Transpose", ["d"], ["t"], "transpose", perm=[3, 2, 0, 1]),
        helper.make_node("Conv", ["x", "t"], ["y"], "conv"),
    ]
    proto = built(nodes, {"w": stored, "s": scale, "z": np.zeros(scale.shape, np.int8)}, ("N", 4, 8, 8))
    after, rules = legal(proto)
    assert rules == ["move-into-constant"]
    assert [node.op_type for node in after.proto.graph.node] == ["DequantizeLinear", "Conv"]
    same(proto, after, rng.normal(size=(2, 4, 8, 8)).astype(np.float32))


def test_depthwise_weights_with_a_multiplier_keep_a_scale_per_channel():
    rng = np.random.default_rng(0)
    stored = rng.integers(-127, 128, (3, 3, 4, 2)).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], "weights", axis=2),
        helper.make_node("Reshape", ["d", "shape"], ["r"], "reshape"),
        helper.make_node("Transpose", ["r"], ["t"], "transpose", perm=[3, 2, 0, 1]),
        helper.make_node("Conv", ["x", "t"], ["y"], "conv", group=4),
    ]
    constants = {
        "w": stored, "s": rng.uniform(0.1, 1, 4).astype(np.float32), "z": np.zeros(4, np.int8),
        "shape": np.array([3, 3, 1, 8]),
    }  # fmt: skip
    proto = built(nodes, constants, ("N", 4, 8, 8))
    after, _ = legal(proto)
    dequantize = after.proto.graph.node[0]
    assert [node.op_type for node in after.proto.graph.node] == ["DequantizeLinear", "Conv"]
    assert Constants.of(after.proto, dict(after.weights)).array(dequantize.input[1]).size == 8
    same(proto, after, rng.normal(size=(2, 4, 8, 8)).astype(np.float32))


def test_a_constant_with_two_readers_stays():
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], "weights"),
        helper.make_node("Transpose", ["d"], ["t"], "transpose"),
        helper.make_node("MatMul", ["x", "t"], ["m"], "one"),
        helper.make_node("MatMul", ["m", "d"], ["y"], "two"),
    ]
    constants = {"w": np.ones((6, 5), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    before, _ = BEFORE.run(from_proto(built(nodes, constants)))
    assert not Legalize().run(before).modified


def test_inside_a_body_and_with_captured_values():
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (float[N] x, bool b) => (float[N] y)
    <float s = {0.5}, uint8 z = {3}, uint8[3] w = {1, 2, 255}> {
        d = DequantizeLinear(w, s, z)
        y = If(b) <
            then_branch = t () => (float[N] p) { q = QuantizeLinear(x, s, z) p = DequantizeLinear(q, s, z) },
            else_branch = e () => (float[N] r) { r = Add(x, d) }>
    }"""
    proto = onnx.parser.parse_model(text)
    after, rules = legal(proto)
    assert sorted(rules) == ["dequantize-constant", "float-quantization"]
    for flag in (True, False):
        feeds = {"x": np.array([-3, 0.7, 300], np.float32), "b": np.array(flag)}
        ours = NativeSession(after, optimize=False).run(feeds)["y"]
        np.testing.assert_array_equal(ours, NativeSession(Model(proto), optimize=False).run(feeds)["y"])


def quantised_net():
    """conv -> relu -> conv in the uint8 form of ONNX Runtime's quantiser: asymmetric, with int32 biases."""
    rng = np.random.default_rng(3)
    nodes, constants = [], {}

    def pair_of(name, scale, zero):
        constants.update({f"{name}_s": np.float32(scale), f"{name}_z": np.array(zero, np.uint8)})
        parameters = [f"{name}_s", f"{name}_z"]
        nodes.append(helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_q"], f"{name}/q"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_d"], f"{name}/d"))

    def conv(source, name, inputs, outputs):
        constants.update({
            f"{name}_w": rng.integers(0, 256, (outputs, inputs, 3, 3)).astype(np.uint8), f"{name}_ws": np.float32(0.01),
            f"{name}_wz": np.array(120, np.uint8), f"{name}_b": rng.integers(-9000, 9000, outputs).astype(np.int32),
            f"{name}_bs": np.float32(1e-4),
        })  # fmt: skip
        weights = [f"{name}_w", f"{name}_ws", f"{name}_wz"]
        nodes.append(helper.make_node("DequantizeLinear", weights, [f"{name}_wd"], f"{name}/w"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_b", f"{name}_bs"], [f"{name}_bd"], f"{name}/b"))
        nodes.append(helper.make_node("Conv", [source, f"{name}_wd", f"{name}_bd"], [name], name))

    pair_of("x", 0.02, 128)
    conv("x_d", "one", 4, 4)
    nodes.append(helper.make_node("Relu", ["one"], ["r"], "relu"))
    pair_of("r", 6 / 255, 0)
    conv("r_d", "y", 4, 4)
    return built(nodes, constants, ("N", 4, 8, 8))


def test_a_whole_uint8_model_keeps_its_results_and_loses_its_uint8():
    proto = quantised_net()
    after, _ = default_pipeline().run(from_proto(proto))
    assert leftovers(after) == []
    assert TensorProto.UINT8 not in {t.data_type for t in to_proto(after).graph.initializer}
    same(proto, after, np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32))


@pytest.mark.rtx
def test_tensorrt_takes_it_after_and_not_before(rtx):
    proto = quantised_net()
    before, _ = BEFORE.run(from_proto(proto))
    after, _ = default_pipeline().run(from_proto(proto))
    assert rtx.parse(before)
    assert rtx.parse(after) == ()
