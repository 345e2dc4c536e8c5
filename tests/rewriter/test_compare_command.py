"""`trt-rewriter compare`, in process: exit status, table, JSON, and one-line errors."""

import json
import sys

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
from rewriter.errors import SourceError
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


def test_all_results_are_written(source, half, tmp_path, capsys):
    files = ["--json", str(tmp_path / "f.json"), "--html", str(tmp_path / "f.html"), "--pictures", str(tmp_path / "p")]
    assert main(["compare", source, half, "--shapes", "x:3x8", "--top-k", "3,1", *files]) == 0
    text = capsys.readouterr().out
    assert f"page: {tmp_path / 'f.html'}" in text
    names = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert names[:2] == ["native-emulated.logits.heatmap.png", "native-emulated.logits.histogram.png"]
    assert f"{len(names)} pictures in {tmp_path / 'p'}" in text
    page = (tmp_path / "f.html").read_text("utf-8")
    assert "half compared with model.onnx" in page
    assert "PASSED" in page
    data = json.loads((tmp_path / "f.json").read_text())
    (native, emulated, _) = data["pairs"]
    assert native["differences"][0]["top_k"] == {"1": 1.0, "3": 1.0}
    assert sum(emulated["differences"][0]["histogram"]["counts"]) > 0
    assert emulated["differences"][0]["place"]["sample"] == 0
    assert data["bisections"] == []


def test_tolerances_of_single_outputs_and_an_absolute_one(source, half, capsys):
    assert main(["compare", source, half, "--tolerance", "logits:1e-6"]) == 1
    assert "(limit 1.0e-06)" in capsys.readouterr().out
    assert main(["compare", source, half, "--tolerance", "1e-6", "--tolerance", "logits:1e-2"]) == 0
    assert main(["compare", source, half, "--tolerance", "1e-6", "--absolute-tolerance", "0.1"]) == 0


def test_only_some_runners(source, half, capsys):
    assert main(["compare", source, half, "--runners", "native,emulated"]) == 0
    text = capsys.readouterr().out
    assert "Differences of emulated from native" in text
    assert "source:" not in text


def test_a_data_script_is_run(source, artifact, tmp_path, capsys):
    script = tmp_path / "data.py"
    script.write_text(
        "import numpy as np\ndef rows():\n    for n in (2, 5):\n        yield {'x': np.ones((n, 8), np.float32)}\n"
    )
    assert main(["compare", source, artifact, "--data-script", f"{script}:rows"]) == 0
    assert "2 sample(s): x 2x8; x 5x8" in capsys.readouterr().out


def test_files_are_cut_into_batches(source, artifact, tmp_path, capsys):
    np.savez(tmp_path / "many.npz", x=np.ones((5, 8), np.float32))
    assert main(["compare", source, artifact, "--inputs", str(tmp_path / "many.npz"), "--batch-size", "2"]) == 0
    assert "3 sample(s): x 2x8; x 1x8" in capsys.readouterr().out


def test_inputs_that_polygraphy_saved(source, artifact, tmp_path, capsys):
    pytest.importorskip("polygraphy")
    from polygraphy.json import save_json

    save_json([{"x": np.ones((7, 8), np.float32)}], str(tmp_path / "inputs.json"))
    assert main(["compare", source, artifact, "--inputs", str(tmp_path / "inputs.json")]) == 0
    assert "1 sample(s): x 7x8" in capsys.readouterr().out


def test_bisect_says_where_it_begins_in_text_json_and_page(source, half, tmp_path, capsys):
    files = ["--json", str(tmp_path / "f.json"), "--html", str(tmp_path / "f.html")]
    assert main(["compare", source, half, "--tolerance", "1e-6", "--bisect", *files]) == 1
    text = capsys.readouterr().out
    assert text.index("Note: tensorrt") < text.index("first segment: TRTEngineOp_000") < text.index("FAILED: ")
    (found,) = json.loads((tmp_path / "f.json").read_text())["bisections"]
    assert (found["reference"], found["result"], found["segment"]) == ("native", "emulated", "TRTEngineOp_000")
    assert "Where it begins" in (tmp_path / "f.html").read_text("utf-8")


