"""Values out of range stay float32 until something brings them back: which nodes, and numbers as float32 has them."""

import numpy as np
import onnx
import pytest

from passes.base import Pipeline, verify
from passes.canonicalize import Canonicalize
from passes.infer_shapes import InferShapes
from passes.model import from_proto
from passes.precision.cast import LowerFloats
from passes.precision.emulate import Emulate
from passes.precision.lower import lower
from passes.precision.ranges import RangeTable, TensorRange
from passes.precision.recipe import Recipe
from rewriter.runtime.native import NativeSession

PREPARE = Pipeline((Canonicalize(), InferShapes()))


def prepared(text, **constants):
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 19]>\n{text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.float32(v), n) for n, v in constants.items())
    return PREPARE.run(from_proto(proto))[0]


def behind(text, kind="FP16", **constants):
    """Names of the nodes that stay for the range of what they read or make."""
    model, step = prepared(text, **constants), LowerFloats(Recipe.of(kind))
    verify(step.run(model).model, "lower_floats", canonical=True)
    return " ".join(c.target for c in step.explain(model) if c.rule == "keep-range-behind")


def emulated(model, feeds):
    return NativeSession(Emulate().run(model).model, honest=True).run(feeds)["y"]


RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
IMAGE = {"x": RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)}
CONV = "g (float[1,3,8,8] x) => (float[1,4,6,6] y) { [c] a = Conv(x, w) [r] b = Relu(a) [m] y = Mul(b, k) }"


@pytest.mark.parametrize("size", [1e6, 1e-9])
@pytest.mark.parametrize("factor", [1e-6, 1e9])
def test_numbers_behind_weights_out_of_range(size, factor):
    model = prepared(CONV, w=KERNEL * size, k=factor)
    expected = NativeSession(model).run(IMAGE)["y"]
    got = emulated(lower(model, Recipe.of("FP16")).model, IMAGE)
    np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("mode", ["INT8", "FP8"])
@pytest.mark.parametrize("size", [1e5, 1e6, 1e-9])
def test_numbers_behind_8_bit_weights_out_of_range(mode, size):
    text = """g (float[1,3,8,8] x) => (float[1,4,4,4] y) {
        [c] a = Conv(x, w) [r] b = Relu(a) [d] d = Conv(b, v) [m] e = Mul(d, k) [t] y = Tanh(e) }"""
    second = RNG.standard_normal((4, 4, 3, 3)).astype(np.float32) / 36
    model = prepared(text, w=KERNEL * size, v=second, k=1 / size)
    expected = NativeSession(model).run(IMAGE)["y"]
    ranges = RangeTable({"x": TensorRange(-4, 4), "b": TensorRange(0, 20 * size)})
    got = emulated(lower(model, Recipe.of(mode), ranges).model, IMAGE)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, atol=0.1)
    assert np.abs(expected).max() > 0.3


@pytest.mark.parametrize("mask", ["clamped", "two", "kept"])
@pytest.mark.parametrize("scores", [[-20, -22, -21, -19], [-3, 2, 5, 0], [-1000, -1000, -1000, -1000]])
def test_rows_that_are_masked_altogether_are_uniform(mask, scores):
    more = "[more] a = Add(b, p)" if mask == "two" else "[more] a = Identity(b)"
    model = prepared(
        """g (float[2,4] x, int64[2,4] m) => (float[2,4] y) <float one={1}, float low={-1e9}> { [e] s = Sub(x, one)
            [f] f = Cast<to=1>(m) [inv] i = Sub(one, f) [mul] p = Mul(i, low) [add] b = Add(s, p) MORE
            [out] y = Softmax(a) }""".replace("MORE", more)
    )
    recipe = Recipe.of("FP16", kept=frozenset({"mul"} if mask == "kept" else ()))
    feeds = {
        "x": np.array([scores, [1, 2, 3, 4]], np.float32),
        "m": np.array([[0, 0, 0, 0], [1, 1, 0, 1]], np.int64),
    }
    got = emulated(lower(model, recipe).model, feeds)
    np.testing.assert_allclose(got[0], 0.25, atol=1e-3)
    np.testing.assert_allclose(got, NativeSession(model).run(feeds)["y"], atol=2e-3)
    assert got[1, 2] == 0


