"""Narrow arithmetic in float32 operators: what ONNX Runtime computes equals numpy's own float16 and bfloat16."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from passes.base import PassError, verify
from passes.canonicalize import Canonicalize
from passes.graph.walk import iter_nodes
from passes.model import from_proto, is_stub, to_proto
from passes.precision.element_types import element_types
from passes.precision.emulate import Emulate
from passes.precision.recipe import origin
from passes.testing import random_feeds, random_model
from rewriter.runtime.native import NativeSession

F16, BF16, F8 = np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
KINDS = pytest.mark.parametrize(("kind", "dtype"), [("float16", F16), ("bfloat16", BF16)])
CODES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def parse(text, opset=18, **arrays):
    """A canonical model; `arrays` are initializers, large ones become stubs."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>{text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items())
    return Canonicalize().run(from_proto(proto)).model


def emulated(model):
    """The emulated model: valid, the same boundary, nothing narrow but between Casts."""
    before = model.proto.SerializeToString(deterministic=True)
    result = Emulate().run(model)
    assert model.proto.SerializeToString(deterministic=True) == before
    assert result.modified == (result.model.proto.SerializeToString(deterministic=True) != before)
    verify(result.model, "emulate", canonical=True)
    assert list(result.model.proto.graph.input) == list(model.proto.graph.input)
    assert list(result.model.proto.graph.output) == list(model.proto.graph.output)
    types = element_types(result.model)
    for node in iter_nodes(result.model.proto):
        if node.op_type != "Cast":
            narrow = [name for name in (*node.input, *node.output) if types.get(name) in CODES.values()]
            assert not narrow, (node.name, narrow)
    return result.model


def run(model, **feeds):
    """The outputs of the emulated model, which do not depend on ONNX Runtime's optimisations."""
    result = emulated(model)
    plain, honest = (NativeSession(result, threads=1, **o).run(feeds) for o in ({"optimize": False}, {"honest": True}))
    for name, array in plain.items():
        np.testing.assert_array_equal(honest[name], array, strict=True)
    outputs = list(plain.values())
    return outputs[0] if len(outputs) == 1 else outputs


def narrowed(array, dtype):
    """float32 values on the grid of `dtype`."""
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32).astype(dtype).astype(np.float32)


def operators(model):
    return [node.op_type for node in iter_nodes(Emulate().run(model).model.proto)]


@KINDS
def test_every_node_that_computes_rounds(kind, dtype):
    model = parse(f"g ({kind}[4] x) => ({kind}[4] y) {{ a = Mul(x, x) b = Sqrt(a) y = Add(b, x) }}")
    x = np.array([1.1, 3.3, 77.7, 1e-3], np.float32).astype(dtype)
    wide = x.astype(np.float32)
    root = narrowed(np.sqrt(narrowed(wide * wide, dtype)), dtype)
    np.testing.assert_array_equal(run(model, x=x), (root + wide).astype(dtype), strict=True)


def test_float16_overflows_and_loses_odd_numbers_above_2048():
    model = parse("g (float[3] x) => (float[3] y) { h = Cast<to = 10>(x) k = Relu(h) y = Cast<to = 1>(k) }")
    np.testing.assert_array_equal(run(model, x=np.float32([1e5, 2049, -1])), np.float32([np.inf, 2048, 0]))


def test_float16_overflows_inside():
    model = parse("g (float16[2] x) => (float16[2] y) { a = Mul(x, x) y = Sqrt(a) }")
    np.testing.assert_array_equal(run(model, x=np.float16([300, 2])), np.float16([np.inf, 2]), strict=True)


def test_bfloat16_keeps_the_range_and_eight_bits():
    model = parse("g (float[3] x) => (float[3] y) { h = Cast<to = 16>(x) k = Neg(h) y = Cast<to = 1>(k) }")
    actual = run(model, x=np.float32([3e38, 257, 1.00390625]))
    np.testing.assert_array_equal(actual, -narrowed([3e38, 257, 1.00390625], BF16))
    assert list(actual[1:]) == [-256, -1]


