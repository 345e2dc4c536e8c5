"""Trained ranges become symmetric pairs: every spelling is found, and no value changes by more than is reported."""

import re

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from passes.base import PassError, verify
from passes.canonicalize import Canonicalize
from passes.model import from_proto
from passes.pipeline import default_pipeline
from passes.precision.fake_quant import CollapseFakeQuant, fake_quant_ranges
from passes.precision.quantization.fake_quant_chains import find_chains
from passes.precision.ranges import TensorRange
from passes.precision.recipe import Recipe
from rewriter.runtime.native import NativeSession

INT8, FP8 = Recipe.of("INT8"), Recipe.of("FP8")


def model_of(nodes, constants, shape=("N", 8), opset=18, out=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in out],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return Canonicalize().run(from_proto(proto)).model


def chain(steps, source="x", out="y", tag=""):
    """[(op, constant or None), ...] as nodes named after their operators."""
    nodes, constants = [], {}
    value = source
    for index, (op, constant) in enumerate(steps):
        last = index == len(steps) - 1
        result = out if last else f"{tag}v{index}"
        inputs = [value]
        if isinstance(constant, tuple):
            for part, bound in zip(("low", "high"), constant, strict=True):
                constants[f"{tag}{part}{index}"] = np.asarray(bound, np.float32)
                inputs.append(f"{tag}{part}{index}")
        elif constant is not None:
            constants[f"{tag}c{index}"] = np.asarray(constant, np.float32)
            inputs.append(f"{tag}c{index}")
        nodes.append(helper.make_node(op, inputs, [result], f"{tag}{op}{index}" if not last else f"{tag}end"))
        value = result
    return nodes, constants


def grid(low, high, levels=255):
    """(step, low, high) with zero on the grid, as FakeQuant nudges it."""
    step = np.float32((np.float32(high) - np.float32(low)) / levels)
    zero = np.rint(-low / step)
    return step, np.float32(-zero * step), np.float32((levels - zero) * step)


def spelt(form, low, high, levels=255):
    """One fake quantisation in the forms that exporters and our own rules write."""
    step, low, high = grid(low, high, levels)
    below, above = np.rint(low / step), np.rint(high / step)
    forms = {
        "tensorflow": [("Min", high), ("Max", low), ("Sub", low), ("Mul", 1 / step), ("Sub", -below), ("Add", 0.5),
                       ("Floor", None), ("Mul", step)],
        "divided": [("Min", high), ("Max", low), ("Sub", low), ("Div", step), ("Sub", -below), ("Add", 0.5),
                    ("Floor", None), ("Mul", step)],
        "round trip": [("Min", high), ("Max", low), ("Mul", 1 / step), ("Round", None), ("Mul", step)],
        "half up": [("Clip", (low, high)), ("Mul", 1 / step), ("Add", 0.5), ("Floor", None), ("Mul", step)],
        "onnx": [("Div", step), ("Round", None), ("Clip", (below, above)), ("Mul", step)],
        "onnx in parts": [("Div", step), ("Round", None), ("Max", below), ("Min", above), ("Mul", step)],
    }  # fmt: skip
    return forms[form]


FORMS = ("tensorflow", "divided", "round trip", "half up", "onnx", "onnx in parts")


def collapse(model, recipe=INT8):
    result = CollapseFakeQuant(recipe).run(model)
    verify(result.model, "collapse_fake_quant", canonical=True)
    assert result.modified == (result.model is not model)
    return result


def ops(model):
    return [node.op_type for node in model.proto.graph.node]


def run(model, x):
    return NativeSession(model, optimize=False).run({"x": x})["y"]


