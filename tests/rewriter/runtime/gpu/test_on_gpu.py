"""Real TensorRT-RTX engines and ONNX Runtime's CUDA provider on a real GPU.

CUDA_VISIBLE_DEVICES=0 python -m pytest -m gpu tests/rewriter/runtime/gpu
"""

import gc
import json
import subprocess
import sys
import textwrap
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import rewriter
from rewriter import Converter
from rewriter.errors import ConversionError
from rewriter.runtime.gpu import island

pytestmark = pytest.mark.gpu

TOLERANCE = 1e-2  # engines compute FP32 in TF32


def chain(layers=6, channels=8):
    """Convolutions in a row; node_denylist cuts them."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for number in range(layers):
        array = (rng.standard_normal((channels, channels, 3, 3)) / (3 * channels**0.5)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{number}"))
        nodes.append(
            helper.make_node("Conv", [value, f"w{number}"], [f"c{number}"], pads=[1] * 4, name=f"conv{number}")
        )
        value = f"y{number}"
        nodes.append(helper.make_node("Relu", [f"c{number}"], [value], name=f"relu{number}"))
    shape = ["n", channels, 8, 8]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def images(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 8, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """Two engines around native convolutions, batches 1 to 8."""
    folder = tmp_path_factory.mktemp("artifact")
    onnx.save(chain(), folder / "chain.onnx")
    with Converter(
        model=folder / "chain.onnx",
        backend="tensorrt_rtx",
        node_denylist=["conv2", "relu2", "conv3"],
        allow_build_at_runtime=False,
        minimum_segment_size=1,
    ) as converter:
        converter.convert()
        converter.build(lambda: iter([images(1), images(4), images(8)]))
        return converter.save(folder / "out")


@pytest.fixture(scope="module")
def native(artifact):
    with rewriter.load(artifact, execution="native") as function:
        yield lambda x: next(iter(function(x).values()))


def agree(actual, expected):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


def only(outputs):
    (value,) = outputs.values()
    return value


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_every_life_of_a_shape(artifact, native, cuda_graph):
    with rewriter.load(artifact, provider="cuda", strict=True, cuda_graph=cuda_graph) as function:
        for seed in range(5):
            for rows in (1, 4, 8, 3):
                x = images(rows, seed)
                agree(only(function(x)), native(x))
        stats = function.stats()
    assert stats["engine_calls"] == stats["calls"] == 20
    assert stats["plans"] == 4
    assert stats["graphs"] == (4 if cuda_graph else 0)
    assert stats["fallbacks"] == {}


@pytest.mark.parametrize("strategy", ["Optimal", "Range+Optimal"])
def test_several_profiles_in_one_engine(native, tmp_path, strategy):
    onnx.save(chain(), tmp_path / "chain.onnx")
    with Converter(
        model=tmp_path / "chain.onnx",
        backend="tensorrt_rtx",
        node_denylist=["conv2", "relu2", "conv3"],
        minimum_segment_size=1,
        dynamic_shape_profile_strategy=strategy,
    ) as converter:
        converter.convert()
        converter.build(lambda: iter([images(1), images(4), images(8)]))
        path = converter.save(tmp_path / "out")
    with rewriter.load(path, provider="cuda", strict=True, allow_build_at_runtime=False) as function:
        for seed in range(5):
            for rows in (1, 8, 4):
                agree(only(function(images(rows, seed))), native(images(rows, seed)))
        assert function.stats()["graphs"] == 3


def test_outside_the_profiles(artifact, native):
    with rewriter.load(artifact, provider="cuda") as function:
        for seed in range(4):
            agree(only(function(images(9, seed))), native(images(9, seed)))
        assert sum(function.stats()["fallbacks"].values()) == 8


def test_a_failed_capture_spoils_nothing(artifact, native, monkeypatch):
    """ONNX Runtime waits for the stream inside the capture, which ends it."""
    monkeypatch.setattr(island, "_NO_WAITING", "an_option_that_it_does_not_know")
    with rewriter.load(artifact, provider="cuda", strict=True) as function:
        for seed in range(5):
            agree(only(function(images(4, seed))), native(images(4, seed)))
        stats = function.stats()
    assert stats["graphs"] == 0
    assert sum(stats["no_graph"].values()) == 1


def test_tensors_that_stay_on_the_device(artifact, native):
    torch = pytest.importorskip("torch")
    with rewriter.load(artifact, provider="cuda") as function:
        for seed in range(5):
            x = torch.from_numpy(images(4, seed)).cuda()
            output = only(function.run({"x": x}, device_outputs=True))
            agree(torch.from_dlpack(output).cpu().numpy(), native(images(4, seed)))
            agree(only(function(x)), native(images(4, seed)))


def test_the_users_stream(artifact, native):
    torch = pytest.importorskip("torch")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), rewriter.load(artifact, provider="cuda", stream=stream) as function:
        for seed in range(5):
            x = torch.from_numpy(images(4, seed)).cuda(non_blocking=True) * 2
            output = torch.from_dlpack(only(function.run({"x": x}, device_outputs=True))) + 1
            agree(output.cpu().numpy() - 1, native(images(4, seed) * 2))


def test_the_default_stream_has_no_graphs(artifact, native):
    with rewriter.load(artifact, provider="cuda", stream=0) as function:
        for seed in range(4):
            agree(only(function(images(2, seed))), native(images(2, seed)))
        assert function.stats()["graphs"] == 0
        assert list(function.stats()["no_graph"]) == ["nothing can be captured on CUDA's default stream"]


def test_the_runtime_cache_is_kept_and_used(artifact):
    with rewriter.load(artifact, provider="cuda") as function:
        function(images(1))
    files = [path for path in (artifact / "runtime_cache").rglob("*") if path.is_file()]
    assert files
    assert rewriter.load(artifact, execution="native").close() is None  # the artifact is still a whole one


def test_a_process_that_closes_nothing_ends_well(artifact):
    code = f"""
        import numpy as np, rewriter
        function = rewriter.load({str(artifact)!r}, provider="cuda")
        for _ in range(4):
            function(np.ones((2, 8, 8, 8), np.float32))
        other = rewriter.load({str(artifact)!r}, provider="cuda")
        print(function.stats()["graphs"])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr[-2000:]


