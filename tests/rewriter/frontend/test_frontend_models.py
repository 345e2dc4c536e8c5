"""Small instances of the model kinds that the main table converts at full size."""

import warnings

import numpy as np
import pytest

from rewriter.errors import ExportError, VerificationError
from rewriter.frontend import load_source

pytestmark = pytest.mark.tensorflow


@pytest.fixture(autouse=True)
def seed(keras):
    keras.utils.set_random_seed(11)


def check(source, bound=2e-5):
    assert source.verification is not None
    assert source.verification.samples >= 1
    assert source.verification.worst <= bound
    return source


def test_exact_gelu_attention_block_with_dynamic_sequence(keras, ops):
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(50, 16)(ids)
    x = x + keras.layers.MultiHeadAttention(2, 8)(x, x)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Dense(32, activation=lambda v: keras.activations.gelu(v, approximate=False))(x)
    source = check(load_source(keras.Model(ids, keras.layers.Dense(4)(x))))
    assert ops(source)["Erf"] == 1
    assert source.signature.inputs[0].shape == ("batch", "ids_dim1")
    assert source.signature.outputs[0].shape[::2] == ("batch", 4)


def test_scalar_addend_after_conv_keeps_no_inner_transpose(keras, ops):
    image = keras.Input((16, 16, 3))
    x = image
    for _ in range(3):
        x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
        x = keras.ops.relu6(x + 3.0) / 6.0
    assert ops(check(load_source(keras.Model(image, x))))["Transpose"] <= 2


def test_convolution_that_keras_compiles_with_xla(keras, tf, ops):
    weights = tf.Variable(np.random.default_rng(0).standard_normal((3, 3, 4, 8)).astype(np.float32))

    @tf.function(jit_compile=True)
    def compiled(x):
        return tf.nn.conv2d(x, weights, 1, "SAME")

    function = tf.function(lambda x: compiled(x) + 1.0, input_signature=[tf.TensorSpec([None, 8, 8, 4], tf.float32)])
    assert ops(check(load_source(function)))["Conv"] == 1


def test_grouped_and_dilated_depthwise_convolution(keras):
    image = keras.Input((16, 16, 4))
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2)(image)
    x = keras.layers.Conv2D(8, 3, groups=2, dilation_rate=2)(x)
    check(load_source(keras.Model(image, x)))


def test_unet_with_dynamic_height_and_width(keras):
    image = keras.Input((None, None, 3), name="image")
    down = keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(image)
    up = keras.layers.Conv2DTranspose(4, 2, strides=2)(down)
    source = check(load_source(keras.Model(image, keras.layers.Concatenate()([up, image]))))
    assert source.signature.inputs[0].shape == ("batch", "image_dim1", "image_dim2", 3)


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "SimpleRNN"])
def test_recurrent_layers(keras, layer):
    x = keras.Input((6, 4))
    check(load_source(keras.Model(x, getattr(keras.layers, layer)(5, return_sequences=True)(x))))


def test_bidirectional_lstm_of_tf_keras(tf_keras):
    x = tf_keras.Input((6, 4), name="steps")
    y = tf_keras.layers.Bidirectional(tf_keras.layers.LSTM(3), name="both")(x)
    source = check(load_source(tf_keras.Model(x, y)))
    assert [s.name for s in source.signature.outputs] == ["both"]


def test_while_loop_and_cond(tf, ops):
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32)])
    def function(x):
        total = tf.while_loop(lambda i, v: i < 4, lambda i, v: (i + 1, v * 0.5 + x), (0, x))[1]
        return tf.cond(tf.reduce_sum(x) > 0.0, lambda: total, lambda: -total)

    source = check(load_source(function))
    assert ops(source)["Loop"] == 1
    assert ops(source)["If"] == 1


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_convolutions_in_branches(tf, ops, shift):
    random = np.random.default_rng(5)
    one, two = (tf.constant(random.normal(size=(3, 3, 2, 4)), tf.float32) for _ in range(2))

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 2], tf.float32)])
    def function(x):
        here, there = (lambda: tf.nn.conv2d(x, one, 2, "SAME")), (lambda: tf.nn.conv2d(-x, two, 2, "SAME"))
        return tf.cond(tf.reduce_mean(x) > 0.0, here, there)

    sample = (random.normal(size=(3, 8, 8, 2)) + shift).astype(np.float32)
    source = check(load_source(function, samples=[sample]))
    assert ops(source)["If"] == 1


def test_the_graph_is_the_reference_not_the_eager_call(keras):
    image = keras.Input((48, 40, 3), dtype="uint8")  # run eagerly, Resizing rounds to uint8
    check(load_source(keras.Model(image, keras.layers.Resizing(32, 32)(image))))


