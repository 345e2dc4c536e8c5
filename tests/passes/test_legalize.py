"""Every rule: TensorRT's parser refuses before and takes after; ONNX Runtime computes the same bits."""

import numpy as np
import onnx
import pytest

from passes.base import Pipeline, verify
from passes.canonicalize import Canonicalize
from passes.infer_shapes import InferShapes
from passes.legalize import Legalize
from passes.model import Model, from_proto
from rewriter.runtime.native import NativeSession

BEFORE = Pipeline((Canonicalize(), InferShapes()))
AFTER = Pipeline((Legalize(), Canonicalize(), InferShapes()))


def parsed(text, opset=18):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')


def arrays(*shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(-5, 6, shape).astype(dtype) if dtype != "uint8" else rng.integers(0, 256, shape).astype(dtype)


LOOP = """g (float[2] x) => (float[2] y) <int64 n={3}> {
    y = Loop(n, "", x) <body = b (int64 i, bool ci, float[2] a) => (bool co, float[2] o) { co = Identity(ci) o = Add(a, x) }>
}"""  # noqa: E501
CASES = {
    "loop-condition": (LOOP, {"x": arrays(2)}, 18),
    "slice-axes": (
        "g (float[N,4,4] x, int64[2] s, int64[2] e) => (float[p,q,4] y) { y = Slice(x, s, e) }",
        {"x": arrays(5, 4, 4), "s": np.array([1, 0]), "e": np.array([4, -1])},
        18,
    ),
    "slice-axes-steps": (
        """g (float[N,4,4] x, int64[1] s, int64[1] e) => (float[p,4,4] y) <int64[1] t={-2}> {
            y = Slice(x, s, e, "", t) }""",
        {"x": arrays(5, 4, 4), "s": np.array([4]), "e": np.array([0])},
        18,
    ),
    "slice-axes-int32": (
        "g (float[N,4,4] x) => (float[p,4,4] y) <int32[1] s={1}, int32[1] e={3}> { y = Slice(x, s, e) }",
        {"x": arrays(5, 4, 4)},
        18,
    ),
    "eye-like": ("g (float[N,M] x) => (float[N,M] y) { y = EyeLike(x) }", {"x": arrays(3, 5)}, 18),
    "eye-like-k": (
        "g (float[N,M] x) => (int64[N,M] y) { y = EyeLike<dtype=7, k=-1>(x) }",
        {"x": arrays(5, 3)},
        18,
    ),
    "unused-outputs": (
        "g (float[1,1,4,4] x) => (float[1,1,2,2] y) { y, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) }",
        {"x": arrays(1, 1, 4, 4)},
        18,
    ),
    "unused-outputs-norm": (
        "g (float[4,4] x) => (float[4,4] y) <float[4] s={1,2,3,4}> { y, m, v = LayerNormalization(x, s) }",
        {"x": arrays(4, 4)},
        18,
    ),
    "boolean-reduce": (
        "g (bool[4,4] x) => (bool[4] y) <int64[1] a={1}> { y = ReduceMax<keepdims=0>(x, a) }",
        {"x": arrays(4, 4) > 3},
        20,
    ),
    "boolean-reduce-min": ("g (bool[4,4] x) => (bool[1,1] y) { y = ReduceMin(x) }", {"x": arrays(4, 4) > -9}, 20),
    "bitwise-not": (
        "g (int32[4] x) => (int32[4] y) { y = BitwiseNot(x) }",
        {"x": np.array([0, -1, 2**31 - 1, -(2**31)], "int32")},
        18,
    ),
    "bitwise-not-64": (
        "g (int64[3] x) => (int64[3] y) { y = BitwiseNot(x) }",
        {"x": np.array([5, 2**63 - 1, -(2**63)], "int64")},
        18,
    ),
    "integer-relu": ("g (int32[4,4] x) => (int32[4,4] y) { y = Relu(x) }", {"x": arrays(4, 4, dtype="int32")}, 18),
    "cast-earlier": (
        """g (uint8[N,4,4,3] x) => (float[N,3,2,4] y) <int64[1] s={1}, int64[1] e={3}, int64[1] a={2}> {
            t = Transpose<perm=[0,3,1,2]>(x) c = Slice(t, s, e, a) y = Cast<to=1>(c)
        }""",
        {"x": arrays(2, 4, 4, 3, dtype="uint8")},
        18,
    ),
    "cast-earlier-shared": (
        """g (uint8[N,4] x) => (int32[4,N] y, int32[4,N] z, uint8[N,4] o) <int64[1] k={0}> {
            t = Transpose(x) y = Cast<to=6>(t) u = Unsqueeze(t, k) v = Squeeze(u, k) w = Cast<to=6>(v) z = Add(w, y)
            o = Identity(x)
        }""",
        {"x": arrays(3, 4, dtype="uint8")},
        18,
    ),
}
#: Cases whose rule goes by the first words of the case's name.
RULES = (
    "loop-condition", "slice-axes", "eye-like", "unused-outputs", "boolean-reduce", "bitwise-not", "integer-relu",
    "cast-earlier",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_same_bits(case):
    text, feeds, opset = CASES[case]
    before, _ = BEFORE.run(from_proto(parsed(text, opset)))
    after, records = AFTER.run(before)
    rules = {change.rule for change in records[0].changes}
    assert rules == {next(rule for rule in RULES if case.startswith(rule))}
    ours = NativeSession(after, optimize=False).run(feeds)
    theirs = NativeSession(Model(parsed(text, opset)), optimize=False).run(feeds)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        np.testing.assert_array_equal(ours[name], value)


@pytest.mark.rtx
@pytest.mark.parametrize("case", CASES)
def test_the_parser_refuses_before_and_takes_after(case):
    text, _, opset = CASES[case]
    before, _ = BEFORE.run(from_proto(parsed(text, opset)))
    after, _ = AFTER.run(before)
    if case == "cast-earlier-shared":  # its uint8 output is refused on either side
        del after.proto.graph.output[2], before.proto.graph.output[2]
        after, before = Canonicalize().run(after).model, Canonicalize().run(before).model
    assert parser_errors(before)
    assert parser_errors(after) == []


def parser_errors(model):
    import tensorrt_rtx as trt

    class Quiet(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            pass

    logger = Quiet()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parser.parse(model.proto.SerializeToString())
    return [parser.get_error(i).desc() for i in range(parser.num_errors)]


UNTOUCHED = {
    "loop with a condition": """g (float[2] x, bool c) => (float[2] y) <int64 n={3}> {
        y = Loop(n, c, x) <body = b (int64 i, bool ci, float[2] a) => (bool ci, float[2] o) { o = Add(a, x) }> }""",
    "slice of every dimension": "g (float[4,4] x, int64[2] s) => (float[p,q] y) { y = Slice(x, s, s) }",
    "slice limits of unknown number": "g (float[4,4] x, int64[k] s) => (float[p,q] y) { y = Slice(x, s, s) }",
    "eye of known size": "g (float[4,4] x) => (float[4,4] y) { y = EyeLike(x) }",
    "used indices": """g (float[1,1,4,4] x) => (float[1,1,3,3] y, int64[1,1,3,3] i) {
        y, i = MaxPool<kernel_shape=[2,2]>(x) }""",
    "variadic outputs": "g (float[4,4] x) => (float[2,4] y) { y, z = Split<axis=0, num_outputs=2>(x) }",
    "float relu": "g (float[4] x) => (float[4] y) { y = Relu(x) }",
    "not of unsigned": "g (uint8[4] x) => (uint8[4] y) { y = BitwiseNot(x) }",
    "cast at once": "g (uint8[4] x) => (float[4] y) { y = Cast<to=1>(x) }",
    "moved value is an output": """g (uint8[4,2] x) => (uint8[2,4] t, float[2,4] y) {
        t = Transpose(x) y = Cast<to=1>(t) }""",
    "casts to two types": """g (uint8[4,2] x) => (int32[2,4] z, float[2,4] y) {
        t = Transpose(x) y = Cast<to=1>(t) z = Cast<to=6>(t) }""",
    "captured by a body": """g (uint8[4,2] x, bool b) => (float[2,4] y, uint8[2,4] z) {
        t = Transpose(x) y = Cast<to=1>(t)
        z = If(b) <then_branch = t () => (uint8[2,4] p) { p = Identity(t) },
                   else_branch = e () => (uint8[2,4] q) { q = Identity(t) }> }""",
    "table of constants": """g (int64[N] x) => (float[N,1] y) <uint8[4,1] w={1,2,3,4}> {
        t = Gather(w, x) y = Cast<to=1>(t) }""",
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_left_alone(case):
    model, _ = BEFORE.run(from_proto(parsed(UNTOUCHED[case])))
    result = Legalize().run(model)
    assert not result.modified
    assert result.model is model


def test_inside_bodies_constants_go_to_the_main_graph():
    text = """g (int32[4] x, bool b) => (int32[4] y) {
        y = If(b) <then_branch = t () => (int32[4] p) { r = Relu(x) p = BitwiseNot(r) },
                   else_branch = e () => (int32[4] q) { q = Relu(x) }> }"""
    model, _ = BEFORE.run(from_proto(parsed(text)))
    result = Legalize().run(model)
    verify(result.model, "legalize")
    assert [change.rule for change in result.changes] == ["integer-relu", "integer-relu", "bitwise-not"]
    assert len(result.model.proto.graph.initializer) == 2  # one zero for both branches, one -1
    for flag in (True, False):
        feeds = {"x": np.array([-3, 0, 3, 7], "int32"), "b": np.array(flag)}
        ours = NativeSession(result.model).run(feeds)["y"]
        np.testing.assert_array_equal(ours, NativeSession(Model(parsed(text))).run(feeds)["y"])


def test_old_batch_normalization_keeps_its_training_outputs():
    outputs = ["y", "m", "v", "sm", "sv"]
    node = onnx.helper.make_node("BatchNormalization", ["x", "s", "b", "mean", "var"], outputs, "bn")
    value = onnx.helper.make_tensor_value_info
    ones = [onnx.numpy_helper.from_array(np.ones(2, "float32"), name) for name in ("s", "b", "mean", "var")]
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [1, 2, 3, 3])], [value("y", 1, None)], ones)
    model = Model(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 9)], ir_version=10))
    assert not Legalize().run(model).modified


def test_names_of_replaced_nodes_stay():
    model, _ = BEFORE.run(from_proto(parsed("g (float[N,M] x) => (float[N,M] y) { [eye] y = EyeLike(x) }")))
    nodes = Legalize().run(model).model.proto.graph.node
    assert nodes[-1].name == "eye"
    assert all(node.name.startswith("eye/") for node in nodes[:-1])
    assert len({node.name for node in nodes}) == len(nodes)
