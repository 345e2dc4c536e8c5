"""The python flavour in a real tritonserver: the one that the nvidia-pytriton package carries."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from passes import model as models
from passes.island_node import ISLAND_DOMAIN, IslandAttributes, make_island
from passes.segments import TensorSpec
from rewriter import load
from rewriter.artifact import ArtifactPart, save_artifact
from rewriter.cli import main
from rewriter.demo import load_digits_test
from rewriter.export.triton import export_triton
from rewriter.source import Signature

pytestmark = pytest.mark.serving

# Asks for each array of an npz file by both protocols, and once more for the array "one" 24 times at once.
CLIENT = """
import sys, threading
import numpy as np
import tritonclient.grpc as grpc, tritonclient.http as http

http_url, grpc_url, model, source, target, given, found = sys.argv[1:]
images = np.load(given)
results = {}

def ask(module, url, name, image):
    client = module.InferenceServerClient(url)
    tensor = module.InferInput(source, list(image.shape), "FP32" if image.dtype == np.float32 else "FP64")
    tensor.set_data_from_numpy(image)
    try:
        results[name] = client.infer(model, [tensor]).as_numpy(target)
    except Exception as error:
        results[name] = np.array(str(error))

for name in images:
    ask(http, http_url, "http_" + name, images[name])
    ask(grpc, grpc_url, "grpc_" + name, images[name])
calls = [threading.Thread(target=ask, args=(grpc, grpc_url, f"many_{i}", images["one"] + i)) for i in range(24)]
for call in calls: call.start()
for call in calls: call.join()
np.savez(found, **results)
"""
GUIDE = Path(__file__).parents[4] / "docs" / "serving.md"
EXAMPLE = re.compile(r"<!-- triton example -->\n(.*?)<!-- end of the triton example -->", re.DOTALL)
ONE = np.linspace(-3, 5, 4, dtype=np.float32)[None]


def asked(server, folder, model, names, images):
    """What `CLIENT` got."""
    np.savez(folder / "given.npz", **images)
    server.ask(CLIENT, server.http, server.grpc, model, *names, folder / "given.npz", folder / "found.npz")
    return np.load(folder / "found.npz")


def test_answers_are_those_of_a_call(server, dense, tmp_path):
    export_triton(dense, server.repository, kind="cpu", max_queue_delay_us=20000)
    server.load("dense")
    images = {"one": ONE, "three": np.concatenate([ONE, ONE * 2, -ONE]), "wide": np.ones((1, 5), np.float32)}
    images |= {"float64": ONE.astype(np.float64), "nine": np.ones((9, 4), np.float32)}
    found = asked(server, tmp_path, "dense", ("image", "out"), images)
    with load(dense, provider="cpu") as function:
        for name in ("one", "three"):
            for protocol in ("http", "grpc"):
                np.testing.assert_array_equal(found[f"{protocol}_{name}"], function(images[name])["out"])
        for number in range(24):
            np.testing.assert_allclose(found[f"many_{number}"], function(ONE + number)["out"], rtol=1e-6)
    for name, words in (("wide", "unexpected shape"), ("float64", "data-type"), ("nine", "must be <= 8")):
        assert words in str(found[f"grpc_{name}"])
    assert json.loads(server.get("/v2/models/dense/config"))["max_batch_size"] == 8
    stats = server.stats("dense")
    # Fewer executions than requests: the server made batches of them.
    assert stats["execution_count"] < stats["inference_count"]
    assert any(entry["batch_size"] > 3 for entry in stats["batch_stats"])


def test_two_instances_answer_side_by_side(server, dense, tmp_path):
    export_triton(dense, server.repository, name="twice", kind="cpu", instances=2)
    server.load("twice")
    found = asked(server, tmp_path, "twice", ("image", "out"), {"one": ONE})
    with load(dense, provider="cpu") as function:
        for number in range(24):
            np.testing.assert_allclose(found[f"many_{number}"], function(ONE + number)["out"], rtol=1e-6)
    for number in range(2):
        assert f"ModelInstanceInitialize: twice_0_{number} (CPU" in server.log()


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
            response = client.infer("renewed", [tensor]).get_response()
            answers[response.model_version] = answers.get(response.model_version, 0) + 1
        except Exception as error:
            errors.append(str(error))

threads = [threading.Thread(target=loop) for _ in range(3)]
for thread in threads: thread.start()
print("started", flush=True)
sys.stdin.readline()
stop.set()
for thread in threads: thread.join()
print(json.dumps([answers, errors]))
"""


def test_a_new_version_while_the_server_answers(server, dense):
    """Every request is answered while `export` adds versions and the server takes them up; a new model comes, too."""
    export_triton(dense, server.repository, name="renewed", kind="cpu")
    server.load("renewed")
    command = [server.python, "-c", LOOP, server.grpc]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline() == "started\n"
        for version in (2, 3):
            assert export_triton(dense, server.repository, name="renewed", kind="cpu").version == version
            server.load("renewed")
        server.get("/v2/models/renewed/versions/3/ready")
        output, _ = client.communicate("\n", timeout=60)
    answers, errors = json.loads(output)
    assert errors == []
    assert set(answers) <= {"1", "2", "3"}
    assert sum(answers.values()) > 0


