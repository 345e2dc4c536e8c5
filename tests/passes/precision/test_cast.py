"""LowerFloats: valid, strongly typed graphs with few Casts; boundary, bodies, constants, Q/DQ; real TensorRT builds."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from passes.base import PassError, Pipeline, verify
from passes.canonicalize import Canonicalize
from passes.graph.walk import iter_nodes
from passes.infer_shapes import InferShapes
from passes.model import Model, from_proto, make_stub, stubs_as_inputs
from passes.precision.cast import LowerFloats
from passes.precision.element_types import element_types
from passes.precision.recipe import Recipe, origin
from passes.testing import random_model

PREPARE = Pipeline((Canonicalize(), InferShapes()))
F32, F16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def prepared(text, opset=22):
    text = f'<ir_version: 10, opset_import: ["" : {opset}, "local" : 1]>\n{text}'
    return PREPARE.run(from_proto(onnx.parser.parse_model(text)))[0]


def lowered(model, kind="FP16", **recipe):
    result = LowerFloats(Recipe.of(kind, **recipe)).run(model).model
    verify(result, "lower_floats", canonical=True)
    check_types(result)
    assert list(result.proto.graph.input) == list(model.proto.graph.input)
    assert list(result.proto.graph.output) == list(model.proto.graph.output)
    return result


def check_types(model):
    """All operands agree: ONNX's strict inference finds no contradiction, declared types included."""
    onnx.shape_inference.infer_shapes(stubs_as_inputs(model), check_type=True, strict_mode=True)


def casts(model):
    return [(n.name, n.input[0], n.output[0]) for n in iter_nodes(model.proto.graph) if n.op_type == "Cast"]


def ops(model):
    return [n.op_type for n in model.proto.graph.node]


def array(model, name):
    tensor = next(t for t in model.proto.graph.initializer if t.name == name)
    return model.weights[name] if name in model.weights else numpy_helper.to_array(tensor)


CHAIN = """g (float[2,4] x) => (float[2,4] y) <float[4,4] w={1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}> {
    [a] a = MatMul(x, w) [b] b = Relu(a) [c] c = MatMul(b, w) [d] y = Tanh(c) }"""


@pytest.mark.parametrize(("kind", "low", "dtype"), [("FP16", "f16", np.float16), ("BF16", "bf16", ml_dtypes.bfloat16)])
def test_casts_stand_at_the_boundary_only(kind, low, dtype):
    model = lowered(prepared(CHAIN), kind)
    assert casts(model) == [("a//cast", "x", f"x//{low}"), ("d//cast", f"y//{low}", "y")]
    assert ops(model) == ["Cast", "MatMul", "Relu", "MatMul", "Tanh", "Cast"]
    assert [t.name for t in model.proto.graph.initializer] == [f"w//{low}"]
    assert array(model, f"w//{low}").dtype == dtype
    types = element_types(model)
    assert {types[n] for n in ("a", "b", "c")} == {F16 if low == "f16" else BF16}
    assert {v.name: v.type.tensor_type.elem_type for v in model.proto.graph.value_info}["a"] == types["a"]


def test_fp32_changes_nothing():
    model = prepared(CHAIN)
    for mode in ("FP32", "TF32"):
        assert LowerFloats(Recipe.of(mode)).run(model).model is model


def test_an_unknown_type_is_one_clear_error():
    with pytest.raises(PassError, match="unknown float type 'FP7'; take one of FP32, FP16, BF16"):
        LowerFloats(Recipe(float_type="FP7")).run(prepared(CHAIN))


def test_one_cast_a_value_and_constants_in_both_types():
    model = lowered(
        prepared(
            """g (float[4] x) => (float[4] y, float[4] z) <float[4] w={1,2,3,4}> {
            [a] a = Add(x, w) [b] b = Mul(x, w) [s] s = CumSum(a, k) [t] t = CumSum(a, k) [u] u = CumSum(w, k)
            [c] c = Sum(s, t, b, s, u) [d] y = Exp(c) [e] z = Exp(s) }""".replace(
                "{1,2,3,4}>", "{1,2,3,4}, int64 k={0}>"
            )
        )
    )
    assert casts(model) == [
        ("a//cast", "x", "x//f16"),
        ("a//cast__1", "a", "a//f32"),
        ("s//cast", "s", "s//f16"),
        ("t//cast", "t", "t//f16"),
        ("u//cast", "u", "u//f16"),
        ("d//cast", "y//f16", "y"),
        ("e//cast", "z//f16", "z"),
    ]
    assert {t.name for t in model.proto.graph.initializer} == {"w", "w//f16", "k"}