@pytest.mark.parametrize("saturate", [0, 1])
def test_float8_between_casts(saturate):
    model = parse(
        f"""g (float16[4] x) => (float16[4] y) {{
          q = Cast<to = 17, saturate = {saturate}>(x)
          d = Cast<to = 10>(q)
          y = Mul(d, d)
        }}""",
        opset=19,
    )
    x = np.float16([1.06, -17.3, 0.001, 1000])
    grid = np.clip(x.astype(np.float32), -448, 448) if saturate else x.astype(np.float32)
    d = grid.astype(F8).astype(np.float32)
    np.testing.assert_array_equal(run(model, x=x), narrowed(d * d, F16).astype(F16), strict=True)


def test_what_only_moves_values_is_not_rounded():
    model = parse("""g (float16[2,3] x) => (float16[3,2] y) {
      a = Transpose<perm = [1, 0]>(x) b = Relu(a) c = Neg(b) d = Concat<axis = 0>(c, b) e = Max(d, d) s = Shape(b)
      y = Reshape(c, s)
    }""")
    assert operators(model) == ["Cast", "Transpose", "Relu", "Neg", "Shape", "Reshape", "Cast"]


def test_scattering_with_a_reduction_is_rounded():
    text = """g (float16[3] x, int64[1,1] i, float16[1] u) => (float16[3] y) {{ y = ScatterND{}(x, i, u) }}"""
    assert operators(parse(text.format(""))).count("Cast") == 3
    assert operators(parse(text.format('<reduction = "none">'))).count("Cast") == 3
    adding = parse(text.format('<reduction = "add">'))
    assert operators(adding).count("Cast") == 5
    y = run(adding, x=np.float16([2048, 0, 0]), i=np.int64([[0]]), u=np.float16([1]))
    np.testing.assert_array_equal(y, np.float16([2048, 0, 0]))


def test_a_node_without_narrow_values_is_left_alone():
    model = parse("g (float[2] x) => (float[2] y) { a = Mul(x, x) y = Sqrt(a) }")
    result = Emulate().run(model)
    assert result.model is model
    assert not result.modified


def test_twice_changes_nothing_but_the_boundary_casts():
    model = emulated(parse("g (float[2] x) => (float[2] y) { h = Cast<to = 10>(x) a = Mul(h, h) y = Cast<to = 1>(a) }"))
    again = emulated(model)
    x = np.float32([1.1, 300])
    expected = NativeSession(model, honest=True).run({"x": x})["y"]
    np.testing.assert_array_equal(NativeSession(again, honest=True).run({"x": x})["y"], expected)
    np.testing.assert_array_equal(expected, [narrowed(narrowed(1.1, F16) ** 2, F16), np.inf])


def test_new_nodes_lead_back_to_the_old_ones():
    model = parse(
        "g (float[2] x) => (float[2] y) { [h] h = Cast<to = 10>(x) [a] a = Mul(h, h) [y] y = Cast<to = 1>(a) }"
    )
    result = Emulate().run(model)
    names = [node.name for node in result.model.proto.graph.node]
    assert names == ["h", "h//widen", "a", "a//round", "a//widen", "y"]
    assert {origin(name) for name in names} == {"h", "a", "y"}
    assert {(c.rule, c.target) for c in result.changes} == {("round_cast", "h"), ("round", "a"), ("widen_cast", "y")}


@KINDS
def test_weights_hold_the_same_values_as_float32(kind, dtype):
    large = np.random.default_rng(0).standard_normal((64, 32)).astype(dtype)
    small = np.array([0.1, 2], np.float32).astype(dtype)
    text = f"g ({kind}[3,64] x) => ({kind}[3,32] y) {{ a = MatMul(x, large) b = ReduceMax(small) y = Mul(a, b) }}"
    model = parse(text, large=large, small=small)
    result = emulated(model)
    by_name = {t.name: t for t in result.proto.graph.initializer}
    assert {t.data_type for t in by_name.values()} == {TensorProto.FLOAT}
    assert is_stub(by_name["large"])
    np.testing.assert_array_equal(result.weights["large"], large.astype(np.float32), strict=True)
    np.testing.assert_array_equal(numpy_helper.to_array(by_name["small"]), small.astype(np.float32), strict=True)
    assert not result.weights["large"].flags.writeable
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(dtype)
    y = run(model, x=x).astype(np.float32)
    np.testing.assert_allclose(y, x.astype(np.float32) @ large.astype(np.float32) * 2, rtol=0.02, atol=0.05)


