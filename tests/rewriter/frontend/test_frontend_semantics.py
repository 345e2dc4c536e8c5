"""Exports compute what TensorFlow computes where it hurts: zeros of both signs, infinities, NaN, the ends of integers.

Each test is one function with many outputs. What is known to differ (see the README's limits) is left out by name.
"""

import numpy as np
import pytest

from rewriter.frontend import load_source

pytestmark = pytest.mark.tensorflow

ODD = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 2.5, -2.5, 0.5, -0.5, 1.5, 88, -7.25, 1e-30, 3e8], np.float32)
FINITE = ODD[np.isfinite(ODD)]
GRID = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 11.5


def check(tf, run, body, *values, rtol=1e-5, atol=1e-6):
    """`body` gives a dict of tensors; TensorFlow runs it on `values`, and so does ONNX Runtime."""
    values = [np.asarray(value) for value in values]
    specs = [tf.TensorSpec([None] * value.ndim, value.dtype, name=f"v{i}") for i, value in enumerate(values)]
    source = load_source(tf.function(body, input_signature=specs), samples=[tuple(values)], verify=False, islands=False)
    found = run(source, **{f"v{i}": value for i, value in enumerate(values)})
    for name, tensor in tf.function(body)(*map(tf.constant, values)).items():
        expected = tensor.numpy()
        assert found[name].dtype == expected.dtype, name
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(found[name], expected, rtol=rtol, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], expected, err_msg=name)
    return source


def pairs(values):
    first, second = np.meshgrid(values, values)
    return first.ravel(), second.ravel()


def test_functions_of_one_number(tf, run):
    names = [
        "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "floor", "log", "sqrt", "rsqrt", "square",
        "sigmoid", "sign", "softplus", "softsign", "tanh", "round", "rint", "erf", "erfc", "reciprocal_no_nan",
        "is_nan", "is_inf", "is_finite", "negative", "exp", "cos", "sin",
    ]  # fmt: skip
    check(tf, run, lambda x: {name: getattr(tf.math, name)(x) for name in names}, ODD)


def test_activations(tf, run):
    names = ["relu", "relu6", "elu", "selu", "leaky_relu", "silu", "gelu", "softplus", "softsign", "crelu", "tanh"]
    check(tf, run, lambda x: {name: getattr(tf.nn, name)(x) for name in names}, ODD)
    check(
        tf,
        run,
        lambda x: {name: getattr(tf.nn, name)(x) for name in ("softmax", "log_softmax", "l2_normalize")},
        FINITE,
    )


def test_functions_of_two_numbers(tf, run):
    names = [
        "add", "subtract", "multiply", "divide", "divide_no_nan", "maximum", "minimum", "squared_difference", "equal",
        "not_equal", "greater", "greater_equal", "less", "less_equal", "floordiv", "floormod", "pow",
    ]  # fmt: skip
    check(tf, run, lambda x, y: {name: getattr(tf.math, name)(x, y) for name in names}, *pairs(ODD))


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"])
def test_integers_to_their_ends(tf, run, kind):
    ends = np.iinfo(kind)
    values = np.unique([0, 1, 2, 3, 7, 100, ends.max, ends.max - 1, ends.min, ends.min + 1]).astype(kind)
    x, y = pairs(values)
    # Division by zero is an error, and the least by -1 has no result.
    good = (y != 0) & ~((x == ends.min) & (y.astype(np.int64) == -1))
    steps = (np.arange(len(values)) % ends.bits).astype(kind)

    def two(x, y, a, b):
        names = [
            "add", "subtract", "multiply", "maximum", "minimum", "equal", "not_equal", "greater", "greater_equal",
            "less", "less_equal",
        ]  # fmt: skip
        result = {name: getattr(tf.math, name)(x, y) for name in names}
        result |= {name: getattr(tf.bitwise, name)(x, y) for name in ("bitwise_and", "bitwise_or", "bitwise_xor")}
        result |= {name: getattr(tf.math, name)(a, b) for name in ("floordiv", "floormod")}
        return result | {"truncated": tf.raw_ops.TruncateDiv(x=a, y=b)}

    def one(x, steps, few):
        # Sums are right up to 2^53: ONNX Runtime adds integers in double precision.
        result = {f"reduce_{name}": getattr(tf, f"reduce_{name}")(few) for name in ("sum", "prod", "max", "min")}
        result |= {"left": tf.bitwise.left_shift(x, steps), "right": tf.bitwise.right_shift(x, steps)}
        result |= {"not": tf.bitwise.invert(x), "relu": tf.nn.relu(x), "argmax": tf.argmax(x), "argmin": tf.argmin(x)}
        result["top"], result["where"] = tf.math.top_k(x, 3)
        result |= {"cumsum": tf.cumsum(few), "add_n": tf.add_n([x, x, x]), "reversed": tf.reverse(x, [0])}
        result |= {"mean": tf.reduce_mean(x[1:3])} if kind not in ("uint32", "int32", "int64") else {}
        return result | {f"to_{to}": tf.cast(x, to) for to in ("bool", "int8", "uint8", "int64", "float32")}

    check(tf, run, two, x, y, x[good], y[good])
    few = values[:3] if ends.bits < 32 else np.array([1, 2, 3], kind)
    check(tf, run, one, values, steps, few)