def test_an_output_that_others_read():
    model = lowered(
        prepared("g (float[4] x) => (float[4] y, float[4] z, float[4] u) { y = Exp(x) z = Tanh(y) u = LogSoftmax(y) }")
    )
    by_output = {n.output[0]: n for n in model.proto.graph.node}
    assert by_output["z//f16"].input[0] == "y//f16"
    assert by_output["u"].input[0] == "y"
    assert by_output["y"].op_type == "Cast"


def test_casts_of_the_source_are_used_not_repeated():
    model = lowered(
        prepared("""g (float16[4] x, float[4] v) => (float[4] y, float16[4] h) {
            [up] a = Cast<to=1>(x) [e] b = Exp(a) [down] c = Cast<to=10>(b) [n] n = Neg(c) [up2] d = Cast<to=1>(n)
            [add] y = Add(d, v) [t] h = Tanh(n) }""")
    )
    assert ops(model) == ["Cast", "Exp", "Neg", "Add", "Cast", "Tanh"]
    assert [n.input[0] for n in model.proto.graph.node if n.op_type in ("Exp", "Neg")] == ["x", "b"]


def test_native_types_are_left_alone():
    text = "g (float16[4] x, double[4] d) => (float16[4] y, double[4] e) { y = Exp(x) e = Tanh(d) }"
    for kind in ("FP16", "BF16"):
        model = prepared(text)
        assert LowerFloats(Recipe.of(kind)).run(model).model is model


def test_operators_with_types_of_their_own():
    model = lowered(
        prepared("""g (float[1,1,4,4] x, int64[2] s, bool[1,1,4,4] m) => (
            float[1,1,8,8] y, float[p,q] f, bool[1,1,4,4] z) <
            float[4] sc={1,1,2,2}, float lim={0.5}> {
            [e] t = Exp(x) [r] r = Resize<mode="linear">(t, "", sc) [u] y = Tanh(r)
            [fill] c = ConstantOfShape<value=float[1] {2.5}>(s) [g] f = Sqrt(c)
            [mask] mf = Cast<to=1>(m) [mul] q = Mul(t, mf) [less] z = Less(q, lim) }""")
    )
    types = element_types(model)
    assert types["sc"] == F32
    assert [types[n] for n in ("t", "r", "c", "mf", "q")] == [F16] * 5
    assert array(model, "lim//f16").dtype == np.float16


