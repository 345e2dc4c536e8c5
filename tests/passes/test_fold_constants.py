"""Constant folding on literal graphs: what folds, what must not, and that the values stay."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from passes.base import Pipeline, verify
from passes.canonicalize import Canonicalize
from passes.fold_constants import FoldConstants
from passes.infer_shapes import InferShapes
from passes.model import Model, from_proto, is_stub
from rewriter.runtime.native import NativeSession, evaluate

EVALUATORS = {"reference": None, "native": evaluate}


def parsed(text, opset=18):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')


def prepared(proto):
    return Pipeline((Canonicalize(), InferShapes()), canonical=True).run(from_proto(proto))[0]


def fold(proto, **options):
    model = prepared(proto)
    before = model.proto.SerializeToString(deterministic=True)
    result = FoldConstants(**options).run(model)
    assert model.proto.SerializeToString(deterministic=True) == before
    assert result.modified == (result.model.proto.SerializeToString(deterministic=True) != before)
    verify(result.model, "fold_constants", canonical=True)
    return result.model


def ops(graph):
    return [node.op_type for node in graph.node]


def constant(model, name):
    tensor = next(t for t in model.proto.graph.initializer if t.name == name)
    return model.weights[name] if is_stub(tensor) else numpy_helper.to_array(tensor)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_chains_fold_at_once_and_keep_dtype_and_rank(evaluator):
    proto = parsed(
        """g (float[2] x) => (float[2] y, string[2] s, int64 n) <float[2] c={1, 2}, float z={2},
        string[2] t={"a", "b"}, int64[1] r={1}> {
        a = Add(c, c) b = Exp(a) d = Mul(b, z) e = Sqrt(z) y = Sum(x, d, e) s = Tile(t, r)
        k = Shape(c) i = Constant<value_int=0>() n = Gather(k, i) }"""
    )
    model = fold(proto, evaluate=EVALUATORS[evaluator])
    assert ops(model.proto.graph) == ["Sum"]
    assert constant(model, "e").shape == ()
    assert constant(model, "e").dtype == np.float32
    assert constant(model, "n") == 2
    np.testing.assert_allclose(constant(model, "d"), 2 * np.exp([2.0, 4.0]), rtol=1e-6)
    x = {"x": np.ones(2, np.float32)}
    ours, theirs = NativeSession(model).run(x), NativeSession(Model(proto)).run(x)
    np.testing.assert_allclose(ours["y"], theirs["y"], rtol=1e-6)
    assert ours["s"].tolist() == theirs["s"].tolist()


def test_only_the_static_entries_of_a_dynamic_shape_fold():
    proto = parsed("""g (float[N,4,6] x) => (float[N,24] y, int64 size) <int64[1] i={1}, int64[1] j={2}, int64 m={-1}> {
        s = Shape(x) a = Gather(s, i) b = Slice(s, j, k) k = Constant<value_ints=[3]>()
        p = Mul(a, b) n = Shape<start=0, end=1>(x) q = Concat<axis=0>(n, p) y = Reshape(x, q)
        c = Transpose<perm=[2,1,0]>(x) t = Shape<start=-3, end=-1>(c) f = Gather(t, z) z = Constant<value_int=0>()
        size = Cast<to=7>(f) }""")
    model = fold(proto)
    assert ops(model.proto.graph) == ["Shape", "Concat", "Reshape"]
    assert constant(model, "p").tolist() == [24]
    assert constant(model, "size").tolist() == 6
    x = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
    np.testing.assert_array_equal(NativeSession(model).run({"x": x})["y"], x.reshape(3, 24))


@pytest.mark.parametrize(
    ("expression", "shape", "dtype", "expected"),
    [
        ("Shape(x)", "2,3,4", 7, [2, 3, 4]),
        ("Size(x)", "2,3,4", 7, 24),
        ("Shape<start=1>(x)", "N,3,4", 7, [3, 4]),
        ("Shape<start=-2, end=100>(x)", "N,3,4", 7, [3, 4]),
        ("Shape<start=2, end=1>(x)", "N,3,4", 7, []),
        ("Cast<to=6>(s)", "2,3,4", 6, [2, 3, 4]),
        ("Gather(s, one)", "N,3,4", 7, 3),
        ("Gather(s, last)", "N,3,4", 7, [4]),
        ("Slice(s, one1, big)", "N,3,4", 7, [3, 4]),
        ("Slice(s, last, big)", "N,3,4", 7, [4]),
        ("Slice(s, one1, big, zero1, two1)", "N,3,4", 7, [3]),
        ("Concat<axis=0>(last, one1)", "N", 7, [-1, 1]),
        ("Unsqueeze(one, zero1)", "N", 7, [1]),
        ("Squeeze(last)", "N", 7, -1),
    ],
)
def test_shape_arithmetic(expression, shape, dtype, expected):
    proto = parsed(f"""g (float[{shape}] x) => (int64[k] y, float[{shape}] keep)
        <int64 one={{1}}, int64[1] one1={{1}}, int64[1] two1={{2}}, int64[1] zero1={{0}}, int64[1] last={{-1}},
         int64[1] big={{9223372036854775807}}> {{ s = Shape(x) y = {expression} keep = Neg(x) }}""")
    proto.graph.output[0].type.tensor_type.elem_type = dtype
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = fold(proto)
    assert ops(model.proto.graph) == ["Neg"]
    value = constant(model, "y")
    assert value.dtype == helper.tensor_dtype_to_np_dtype(dtype)
    assert value.tolist() == expected
    feeds = {"x": np.ones([2 if d == "N" else int(d) for d in shape.split(",")], np.float32)}
    assert NativeSession(Model(proto)).run(feeds)["y"].tolist() == expected


@pytest.mark.parametrize("expression", ["Gather(s, zero)", "Slice(s, minus, one)", "Size(x)", "Gather(s, both)"])
def test_dynamic_entries_stay(expression):
    proto = parsed(f"""g (float[N,3] x) => (int64[k] y) <int64 zero={{0}}, int64[1] minus={{-2}}, int64[1] one={{1}},
        int64[2] both={{1, 0}}> {{ s = Shape(x) y = {expression} }}""")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert fold(proto).proto.graph.node


def test_quantisation_and_what_leads_to_it_stay():
    proto = parsed("""g (float[2,2] x) => (float[2,2] y) <float[2,2] w={1, 2, 3, 4}, float s={0.5},
        int8 z={0}, float h={2}> {
        t = Transpose(w) q = QuantizeLinear(t, sc, z) d = DequantizeLinear(q, sc, z) sc = Mul(s, h)
        a = MatMul(x, d) v = Transpose(w) u = Exp(v) y = MatMul(a, u) }""")
    model = fold(proto)
    # The scale is folded, for TensorRT wants it constant; the quantised weight and its Transpose are not.
    assert ops(model.proto.graph) == ["Transpose", "QuantizeLinear", "DequantizeLinear", "MatMul", "MatMul"]
    assert constant(model, "sc") == 1.0


@pytest.mark.parametrize(
    "node",
    [
        "RandomNormal<shape=[2]>()",
        "RandomUniform<shape=[2]>()",
        "RandomNormalLike(c)",
        "RandomUniformLike(c)",
        "Bernoulli(c)",
        "Dropout(c, half, yes)",
    ],
)
def test_random_nodes_stay(node):
    proto = parsed(f"g (float[2] x) => (float[2] y) <float[2] c={{0.5, 0.5}}, float half={{0.5}}, bool yes={{1}}> {{"
                   f" r = {node} y = Add(x, r) }}")  # fmt: skip
    assert len(fold(proto).proto.graph.node) == 2


def test_sequences_bodies_and_foreign_operators_stay():
    proto = parsed("""g (float[2] x) => (float[4] y, float[2] z) <float[2] c={1, 2}, bool b={1}> {
        s = SequenceConstruct(c, c) k = ConcatFromSequence<axis=0>(s) y = Relu(k)
        p = If(b) <then_branch = t () => (float[2] u) { v = Exp(c) u = Neg(v) },
                   else_branch = e () => (float[2] w) { w = Neg(c) }>
        z = Add(x, p) }""")
    model = fold(proto)
    assert ops(model.proto.graph) == ["SequenceConstruct", "ConcatFromSequence", "Relu", "If", "Add"]
    # Within a body constants fold, too, but not what the body returns.
    assert ops(model.proto.graph.node[3].attribute[0].g) == ["Neg"]
    proto = parsed("g (float[2] x) => (float[2] y) <float[2] c={1, 2}> { a = my.Op(c) b = Exp(a) y = Add(x, b) }")
    proto.opset_import.append(helper.make_opsetid("my", 1))
    assert len(fold(proto).proto.graph.node) == 3


def test_large_results_do_not_make_the_model_grow():
    proto = parsed("""g (float[N,1] x) => (float[N,9000] y, float[9000] z) <int64[1] n={9000}, float[1] c={2}> {
        a = ConstantOfShape(n) b = Expand(c, n) d = Add(a, b) y = Add(x, d) e = Shape(d) z = Expand(c, e) }""")
    small = fold(proto, max_bytes=9000 * 4 - 1)
    assert ops(small.proto.graph) == ["ConstantOfShape", "Expand", "Add", "Add", "Expand"]
    assert not small.weights
    large = fold(proto, max_bytes=9000 * 4)
    assert ops(large.proto.graph) == ["Add"]
    assert set(large.weights) == {"d", "z"}


def test_sizes_that_depend_on_folded_values_are_known_before_anything_runs():
    calls = []

    def spy(proto, feeds):
        calls.append([node.op_type for node in proto.graph.node])
        return evaluate(proto, feeds)

    proto = parsed("""g (float[N] x) => (float[N] y, float[k] z) <float[1] f={100000000}, float[1] c={2}> {
        n = Cast<to=7>(f) big = Expand(c, n) s = ReduceSum<keepdims=0>(big) y = Add(x, s)
        e = NonZero(c) g = Cast<to=1>(e) z = Exp(h) i = Constant<value_ints=[-1]>() h = Reshape(g, i) }""")
    model = fold(proto, evaluate=spy)
    assert ops(model.proto.graph) == ["Expand", "ReduceSum", "Add"]
    assert all("Expand" not in call for call in calls)
    assert constant(model, "z").tolist() == [1.0]


def test_weights_take_part_and_shared_ones_are_not_doubled():
    weights = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    proto = parsed("g (float[N,64] x) => (float[N,64] y) { t = Transpose(w) a = MatMul(x, w) y = MatMul(a, t) }")
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    shared = fold(proto, max_bytes=1024)
    assert ops(shared.proto.graph) == ["Transpose", "MatMul", "MatMul"]
    proto = parsed("g (float[N,32] x) => (float[N,64] y) { t = Transpose(w) y = MatMul(x, t) }")
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    alone = fold(proto, max_bytes=1024)
    assert ops(alone.proto.graph) == ["MatMul"]
    assert list(alone.weights) == ["t"]
    np.testing.assert_array_equal(alone.weights["t"], weights.T)
    assert alone.weights["t"].flags.c_contiguous


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_bfloat16_weights_are_right_or_left_alone(evaluator):
    bfloat16 = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    weights = np.arange(2048).reshape(64, 32).astype(bfloat16)
    proto = parsed("g (float[N,32] x) => (float[N,64] y) { t = Transpose(w) c = Cast<to=1>(t) y = MatMul(x, c) }")
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    model = fold(proto, evaluate=EVALUATORS[evaluator])
    x = np.eye(32, dtype=np.float32)
    np.testing.assert_array_equal(NativeSession(model).run({"x": x})["y"], weights.astype(np.float32).T)


def test_a_node_that_cannot_be_evaluated_stays_and_costs_only_itself(caplog):
    def broken(proto, feeds):
        if any(node.op_type == "Erf" for node in proto.graph.node):
            raise RuntimeError("no kernel for Erf")
        return evaluate(proto, feeds)

    proto = parsed("""g (float[2] x) => (float[2] y) <float[2] c={1, 2}> {
        a = Exp(c) b = Neg(a) [bad] d = Erf(b) e = Abs(d) f = Sqrt(a) g = Tanh(f) y = Sum(x, e, g) }""")
    model = fold(proto, evaluate=broken)
    assert ops(model.proto.graph) == ["Erf", "Abs", "Sum"]
    assert "'bad' (Erf) is not folded, its evaluation failed: no kernel for Erf" in caplog.text
    x = {"x": np.ones(2, np.float32)}
    np.testing.assert_allclose(NativeSession(model).run(x)["y"], NativeSession(Model(proto)).run(x)["y"], rtol=1e-6)


def test_an_evaluator_that_gives_another_dtype_is_not_believed(caplog):
    def double(proto, feeds):
        return {name: np.asarray(value, np.float64) for name, value in evaluate(proto, feeds).items()}

    proto = parsed("g (float[2] x) => (float[2] y) <float[2] c={1, 2}> { a = Exp(c) y = Add(x, a) }")
    assert ops(fold(proto, evaluate=double).proto.graph) == ["Exp", "Add"]
    assert "came out as float64, not float32" in caplog.text


def test_a_model_that_always_fails_at_run_time_still_does():
    proto = parsed(
        "g (float[2] x) => (float[2] y) <float[2] c={1, 2}, int64[1] n={3}> { a = Reshape(c, n) y = Add(x, a) }"
    )
    assert ops(fold(proto).proto.graph) == ["Reshape", "Add"]


def test_several_outputs():
    proto = parsed("""g (float[2] x) => (float[2] y, float[1,2] only) <float[2,2] c={1, 2, 3, 4}> {
        a, b = Split<axis=0, num_outputs=2>(c) y = Add(x, b) only = Neg(a) }""")
    model = fold(proto)
    assert ops(model.proto.graph) == ["Add"]
    assert constant(model, "only").tolist() == [[-1.0, -2.0]]


def test_a_body_goes_on_returning_its_own_value():
    proto = parsed("""g (float[2] x, bool b) => (int64[1] y) {
        y = If(b) <then_branch = t () => (int64[1] u) { u = Shape(x) },
                   else_branch = e () => (int64[1] w) { s = Shape(x) w = Neg(s) }> }""")
    model = fold(proto)
    branches = [attribute.g for attribute in model.proto.graph.node[0].attribute]
    assert [ops(branch) for branch in branches] == [["Shape"], ["Neg"]]
    assert [t.name for t in model.proto.graph.initializer] == ["s"]
    for flag in (True, False):
        feeds = {"x": np.ones(2, np.float32), "b": np.array(flag)}
        assert NativeSession(model).run(feeds)["y"] == (2 if flag else -2)


def test_the_options_are_shown_without_the_function():
    assert repr(FoldConstants(evaluate)) == "FoldConstants(max_bytes=16777216, name='fold_constants')"