def test_scalars_texts_and_models_without_a_batch(server, tmp_path):
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
    done = export_triton(save_artifact(tmp_path / "mixed", part), server.repository, kind="cpu")
    assert done.max_batch_size == 0
    server.load("mixed")
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
    assert json.loads(server.ask(client, server.http)) == [[12.0], ["a", "\u00e9"], [[2.0, 2.0]] * 3]


def test_a_part_in_tensorflow_needs_it_in_the_server(server, tmp_path):
    if "no" in server.ask("import importlib.util as u; print('yes' if u.find_spec('tensorflow') else 'no')"):
        words = "(Sort), which stays in TensorFlow, needs TensorFlow: pip install 'trt-rewriter[tf]'"
    else:
        pytest.skip("the server's Python has TensorFlow")
    folder = tmp_path / "island"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"never read")
    text = (
        '<ir_version: 10, opset_import: ["": 20, "trt_rewriter.tf": 1]> g (float[n] x) => (float[n] y) { y = Neg(q) }'
    )
    proto = parser.parse_model(text.replace("trt_rewriter.tf", ISLAND_DOMAIN))
    attributes = IslandAttributes(str(folder), ("input_0",), ("output_0",), ("Sort",), ("no word for it",))
    proto.graph.value_info.add(name="q").type.CopyFrom(proto.graph.input[0].type)
    proto.graph.node.insert(0, make_island("TFIsland_000", ("x",), ("q",), attributes))
    specs = [TensorSpec(name, 1, ("n",)) for name in "xy"]
    part = ArtifactPart(models.from_proto(proto), Signature((specs[0],), (specs[1],)), {}, {})
    done = export_triton(save_artifact(tmp_path / "sorting", part), server.repository, kind="cpu")
    assert any(note.endswith("pip install 'trt-rewriter[tf]'") for note in done.notes)
    with pytest.raises(AssertionError, match="load failed for model 'sorting'") as caught:
        server.load("sorting")
    assert words in str(caught.value)


def test_strict_without_engines_does_not_load(server, with_engines):
    export_triton(with_engines({}), server.repository, name="strict", kind="cpu", strict=True)
    with pytest.raises(AssertionError, match=r"load failed for model 'strict': .*provider 'cpu' was asked for"):
        server.load("strict")


@pytest.mark.skipif(np.__version__.startswith("1."), reason="this numpy is one that every Triton reads")
def test_a_numpy_that_the_server_misreads_is_refused(start_server, triton_python, dense):
    version = subprocess.check_output([triton_python, "-c", "import sys; print(sys.version_info[:2])"], text=True)
    if version.strip() != str(sys.version_info[:2]):
        pytest.skip("the server runs models with another version of Python")
    server = start_server(sys.executable)
    export_triton(dense, server.repository, kind="cpu")
    with pytest.raises(AssertionError, match=r"cannot read arrays of numpy 2.*: pip install 'numpy<2'"):
        server.load("dense")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """What `trt-rewriter demo -o digits` keeps."""
    folder = tmp_path_factory.mktemp("demo") / "digits"
    assert main(["demo", "-o", str(folder)]) == 0
    return folder


@pytest.mark.rtx
@pytest.mark.tensorflow
def test_the_demo_is_served(server, digits, tmp_path, capsys):
    options = ["-o", str(server.repository), "--name", "demo", "--kind", "cpu"]
    assert main(["export", "triton", str(digits), *options]) == 0
    printed = capsys.readouterr().out
    assert "demo, version 1, python, batches up to 32" in printed
    assert "note: Triton's clients see 'digit' as [batch, 1], where a call has [batch]" in printed
    server.load("demo")
    images, labels = load_digits_test()
    with load(digits, provider="cpu") as function:
        expected = function(images[:32])
    found = asked(server, tmp_path, "demo", ("image", "digit"), {"one": images[:1], "most": images[:32]})
    for protocol in ("http", "grpc"):
        np.testing.assert_array_equal(found[f"{protocol}_most"][:, 0], expected["digit"])
    assert (expected["digit"] == labels[:32]).mean() > 0.9


@pytest.mark.rtx
@pytest.mark.tensorflow
def test_the_example_of_the_guide_runs(server, digits, tmp_path, monkeypatch):
    """Its commands are run in this process; its client by the python of the server's environment."""
    example = EXAMPLE.search(GUIDE.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").symlink_to(digits)
    (tmp_path / "models").symlink_to(server.repository)
    for command in "".join(re.findall(r"```sh\n(.*?)```", example[1], re.DOTALL)).splitlines():
        program, *arguments = shlex.split(command)
        assert program == "trt-rewriter"
        assert main(arguments) == 0
    server.load("digits")
    (client,) = re.findall(r"```python\n(.*?)```", example[1], re.DOTALL)
    assert client.count('"localhost:8000"') == 1
    printed = server.ask(client.replace("localhost:8000", server.http))
    assert re.fullmatch(r"digits:( \d){8}\n", printed)
