"""Converted functions over an executor on the GPU: device tensors, warm-up, engines built at run time, counters."""

import dataclasses
import logging
import sys
import types

import numpy as np
import pytest

from rewriter.artifact import ArtifactPart, save_artifact
from rewriter.artifact import manifest as manifests
from rewriter.errors import ArtifactError, ConversionError, ConverterStateError, InputError, InvalidParameterError
from rewriter.runtime.loading import Runnable, load, make_function
from rewriter.runtime.options import RuntimeOptions
from rewriter.runtime.slots import StoredEngine


@pytest.fixture
def make(spliced, entry, gpu, tmp_path):
    """Makes a function on the GPU double."""

    def do(engines=True, **options):
        stored = (StoredEngine(entry, tmp_path / "e"),) if engines else ()
        return make_function(Runnable(*spliced, stored), RuntimeOptions(**options))

    return do


def test_device_tensors_reach_the_executor_as_they_are(make, gpu, pair, device_array):
    x, y = pair()
    function = make()
    on_device = device_array(x)
    outputs = function(on_device, y)
    assert gpu.made[0].feeds[0]["x"] is on_device
    assert gpu.made[0].feeds[0]["y"] is y
    assert all(isinstance(value, np.ndarray) for value in outputs.values())  # host out, though one came from the device


def test_a_cuda_array_without_dlpack_is_one_too(make, gpu, pair):
    x, y = pair()
    function = make()
    cuda = types.SimpleNamespace(__cuda_array_interface__={"shape": x.shape})
    with pytest.raises(ConversionError, match=r"the model failed on the inputs x on the GPU, y \[2, 4\]"):
        function(cuda, y)  # the double cannot read it
    assert gpu.made[0].feeds[0]["x"] is cuda


def test_host_values_are_checked_beside_device_tensors(make, pair, device_array):
    x, y = pair()
    with pytest.raises(InputError, match="input 'y' has dtype float64"):
        make()(device_array(x), y.astype(np.float64))


def test_outputs_stay_on_the_device_when_asked(make, pair, device_array):
    x, y = pair()
    outputs = make().run((x, y), device_outputs=True)
    assert list(outputs) == ["product", "y"]
    assert all(isinstance(value, device_array) for value in outputs.values())


@pytest.mark.parametrize("way", ["mapping", "tuple", "list"])
def test_run_takes_all_inputs_as_one(make, pair, way):
    x, y = pair()
    function = make()
    given = {"mapping": {"y": y, "x": x}, "tuple": (x, y), "list": [x, y]}[way]
    np.testing.assert_array_equal(function.run(given)["product"], function(x, y)["product"])
    assert function.stats()["calls"] == 2


def test_on_the_cpu_outputs_and_inputs_lie_on_the_host(make, pair, device_array):
    x, y = pair()
    function = make(provider="cpu")
    with pytest.raises(InvalidParameterError, match="device_outputs=True needs a GPU, but this function runs on the C"):
        function.run((x, y), device_outputs=True)
    with pytest.raises(InputError, match="input 'x' lies on the GPU, but is read on the CPU here: pass a host array"):
        function(device_array(x), y)
    assert function.stats()["calls"] == 0


class TensorFlowTensor:
    """A tensor of TensorFlow as far as it is looked at."""

    def __init__(self, array, device):
        self.array, self.device, self.dtype, self.shape = array, device, array.dtype, array.shape

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.fixture
def tensorflow(monkeypatch):
    """A TensorFlow that records what is asked of it."""
    asked = []
    module = types.SimpleNamespace(
        Tensor=TensorFlowTensor,
        convert_to_tensor=lambda array: TensorFlowTensor(array, "/device:GPU:1"),
        experimental=types.SimpleNamespace(
            dlpack=types.SimpleNamespace(to_dlpack=lambda tensor: asked.append("export") or ("capsule", tensor))
        ),
        test=types.SimpleNamespace(experimental=types.SimpleNamespace(sync_devices=lambda: asked.append("sync"))),
    )
    monkeypatch.setitem(sys.modules, "tensorflow", module)
    return asked


def test_tensorflow_on_the_gpu_goes_through_its_own_dlpack(make, gpu, pair, tensorflow):
    x, y = pair()
    tensor = TensorFlowTensor(x, "/job:localhost/replica:0/task:0/device:GPU:1")
    with pytest.raises(ConversionError, match=r"the model failed on the inputs x \[2, 4\]"):
        make()(tensor, y)  # the double reads DeviceArray only
    given = gpu.made[0].feeds[0]["x"]
    assert tensorflow == ["sync"]  # waited for before anything reads the memory
    assert given.__dlpack_device__() == (2, 1)
    assert given.__dlpack__(stream=5) == ("capsule", tensor)


@pytest.mark.parametrize(
    ("provider", "where"), [("cpu", "/device:GPU:0"), ("cpu", "/device:CPU:0"), ("auto", "/device:CPU:0")]
)
def test_other_tensors_of_tensorflow_are_read_on_the_host(make, pair, tensorflow, provider, where):
    x, y = pair()
    outputs = make(provider=provider)(TensorFlowTensor(x, where), y)
    assert all(isinstance(value, TensorFlowTensor) for value in outputs.values())
    assert tensorflow == []


