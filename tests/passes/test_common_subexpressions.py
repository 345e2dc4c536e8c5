"""Common subexpressions on literal graphs and on random models: what merges, what must not, and equal results."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from passes.base import Pipeline, verify
from passes.canonicalize import Canonicalize
from passes.common_subexpressions import CommonSubexpressions
from passes.infer_shapes import InferShapes
from passes.island_node import ISLAND_DOMAIN, IslandAttributes, make_island
from passes.model import Model, from_proto
from passes.testing import assert_close, random_feeds, random_model
from rewriter.runtime.native import NativeSession


def parsed(text, opset=18):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')


def merge(proto, **options):
    model = Pipeline((Canonicalize(), InferShapes()), canonical=True).run(from_proto(proto))[0]
    result = CommonSubexpressions(**options).run(model)
    verify(result.model, "common_subexpressions", canonical=True)
    assert result.modified == (result.model is not model)
    assert CommonSubexpressions(**options).run(result.model).model is result.model
    return result


def ops(graph):
    return [node.op_type for node in graph.node]


def same_results(before, after, feeds):
    expected = NativeSession(Model(before), optimize=False, threads=1).run(feeds)
    actual = NativeSession(after, optimize=False, threads=1).run(feeds)
    assert_close(actual, expected)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), nodes=st.integers(1, 40), batch=st.integers(1, 3))
def test_random_models_compute_the_same(seed, nodes, batch):
    # Twice the same steps on the same values, so that there is something to merge.
    proto = random_model(seed, nodes)
    again = [node for node in proto.graph.node if not node.output[0].startswith("out_")]
    for node in again:
        twin = proto.graph.node.add()
        twin.CopyFrom(node)
        if any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
            proto.graph.node.pop()
            continue
        twin.name = f"{node.name}_twin" if node.name else ""
        made = {name: f"{name}_twin" for name in node.output if name}
        twin.output[:] = [made.get(name, "") for name in node.output]
        proto.graph.node.add(op_type="Identity", input=[f"{node.output[0]}_twin"], output=[f"{node.output[0]}_again"])
    result = merge(proto)
    same_results(proto, result.model, random_feeds(proto, seed % 1000, {"N": batch}))


def test_what_reads_merged_values_merges_as_well():
    result = merge(
        parsed("""g (float[N,3] x, float[N,3] z) => (float[N,3] y) {
        [one] a = Relu(x) [two] b = Relu(x) c = Add(a, z) d = Add(z, b) e = Tanh(c) f = Tanh(d) y = Mul(e, f) }""")
    )
    assert ops(result.model.proto.graph) == ["Relu", "Add", "Tanh", "Mul"]
    assert result.changes[0].rule == "merge-node"
    assert (result.changes[0].target, "'one' (Relu)" in result.changes[0].reason) == ("two", True)
    assert list(result.model.proto.graph.node[3].input) == ["e", "e"]


def test_readers_merge_on_both_sides_of_a_value_that_takes_an_outputs_name_over():
    proto = parsed("""g (float[2] x) => (float[2] b, float[2] y) {
        a = Relu(x)
        n1 = Neg(a)
        b = Relu(x)
        n2 = Neg(b)
        m = Abs(n1)
        n = Abs(n2)
        y = Add(m, n)
    }""")
    assert ops(merge(proto).model.proto.graph) == ["Relu", "Neg", "Abs", "Add"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(st.tuples(st.sampled_from(["Relu", "Neg"]), st.integers(0, 3)), min_size=4, max_size=14),
    marked=st.sets(st.integers(0, 13), min_size=1),
)
def test_a_second_run_finds_nothing(steps, marked):
    """Chains of two operators on few values, any of which may be outputs (`merge` runs the pass twice)."""
    values = ["x"]
    lines = []
    for number, (operator, source) in enumerate(steps):
        lines.append(f"v{number} = {operator}({values[source % len(values)]})")
        values.append(f"v{number}")
    outputs = sorted({number % len(steps) for number in marked})
    lines.append(f"y = Sum({', '.join(values)})")  # reads all, so that none is dead
    heads = ", ".join(["float[2] y", *(f"float[2] v{number}" for number in outputs)])
    proto = parsed("g (float[2] x) => (" + heads + ") {" + chr(10).join(lines) + "}")
    result = merge(proto)
    same_results(proto, result.model, {"x": np.array([-1.0, 2.0], np.float32)})


@pytest.mark.parametrize(
    "body",
    [
        "a = LeakyRelu<alpha=0.1>(x) b = LeakyRelu<alpha=0.2>(x)",
        "a = Sub(x, z) b = Sub(z, x)",
        "a = Relu(x) b = Abs(x)",
        "a = Clip(x, low) b = Clip(x, , low)",
        "a = RandomNormalLike(x) b = RandomNormalLike(x)",
        "a = RandomUniformLike(x) b = RandomUniformLike(x)",
        "a = Bernoulli(x) b = Bernoulli(x)",
        "a = Dropout(x, half, yes) b = Dropout(x, half, yes)",
        "p = QuantizeLinear(x, half) a = DequantizeLinear(p, half) q = QuantizeLinear(x, half)"
        " b = DequantizeLinear(q, half)",
    ],
)
def test_what_differs_or_must_stay_apart_stays(body):
    proto = parsed(f"""g (float[2,3] x, float[2,3] z) => (float[2,3] y) <float low={{0}}, float half={{0.5}},
        bool yes={{1}}> {{ {body} y = Sub(a, b) }}""")
    assert not merge(proto).modified


def test_equal_attributes_in_any_order_and_spelling_merge():
    proto = parsed("""g (float[1,2,5,5] x) => (float[1,2,4,4] y) <float[2,2,2,2] w={1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}> {
        a = Conv<strides=[1,1], group=1>(x, w) b = Conv<group=1, strides=[1,1]>(x, w) y = Sub(a, b) }""")
    assert ops(merge(proto).model.proto.graph) == ["Conv", "Sub"]
    value = numpy_helper.from_array(np.ones(1, np.float32), "called_this")
    other = TensorProto(name="called_that", data_type=TensorProto.FLOAT, dims=[1], float_data=[1.0])
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["a"], value=value),
        helper.make_node("ConstantOfShape", ["n"], ["b"], value=other),
        helper.make_node("Sub", ["a", "b"], ["y"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [info("n", TensorProto.INT64, [1])], [info("y", TensorProto.FLOAT, ["k"])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert ops(merge(proto).model.proto.graph) == ["ConstantOfShape", "Sub"]


def test_outputs_keep_their_names():
    text = "g (float[N] x) => (float[N] y, float[N] z) { %s }"
    result = merge(parsed(text % "a = Relu(x) y = Relu(x) z = Neg(a)"))
    assert ops(result.model.proto.graph) == ["Relu", "Neg"]
    assert [o.name for o in result.model.proto.graph.output] == ["y", "z"]
    assert list(result.model.proto.graph.node[1].input) == ["y"]
    result = merge(parsed(text % "y = Relu(x) a = Relu(x) z = Neg(a)"))
    assert ops(result.model.proto.graph) == ["Relu", "Neg"]
    # Two outputs of one value need two nodes.
    assert not merge(parsed(text % "y = Relu(x) z = Relu(x)")).modified
    # A third copy merges into the first, and one name is taken over only once.
    result = merge(parsed(text % "a = Relu(x) y = Relu(x) z = Relu(x) b = Relu(x) c = Add(a, b)"))
    assert ops(result.model.proto.graph) == ["Relu", "Relu"]


def test_some_outputs_of_a_node_with_several():
    proto = parsed("""g (float[4] x) => (float[2] y, float[2] z) {
        a, b = Split<axis=0, num_outputs=2>(x) y, c = Split<axis=0, num_outputs=2>(x) d = Add(a, b) z = Sub(d, c) }""")
    result = merge(proto)
    assert ops(result.model.proto.graph) == ["Split", "Add", "Sub"]
    assert list(result.model.proto.graph.node[0].output) == ["y", "b"]
    same_results(proto, result.model, {"x": np.arange(4, dtype=np.float32)})


def test_bodies_are_looked_at_on_their_own():
    proto = parsed("""g (float[2] x, bool b) => (float[2] y) {
        o = Relu(x)
        p = If(b) <then_branch = t () => (float[2] u) { c = Relu(x) d = Relu(x) u = Add(c, d) },
                   else_branch = e () => (float[2] w) { k = Relu(o) w = Neg(k) }>
        r = Relu(x) y = Sum(p, o, r) }""")
    result = merge(proto)
    graph = result.model.proto.graph
    assert ops(graph) == ["Relu", "If", "Sum"]
    bodies = {a.name: a.g for a in graph.node[1].attribute}
    assert ops(bodies["then_branch"]) == ["Relu", "Add"]
    assert ops(bodies["else_branch"]) == ["Relu", "Neg"]
    for flag in (True, False):
        same_results(proto, result.model, {"x": np.array([-1, 2], np.float32), "b": np.array(flag)})


def test_a_value_that_a_body_reads_is_found_under_its_new_name():
    proto = parsed("""g (float[2] x, bool b) => (float[2] y, float[2] s) {
        s = Relu(x) t = Relu(x)
        y = If(b) <then_branch = t () => (float[2] u) { u = Neg(t) }, else_branch = e () => (float[2] w) {
            w = Abs(t) }> }""")
    result = merge(proto)
    assert ops(result.model.proto.graph) == ["Relu", "If"]
    same_results(proto, result.model, {"x": np.ones(2, np.float32), "b": np.array(True)})


def with_weights(*arrays):
    proto = parsed(
        "g (float[N,64] x) => (float[N,64] y) { "
        + " ".join(f"h{i} = MatMul(x, w{i})" for i in range(len(arrays)))
        + f" y = Sum({', '.join(f'h{i}' for i in range(len(arrays)))}) }}"
    )
    for i, array in enumerate(arrays):
        proto.graph.initializer.append(numpy_helper.from_array(array, f"w{i}"))
    return proto


def test_equal_weights_are_one():
    one = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    other = one.copy()
    other[3, 3] += 1
    proto = with_weights(one, other, one.copy())
    result = merge(proto)
    assert list(result.model.weights) == ["w0", "w1"]
    assert [c.rule for c in result.changes][:1] == ["merge-initializer"]
    assert ops(result.model.proto.graph) == ["MatMul", "MatMul", "Sum"]
    same_results(proto, result.model, {"x": np.ones((2, 64), np.float32)})
    assert not merge(proto, weights=False).modified


def test_zeros_of_either_sign_and_types_of_equal_bytes_are_not_equal():
    proto = parsed("""g (float[2] x) => (float[2] y) <float[2] p={0, 0}, float[2] m={-0.0, 0}, float[1,2] o={0, 0}> {
        a = Div(x, p) b = Div(x, m) c = Div(x, o) d = Add(a, b) e = Squeeze(c) y = Add(d, e) }""")
    assert not merge(proto).modified


def test_an_initializer_that_is_an_output_stays():
    proto = parsed(
        "g (float[2] x) => (float[2] y, float[2] w) <float[2] w={1, 2}, float[2] v={1, 2}> { y = Add(x, v) }"
    )
    assert not merge(proto).modified


def test_islands_and_foreign_operators_stay():
    proto = parsed("g (float[2] x) => (float[2] y) { a = my.Op(x) b = my.Op(x) y = Sum(a, b, c, d) }")
    proto.opset_import.append(helper.make_opsetid("my", 1))
    proto.opset_import.append(helper.make_opsetid(ISLAND_DOMAIN, 1))
    attributes = IslandAttributes("/nowhere", ("x",), ("y",))
    nodes = [make_island(f"TFIsland_00{i}", ("x",), (name,), attributes) for i, name in enumerate("cd")]
    nodes += [helper.make_node("Tanh", ["x"], ["unused"])]
    rest = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, *rest])
    assert not merge(proto).modified


def test_of_two_types_the_one_that_says_more_stays():
    proto = parsed("""g (float[N,4] x, int64[2] s) => (float[k,l] y) {
        a = Reshape(x, s) b = Reshape(x, s) c = Neg(a) d = Exp(b) y = Add(c, d) }""")
    proto.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 4]))
    model = Canonicalize().run(from_proto(proto)).model
    merged = CommonSubexpressions().run(model).model
    claims = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in merged.proto.graph.value_info
    }
    assert claims == {"a": ["N", 4]}
