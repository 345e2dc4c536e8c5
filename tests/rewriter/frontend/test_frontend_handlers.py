"""Ops that the stock converter does not know or gets silently wrong."""

import math

import numpy as np
import pytest

from rewriter.frontend import load_source
from rewriter.frontend.quantization import nudge

pytestmark = pytest.mark.tensorflow


def convert(tf, body, *specs, samples=None):
    return load_source(tf.function(body, input_signature=list(specs)), samples=samples)


def test_erfc_keeps_its_digits_where_it_is_small(tf, run):
    """As long as the result is a normal number, about 1e-38."""
    x = np.concatenate([np.linspace(-6, 9.15, 9999), [0, -2, np.inf, -np.inf, np.nan]]).astype(np.float32)
    source = convert(tf, tf.math.erfc, tf.TensorSpec([None], tf.float32), samples=[{"x": x}])
    exact = [math.erfc(float(value)) for value in x]
    np.testing.assert_allclose(run(source, x=x)["output_0"], exact, rtol=1e-5)


def test_the_exact_gelu_is_six_nodes(tf, run, ops):
    source = convert(tf, lambda x: tf.nn.gelu(x, approximate=False), tf.TensorSpec([None], tf.float32))
    assert ops(source) == {"Mul": 3, "Neg": 1, "Erf": 1, "Sub": 1}
    x = np.linspace(-9, 9, 9999, dtype=np.float32)
    exact = [0.5 * value * math.erfc(-value / math.sqrt(2)) for value in x.tolist()]
    np.testing.assert_allclose(run(source, x=x)["output_0"], exact, rtol=0, atol=6e-7)


def test_erfc_times_something_else_is_no_gelu(tf, ops):
    spec = tf.TensorSpec([None], tf.float32)
    assert "Exp" in ops(convert(tf, lambda x, y: y * tf.math.erfc(-x), spec, spec))
    assert "Exp" in ops(convert(tf, lambda x: (x + 1.0) * tf.math.erfc(-x), spec))


