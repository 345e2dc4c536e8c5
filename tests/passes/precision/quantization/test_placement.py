"""Which reads are quantised: one literal graph a rule."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from passes.base import Pipeline
from passes.canonicalize import Canonicalize
from passes.extract import Extractor
from passes.graph.walk import iter_nodes
from passes.infer_shapes import InferShapes
from passes.model import from_proto
from passes.precision.quantization.placement import Edge, Placement, WeightEdge, quantized_tensors
from passes.precision.recipe import Recipe

CANONICAL = Pipeline((Canonicalize(), InferShapes()))
INT8, FP8 = Recipe.of("INT8"), Recipe.of("FP8")


def canonical(text, opset=21, **weights):
    """A canonical model whose nodes are called after their first output; `weights` name -> shape or array."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    rng = np.random.default_rng(0)
    for name, value in weights.items():
        array = rng.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else value
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in iter_nodes(proto):
        node.name = node.output[0]
    return CANONICAL.run(from_proto(proto))[0]


def reads(placement):
    """Edges as "node.index", weights as "node.index/axis"."""
    edges = [f"{e.node}.{e.index}" for e in placement.edges]
    return edges + [f"{w.node}.{w.index}/{w.axis}" for w in placement.weights]


def reasons(placement):
    assert all(change.rule == "skip-quantize" for change in placement.skipped)
    return {change.target: change.reason for change in placement.skipped}


CONV = "g (float[1,4,8,8] x) => (float[1,8,8,8] y) { y = Conv<pads=[1,1,1,1]>(x, w) }"
MLP = "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"


@pytest.mark.parametrize(
    ("text", "weights", "int8", "fp8"),
    [
        (CONV, {"w": (8, 4, 3, 3)}, ["y.0", "y.1/0"], ["y.0", "y.1/None"]),
        (
            "g (float[1,4,8,8] x) => (float[1,4,6,6] y) { y = Conv<group=4>(x, w) }",
            {"w": (4, 1, 3, 3)}, ["y.0", "y.1/0"], ["y.0", "y.1/None"],
        ),
        (
            "g (float[1,4,8,8] x) => (float[1,6,16,16] y) { y = ConvTranspose<strides=[2,2]>(x, w) }",
            {"w": (4, 6, 2, 2)}, ["y.0", "y.1/1"], [],
        ),
        (
            "g (float[1,4,8,8] x) => (float[1,6,16,16] y) { y = ConvTranspose<strides=[2,2], group=2>(x, w) }",
            {"w": (4, 3, 2, 2)}, ["y.0", "y.1/None"], [],
        ),
        ("g (float[N,4] x) => (float[N,5] y) { y = MatMul(x, w) }", {"w": (4, 5)}, ["y.0", "y.1/1"], None),
        ("g (float[2,N,4] x) => (float[2,N,5] y) { y = MatMul(x, w) }", {"w": (2, 4, 5)}, ["y.0", "y.1/2"], None),
        ("g (float[4,N] x) => (float[3,N] y) { y = MatMul(w, x) }", {"w": (3, 4)}, ["y.1", "y.0/None"], None),
        ("g (float[N,4] x) => (float[N,5] y) { y = Gemm(x, w, b) }", {"w": (4, 5), "b": (5,)}, ["y.0", "y.1/1"], None),
        ("g (float[N,4] x) => (float[N,5] y) { y = Gemm<transB=1>(x, w) }", {"w": (5, 4)}, ["y.0", "y.1/0"], None),
        ("g (float[2,4] x, float[4,3] z) => (float[2,3] y) { y = MatMul(x, z) }", {}, ["y.0", "y.1"], ["y.0", "y.1"]),
    ],
)  # fmt: skip
def test_matrix_operators(text, weights, int8, fp8):
    model = canonical(text, **weights)
    assert reads(quantized_tensors(model, INT8)) == int8
    if fp8 is not None:
        assert reads(quantized_tensors(model, FP8)) == fp8


def test_the_proposal_in_full():
    placement = quantized_tensors(canonical(MLP, w=(4, 4), v=(4, 4)), INT8)
    assert placement == Placement(
        edges=(Edge("h", 0, "x", "INT8"), Edge("y", 0, "r", "INT8")),
        weights=(WeightEdge("h", 1, "w", 1, "INT8"), WeightEdge("y", 1, "v", 1, "INT8")),
        tensors=("x", "r"),
        required=("x", "r"),
    )


@pytest.mark.parametrize("mode", ["FP32", "TF32", "FP16", "BF16"])
def test_other_modes_quantise_nothing(mode):
    assert quantized_tensors(canonical(MLP, w=(4, 4), v=(4, 4)), Recipe.of(mode)) == Placement()


