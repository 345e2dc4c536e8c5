"""tf.where and tf.one_hot: what is not chosen must not matter, and labels out of range are no labels."""

import numpy as np
import pytest

from rewriter.frontend import load_source

pytestmark = pytest.mark.tensorflow

ODD = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 2], np.float32)


def convert(tf, body, *specs, samples=None):
    return load_source(tf.function(body, input_signature=list(specs)), samples=samples)


def same(tf, run, body, specs, values):
    """Converts `body` (a dict of tensors), checks it with `values`, and returns the source."""
    source = convert(tf, body, *specs, samples=[tuple(values)])
    found = run(source, **{spec.name: value for spec, value in zip(source.signature.inputs, values, strict=True)})
    for name, tensor in body(*map(tf.constant, values)).items():
        expected = tensor.numpy()
        np.testing.assert_array_equal(found[name].astype(expected.dtype), expected, err_msg=name)
    return source


def test_what_is_not_chosen_does_not_matter(tf, run, ops):
    def body(x):
        logarithm = tf.where(tf.abs(x) > 0, tf.math.log(tf.abs(x)), 0.0)
        clipped = tf.where(x > 0, x, 0.0)
        rows = tf.where(x[:, None] > 0, x, 1.0 / x[:, None])
        return {
            "inverse": tf.where(tf.equal(x, 0.0), tf.zeros_like(x), 1.0 / x),
            "logarithm": logarithm,
            "clipped": clipped,
            "rows": rows,
        }

    source = same(tf, run, body, [tf.TensorSpec([None], tf.float32)], [ODD])
    assert ops(source)["Where"] == 4
    assert "Mul" not in ops(source)


def test_where_in_a_branch_and_in_a_loop(tf, run):
    def body(x):
        many = tf.reduce_sum(tf.cast(x > 0, tf.int32)) > 1
        branch = tf.cond(many, lambda: tf.where(x > 0, x, 0.0), lambda: x)
        loop = tf.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, tf.where(v > 0, v, 1.0 / v)), (0, x))[1]
        return {"branch": branch, "loop": loop}

    same(tf, run, body, [tf.TensorSpec([None], tf.float32)], [ODD])


@pytest.mark.parametrize("shape", [[None], [], [None, 4], None])
def test_the_condition_of_the_first_where_may_be_one_per_row(tf, run, shape):
    sizes = {0: (), 1: (3,), 2: (3, 4)}[1 if shape is None else len(shape)]
    condition = (np.arange(np.prod(sizes, dtype=int)) % 2 == 0).reshape(sizes)
    x = np.where(np.arange(12).reshape(3, 4) % 5 == 1, np.nan, np.arange(12).reshape(3, 4)).astype(np.float32)

    def body(condition, x, y):
        # A shape known at run time only hides the ranks.
        hidden = tf.reshape(condition, tf.shape(condition))
        return {"y": tf.raw_ops.Select(condition=hidden, x=x, y=y)}

    specs = [tf.TensorSpec(shape, tf.bool), tf.TensorSpec([None, 4], tf.float32), tf.TensorSpec([None, 4], tf.float32)]
    same(tf, run, body, specs, [condition, x, -x])


KINDS = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "half", "float64"]


def test_where_and_one_hot_of_every_type(tf, run):
    def body(x, y):
        result = {}
        for kind in [*KINDS, "bfloat16"]:
            a, b = tf.cast(x, kind), tf.cast(y, kind)
            back = tf.float32 if kind == "bfloat16" else kind
            result[f"where_{kind}"] = tf.cast(tf.where(x > 2, a, b), back)
            result[f"hot_{kind}"] = tf.cast(tf.one_hot(y, 5, tf.cast(1, kind), tf.cast(0, kind)), back)
            result[f"values_{kind}"] = tf.cast(tf.one_hot(y, 5, a[0], b[0]), back)
        return result

    spec = tf.TensorSpec([None], tf.int32)
    same(tf, run, body, [spec, spec], [np.array([1, 4, 0, 3], np.int32), np.array([0, 7, 4, 1], np.int32)])


def test_where_of_strings(tf, run):
    def body(condition, x, y):
        return {"y": tf.where(condition, x, y)}

    spec = tf.TensorSpec([None], tf.string)
    source = convert(tf, body, tf.TensorSpec([None], tf.bool), spec, spec)
    found = run(source, condition=np.array([True, False]), x=np.array(["a", "b"]), y=np.array(["c", "d"]))
    assert found["y"].tolist() == ["a", "d"]


@pytest.mark.parametrize("kind", ["uint8", "int8", "int32", "int64"])
def test_labels_out_of_range_are_off(tf, run, kind):
    labels = np.array([[-1, 0, 3], [4, -4, 2]]).astype(kind)

    def body(labels, depth, on):
        result = {f"plain{axis}": tf.one_hot(labels, 4, axis=axis) for axis in (-1, 0, 1, 2)}
        result |= {f"values{axis}": tf.one_hot(labels, 4, 2.5, -1.0, axis=axis) for axis in (-1, 0, 1, 2)}
        result |= {f"depth{axis}": tf.one_hot(labels, depth, axis=axis) for axis in (-1, 1)}
        return result | {"on": tf.one_hot(labels, 4, on, 0.0), "scalar": tf.one_hot(tf.size(labels), 4, axis=0)}

    specs = [tf.TensorSpec([None, 3], kind), tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float32)]
    source = same(tf, run, body, specs, [labels, np.int32(3), np.float32(np.nan)])
    assert run(source, labels=labels[:0], depth=np.int32(0), on=np.float32(1))["depth1"].shape == (0, 0, 3)


def test_one_hot_is_three_nodes(tf, ops):
    source = convert(tf, lambda x: tf.one_hot(x, 4), tf.TensorSpec([None], tf.int32))
    assert ops(source) == {"Unsqueeze": 1, "Equal": 1, "Cast": 1}
