"""INT8 and FP8 by Q/DQ: the graph, the numbers, and that TensorRT builds it."""

import re
import shutil

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from passes.base import PassError, Pipeline, verify
from passes.canonicalize import Canonicalize
from passes.graph.walk import iter_nodes
from passes.infer_shapes import InferShapes
from passes.model import DETACH_MIN_INTEGER_BYTES, from_proto, is_stub, to_proto
from passes.precision.cast import LowerFloats
from passes.precision.opset import opset_of
from passes.precision.qdq import InsertQDQ
from passes.precision.quantization.placement import quantized_tensors
from passes.precision.quantization.split_pairs import SplitPairs
from passes.precision.ranges import RangeTable, TensorRange
from passes.precision.recipe import Recipe, origin
from passes.testing import assert_close, random_feeds, random_model
from rewriter.backends.base import BuildOptions, BuiltEngine
from rewriter.runtime.native import NativeSession

CANONICAL = Pipeline((Canonicalize(), InferShapes()))
#: FP8 exists from Ada on: TensorRT refuses to build it for older targets.
FP8_TARGETS = ("SM89",)
#: One target is enough to see what is fused; all default ones take longer.
TARGETS = ("SM80",)


def canonical(text, opset=18, scale=None, **weights):
    """A canonical model whose nodes are called after their first output; `weights` name -> shape or array."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    rng = np.random.default_rng(0)
    for name, value in weights.items():
        array = value
        if isinstance(value, tuple):
            array = (rng.standard_normal(value) * (scale or np.prod(value[1:] or (1,)) ** -0.5)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in iter_nodes(proto):
        node.name = node.output[0]
    return CANONICAL.run(from_proto(proto))[0]


def calibrated(model, recipe, sizes=None):
    """Ranges of everything that is quantised, from one run over random inputs."""
    names = quantized_tensors(model, recipe).tensors
    proto = to_proto(model)
    known = {o.name for o in proto.graph.output} | {i.name for i in proto.graph.input}
    proto.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in known)
    feeds = random_feeds(model.proto, 1, sizes)
    values = {**NativeSession(from_proto(proto), optimize=False).run(feeds), **feeds}
    return RangeTable({n: TensorRange(float(values[n].min()), float(values[n].max())) for n in names})


def quantized(model, mode, ranges=None, **recipe):
    """The quantised model, checked; calibrated if no ranges are given."""
    what = Recipe.of(mode, **recipe)
    before = model.proto.SerializeToString(deterministic=True)
    result = InsertQDQ(what, calibrated(model, what) if ranges is None else ranges).run(model)
    assert model.proto.SerializeToString(deterministic=True) == before
    verify(result.model, "insert_qdq", canonical=True)
    for field in ("input", "output"):
        assert list(getattr(result.model.proto.graph, field)) == list(getattr(model.proto.graph, field))
    names = {node.name for node in iter_nodes(model.proto)}
    assert {origin(node.name) for node in iter_nodes(result.model.proto)} <= names
    return result.model


def table(**bounds):
    return RangeTable({name: TensorRange(-bound, bound) for name, bound in bounds.items()})


def constant(model, name):
    tensor = next(t for t in model.proto.graph.initializer if t.name == name)
    return model.weights[name] if is_stub(tensor) else numpy_helper.to_array(tensor)


def nodes(model, op):
    return [node for node in iter_nodes(model.proto) if node.op_type == op]


MLP = "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"


def test_int8_in_full():
    weight = np.array([[1, 0, -3, 1e-3], [2, 0, 3, 0], [-4, 0, 1, 0], [0, 0, 0, 0]], np.float32)
    model = quantized(canonical(MLP, w=weight, v=(4, 4)), "INT8", table(x=127.0, r=254.0))
    assert opset_of(model.proto) == 18
    first, second = nodes(model, "QuantizeLinear")
    assert (first.name, first.input[0], second.name, second.input[0]) == ("h//quantize", "x", "y//quantize", "r")
    assert constant(model, first.input[1]) == 1.0
    assert constant(model, second.input[1]) == 2.0
    zero = constant(model, first.input[2])
    assert (zero.dtype, zero.shape, int(zero)) == (np.int8, (), 0)
    stored = next(n for n in nodes(model, "DequantizeLinear") if n.name == "h//weight")
    assert helper.get_node_attr_value(stored, "axis") == 1
    np.testing.assert_allclose(constant(model, stored.input[1]) * 127, [4, 1, 3, 1e-3], rtol=1e-6)
    np.testing.assert_array_equal(
        constant(model, stored.input[0]),
        np.array([[32, 0, -127, 127], [64, 0, 127, 0], [-127, 0, 42, 0], [0, 0, 0, 0]], np.int8),
    )
    assert "w" not in {t.name for t in model.proto.graph.initializer}


def test_fp8_in_full():
    model = quantized(canonical(MLP, w=(4, 4), v=(4, 4)), "FP8", table(x=448.0, r=896.0))
    assert opset_of(model.proto) == 19
    first, second = nodes(model, "QuantizeLinear")
    assert (constant(model, first.input[1]), constant(model, second.input[1])) == (1.0, 2.0)
    assert constant(model, first.input[2]).dtype == ml_dtypes.float8_e4m3fn
    stored = next(n for n in nodes(model, "DequantizeLinear") if n.name == "h//weight")
    assert constant(model, stored.input[1]).shape == ()
    assert constant(model, stored.input[0]).dtype == ml_dtypes.float8_e4m3fn


def test_readers_of_one_value_and_of_one_weight_share_pairs():
    text = """g (float[2,4] x) => (float[2,4] a, float[2,4] b, float[2,4] c) {
        a = MatMul(x, w) b = MatMul(x, w) c = Tanh(x) }"""
    model = quantized(canonical(text, w=(4, 4)), "INT8")
    assert len(nodes(model, "QuantizeLinear")) == 1
    assert len(nodes(model, "DequantizeLinear")) == 2
    assert nodes(model, "Tanh")[0].input == ["x"]


def test_one_weight_along_two_axes_is_stored_twice():
    text = "g (float[2,4] x) => (float[2,4] y) { h = Gemm(x, w) y = Gemm<transB=1>(h, w) }"
    model = quantized(canonical(text, w=(4, 4)), "INT8")
    assert len({n.input[0] for n in nodes(model, "DequantizeLinear") if n.name.endswith("weight")}) == 2


def test_a_weight_that_others_read_stays_as_well():
    text = "g (float[4,4] x) => (float[4,4] y) { h = MatMul(x, w) y = Add(h, w) }"
    model = quantized(canonical(text, w=(4, 4)), "INT8")
    assert "w" in {t.name for t in model.proto.graph.initializer}


def test_bias_is_not_quantised():
    text = "g (float[1,4,8,8] x) => (float[1,8,6,6] y) { y = Conv(x, w, b) }"
    model = quantized(canonical(text, w=(8, 4, 3, 3), b=(8,)), "INT8")
    assert nodes(model, "Conv")[0].input[2] == "b"


def test_large_weights_become_smaller_stubs():
    side = int(DETACH_MIN_INTEGER_BYTES**0.5)
    source = canonical(f"g (float[1,{side}] x) => (float[1,{side}] y) {{ y = MatMul(x, w) }}", w=(side, side))
    assert source.weights["w"].nbytes == 4 * side * side
    for mode in ("INT8", "FP8"):
        model = quantized(source, mode)
        assert model.weights["w//quantized"].nbytes == side * side
        assert not model.weights["w//quantized"].flags.writeable
        assert "w" not in model.weights


def test_trained_scales_are_kept():
    text = """g (float[1,4,8,8] x) => (float[1,4,6,6] y) <float s={0.05}, int8 z={0}> {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) r = Relu(d) y = Conv(r, w) }"""
    model = quantized(canonical(text, w=(4, 4, 3, 3)), "INT8", RangeTable())
    inserted = next(n for n in nodes(model, "QuantizeLinear") if n.name == "y//quantize")
    assert inserted.input[0] == "r"
    assert constant(model, inserted.input[1]) == np.float32(0.05)


def test_half_precision_models_get_scales_of_their_type():
    text = "g (float16[2,4] x) => (float16[2,4] y) { y = MatMul(x, w) }"
    for mode in ("INT8", "FP8"):
        model = quantized(canonical(text, w=np.ones((4, 4), np.float16)), mode, table(x=2.0))
        assert opset_of(model.proto) == 19
        for node in (*nodes(model, "QuantizeLinear"), *nodes(model, "DequantizeLinear")):
            assert constant(model, node.input[1]).dtype == np.float16


@pytest.mark.parametrize(
    ("mode", "float_type", "bound", "scale"),
    [
        ("FP8", "FP16", 0.0066, 2.0**-14),  # a softmax over 196 tokens: 1 / scale would be infinite in float16
        ("FP8", "FP16", 448.0, 1.0),
        ("FP8", "FP16", 1e-7, 1e-7 / 448),  # stays float32
        ("FP8", "BF16", 0.0066, 0.0066 / 448),
        ("FP8", "FP32", 0.0066, 0.0066 / 448),
        ("INT8", "FP16", 0.001, 0.001 / 127),  # steps are worth more; its QuantizeLinear stays float32
    ],
)
def test_calibrated_fp8_scales_have_a_reciprocal_in_float16(mode, float_type, bound, scale):
    text = "g (float[2,4] x) => (float[2,4] y) { y = MatMul(x, w) }"
    model = quantized(canonical(text, opset=19, w=(4, 4)), mode, table(x=bound), float_type=float_type)
    inputs = [n.input for op in ("QuantizeLinear", "DequantizeLinear") for n in nodes(model, op)]
    pair = [constant(model, names[1]) for names in inputs if origin(names[0]) == "x"]
    np.testing.assert_allclose(pair, [scale] * 2, rtol=1e-6)


def test_bodies_have_their_own_pairs():
    text = """g (float[2,4] x, bool c) => (float[2,4] y) {
        r = Relu(x) m = MatMul(r, w)
        i = If(c) <then_branch = t () => (float[2,4] a) { a = MatMul(r, w) },
                   else_branch = e () => (float[2,4] b) { h = Tanh(r) b = MatMul(h, w) }>
        y = Add(i, m)
    }"""
    source = canonical(text, w=(4, 4))
    model = quantized(source, "INT8", table(r=3.0, h=1.0))
    assert len(nodes(model, "QuantizeLinear")) == 3
    assert len([t for t in model.proto.graph.initializer if t.name.startswith("w")]) == 2
    for flag in (True, False):
        feeds = {**random_feeds(source.proto, 0), "c": np.array(flag)}
        assert_close(NativeSession(model, honest=True).run(feeds), NativeSession(source).run(feeds), "INT8")


def test_what_is_done_and_what_is_not_is_told():
    model = canonical(MLP, w=(4, 4), v=(4, 4))
    result = InsertQDQ(Recipe.of("INT8", keep_nodes=("^h$",)), table(r=1.0)).run(model)
    assert [(c.rule, c.target) for c in result.changes] == [("skip-quantize", "h"), ("quantize", "y")]
    assert result.changes[1].reason == "INT8 for input 0; INT8 for weight 1 along axis 1"


def test_a_node_whose_input_has_no_range_stays_and_is_told():
    model = canonical(MLP, w=(4, 4), v=(4, 4))
    result = InsertQDQ(Recipe.of("INT8"), table(r=1.0)).run(model)
    assert ("skip-quantize", "h", "there is no range of its input 'x'") in [
        (c.rule, c.target, c.reason) for c in result.changes
    ]
    assert [c.target for c in result.changes if c.rule == "quantize"] == ["y"]
    untouched = InsertQDQ(Recipe.of("INT8")).run(model).model
    assert untouched.proto == model.proto


def test_a_residual_add_without_a_range_stays():
    text = """g (float[1,4,8,8] x, float[1,4,8,8] z) => (float[1,4,8,8] y) {
        c = Conv<pads=[1,1,1,1]>(x, w) y = Add(z, c) }"""
    result = InsertQDQ(Recipe.of("INT8"), table(x=1.0)).run(canonical(text, w=(4, 4, 3, 3)))
    assert nodes(result.model, "Add")[0].input == ["z", "c"]
    assert any(c.rule == "skip-quantize" and "no range of its input 'z'" in c.reason for c in result.changes)


@pytest.mark.parametrize("bound", [np.inf, np.nan])
def test_ranges_that_are_none_are_refused(bound):
    with pytest.raises(PassError, match=r"the range of 'x' cannot be used: .*finite and positive"):
        InsertQDQ(Recipe.of("INT8"), table(x=bound, r=1.0)).run(canonical(MLP, w=(4, 4), v=(4, 4)))


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(PassError, match=r"weight 'w' of node 'h' cannot be quantised: .*infinite"):
        InsertQDQ(Recipe.of("INT8"), table(x=1.0, r=1.0)).run(
            canonical(MLP, w=np.full((4, 4), np.inf, np.float32), v=(4, 4))
        )


@pytest.mark.parametrize("recipe", [Recipe.of("FP32"), Recipe.of("FP16")])
def test_other_modes_change_nothing(recipe):
    model = canonical(MLP, w=(4, 4), v=(4, 4))
    result = InsertQDQ(recipe).run(model)
    assert result.model is model
    assert not result.modified


@pytest.mark.parametrize("mode", ["INT8", "FP8"])
def test_what_is_quantised_is_not_quantised_again(mode):
    model = quantized(canonical(MLP, w=(4, 4), v=(4, 4)), mode, table(x=1.0, r=1.0))
    assert InsertQDQ(Recipe.of(mode)).run(model).model is model


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["INT8", "FP8"]))
def test_random_models_stay_valid_and_run(seed, mode):
    """With bodies, shared weights and shape arithmetic; ranges are made up, so only finite results are asked for."""
    source, _ = CANONICAL.run(from_proto(random_model(seed, 15, unsupported=0)))
    names = quantized_tensors(source, Recipe.of(mode)).tensors
    model = quantized(source, mode, RangeTable({name: TensorRange(-4, 4) for name in names}))
    assert len(nodes(model, "QuantizeLinear")) >= len(names)
    outputs = NativeSession(model, honest=True, threads=1).run(random_feeds(source.proto, seed, {"N": 3}))
    assert all(np.isfinite(array).all() for array in outputs.values())


NORM = {"s": np.linspace(0.5, 2, 16, dtype=np.float32), "m": np.zeros(16, np.float32), "v": np.ones(16, np.float32)}
NETS = {
    "residual": (
        """g (float[N,3,16,16] x) => (float[N,16,16,16] y) {
            a = Conv<pads=[1,1,1,1]>(x, w0, b) n = BatchNormalization(a, s, b, m, v) r = Relu(n)
            c = Conv<pads=[1,1,1,1]>(r, w1, b) o = BatchNormalization(c, s, b, m, v) t = Add(o, r) y = Relu(t) }""",
        {"w0": (16, 3, 3, 3), "w1": (16, 16, 3, 3), "b": (16,), **NORM},
    ),
    "projection": (
        """g (float[N,3,16,16] x) => (float[N,16,8,8] y) {
            r = Relu(x) p = Conv<strides=[2,2]>(r, w0) c = Conv<pads=[1,1,1,1], strides=[2,2]>(r, w1)
            t = Add(p, c) m = MaxPool<kernel_shape=[1,1]>(t) y = Relu(m) }""",
        {"w0": (16, 3, 1, 1), "w1": (16, 3, 3, 3)},
    ),
    "depthwise": (
        """g (float[N,16,16,16] x) => (float[N,16,16,16] y) {
            d = Conv<pads=[1,1,1,1], group=16>(x, w0) r = Relu(d) c = Conv(r, w1) y = Clip(c) }""",
        {"w0": (16, 1, 3, 3), "w1": (16, 16, 1, 1)},
    ),
    "conv1d": ("g (float[N,8,32] x) => (float[N,16,30] y) { y = Conv(x, w) }", {"w": (16, 8, 3)}),
    "upsample": (
        """g (float[N,16,8,8] x) => (float[N,8,16,16] y) {
            u = ConvTranspose<strides=[2,2]>(x, w0, b) r = Relu(u) y = Conv<pads=[1,1,1,1]>(r, w1) }""",
        {"w0": (16, 8, 2, 2), "b": (8,), "w1": (8, 8, 3, 3)},
    ),
    "grouped upsample": (
        """g (float[N,16,8,8] x) => (float[N,16,16,16] y) {
            u = ConvTranspose<strides=[2,2], group=4>(x, w0) r = Relu(u)
            d = ConvTranspose<group=16, pads=[1,1,1,1]>(r, w1) y = Tanh(d) }""",
        {"w0": (16, 4, 2, 2), "w1": (16, 1, 3, 3)},
    ),
    "mlp": (
        """g (float[N,64] x) => (float[N,10] y) {
            h = MatMul(x, w0) i = Add(h, b0) r = Relu(i) g = Gemm<transB=1>(r, w1, b0) e = Tanh(g) y = Gemm(e, w2) }""",
        {"w0": (64, 32), "w1": (32, 32), "w2": (32, 10), "b0": (32,)},
    ),
    "attention": (
        """g (float[N,16,32] x) => (float[N,16,32] y) <int64[4] heads={0,16,4,8}, int64[3] flat={0,16,32}> {
            q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
            qs = Reshape(q, heads) ks = Reshape(k, heads) vs = Reshape(v, heads)
            qt = Transpose<perm=[0,2,1,3]>(qs) kt = Transpose<perm=[0,2,3,1]>(ks) vt = Transpose<perm=[0,2,1,3]>(vs)
            a = MatMul(qt, kt) f = Constant<value_float=0.35355>() b = Mul(a, f) p = Softmax(b) c = MatMul(p, vt)
            ct = Transpose<perm=[0,2,1,3]>(c) cf = Reshape(ct, flat) o = MatMul(cf, wo) y = Add(o, x) }""",
        {"wq": (32, 32), "wk": (32, 32), "wv": (32, 32), "wo": (32, 32)},
    ),
    "products": ("g (float[N,8,16] x, float[N,16,8] z) => (float[N,8,8] y) { y = MatMul(x, z) }", {}),
    "shared": (
        """g (float[N,64] x) => (float[N,64] y) { h = MatMul(x, w) r = Tanh(h) y = MatMul(r, w) }""",
        {"w": (64, 64)},
    ),
}
EVERY = [(net, mode) for net in NETS for mode in ("INT8", "FP8")]


@pytest.mark.parametrize(("net", "mode"), EVERY)
def test_results_are_near_those_in_floating_point(net, mode):
    text, weights = NETS[net]
    source = canonical(text, **weights)
    model = quantized(source, mode)
    feeds = random_feeds(source.proto, 1)
    want = NativeSession(source).run(feeds)
    got = NativeSession(model, honest=True, threads=1).run(feeds)
    assert_close(got, want, mode)
    if net != "grouped upsample" or mode == "INT8":
        assert any(not np.array_equal(got[n], want[n]) for n in want), "nothing was quantised"


def build(rtx, model, tmp_path, mode="INT8", targets=None):
    if rtx.version.startswith("1.4") and shutil.which("nvidia-smi") is None:
        pytest.skip("TensorRT-RTX 1.4 builds Q/DQ only where a GPU is (it asks for the current device)")
    sizes = {"N": 2}
    proto = model.copy_proto()
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    targets = (FP8_TARGETS if mode == "FP8" else TARGETS) if targets is None else targets
    outcome = rtx.build(type(model)(proto, model.weights), (), BuildOptions(targets=targets), tmp_path / "e.engine")
    assert isinstance(outcome, BuiltEngine), outcome
    return outcome


def multiplications(engine):
    """(kind, layers fused into it) of each convolution and matrix product, read off the plan text in the engine."""
    text = engine.path.read_bytes().decode("latin-1")
    found = re.findall(r'\n +(corrltn|fully_connected|deconvolution)=\{ [^\n]*?layers="([^"]*)"', text)
    return [(kind, set(re.findall(r"ONNX Layer: ([^\]]+)\]", layers))) for kind, layers in found]


@pytest.mark.rtx
@pytest.mark.parametrize(("net", "mode"), EVERY)
def test_tensorrt_builds_it_and_multiplies_what_is_quantised(net, mode, rtx, tmp_path):
    """The DequantizeLinear of data and weight are fused into the product: so it is one of 8-bit numbers."""
    text, weights = NETS[net]
    model = quantized(canonical(text, **weights), mode)
    found = multiplications(build(rtx, model, tmp_path, mode))
    maker = {node.output[0]: node.name for node in iter_nodes(model.proto)}
    left = {change.target for change in quantized_tensors(canonical(text, **weights), Recipe.of(mode)).skipped}
    for node in iter_nodes(model.proto):
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.name not in left:
            wanted = {node.name, *(maker[name] for name in node.input[:2])}
            assert any(wanted <= layers for _, layers in found), (node.name, found)


@pytest.mark.rtx
@pytest.mark.parametrize("float_type", ["FP16", "BF16"])
@pytest.mark.parametrize(("net", "mode"), [("residual", "INT8"), ("residual", "FP8"), ("mlp", "INT8"), ("mlp", "FP8")])
def test_products_stay_in_8_bits_when_floats_are_lowered(net, mode, float_type, rtx, tmp_path):
    """Casts and second pairs part no product from its pairs: all of them are fused as they are without lowering."""
    text, weights = NETS[net]
    model = quantized(canonical(text, **weights), mode)
    lowered = LowerFloats(Recipe.of(mode, float_type)).run(SplitPairs().run(model).model).model
    alone = multiplications(build(rtx, model, tmp_path, mode))
    beside = multiplications(build(rtx, lowered, tmp_path, mode))
    pairs = {node.name for node in iter_nodes(model.proto) if node.op_type == "DequantizeLinear"}
    assert [layers & pairs for _, layers in beside] == [layers & pairs for _, layers in alone]


@pytest.mark.rtx
@pytest.mark.parametrize("mode", ["INT8", "FP8"])
def test_engines_keep_their_weights_in_8_bits(mode, rtx, tmp_path):
    text = "g (float[4,1024] x) => (float[4,1024] y) { y = MatMul(x, w) }"
    source = canonical(text, w=(1024, 1024))
    plain = build(rtx, source, tmp_path)
    small = build(rtx, quantized(source, mode), tmp_path, mode)
    assert plain.size > 4 << 20
    assert small.size < 2 << 20


@pytest.mark.rtx
def test_trained_pairs_build_with_ours_beside_them(rtx, tmp_path):
    text = """g (float[1,4,8,8] x) => (float[1,4,1,1] y) <float s={0.05}, int8 z={0}, float t={0.01}> {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) r = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d)
        wq = QuantizeLinear(w, t, z) wd = DequantizeLinear(wq, t, z) c = Conv(r, wd) y = Conv(c, k) }"""
    model = canonical(text, w=(4, 4, 2, 2), k=(4, 4, 3, 3))
    build(rtx, quantized(model, "INT8"), tmp_path)


@pytest.mark.rtx
def test_int8_builds_for_every_default_target_and_fp8_for_the_newer_ones(rtx, tmp_path):
    text, weights = NETS["mlp"]
    source = canonical(text, **weights)
    build(rtx, quantized(source, "INT8"), tmp_path, targets=rtx.default_targets)
    newer = tuple(target for target in rtx.default_targets if int(target[2:]) >= 89)
    build(rtx, quantized(source, "FP8"), tmp_path, targets=newer)
