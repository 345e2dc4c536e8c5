"""Several signatures of a SavedModel in one conversion and one artifact."""

import numpy as np
import pytest

from rewriter import Converter, InputError, InvalidParameterError, load
from rewriter.by_signature import by_signature, check_keys
from rewriter.cli import main

pytestmark = [pytest.mark.tensorflow, pytest.mark.rtx]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two heads of one body: "serving_default" classifies, "embed" gives the body's result."""
    import tensorflow as tf

    class Heads(tf.Module):
        def __init__(self):
            self.body = tf.Variable(RNG.standard_normal((16, 64), np.float32))
            self.head = tf.Variable(RNG.standard_normal((64, 4), np.float32))

        @tf.function(input_signature=[tf.TensorSpec([None, 16], tf.float32, "x")])
        def embed(self, x):
            return {"embedding": tf.nn.relu(x @ self.body)}

        @tf.function(input_signature=[tf.TensorSpec([None, 16], tf.float32, "x")])
        def classify(self, x):
            return {"scores": tf.nn.softmax(tf.nn.relu(x @ self.body) @ self.head)}

    model = Heads()
    path = str(tmp_path_factory.mktemp("heads") / "saved")
    tf.saved_model.save(model, path, signatures={"serving_default": model.classify, "embed": model.embed})
    return path


@pytest.fixture(scope="module")
def outputs(saved):
    import tensorflow as tf

    x = RNG.standard_normal((3, 16), np.float32)
    signatures = tf.saved_model.load(saved).signatures
    return x, signatures["serving_default"](x=x)["scores"].numpy(), signatures["embed"](x=x)["embedding"].numpy()


@pytest.mark.parametrize("keys", ["*", ["serving_default", "embed"]])
def test_one_artifact_holds_them_all(rtx, saved, outputs, tmp_path, keys):
    x, scores, embedding = outputs
    with Converter(
        saved, input_saved_model_signature_key=keys, backend=rtx, progress=False, minimum_segment_size=1
    ) as converter:
        function = converter.convert()
        np.testing.assert_allclose(function.signatures["embed"](x)["embedding"], embedding, rtol=1e-5)
        converter.build(lambda: [x])
        assert list(converter.signatures) == list(converter.reports) == ["serving_default", "embed"]
        assert [[e.built for e in report.engines] for report in converter.reports.values()] == [[True], [True]]
        lines = []
        converter.summary(print_fn=lines.append)
        assert [line for line in lines if line.startswith("Signature ")] == [
            "Signature serving_default",
            "Signature embed",
        ]
        converter.save(tmp_path / "out")
    # The body's weight is in both, and on the disk once.
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size < 2 * 16 * 64 * 4 + 4096
    with load(tmp_path / "out") as loaded:
        np.testing.assert_allclose(loaded(x)["scores"], scores, rtol=1e-5)
        assert list(loaded.signatures) == ["serving_default", "embed"]
        assert loaded.signatures["serving_default"] is loaded
        embed = loaded.signatures["embed"]
        assert embed is loaded.signatures["embed"]
        np.testing.assert_allclose(embed(x)["embedding"], embedding, rtol=1e-5)
        with pytest.raises(KeyError, match="no signature 'train'; there are: serving_default, embed"):
            loaded.signatures["train"]
    with pytest.raises(Exception, match="closed"):
        embed(x)
    with load(tmp_path / "out", signature="embed") as loaded:
        np.testing.assert_allclose(loaded(x)["embedding"], embedding, rtol=1e-5)
    with pytest.raises(InvalidParameterError, match="no signature 'train'; it has: 'serving_default', 'embed'"):
        load(tmp_path / "out", signature="train")


def test_each_signature_can_have_its_own_inputs(rtx, saved, outputs):
    x, *_ = outputs
    with Converter(saved, input_saved_model_signature_key="*", backend=rtx, progress=False) as converter:
        converter.convert()
        converter.build({"embed": lambda: [x]})
        built = {key: [e.built for e in report.engines] for key, report in converter.reports.items()}
        assert built["serving_default"] == [False]
        with pytest.raises(InvalidParameterError, match="names the signature 'train', which is not converted"):
            converter.build({"train": lambda: [x]})
        with pytest.raises(InvalidParameterError, match="'train' is not converted; converted: serving_default, embed"):
            converter.function(signature_key="train")