def test_a_weight_that_is_an_output():
    model = parse("g (float16[2] x) => (float16[2] y, float16[600] w) { y = Sqrt(x) }", w=np.arange(600, dtype=F16))
    _, w = run(model, x=np.float16([4, 9]))
    np.testing.assert_array_equal(w, np.arange(600, dtype=F16), strict=True)


# The parser takes the bits of float16 values: 11878 is 0.1.
CONSTANTS = [
    "k = Constant<value = float16[1] {11878}>() y = Mul(x, k)",
    "s = Shape(x) k = ConstantOfShape<value = float16[1] {11878}>(s) y = Mul(x, k)",
    "f = Constant<value_float = 0.1>() k = CastLike(f, x) y = Mul(x, k)",
    "i = Constant<value = int64 {1}>() t = Constant<value = int64 {10}>() ic = Cast<to = 10>(i) tc = Cast<to = 10>(t) "
    "k = Div(ic, tc) y = Mul(x, k)",
]


@pytest.mark.parametrize("lines", CONSTANTS)
def test_constants(lines):
    model = parse(f"g (float16[2] x) => (float16[2] y) {{ {lines} }}")
    x = np.float16([3, -7])
    np.testing.assert_array_equal(run(model, x=x), x * np.float16(0.1), strict=True)


@pytest.mark.parametrize(
    "line",
    [
        "y = RandomNormalLike<dtype = 10, seed = 1.0>(x)",
        "y = RandomUniformLike<seed = 1.0>(x)",
        "y = RandomNormal<dtype = 10, shape = [3, 3]>()",
        "y = EyeLike<dtype = 10>(x)",
        "y = EyeLike(x)",
        "y = Bernoulli<dtype = 10>(x)",
    ],
)
def test_attributes_that_name_a_type(line):
    y = run_once(parse(f"g (float16[3,3] x) => (float16[3,3] y) {{ {line} }}"), x=np.full((3, 3), 0.5, F16))
    assert y.dtype == F16


def run_once(model, **feeds):
    """As `run`, for models whose results differ from session to session."""
    return next(iter(NativeSession(emulated(model), honest=True).run(feeds).values()))


def test_windows_and_ranges():
    model = parse("""g (float16 x, int64 n) => (float16[m] y, float16[k] w) {
      one = Constant<value = float16 {15360}>() zero = Constant<value = float16 {0}>()
      y = Range(zero, x, one) w = HannWindow<output_datatype = 10>(n)
    }""")
    y, w = run(model, x=np.array(5, F16), n=np.array(8))
    np.testing.assert_array_equal(y, np.arange(5, dtype=F16), strict=True)
    assert w.dtype == F16


@pytest.mark.parametrize("condition", [True, False])
@KINDS
def test_if_branches(kind, dtype, condition):
    code = CODES[kind]
    bits = int(np.asarray(3, dtype).view(np.uint16))  # the parser takes the bits of such values
    model = parse(f"""g (float[2] x, bool c) => (float[2] y) {{
      h = Cast<to = {code}>(x)
      i = If (c) <
        then_branch = t () => ({kind}[2] t2) <{kind}[1] k = {{{bits}}}> {{ t1 = Mul(h, h) t2 = Div(t1, k) }},
        else_branch = e () => ({kind}[2] e1) {{ e1 = Identity(h) }}
      >
      y = Cast<to = 1>(i)
    }}""")
    h = narrowed([1.1, 200], dtype)
    with np.errstate(over="ignore"):
        expected = narrowed(narrowed(h * h, dtype) / np.float32(3), dtype) if condition else h
    np.testing.assert_array_equal(run(model, x=np.float32([1.1, 200]), c=np.array(condition)), expected)