#: name -> (nodes between t and the Tanh "end" of u, constants, what stays for its range in FP16)
CHAINS = {
    "a bounded operator": ("[m] a = Mul(t, k) [s] b = Softmax(a) [e] u = Exp(b)", {"k": 1e9}, "s"),
    "a factor back": ("[m] a = Mul(t, k) [r] b = Relu(a) [n] u = Mul(b, l)", {"k": 1e6, "l": 1e-6}, "r"),
    "two factors back": ("[m] a = Mul(t, k) [n] b = Mul(a, l) [o] u = Mul(b, l)", {"k": 1e6, "l": 1e-3}, "n o"),
    "small, then large": ("[m] a = Mul(t, k) [n] b = Neg(a) [o] u = Mul(b, l)", {"k": 1e-6, "l": 1e6}, "n"),
    "divided": ("[m] a = Mul(t, k) [n] b = Neg(a) [o] u = Div(b, k)", {"k": 1e6}, "n"),
    "by itself": ("[m] a = Mul(t, k) [s] b = ReduceMax(a) [o] u = Div(a, b)", {"k": 1e6}, "s o"),
    "small beside a summand": ("[m] a = Mul(t, k) [n] b = Neg(a) [o] u = Add(b, t)", {"k": 1e-6}, "n"),
    "large beside a summand": ("[m] a = Mul(t, k) [o] u = Add(a, t)", {"k": 1e6}, "o end"),
    "an epsilon": ("[m] a = Add(t, k) [o] u = Neg(a)", {"k": 1e-9}, ""),
    "a lower bound": ("[m] a = Max(t, k) [o] u = Neg(a)", {"k": 1e-9}, ""),
    "clipped": ("[m] a = Mul(t, k) [o] b = Clip(a, z, s) [n] u = Neg(b)", {"k": 1e6, "z": 0, "s": 6}, "o"),
    "clipped in two steps": ("[m] a = Mul(t, k) [r] b = Relu(a) [o] u = Min(b, s)", {"k": 1e6, "s": 6}, "r o"),
    "clipped on one side": ("[m] a = Mul(t, k) [o] u = Min(a, s)", {"k": 1e6, "s": 6}, "o end"),
    "clipped far out": ("[m] a = Mul(t, k) [o] u = Clip(a, z, s)", {"k": 1e6, "z": 0, "s": 1e7}, "o end"),
    "normalised": ("[m] a = Mul(t, k) [o] b = LayerNormalization(a, s) [n] u = Neg(b)", {"k": 1e6, "s": [1] * 4}, "o"),
    "a logarithm": ("[m] a = Mul(t, k) [q] d = Neg(a) [o] b = Log(d) [n] u = Neg(b)", {"k": 1e-9}, "q o"),
    "some small factors": ("[m] a = Mul(t, k) [o] u = Neg(a)", {"k": [1e-9, 1, 1, 1]}, ""),
    "an ordinary factor": ("[m] a = Mul(t, k) [o] u = Neg(a)", {"k": 1e-3}, ""),
    "a quotient": ("[m] a = Div(k, t) [o] u = Neg(a)", {"k": 1e6}, "o end"),
    "a tiny bias": ("[m] a = Gemm(t, w, k) [o] u = Neg(a)", {"w": np.eye(4), "k": [1e-9] * 4}, ""),
    "a large bias": ("[m] a = Gemm(t, w, k) [o] u = Neg(a)", {"w": np.eye(4), "k": [1e6] * 4}, "o end"),
}


@pytest.mark.parametrize("case", CHAINS)
def test_where_it_ends(case):
    chain, constants, expected = CHAINS[case]
    text = f"g (float[2,4] x) => (float[2,4] y) {{ [begin] t = Exp(x) {chain} [end] y = Tanh(u) }}"
    assert behind(text, **constants) == expected
    assert behind(text, "BF16", **constants) == ""


def test_scaled_integers_are_ordinary():
    text = "g (uint16[4] x) => (float[4] y) { [c] t = Cast<to=1>(x) [m] a = Mul(t, k) [n] b = Neg(a) [e] y = Exp(b) }"
    assert behind(text, k=1 / 65535) == ""


def test_what_leaves_a_body_and_goes_into_one():
    text = """g (float[4] x, bool c) => (float[4] y) { [m] a = Mul(x, k)
        [i] b = If(c) <then_branch = t () => (float[4] p) { [n] p = Neg(a) },
                       else_branch = e () => (float[4] q) { [o] q = Exp(x) }> [r] d = Relu(b) [s] y = Softmax(d) }"""
    assert behind(text, k=1e6) == "n r s"


def test_what_goes_round_a_loop():
    text = """g (float[2] x) => (float[2] y) <int64 n={3}, bool t={1}> { [loop] l = Loop(n, t, x) <body =
        b (int64 i, bool ci, float[2] a) => (bool co, float[2] o) { [c] co = Identity(ci) [e] h = Relu(a)
        [m] o = Mul(h, k) }> [s] y = Softmax(l) }"""
    assert behind(text, k=1e6) == "e s"


def test_the_reason_names_the_cause():
    changes = LowerFloats(Recipe.of("FP16")).explain(prepared(CONV, w=KERNEL * 1e6, k=1e-6))
    assert {c.target: c.reason for c in changes if c.rule == "keep-range-behind"} == {
        "r": "values from 'c' leave the range of FP16"
    }
