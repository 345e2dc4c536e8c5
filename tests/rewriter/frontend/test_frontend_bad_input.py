"""Bad input: one clear line each, of the right class."""

import sys
import zipfile

import numpy as np
import pytest

from rewriter.errors import ExportError, InputError, MissingDependencyError, SourceError
from rewriter.frontend import load_source


def refuse(source, match, error=SourceError, **options):
    with pytest.raises(error, match=match) as caught:
        load_source(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_such_path(tmp_path):
    refuse(tmp_path / "nothing", "no such file or directory: .*nothing")
    refuse(str(tmp_path / "nothing.onnx"), "no such file or directory")


def test_directories_that_are_no_saved_model(tmp_path):
    refuse(
        tmp_path, "is no SavedModel: a SavedModel is a directory with saved_model.pb and variables/, but it is empty"
    )
    (tmp_path / "net.onnx").write_bytes(b"")
    refuse(tmp_path, r"for the file, pass '.*net.onnx'")
    (tmp_path / "net.onnx").unlink()
    (tmp_path / "keras_metadata.pb").write_bytes(b"")
    refuse(tmp_path, "keras_metadata.pb is left of")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"")
    refuse(tmp_path, r"the SavedModel lies deeper, pass '.*1'")
    refuse(tmp_path / "1" / "saved_model.pb", "is a part of a SavedModel: pass its directory")


def test_files_of_other_kinds(tmp_path):
    for name, match in [
        ("graph.pb", "frozen GraphDef"),
        ("model.tflite", "of no known kind"),
        ("x.pth", "no known kind"),
    ]:
        (tmp_path / name).write_bytes(b"x")
        refuse(tmp_path / name, match)


@pytest.mark.parametrize("thing", [object(), 3, np.zeros(3), {"a": 1}, lambda x: x])
def test_objects_of_other_kinds(thing):
    refuse(thing, "cannot be converted: pass a SavedModel directory, a .keras")


@pytest.mark.tensorflow
def test_wrong_tags_and_signatures(cnn_saved):
    refuse(cnn_saved, "has no tag set 'train'; it has: serve", tags="train")
    refuse(cnn_saved, "has no tag set 'serve,gpu'", tags=["serve", "gpu"])
    refuse(
        cnn_saved, r"no signature 'predict'; it has: .*serving_default\(image -> emb, logits\)", signature_key="predict"
    )


@pytest.mark.tensorflow
def test_several_signatures_and_none_of_them_the_default(tf, tmp_path):
    module = tf.Module()
    spec = [tf.TensorSpec([2], tf.float32, name="x")]
    module.one, module.two = (tf.function(lambda x, k=k: {"y": x + k}, input_signature=spec) for k in (1.0, 2.0))
    tf.saved_model.save(module, str(tmp_path / "two"), {"one": module.one, "two": module.two})
    refuse(tmp_path / "two", r"has several signatures, name one: one\(x -> y\); two\(x -> y\)")
    tf.saved_model.save(tf.Module(), str(tmp_path / "none"))
    refuse(tmp_path / "none", "has no signature: save it with")


@pytest.mark.tensorflow
@pytest.mark.parametrize("content", [b"\xff\xff garbage", b""])
def test_damaged_saved_model(tf, tmp_path, content):
    (tmp_path / "saved_model.pb").write_bytes(content)
    refuse(tmp_path, "is damaged")


@pytest.mark.tensorflow
def test_saved_model_without_its_variables(cnn_saved, tmp_path):
    (tmp_path / "saved_model.pb").write_bytes((cnn_saved / "saved_model.pb").read_bytes())
    refuse(tmp_path, "TensorFlow cannot load the SavedModel")


@pytest.mark.tensorflow
def test_old_tftrt_saved_model(tf, tmp_path):
    module = tf.Module()
    module.f = tf.function(lambda x: x + 1.0, input_signature=[tf.TensorSpec([2], tf.float32)])
    tf.saved_model.save(module, str(tmp_path), {"serving_default": module.f})
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((tmp_path / "saved_model.pb").read_bytes())
    for function in proto.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            if node.op == "AddV2":
                node.op = "TRTEngineOp"
    (tmp_path / "saved_model.pb").write_bytes(proto.SerializeToString())
    refuse(tmp_path, "was converted by the old TF-TRT")