LOOP = """g (float16[1] x) => (float16[1] y, float16[5, 1] all) {
  n = Constant<value = int64 {5}>()
  t = Constant<value = bool {1}>()
  y, all = Loop (n, t, x) <body = b (int64 i, bool go, float16[1] s) => (bool going, float16[1] next, float16[1] seen) {
    going = Identity(go) ic = Cast<to = 10>(i) p = Mul(s, x) next = Add(p, ic) seen = Identity(next)
  }>
}"""


def test_loop_carried_values():
    model = parse(LOOP)
    x = np.float16([1.37])
    state, seen = x, []
    for i in range(5):
        state = (state * x) + np.float16(i)
        seen.append(state)
    y, everything = run(model, x=x)
    np.testing.assert_array_equal(y, state, strict=True)
    np.testing.assert_array_equal(everything, np.stack(seen), strict=True)


def test_scan():
    model = parse("""g (float16[1] s, float16[4, 1] xs) => (float16[1] last, float16[4, 1] ys) {
      last, ys = Scan<num_scan_inputs = 1, body = b (float16[1] a, float16[1] v) => (float16[1] n, float16[1] o) {
        n = Mul(a, v) o = Exp(n)
      }>(s, xs)
    }""")
    s, xs = np.float16([1.1]), np.float16([[1.3], [0.7], [1.9], [0.3]])
    products = []
    for x in xs:
        s = s * x
        products.append(s)
    last, ys = run(model, s=np.float16([1.1]), xs=xs)
    np.testing.assert_array_equal(last, s, strict=True)
    np.testing.assert_array_equal(ys, np.exp(np.stack(products).astype(np.float32)).astype(F16), strict=True)


def test_sequences():
    model = parse("""g (float16[4] x) => (float16[4] y) {
      i = Constant<value = int64 {0}>()
      e = SequenceEmpty<dtype = 10>() q = SequenceInsert(e, x) a = SequenceAt(q, i) y = Mul(a, a)
    }""")
    x = np.float16([1.1, 2.2, 3.3, 300])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(run(model, x=x), x * x, strict=True)


INT8 = """g (float[2,3] x) => (float[2,4] y) {
  h = Cast<to = 10>(x)
  q = QuantizeLinear(h, sx, zx)
  d = DequantizeLinear(q, sx, zx)
  w = DequantizeLinear<axis = 1>(wq, sw, zw)
  m = MatMul(d, w)
  y = Cast<to = 1>(m)
}"""


@pytest.mark.parametrize("opset", [18, 19, 21])
def test_scales_become_float32_with_the_same_values(opset):
    """Below opset 19 ONNX does not know float16 scales, but TensorRT takes them."""
    rng = np.random.default_rng(0)
    sx, sw = np.float16(0.0213), rng.uniform(0.01, 0.02, 4).astype(F16)
    wq = rng.integers(-127, 128, (3, 4)).astype(np.int8)
    model = parse(INT8, opset, sx=sx, sw=sw, wq=wq, zx=np.int8(0), zw=np.zeros(4, np.int8))
    x = rng.standard_normal((2, 3)).astype(np.float32)
    h = narrowed(x, F16)
    q = np.clip(np.rint(h / np.float32(sx)), -128, 127).astype(np.int8)
    d = narrowed(q.astype(np.float32) * np.float32(sx), F16)
    w = narrowed(wq.astype(np.float32) * sw.astype(np.float32), F16)
    np.testing.assert_array_equal(run(model, x=x), narrowed(d @ w, F16))


@KINDS
def test_blocked_int4_weights(kind, dtype):
    rng = np.random.default_rng(0)
    values, scale = rng.integers(-8, 8, (8, 3)), rng.uniform(0.1, 0.2, (2, 3)).astype(dtype)
    lines = "w = DequantizeLinear<axis = 0, block_size = 4>(wq, sw) y = MatMul(x, w)"
    model = parse(f"g ({kind}[2,8] x) => ({kind}[2,3] y) {{ {lines} }}", 21, sw=scale, wq=values.astype(ml_dtypes.int4))
    w = narrowed(values * np.repeat(scale.astype(np.float32), 4, 0), dtype)
    x = rng.standard_normal((2, 8)).astype(dtype)
    np.testing.assert_array_equal(run(model, x=x), (x.astype(np.float32) @ w).astype(dtype), strict=True)