def test_functions_that_are_dropped(artifact, native):
    for _ in range(3):
        function = rewriter.load(artifact, provider="cuda")
        agree(only(function(images(2))), native(images(2)))
        del function
        gc.collect()


def test_an_engine_of_another_version(artifact, native, tmp_path):
    import shutil

    copy = shutil.copytree(artifact, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    for entry in manifest["engines"]:
        entry["version"] = "1.0.0.1"
    (copy / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with rewriter.load(copy, provider="cuda") as function:
        agree(only(function(images(2))), native(images(2)))
        ((reason, count),) = function.stats()["fallbacks"].items()
        assert "1.0.0.1" in reason
        assert count == 2
    with pytest.raises(ConversionError, match="strict"):
        rewriter.load(copy, provider="cuda", strict=True)


def test_eight_threads(artifact, native):
    wanted = {(rows, seed): native(images(rows, seed)) for rows in (1, 3, 8, 9) for seed in range(3)}
    problems = []
    with rewriter.load(artifact, provider="cuda") as function:

        def work(number):
            for turn in range(200):
                key = (1, 3, 8, 9)[(number + turn) % 4], turn % 3
                try:
                    agree(only(function(images(*key))), wanted[key])
                except AssertionError:
                    problems.append(key)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert function.stats()["calls"] == 1600


def test_engines_built_at_run_time(artifact, native):
    with rewriter.load(artifact, provider="cuda", allow_build_at_runtime=True, maximum_cached_engines=2) as function:
        agree(only(function(images(12))), native(images(12)))
        assert function.stats()["fallbacks"]
        function.warmup({"x": (12, 8, 8, 8)})
        before = sum(function.stats()["fallbacks"].values())
        for seed in range(4):
            agree(only(function(images(12, seed))), native(images(12, seed)))
        stats = function.stats()
        assert sum(stats["fallbacks"].values()) == before
        assert stats["engine_calls"] == 4
