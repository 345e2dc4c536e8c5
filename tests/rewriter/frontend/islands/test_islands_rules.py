"""What goes to TensorFlow because its export would be another computation, or none: whole small models."""

import numpy as np
import pytest

from rewriter.errors import ExportError, VerificationError
from rewriter.frontend import load_source
from rewriter.frontend.islands.costs import FREE, HEAVY, costs
from rewriter.frontend.islands.graph import Graph
from rewriter.frontend.islands.units import find_units
from tests.rewriter.frontend.islands import island_models

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def check(run, islands):
    """Exports a tf.function, compares it on inputs by name; returns the reasons of its islands as one text."""

    def call(function, samples=None, **inputs):
        source = load_source(function, samples=samples)
        found = run(source, **inputs)
        for name, value in function(**inputs).items():
            if value.dtype == "string":
                assert found[name].tolist() == [item.decode("utf-8", "surrogateescape") for item in value.numpy()]
            else:
                np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-4, atol=1e-5)
        return "; ".join(reason for _, attributes in islands(source) for reason in attributes.reasons)

    return call


@pytest.mark.parametrize(("method", "stays"), [("nearest", True), ("bilinear", False)])
def test_crop_and_resize_by_the_nearest_pixel(tf, check, method, stays):
    dense = tf.constant(island_models.weights(2, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 2], name="x"), tf.TensorSpec([None, 4], name="boxes")])
    def function(x, boxes):
        box_indices = tf.zeros(tf.shape(boxes)[:1], tf.int32)
        return {"y": tf.image.crop_and_resize(x, boxes, box_indices, [3, 3], method=method) @ dense}

    boxes = np.array([[0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]], np.float32)
    found = check(function, x=island_models.weights(1, 8, 8, 2), boxes=boxes)
    assert found == ("CropAndResize: its export interpolates where the nearest pixel is wanted" if stays else "")


@pytest.mark.parametrize("text", ["12abc", "1e400", "1.5"])
def test_numbers_are_read_as_tensorflow_reads_them(tf, run, text):
    dense = tf.constant(island_models.weights(4, 3))
    kind = tf.int32 if text == "1.5" else tf.float32

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.string, name="x")])
    def function(x):
        return {"y": tf.cast(tf.strings.to_number(x, kind), tf.float32) @ dense}

    good = np.array([["1", "2", "3", "4"]], dtype=object)
    source = load_source(function, samples=[{"x": good}])
    np.testing.assert_allclose(run(source, x=good)["y"], function(tf.constant(good))["y"].numpy(), rtol=1e-6)
    bad = np.array([[text, "1", "2", "3"]], dtype=object)
    try:
        wanted = function(tf.constant(bad))["y"].numpy()
    except tf.errors.InvalidArgumentError:
        with pytest.raises(RuntimeError, match="could not correctly convert"):
            run(source, x=bad)
    else:
        np.testing.assert_array_equal(run(source, x=bad)["y"], wanted)


def test_what_only_onnx_runtime_knows_goes_to_tensorflow(tf, check):
    @tf.function(input_signature=[tf.TensorSpec([None, 3, 3], name="x")])
    def function(x):
        return {"y": tf.linalg.set_diag(x, tf.zeros([tf.shape(x)[0], 3])) @ x}

    assert "MatrixSetDiagV3: the converter to ONNX has no way to write it here" in check(
        function, x=island_models.weights(2, 3, 3)
    )


def test_saturation_stays(tf, check):
    kernel = tf.constant(island_models.weights(3, 4))

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 3], name="x")])
    def function(x):
        return {"y": tf.image.adjust_saturation(x, 0.5) @ kernel}

    x = np.abs(island_models.weights(1, 4, 4, 3))
    assert check(function, x=x) == "AdjustSaturation: its export makes other colours"


@pytest.mark.parametrize(("op", "price"), [("MatMul", HEAVY), ("Conv2D", HEAVY), ("AddV2", FREE)])
def test_products_of_integers_are_work_too(tf, op, price):
    made = tf.compat.v1.GraphDef()
    for name, kind, inputs in (("x", "Placeholder", []), ("y", op, ["x", "x"])):
        node = made.node.add(name=name, op=kind, input=inputs)
        node.attr["dtype" if kind == "Placeholder" else "T"].type = tf.int32.as_datatype_enum
    graph = Graph.of(made, ["x:0"], ["y:0"])
    assert list(costs(graph, find_units(graph))) == [price]


BYTES = np.array([b"ok", b"\xff\xfe", b"\xff\xfd"], dtype=object)