@pytest.mark.parametrize(
    ("text", "weights", "recipe", "reason"),
    [
        (CONV, {"w": (8, 4, 3, 3)}, Recipe.of("INT8", keep_nodes=("^y$",)), "the recipe keeps it"),
        (CONV, {"w": (8, 4, 3, 3)}, Recipe.of("INT8", kept=frozenset({"y"})), "the recipe keeps it"),
        (CONV, {"w": (8, 4, 3, 3)}, Recipe.of("INT8", quantize_ops=("MatMul",)), "Conv is not among"),
        ("g (float[2,4] x) => (float[2,4] y) { y = Gemm<alpha=0.5>(x, w) }", {"w": (4, 4)}, INT8, "alpha or beta"),
        ("g (float[2,4] x) => (float[2] y) { y = MatMul(x, w) }", {"w": (4,)}, INT8, "'w' is a vector"),
        ("g (double[2,4] x, double[4,2] z) => (double[2,2] y) { y = MatMul(x, z) }", {}, INT8, "its type is DOUBLE"),
        (
            "g (float[1,4,8,8] x) => (float[1,6,9,9] y) { y = ConvTranspose(x, w) }",
            {"w": (4, 6, 2, 2)}, FP8, "no FP8 kernel",
        ),
        (
            "g (float[2,4] x) => (float[2,4] y) { d = DequantizeLinear<axis=0, block_size=2>(w, s) y = MatMul(x, d) }",
            {"w": np.zeros((4, 4), np.int8), "s": (2, 4)}, INT8, "for its size alone",
        ),
        (
            """g (float[2,4] x) => (float[2,4] y) <float s={0.1}, uint8 z={128}> {
                d = DequantizeLinear(w, s, z) y = MatMul(x, d) }""",
            {"w": np.zeros((4, 4), np.uint8)}, INT8, "is stored as UINT8",
        ),
    ],
)  # fmt: skip
def test_what_is_left_alone_has_a_reason(text, weights, recipe, reason):
    placement = quantized_tensors(canonical(text, **weights), recipe)
    assert reads(placement) == []
    assert reason in reasons(placement)["y"]


ATTENTION = """g (float[1,2,8,4] q, float[1,2,4,8] k, float[1,2,8,4] v, float[1,1,8,8] mask) => (float[1,2,8,4] y) {
    a = MatMul(q, k) c = Constant<value_float=0.5>() b = Mul(a, c) m = Add(b, mask) s = Softmax(m) y = MatMul(s, v)
}"""


def test_attention_stays_in_float_with_int8_and_is_quantised_with_fp8():
    model = canonical(ATTENTION)
    left = quantized_tensors(model, INT8)
    assert reads(left) == []
    assert set(reasons(left)) == {"a", "y"}
    assert reads(quantized_tensors(model, FP8)) == ["a.0", "a.1", "y.0", "y.1"]


RESIDUAL = """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {{
    r = Relu(x)
    c = Conv<pads=[1,1,1,1]>(r, w)
    n = BatchNormalization(c, s, b, m, v)
    t = {between}(n{more})
    a = Add(t, r)
    y = Relu(a)
}}"""
BLOCK = {"w": (4, 4, 3, 3), "s": (4,), "b": (4,), "m": (4,), "v": np.ones(4, np.float32)}


def test_residual_add_quantises_the_other_operand_and_shares_its_range():
    model = canonical(RESIDUAL.format(between="Add", more=", k"), k=(4, 1, 1), **BLOCK)
    placement = quantized_tensors(model, INT8)
    assert reads(placement) == ["c.0", "a.1", "c.1/0"]
    assert placement.tensors == placement.required == ("r",)


def test_residual_add_of_a_value_that_nothing_else_quantises_is_optional():
    text = """g (float[1,4,8,8] x, float[1,4,8,8] z) => (float[1,4,8,8] y) {
        c = Conv<pads=[1,1,1,1]>(x, w) y = Add(z, c) }"""
    placement = quantized_tensors(canonical(text, w=(4, 4, 3, 3)), INT8)
    assert reads(placement) == ["c.0", "y.0", "c.1/0"]
    assert (placement.tensors, placement.required) == (("x", "z"), ("x",))


def test_of_two_convolutions_the_later_one_takes_the_add():
    text = """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
        c = Conv<pads=[1,1,1,1]>(x, w) d = Conv<pads=[1,1,1,1]>(c, w) e = Conv(x, k) y = Add(d, e) }"""
    assert "y.0" in reads(quantized_tensors(canonical(text, w=(4, 4, 3, 3), k=(4, 4, 1, 1)), INT8))


