"""The source as a function: what `compare` holds artifacts against."""

import warnings

import numpy as np
import onnx
import pytest
from onnx import parser

from rewriter.artifact import ArtifactPart, save_artifact
from rewriter.cli import main
from rewriter.errors import ConversionError, InputError, InvalidParameterError, SourceError
from rewriter.frontend import load_source
from rewriter.frontend.reference import open_reference
from tests.rewriter.frontend import graph_defs

IMAGE = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)


@pytest.mark.tensorflow
def test_saved_model(cnn_saved, cnn):
    reference = open_reference(cnn_saved)
    assert reference.inputs == ("image",)
    assert "signature serving_default" in reference.origin
    found = reference.run({"image": IMAGE})
    assert set(found) == {"logits", "emb"}
    for name, wanted in cnn(IMAGE, training=False).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-6)
    first, second = reference.samples()
    assert first["image"].shape[1:] == second["image"].shape[1:] == (8, 8, 3)
    with pytest.raises(InputError, match="shape"):
        reference.run({"image": IMAGE[..., :2]})


@pytest.mark.tensorflow
def test_keras_file(cnn, tmp_path):
    path = tmp_path / "cnn.keras"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cnn.save(path)
    np.testing.assert_allclose(
        open_reference(path).run({"image": IMAGE})["emb"], cnn(IMAGE, training=False)["emb"], rtol=1e-4, atol=1e-6
    )
    with pytest.raises(InvalidParameterError, match="the source is none"):
        open_reference(path, tags="serve")


@pytest.mark.tensorflow
def test_compare_holds_an_artifact_against_tensorflow(cnn_saved, tmp_path, capsys):
    source = load_source(cnn_saved)
    out = str(save_artifact(tmp_path / "out", ArtifactPart(source.model, source.signature, {}, {})))
    assert main(["compare", str(cnn_saved), out]) == 0
    text = capsys.readouterr().out
    for words in ("source: SavedModel", "2 sample(s): image 2x8x8x3", "emb", "logits", "PASSED"):
        assert words in text
    assert main(["compare", str(cnn_saved), out, "--shapes", "image:3x8x8x3"]) == 0
    assert "1 sample(s): image 3x8x8x3" in capsys.readouterr().out
    assert main(["compare", str(cnn_saved), out, "--tolerance", "1e-12"]) == 1


def test_onnx_file(tmp_path):
    path = tmp_path / "model.onnx"
    model = parser.parse_model('<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) { y = Neg(x) }')
    onnx.save(model, path)
    reference = open_reference(str(path))
    assert (reference.inputs, reference.samples()) == (("x",), ())
    np.testing.assert_array_equal(reference.run({"x": np.float32([1, 2])})["y"], [-1, -2])


def test_what_cannot_be_opened_or_run(tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        open_reference(tmp_path / "gone")
    with pytest.raises(SourceError, match="SavedModel"):
        open_reference(tmp_path)
    path = tmp_path / "model.onnx"
    onnx.save(
        parser.parse_model(
            '<ir_version: 10, opset_import: ["": 20]> g (float[n] x, float[m] z) => (float[k] y) { y = Add(x, z) }'
        ),
        path,
    )
    with pytest.raises(ConversionError, match=r"cannot run .*model.onnx on these inputs"):
        open_reference(path).run({"x": np.ones(2, np.float32), "z": np.ones(3, np.float32)})


@pytest.mark.tensorflow
def test_graph_def_files(tf, tmp_path):
    tf.io.write_graph(graph_defs.dense(tf), str(tmp_path), "g.pb", as_text=False)
    reference = open_reference(tmp_path / "g.pb", inputs=["x"], outputs=["Relu"])
    assert reference.origin == f"GraphDef file {tmp_path / 'g.pb'}"
    assert reference.inputs == ("x",)
    assert reference.run({"x": np.zeros((1, 4), np.float32)})["Relu"].tolist() == [[0.0, 0.0, 0.0]]
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(InvalidParameterError, match="and the source is none"):
        open_reference(tmp_path / "net.onnx", inputs=["x"])