def test_floats_become_integers(tf, run):
    values = np.array([0, -0.0, 1.9, -1.9, 2.5, 100, -100], np.float32)
    kinds = ["bool", "int8", "int16", "int32", "int64", "float16", "float64"]
    check(tf, run, lambda x: {kind: tf.cast(x, kind) for kind in kinds}, values)
    large = np.array([3e9, -3e9, 1e19, -1e19, 2147483520.0, np.inf, -np.inf, np.nan], np.float32)
    check(tf, run, lambda x: {kind: tf.cast(x, kind) for kind in ("int32", "int64")}, large)


def test_large_whole_numbers_are_told_apart(tf, run):
    x = np.array([2**24, 2**24 + 1, 2**24 + 3, 2**24 + 2], np.int32)

    def body(x):
        values, places = tf.math.top_k(x, 3)
        result = {"values": values, "places": places, "sorted": tf.sort(x), "order": tf.argsort(x)}
        result |= {"less": x < x[1], "greater": x > x[1], "argmax": tf.argmax(x), "sum": tf.reduce_sum(x - x[0])}
        return result | {"product": tf.matmul(x[:, None], x[None] - 2**24)}

    check(tf, run, body, x)
    check(tf, run, body, x.astype(np.int64) + 2**53)


def test_reductions(tf, run):
    def body(x):
        result = {}
        for name in ["sum", "max", "min", "prod", "mean", "logsumexp", "std", "variance"]:
            reduce = getattr(tf.math, f"reduce_{name}")
            result |= {f"{name}{axis}": reduce(x, axis) for axis in (0, [0, 1], None, [])}
            result[f"{name}_kept"] = reduce(x, -1, keepdims=True)
        result |= {
            f"{f.__name__}{axis}": f(x > 0, axis) for f in (tf.reduce_all, tf.reduce_any) for axis in (0, [0, 2])
        }
        result["mean_moment"], result["variance_moment"] = tf.nn.moments(x, [0, 1])
        return result | {"infinite": tf.reduce_max(tf.concat([tf.reshape(x, [-1]), [np.inf]], 0))}

    source = check(tf, run, body, GRID)
    found = run(source, v0=GRID[:0])
    np.testing.assert_array_equal(found["sum0"], np.zeros((3, 4), np.float32))
    np.testing.assert_array_equal(found["max0"], np.full((3, 4), -np.inf, np.float32))


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_running_sums(tf, run, exclusive, reverse):
    check(tf, run, lambda x: {str(axis): tf.cumsum(x, axis, exclusive, reverse) for axis in (0, -1)}, GRID)


def test_ties_go_to_the_first(tf, run):
    def body(x):
        values, places = tf.math.top_k(x, 3)
        result = {"values": values, "places": places, "argsort": tf.argsort(x, stable=True)}
        result |= {f"{f.__name__}{axis}": f(x, axis) for f in (tf.argmax, tf.argmin) for axis in (0, 1)}
        return result

    check(tf, run, body, np.array([[1, 2, 2, 0], [3, 1, 3, 0]], np.float32))


def test_masks_in_softmax(tf, run):
    masked = np.array([[1, -np.inf, 2], [-np.inf, -np.inf, 0], [1e30, -1e30, 0]], np.float32)
    check(tf, run, lambda x: {"last": tf.nn.softmax(x), "log": tf.nn.log_softmax(x[:1])}, masked)