def test_a_file_has_no_signatures_to_list(tmp_path, rtx):
    (tmp_path / "m.onnx").write_bytes(b"")
    with (
        Converter(model=tmp_path / "m.onnx", input_saved_model_signature_key="*", backend=rtx) as converter,
        pytest.raises(InvalidParameterError, match="asks for all signatures of a SavedModel; this is none"),
    ):
        converter.convert()


@pytest.mark.parametrize("key", [[], [1], 3, ["a", "a"]])
def test_bad_keys_are_refused(key):
    with pytest.raises(InvalidParameterError, match="input_saved_model_signature_key"):
        check_keys(key)


def test_one_function_serves_every_signature():
    def function():
        return iter(())

    assert by_signature("input_fn", function, ("a", "b")) == {"a": function, "b": function}
    assert by_signature("input_fn", {"b": function}, ("a", "b")) == {"b": function}
    assert by_signature("input_fn", None, ("a", "b")) == {}


def test_the_command_line_converts_and_runs_several(saved, outputs, tmp_path, capsys):
    x, _, embedding = outputs
    out, inputs = str(tmp_path / "out"), str(tmp_path / "in.npz")
    np.savez(inputs, x=x)
    arguments = ["--signature", "*", "--shapes", "x:1x16,4x16,8x16", "--minimum-segment-size", "1"]
    assert main(["convert", saved, "-o", out, *arguments]) == 0
    text = capsys.readouterr().out
    assert "Signature serving_default" in text
    assert "Signature embed" in text
    assert main(["run", out, "--inputs", inputs, "--signature", "embed", "--outputs", str(tmp_path / "o.npz")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "o.npz")["embedding"], embedding, rtol=1e-5)
    for key in ("serving_default", "embed"):
        assert main(["compare", saved, out, "--inputs", inputs, "--signature", key]) == 0
    assert main(["convert", saved, "-o", out + "2", "--signature", "*", "--shapes", "y:1x16"]) == 2
    assert "shapes name the input 'y', the signatures have serving_default: x; embed: x" in capsys.readouterr().err
    assert main(["run", out, "--inputs", inputs, "--signature", "train"]) == 2
    assert "has no signature 'train'; it has: 'serving_default', 'embed'" in capsys.readouterr().err


def test_signatures_outlive_their_converter(rtx, saved, outputs):
    x, scores, embedding = outputs
    with Converter(saved, input_saved_model_signature_key="*", backend=rtx, progress=False) as converter:
        function = converter.convert()
    np.testing.assert_allclose(function.signatures["embed"](x)["embedding"], embedding, rtol=1e-5)
    np.testing.assert_allclose(function(x)["scores"], scores, rtol=1e-5)
    function.close()


def test_errors_name_the_signature(rtx, saved):
    with Converter(saved, input_saved_model_signature_key="*", backend=rtx, progress=False) as converter:
        converter.convert()
        with pytest.raises(InputError, match=r"^signature 'embed': sample 0: "):
            converter.build({"embed": lambda: [np.ones((2, 3), np.float32)]})
        with pytest.raises(InvalidParameterError, match="input_fn is an empty mapping"):
            converter.build({})


def test_samples_by_signature(rtx, saved, outputs):
    x, *_ = outputs
    samples = {"embed": [x[:1]]}
    with Converter(saved, input_saved_model_signature_key="*", samples=samples, backend=rtx, progress=False) as made:
        made.convert()
        assert [len(track.conversion.source.samples) for track in made._tracks.values()] == [2, 1]
    wrong = Converter(saved, input_saved_model_signature_key="*", samples={"train": [x]}, backend=rtx)
    with (
        wrong,
        pytest.raises(InvalidParameterError, match="samples names the signature 'train', which is not converted"),
    ):
        wrong.convert()
    with Converter(saved, samples={"serving_default": [x]}, backend=rtx, progress=False) as alone:
        alone.convert()
        assert [len(track.conversion.source.samples) for track in alone._tracks.values()] == [1]
    with pytest.raises(InvalidParameterError, match="one dict of inputs goes into a list"):
        Converter(saved, samples={"x": x}, backend=rtx)
