"""Whole models with a part that stays in TensorFlow, against TensorFlow on values that conversion has not seen."""

import warnings
from collections import Counter

import numpy as np
import pytest

from passes.island_node import ISLAND_DOMAIN, ISLAND_DOMAIN_VERSION, is_island
from rewriter.errors import ExportError
from rewriter.frontend import load_source
from tests.rewriter.frontend.islands import island_models

pytestmark = pytest.mark.tensorflow


def jpegs(tf, count):
    random = np.random.default_rng(count)
    images = [random.integers(0, 255, (20 + i, 30, 3)).astype(np.uint8) for i in range(count)]
    return np.array([tf.io.encode_jpeg(image).numpy() for image in images], dtype=object)


def audio(count):
    return np.random.default_rng(3).normal(size=(count, 2048)).astype(np.float32)


#: Model -> (inputs to compare on, operators that have to be in its islands, one set per island).
MODELS = {
    "classifier": (lambda tf: {"text": island_models.TEXTS}, [{"StaticRegexReplace", "LookupTableFindV2"}]),
    "sandwich": (lambda tf: {"x": audio(5)[:, :6]}, [{"MatrixInverse"}]),
    "two_in_sequence": (lambda tf: {"text": island_models.TEXTS}, [{"Substr"}, {"StringJoin", "LookupTableFindV2"}]),
    "parallel": (lambda tf: {"x": audio(4)[:, :8], "text": island_models.TEXTS}, [{"StringLength"}]),
    "spectrum": (lambda tf: {"audio": audio(3)}, [{"RFFT", "Real", "Imag"}]),
    "area": (lambda tf: {"image": np.abs(audio(3)).reshape(1, 64, 32, 3)}, [{"ResizeArea"}]),
    "jpeg": (lambda tf: {"encoded": jpegs(tf, 5)}, [{"StatelessWhile"}]),
    "branches": (lambda tf: {"text": island_models.TEXTS[:2]}, [{"StatelessIf", "While"}]),
    "checked": (lambda tf: {"text": island_models.TEXTS}, [{"StringStrip"}]),
}
SAMPLES = {"jpeg": lambda tf: [{"encoded": jpegs(tf, 2)}]}


def names_of(attributes):
    return {op.partition(" x")[0] for op in attributes.ops}


def equal(got, want):
    assert got.shape == want.shape
    if want.dtype.kind == "O":
        assert [str(v) for v in got.ravel()] == [v.decode() for v in want.ravel()]
    else:
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_what_tensorflow_computes(tf, name, run, islands):
    inputs, expected = MODELS[name][0](tf), MODELS[name][1]
    module = getattr(island_models, name)(tf)
    source = load_source(module.call, samples=SAMPLES[name](tf) if name in SAMPLES else None)

    found = islands(source)
    assert all(wanted <= names_of(attributes) for wanted, (_, attributes) in zip(expected, found, strict=True))
    assert [node.op_type for node, _ in found] == [f"TFIsland_{i:03d}" for i in range(len(found))]
    assert (ISLAND_DOMAIN, ISLAND_DOMAIN_VERSION) in {(o.domain, o.version) for o in source.model.proto.opset_import}
    assert len([note for note in source.notes if "stays in TensorFlow" in note]) == len(found)
    assert source.verification is not None
    reference = module.call(**{key: tf.constant(value) for key, value in inputs.items()})
    results = run(source, **inputs)
    for key, value in reference.items():
        equal(results[key], value.numpy())


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_around_islands_is_in_order_and_described(tf, name):
    module = getattr(island_models, name)(tf)
    source = load_source(module.call, verify=False, samples=SAMPLES[name](tf) if name in SAMPLES else None)
    graph = source.model.proto.graph
    made = {value.name for value in (*graph.input, *graph.initializer)}
    for node in graph.node:
        assert made.issuperset(filter(None, node.input)), node.name
        made.update(node.output)
    described = {v.name: v.type.tensor_type for v in (*graph.value_info, *graph.output)}
    for node in filter(is_island, graph.node):
        for value in node.output:
            assert described[value].elem_type
            assert all(d.HasField("dim_value") or d.dim_param for d in described[value].shape.dim)
    assert [value.name for value in graph.input] == [spec.tensor for spec in source.signature.inputs]
    assert [value.name for value in graph.output] == [spec.tensor for spec in source.signature.outputs]


