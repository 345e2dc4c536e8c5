"""Trained quantisation in front of nodes that a recipe leaves in floating point."""

import dataclasses

import numpy as np
import onnx.parser
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from passes.base import verify
from passes.canonicalize import Canonicalize
from passes.graph.walk import iter_nodes
from passes.infer_shapes import InferShapes
from passes.model import from_proto
from passes.precision.fake_quant import CollapseFakeQuant
from passes.precision.lower import lower
from passes.precision.quantization.float_readers import moves
from passes.precision.recipe import QUANTIZED_OPS, Recipe
from rewriter.runtime.native import NativeSession

PRODUCTS = ("MatMul", "Gemm")
INT8 = Recipe.of("INT8", quantize_ops=PRODUCTS)
#: x -> fake quantisation to 0..255 steps of s -> a.
CHAIN = "c = Div(x, s) r = Round(c) l = Clip(r, lo, hi) a = Mul(l, s)"
PAIR = "q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z)"
CONV = "wd = DequantizeLinear(w, ws) k = Conv(a, wd) y = Relu(k)"
MATMUL = "vd = DequantizeLinear(v, vs) m = MatMul(a, vd) n = Relu(m)"
MATMUL_BEHIND = "p = Reshape(a, shape) vd = DequantizeLinear(v, vs) m = MatMul(p, vd) n = Relu(m)"


def net(body, outputs="float[1,4,6,6] y", opset=18):
    """A body on x [1, 4, 6, 6] with int8 weights w (Conv) and v (MatMul); every node is named after its result."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": {opset}]> g (float[1,4,6,6] x, bool b) => ({outputs})
        <float s = {{0.02}}, int8 z = {{0}}, float lo = {{0}}, float hi = {{255}}, int64[4] shape = {{1, 4, 6, 6}}>
        {{ {body} }}"""
    )
    for node in iter_nodes(proto.graph):
        node.name = node.output[0]
    constants = {
        "w": rng.integers(-127, 128, (4, 4, 1, 1)).astype(np.int8), "ws": np.float32(0.01),
        "v": rng.integers(-127, 128, (6, 6)).astype(np.int8), "vs": np.float32(0.02),
        "s4": np.linspace(0.01, 0.04, 4, dtype=np.float32), "z4": np.zeros(4, np.int8),
        "wf": rng.standard_normal((4, 4, 1, 1)).astype(np.float32),
    }  # fmt: skip
    read = {name for node in iter_nodes(proto.graph) for name in node.input}
    kept = [t for t in proto.graph.initializer if t.name in read]
    kept += [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items() if name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return InferShapes().run(Canonicalize().run(from_proto(proto)).model).model


BOTH = "float[1,4,6,6] y, float[1,4,6,6] n"


def collapse(model, recipe=INT8):
    result = CollapseFakeQuant(recipe).run(model)
    verify(result.model, "collapse_fake_quant", canonical=True)
    return result


def lines(model):
    """Every node as "result = Operator(inputs)", bodies included."""
    return [f"{', '.join(n.output)} = {n.op_type}({', '.join(n.input)})" for n in iter_nodes(model.proto.graph)]


def small_operands(model, recipe):
    """(node, value) of every 8-bit value that a node which `recipe` leaves in float reads, moved or not."""
    made_by = {name: node for node in iter_nodes(model.proto.graph) for name in node.output}
    found = []
    for node in iter_nodes(model.proto.graph):
        if node.op_type not in QUANTIZED_OPS or (node.op_type in recipe.quantize_ops and not recipe.leaves(node)):
            continue
        for name in node.input:
            source = name
            while source in made_by and moves(made_by[source], source):
                source = made_by[source].input[0]
            if source in made_by and made_by[source].op_type == "DequantizeLinear":
                found.append((node.name, source))
    return found


def run(model, seed=0):
    x = np.random.default_rng(seed).uniform(-3, 6, (1, 4, 6, 6)).astype(np.float32)
    return NativeSession(model, optimize=False).run({"x": x, "b": np.array(True)})


def test_a_chain_that_a_conv_and_a_matmul_read_is_written_in_both_forms():
    result = collapse(net(f"{CHAIN} {CONV} {MATMUL}", BOTH))
    assert lines(result.model) == [
        "c = Div(x, s)",
        "r = Round(c)",
        "l = Clip(r, lo, hi)",
        "a//clip = Clip(x, a/low)",
        "a//quantize = QuantizeLinear(a//clip, a/scale, a/zero)",
        "a = DequantizeLinear(a//quantize, a/scale, a/zero)",
        "a//float = Mul(l, s)",
        "k = Conv(a//float, wd//values)",
        "y = Relu(k)",
        "vd = DequantizeLinear(v, vs)",
        "m = MatMul(a, vd)",
        "n = Relu(m)",
    ]
    assert [(c.rule, c.target) for c in result.changes] == [
        ("float-fake-quant", "a"),
        ("float-weight", "wd"),
        ("symmetrise", "a"),
    ]


def test_a_pair_of_the_source_that_both_read_is_written_in_both_forms():
    model = net(f"{PAIR} {CONV} {MATMUL}", BOTH)
    result = collapse(model)
    assert lines(result.model) == [
        "q = QuantizeLinear(x, s, z)",
        "a = DequantizeLinear(q, s, z)",
        "a//div = Div(x, a//float/step)",
        "a//round = Round(a//div)",
        "a//clip = Clip(a//round, a//float/lowest, a//float/highest)",
        "a//float = Mul(a//clip, a//float/step)",
        "k = Conv(a//float, wd//values)",
        "y = Relu(k)",
        "vd = DequantizeLinear(v, vs)",
        "m = MatMul(a, vd)",
        "n = Relu(m)",
    ]
    before, after = run(model), run(result.model)
    np.testing.assert_array_equal(after["n"], before["n"])
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-6, atol=1e-5)