@pytest.mark.parametrize("odd", [b"\xff\xfe", b"a\0"])
def test_constants_that_are_no_text_stay(tf, check, odd):
    texts = np.array([b"ok", odd, b"a\0b"], dtype=object)
    dense = tf.constant(island_models.weights(3, 3))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="i")])
    def function(i):
        return {"t": tf.gather(tf.constant(texts), i), "y": tf.one_hot(i, 3) @ dense}

    found = check(function, i=np.array([1, 0, 2], np.int32))
    assert "a constant of it holds bytes that are no UTF-8 text: GatherV2" in found or "GatherV2: a constant" in found


def test_a_table_of_bytes_that_are_no_text_stays(tf, check):
    labels = island_models.table(tf, np.arange(3), BYTES, b"\xfd")
    dense = tf.constant(island_models.weights(3, 3))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="i")])
    def function(i):
        return {"t": labels.lookup(i), "y": tf.one_hot(i, 3) @ dense}

    check(function, i=np.array([1, 0, 2, 9]))


def test_a_table_with_keys_that_are_no_text_stays(tf, check):
    numbers = island_models.table(tf, BYTES, np.arange(3), -7)
    dense = tf.constant(island_models.weights(3, 3))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="s")])
    def function(s):
        return {"y": tf.one_hot(numbers.lookup(s), 3) @ dense}

    assert "it holds bytes that are no UTF-8 text" in check(function, s=BYTES)


def test_an_output_that_is_a_constant_of_bytes_is_refused(tf):
    dense = tf.constant(island_models.weights(3, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, 3], name="x")])
    def function(x):
        return {"y": x @ dense, "c": tf.constant(BYTES)}

    with pytest.raises(ExportError, match="bytes that are no UTF-8 text, which ONNX cannot hold: leave it out"):
        load_source(function)


@pytest.mark.parametrize("kind", ["mutable", "dense", "small", "scalars"])
def test_a_table_of_vectors_is_rebuilt(tf, check, kind):
    rows = island_models.weights(2, 4)
    if kind in ("dense", "small", "scalars"):
        default = 0.5 if kind == "scalars" else [0.5] * 4
        buckets = 4 if kind == "small" else None
        table = tf.lookup.experimental.DenseHashTable(
            tf.int64, tf.float32, default, -1, -2, initial_num_buckets=buckets
        )
        keys, asked = [3, 5], np.array([5, 3, 7])
    else:
        table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, [0.5] * 4)
        keys, asked = ["a", "b"], np.array(["b", "a", "z"], dtype=object)
    table.insert(tf.constant(keys, table.key_dtype), rows[:, 0] if kind == "scalars" else rows)
    if kind == "small":
        table.insert(tf.constant([9], tf.int64), rows[:1])
        table.remove(tf.constant([9], tf.int64))
    dense = tf.constant(island_models.weights(4, 3))

    @tf.function(input_signature=[tf.TensorSpec([None], table.key_dtype, name="k")])
    def function(k):
        found = table.lookup(k)
        found = tf.stack([found] * 4, -1) if kind == "scalars" else found
        return {"y": found @ dense, "n": table.size()}

    check(function, k=asked)


def test_an_empty_table_is_refused(tf):
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)
    dense = tf.constant(island_models.weights(4, 3))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="k")])
    def function(k):
        return {"y": tf.one_hot(table.lookup(k), 4) @ dense}

    with pytest.raises(ExportError, match=r"a lookup table with keys of shape .* is empty: fill it before"):
        load_source(function)


def test_a_table_of_vectors_in_a_loop_is_refused(tf):
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, [0.5] * 4)
    table.insert(["a"], [[1.0] * 4])
    dense = tf.constant(island_models.weights(4, 3))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="k")])
    def function(k):
        return {"y": tf.map_fn(table.lookup, k, fn_output_signature=tf.TensorSpec([4])) @ dense}

    with pytest.raises(ExportError, match=r"a lookup table with .* of shape \[4\] is used by .*While .*tf.Variable"):
        load_source(function)


def test_numbers_of_bfloat16_in_bytes_are_read_as_such(tf, check):
    dense = tf.constant(island_models.weights(4, 3))

    @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="a"), tf.TensorSpec([None], tf.string, name="b")])
    def function(a, b):
        parsed = tf.cast(tf.ensure_shape(tf.io.parse_tensor(a, tf.bfloat16), [None, 4]), tf.float32)
        return {"y": parsed @ dense, "z": tf.cast(tf.io.decode_raw(b, tf.bfloat16), tf.float32) + 1.0}

    values = tf.cast(island_models.weights(2, 4), tf.bfloat16)
    given = {"a": np.array(tf.io.serialize_tensor(values).numpy(), object), "b": np.array([b"\x80?"], object)}
    assert "it reads or writes the bytes of bfloat16" in check(function, samples=[given], **given)