def near(low, high, seed=0, shape=(64, 8)):
    """Values in and around a range, levels and half levels among them."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(low - 0.3 * (high - low), high + 0.3 * (high - low), shape)
    x[0], x[1] = low, high
    return x.astype(np.float32)


def bound_of(result):
    return float(re.search(r"<= (\S+)$", result.changes[-1].reason)[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.3, 2.7), (-2.0, 0.0), (-1.0, 1.0)])
def test_every_spelling_is_found(form, low, high):
    model = model_of(*chain(spelt(form, low, high)))
    [[found]] = find_chains(model)
    step, lowest, highest = grid(low, high)
    assert (found.source, found.output, found.end, found.levels, found.bits) == ("x", "y", "end", 256, 8)
    np.testing.assert_allclose([found.low, found.high, found.step], [lowest, highest, step], rtol=1e-5, atol=1e-6)
    assert fake_quant_ranges(model).keys() == {"x", "y"}
    result = collapse(model)
    nodes = result.model.proto.graph.node
    assert [node.op_type for node in nodes][-2:] == ["QuantizeLinear", "DequantizeLinear"]
    assert nodes[-1].name == "end//dequantize"
    assert nodes[-2].name == "end//quantize"
    zero = next(t for t in result.model.proto.graph.initializer if t.name == nodes[-1].input[2])
    assert zero.data_type == TensorProto.INT8
    assert not numpy_helper.to_array(zero).any()
    x = near(low, high)
    allowed = bound_of(result) if result.changes[-1].rule == "symmetrise" else float(step)
    assert np.abs(run(result.model, x) - run(model, x)).max() <= allowed * 1.0001


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(-8, 0, width=32),
    high=st.floats(0, 8, width=32),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 99),
)
def test_no_value_changes_by_more_than_the_reported_bound(low, high, form, seed):
    if high - low < 1e-3:
        return
    model = model_of(*chain(spelt(form, low, high)))
    assert [len(chains) for chains in find_chains(model)] == [1]
    result = collapse(model)
    x = near(low, high, seed)
    change = np.abs(run(result.model, x).astype(np.float64) - run(model, x)).max()
    step = grid(low, high)[0]
    allowed = bound_of(result) if result.changes[-1].rule == "symmetrise" else float(step)
    assert change <= allowed * 1.0001 + 1e-6


def test_a_symmetric_range_keeps_its_scale_and_values():
    model = model_of(*chain(spelt("round trip", -1.27, 1.27, levels=254)))
    result = collapse(model)
    assert [change.rule for change in result.changes] == ["collapse-fake-quant"]
    assert ops(result.model) == ["QuantizeLinear", "DequantizeLinear"]
    x = np.random.default_rng(0).uniform(-1.27, 3, (64, 8)).astype(np.float32)
    np.testing.assert_allclose(run(result.model, x), run(model, x), rtol=1e-6)


def test_the_clipping_stays_where_the_source_promises_nothing():
    model = model_of(*chain(spelt("tensorflow", 0.0, 6.0)))
    result = collapse(model)
    assert ops(result.model) == ["Clip", "QuantizeLinear", "DequantizeLinear"]
    x = np.full((1, 8), -3, np.float32)
    assert not run(result.model, x).any()


@pytest.mark.parametrize(
    "before",
    [[("Relu", None)], [("Clip", (0.0, 6.0))], [("Sigmoid", None)]],
)
def test_no_clipping_behind_what_is_bounded(before):
    steps = [*before, *spelt("divided", 0.0, 6.0)]
    result = collapse(model_of(*chain(steps)))
    assert ops(result.model) == [before[0][0], "QuantizeLinear", "DequantizeLinear"]
    assert find_chains(model_of(*chain(steps)))[0][0].source == "v0"


def test_a_sum_of_quantised_values_needs_no_clipping():
    first, constants = chain([("Relu", None), *spelt("divided", 0.0, 6.0)], out="a")
    second, more = chain(spelt("divided", 0.0, 9.0), source="s", tag="t")
    add = helper.make_node("Add", ["a", "a"], ["s"], "add")
    result = collapse(model_of([*first, add, *second], {**constants, **more}))
    pair = ["QuantizeLinear", "DequantizeLinear"]
    assert ops(result.model) == ["Relu", *pair, "Add", *pair]


@pytest.mark.parametrize("form", ["tensorflow", "round trip"])
def test_ranges_per_channel_become_one(form):
    low, high = np.array([-1, -0.1, 0, -2] * 2, np.float32), np.array([2, 0.3, 5, 1] * 2, np.float32)
    model = model_of(*chain(spelt(form, low, high)))
    result = collapse(model)
    assert ops(result.model) == ["Max", "Min", "QuantizeLinear", "DequantizeLinear"]
    [change] = result.changes
    assert "in 8 channels" in change.reason
    assert find_chains(model)[0][0].range.amax == pytest.approx(5, rel=1e-2)
    x = near(-2, 5)
    assert np.abs(run(result.model, x) - run(model, x)).max() <= bound_of(result)


def test_other_widths_are_an_error_that_names_the_node():
    model = model_of(*chain(spelt("tensorflow", -1.0, 1.0, levels=15)))
    with pytest.raises(PassError, match=r"'end' .*num_bits=4 \(16 levels\).*keep_nodes"):
        collapse(model)
    kept = Recipe.of("INT8", keep_nodes=("^end$",))
    assert not collapse(model, kept).modified
    assert fake_quant_ranges(model)["y"].amax == pytest.approx(1, rel=0.1)


def test_refusing_asymmetric_ranges_names_node_and_range():
    model = model_of(*chain(spelt("tensorflow", 0.0, 6.0)))
    with pytest.raises(PassError, match=r"range of 'end', 0\.\.6, is not symmetric"):
        collapse(model, Recipe.of("INT8", asymmetric="refuse"))
    symmetric = model_of(*chain(spelt("round trip", -1.27, 1.27, levels=254)))
    assert collapse(symmetric, Recipe.of("INT8", asymmetric="refuse")).modified


def test_equal_chains_share_a_pair():
    steps = spelt("divided", 0.0, 6.0)
    first, constants = chain(steps, out="a")
    second, more = chain(steps, out="b", tag="t")
    join = helper.make_node("Add", ["a", "b"], ["y"], "add")
    model = model_of([*first, *second, join], {**constants, **more})
    result = collapse(model)
    assert ops(result.model) == ["Clip", "QuantizeLinear", "DequantizeLinear", "Add"]
    assert [change.rule for change in result.changes] == ["symmetrise", "share-pair"]


@pytest.mark.parametrize(
    "steps",
    [
        [("Floor", None), ("Mul", 0.5)],  # bounded nowhere
        [("Clip", (0.0, 1.0)), ("Mul", 10.0), ("Floor", None), ("Mul", 0.1)],  # rounds down
        [("Clip", (0.0, 1.0)), ("Mul", 10.0), ("Round", None), ("Mul", 0.2)],  # scales
        [("Clip", (0.0, 1.0)), ("Mul", 255.0), ("Round", None), ("Add", 1.0), ("Mul", 1 / 255)],  # shifts
        [("Clip", (0.5, 1.0)), ("Mul", 255.0), ("Round", None), ("Mul", 1 / 255)],  # zero is no level
    ],
)
def test_other_rounding_is_left_alone(steps):
    model = model_of(*chain(steps))
    assert find_chains(model) == [[]]
    assert CollapseFakeQuant(INT8).run(model).model is model


def test_float_modes_change_nothing():
    model = model_of(*chain(spelt("tensorflow", 0.0, 6.0)))
    assert CollapseFakeQuant(Recipe.of("FP16")).run(model).model is model


def test_inside_a_body():
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (float[N] x, bool b) => (float[N] y) <float s = {0.1}, float l = {0}, float h = {255}> {
        y = If(b) <
            then_branch = t () => (float[N] p) { d = Div(x, s) r = Round(d) c = Clip(r, l, h) p = Mul(c, s) },
            else_branch = e () => (float[N] q) { q = Relu(x) }>
    }"""
    model = Canonicalize().run(from_proto(onnx.parser.parse_model(text))).model
    result = collapse(model)
    body = next(a.g for a in result.model.proto.graph.node[0].attribute if a.name == "then_branch")
    assert [node.op_type for node in body.node] == ["Clip", "QuantizeLinear", "DequantizeLinear"]