def test_functions_are_inlined():
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 22, "local" : 1]>
        g (float[4] x) => (float[4] y) { a = local.f(x) y = Relu(a) }
        <domain: "local", opset_import: ["" : 22]> f (a) => (b) { c = Constant<value=float {2.0}>() b = Mul(a, c) }""")
    model = lowered(Model(proto))
    assert ops(model) == ["Cast", "Mul", "Relu", "Cast"]


LOOP = """g (float[2,2] x, float[2,2] v) => (float[2,2] y, float[k,2,2] s) <
        int64 n={3}, bool t={1}, float[2,2] w={1,2,3,4}> { [pre] p = Exp(v)
    [loop] y, s = Loop(n, t, x) <body = b (int64 i, bool ci, float[2,2] a) => (bool co, float[2,2] o, float[2,2] so) {
        [co] co = Identity(ci) [m] m = MatMul(a, w) [add] o = Add(m, p) [q] so = Add(o, v) }> }"""


def test_loop_bodies_are_lowered_between_float32_ends():
    model = lowered(prepared(LOOP))
    loop = next(n for n in model.proto.graph.node if n.op_type == "Loop")
    body = loop.attribute[0].g
    assert [v.type.tensor_type.elem_type for v in body.output] == [TensorProto.BOOL, F32, F32]
    assert sorted(n.op_type for n in body.node) == ["Add", "Add", "Cast", "Cast", "Cast", "Identity", "MatMul"]
    inside = {n.name: list(n.input) for n in body.node}
    assert inside["m"] == ["a//f16", "w//f16"]
    assert inside["add"] == ["m", "p"]  # made in the lower type outside
    assert inside["q"] == ["o//f16", "v//f16"]  # cast once, outside
    assert [c[1] for c in casts(model) if c[2] == "v//f16"] == ["v"]


def test_branches_agree():
    model = lowered(
        prepared(
            """g (float[4] x, bool c) => (float[4] y) { [e] a = Exp(x)
            [if] b = If(c) <then_branch = t () => (float[4] p) { [r] p = Relu(a) },
                            else_branch = e () => (float[4] q) { [s] q = CumSum(a, k) }> [z] y = Tanh(b) }""".replace(
                "=> (float[4] y) {", "=> (float[4] y) <int64 k={0}> {"
            )
        )
    )
    branch = next(n for n in model.proto.graph.node if n.op_type == "If")
    assert {a.g.output[0].type.tensor_type.elem_type for a in branch.attribute} == {F32}


def pairs(scale=0.1, weight_scale=(0.01, 0.02)):
    """x -> Relu -> Q/DQ -> Conv with int8 weights -> Relu -> y, as `InsertQDQ` writes it."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "r"),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"], "conv//quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "conv//dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "conv//weights", axis=0),
        helper.make_node("Conv", ["d", "wd", "b"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["y"], "out"),
    ]
    arrays = {
        "s": np.float32(scale), "z": np.int8(0), "w": np.ones((2, 4, 3, 3), np.int8),
        "ws": np.array(weight_scale, np.float32), "wz": np.zeros(2, np.int8), "b": np.ones(2, np.float32),
    }  # fmt: skip
    x = helper.make_tensor_value_info("x", F32, [1, 4, 8, 8])
    y = helper.make_tensor_value_info("y", F32, [1, 2, 6, 6])
    constants = [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    opsets = [helper.make_opsetid("", 18)]
    return PREPARE.run(from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10)))[0]


@pytest.mark.parametrize(("kind", "low"), [("FP16", F16), ("BF16", BF16)])
def test_a_product_of_eight_bit_values_stays_float32(kind, low):
    """TensorRT has kernels that store its sum in the lower type before it is scaled, out of range."""
    result = LowerFloats(Recipe.of(kind)).run(pairs())
    verify(result.model, "lower_floats", canonical=True)
    types = element_types(result.model)
    assert [types[n] for n in ("r", "d", "wd", "c")] == [low, F32, F32, F32]
    assert types["q"] == TensorProto.INT8
    assert "keep-product" in {c.rule for c in result.changes if c.target == "conv"}
    assert types[{n.op_type: n for n in result.model.proto.graph.node}["Relu"].input[0]] == low


@pytest.mark.parametrize(("kind", "low"), [("FP16", F16), ("BF16", BF16)])
def test_scales_take_the_lower_type(kind, low):
    """Where the data of the Conv are no 8-bit values, its dequantised weights are lowered."""
    model = LowerFloats(Recipe.of(kind)).run(weight_only()).model
    verify(model, "lower_floats", canonical=True)
    assert model.proto.opset_import[0].version == 19
    types = element_types(model)
    assert [types[n] for n in ("r", "wd", "c")] == [low] * 3
    assert ops(model).count("Cast") == 2


def test_scales_that_the_lower_type_cannot_hold_keep_their_consumer():
    result = LowerFloats(Recipe.of("FP16")).run(pairs(weight_scale=(0.01, 1e-7)))
    check_types(result.model)
    kept = {c.target: c.rule for c in result.changes if c.rule.startswith("keep")}
    assert kept == {"conv//weights": "keep-scale", "conv": "keep-scale", "conv//dequantize": "keep-passive"}
    types = element_types(result.model)
    # No Cast parts the pairs from the Conv: it computes in 8 bits with a float32 result.
    assert [types[n] for n in ("r", "d", "wd", "c")] == [F16, F32, F32, F32]
    weights = [LowerFloats(Recipe.of("FP16")).run(weight_only(weight_scale=(0.01, s))).model for s in (1e-5, 1e-7)]
    assert [element_types(model)["wd"] for model in weights] == [F16, F32]