@pytest.mark.parametrize("dtype", ["int32", "int64", "int8", "int16", "float32", "float64"])
def test_floor_division_and_remainder_follow_python(tf, run, dtype):
    x, y = np.meshgrid(np.arange(-9, 10), [-4, -3, -2, -1, 1, 2, 3, 5])
    x, y = x.ravel().astype(dtype), y.ravel().astype(dtype)
    spec = tf.TensorSpec([None], dtype)
    source = convert(tf, lambda x, y: {"quotient": x // y, "rest": x % y}, spec, spec, samples=[{"x": x, "y": y}])
    assert source.verification.worst <= 1e-6
    found = run(source, x=x, y=y)
    np.testing.assert_allclose(found["quotient"], x // y, rtol=1e-6)
    np.testing.assert_allclose(found["rest"], x % y, rtol=1e-6)


def test_floor_division_at_the_ends_of_the_range(tf, run):
    least, most = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    x = np.array([least, least, most, most, least + 1], np.int32)
    y = np.array([2, 7, -2, -7, -1], np.int32)
    spec = tf.TensorSpec([None], tf.int32)
    source = convert(tf, lambda x, y: {"quotient": x // y, "rest": x % y}, spec, spec, samples=[(x, y)])
    np.testing.assert_array_equal(run(source, x=x, y=y)["quotient"], x // y)


def test_float_remainder_keeps_its_digits_for_large_quotients(tf, run):
    x = np.array([1e6 + 0.3, -1e6 - 0.3, 7.5, -7.5], np.float32)
    y = np.array([0.7, 0.7, -2.0, 2.0], np.float32)
    spec = tf.TensorSpec([None], tf.float32)
    source = convert(tf, lambda x, y: x % y, spec, spec, samples=[(x, y)])
    np.testing.assert_array_equal(run(source, x=x, y=y)["output_0"], np.mod(x, y))


def test_unsigned_division(tf):
    spec = tf.TensorSpec([None], tf.uint8)
    sample = np.array([0, 7, 200, 255], np.uint8), np.array([3, 2, 255, 16], np.uint8)
    convert(tf, lambda x, y: x // y, spec, spec, samples=[sample])


def values(low, high, shape):
    """Values inside, outside and exactly between two quanta of the range."""
    random = np.random.default_rng(5)
    grid = np.linspace(low, high, 511, dtype=np.float32)
    picked = np.concatenate([grid, random.uniform(low * 1.2 - 1, high * 1.2 + 1, 2000).astype(np.float32)])
    return np.resize(picked, shape)


@pytest.mark.parametrize(
    ("low", "high", "bits", "narrow"),
    [(-6.0, 6.0, 8, False), (-1.3, 2.7, 8, True), (0.0, 6.0, 4, False), (0.5, 3.0, 8, False), (-3.0, -0.5, 8, False),
     (-0.1, 100.0, 16, False)],
)  # fmt: skip
def test_fake_quant_args_is_bit_equal(tf, run, ops, low, high, bits, narrow):
    def body(x):
        return tf.quantization.fake_quant_with_min_max_args(x, low, high, bits, narrow)

    x = values(low, high, (5, 512))
    source = convert(tf, body, tf.TensorSpec([None, 512], tf.float32), samples=[x])
    np.testing.assert_array_equal(run(source, x=x)["output_0"], body(tf.constant(x)).numpy())
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(ops(source))


def test_fake_quant_vars_reads_its_range_from_variables(tf, run):
    low, high = tf.Variable(-1.7), tf.Variable(2.9)
    x = values(-1.7, 2.9, (4, 600))

    def body(x):
        return tf.quantization.fake_quant_with_min_max_vars(x, low, high)

    source = convert(tf, body, tf.TensorSpec([None, 600], tf.float32), samples=[x])
    np.testing.assert_array_equal(run(source, x=x)["output_0"], body(tf.constant(x)).numpy())


def test_fake_quant_per_channel_is_bit_equal(tf, run):
    low, high = np.array([-1.0, -0.2, 0.0], np.float32), np.array([2.0, 0.3, 5.0], np.float32)
    x = np.stack([values(a, b, 900) for a, b in zip(low, high, strict=True)], -1)

    def body(x):
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(x, low, high, 8, True)

    source = convert(tf, body, tf.TensorSpec([None, 3], tf.float32), samples=[x])
    np.testing.assert_array_equal(run(source, x=x)["output_0"], body(tf.constant(x)).numpy())


def test_fake_quant_of_an_empty_range_is_zero(tf, run):
    x = values(-1, 1, (2, 8))

    def body(x):
        return tf.quantization.fake_quant_with_min_max_vars(x, tf.constant(0.0), tf.constant(0.0))

    source = convert(tf, body, tf.TensorSpec([None, 8], tf.float32), samples=[x])
    np.testing.assert_array_equal(run(source, x=x)["output_0"], body(tf.constant(x)).numpy())


def test_nudge_puts_zero_on_the_grid():
    scale, inverse, lowest, highest = nudge(-1.0, 2.0, 8, False)
    assert float(np.abs(lowest / scale - np.round(lowest / scale))) < 1e-6
    assert highest - lowest == pytest.approx(3.0, rel=1e-6)
    assert inverse == pytest.approx(1 / scale)


HALF = "tf_half_pixel_for_nn"


@pytest.mark.parametrize(
    ("size", "mode"), [((8, 15), "asymmetric"), ((4, 5), "asymmetric"), ((6, 5), HALF), ((2, 5), HALF)]
)
def test_nearest_resize_by_whole_numbers(tf, size, mode):
    spec = tf.TensorSpec([None, 4, 5, 2], tf.float32)
    source = convert(tf, lambda x: tf.image.resize(x, size, method="nearest"), spec)
    assert source.verification.worst == 0.0
    resizes = [node for node in source.model.proto.graph.node if node.op_type == "Resize"]
    modes = {a.s.decode() for node in resizes for a in node.attribute if a.name == "coordinate_transformation_mode"}
    assert modes <= {mode}
    assert modes or size == (4, 5)


def test_the_handlers_stay_out_of_the_users_tf2onnx(tf):
    from tf2onnx import constants
    from tf2onnx.handler import tf_op
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    before = TransposeOptimizer._add_handler
    convert(tf, tf.math.erfc, tf.TensorSpec([None, 3], tf.float32))
    assert TransposeOptimizer._add_handler is before
    assert "Erfc" not in tf_op.create_mapping(18, None)
    assert constants.TENSORFLOW_OPSET.domain != ""