@pytest.mark.tensorflow
def test_damaged_keras_files(keras, tf_keras, tmp_path):
    (tmp_path / "a.keras").write_bytes(b"not a zip")
    refuse(tmp_path / "a.keras", "no Keras can read .*keras: .*tf_keras: ")
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
    refuse(tmp_path / "b.keras", "no Keras can read")
    (tmp_path / "c.h5").write_bytes(b"\x89HDF\r\n\x1a\n broken")
    refuse(tmp_path / "c.h5", "no Keras can read")


@pytest.mark.tensorflow
def test_custom_objects_are_explained_in_the_words_of_keras(keras, tmp_path):
    class Odd(keras.layers.Layer):
        def call(self, x):
            return x * 3.0

    x = keras.Input((2,))
    keras.Model(x, Odd()(x)).save(tmp_path / "odd.keras")
    assert "Odd" in refuse(tmp_path / "odd.keras", "custom_objects")


@pytest.mark.tensorflow
def test_functions_without_a_signature(tf):
    refuse(tf.function(lambda x: x), "has no input_signature and 0 traces: give it an input_signature, pass samples")


@pytest.mark.tensorflow
def test_models_that_were_never_called(keras):
    class Sub(keras.Model):
        def call(self, x):
            return x

    refuse(Sub(), "has never been called")


@pytest.mark.tensorflow
def test_composite_inputs_and_outputs(tf):
    ragged = tf.RaggedTensorSpec([None, None], tf.float32)
    refuse(tf.function(lambda x: x.values, input_signature=[ragged]), "takes a RaggedTensor input")
    spec = tf.TensorSpec([2], tf.float32)
    refuse(tf.function(tf.sparse.from_dense, input_signature=[spec]), "returns a SparseTensor in 'output_0'")
    refuse(tf.function(lambda x: None, input_signature=[spec]), "returns no tensor")


@pytest.mark.tensorflow
def test_samples_that_do_not_fit(tf):
    function = tf.function(
        lambda x, y: x @ y, input_signature=[tf.TensorSpec([None, 2], tf.float32, name=n) for n in "xy"]
    )
    good = np.zeros((2, 2), np.float32)
    refuse(function, r"names the inputs \['x'\], the signature has \['x', 'y'\]", InputError, samples=[{"x": good}])
    refuse(function, "has 1 inputs, the signature has 2", InputError, samples=[good])
    refuse(
        function, r"'y' has shape \[2, 3\], not \[None, 2\]", InputError, samples=[(good, np.zeros((2, 3), np.float32))]
    )
    refuse(
        function, "'x' is complex128, the signature wants float32", InputError, samples=[(good.astype(complex), good)]
    )
    refuse(function, "TensorFlow refused a given sample", InputError, samples=[(good, np.zeros((3, 2), np.float32))])


@pytest.mark.tensorflow
def test_models_that_no_made_up_sample_fits(tf):
    @tf.function(input_signature=[tf.TensorSpec([None, 1717], tf.float32), tf.TensorSpec([None, None], tf.float32)])
    def function(x, y):
        return x @ tf.ensure_shape(y, [1717, 3])

    refuse(function, r"no made-up sample input fits .*: pass samples=\[\{input name: array\}\]")


@pytest.mark.tensorflow
def test_quantization_ranges_that_are_computed_at_run_time(tf):
    @tf.function(input_signature=[tf.TensorSpec([4], tf.float32)])
    def function(x):
        return tf.quantization.fake_quant_with_min_max_vars(x, tf.reduce_min(x), tf.reduce_max(x))

    refuse(function, "FakeQuantWithMinMaxVars", ExportError)


def test_tensorflow_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    refuse(
        tmp_path,
        r"converting a TensorFlow model needs TensorFlow: pip install 'trt-rewriter\[tf\]'",
        MissingDependencyError,
    )
