"""`trt-rewriter compare`, in process: exit status, table, JSON, and one-line errors."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from passes import model as models
from passes.extract import Extractor
from passes.infer_shapes import InferShapes
from passes.precision.recipe import Recipe
from passes.segments import Segmentation
from passes.splice import EngineAttributes, splice
from rewriter.artifact import ArtifactPart, save_artifact
from rewriter.cli import main
from rewriter.frontend.onnx import signature_of

MODEL = """
<ir_version: 10, opset_import: ["": 20]>
g (float[batch, 8] x) => (float[batch, 5] logits)
{
    product = MatMul(x, w)
    shifted = Add(product, bias)
    logits = Tanh(shifted)
}
"""


def make_model(seed=0):
    proto = parser.parse_model(MODEL)
    random = np.random.default_rng(seed)
    for name, shape in (("w", (8, 5)), ("bias", (5,))):
        proto.graph.initializer.append(numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name))
    for node in proto.graph.node:
        node.name = f"n_{node.output[0]}"
    return proto


def make_artifact(proto, folder, precision):
    model = InferShapes().run(models.from_proto(proto)).model
    cut = Extractor(model).extract_nodes((), [node.name for node in proto.graph.node], "TRTEngineOp_000")
    attributes = {"TRTEngineOp_000": EngineAttributes(cut.content_hash, len(cut.segment.inputs), precision)}
    spliced = splice(model, Segmentation((cut.segment,), (), 3), attributes)
    params = {"recipe": Recipe.of(precision).to_json()}
    return save_artifact(folder, ArtifactPart(spliced, signature_of(proto), params, {}))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(make_model(), path)
    return str(path)


@pytest.fixture
def artifact(tmp_path):
    return str(make_artifact(make_model(), tmp_path / "out", "FP32"))


@pytest.fixture
def half(tmp_path):
    return str(make_artifact(make_model(), tmp_path / "half", "FP16"))


def one_line_error(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("trt-rewriter: ")
    return lines[0]


def test_the_same_model_passes(source, artifact, tmp_path, capsys):
    report = tmp_path / "figures.json"
    assert main(["compare", source, artifact, "--json", str(report)]) == 0
    text = capsys.readouterr().out
    for words in ("source: ONNX file", "2 sample(s): x 1x8; x 8x8", "logits", "agree", "100%", "nothing to emulate"):
        assert words in text
    assert "PASSED: native differs from source by" in text
    data = json.loads(report.read_text())
    assert data["passed"] is True
    assert [s["runner"] for s in data["spreads"]] == ["source", "native"]
    pair = {"reference": "source", "result": "native", "tolerance": 1e-4, "outputs": {}, "absolute": None}
    assert data["pairs"][0]["pair"] == pair


def test_a_lowered_artifact_is_emulated(source, half, capsys):
    assert main(["compare", source, half, "--shapes", "x:3x8"]) == 0
    text = capsys.readouterr().out
    for words in ("engines (FP16) emulated on the CPU", "x 3x8", "emulated differs from native by", "(limit 5.0e-03)"):
        assert words in text
    assert main(["compare", source, half, "--tolerance", "1e-6"]) == 1
    assert "FAILED: emulated differs from native by" in capsys.readouterr().out


def test_given_inputs_are_used(source, artifact, tmp_path, capsys):
    files = []
    for rows in (2, 4):
        files += ["--inputs", str(tmp_path / f"{rows}.npz")]
        np.savez(files[-1], x=np.ones((rows, 8), np.float32))
    assert main(["compare", source, artifact, *files]) == 0
    assert "2 sample(s): x 2x8; x 4x8" in capsys.readouterr().out


def test_another_model_fails(artifact, tmp_path, capsys):
    other = tmp_path / "other.onnx"
    onnx.save(make_model(seed=1), other)
    assert main(["compare", str(other), artifact]) == 1
    captured = capsys.readouterr()
    assert "FAILED: native differs from source by" in captured.out
    assert not captured.err


def test_models_with_other_names_are_told_apart(artifact, tmp_path, capsys):
    proto = make_model()
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "image"
    onnx.save(proto, tmp_path / "inputs.onnx")
    assert main(["compare", str(tmp_path / "inputs.onnx"), artifact]) == 2
    assert "has the inputs image" in one_line_error(capsys)
    proto = make_model()
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "scores"
    onnx.save(proto, tmp_path / "outputs.onnx")
    assert main(["compare", str(tmp_path / "outputs.onnx"), artifact]) == 2
    assert "native gives the outputs logits, source gives scores" in one_line_error(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["GONE.onnx", "OUT"], "GONE.onnx"),
        (["SRC", "GONE"], "no such artifact"),
        (["SRC", "OUT", "--tolerance", "-1"], "tolerance must be a positive number"),
        (["SRC", "OUT", "--inputs", "GONE.npz"], "GONE.npz"),
        (["SRC", "OUT", "--inputs", "SRC"], "no .npz file"),
        (["SRC", "OUT", "--inputs", "WIDE"], "dimension 1 must be 8"),
        (["SRC", "OUT", "--inputs", "WIDE", "--shapes", "x:1x8"], "leave one of them out"),
        (["SRC", "OUT", "--shapes", "z:1x8"], "'z'"),
        (["SRC", "OUT", "--json", "GONE/figures.json"], "there is no such folder"),
        (["SRC", "OUT", "--tags", "serve"], "the source is none"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, source, artifact, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "wide.npz", x=np.ones((1, 9), np.float32))
    places = {"SRC": source, "OUT": artifact, "WIDE": str(tmp_path / "wide.npz")}
    assert main(["compare", *(places.get(a, a) for a in arguments)]) == 2
    assert message in one_line_error(capsys)


@pytest.mark.rtx
@pytest.mark.tensorflow
def test_a_graph_def_with_fixed_dimensions(tmp_path, capsys):
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8], "x")
        hidden = tf.nn.relu(tf.matmul(x, tf.ones([8, 8]) / 8), name="hidden")
        tf.nn.softmax(tf.tanh(hidden), name="y")
    source, out = str(tmp_path / "graph.pb"), str(tmp_path / "out")
    (tmp_path / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    ports = ["--graph-inputs", "x:0", "--graph-outputs", "hidden,y"]
    assert main(["convert", source, "-o", out, "--no-engines", "--specialize", "batch=4", *ports]) == 0
    assert main(["compare", source, out, *ports]) == 0
    text = capsys.readouterr().out
    assert "x 4x8" in text
    assert "hidden" in text
