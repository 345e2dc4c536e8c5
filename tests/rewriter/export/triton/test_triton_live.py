"""The python flavour in a real tritonserver: the one that the nvidia-pytriton package carries."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from passes import model as models
from passes.segments import TensorSpec
from rewriter import load
from rewriter.artifact import ArtifactPart, save_artifact
from rewriter.export.triton import export_triton
from rewriter.source import Signature

ROOT = Path(__file__).parents[4]
READY_SECONDS = 90

FACTS = """
import json, sys, sysconfig
paths = sysconfig.get_paths()
print(json.dumps([paths["purelib"], sysconfig.get_config_var("LIBDIR"), "%d.%d" % sys.version_info[:2]]))
"""

CLIENT = """
import sys, threading
import numpy as np
import tritonclient.grpc as grpc, tritonclient.http as http

http_url, grpc_url, given, found = sys.argv[1:]
images = np.load(given)
results = {}

def ask(module, url, name, image):
    client = module.InferenceServerClient(url)
    tensor = module.InferInput("image", list(image.shape), "FP32" if image.dtype == np.float32 else "FP64")
    tensor.set_data_from_numpy(image)
    try:
        results[name] = client.infer("dense", [tensor]).as_numpy("out")
    except Exception as error:
        results[name] = np.array(str(error))

for name in images:
    ask(http, http_url, "http_" + name, images[name])
    ask(grpc, grpc_url, "grpc_" + name, images[name])
one = images["one"]
calls = [threading.Thread(target=ask, args=(grpc, grpc_url, f"many_{i}", one + i)) for i in range(24)]
for call in calls: call.start()
for call in calls: call.join()
np.savez(found, **results)
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