def test_slices(tf, run):
    def body(x, a, b):
        return {
            "back": x[:, ::-1], "two_back": x[:, ::-2, ::-1], "part_back": x[:, 2:0:-1], "to_first": x[:, :0:-1],
            "from_second": x[:, 1::-1], "beyond_back": x[:, 9:-9:-1], "ellipsis": x[..., 1], "mid": x[1:, ..., ::-1],
            "both": x[0, ..., 1:], "new": x[:, tf.newaxis, 1], "ends": x[tf.newaxis, ..., tf.newaxis],
            "negative": x[-1, :, -2], "beyond": x[:, -9:2], "none": x[:, 2:1], "steps": x[:, :, ::9],
            "dynamic": x[:, a:b], "dynamic_back": x[:, b:a:-1], "dynamic_one": x[:, a], "last": x[:, -b],
            "sizes": tf.slice(x, [0, 1, 1], [-1, 2, -1]), "mask": tf.boolean_mask(x, [True, False]),
        }  # fmt: skip

    check(tf, run, body, GRID, np.int32(0), np.int32(2))


def test_moves(tf, run):
    def body(x):
        paddings = [[1, 1], [2, 0], [0, 1]]
        rolls = {"one": (1, 0), "back": (-2, 1), "beyond": (5, 2), "two": ([1, 1], [0, 1])}
        result = {f"roll_{name}": tf.roll(x, *values) for name, values in rolls.items()}
        result |= {mode: tf.pad(x, paddings, mode) for mode in ("CONSTANT", "REFLECT", "SYMMETRIC")}
        result |= {"pad_nan": tf.pad(x, paddings, constant_values=np.nan), "tile_none": tf.tile(x, [1, 0, 2])}
        result |= {f"part{i}": part for i, part in enumerate(tf.split(x, [1, -1, 2], -1))}
        result |= {f"uneven{i}": part for i, part in enumerate(tf.split(x, [1, 2, 1], -1))}
        result |= {f"reverse{axes}": tf.reverse(x, axes) for axes in ([0], [1, -1], [])}
        result |= {
            "wide": tf.broadcast_to(x[0], [2, 3, 4]),
            "empty": tf.concat([x, x[:0]], 0),
            "where": tf.where(x > 0),
        }
        for seq, batch, lengths in ((1, 0, [2, 3]), (0, 1, [2, 1, 0]), (2, 0, [0, 1]), (2, 1, [1, 2, 4])):
            result[f"sequence{seq}{batch}"] = tf.reverse_sequence(x, lengths, seq, batch)
        return result | {"band": tf.linalg.band_part(x, 0, -1), "trace": tf.linalg.trace(x)}

    check(tf, run, body, GRID)


def test_gathers_and_scatters(tf, run):
    def body(x, ids, updates):
        places = ids[:, None]
        result = {"rows": tf.gather(x, ids), "columns": tf.gather(x, ids, axis=-1), "points": tf.gather_nd(x, places)}
        result |= {"added": tf.scatter_nd(places, updates, [5]), "whole": tf.scatter_nd(places, ids, [5])}
        result |= {"known": tf.scatter_nd([[1], [1]], updates[:2], [3]), "once": tf.scatter_nd([[1]], updates[:1], [3])}
        names = ("add", "sub", "max", "min")
        result |= {name: getattr(tf, f"tensor_scatter_nd_{name}")(x[:, 0], places, updates) for name in names}
        result["order"] = tf.math.invert_permutation(tf.concat([[2], [0], [1]], 0) + 0 * ids[:1])
        result["distinct"], result["which"] = tf.unique(ids)
        return result

    check(tf, run, body, GRID[0], np.array([2, 0, 2], np.int32), np.array([1, -2, 40], np.float32))


@pytest.mark.parametrize("kind", ["float32", "int32", "int64"])
def test_segments(tf, run, kind):
    """Ids leave a gap, and one of the unsorted ones is negative."""

    def body(x, sorted_ids, ids, two_ids, number):
        result = {}
        for name in ["sum", "mean", "max", "min", "prod"]:
            result[name] = getattr(tf.math, f"segment_{name}")(x, sorted_ids)
            if name == "mean" and kind != "float32":
                continue
            unsorted = getattr(tf.math, f"unsorted_segment_{name}")
            result |= {f"unsorted_{name}": unsorted(x, ids, 5), f"number_{name}": unsorted(x, ids, number)}
            result[f"two_{name}"] = unsorted(x, two_ids, 5)
        if kind == "float32":
            for name in ("sum", "mean", "sqrt_n"):
                segment = getattr(tf.sparse, f"segment_{name}")
                result[f"sparse_{name}"] = segment(x, ids[:1], sorted_ids[:1])
                result[f"sparse_number_{name}"] = segment(x, tf.abs(ids), sorted_ids, num_segments=4)
        return result

    x = (np.arange(12).reshape(4, 3) * 7 % 5 - 2).astype(kind)
    x[0, 0] = 2**53 + 1 if kind == "int64" else 1
    sorted_ids, ids = np.array([0, 0, 2, 2], np.int32), np.array([0, -1, 0, 3], np.int32)
    two_ids = np.array([[0, 1, 1], [1, 1, 4], [4, 0, -1], [0, 0, 0]], np.int32)
    source = check(tf, run, body, x, sorted_ids, ids, two_ids, np.int32(6))
    if kind != "float32":
        empty = run(source, v0=x[:0], v1=ids[:0], v2=ids[:0], v3=two_ids[:0], v4=np.int32(2))
        assert empty["sum"].shape == (0, 3)
        assert empty["number_sum"].tolist() == [[0] * 3] * 2