def test_stats_hold_what_the_executor_counts(make, gpu, pair):
    function = make()
    function(*pair())
    gpu.made[0].wait_for_builds()
    function(*pair())
    stats = function.stats()
    assert (stats["calls"], stats["engine_calls"], stats["native_calls"]) == (2, 1, 1)
    assert (stats["provider"], stats["plans"], stats["device_bytes"]) == ("cuda", 1, 64)
    assert stats["builds"] == {"engines": 1, "seconds": 0.5, "running": 0, "failed": {}}
    assert stats["slots"]["TRTEngineOp_000"]["builds"] == 1
    function.close()
    assert function.stats() == stats


def test_warmup_makes_ready_and_counts_apart(make, gpu, pair, caplog):
    function = make()
    ready = function.warmup({"x": [(2, 4), (3, 4)]})
    assert ready["builds"] == {"engines": 2, "seconds": 1.0, "running": 0}
    assert (ready["shapes"], ready["fallbacks"], ready["plans"]) == (2, {}, 2)
    assert ready["runs"] == len(gpu.made[0].feeds) > 4
    assert gpu.made[0].waits == 1
    stats = function.stats()
    assert (stats["calls"], stats["warmup_calls"], stats["fallbacks"]) == (0, ready["runs"], {})
    assert caplog.records == []  # that an engine was being built for a while is nobody's worry
    function(*pair(2))
    assert function.stats()["engine_calls"] == 1


def test_warmup_without_shapes_takes_the_optimum_of_the_profiles(make, gpu):
    assert make().warmup()["shapes"] == 1
    assert {feeds["x"].shape for feeds in gpu.made[0].feeds} == {(8, 4)}
    with pytest.raises(InvalidParameterError, match="warmup needs the shape of input 'x'"):
        make(engines=False).warmup()


def test_warmup_tells_what_stays_native(make, gpu, caplog):
    function = make()
    gpu.made[0].wait_for_builds = lambda: None
    ready = function.warmup({"x": [(1, 4), (2, 4)]})
    assert ready["fallbacks"] == {gpu.made[0].MISS: 2}
    assert [record.getMessage() for record in caplog.records] == [f"1 engine node runs natively: {gpu.made[0].MISS}"]
    assert function.stats()["fallbacks"] == {}


def test_strict_warmup_bears_builds_but_no_lasting_fallback(make, gpu, pair):
    function = make(strict=True)
    function.warmup({"x": (2, 4)})
    function(*pair(2))
    with pytest.raises(ConversionError, match="strict: an engine was not used: an engine for its shapes is being"):
        function(*pair(3))
    gpu.made[0].wait_for_builds = lambda: None
    with pytest.raises(ConversionError, match="strict: an engine was not used"):
        function.warmup({"x": (5, 4)})


def test_strict_warmup_bears_an_executor_that_raises_until_the_engine_is_there(make, gpu, pair):
    function = make(strict=True)
    double = gpu.made[0]
    run = double.run

    def strict_run(feeds, **options):
        execution = run(feeds, **options)
        if execution.fallbacks:
            raise ConversionError("strict: not yet")
        return execution

    double.run = strict_run
    assert function.warmup({"x": (2, 4)})["fallbacks"] == {}
    double.wait_for_builds = lambda: None
    with pytest.raises(ConversionError, match="strict: not yet"):
        function.warmup({"x": (3, 4)})


def test_warmup_on_the_cpu_runs_once(make, caplog):
    function = make(provider="cpu")
    reason = "provider 'cpu' was asked for"
    with caplog.at_level(logging.WARNING):
        ready = function.warmup({"x": (2, 4)})
    assert ready == {
        "shapes": 1,
        "runs": 1,
        "fallbacks": {reason: 1},
        "builds": {"engines": 0, "seconds": 0.0, "running": 0},
    }
    assert function.stats()["fallbacks"] == {}


@pytest.fixture
def built(entry, tmp_path):
    """An engine as one that was built at run time."""
    path = tmp_path / "built.engine"
    path.write_bytes(b"vtrt")
    record = manifests.hash_file(path)
    return StoredEngine(
        dataclasses.replace(entry, key="cd", segment_hash="ab", size=record.size, sha256=record.sha256), path
    )


def test_engines_built_at_run_time_are_saved(spliced, gpu, tmp_path, built):
    model, signature = spliced
    own, other = (save_artifact(tmp_path / name, ArtifactPart(model, signature, {}, {})) for name in "ab")
    function = load(own)
    with pytest.raises(ArtifactError, match="no such artifact"):
        function.save_engines(tmp_path / "nowhere")  # before any wait
    assert function.save_engines() == 0
    gpu.made[0].built = (built,)
    assert function.save_engines() == 1
    assert function.save_engines() == 0  # it is there already
    assert function.save_engines(other) == 1
    assert gpu.made[0].waits == 4  # for builds that are not ready yet
    function.close()
    with pytest.raises(ConverterStateError, match="this function is closed"):
        function.save_engines()
    for path in (own, other):
        load(path).close()
        (engine,) = gpu.opened[-1].engines
        assert (engine.entry, engine.path.read_bytes()) == (built.entry, b"vtrt")


def test_a_function_of_a_converter_needs_the_name_of_an_artifact(make):
    with pytest.raises(ConverterStateError, match=r"belongs to no artifact: save\(\) first, then save_engines\(path\)"):
        make().save_engines()


def test_closing_frees_the_folder_even_if_the_executor_fails(spliced, gpu):
    done = []
    function = make_function(Runnable(*spliced))
    function._on_close = lambda: done.append(1)

    def fail():
        raise ConversionError("no")

    gpu.made[0].close = fail
    with pytest.raises(ConversionError, match="no"):
        function.close()
    function.close()
    assert done == [1]