@pytest.mark.parametrize(
    "text",
    [
        RESIDUAL.format(between="Tanh", more=""),
        # The result of the convolution is read twice, so it has to be written anyway.
        """g (float[1,4,8,8] x) => (float[1,4,8,8] y, float[1,4,8,8] c) {
            r = Relu(x) c = Conv<pads=[1,1,1,1]>(r, w) y = Add(c, r) }""",
        # A broadcast operand is no residual.
        """g (float[1,4,8,8] x, float[1,4,1,1] r) => (float[1,4,8,8] y) {
            c = Conv<pads=[1,1,1,1]>(x, w) y = Add(c, r) }""",
        # Nothing is known of the sizes.
        """g (float[N,4,H,W] x, float[N,4,K,L] r) => (float[N,4,H,W] y) {
            c = Conv<pads=[1,1,1,1]>(x, w) y = Add(c, r) }""",
    ],
)
def test_other_adds_are_no_residuals(text):
    assert [e for e in quantized_tensors(canonical(text, **BLOCK), INT8).edges if e.node != "c"] == []


def test_dynamic_batch_is_a_residual_all_the_same():
    text = """g (float[N,4,8,8] x) => (float[N,4,8,8] y) { c = Conv<pads=[1,1,1,1]>(x, w) y = Add(c, x) }"""
    assert "y.1" in reads(quantized_tensors(canonical(text, w=(4, 4, 3, 3)), INT8))


TRAINED = """g (float[1,4,8,8] x) => (float[1,4,4,4] y)
    <float s={0.05}, int8 z={0}, float t={0.02}> {
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
    %s
    wq = QuantizeLinear(w, t, z) wd = DequantizeLinear(wq, t, z)
    y = Conv<pads=[1,1,1,1], strides=[2,2]>(p, wd)
}"""


def test_trained_pairs_need_nothing():
    placement = quantized_tensors(canonical(TRAINED % "p = Identity(d)", w=(4, 4, 3, 3)), INT8)
    assert placement == Placement()


def test_a_trained_scale_is_known_behind_operators_that_only_move_values():
    model = canonical(TRAINED % "m = MaxPool<kernel_shape=[1,1]>(d) p = Relu(m)", w=(4, 4, 3, 3))
    placement = quantized_tensors(model, INT8)
    assert reads(placement) == ["y.0"]
    assert placement.tensors == placement.required == ()
    assert placement.known == {"p": pytest.approx(0.05)}


def test_a_trained_scale_is_unknown_behind_arithmetic():
    placement = quantized_tensors(canonical(TRAINED % "p = Tanh(d)", w=(4, 4, 3, 3)), INT8)
    assert placement.required == ("p",)


def test_trained_int8_stays_int8_with_fp8():
    model = canonical(TRAINED % "p = Relu(d)", w=(4, 4, 3, 3))
    assert quantized_tensors(model, FP8).edges == (Edge("y", 0, "p", "INT8"),)


def test_half_precision_models_are_quantised_too():
    text = "g (float16[2,4] x) => (float16[2,4] y) { y = MatMul(x, w) }"
    placement = quantized_tensors(canonical(text, w=np.ones((4, 4), np.float16)), INT8)
    assert reads(placement) == ["y.0", "y.1/1"]


BODY = """g (float[2,4] x, bool c) => (float[2,4] y) {
    r = Relu(x)
    i = If(c) <then_branch = t () => (float[2,4] a) { a = MatMul(r, w) },
               else_branch = e () => (float[2,4] b) { h = Tanh(r) b = MatMul(h, w) }>
    y = MatMul(i, w)
}"""


def test_bodies_are_looked_at():
    placement = quantized_tensors(canonical(BODY, w=(4, 4)), INT8)
    assert [e.node for e in placement.edges] == ["y", "b", "a"]
    assert placement.tensors == ("i", "h", "r")


@pytest.mark.parametrize("recipe", [INT8, FP8])
@pytest.mark.parametrize(
    ("text", "weights", "nodes"),
    [
        (MLP, {"w": (4, 4), "v": (4, 4)}, ["r", "y"]),
        (RESIDUAL.format(between="Relu", more=""), BLOCK, ["c", "n"]),
        (RESIDUAL.format(between="Mul", more=", k"), {**BLOCK, "k": (4, 1, 1)}, ["c", "n", "t", "a"]),
        (TRAINED % "m = Relu(d) p = Abs(m)", {"w": (4, 4, 3, 3)}, ["p", "wq", "wd", "y"]),
        (TRAINED % "p = Relu(d)", {"w": (4, 4, 3, 3)}, ["p", "wd", "wq", "y"]),
        (ATTENTION, {}, ["a", "b"]),
    ],
)
def test_nodes_in_the_model_get_what_they_get_as_a_segment(text, weights, nodes, recipe):
    model = canonical(text, **weights)
    segment = Extractor(model).extract_nodes((), nodes, hashed=False)
    whole = quantized_tensors(model, recipe, nodes)
    assert whole == quantized_tensors(segment.model, recipe)
    assert whole.edges
