"""Bad input: one clear line each, of the right class."""

import shutil
import sys
import zipfile

import numpy as np
import pytest

from rewriter.errors import ExportError, InputError, InvalidParameterError, MissingDependencyError, SourceError
from rewriter.frontend import callee, load_source
from rewriter.frontend.keras import check_container


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
    (tmp_path / "other.onnx").write_bytes(b"")
    assert refuse(tmp_path, "is no SavedModel").endswith("but it holds net.onnx, other.onnx")
    (tmp_path / "other.onnx").unlink()
    (tmp_path / "net.onnx").unlink()
    (tmp_path / "keras_metadata.pb").write_bytes(b"")
    refuse(tmp_path, "keras_metadata.pb is left of")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"")
    refuse(tmp_path, r"the SavedModel lies deeper, pass '.*1'")
    refuse(tmp_path / "1" / "saved_model.pb", "is a part of a SavedModel: pass its directory")


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("", "^the source is an empty path$"),
        ("a\0b", r"^the source 'a\\x00b' cannot be read: .*embedded null"),
        ("n" * 300, r"^the source 'n{100}\.\.\.' cannot be read: File name too long$"),
    ],
)
def test_what_can_be_no_path(path, match):
    refuse(path, match)
    refuse(path, match, tags="serve")


def test_tags_and_signature_keys_of_what_is_no_saved_model(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"")
    for options in ({"tags": "serve"}, {"signature_key": "serving_default"}):
        refuse(
            tmp_path / "net.onnx",
            r"^tags \(--tags\) and signature_key \(--signature\) name a part of a SavedModel, and the source is none$",
            InvalidParameterError,
            **options,
        )


def test_files_of_other_kinds(tmp_path):
    for name, match in [
        ("model.ckpt", "no known kind"),
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
    refuse(tmp_path, r"the variables of the SavedModel in .* are damaged or missing \(variables/variables\.\*; ")


@pytest.mark.tensorflow
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "remove"])
@pytest.mark.parametrize("name", ["variables.data-00000-of-00001", "variables.index"])
def test_saved_model_with_damaged_variables(cnn_saved, tmp_path, name, damage):
    shutil.copytree(cnn_saved, tmp_path / "copy")
    path = tmp_path / "copy" / "variables" / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "flip":
        path.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    else:
        path.write_bytes(data[:50] if damage == "cut" else b"")
    said = refuse(tmp_path / "copy", r"the variables of the SavedModel in .*copy are damaged or missing")
    assert said.endswith("copy or export it again")
    assert "{{" not in said
    assert "[Op:" not in said


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
    refuse(tmp_path, r"TRTEngineOp \w+ in function \S+ of the SavedModel in .* has lost its native segment")


@pytest.mark.tensorflow
def test_damaged_keras_files(keras, tf_keras, tmp_path):
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
    refuse(tmp_path / "b.keras", "no Keras can read .*keras: .*tf_keras: ")
    (tmp_path / "c.h5").write_bytes(b"\x89HDF\r\n\x1a\n broken")
    refuse(tmp_path / "c.h5", "no Keras can read")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.keras", b"not a zip", r"a\.keras is damaged: not a zip archive \(a \.keras file is one\); copy or save it"),
        ("a.keras", b"", "damaged: not a zip archive"),
        ("a.keras", "cut", "damaged: not a zip archive"),
        ("a.h5", b"", r"a\.h5 is damaged: not an HDF5 file \(a \.h5 file is one\); copy or save it again"),
        ("a.hdf5", b"\x89HDF\r\n\x1a", r"damaged: not an HDF5 file \(a \.hdf5 file is one\)"),
        ("a.h5", "zip", r"not an HDF5 file \(a \.h5 file is one\); it is a zip archive, so name it \.keras"),
    ],
)
def test_keras_files_that_are_damaged_on_the_outside(tmp_path, name, content, match, monkeypatch):
    """Told without TensorFlow."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    path = tmp_path / name
    if isinstance(content, str):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", "{}" * 100)
        content = path.read_bytes()[: -30 if content == "cut" else None]
    path.write_bytes(content)
    refuse(path, match)


@pytest.mark.parametrize("offset", [0, 512, 1024, 4096])
@pytest.mark.parametrize("name", ["a.h5", "a.keras"])
def test_hdf5_is_known_by_its_signature(tmp_path, name, offset):
    path = tmp_path / name
    path.write_bytes(bytes(offset) + b"\x89HDF\r\n\x1a\n rest")
    check_container(path)
    path.write_bytes(bytes(offset + 1) + b"\x89HDF\r\n\x1a\n rest")
    with pytest.raises(SourceError, match="is damaged"):
        check_container(path)


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

    refuse(function, "FakeQuantWithMinMaxVars", ExportError, islands=False)


def test_tensorflow_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    refuse(
        tmp_path,
        r"converting a TensorFlow model needs TensorFlow: pip install 'trt-rewriter\[tf\]'",
        MissingDependencyError,
    )


def broken(error, module):
    """`importlib.import_module`, except that one module cannot be loaded."""

    def load(name):
        if name == module:
            raise error
        return sys.modules.get(name)

    return load


@pytest.mark.parametrize(("module", "package"), [("tensorflow", "TensorFlow"), ("tf2onnx", "tf2onnx")])
def test_a_broken_tensorflow_is_no_missing_one(tmp_path, monkeypatch, module, package):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    error = ImportError("libstdc++.so.6: version `GLIBCXX_3.4.29' not found\nmore")
    monkeypatch.setattr(callee.importlib, "import_module", broken(error, module))
    said = refuse(tmp_path, f"needs {package}, which is installed but cannot be loaded: ", MissingDependencyError)
    assert said.endswith(": libstdc++.so.6: version `GLIBCXX_3.4.29' not found")
    assert "pip install" not in said


@pytest.mark.tensorflow
def test_a_keras_that_cannot_be_loaded_is_told(tf, cnn, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
    error = ImportError("libkeras.so: cannot open shared object file")
    monkeypatch.setattr(callee.importlib, "import_module", broken(error, "keras"))
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    refuse(
        tmp_path / "a.keras",
        "keras: reading a Keras model needs Keras, which is installed but cannot be loaded: libkeras.so: cannot open",
    )
