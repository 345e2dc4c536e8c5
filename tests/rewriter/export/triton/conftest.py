"""Small artifacts, and the Python that Triton's packages are in."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper, parser

from passes import model as models
from passes.engine_node import EngineAttributes, write_attributes
from passes.segments import TensorSpec
from rewriter.artifact import ArtifactPart, EngineEntry, save_artifact
from rewriter.artifact import manifest as manifests
from rewriter.backends.base import InputProfile
from rewriter.source import Signature

_spec = importlib.util.spec_from_file_location("live_server", Path(__file__).with_name("live_server.py"))
_live = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_live)

DENSE = """
    <ir_version: 10, opset_import: ["": 20]>
    g (float[batch, 4] x) => (float[batch, 300] y) { t = MatMul(x, w)  y = Relu(t) }
"""
ENGINE = """
    <ir_version: 10, opset_import: ["": 20, "trt_rewriter": 1]>
    g (float[batch, 4] x) => (float[batch, 300] y) { y = trt_rewriter.TRTEngineOp_000(x, w) }
    <domain: "trt_rewriter", opset_import: ["": 20]>
    TRTEngineOp_000 (inner_x, inner_w) => (inner_y) { t = MatMul(inner_x, inner_w)  inner_y = Relu(t) }
"""
SIGNATURE = Signature(
    (TensorSpec("image", TensorProto.FLOAT, ("batch", 4), "x"),),
    (TensorSpec("out", TensorProto.FLOAT, ("batch", 300), "y"),),
)


def profile(least, best, most):
    return {"x": InputProfile((least, 4), (best, 4), (most, 4))}


def dense_model(text=DENSE):
    proto = parser.parse_model(text)
    weights = (np.arange(1200, dtype=np.float32) / 7 - 80).reshape(4, 300)
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    if proto.functions:
        write_attributes(proto.graph.node[0], EngineAttributes("hash", 1))
    return models.from_proto(proto)


@pytest.fixture
def dense(tmp_path):
    """An artifact without engines: Relu(image @ w)."""
    return save_artifact(tmp_path / "dense", ArtifactPart(dense_model(), SIGNATURE, {}, {}))


@pytest.fixture
def with_engines(tmp_path):
    """Makes an artifact whose whole graph is one engine; takes keywords of `EngineEntry` for each of its engines."""

    def make(*engines):
        stored = []
        for number, given in enumerate(engines):
            path = tmp_path / f"{number}.engine"
            path.write_bytes(f"engine {number}".encode() * 9)
            record = manifests.hash_file(path)
            fields = {"backend": "tensorrt", "version": "10.9.0", "profiles": (profile(1, 4, 16),), **given}
            entry = EngineEntry("TRTEngineOp_000", f"key{number}", record.size, record.sha256, **fields)
            stored.append((entry, path))
        part = ArtifactPart(dense_model(ENGINE), SIGNATURE, {}, {}, engines=stored)
        return save_artifact(tmp_path / "whole", part)

    return make


@pytest.fixture(scope="session")
def triton_python():
    """The Python of an environment with nvidia-pytriton, tritonclient, onnx and onnxruntime."""
    path = os.environ.get("TRT_REWRITER_TRITON_PYTHON", "")
    if not path:
        pytest.skip("TRT_REWRITER_TRITON_PYTHON does not name a Python with nvidia-pytriton and tritonclient")
    assert Path(path).exists(), f"TRT_REWRITER_TRITON_PYTHON: there is no {path}"
    return path


@pytest.fixture(scope="module")
def running(triton_python, tmp_path_factory):
    """A server for all tests of a module; it must end in good order."""
    server = _live.Server(triton_python, tmp_path_factory.mktemp("triton"))
    yield server
    assert server.stop() == (0, []), server.log()


@pytest.fixture
def server(running):
    """The server; what it told is printed, which pytest shows where a test fails."""
    yield running
    print(running.log())


@pytest.fixture
def start_server(triton_python, tmp_path):
    """Starts a server of one's own whose models another Python runs; it is ended after the test."""
    started = []

    def start(models):
        started.append(_live.Server(triton_python, tmp_path, models))
        return started[-1]

    yield start
    for each in started:
        print(each.log())
        each.stop()
