"""What lowered nodes are counted as."""

import onnx.parser
import pytest

from passes.model import from_proto
from passes.precision.lower import lower
from passes.precision.ranges import RangeTable, TensorRange
from passes.precision.recipe import Recipe
from rewriter.precision.arithmetic import arithmetic

RANGES = RangeTable({"x": TensorRange(-1, 1), "r": TensorRange(0, 1)})


def net():
    """MatMul - Relu - MatMul - Softmax on [2, 16], and the number of rows."""
    text = """<ir_version: 10, opset_import: ["": 18]> g (float[2,16] x) => (float[2,16] y, int64[2] n)
        <float[16,16] w, float[16,16] v> {
            m = MatMul(x, w) r = Relu(m) u = MatMul(r, v) y = Softmax(u) n = Shape(x) }"""
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        node.name = node.output[0]
    for name in ("w", "v"):
        proto.graph.initializer.append(
            onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [16, 16], [i / 256 for i in range(256)])
        )
    return from_proto(proto)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe.of("FP32"), {"FP32": 4, "other": 1}),
        (Recipe.of("FP16"), {"FP16": 4, "other": 1}),
        (Recipe.of("BF16", keep_ops=("Softmax",)), {"BF16": 3, "FP32": 1, "other": 1}),
        (Recipe.of("INT8"), {"INT8": 2, "FP16": 2, "other": 1}),
        (Recipe.of("FP8", "FP32"), {"FP8": 2, "FP32": 2, "other": 1}),
        (Recipe.of("INT8", unquantized=frozenset({"m"})), {"INT8": 1, "FP16": 3, "other": 1}),
        (Recipe.of("FP16", int4_block=16), {"INT4 weights": 2, "FP16": 2, "other": 1}),
    ],
)
def test_nodes_are_counted_by_what_they_compute_in(recipe, expected):
    model = net()
    assert arithmetic(model, lower(model, recipe, RANGES).model) == expected