def test_convolutions_and_pools_of_odd_and_even_sizes(tf, run):
    weights = np.random.default_rng(0).normal(size=(3, 3, 2, 2)).astype(np.float32)
    even = weights[:2, :2]

    def body(x):
        result = {}
        for pad in ("SAME", "VALID"):
            for stride in (1, 2, 3):
                result[f"conv{pad}{stride}"] = tf.nn.conv2d(x, weights, stride, pad)
                result[f"even{pad}{stride}"] = tf.nn.conv2d(x, even, stride, pad)
                result[f"depth{pad}{stride}"] = tf.nn.depthwise_conv2d(x, weights, [1, stride, stride, 1], pad)
                result[f"max{pad}{stride}"] = tf.nn.max_pool2d(x, 3, stride, pad)
                result[f"mean{pad}{stride}"] = tf.nn.avg_pool2d(x, 3, stride, pad)
            result[f"dilated{pad}"] = tf.nn.conv2d(x, weights, 1, pad, dilations=2)
            result[f"dilated_even{pad}"] = tf.nn.conv2d(x, even, 1, pad, dilations=3)
            result[f"dilated_depth{pad}"] = tf.nn.depthwise_conv2d(x, weights, [1, 1, 1, 1], pad, dilations=[2, 2])
        return result

    for sizes in ((7, 8), (8, 9)):
        image = np.random.default_rng(1).normal(size=(2, *sizes, 2)).astype(np.float32)
        check(tf, run, lambda x, shape=image.shape: body(tf.ensure_shape(x, [None, *shape[1:]])), image)
        check(tf, run, lambda x: body(tf.ensure_shape(x, [None, None, None, 2])), image)


@pytest.mark.parametrize("size", [(14, 18), (5, 4), (13, 20), (1, 1)])
def test_resizes(tf, run, size):
    def body(x):
        result = {}
        for name, resize in (("linear", tf.raw_ops.ResizeBilinear), ("nearest", tf.raw_ops.ResizeNearestNeighbor)):
            for corners, half in ((False, False), (True, False), (False, True)):
                result[f"{name}{corners}{half}"] = resize(
                    images=x, size=size, align_corners=corners, half_pixel_centers=half
                )
        return result

    image = np.random.default_rng(1).normal(size=(2, 7, 9, 3)).astype(np.float32)
    check(tf, run, lambda x: body(tf.ensure_shape(x, [None, 7, 9, 3])), image)
    bytes_ = (np.arange(image.size) % 256).astype(np.uint8).reshape(image.shape)
    check(tf, run, lambda x: {"resized": tf.image.resize(tf.ensure_shape(x, [None, 7, 9, 3]), size)}, bytes_, atol=1e-4)


def test_blocks(tf, run):
    def body(x):
        x = tf.ensure_shape(x, [None, 4, 6, 4])
        result = {"to_depth": tf.nn.space_to_depth(x, 2), "to_space": tf.nn.depth_to_space(x, 2)}
        result |= {"to_batch": tf.space_to_batch(x, [2, 3], [[0, 0], [1, 2]])}
        return result | {"from_batch": tf.batch_to_space(x, [2, 2], [[0, 1], [1, 0]])}

    check(tf, run, body, np.random.default_rng(1).normal(size=(8, 4, 6, 4)).astype(np.float32))


def test_functions_of_double_precision(tf, run):
    names = ["exp", "sqrt", "tanh", "sigmoid", "floor", "erf", "erfc", "asinh", "atan", "tan", "acos", "log"]
    body = {name: getattr(tf.math, name) for name in names}
    x = np.array([0.1, 1, 0.5, 2.5, 20])
    check(tf, run, lambda x: {name: function(x) for name, function in body.items()}, x)
