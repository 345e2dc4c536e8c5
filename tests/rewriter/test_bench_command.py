"""`trt-rewriter bench`, in process and on the CPU: what is printed and written, and one-line errors."""

import csv
import json

import numpy as np
import onnx
import pytest
from onnx import parser

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
g (float[batch, 4] x) => (float[batch, 4] y) { [cut] a = Abs(x) [rest] y = Neg(a) }
"""
QUICK = ("--iterations", "3", "--duration", "0", "--warmup-iterations", "1")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """One engine node without an engine, and one native node."""
    model = InferShapes().run(models.from_proto(parser.parse_model(MODEL))).model
    cut = Extractor(model).extract_nodes((), ["cut"], "TRTEngineOp_000")
    attributes = {"TRTEngineOp_000": EngineAttributes(cut.content_hash, len(cut.segment.inputs), "FP16")}
    spliced = splice(model, Segmentation((cut.segment,), (), 2), attributes)
    params = {"recipe": Recipe.of("FP16").to_json(), "precision_mode": "FP16"}
    part = ArtifactPart(spliced, signature_of(model.proto), params, {})
    return str(save_artifact(tmp_path_factory.mktemp("bench") / "out", part))


def test_what_is_printed_and_written(artifact, tmp_path, capsys):
    figures, lines = tmp_path / "figures.json", tmp_path / "lines.csv"
    words = ["--shapes", "x:1x4,16x4", "--threads", "2", "--native-threads", "1", "--experiment-name", "first"]
    assert main(["bench", artifact, *QUICK, *words, "--json", str(figures), "--csv", str(lines)]) == 0
    printed = capsys.readouterr().out
    for expected in (
        *("CPU (", "TF32: off (CPU)", "artifact loaded in", "first call", "p50", "p99", "2 threads"),
        *("x 1x4 (1 item a call)", "x 16x4 (16 items a call)", "items/s", "engine_nodes 1"),
        "Note: TensorRT computed nothing (",
    ):
        assert expected in printed
    found = json.loads(figures.read_text("utf-8"))
    assert (found["provider"], found["experiment_name"], found["artifact"]) == ("cpu", "first", "out")
    assert found["environment"]["packages"]["numpy"] == np.__version__
    assert found["environment"]["tf32"]["engines"] is None
    options = found["options"]
    assert (options["iterations"], options["execution"]) == (3, "auto")
    assert (options["threads"], options["native_threads"]) == (2, 1)
    first, second = found["timings"]
    assert (first["shapes"], second["items"]) == ({"x": [1, 4]}, 16)
    assert (first["latency"]["calls"], first["threads"]["throughput"]["calls"]) == (3, 6)
    assert first["device"] is first["enqueue"] is None
    assert first["counters"] == {"calls": 11, "engine_calls": 0, "native_calls": 11}
    assert second["throughput"]["items_per_s"] == pytest.approx(16 * second["throughput"]["inferences_per_s"])
    with lines.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["shapes"] for row in rows] == ["x:1x4", "x:16x4"]
    assert {row["experiment_name"] for row in rows} == {"first"}
    assert float(rows[0]["p99_ms"]) == pytest.approx(first["latency"]["p99_ms"])


@pytest.mark.parametrize(
    ("words", "shapes"),
    [
        ([], [[1, 4], [8, 4]]),
        (["--batch-size", "2", "3"], [[2, 4], [3, 4]]),
        (["--execution", "emulate", "--batch-size", "2"], [[2, 4]]),
        (["--execution", "native", "--shapes", "x:5x4"], [[5, 4]]),
    ],
)
def test_what_is_run(artifact, tmp_path, words, shapes, capsys):
    figures = tmp_path / "figures.json"
    assert main(["bench", artifact, *QUICK, *words, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text("utf-8"))
    assert [timing["shapes"]["x"] for timing in found["timings"]] == shapes
    assert (found["execution"] == "emulate") == ("nothing of how fast" in capsys.readouterr().out)


def test_inputs_of_the_user(artifact, tmp_path):
    given, figures = tmp_path / "in.npz", tmp_path / "figures.json"
    np.savez(given, x=np.ones((7, 4), np.float32))
    assert main(["bench", artifact, *QUICK, "--inputs", str(given), "--json", str(figures)]) == 0
    assert json.loads(figures.read_text("utf-8"))["timings"][0]["items"] == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device-inputs"], "need a model that runs on a GPU"),
        (["--device-outputs"], "leave --device-inputs and --device-outputs out"),
        (["--provider", "cuda"], "provider 'cuda' cannot be used"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--batch-size", "1", "--shapes", "x:1x4"], "give one of them"),
        (["--shapes", "x:1x5"], "does not fit"),
        (["--inputs", "GONE.npz"], "GONE.npz"),
        (["--iterations", "0"], "iterations must be at least 1"),
        (["--trim-mean-percentage", "0.5"], "trim_mean_percentage"),
        (["--json", "/none/at/all.json"], "--json '/none/at/all.json': there is no such folder"),
        (["--json", "/"], "--json '/' is a folder: name a file"),
        (["--csv", ""], "--csv is an empty path: name a file"),
        (["--csv", "/"], "--csv '/' is a folder: name a file"),
        (["--csv", "/none/at/all.csv"], "--csv '/none/at/all.csv': there is no such folder"),
        (["--signature", "other"], "no signature 'other'"),
        (["--strict"], "strict: 1 engine node would not run on TensorRT"),
    ],
)
def test_errors_are_one_line(artifact, words, message, capsys):
    assert main(["bench", artifact, *QUICK, *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_what_is_no_artifact(tmp_path, capsys):
    onnx.save(parser.parse_model(MODEL), tmp_path / "m.onnx")
    assert main(["bench", str(tmp_path / "m.onnx")]) == 2
    assert "not an artifact: convert it first" in capsys.readouterr().err
