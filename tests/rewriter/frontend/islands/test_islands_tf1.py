"""TF1's loops and branches with a part that stays in TensorFlow, as frozen graphs and as a SavedModel."""

import numpy as np
import pytest

from rewriter.frontend import load_source
from tests.rewriter.frontend.graph_defs import tf1_control_flow
from tests.rewriter.frontend.islands.island_models import weights

pytestmark = pytest.mark.tensorflow


def slow(tf, x):
    """What ONNX has no word for."""
    return tf.math.lgamma(tf.abs(x) + 1.0)


def dense(tf, x):
    return tf.nn.relu(x @ weights(16, 4), name="y")


def loop(tf, v1):
    x = v1.placeholder(tf.float32, [None, 16], "x")
    dense(tf, v1.while_loop(lambda i, _: i < 3, lambda i, t: (i + 1, slow(tf, t)), [0, x])[1])


def strings(tf, v1):
    text = v1.placeholder(tf.string, [None], "x")
    shapes = [tf.TensorShape([]), tf.TensorShape([None])]
    _, joined = v1.while_loop(
        lambda i, _: i < 3, lambda i, t: (i + 1, tf.strings.join([t, "x"])), [0, text], shape_invariants=shapes
    )
    dense(tf, tf.one_hot(tf.strings.to_hash_bucket_fast(joined, 16), 16))


def loop_then_branch(tf, v1):
    x = v1.placeholder(tf.float32, [None, 16], "x")
    _, t = v1.while_loop(lambda i, _: i < 3, lambda i, t: (i + 1, slow(tf, t)), [0, x])
    kernel = weights(16, 16, seed=1)
    dense(tf, v1.cond(tf.reduce_sum(x) > 0.0, lambda: t @ kernel, lambda: -(t @ kernel)))


def mapped(tf, v1):
    x = v1.placeholder(tf.float32, [None, 16], "x")
    dense(tf, v1.map_fn(lambda row: slow(tf, row), x))


def images(tf, v1):
    encoded = v1.placeholder(tf.string, [None], "x")

    def decode(data):
        return tf.cast(tf.ensure_shape(tf.image.decode_png(data, channels=3), [6, 5, 3]), tf.float32)

    pixels = v1.map_fn(decode, encoded, dtype=tf.float32)
    tf.nn.relu(tf.nn.conv2d(pixels / 255.0, weights(3, 3, 3, 4), 2, "SAME"), name="y")


def constant_branch(tf, v1):
    text = v1.placeholder(tf.string, [None], "x")
    some = tf.reduce_any(tf.strings.length(text) > 1)
    one = v1.cond(some, lambda: tf.strings.upper(text), lambda: tf.fill(tf.shape(text), "b"))
    # Nothing but a control edge ties either constant to its branch.
    two = v1.cond(some, lambda: tf.constant("c"), lambda: tf.constant("d"))
    dense(tf, tf.one_hot(tf.strings.to_hash_bucket_fast(tf.strings.join([one, two]), 16), 16))


def branch_in_a_loop(tf, v1):
    x = v1.placeholder(tf.float32, [None, 16], "x")

    def body(i, t):
        return i + 1, v1.cond(tf.equal(i % 2, 0), lambda: slow(tf, t), lambda: t * tf.constant(2.0) + 3.0)

    dense(tf, v1.while_loop(lambda i, _: i < 3, body, [0, x])[1])


def loop_that_sets_a_constant(tf, v1):
    x = v1.placeholder(tf.float32, [None, 16], "x")
    k, t = v1.while_loop(
        lambda _, t: tf.reduce_max(t) < 100.0, lambda _, t: (tf.constant(5.0), slow(tf, t) + 40.0), [0.0, x]
    )
    tf.add(t @ weights(16, 4), k, name="y")


def loops_in_loops(tf, v1):
    x = v1.placeholder(tf.float32, [None, 16], "x")

    def body(i, t):
        _, u = v1.while_loop(lambda j, _: j < i, lambda j, u: (j + 1, slow(tf, u)), [0, t])
        return i + 1, u + 1.0

    some = tf.reduce_sum(x) > 0.0
    dense(tf, v1.cond(some, lambda: v1.while_loop(lambda i, _: i < 3, body, [0, x])[1], lambda: x * 2.0))


def numbers(_tf, count):
    return np.random.default_rng(count).normal(size=(count, 16)).astype(np.float32)


def texts(_tf, count):
    return np.array([b"a" * n for n in range(count)], dtype=object)


def pngs(tf, count):
    random = np.random.default_rng(count)
    made = [tf.io.encode_png(random.integers(0, 255, (6, 5, 3)).astype(np.uint8)).numpy() for _ in range(count)]
    return np.array(made, dtype=object)


#: Model -> values for its input.
MODELS = {
    loop: numbers,
    strings: texts,
    loop_then_branch: numbers,
    mapped: numbers,
    images: pngs,
    constant_branch: texts,
    branch_in_a_loop: numbers,
    loop_that_sets_a_constant: numbers,
    loops_in_loops: numbers,
}


def built(tf, build):
    with tf.Graph().as_default() as graph, tf1_control_flow(tf):
        build(tf, tf.compat.v1)
    return graph


def computed(tf, graph, values):
    with tf.compat.v1.Session(graph=graph) as session:
        return session.run("y:0", {"x:0": values})


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_a_frozen_graph(tf, build, run, islands, caplog):
    graph, make = built(tf, build), MODELS[build]
    source = load_source(graph.as_graph_def(), outputs=["y"], samples=[{"x": make(tf, 2)}, {"x": make(tf, 3)}])
    assert len(islands(source)) == 1
    assert not [record for record in caplog.records if "refused" in record.message]
    for count in (1, 4):
        values = make(tf, count)
        np.testing.assert_allclose(run(source, x=values)["y"], computed(tf, graph, values), rtol=2e-5, atol=2e-6)


def test_a_saved_model(tf, run, islands, tmp_path):
    graph = built(tf, images)
    with tf.compat.v1.Session(graph=graph) as session:
        x, y = (graph.get_tensor_by_name(name) for name in ("x:0", "y:0"))
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "saved"), {"x": x}, {"y": y})
    source = load_source(tmp_path / "saved", samples=[{"x": pngs(tf, 2)}])
    assert len(islands(source)) == 1
    values = pngs(tf, 3)
    np.testing.assert_allclose(run(source, x=values)["y"], computed(tf, graph, values), rtol=2e-5, atol=2e-6)


def test_work_between_two_branches_is_exported(tf, run, islands):
    def two(tf, v1):
        x = v1.placeholder(tf.float32, [None, 4, 4, 3], "x")
        some = tf.reduce_sum(x) > 24.0
        front = v1.cond(some, lambda: tf.image.rgb_to_hsv(x), lambda: x)
        features = tf.nn.relu(tf.nn.conv2d(front, weights(3, 3, 3, 4), 1, "SAME"))
        tf.identity(v1.cond(some, lambda: features * 2.0, lambda: features), "y")

    graph = built(tf, two)
    source = load_source(graph.as_graph_def(), outputs=["y"])
    ((_, attributes),) = islands(source)
    assert {op.partition(" ")[0] for op in attributes.ops} <= {"Greater", "Merge", "RGBToHSV", "Sum", "Switch"}
    for values in (np.zeros((1, 4, 4, 3), np.float32), np.full((2, 4, 4, 3), 0.7, np.float32)):
        np.testing.assert_allclose(run(source, x=values)["y"], computed(tf, graph, values), rtol=2e-5, atol=2e-6)