def test_what_only_moves_values_goes_along_and_is_copied_where_both_read_it():
    body = f"{CHAIN} p = Reshape(a, shape) wd = DequantizeLinear(w, ws) y = Conv(p, wd) {MATMUL.replace('(a,', '(p,')}"
    result = collapse(net(body, BOTH))
    text = lines(result.model)
    assert "p = Reshape(a, shape)" in text
    assert "p//float = Reshape(a//float, shape)" in text
    assert "y = Conv(p//float, wd//values)" in text
    assert "m = MatMul(p, vd)" in text


def test_a_moving_operator_before_a_conv_alone_just_reads_the_float_form():
    body = f"{CHAIN} p = Reshape(a, shape) wd = DequantizeLinear(w, ws) y = Conv(p, wd) {MATMUL}"
    text = lines(collapse(net(body, BOTH)).model)
    assert "p = Reshape(a//float, shape)" in text
    assert "m = MatMul(a, vd)" in text


@pytest.mark.parametrize("start", [CHAIN, PAIR])
@pytest.mark.parametrize("mode", ["INT8", "FP8"])
def test_without_a_quantised_reader_there_is_the_float_form_alone(start, mode):
    recipe = Recipe.of(mode, quantize_ops=PRODUCTS)
    result = collapse(net(f"{start} {CONV}"), recipe)
    assert "Linear" not in " ".join(lines(result.model))
    assert result.changes
    assert T.INT8 not in {t.data_type for t in result.model.proto.graph.initializer}


def test_a_network_of_convs_is_what_the_fp16_recipe_makes_of_it():
    model = net(f"{CHAIN} {CONV}")
    one, other = (lower(model, recipe).model.proto.graph for recipe in (INT8, Recipe.of("FP16")))
    assert list(one.node) == list(other.node)
    assert list(one.initializer) == list(other.initializer)


@pytest.mark.parametrize("body", [f"{CHAIN} {CONV} {MATMUL_BEHIND}", f"{PAIR} {CONV} {MATMUL_BEHIND}"])
@pytest.mark.parametrize("mode", ["INT8", "FP8"])
def test_nodes_are_left_out_by_name_too(body, mode):
    model = net(body, BOTH)
    for recipe in (
        Recipe.of(mode, unquantized=frozenset({"k"})),
        Recipe.of(mode, kept=frozenset({"k"})),
        Recipe.of(mode, keep_nodes=("^k$",)),
        Recipe.of(mode, keep_ops=("Conv",)),
    ):
        lowered = lower(model, recipe).model
        verify(lowered, "lower", canonical=True)
        assert small_operands(lowered, recipe) == []
        products = [n for n in lowered.proto.graph.node if n.op_type == "MatMul"]
        made_by = {n.output[0]: n.op_type for n in lowered.proto.graph.node}
        assert [[made_by[name] for name in node.input] for node in products] == [["DequantizeLinear"] * 2]


