"""bfloat16 models, and ragged and sparse signatures."""

import numpy as np
import pytest
from onnx import TensorProto

from rewriter.errors import SourceError, VerificationError
from rewriter.frontend import load_source

pytestmark = pytest.mark.tensorflow
FLOAT = TensorProto.FLOAT
NOTE = "the model computes in bfloat16: its export, its native run and its inputs and outputs are float32"


@pytest.fixture
def mixed(keras):
    """A Keras 3 model that computes in bfloat16 and returns float32 (logits) and bfloat16 (pooled)."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    keras.utils.set_random_seed(3)
    try:
        image = keras.Input((8, 8, 3), name="image")
        x = keras.layers.Conv2D(8, 3, activation="relu")(image)
        pooled = keras.layers.GlobalAveragePooling2D()(x)
        yield keras.Model(image, {"logits": keras.layers.Dense(4, dtype="float32")(pooled), "pooled": pooled})
    finally:
        keras.mixed_precision.set_global_policy(before)


@pytest.mark.parametrize("saved", [False, True])
def test_mixed_bfloat16(mixed, saved, tmp_path, run):
    model = mixed
    if saved:
        mixed.export(str(tmp_path / "m"), verbose=False)
        model = tmp_path / "m"
    source = load_source(model)
    assert {(s.name, s.dtype) for s in source.signature.outputs} == {("logits", FLOAT), ("pooled", FLOAT)}
    assert 1e-5 < source.verification.worst < 1e-2  # held against TensorFlow in bfloat16, with its own tolerance
    assert [note.split(";")[0] for note in source.notes] == [NOTE]
    assert "precision_mode='BF16'" in source.notes[0]
    assert all(tensor.data_type == FLOAT for tensor in source.model.proto.graph.initializer if len(tensor.dims) == 4)
    image = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    wanted = np.asarray(mixed(image, training=False)["logits"], np.float32)
    np.testing.assert_allclose(run(source, image=image)["logits"], wanted, rtol=0.02, atol=0.01)


def test_the_tolerance_of_bfloat16_can_be_narrowed(mixed):
    with pytest.raises(VerificationError, match="allowed 1e-06"):
        load_source(mixed, tolerance=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bfloat16_inputs_and_outputs_are_float32(tf, dtype, run):
    weight = tf.ones([4, 4], tf.bfloat16)
    function = tf.function(lambda x: x @ weight, input_signature=[tf.TensorSpec([None, 4], tf.bfloat16, name="x")])
    sample = np.ones((2, 4), tf.bfloat16.as_numpy_dtype if dtype == "bfloat16" else np.float32)
    source = load_source(function, samples=[sample])
    assert [s.dtype for s in (*source.signature.inputs, *source.signature.outputs)] == [FLOAT, FLOAT]
    assert source.samples[0]["x"].dtype == np.float32
    assert source.verification.worst == 0.0
    assert run(source, x=np.ones((1, 4), np.float32))["output_0"].tolist() == [[4.0] * 4]


def test_models_without_bfloat16_have_no_such_note(tf):
    function = tf.function(lambda x: x * 2.0, input_signature=[tf.TensorSpec([2], tf.float16)])
    assert load_source(function).notes == ()


@pytest.mark.rtx
def test_mixed_bfloat16_through_the_converter(mixed, rtx):
    from rewriter import Converter

    with Converter(model=mixed, precision_mode="BF16", backend="tensorrt_rtx") as converter:
        image = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
        found = converter.convert()(image)
        wanted = np.asarray(mixed(image, training=False)["logits"], np.float32)
        np.testing.assert_allclose(found["logits"], wanted, rtol=0.02, atol=0.01)
        assert any(NOTE in note for note in converter.report.precision.notes)
        assert [engine.precision for engine in converter.report.engines] == ["BF16"]


def test_ragged_and_sparse_arguments(tf, tf_keras):
    ragged, sparse = tf.RaggedTensorSpec([None, None], tf.float32), tf.SparseTensorSpec([None, 3], tf.float32)
    for spec, call, kind in [
        (ragged, lambda x: x.to_tensor(), "RaggedTensor"),
        (sparse, tf.sparse.to_dense, "SparseTensor"),
    ]:
        function = tf.function(call, input_signature=[spec])
        for source in (function, function.get_concrete_function()):
            with pytest.raises(SourceError, match=rf"takes a {kind} input, which ONNX has no word for: wrap it in"):
                load_source(source)
    for options, kind in [({"ragged": True}, "RaggedTensor"), ({"sparse": True}, "SparseTensor")]:
        rows = tf_keras.Input((None,) if kind == "RaggedTensor" else (3,), name="rows", **options)
        model = tf_keras.Model(rows, tf_keras.layers.Lambda(lambda t: t * 2.0)(rows))
        with pytest.raises(SourceError, match=f"tf-keras model .* takes a {kind} input"):
            load_source(model)


def test_ragged_and_sparse_results(tf):
    spec = [tf.TensorSpec([2, 3], tf.float32)]

    def results(call):
        return lambda x: {"rows": call(x)}

    for call, kind in [(tf.RaggedTensor.from_tensor, "RaggedTensor"), (tf.sparse.from_dense, "SparseTensor")]:
        with pytest.raises(SourceError, match=rf"returns a {kind} in 'rows': return its dense components instead"):
            load_source(tf.function(results(call), input_signature=spec))


def test_ragged_signature_of_a_saved_model_takes_the_components(tf, tmp_path):
    """TensorFlow itself flattens them into dense inputs when it saves; made-up row splits are none, so give samples."""
    module = tf.Module()
    spec = [tf.RaggedTensorSpec([None, None], tf.float32)]
    module.pad = tf.function(lambda rows: {"dense": rows.to_tensor()}, input_signature=spec)
    tf.saved_model.save(module, str(tmp_path), {"serving_default": module.pad})
    sample = {"rows": np.arange(3, dtype=np.float32), "rows_1": np.array([0, 1, 3], np.int64)}
    source = load_source(tmp_path, samples=[sample])
    assert [s.name for s in source.signature.inputs] == ["rows", "rows_1"]
    assert source.verification.worst == 0.0


def test_a_sparse_keras_3_input_takes_dense_arrays_and_says_so(keras):
    row = keras.Input((3,), sparse=True, name="row")
    source = load_source(keras.Model(row, keras.layers.Dense(2)(row)))
    assert source.notes == ("input 'row' was declared sparse: dense arrays are taken in its place",)