def test_dimensions_between_islands_have_the_names_of_inputs_where_they_are_equal(tf):
    module = island_models.classifier(tf)
    source = load_source(module.call)
    shapes = [
        tuple(d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim)
        for v in source.model.proto.graph.value_info
    ]
    assert all(shape[0] == "batch" for shape in shapes)
    assert source.signature.outputs[0].shape == ("batch", 4)


def test_a_dimension_that_only_made_up_strings_make_equal_keeps_its_own_name(tf):
    # Every made-up string is the same word, so there are as many words as strings.
    dense = tf.constant(island_models.weights(8, 3))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def words(text):
        bucket = tf.strings.to_hash_bucket_fast(tf.strings.split(text).values, 8)
        return {"y": tf.nn.relu(tf.one_hot(bucket, 8) @ dense)}

    source = load_source(words)
    (value,) = source.model.proto.graph.value_info
    assert value.type.tensor_type.shape.dim[0].dim_param == "TFIsland_000_0_dim0"


def test_a_complex_output_comes_from_the_island(tf, run):
    module = island_models.spectrum(tf, complex_output=True)
    source = load_source(module.call, verify=False)
    spec = next(spec for spec in source.signature.outputs if spec.name == "frames")
    assert source.signature.outputs[0].shape[0] == "batch"
    results, reference = run(source, audio=audio(2)), module.call(tf.constant(audio(2)))
    np.testing.assert_allclose(results[spec.name], reference["frames"].numpy(), rtol=1e-5, atol=1e-5)


def exported(tf, keras, build):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras.utils.set_random_seed(3)
        return build(keras.layers, keras.Input)


def text_vectorization(layers, tensor):
    x = tensor((1,), dtype="string", name="text")
    ids = layers.TextVectorization(output_sequence_length=6, vocabulary=["cat", "dog", "naïve"])(x)
    return x, layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.Embedding(10, 4)(ids)))


def integer_lookup(layers, tensor):
    x = tensor((4,), dtype="int64", name="code")
    ids = layers.IntegerLookup(vocabulary=[3, 5, 9])(x)
    return x, layers.Dense(3)(layers.Flatten()(layers.Embedding(10, 4)(ids)))


def mel_spectrogram(layers, tensor):
    x = tensor((4000,), name="audio")
    mel = layers.MelSpectrogram(fft_length=256, sequence_stride=128, num_mel_bins=16)(x)
    return x, layers.Dense(3)(layers.Flatten()(mel))


KERAS = {
    text_vectorization: (np.array([["The cat!"], ["a na\u00efve dog, dog"], [""]], dtype=object), "StringSplitV2"),
    integer_lookup: (np.array([[3, 5, 9, 77], [0, 9, -4, 3]]), "LookupTableFindV2"),
    mel_spectrogram: (np.random.default_rng(1).normal(size=(2, 4000)).astype(np.float32), "RFFT"),
}


@pytest.mark.parametrize("build", KERAS, ids=lambda build: build.__name__)
def test_keras_layers(tf, keras, build, run, islands):
    inputs, op = KERAS[build]
    x, y = exported(tf, keras, build)
    model = keras.Model(x, y)
    source = load_source(model)
    (only,) = islands(source)
    assert op in names_of(only[1])
    (spec,) = source.signature.outputs
    reference = model(tf.constant(inputs)).numpy()
    np.testing.assert_allclose(run(source, **{x.name: inputs})[spec.name], reference, rtol=1e-4, atol=1e-5)


def erfinv(layers, tensor):
    from keras import ops

    x = tensor((16,), name="x")
    return x, layers.Dense(3)(ops.erfinv(ops.tanh(layers.Dense(4)(x))))


def bicubic(layers, tensor):
    x = tensor((None, None, 3), name="x")
    return x, layers.Conv2D(2, 3)(layers.Resizing(6, 6, interpolation="bicubic")(x))


