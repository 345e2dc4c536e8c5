"""Every line of the policy on a graph that shows it: which nodes stay float32, under which rule."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from passes.base import Pipeline, verify
from passes.canonicalize import Canonicalize
from passes.infer_shapes import InferShapes
from passes.model import from_proto
from passes.precision.cast import LowerFloats
from passes.precision.element_types import element_types
from passes.precision.recipe import Recipe

PREPARE = Pipeline((Canonicalize(), InferShapes()))


def prepared(text, opset=17):
    text = f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}'
    return PREPARE.run(from_proto(onnx.parser.parse_model(text)))[0]


def lowered(text, kind="FP16", opset=17, **recipe):
    result = LowerFloats(Recipe.of(kind, **recipe)).run(prepared(text, opset))
    verify(result.model, "lower_floats", canonical=True)
    return result


def rules(result):
    """Node -> rule, for what stays float32 or was clamped."""
    return {c.target: c.rule for c in result.changes if c.rule not in ("lower-floats", "raise-opset")}


def types(result):
    """Node -> the names of its inputs' and outputs' float types."""
    found = element_types(result.model)
    names = {TensorProto.FLOAT: "f32", TensorProto.FLOAT16: "f16", TensorProto.BFLOAT16: "bf16"}
    return {
        node.name: "".join(
            f" {names[found[n]]}" if i else names[found[n]]
            for i, n in enumerate(n for n in (*node.input, *node.output) if found.get(n) in names)
        )
        for node in result.model.proto.graph.node
    }


#: name -> (graph, node -> rule in FP16, node -> rule in BF16; None: the same)
CASES = {
    "range": (
        """g (float[4] x, float n) => (float[k] y) <float a={0}, float d={1}> {
            [m] m0 = Abs(n) [r] r0 = Range(a, m0, d) [e] y = Exp(r0) }""",
        {"r": "keep-range", "m": "keep-shape-math"},
        None,
    ),
    "top-k": (
        "g (float[4] x) => (float[2] y, int64[2] i) <int64[1] k={2}> { [e] t = Exp(x) [t] y, i = TopK(t, k) }",
        {"t": "keep-op"},
        None,
    ),
    "running sum": (
        "g (float[4] x) => (float[4] y) <int64 a={0}> { [e] t = Exp(x) [c] y = CumSum(t, a) }",
        {"c": "keep-op"},
        None,
    ),
    "log of a softmax": (
        "g (float[4] x) => (float[4] y) { [e] t = Exp(x) [l] y = LogSoftmax(t) }",
        {"l": "keep-op"},
        None,
    ),
    "normalisation by hand": (
        """g (float[2,8] x) => (float[2,8] y) <float e={1e-5}, float two={2}, float[8] g={1,1,1,1,1,1,1,1}> {
            [mean] m = ReduceMean<axes=[-1]>(x) [sub] d = Sub(x, m) [pow] s = Pow(d, two)
            [var] v = ReduceMean<axes=[-1]>(s) [eps] w = Add(v, e) [sqrt] r = Sqrt(w) [div] n = Div(d, r)
            [mul] y = Mul(n, g) }""",
        {"mean": "keep-reduction", "pow": "keep-reduction", "var": "keep-reduction", "eps": "keep-constant",
         "sqrt": "keep-epsilon"},
        {"mean": "keep-reduction", "pow": "keep-reduction", "var": "keep-reduction"},
    ),
    "square as a product": (
        """g (float[2,8] x) => (float[2,1] y, float[2,8] z) <int64[1] k={1}> {
            [e] t = Exp(x) [square] s = Mul(t, t) [sum] y = ReduceSum(s, k) [other] z = Mul(t, x) }""",
        {"square": "keep-reduction", "sum": "keep-reduction"},
        None,
    ),
    "maxima are exact": (
        "g (float[2,8] x) => (float[2,1] y) { [e] t = Exp(x) [m] y = ReduceMax<axes=[1]>(t) }",
        {},
        None,
    ),
    "epsilon whose root is no FP16 number": (
        """g (float[2,8] x) => (float[2,8] y) <float e={1e-12}> {
            [exp] t = Exp(x) [sum] s = ReduceSumSquare<axes=[1]>(t) [max] m = Max(s, e) [sqrt] r = Sqrt(m)
            [inverse] i = Reciprocal(r) [mul] p = Mul(t, i) [out] y = Tanh(p) }""",
        {"sum": "keep-reduction", "max": "keep-constant", "sqrt": "keep-epsilon", "inverse": "keep-epsilon",
         "mul": "keep-epsilon"},
        {"sum": "keep-reduction"},
    ),
    "division by a sum with an epsilon": (
        """g (float[8] x, float[8] z) => (float[8] y) <float e={1e-7}> {
            [abs] a = Abs(x) [eps] b = Add(a, e) [div] c = Div(z, b) [out] y = Tanh(c) }""",
        {"eps": "keep-constant", "div": "keep-epsilon"},
        {},
    ),
    "logarithm of a sum with an epsilon": (
        "g (float[8] x) => (float[8] y) <float e={1e-7}> { [s] a = Softmax(x) [eps] b = Add(a, e) [log] y = Log(b) }",
        {"eps": "keep-constant", "log": "keep-epsilon"},
        {},
    ),
    "large epsilon": ("g (float[8] x) => (float[8] y) <float e={1e-3}> { [a] b = Add(x, e) [l] y = Log(b) }", {}, None),
    "shape arithmetic in floats": (
        """g (float[N,3,4,4] x) => (float[N,3,p,q] y) <int64[1] a={2}, int64[1] b={4}, int64[1] z={0}, float f={1.5}> {
            [e] t = Exp(x) [shape] s = Shape(t) [cut] h = Slice(s, a, b) [float] hf = Cast<to=1>(h)
            [mul] hm = Mul(hf, f) [floor] hl = Floor(hm) [int] hi = Cast<to=7>(hl) [nc] n = Slice(s, z, a)
            [cat] o = Concat<axis=0>(n, hi) [resize] r = Resize<mode="nearest">(t, "", "", o) [out] y = Tanh(r) }""",
        dict.fromkeys(("float", "mul", "floor", "int"), "keep-shape-math"),
        None,
    ),
    "division by a size": (
        """g (float[N] x) => (float[N] y) { [e] t = Exp(x) [n] s = Size(x) [f] sf = Cast<to=1>(s)
            [div] d = Div(t, sf) [out] y = Tanh(d) }""",
        {"f": "keep-shape-math", "div": "keep-shape-math"},
        {"f": "keep-shape-math"},
    ),
    "positions": (
        """g (float[N,4] x) => (float[N,4] y) <int64 zero={0}, int64 one={1}, int64[1] ax={1},
            float[4] w={1,0.1,0.01,1}> {
            [s] s = Shape(x) [n] n = Gather(s, zero) [r] p = Range(zero, n, one) [f] pf = Cast<to=1>(p)
            [u] pu = Unsqueeze(pf, ax) [m] a = Mul(pu, w) [sin] b = Sin(a) [add] y = Add(x, b) }""",
        {"f": "keep-shape-math", "u": "keep-shape-math", "m": "keep-shape-math", "sin": "keep-shape-math"},
        None,
    ),
    "fake quantisation": (
        """g (float[8] x, float[8] v) => (float[8] y) <float hi={6}, float lo={0}, float inv={42.5}, float half={0.5},
                float scale={0.0235294}> {
            [e] t = Exp(x) [min] a = Min(t, hi) [max] b = Max(a, lo) [mul] c = Mul(b, inv) [add] d = Add(c, half)
            [floor] f = Floor(d) [back] g = Mul(f, scale) [use] y = Add(g, v) }""",
        dict.fromkeys(("min", "max", "mul", "add", "floor"), "keep-rounding"),
        None,
    ),
    "positions in a table": (
        """g (float[8] x, float[9,4] w) => (float[8,4] y) <float s={8}> {
            [e] t = Sigmoid(x) [mul] m = Mul(t, s) [int] i = Cast<to=7>(m) [gather] y = Gather(w, i) }""",
        {"mul": "keep-rounding", "gather": "keep-passive"},
        None,
    ),
    "masks": (
        """g (float[2,4] x, bool[2,4] c) => (float[2,4] y) <float low={-3.4e38}, float[2,4] add={0,0,0,-1e9,0,0,0,-1e9},
                float hi={1e30}> {
            [where] a = Where(c, x, low) [add] b = Add(a, add) [clip] d = Clip(b, low, hi) [max] e = Max(d, low)
            [out] y = Softmax(e) }""",
        dict.fromkeys(("where", "add", "clip", "max"), "clamp-constant"),
        {"where": "clamp-constant", "clip": "clamp-constant", "max": "clamp-constant"},
    ),
    "mask by multiplication": (
        """g (float[2,4] x, int64[2,4] m) => (float[2,4] y) <float one={1}, float low={-1e9}, int64[1] a={0}> {
            [f] f = Cast<to=1>(m) [inv] i = Sub(one, f) [mul] p = Mul(i, low) [add] b = Add(x, p)
            [out] y = Softmax(b) }""",
        {"mul": "clamp-constant"},
        {},
    ),
    "a large factor of anything else": (
        "g (float[4] x) => (float[4] y) <float c={1e9}> { [e] t = Exp(x) [mul] m = Mul(t, c) [out] y = Tanh(m) }",
        {"mul": "keep-constant", "out": "keep-range-behind"},
        {},
    ),
    "a large offset is no mask": (
        """g (float[4] x) => (float[4] y) <float c={-1e5}, float[4] d={1e6,0,0,0}> {
            [a] t = Add(x, c) [b] y = Add(t, d) }""",
        {"b": "keep-constant", "a": "clamp-constant"},
        {},
    ),
    "weights out of range": (
        "g (float[2,2] x) => (float[2,2] y) <float[2,2] w={1e6,0,0,1}> { [e] t = Exp(x) [m] y = MatMul(t, w) }",
        {"m": "keep-constant"},
        {},
    ),
    "weights that would vanish": (
        "g (float[2,2] x) => (float[2,2] y) <float[2,2] w={1e-8,0,0,2e-8}> { [e] t = Exp(x) [m] y = MatMul(t, w) }",
        {"m": "keep-constant"},
        {},
    ),
    "a few small weights among others": (
        "g (float[2,2] x) => (float[2,2] y) <float[2,2] w={1e-8,0,0,1}> { [e] t = Exp(x) [m] y = MatMul(t, w) }",
        {},
        None,
    ),
    "one small factor among others": (
        "g (float[2] x) => (float[2] y) <float[2] w={1e-6,1}> { [e] t = Exp(x) [m] y = Mul(t, w) }",
        {"m": "keep-constant"},
        {},
    ),
    "operators that TensorRT lacks in BF16": (
        """g (float[1,1,4,4] x) => (float[1,1,5,5] y) <float[1,1,2,2] w={1,1,1,1}> {
            [e] s = Exp(x) [h] t = HardSwish(s) [c] y = ConvTranspose(t, w) }""",
        {},
        {"h": "keep-op", "c": "keep-op"},
    ),
    "the body of a Scan": (
        """g (float[2] x, float[3,2] v) => (float[2] y, float[3,2] s) { [e] a = Exp(v)
            [scan] y, s = Scan<num_scan_inputs=1, body = b (float[2] c, float[2] d) => (float[2] p, float[2] q) {
                [mul] m = Mul(c, d) [add] p = Add(m, c) [tanh] q = Tanh(m) }>(x, a) }""",
        dict.fromkeys(("mul", "add", "tanh"), "keep-op"),
        None,
    ),
    "operators that know float32 only": (
        """g (float[1,4,4] b, float[1,2,4] s) => (int64[n,3] y) <int64 k={2}> {
            [a] c = Exp(b) [d] t = Exp(s) [nms] y = NonMaxSuppression(c, t, k) }""",
        {"nms": "keep-type"},
        None,
    ),
    "random numbers": (
        "g (float[4] x) => (float[4] y) { [e] t = Exp(x) [r] r = RandomNormalLike<dtype=1>(t) [add] y = Add(t, r) }",
        {"r": "keep-op"},
        None,
    ),
    "what moves values goes with them": (
        """g (float[2,8] x) => (float[8,2] y, float[2,8] z, float[16] u) <int64[1] s={-1}> {
            [mean] m = ReduceMean<axes=[0]>(x) [t] y = Transpose(x) [e] z0 = Exp(x) [r] z1 = Reshape(z0, s)
            [i] u = Identity(z1)
            [sq] q = Transpose(m) [sum] z = Add(x, q) }""",
        {"mean": "keep-reduction", "t": "keep-passive", "sq": "keep-passive"},
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["FP16", "BF16"])
def test_what_stays(case, kind):
    text, half, brain = CASES[case]
    assert rules(lowered(text, kind)) == (half if kind == "FP16" or brain is None else brain)


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_kept_is_lowered(case):
    text, kept, _ = CASES[case]
    low = "f16"
    for node, floats in types(lowered(text)).items():
        if node in kept and kept[node] != "clamp-constant":
            assert low not in floats.split(), node
        elif "//" not in node and node not in ("resize", "int", "shape", "n", "s", "scan"):
            assert "f32" not in floats.split(), node


def test_the_user_decides():
    text = """g (float[2,2] x) => (float[2,2] y) <float[2,2] w={1,2,3,4}> {
        [p_1] a = MatMul(x, w) [p_2] b = Relu(a) [q_1] c = MatMul(b, w) [q_2] y = Tanh(c) }"""
    assert rules(lowered(text, keep_ops=("Relu",))) == {"p_2": "keep-user"}
    assert rules(lowered(text, keep_nodes=("^p_",))) == dict.fromkeys(("p_1", "p_2"), "keep-user")
    assert rules(lowered(text, kept=frozenset({"q_1"}))) == {"q_1": "keep-user"}


def test_a_kept_loop_keeps_its_body():
    text = """g (float[2] x) => (float[2] y) <int64 n={3}, bool t={1}> { [loop] l = Loop(n, t, x) <body =
        b (int64 i, bool ci, float[2] a) => (bool co, float[2] o) { [c] co = Identity(ci) [e] o = Exp(a) }>
        [t] y = Tanh(l) }"""
    assert rules(lowered(text, keep_ops=("Loop",))) == {"e": "keep-user"}
    assert rules(lowered(text)) == {}


def test_clamped_bounds_hold_the_largest_number_and_masks_less():
    for kind, largest, mask in (("FP16", -65504.0, -24576.0), ("BF16", -3.3895313892515355e38, -1.5 * 2.0**126)):
        result = lowered(CASES["masks"][0], kind)
        values = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.proto.graph.initializer}
        read = {n.name: values[n.input[-1]] for n in result.model.proto.graph.node if n.name in ("where", "max")}
        assert {name: float(v) for name, v in read.items()} == {"where": mask, "max": largest}
        if kind == "FP16":
            assert values["add//f16"].min() == mask
        assert all(np.isfinite(v.astype(np.float64)).all() for v in values.values())


def test_reasons_say_what_and_why():
    changes = lowered(CASES["weights out of range"][0]).changes
    assert [(c.rule, c.target, c.reason) for c in changes] == [
        ("lower-floats", "g", "1 of 2 nodes with floats in FP16"),
        ("keep-constant", "m", "'w' reaches 1e+06, beyond FP16"),
    ]


def test_a_model_of_islands_does_not_change_and_still_says_why():
    model = prepared("g (float[4] x) => (float[4] y) { [l] y = LogSoftmax(x) }")
    step = LowerFloats(Recipe.of("FP16"))
    assert step.run(model).model is model
    assert [(c.target, c.rule) for c in step.explain(model)] == [("g", "lower-floats"), ("l", "keep-op")]