def test_an_input_with_a_default_keeps_its_type():
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (float16[2] x) => (float16[2] y) { [n] y = Sqrt(x) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.float16([2, 3]), "x"))
    model = from_proto(proto)
    np.testing.assert_array_equal(run(model), np.sqrt(np.float16([2, 3])), strict=True)
    np.testing.assert_array_equal(run(model, x=np.float16([5, 6])), np.sqrt(np.float16([5, 6])), strict=True)


def test_several_outputs_and_types_that_schemas_fix():
    model = parse("""g (float16[2,4] x) => (float16[2,4] y, float[2,1] mean, float16[2,1] v, int64[2,1] at) {
      s = Constant<value = float16[4] {15360, 15360, 15360, 15360}>()
      k = Constant<value = int64[1] {1}>()
      y, mean = LayerNormalization(x, s)
      v, at = TopK(x, k)
    }""")
    x = np.float16([[1, 2, 3, 5], [0.1, 9, -4, 2]])
    y, mean, v, at = run(model, x=x)
    assert (y.dtype, mean.dtype) == (F16, np.float32)
    np.testing.assert_allclose(mean[:, 0], x.astype(np.float32).mean(1), rtol=1e-6)
    np.testing.assert_array_equal(v, x.max(1, keepdims=True), strict=True)
    np.testing.assert_array_equal(at[:, 0], [3, 1])


def test_functions_are_refused():
    proto = parse("g (float16[2] x) => (float16[2] y) { y = Sqrt(x) }").copy_proto()
    proto.functions.append(helper.make_function("d", "F", ["a"], ["b"], [], [helper.make_opsetid("", 18)]))
    with pytest.raises(PassError, match="functions"):
        Emulate().run(from_proto(proto))


def narrow_graph(graph, code, *, inner):
    """Turns every float32 type and value of a graph into a narrow one; the main graph's boundary stays float32."""
    for value in (*graph.value_info, *((*graph.input, *graph.output) if inner else ())):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = code
    for tensor in graph.initializer:
        narrow_tensor(tensor, code)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = code
            narrow_tensor(attribute.t, code)
            if attribute.HasField("g"):
                narrow_graph(attribute.g, code, inner=True)


def narrow_tensor(tensor, code):
    if tensor.data_type == TensorProto.FLOAT:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(code))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def narrow_model(proto, code):
    """A float32 model in a narrow type between Casts, in place."""
    graph = proto.graph
    narrow_graph(graph, code, inner=False)
    casts = []
    for i, value in enumerate((*graph.input, *graph.output)):
        rename(graph, value.name, f"inner_{i}")
        names, to = ([value.name], [f"inner_{i}"]), code
        if i >= len(graph.input):
            names, to = names[::-1], TensorProto.FLOAT
        casts.append(helper.make_node("Cast", *names, f"cast_{i}", to=to))
    fresh = onnx.GraphProto()
    fresh.node.extend([*casts[: len(graph.input)], *graph.node, *casts[len(graph.input) :]])
    del graph.node[:]
    graph.node.extend(fresh.node)
    return proto


def rename(graph, old, new):
    for node in graph.node:
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                field[i] = new if name == old else name
        for attribute in node.attribute:
            if attribute.HasField("g"):
                rename(attribute.g, old, new)


@given(st.randoms(use_true_random=False), st.sampled_from([TensorProto.FLOAT16, TensorProto.BFLOAT16]))
@settings(max_examples=25, deadline=None)
def test_random_models_lie_on_the_grid(rng, code):
    proto = to_proto(Canonicalize().run(from_proto(random_model(rng, 10, functions=False, unsupported=0.1))).model)
    feeds = random_feeds(proto)
    expected = NativeSession(from_proto(proto), threads=1).run(feeds)
    outputs = NativeSession(emulated(from_proto(narrow_model(proto, code))), honest=True, threads=1).run(feeds)
    for name, array in outputs.items():
        np.testing.assert_array_equal(array, narrowed(array, helper.tensor_dtype_to_np_dtype(code)))
        assert array.dtype == np.float32
        assert array.shape == expected[name].shape