def weight_only(**options):
    """`pairs()` without the pair in front of the Conv."""
    model = pairs(**options)
    proto = model.copy_proto()
    kept = [n for n in proto.graph.node if n.name not in ("conv//quantize", "conv//dequantize")]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    next(n for n in proto.graph.node if n.name == "conv").input[0] = "r"
    return model.with_proto(proto)


def test_more_than_two_gigabytes(tmp_path):
    """Nothing is serialised, and what stays float32 is not even read; arrays are converted chunk by chunk."""
    columns = 1 << 19
    path = tmp_path / "w.bin"
    with path.open("wb") as file:
        file.truncate(1100 * columns * 4)  # 2.3 GB of zeros, of which the disk holds none
    weights = {
        "w": np.memmap(path, np.float32, "r", shape=(1100, columns)),
        "v": np.memmap(path, np.float32, "r", shape=(10, columns)),
    }
    nodes = [
        helper.make_node("Gather", ["w", "i"], ["g"], "large"),
        helper.make_node("Gather", ["v", "i"], ["h"], "small"),
        helper.make_node("Add", ["g", "h"], ["y"], "add"),
    ]
    info = helper.make_tensor_value_info
    stubs = [make_stub(name, F32, array.shape) for name, array in weights.items()]
    graph = helper.make_graph(
        nodes, "g", [info("i", TensorProto.INT64, [2])], [info("y", F32, [2, columns])], stubs
    )  # fmt: skip
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), weights)
    result = lowered(model, keep_nodes=("large",))
    assert list(result.weights) == ["w", "v//f16"]
    assert result.weights["w"] is weights["w"]
    assert result.weights["v//f16"].dtype == np.float16
    assert result.weights["v//f16"].shape == weights["v"].shape
    assert not result.weights["v//f16"].flags.writeable


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6), st.sampled_from(["FP16", "BF16"]))
def test_random_models_stay_valid_and_deterministic(seed, kind):
    model = PREPARE.run(from_proto(random_model(seed, 25, opset=22)))[0]
    before = model.proto.SerializeToString(deterministic=True)
    result = lowered(model, kind)
    again = lowered(model, kind)
    assert model.proto.SerializeToString(deterministic=True) == before
    assert result.proto.SerializeToString(deterministic=True) == again.proto.SerializeToString(deterministic=True)
    names = {n.name for n in iter_nodes(model.proto.graph)}
    for node in iter_nodes(result.proto.graph):
        assert origin(node.name) in names
    double = [n for n in iter_nodes(result.proto.graph) if n.op_type == "Cast"]
    assert len({(n.input[0], n.attribute[0].i) for n in double}) == len(double)
    # Once lowered there is nothing left to do.
    assert not LowerFloats(Recipe.of(kind)).run(result).modified


