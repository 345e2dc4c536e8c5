"""The source in TensorFlow 2 beside its conversion."""

import os
import warnings

import numpy as np
import pytest

from rewriter.errors import InputError, InvalidParameterError, SourceError
from rewriter.polygraphy_runners.conversion import ConvertModel
from rewriter.polygraphy_runners.saved_model import open_tensorflow

pytestmark = [pytest.mark.tensorflow, pytest.mark.usefixtures("polygraphy")]
X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)
IDS = np.array([1, 2, 3], np.int32)


@pytest.fixture(scope="module")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def saved(tf, tmp_path_factory):
    weights = np.random.default_rng(1).standard_normal((8, 5)).astype(np.float32)

    class Scorer(tf.Module):
        def __init__(self):
            self.weights = tf.Variable(weights)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 8], tf.float32, name="x"),
                tf.TensorSpec([None], tf.int32, name="ids"),
            ]
        )
        def serve(self, x, ids):
            scores = tf.nn.softmax(tf.matmul(x, self.weights)) * tf.cast(ids, tf.float32)[:, None]
            return {"scores": scores, "best": tf.argmax(scores, -1)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="texts")])
        def lower(self, texts):
            length = tf.cast(tf.strings.length(texts), tf.float32)
            return {"lower": tf.strings.lower(texts), "length": tf.nn.softmax(tf.tanh(length * 0.5) + 1.0)}

    path = tmp_path_factory.mktemp("saved") / "scorer"
    module = Scorer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve, "lower": module.lower})
    return str(path)


def test_the_command_compares_tensorflow_with_the_conversion(command, saved, tmp_path):
    data = tmp_path / "data.py"
    data.write_text(
        "import numpy as np\n"
        "def load_data():\n"
        "    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)\n"
        "    yield {'x': x, 'ids': np.array([1, 2, 3], np.int32)}\n"
    )
    runners = (
        "--trt-rewriter-tf",
        "--trt-rewriter",
        "--trt-rewriter-precision",
        "FP16",
        "--trt-rewriter-backend",
        "none",
    )
    inputs = ("--data-loader-script", data)
    status, text = command(saved, *runners, *inputs, "--atol", "1e-2")
    assert status == 0, text
    assert "Outputs: ['best', 'scores']" in text
    status, text = command(saved, *runners, *inputs, "--atol", "best:0", "scores:1e-9", "--rtol", "0")
    assert status == 1
    assert "Mismatched outputs: ['scores']" in text


def test_the_command_takes_a_signature_of_strings(command, saved, tmp_path):
    data = tmp_path / "data.py"
    data.write_text("import numpy as np\ndef load_data():\n    yield {'texts': np.array(['Ab', ''], dtype=object)}\n")
    runners = ("--trt-rewriter-tf", "--trt-rewriter", "--trt-rewriter-backend", "none")
    status, text = command(saved, *runners, "--trt-rewriter-signature", "lower", "--data-loader-script", data)
    assert status == 0, text
    assert "lower [dtype=uint8, shape=(2, 2)]" in text


def test_the_runner_from_python(tf, saved):
    from polygraphy.comparator import Comparator

    from rewriter.polygraphy_runners import SavedModelRunner, TrtRewriterRunner

    runners = [SavedModelRunner(saved), TrtRewriterRunner(ConvertModel(saved, backend="none", execution="native"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = Comparator.run(runners, data_loader=[{"x": X, "ids": IDS}, {"x": X[:1], "ids": IDS[:1]}])
    source, native = (results[runner.name] for runner in runners)
    assert runners[0].name.startswith("trt-rewriter-tf-N")
    for mine, theirs in zip(native, source, strict=True):
        assert np.allclose(mine["scores"], theirs["scores"], atol=1e-5)
        assert np.array_equal(mine["best"], theirs["best"])
        assert theirs.runtime > 0


def test_a_graph_is_traced_once_for_each_shape(tf, saved):
    model = open_tensorflow(saved)
    assert [(spec.name, spec.shape) for spec in model.specs] == [("ids", (None,)), ("x", (None, 8))]
    for rows in (3, 3, 2, 3):
        outputs, seconds = model.run({"x": X[:rows], "ids": IDS[:rows]})
        assert outputs["scores"].shape == (rows, 5)
        assert seconds > 0
    assert len(model._traced) == 2


def test_what_tensorflow_refuses_is_one_line(tf, saved):
    model = open_tensorflow(saved)
    with pytest.raises(InputError, match="TensorFlow"):
        model.run({"x": X, "ids": IDS[:2]})
    with pytest.raises(InputError, match="shape"):
        model.run({"x": X[:, :3], "ids": IDS})


def test_keras_files_are_sources_too(tf, tmp_path):
    import keras

    path = tmp_path / "net.keras"
    network = keras.Sequential([keras.Input((8,), name="x"), keras.layers.Dense(4)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.save(path)
    model = open_tensorflow(path)
    (found,) = model.run({model.specs[0].name: X})[0].values()
    assert np.allclose(found, network(X).numpy(), atol=1e-6)


def test_arguments_that_do_not_go_with_the_source(tf, saved, tmp_path, model):
    with pytest.raises(SourceError, match="there is no model"):
        open_tensorflow(tmp_path / "nothing")
    with pytest.raises(SourceError, match="no model of TensorFlow"):
        open_tensorflow(model)
    with pytest.raises(InvalidParameterError, match="name a part of a SavedModel"):
        open_tensorflow(model, signature="serving_default")
    with pytest.raises(InvalidParameterError):
        open_tensorflow(saved, inputs=["x:0"])
    with pytest.raises(Exception, match="other"):
        open_tensorflow(saved, "other")