def test_bisect_has_nothing_to_do_where_all_passes(source, half, capsys):
    assert main(["compare", source, half, "--bisect"]) == 0
    assert "first segment" not in capsys.readouterr().out


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
        (["SRC", "OUT", "--tolerance", "1e-3", "--tolerance", "1e-2"], "given twice"),
        (["SRC", "OUT", "--tolerance", "logit:1e-3"], "did you mean 'logits'?"),
        (["SRC", "OUT", "--absolute-tolerance", "0"], "--absolute-tolerance must be a positive number"),
        (["SRC", "OUT", "--top-k", "1,0"], "write numbers of at least 1"),
        (["SRC", "OUT", "--top-k", "five"], "write numbers of at least 1"),
        (["SRC", "OUT", "--runners", "native,tensorrt"], "tensorrt, which cannot run here: no GPU"),
        (["SRC", "OUT", "--runners", "all"], "choose from source, native, emulated, tensorrt"),
        (["SRC", "OUT", "--data-script", "GONE.py"], "there is no data script 'GONE.py'"),
        (["SRC", "OUT", "--data-script", "GONE.py", "--inputs", "WIDE"], "--inputs and --data-script both say"),
        (["SRC", "OUT", "--inputs", "GONE.json"], "there is no file 'GONE.json'"),
        (["SRC", "OUT", "--batch-size", "2"], "--batch-size is the number of rows"),
        (["SRC", "OUT", "--inputs", "WIDE", "--batch-size", "0"], "--batch-size is the number of rows"),
        (["SRC", "OUT", "--html", "GONE/page.html"], "there is no such folder"),
        (["SRC", "OUT", "--html", "."], "--html '.' is a folder: name a file"),
        (["SRC", "OUT", "--pictures", "SRC"], "is a file: name a folder"),
        (["SRC", "OUT", "--strict"], "strict: 1 engine node would not run on TensorRT; TRTEngineOp_000: no GPU"),
        (["SRC", "OUT", "--strict", "--runners", "source,native"], "--runners leaves that out"),
        (["OUT", "SRC"], "SRC and OUT are swapped"),
        (["OUT", "OUT"], "is an artifact itself: name the model that it was converted from"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, source, artifact, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "wide.npz", x=np.ones((1, 9), np.float32))
    places = {"SRC": source, "OUT": artifact, "WIDE": str(tmp_path / "wide.npz")}
    assert main(["compare", *(places.get(a, a) for a in arguments)]) == 2
    assert message in one_line_error(capsys)


def test_a_file_that_cannot_be_written_hides_no_verdict(source, artifact, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    report = str(tmp_path / "figures.json")
    assert main(["compare", source, artifact, "--json", report]) == 2
    captured = capsys.readouterr()
    assert "PASSED: " in captured.out
    assert "no space left" in captured.err
    other = tmp_path / "other.onnx"
    onnx.save(make_model(seed=1), other)
    assert main(["compare", str(other), artifact, "--json", report]) == 1
    captured = capsys.readouterr()
    assert "FAILED: " in captured.out
    assert len(captured.err.strip().splitlines()) == 1


def test_an_engine_that_was_not_built_is_told(source, artifact, capsys):
    assert main(["compare", source, artifact]) == 0
    assert "Note: no engine is built for 1 of 1 engine node(s) (TRTEngineOp_000)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_source_of_several_signatures_names_the_option(source, artifact, capsys, monkeypatch):
    def several(*_, **__):
        raise SourceError("SavedModel x has several signatures, name one: 'a', 'b'")

    monkeypatch.setattr("rewriter.frontend.reference.open_reference", several)
    assert main(["compare", source, artifact]) == 2
    assert "has several signatures, name one with --signature: 'a', 'b'" in one_line_error(capsys)


def test_the_other_signatures_of_an_artifact_are_told():
    from types import SimpleNamespace

    from rewriter.commands.compare import _signature_note

    artifact = SimpleNamespace(signature=SimpleNamespace(name="a"), signatures=("a", "b", "c"))
    assert _signature_note(artifact) == ["only the signature 'a' is compared; for another one give --signature: b, c"]
    artifact.signatures = ("a",)
    assert _signature_note(artifact) == []


def test_pictures_need_matplotlib_before_anything_is_run(source, artifact, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["compare", source, artifact, "--html", str(tmp_path / "page.html")]) == 2
    assert "pip install 'trt-rewriter[compare]'" in one_line_error(capsys)


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