#: What TensorRT must build: name -> graph (opset 17).
BUILDS = {
    "if": """g (float[2,4] x, bool c) => (float[2,4] y) <float[4,4] w={1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}> { a = Exp(x)
        b = If(c) <then_branch = t () => (float[2,4] p) { p = MatMul(a, w) },
                   else_branch = e () => (float[2,4] q) { q = Relu(a) }> y = Tanh(b) }""",
    "loop": LOOP,
    "scan": """g (float[2] x, float[3,2] v) => (float[2] y, float[3,2] s) { a = Exp(v)
        y, s = Scan<num_scan_inputs=1, body = b (float[2] c, float[2] d) => (float[2] e, float[2] f) {
            g = Mul(c, d) e = Add(g, c) f = Tanh(g) }>(x, a) }""",
    "resize": """g (float[1,2,4,4] x) => (float[1,2,8,8] y) <float[4] s={1,1,2,2}> {
        a = Exp(x) b = Resize<mode="linear">(a, "", s) y = Tanh(b) }""",
    "range": """g (float[4] x) => (float[4] y) <float a={0}, float n={4}, float d={1}> {
        r = Range(a, n, d) e = Exp(x) y = Mul(e, r) }""",
    "top-k": """g (float[8] x) => (float[2] y, int64[2] i) <int64[1] k={2}> {
        e = Exp(x) t, i = TopK(e, k) y = Tanh(t) }""",
    "layer norm": """g (float[2,8] x) => (float[2,8] y) <float[8] s={1,1,1,1,1,1,1,1}, float[8] b={0,0,0,0,0,0,0,0}> {
        e = Exp(x) n = LayerNormalization(e, s, b) y = Tanh(n) }""",
    "layer norm by hand": """g (float[2,8] x) => (float[2,8] y) <float e={1e-5}, float two={2}> { a = Exp(x)
        m = ReduceMean<axes=[-1]>(a) d = Sub(a, m) p = Pow(d, two) v = ReduceMean<axes=[-1]>(p) w = Add(v, e)
        r = Sqrt(w) n = Div(d, r) y = Tanh(n) }""",
    "instance norm": """g (float[2,3,8] x) => (float[2,3,8] y) <float[3] s={1,1,1}, float[3] b={0,0,0}> {
        e = Exp(x) n = InstanceNormalization(e, s, b) y = Tanh(n) }""",
    "batch norm": """g (float[2,3,8] x) => (float[2,3,8] y) <float[3] s={1,1,1}, float[3] m={0,1,0}> {
        e = Exp(x) n = BatchNormalization(e, s, m, m, s) y = Tanh(n) }""",
    "attention": """g (float[2,4,8] q, float[2,4,8] k, float[2,4,8] v, int64[2,4] m) => (float[2,4,8] y) <
        float one={1}, float low={-1e9}, float d={0.35}, int64[1] ax={1}> {
        kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) t = Mul(s, d) f = Cast<to=1>(m) u = Unsqueeze(f, ax)
        i = Sub(one, u) b = Mul(i, low) a = Add(t, b) p = Softmax(a) y = MatMul(p, v) }""",
    "shape arithmetic": """g (float[N,3,4,4] x) => (float[N,3,p,q] y) <int64[1] a={2}, int64[1] b={4}, int64[1] z={0},
        float f={1.5}> { t = Exp(x) s = Shape(t) h = Slice(s, a, b) hf = Cast<to=1>(h) hm = Mul(hf, f) hl = Floor(hm)
        hi = Cast<to=7>(hl) n = Slice(s, z, a) o = Concat<axis=0>(n, hi)
        r = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">(t, "", "", o)
        y = Tanh(r) }""",
    "lstm": """g (float[3,2,4] x, float[1,8,4] w, float[1,8,2] r) => (float[3,1,2,2] y) {
        e = Tanh(x) y = LSTM<hidden_size=2>(e, w, r) }""",
    "transposed conv": """g (float[1,2,4,4] x) => (float[1,1,5,5] y) <float[2,1,2,2] w={1,1,1,1,1,1,1,1}> {
        a = HardSwish(x) b = ConvTranspose(a, w) y = Tanh(b) }""",
    "positions": """g (float[N,4] x) => (float[N,4] y) <int64 zero={0}, int64 one={1}, int64[1] ax={1},
        float[4] w={1,0.1,0.01,1}> { s = Shape(x) n = Gather(s, zero) r = Range(zero, n, one) pf = Cast<to=1>(r)
        pu = Unsqueeze(pf, ax) a = Mul(pu, w) b = Sin(a) y = Add(x, b) }""",
}  # fmt: skip


@pytest.mark.rtx
@pytest.mark.parametrize("case", [*BUILDS, "pairs", "small scales"])
@pytest.mark.parametrize("kind", ["FP16", "BF16"])
def test_tensorrt_builds_it(case, kind, rtx, tmp_path):
    from rewriter.backends.base import BuildOptions, BuiltEngine, InputProfile

    if case in BUILDS:
        model = prepared(BUILDS[case], 17)
    elif rtx.version.startswith("1.4."):
        pytest.skip("TensorRT-RTX 1.4 has no INT8 convolution")
    else:
        model = pairs(weight_scale=(0.01, 0.02 if case == "pairs" else 1e-7))
    result = LowerFloats(Recipe.of(kind)).run(model)
    assert result.modified
    profile = {}
    for value in model.proto.graph.input:
        dims = tuple(d.dim_value or 2 for d in value.type.tensor_type.shape.dim)
        profile[value.name] = InputProfile(dims, dims, dims)
    outcome = rtx.build(result.model, (profile,), BuildOptions(), tmp_path / "engine")
    assert isinstance(outcome, BuiltEngine), outcome
