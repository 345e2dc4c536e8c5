"""`trt-rewriter export`: what it writes and prints, and one line for whatever is wrong."""

import json
import subprocess
import sys

import pytest
from onnx import parser

from passes import model as models
from passes.segments import TensorSpec
from rewriter import cli
from rewriter.artifact import ArtifactPart, EngineEntry, save_artifact
from rewriter.artifact import manifest as manifests
from rewriter.backends.base import InputProfile
from rewriter.source import Signature


@pytest.fixture
def artifact(tmp_path):
    """One engine node, with an engine for SM89 and one for SM120."""
    proto = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 20, "trt_rewriter": 1]>
        g (float[n, 4] x) => (float[n, 4] y)
        {
            y = trt_rewriter.TRTEngineOp_000 <segment_hash: string = "h", data_inputs: int = 1,
                precision: string = "FP32", profiles: string = "[]", backend: string = "",
                backend_version: string = ""> (x)
        }
        <domain: "trt_rewriter", opset_import: ["": 20]>
        TRTEngineOp_000 (x) => (y) { y = Relu(x) }
        """
    )
    engines = []
    for target in ("SM89", "SM120"):
        path = tmp_path / f"{target}.engine"
        path.write_bytes(b"ftrt" + target.encode() * 40)
        record = manifests.hash_file(path)
        profile = {"x": InputProfile((1, 4), (2, 4), (8, 4))}
        fields = (record.size, record.sha256, "tensorrt", "10.9.0", (target,), (profile,), "FP32", "h")
        engines.append((EngineEntry("TRTEngineOp_000", f"key{target}", *fields), path))
    signature = Signature((TensorSpec("x", 1, ("n", 4)),), (TensorSpec("y", 1, ("n", 4)),))
    part = ArtifactPart(models.from_proto(proto), signature, {}, {}, engines=engines)
    return save_artifact(tmp_path / "small", part)


@pytest.fixture
def export(monkeypatch, capsys):
    """Runs the command; returns its status, what it printed, and its error line."""
    monkeypatch.setitem(cli.COMMANDS, "export", "write artifacts for others")

    def called(*arguments):
        try:
            status = cli.main(["export", *map(str, arguments)])
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return called


def test_triton(export, artifact, tmp_path):
    status, out, err = export("triton", artifact, "-o", tmp_path / "repo", "--kind", "cpu", "--threads", "2")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "note: the python that Triton starts, the first python3 on its PATH, needs this package: pip install "
        "'trt-rewriter[gpu,trt]', or 'trt-rewriter[cpu]' where there is no GPU",
        "note: engines run with the version that built them, here tensorrt 10.9.0; other servers compute natively",
        f"wrote {tmp_path}/repo: small, version 1, python, batches up to 8",
    ]
    options = ["--name", "m", "--flavour", "tensorrt_plan", "--instances", "2", "--kind", "gpu", "--gpus", "0,2"]
    options += ["--max-queue-delay-us", "50", "--max-batch-size", "4", "--no-warmup", "--engine-version", "10.9.0"]
    options += ["--storage-uri", "s3://b", "--image", "i:1", "--signature", "serving_default", "--json"]
    status, out, _ = export("triton", artifact, "-o", tmp_path / "repo", *options)
    assert status == 0
    found = json.loads(out)
    assert (found["name"], found["version"], found["flavour"], found["max_batch_size"]) == ("m", 1, "tensorrt_plan", 4)
    assert found["files"] == ["m.inferenceservice.yaml", "m/1/model.plan", "m/1/sm120.plan", "m/config.pbtxt"]
    text = (tmp_path / "repo/m/config.pbtxt").read_text()
    for words in ("max_batch_size: 4", "count: 2", "KIND_GPU", "gpus: [ 0, 2 ]", "max_queue_delay_microseconds: 50"):
        assert words in text
    assert "model_warmup" not in text
    service = (tmp_path / "repo/m.inferenceservice.yaml").read_text()
    assert 'storageUri: "s3://b"' in service
    assert 'image: "i:1"' in service


def test_epcontext(export, artifact, tmp_path):
    options = ["--flavour", "tensorrt", "--target", "sm120", "--engine-version", "10.9.0"]
    status, out, err = export("epcontext", artifact, "-o", tmp_path / "ctx", *options)
    assert (status, err) == (0, "")
    model = tmp_path / "ctx/model_ctx.onnx"
    assert out.splitlines()[-1] == f"wrote {model}: 1 engine for TensorrtExecutionProvider"
    assert any(
        line.startswith("note: the engines run only in a TensorrtExecutionProvider") for line in out.splitlines()
    )
    status, _, err = export("epcontext", artifact, "-o", tmp_path / "ctx", *options)
    assert status == 2
    assert len(err.splitlines()) == 1
    status, out, _ = export("epcontext", artifact, "-o", tmp_path / "ctx", *options, "--overwrite", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["model"] == str(model)
    assert found["engines"]["TRTEngineOp_000"]["targets"] == ["SM120"]


def test_a_check_needs_the_definition_of_triton(export, artifact, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    status, out, err = export("triton", artifact, "-o", tmp_path / "repo", "--check")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("trt-rewriter: the check of Triton's settings needs tritonclient[grpc] (")
    assert err.endswith("pip install 'trt-rewriter[triton]'\n")
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: FORMAT (see trt-rewriter export -h)"),
        (["jax", "a", "-o", "b"], "invalid choice: 'jax' (choose from"),
        (["triton", "a"], "the following arguments are required: -o/--output (see trt-rewriter export triton -h)"),
        (["triton", "a", "-o", "b", "--flavour", "jax"], "argument --flavour: invalid choice: 'jax'"),
        (["triton", "a", "-o", "b", "--gpus", "0,x"], "argument --gpus: '0,x': write numbers of GPUs with commas"),
        (["triton", "a", "-o", "b", "--instances", "two"], "argument --instances: invalid int value: 'two'"),
        (["triton", "a", "-o", "b", "--overwrite"], "unrecognized arguments: --overwrite (see trt-rewriter export tri"),
        (["triton", "a", "-o", "b"], "no such artifact"),
        (["epcontext", "a", "-o", "b"], "no such artifact"),
    ],
)
def test_whatever_is_wrong_is_one_line(export, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, out, err = export(*arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert err.startswith("trt-rewriter: ")
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_heavy_package(artifact):
    code = """
import sys
heavy = ["tensorflow", "tensorrt", "tensorrt_rtx", "onnxruntime", "onnx", "numpy", "polygraphy"]
sys.modules.update(dict.fromkeys(heavy))
from rewriter import cli
cli.COMMANDS.setdefault("export", "write artifacts for others")
sys.exit(cli.main(sys.argv[1:]))
"""
    for arguments in (["-h"], ["triton", "-h"], ["epcontext", "-h"]):
        command = [sys.executable, "-c", code, "export", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: trt-rewriter export")