@pytest.mark.parametrize("body", [f"{CHAIN} {CONV}", f"{PAIR} {CONV}"])
def test_recipes_that_quantise_everything_change_nothing_of_it(body):
    result = collapse(net(body), Recipe.of("INT8"))
    assert not {"float-fake-quant", "float-weight"} & {change.rule for change in result.changes}
    assert small_operands(result.model, Recipe.of("INT8")) == []
    assert "y = Relu(k)" in lines(result.model)
    assert "k = Conv(a, wd)" in lines(result.model)


def test_pairs_before_other_operators_stay_while_convs_are_quantised():
    model = net(f"{CHAIN} y = Sigmoid(a)")
    assert "QuantizeLinear" in " ".join(lines(collapse(model, Recipe.of("INT8")).model))
    assert collapse(model).model is model
    assert [(c.rule, c.target) for c in collapse(model).changes] == [("float-fake-quant", "a")]


def test_scales_per_channel_keep_their_values():
    model = net("q = QuantizeLinear<axis=1>(x, s4, z4) a = DequantizeLinear<axis=1>(q, s4, z4) y = Conv(a, wf)")
    result = collapse(model)
    assert "Linear" not in " ".join(lines(result.model))
    np.testing.assert_allclose(run(result.model)["y"], run(model)["y"], rtol=1e-6, atol=1e-5)


def test_weights_quantised_in_the_graph_become_the_same_floats():
    weight = "wq = QuantizeLinear<axis=0>(wf, s4, z4) wd = DequantizeLinear<axis=0>(wq, s4, z4)"
    model = net(f"{PAIR} {weight} y = Conv(a, wd)")
    result = collapse(model)
    assert "Linear" not in " ".join(lines(result.model))
    np.testing.assert_allclose(run(result.model)["y"], run(model)["y"], rtol=1e-6, atol=1e-5)


def test_float8_weights_become_floats_and_float8_pairs_are_told():
    model = net(f"{PAIR} wd = DequantizeLinear(w, ws) y = Conv(a, wd)", opset=19)
    proto = model.copy_proto()
    for tensor in proto.graph.initializer:
        if tensor.name in ("w", "z"):
            values = numpy_helper.to_array(tensor).astype(np.float32)
            data = values.astype(h.tensor_dtype_to_np_dtype(T.FLOAT8E4M3FN))
            tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))
    del proto.graph.value_info[:]
    model = InferShapes().run(from_proto(proto)).model
    result = collapse(model)
    assert "y = Conv(a, wd//values)" in lines(result.model)
    assert [(c.rule, c.target) for c in result.changes] == [("skip-float", "a"), ("float-weight", "wd")]
    np.testing.assert_allclose(run(result.model)["y"], run(model)["y"], rtol=1e-6, atol=1e-5)


def test_a_conv_in_a_body_reads_the_float_form_of_a_value_outside():
    body = f"""{CHAIN} {MATMUL} wd = DequantizeLinear(w, ws)
        y = If(b) <then_branch = t () => (float[1,4,6,6] p) {{ p = Conv(a, wd) }},
                   else_branch = e () => (float[1,4,6,6] o) {{ o = Relu(x) }}>"""
    result = collapse(net(body, BOTH))
    text = lines(result.model)
    assert "p = Conv(a//float, wd//values)" in text
    assert "m = MatMul(a, vd)" in text
    run(result.model)


def test_a_second_run_changes_nothing_more():
    once = collapse(net(f"{CHAIN} {CONV} {MATMUL}", BOTH)).model
    assert collapse(once).model is once


@pytest.mark.parametrize("start", [CHAIN, PAIR])
def test_the_boundary_stays(start):
    model = net(f"{start} wd = DequantizeLinear(w, ws) y = Conv(a, wd)", "float[1,4,6,6] y, float[1,4,6,6] a")
    result = collapse(model)
    assert [o.name for o in result.model.proto.graph.output] == ["y", "a"]
    assert small_operands(result.model, INT8) == []
    for name, value in run(model).items():
        np.testing.assert_allclose(run(result.model)[name], value, rtol=1e-6, atol=1e-5)


def test_a_width_that_only_float_nodes_read_is_no_error():
    four = CHAIN.replace("hi)", "h4)")
    proto = net(f"{four.replace('h4', 'hi')} {CONV}").copy_proto()
    next(t for t in proto.graph.initializer if t.name == "hi").CopyFrom(numpy_helper.from_array(np.float32(15), "hi"))
    model = from_proto(proto)
    assert "Linear" not in " ".join(lines(collapse(model).model))
    with pytest.raises(RuntimeError, match="num_bits=4"):
        collapse(model, dataclasses.replace(INT8, quantize_ops=QUANTIZED_OPS))
