"""passes.graph.shape_sources: which values input shapes decide."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from passes import testing
from passes.canonicalize import Canonicalize
from passes.graph.shape_sources import shape_sources
from passes.model import Model, from_proto
from rewriter.runtime.native import NativeSession


def sources(body, inputs="float[N, 4] x, int64[K] k", declared="", domains=""):
    """Of a graph with the output y; `declared` holds types and initializers."""
    text = f'<ir_version: 8, opset_import: ["" : 17{domains}]> g ({inputs}) => (y) <{declared}> {{ {body} }}'
    found = shape_sources(from_proto(onnx.parser.parse_model(text)))
    assert found.shape_values <= found.fixed
    return found


def test_inputs_have_a_fixed_shape_and_no_fixed_elements():
    found = sources("y = Relu(x)")
    assert found.fixed == {"x", "k", "y"}
    assert found.shape_values == set()


def test_shape_arithmetic_gives_elements():
    found = sources(
        "s = Shape(x) n = Size(x) i = Gather(s, zero) r = Range(one, n, one) c = Concat<axis=0>(s, s) "
        "f = Cast<to=1>(i) z = ConstantOfShape(s) y = NonZero(z)",
        declared="int64 zero = {0}, int64 one = {1}",
    )
    assert found.shape_values == {*"snircfzy", "zero", "one"}
    assert found.fixed == found.shape_values | {"x", "k"}


@pytest.mark.parametrize(
    "maker",
    [
        "NonZero(x)", "Unique(x)", "Compress(x, b)", "Reshape(x, k)", "Expand(x, k)", "Tile(x, k)", "Slice(x, k, k)",
        "Range(q, q, q)", "ConstantOfShape(k)", "Pad(x, k)", "OneHot(x, q, v)", "Resize(x, , v)", "Resize(x, , , k)",
        "TopK(x, k)", "If(b)", "SequenceConstruct(x)", "Split(x, k)", "Squeeze(x, k)", "Unsqueeze(x, k)", "Cast(nz)",
        "NonMaxSuppression(x, x)", "Made(x)", "Attention(x)", "ReduceSum(x, k)", "MelWeightMatrix(q, q, q, v, v)",
    ],
)  # fmt: skip
def test_shapes_that_data_decide(maker):
    inputs = "float[N, 4] x, int64[K] k, bool[N] b, int64 q, float[2] v"
    found = sources(f"nz = NonZero(b) m = {maker} y = Relu(m)", inputs)
    assert not found.fixed & {"nz", "m", "y"}


@pytest.mark.parametrize(
    "maker",
    [
        "Reshape(x, s)", "Expand(x, s)", "Tile(x, c)", "Slice(x, c, s)", "Pad(x, p)", "Pad(x, p, v)", "TopK(x, one)",
        "Resize(x, , , s)", "ConstantOfShape(s)", "OneHot(x, one, v)", "Gather(x, k)", "MatMul(x, x)", "Split(x, c)",
        "ReduceSum(x, )", "Clip(x, , v)", "RandomNormalLike(x)", "Where(b, x, x)", "RandomNormal<shape = [2]>()",
    ],
)  # fmt: skip
def test_shapes_that_input_shapes_decide(maker):
    inputs = "float[N, 4] x, int64[K] k, bool[N] b, float v"
    declared = "int64[2] c = {1, 1}, int64[1] one = {1}, int64[4] p = {0, 0, 1, 1}"
    found = sources(f"s = Shape(x) m = {maker} y = Relu(m)", inputs, declared)
    assert {"m", "y"} <= found.fixed
    assert not found.shape_values & {"m", "y"} or "ConstantOfShape" in maker


def test_declared_numbers_count_whatever_makes_the_value():
    found = sources("u = Made(x) s = Shape(u) n = NonZero(u) y = Sin(n)", declared="float[3, 4] u, int64[2, M] n")
    assert {"u", "s"} <= found.fixed
    assert "s" in found.shape_values
    assert not found.fixed & {"n", "y"}


def test_shapes_of_shapes_that_data_decide_are_no_shape_values():
    found = sources("n = NonZero(x) s = Shape(n) r = Reshape(x, s) y = Relu(r)")
    assert "s" not in found.shape_values
    assert not found.fixed & {"n", "s", "r", "y"}


@pytest.mark.parametrize(
    ("maker", "elements"),
    [
        ("RandomUniformLike(z)", False),
        ("Dropout(z)", False),
        ("Bernoulli(z)", False),
        ("Tanh(z)", True),
        ("far.A(z)", None),
    ],
)
def test_random_numbers_have_a_fixed_shape_only(maker, elements):
    found = sources(f"s = Shape(x) z = ConstantOfShape(s) y = {maker}", domains=', "far" : 1')
    assert ("y" in found.fixed) is (elements is not None)
    assert ("y" in found.shape_values) is bool(elements)


def test_string_lookups_keep_the_shape():
    body = (
        'i = ai.onnx.ml.LabelEncoder<keys_strings = ["a"], values_floats = [1.0]>(t) j = ai.onnx.ml.Made(t) y = Relu(i)'
    )
    found = sources(body, "string[N] t", domains=', "ai.onnx.ml" : 2')
    assert found.fixed == {"t", "i", "y"}


def test_defaults_and_sequences_as_inputs():
    found = sources("y = Relu(x)", "float[N] x, seq(float[N]) q", "float[2] x = {1, 2}")
    assert found.fixed == {"x", "y"}
    assert found.shape_values == set()


@pytest.mark.parametrize(
    ("inner", "elements"), [("Identity(s)", True), ("RandomUniformLike(s)", False), ("Cast<to=7>(k)", False)]
)
def test_bodies_count_with_what_they_capture(inner, elements):
    then, other = (f"{n} () => (int64[Q] {n}1) {{ {n}1 = {inner} }}" for n in ("t", "e"))
    body = f"s = Shape(x) c = Equal(z, z) y = If(c) <then_branch = {then}, else_branch = {other}>"
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N] x, int64[K] k) => (y) <int64 z = {{0}}> {{ {body} }}'
    found = shape_sources(Model(onnx.parser.parse_model(text)))
    assert ("y" in found.shape_values) is elements
    assert ("y" in found.fixed) is elements


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_what_is_fixed_never_changes_with_the_data(seed):
    """Two runs with inputs of one shape: fixed values have one shape, shape values have the same elements."""
    model = Canonicalize().run(from_proto(testing.random_model(seed, 12))).model
    found = shape_sources(model)
    made = [n for node in model.proto.graph.node for n in node.output if n in found.fixed]
    proto = model.copy_proto()
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    session = NativeSession(Model(proto, model.weights), optimize=False, threads=1)
    first, second = (session.run(testing.random_feeds(model.proto, s, {"N": 3})) for s in (seed, seed + 1))
    assert made
    for name in made:
        assert first[name].shape == second[name].shape, name
        if name in found.shape_values:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_long_chains_take_no_time():
    nodes = [helper.make_node("Add", [f"v{i}", "w"], [f"v{i + 1}"]) for i in range(20_000)]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("v0", 1, ["N"])], [value("v20000", 1, ["N"])], [numpy_helper.from_array(np.float32(1), "w")]
    )
    assert len(shape_sources(Model(helper.make_model(graph))).fixed) == 20_002
