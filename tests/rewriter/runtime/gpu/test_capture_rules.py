"""Which islands may be recorded in a CUDA graph."""

import onnx
import pytest

from passes.model import from_proto
from rewriter.runtime.gpu.capture_rules import capture_hazard


def island(text):
    model = from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]>\n{text}'))
    for number, node in enumerate(model.proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    return model


RESHAPE = island(
    """
    g (float[N, 4] x) => (float[M] y) <int64[1] zero = {0}, int64[1] four = {4}> {
        shape = Shape(x)
        rows = Gather <axis = 0> (shape, zero)
        total = Mul(rows, four)
        flat = Reshape(x, total)
        y = Neg(flat)
    }
    """
)
SHAPE_NODES = ("Shape_0", "Gather_1", "Mul_2")


def test_everything_on_the_device():
    assert capture_hazard(island("g (float[2] x) => (float[2] y) { y = Neg(x) }"), (), ()) == ""


def test_shapes_may_be_computed_on_the_cpu():
    assert capture_hazard(RESHAPE, SHAPE_NODES, ()) == ""


def test_an_onnx_runtime_that_does_not_tell():
    assert "does not tell" in capture_hazard(RESHAPE, None, ())


@pytest.mark.parametrize(
    ("text", "on_cpu", "words"),
    [
        ("g (float[2] x) => (int64[1, K] y) { y = NonZero(x) }", ("NonZero_0",), "NonZero 'NonZero_0' runs on the CPU"),
        ("g (float[2] x) => (float[2] y) { y = Neg(x) }", ("MemcpyToHost",), "ONNX Runtime runs 'MemcpyToHost'"),
        (
            "g (float[2] x) => (float[1] y) { s = Shape(x)  y = Cast <to = 1> (s) }",
            ("Shape_0",),
            "Cast 'Cast_1' reads 's', which is made on the CPU",
        ),
        (
            "g (float[2] x) => (int64[1] y) { y = Shape(x) }",
            ("Shape_0",),
            "the output 'y' is made on the CPU",
        ),
        (
            "g (float[2] x, float low) => (float[2] y) { y = Clip(x, low) }",
            (),
            "Clip 'Clip_0' reads 'low' in CPU memory",
        ),
        (
            "g (float[2] x, int64[1] n) => (float[K] y) { y = Reshape(x, n) }",
            (),
            "Reshape 'Reshape_0' reads 'n' in CPU memory",
        ),
        ("g (float[2] x) => (float[2] y) { y = RandomNormalLike(x) }", (), "gives other results each time"),
        (
            "g (bool c, float[2] x) => (float[2] y) { y = If(c) <then_branch = t () => (float[2] a) { a = Neg(x) }, "
            "else_branch = e () => (float[2] b) { b = Abs(x) }> }",
            (),
            "decides while it runs",
        ),
    ],
)
def test_hazards_are_named(text, on_cpu, words):
    assert words in capture_hazard(island(text), on_cpu, ())


def test_constants_of_a_plan_are_no_hazard():
    model = island("g (float[2] x, int64[1] n) => (float[K] y, int64[1] s) { y = Reshape(x, n)  s = Shape(x) }")
    assert capture_hazard(model, ("Shape_1",), ("n", "s")) == ""