def test_combined_non_max_suppression_with_dynamic_batch(tf):
    @tf.function(
        input_signature=[tf.TensorSpec([None, 12, 1, 4], tf.float32), tf.TensorSpec([None, 12, 3], tf.float32)]
    )
    def function(boxes, scores):
        found = tf.image.combined_non_max_suppression(boxes, scores, 4, 5, iou_threshold=0.5, score_threshold=0.1)
        return found._asdict()

    random = np.random.default_rng(3)
    corner = random.random((2, 12, 1, 2), np.float32) * 0.5
    boxes = np.concatenate([corner, corner + 0.1 + 0.4 * random.random((2, 12, 1, 2), np.float32)], -1)
    source = check(load_source(function, samples=[(boxes, random.random((2, 12, 3), np.float32))]))
    assert [s.name for s in source.signature.outputs] == [
        "nmsed_boxes", "nmsed_scores", "nmsed_classes", "valid_detections"
    ]  # fmt: skip
    assert {s.shape[0] for s in source.signature.inputs} == {"batch"}


def test_uint8_preprocessing(keras):
    image = keras.Input((12, 12, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255.0)(image)
    x = keras.layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3])(x)
    source = check(load_source(keras.Model(image, keras.layers.CenterCrop(8, 8)(x))))
    assert source.signature.inputs[0].dtype == 2


def test_top_k_gather_nd_boolean_mask(tf):
    @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.float32)])
    def function(x):
        values, indices = tf.math.top_k(x, 3)
        picked = tf.gather_nd(x, [[0, 1], [1, 2]])
        return {"values": values, "indices": indices, "picked": picked, "positive": tf.boolean_mask(x, x > 0)}

    source = check(load_source(function))
    assert [s.name for s in source.signature.outputs] == ["values", "indices", "picked", "positive"]
    assert [s.dtype for s in source.signature.outputs] == [1, 6, 1, 1]


def test_mixed_float16_within_its_wider_tolerance(keras):
    x = keras.Input((16,), dtype="float32")
    y = keras.layers.Dense(32, dtype="mixed_float16", activation="relu")(x)
    y = keras.layers.Dense(4, dtype="float32")(y)
    source = check(load_source(keras.Model(x, y)), bound=1e-2)
    assert any(t.data_type == 10 for t in source.model.proto.graph.initializer)


def test_mixed_bfloat16_is_exported_in_float32(keras):
    x = keras.Input((16,), dtype="float32")
    y = keras.layers.Dense(4, dtype="mixed_bfloat16")(x)
    source = check(load_source(keras.Model(x, y)), bound=1e-2)
    assert {t.data_type for t in source.model.proto.graph.initializer} <= {1, 6, 7}
    assert source.signature.outputs[0].dtype == 1


def test_lookup_table_keeps_working(tf):
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(["a", "b"]), tf.constant([10, 20], tf.int64)), -1
    )
    function = tf.function(table.lookup, input_signature=[tf.TensorSpec([None], tf.string)])
    concrete = function.get_concrete_function()
    source = check(load_source(concrete, samples=[np.array([b"a", b"z", b"b"])]))
    assert source.signature.outputs[0].dtype == 7
    assert concrete(tf.constant(["b"])).numpy().tolist() == [20]


def test_ops_without_an_onnx_word_are_named(tf):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def function(text):
        return tf.strings.regex_replace(text, "a", "b")

    with pytest.raises(ExportError, match=r"ops that ONNX has no word for: StaticRegexReplace \(.*\)") as caught:
        load_source(function, islands=False)
    assert "\n" not in str(caught.value)


def test_ops_without_an_onnx_word_are_found_in_bodies(tf):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def function(x):
        return tf.cond(tf.size(x) > 3, lambda: tf.math.lgamma(x), lambda: x)

    with pytest.raises(ExportError, match="Lgamma"):
        load_source(function)


def test_silently_wrong_area_resize_is_caught(tf):
    @tf.function(input_signature=[tf.TensorSpec([1, 9, 9, 2], tf.float32)])
    def function(x):
        return {"small": tf.image.resize(x, (5, 5), method="area"), "same": x * 2.0}

    with pytest.raises(VerificationError, match="output 'small' differs by") as caught:
        load_source(function, islands=False)
    assert "'same'" not in str(caught.value)


def test_saved_model_with_an_int64_table_names_the_op(tf, keras, tmp_path):
    layer = keras.layers.IntegerLookup(vocabulary=[3, 5, 9])
    x = keras.Input((1,), dtype="int64", name="code")
    model = keras.Model(x, layer(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.export(str(tmp_path / "m"), verbose=False)
    with pytest.raises(ExportError, match="LookupTable"):
        load_source(tmp_path / "m")
