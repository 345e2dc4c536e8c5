"""`NativeSession(honest=True)`: ONNX Runtime rounds exactly where the graph says so."""

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from passes.model import from_proto
from rewriter.runtime.native import NativeSession

INT8, F8 = np.dtype(np.int8), np.dtype(ml_dtypes.float8_e4m3fn)
LARGEST = {INT8: 127.0, F8: 448.0}


def quantised(array, scale, dtype):
    """What Q and DQ make of an array, in float32 as ONNX says: divide, round half to even, saturate, multiply."""
    steps = (array / scale).astype(np.float32)
    if dtype == INT8:
        steps = np.clip(np.rint(steps), -128, 127)
    return steps.astype(dtype).astype(np.float32) * np.float32(scale)


@pytest.mark.parametrize("dtype", [INT8, F8], ids=["int8", "fp8"])
def test_quantised_products_equal_numpy(dtype):
    """Small integers and scales that are powers of two, so that no sum rounds: any deviation would show.

    ONNX Runtime's own optimisations would quantise the bias and merge Q/DQ pairs with Conv, MaxPool and MatMul.
    """
    rng = np.random.default_rng(0)
    x = rng.integers(-40, 40, (2, 4, 6, 6)).astype(np.float32) / 16
    wq = rng.integers(-8, 9, (3, 4, 1, 1)).astype(np.float32).astype(dtype)
    mq = rng.integers(-8, 9, (5, 4)).astype(np.float32).astype(dtype)
    bias = np.float32([0.3333, -1.7777, 12.3456])
    sx, sw, sy, sm = (np.float32(s) for s in (0.125, 0.0625, 0.25, 0.5))
    proto = parser.parse_model("""
      <ir_version: 9, opset_import: ["" : 19]>
      g (float[2,4,6,6] x) => (float[2,3,6,6] r, float[2,3,5,4] y) {
        xq = QuantizeLinear(x, sx, zero) xd = DequantizeLinear(xq, sx, zero)
        w = DequantizeLinear(wq, sw, zero) c = Conv(xd, w, bias) r = Relu(c)
        rq = QuantizeLinear(r, sy, zero) rd = DequantizeLinear(rq, sy, zero)
        p = MaxPool<kernel_shape = [2, 2], strides = [1, 1]>(rd)
        m = DequantizeLinear(mq, sm, zero) y = MatMul(p, m)
      }""")
    values = {"wq": wq, "mq": mq, "bias": bias, "sx": sx, "sw": sw, "sy": sy, "sm": sm, "zero": np.zeros((), dtype)}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in values.items())
    outputs = NativeSession(from_proto(proto), honest=True).run({"x": x})
    xd = quantised(x, sx, dtype)
    w = wq[:, :, 0, 0].astype(np.float32) * sw
    r = np.maximum(np.einsum("nchw,oc->nohw", xd, w) + bias[:, None, None], 0)
    rd = quantised(r, sy, dtype)
    p = np.max([rd[..., i : i + 5, j : j + 5] for i in (0, 1) for j in (0, 1)], 0)
    np.testing.assert_allclose(outputs["r"], r, rtol=1e-6)
    np.testing.assert_array_equal(outputs["y"], p @ (mq.astype(np.float32) * sm), strict=True)


@pytest.mark.parametrize(
    ("code", "values", "expected"),
    [
        (TensorProto.FLOAT16, [1e5, 2049, 1e-9], [np.inf, 2048, 0]),
        (TensorProto.BFLOAT16, [1e5, 257, 3e38], [99840, 256, 3.004055e38]),
        (TensorProto.FLOAT8E4M3FN, [1e5, 17, 1e-9], [448, 16, 0]),
    ],
)
def test_cast_pairs_are_kept(code, values, expected):
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=code),
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Neg", ["c"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    y = NativeSession(from_proto(proto), honest=True).run({"x": np.float32(values)})["y"]
    np.testing.assert_allclose(y, np.float32(expected), rtol=1e-5)


def test_layer_normalisation_between_cast_pairs_is_not_fused():
    """Fusing the seven nodes would drop the roundings between them."""
    lines = ["m = ReduceMean<axes = [1]>(x)", "d = Sub(x, m_)", "s = Mul(d_, d_)", "v = ReduceMean<axes = [1]>(s_)"]
    lines += ["e = Add(v_, eps)", "r = Sqrt(e_)", "q = Div(d_, r_)"]
    text = ""
    for line in lines:
        name = line[0]
        text += f"{line} {name}h = Cast<to = 10>({name}) {name}_ = Cast<to = 1>({name}h)\n"
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>'
        f"g (float[4,16] x) => (float[4,16] q_) <float eps = {{0.001}}> {{ {text} }}"
    )
    x = (np.random.default_rng(0).standard_normal((4, 16)) * 3).astype(np.float16).astype(np.float32)
    plain, honest = (
        NativeSession(from_proto(proto), **o).run({"x": x})["q_"] for o in ({"optimize": False}, {"honest": True})
    )
    np.testing.assert_array_equal(honest, plain)
    np.testing.assert_array_equal(honest, honest.astype(np.float16).astype(np.float32))