class Server:
    """A running tritonserver; `stop` ends it and returns its exit status."""

    def __init__(self, python, folder, repository, *arguments):
        done = subprocess.run([python, "-c", FACTS], capture_output=True, text=True, check=True, timeout=60)
        packages, libraries, version = json.loads(done.stdout)
        triton = Path(packages) / "pytriton" / "tritonserver"
        backends = folder / "backends"
        shutil.copytree(triton / "backends", backends)
        # The stub must lie beside the backend; the copy finds its libraries by LD_LIBRARY_PATH only.
        shutil.copy(triton / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
        self.ports = free_ports(3)
        self.prefix = f"trt_rewriter_test_{os.getpid()}_{self.ports[0]}"
        self.log = folder / "server.log"
        flags = [f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), self.ports, strict=True)]
        flags += [f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")]
        flags += ["--model-control-mode=explicit", "--load-model=*", "--exit-timeout-secs=10"]
        flags.append(f"--backend-config=python,shm-region-prefix-name={self.prefix}")
        environment = os.environ | {
            "LD_LIBRARY_PATH": f"{packages}/nvidia_pytriton.libs:{libraries}",
            "PYTHONPATH": f"{packages}:{ROOT}",
            "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
        }
        command = [triton / "bin" / "tritonserver", f"--model-repository={repository}"]
        command += [f"--backend-directory={backends}", *flags, *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def get(self, path, data=None):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[0]}{path}", data, timeout=60) as response:
            return response.read()

    def wait_until_ready(self):
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.get("/v2/health/ready")
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            else:
                return
        pytest.fail(f"the server is not ready:\n{self.log.read_text(errors='replace')[-6000:]}")

    def stop(self):
        self.process.terminate()
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        for left in Path("/dev/shm").glob(f"{self.prefix}*"):  # noqa: S108
            left.unlink()
        return status


def test_live(triton_python, dense, tmp_path):
    done = export_triton(dense, tmp_path / "repo", kind="cpu", max_queue_delay_us=20000)
    one = np.linspace(-3, 5, 4, dtype=np.float32)[None]
    images = {"one": one, "three": np.concatenate([one, one * 2, -one]), "wide": np.ones((1, 5), np.float32)}
    images |= {"float64": one.astype(np.float64), "nine": np.ones((9, 4), np.float32)}
    np.savez(tmp_path / "given.npz", **images)
    server = Server(triton_python, tmp_path, done.repository)
    try:
        server.wait_until_ready()
        urls = [f"127.0.0.1:{port}" for port in server.ports[:2]]
        command = [triton_python, "-c", CLIENT, *urls, tmp_path / "given.npz", tmp_path / "found.npz"]
        client = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert client.returncode == 0, client.stderr + server.log.read_text(errors="replace")[-6000:]
        stats = json.loads(server.get("/v2/models/dense/stats"))["model_stats"][0]
        config = json.loads(server.get("/v2/models/dense/config"))
    finally:
        status = server.stop()
    assert status == 0, server.log.read_text(errors="replace")[-6000:]
    found = np.load(tmp_path / "found.npz")
    with load(dense, provider="cpu") as function:
        for name in ("one", "three"):
            for protocol in ("http", "grpc"):
                np.testing.assert_array_equal(found[f"{protocol}_{name}"], function(images[name])["out"])
        for number in range(24):
            np.testing.assert_allclose(found[f"many_{number}"], function(one + number)["out"], rtol=1e-6)
    for name, words in (("wide", "unexpected shape"), ("float64", "data-type"), ("nine", "must be <= 8")):
        assert words in str(found[f"grpc_{name}"])
    assert config["max_batch_size"] == 8
    # Fewer executions than requests: the server made batches of them.
    assert stats["execution_count"] < stats["inference_count"]
    assert any(entry["batch_size"] > 3 for entry in stats["batch_stats"])


LOOP = """
import json, sys, threading
import numpy as np
import tritonclient.grpc as grpc

stop, answers, errors = threading.Event(), {}, []

def loop():
    client = grpc.InferenceServerClient(sys.argv[1])
    tensor = grpc.InferInput("image", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    while not stop.is_set():
        try:
            version = client.infer("dense", [tensor]).get_response().model_version
            answers[version] = answers.get(version, 0) + 1
        except Exception as error:
            errors.append(str(error))

threads = [threading.Thread(target=loop) for _ in range(3)]
for thread in threads: thread.start()
sys.stdin.read()
stop.set()
for thread in threads: thread.join()
print(json.dumps([answers, errors]))
"""


def test_a_new_version_under_load(triton_python, dense, tmp_path):
    repository = export_triton(dense, tmp_path / "repo", kind="cpu").repository
    server = Server(triton_python, tmp_path, repository)
    try:
        server.wait_until_ready()
        command = [triton_python, "-c", LOOP, f"127.0.0.1:{server.ports[1]}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            for version in (2, 3):
                assert export_triton(dense, repository, kind="cpu").version == version
                server.get("/v2/repository/models/dense/load", data=b"{}")
            server.get("/v2/models/dense/versions/3/ready")
            output, _ = client.communicate("", timeout=60)
    finally:
        status = server.stop()
    assert status == 0, server.log.read_text(errors="replace")[-6000:]
    answers, errors = json.loads(output)
    assert errors == []
    assert set(answers) <= {"1", "2", "3"}
    assert sum(answers.values()) > 0


def test_scalars_texts_and_models_without_a_batch(triton_python, tmp_path):
    proto = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 20]>
        g (float k, string[n] text, float[3, m] x) => (float total, string[n] same, float[3, m] y)
        { y = Mul(x, k)  total = ReduceSum<keepdims = 0>(y)  same = Identity(text) }
        """
    )
    shapes = {"k": (), "total": (), "text": ("n",), "same": ("n",), "x": (3, "m"), "y": (3, "m")}
    inputs, outputs = (
        tuple(TensorSpec(v.name, v.type.tensor_type.elem_type, shapes[v.name]) for v in values)
        for values in (proto.graph.input, proto.graph.output)
    )
    part = ArtifactPart(models.from_proto(proto), Signature(inputs, outputs), {}, {})
    done = export_triton(save_artifact(tmp_path / "mixed", part), tmp_path / "repo", kind="cpu")
    assert done.max_batch_size == 0
    client = """
import sys, json, numpy as np, tritonclient.http as http
values = {"k": np.array([2], np.float32), "text": np.array(["a", "\\u00e9"], object), "x": np.ones((3, 2), np.float32)}
tensors = []
for name, kind in (("k", "FP32"), ("text", "BYTES"), ("x", "FP32")):
    tensors.append(http.InferInput(name, list(values[name].shape), kind))
    tensors[-1].set_data_from_numpy(values[name])
found = http.InferenceServerClient(sys.argv[1]).infer("mixed", tensors)
total, same, y = (found.as_numpy(name).tolist() for name in ("total", "same", "y"))
print(json.dumps([total, [text.decode() for text in same], y]))
"""
    server = Server(triton_python, tmp_path, done.repository)
    try:
        server.wait_until_ready()
        command = [triton_python, "-c", client, f"127.0.0.1:{server.ports[0]}"]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        server.stop()
    assert asked.returncode == 0, asked.stderr + server.log.read_text(errors="replace")[-6000:]
    assert json.loads(asked.stdout) == [[12.0], ["a", "\u00e9"], [[2.0, 2.0]] * 3]