@pytest.mark.parametrize("build", [erfinv, bicubic, mel_spectrogram], ids=lambda build: build.__name__)
def test_saved_models_of_keras(tf, keras, build, run, islands, tmp_path):
    # Keras 3 lets the reads of its variables wait for the inputs.
    x, y = exported(tf, keras, build)
    model = keras.Model(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.export(str(tmp_path / "saved"), verbose=False)
    source = load_source(tmp_path / "saved")
    assert len(islands(source)) == 1
    shape = {"erfinv": (3, 16), "bicubic": (2, 9, 8, 3), "mel_spectrogram": (2, 4000)}[build.__name__]
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    (given,), (spec,) = source.signature.inputs, source.signature.outputs
    result = run(source, **{given.name: values})[spec.name]
    np.testing.assert_allclose(result, model(tf.constant(values)).numpy(), rtol=1e-4, atol=1e-5)


def test_what_exports_without_islands_has_none(tf):
    names = island_models.table(tf, tf.range(3, dtype=tf.int64), ["a", "b", "c"], "?")
    numbers = island_models.table(tf, ["a", "b", "c"], tf.range(3, dtype=tf.int64), -1)

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.string, name="text")])
    def strings(text):
        moved = tf.tile(tf.transpose(tf.reshape(text, [-1, 2])), [1, 2])
        return {"moved": moved, "back": names.lookup(numbers.lookup(text)), "power": tf.abs(tf.signal.rfft(tf.ones(8)))}

    source = load_source(strings)
    assert not [node for node in source.model.proto.graph.node if is_island(node)]
    assert source.notes == ()


def test_the_number_of_nodes_in_an_island_is_told_once(tf, islands):
    module = island_models.two_in_sequence(tf)
    source = load_source(module.call)
    counts = Counter(op for _, attributes in islands(source) for op in attributes.ops)
    assert set(counts.values()) == {1}
    assert source.notes[0].startswith("TFIsland_000 stays in TensorFlow: 2 nodes (StringToHashBucketFast, Substr). ")


@pytest.mark.parametrize("count", ["different", "words"])
def test_what_strings_hold_is_no_batch(tf, count):
    dense = tf.constant(island_models.weights(8, 3))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def function(text):
        lower = tf.strings.lower(text)
        kept = tf.unique(lower)[0] if count == "different" else tf.strings.split(lower).values
        return {"y": tf.nn.relu(tf.one_hot(tf.strings.to_hash_bucket_fast(kept, 8), 8) @ dense)}

    source = load_source(function, samples=[{"text": np.array(["a", "b"], object)}])
    assert source.signature.outputs[0].shape == ("y_dim0", 3)
    (value,) = source.model.proto.graph.value_info
    assert value.type.tensor_type.shape.dim[0].dim_param == "TFIsland_000_0_dim0"


def parsed(tf, *shape):
    return np.array(tf.io.serialize_tensor(island_models.weights(*shape)).numpy(), object)


def test_a_tensor_of_any_rank_may_cross(tf, run, islands):
    dense = tf.constant(island_models.weights(16, 3))

    @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="data")])
    def function(data):
        return {"y": tf.reshape(tf.nn.relu(tf.io.parse_tensor(data, tf.float32)), [-1, 16]) @ dense}

    source = load_source(function, samples=[{"data": parsed(tf, 2, 16)}, {"data": parsed(tf, 16)}])
    assert len(islands(source)) == 1
    for shape in ((3, 16), (16,), (2, 2, 8)):
        data = parsed(tf, *shape)
        np.testing.assert_allclose(run(source, data=data)["y"], function(tf.constant(data))["y"].numpy(), rtol=2e-5)


def test_products_of_matrices_of_unknown_rank_stay(tf, run, islands):
    @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="data")])
    def function(data):
        values = tf.io.parse_tensor(data, tf.float32)
        product = tf.reshape(tf.matmul(values, values, transpose_b=True), [-1, 2])
        return {"y": tf.nn.relu(product @ tf.constant(island_models.weights(2, 3)))}

    source = load_source(function, samples=[{"data": parsed(tf, 2, 16)}, {"data": parsed(tf, 3, 2, 8)}])
    ((_, attributes),) = islands(source)
    assert "BatchMatMulV2" in attributes.ops
    data = parsed(tf, 4, 2, 4)
    np.testing.assert_allclose(run(source, data=data)["y"], function(tf.constant(data))["y"].numpy(), rtol=2e-5)


def test_an_output_of_several_ranks_is_refused(tf, tmp_path):
    dense = tf.constant(island_models.weights(16, 3))

    @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="data")])
    def function(data):
        values = tf.io.parse_tensor(data, tf.float32)
        return {"t": values * 2.0, "y": tf.reshape(tf.nn.relu(values), [-1, 16]) @ dense}

    with pytest.raises(ExportError, match=r"the output 't' of .* has 1 and 2 dimensions, .*reshape it in the model"):
        load_source(function, samples=[{"data": parsed(tf, 2, 16)}, {"data": parsed(tf, 16)}], island_folder=tmp_path)
    assert not list(tmp_path.iterdir())