@pytest.mark.parametrize("inside", [False, True])
def test_bits_of_bfloat16_are_those_of_bfloat16(tf, check, inside):
    dense = tf.constant(island_models.weights(4, 4))

    def turned(row):
        bits = tf.bitcast(tf.cast(row, tf.bfloat16), tf.uint16)
        return tf.cast(tf.bitcast(bits ^ tf.constant(0x8000, tf.uint16), tf.bfloat16), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], name="x")])
    def function(x):
        found = tf.map_fn(turned, x) if inside else turned(x)
        return {"y": found @ dense, "bits": tf.cast(tf.bitcast(tf.cast(x, tf.bfloat16), tf.uint16), tf.int32)}

    assert "it reads or writes the bytes of bfloat16" in check(function, x=island_models.weights(3, 4))


def test_an_output_that_differs_names_what_may_stay(tf, monkeypatch):
    from rewriter.frontend.islands import rules

    monkeypatch.setattr(rules, "WRONG", {})
    kernel = tf.constant(island_models.weights(3, 4))

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 3], name="x")])
    def function(x):
        return {"y": tf.image.adjust_saturation(x, 0.5) @ kernel, "z": tf.exp(x)}

    wanted = r"output 'y' .*one of AdjustSaturation, .*MatMul.*\) stay in TensorFlow with keep_in_tensorflow="
    with pytest.raises(VerificationError, match=wanted) as caught:
        load_source(function, samples=[{"x": np.abs(island_models.weights(1, 4, 4, 3))}])
    assert "Exp" not in str(caught.value)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_scores_that_decay_stay(tf, check, sigma):
    dense = tf.constant(island_models.weights(1, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, 4], name="boxes"), tf.TensorSpec([None], name="scores")])
    def function(boxes, scores):
        _, kept = tf.image.non_max_suppression_with_scores(boxes, scores, 5, 0.5, 0.1, soft_nms_sigma=sigma)
        return {"y": kept[:, None] @ dense}

    random = np.random.default_rng(0)
    found = check(function, boxes=random.random((9, 4), np.float32), scores=random.random(9, np.float32))
    assert ("does not lower scores" in found) == bool(sigma)


@pytest.mark.parametrize(("indices", "stays"), [([[0, 2], [2, 1]], True), ([[0, 2], [3, 1]], False)])
def test_rows_that_replace_each_other_stay(tf, check, indices, stays):
    dense = tf.constant(island_models.weights(2, 3))

    @tf.function(input_signature=[tf.TensorSpec([4, 2], name="x")])
    def function(x):
        return {"y": tf.dynamic_stitch(indices, [x[:2] @ dense, x[2:] @ dense]) @ tf.transpose(dense)}

    assert ("its indices may be repeated" in check(function, x=island_models.weights(4, 2))) == stays


def test_partitions_that_are_stitched_are_exported(tf, check):
    dense = tf.constant(island_models.weights(2, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, 2], name="x"), tf.TensorSpec([None], tf.int32, name="p")])
    def function(x, p):
        places = tf.dynamic_partition(tf.range(tf.size(p)), p, 2)
        return {"y": tf.dynamic_stitch(places, [part @ dense for part in tf.dynamic_partition(x, p, 2)])}

    assert "DynamicStitch" not in check(function, x=island_models.weights(4, 2), p=np.array([0, 1, 1, 0], np.int32))


def test_sparse_to_dense_with_small_indices_stays(tf, check):
    dense = tf.constant(island_models.weights(4, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.int32, name="i"), tf.TensorSpec([None], name="v")])
    def function(i, v):
        row = tf.raw_ops.SparseToDense(sparse_indices=i, output_shape=[4], sparse_values=v, default_value=-1.0)
        return {"y": row[None] @ dense}

    given = {"i": np.array([[0], [3]], np.int32), "v": np.array([1, 2], np.float32)}
    assert "its export takes int64 indices only" in check(function, samples=[given], **given)


def test_gradients_stay(tf, check):
    dense = tf.constant(island_models.weights(4, 4))

    @tf.function(input_signature=[tf.TensorSpec([None, 4], name="x"), tf.TensorSpec([None, 4], name="labels")])
    def function(x, labels):
        loss, gradient = tf.raw_ops.SoftmaxCrossEntropyWithLogits(features=x @ dense, labels=labels)
        return {"loss": loss, "y": gradient @ dense}

    found = check(function, x=island_models.weights(2, 4), labels=np.eye(4, dtype=np.float32)[:2])
    assert "its gradient has no equal in ONNX" in found