def int8_net(zero=True):
    """x -> int8 pair -> MatMul with int8 weights per channel."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"] if zero else ["w", "ws"], ["wd"], "weights", axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["y"], "matmul"),
    ]
    constants = {
        "s": np.float32(0.02), "z": np.int8(0), "w": rng.integers(-127, 128, (8, 4)).astype(np.int8),
        "ws": np.linspace(0.01, 0.04, 4, dtype=np.float32), "wz": np.zeros(4, np.int8),
    }  # fmt: skip
    return model_of(nodes, constants)


def test_pairs_that_are_there_stay_in_int8_and_have_ranges():
    model = int8_net()
    assert CollapseFakeQuant(INT8).run(model).model is model
    assert fake_quant_ranges(model)["x"] == fake_quant_ranges(model)["d"]
    assert fake_quant_ranges(model)["x"].amax == pytest.approx(2.54)
    assert isinstance(fake_quant_ranges(model)["x"], TensorRange)


@pytest.mark.parametrize("zero", [True, False])
def test_fp8_takes_int8_along(zero):
    model = int8_net(zero)
    result = collapse(model, FP8)
    assert ops(result.model) == ["QuantizeLinear", "DequantizeLinear", "MatMul"]
    types = {t.name: t.data_type for t in result.model.proto.graph.initializer}
    assert types[result.model.proto.graph.node[0].input[2]] == TensorProto.FLOAT8E4M3FN
    assert TensorProto.INT8 not in types.values()
    assert [change.rule for change in result.changes].count("int8-to-fp8") == 2
    assert collapse(result.model, FP8).modified is False


def test_fp8_chains_raise_the_opset_and_report_their_bound():
    model = model_of(*chain(spelt("divided", 0.0, 6.0)))
    result = collapse(model, FP8)
    assert next(o.version for o in result.model.proto.opset_import if not o.domain) == 19
    x = near(0, 6)
    assert np.abs(run(result.model, x) - run(model, x)).max() <= bound_of(result)


def test_no_uint8_reaches_tensorrt_from_a_uint8_source():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "dequantize"),
    ]
    model = model_of(nodes, {"s": np.float32(6 / 255), "z": np.uint8(0)})
    cleaned, _ = default_pipeline().run(model)
    result = collapse(cleaned)
    assert TensorProto.UINT8 not in {t.data_type for t in result.model.proto.graph.initializer}
    x = np.linspace(-1, 7, 64, dtype=np.float32).reshape(8, 8)
    assert run(result.model, x).max() == pytest.approx(6, abs=1e-3)  # as int8, uint8 would end at 2.99
    assert np.abs(run(result.model, x) - run(model, x)).max() <= bound_of(result)
