"""Engines and contexts, against the strict double of TensorRT."""

from __future__ import annotations

import math
import threading
import types

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from passes import model as model_module
from rewriter.backends.base import BuildOptions, InputProfile
from rewriter.errors import (
    ConverterStateError,
    DeviceMemoryError,
    EngineRefusedError,
    EngineRunError,
    EngineShapeError,
    InvalidParameterError,
    MissingDependencyError,
)
from rewriter.runtime.device import installed_gpus
from rewriter.runtime.gpu import engine as engine_module
from rewriter.runtime.gpu import trt_log
from rewriter.runtime.gpu.engine import LoadedEngine, TensorInfo, TrtRuntime, import_runtime
from rewriter.runtime.gpu.runtime_cache import RuntimeCacheFile
from rewriter.runtime.slot_values import profile_of

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def graph(nodes, inputs, outputs):
    def infos(values):
        return [helper.make_tensor_value_info(n, dtype, shape) for n, (dtype, shape) in values.items()]

    proto = helper.make_graph(nodes, "g", infos(inputs), infos(outputs))
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def double(dtype=FLOAT, batch="n"):
    """y = x + x, x of shape [batch, 4]."""
    return graph([helper.make_node("Add", ["x", "x"], ["y"])], {"x": (dtype, [batch, 4])}, {"y": (dtype, [batch, 4])})


def reshaper():
    """y = Reshape(x, s); s is a shape tensor of two elements."""
    return graph(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        {"x": (FLOAT, ["n"]), "s": (INT64, [2])},
        {"y": (FLOAT, ["a", "b"])},
    )


def nonzero():
    """y = where x is not zero: its shape depends on the data."""
    return graph([helper.make_node("NonZero", ["x"], ["y"])], {"x": (FLOAT, ["n"])}, {"y": (INT64, [1, "k"])})


BATCHES = {"x": ((1, 4), (2, 4), (8, 4))}
RESHAPES = {"x": InputProfile((1,), (6,), (12,)), "s": InputProfile((1, 1), (2, 3), (4, 12), is_values=True)}


@pytest.fixture
def runtime(trt, cuda):
    return TrtRuntime(trt, cuda)


@pytest.fixture
def load(runtime, fake_trt, tmp_path):
    """Writes an engine and loads it; all of them are closed at the end."""
    opened = []

    def load(model, profiles=(), *, runtime_cache=None, **options):
        path = fake_trt.write_engine(tmp_path / "engines" / f"{len(opened)}.engine", model, profiles, **options)
        opened.append(runtime.load(path, runtime_cache))
        return opened[-1]

    yield load
    for engine in opened:
        engine.close()


@pytest.fixture
def device(cuda):
    """Places for tensors, on the device; freed at the end."""
    buffers = []

    def place(value):
        """The address of so many bytes, or of a copy of an array."""
        nbytes = value if isinstance(value, int) else value.nbytes
        buffers.append(cuda.allocate(nbytes))
        if not isinstance(value, int):
            cuda.array(buffers[-1].pointer, value.dtype, value.shape)[...] = value
        return buffers[-1].pointer

    yield place
    for buffer in buffers:
        buffer.free()


def prepare(context, device, x):
    """Gives a context of `double` all it needs; returns where its output will lie."""
    context.set_shape("x", x.shape)
    context.set_address("x", device(x))
    output = device(x.nbytes)
    context.set_address("y", output)
    context.set_memory(device(context.memory_needed()), context.memory_needed())
    return output


# --- loading


def test_an_engine_tells_its_tensors_and_profiles(load):
    engine = load(double(), [BATCHES, {"x": ((16, 4), (16, 4), (32, 4))}])
    assert dict(engine.tensors) == {
        "x": TensorInfo("x", FLOAT, is_input=True, on_host=False, shape=(-1, 4)),
        "y": TensorInfo("y", FLOAT, is_input=False, on_host=False, shape=(-1, 4)),
    }
    assert engine.profiles == 2
    assert engine.ranges[0] == {"x": InputProfile((1, 4), (2, 4), (8, 4))}
    assert engine.activation_bytes == 32 * 4 * 4
    assert not engine.closed


def test_an_engine_of_static_shapes_has_one_profile(load):
    engine = load(double(batch=3))
    assert engine.profiles == 1
    assert engine.ranges[0] == {"x": InputProfile((3, 4), (3, 4), (3, 4))}
    assert engine.profile_for({"x": (3, 4)}, {}) == 0
    assert engine.profile_for({"x": (2, 4)}, {}) is None


def test_shape_tensors_lie_on_the_host_and_are_judged_by_values(load):
    engine = load(reshaper(), [RESHAPES])
    assert engine.tensors["s"] == TensorInfo("s", INT64, is_input=True, on_host=True, shape=(2,))
    assert engine.ranges[0] == RESHAPES
    assert engine.profile_for({"x": (8,), "s": (2,)}, {"s": (2, 4)}) == 0
    assert engine.profile_for({"x": (8,), "s": (2,)}, {"s": (8, 1)}) is None
    assert engine.profile_for({"x": (8,), "s": (2,)}, {}) is None


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("BF16", TensorProto.BFLOAT16),
        ("FP8", TensorProto.FLOAT8E4M3FN),
        ("INT64", INT64),
        ("BOOL", TensorProto.BOOL),
        ("UINT8", TensorProto.UINT8),
        ("HALF", TensorProto.FLOAT16),
    ],
)
def test_types_have_their_onnx_numbers(load, kind, number):
    model = graph([helper.make_node("Identity", ["x"], ["y"])], {"x": (number, [2])}, {"y": (number, [2])})
    assert load(model).tensors["y"].dtype == number


def test_a_type_without_a_number_is_refused(load, monkeypatch):
    monkeypatch.delitem(engine_module._ONNX_TYPES, "HALF")
    with pytest.raises(EngineRefusedError, match="its tensor 'x' has type HALF"):
        load(double(TensorProto.FLOAT16))


def test_a_file_that_is_not_there_is_refused_before_tensorrt_is_asked(runtime, trt, tmp_path):
    with pytest.raises(EngineRefusedError, match=r"gone\.engine cannot be read: No such file"):
        runtime.load(tmp_path / "gone.engine")
    (tmp_path / "empty.engine").write_bytes(b"")
    with pytest.raises(EngineRefusedError, match=r"empty\.engine is empty"):
        runtime.load(tmp_path / "empty.engine")
    assert trt.events == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"targets": ["SM80", "SM89"]},
            r"The engine cannot run on this GPU, which has compute capability 9\.0\. "
            r"Supported compute capabilities: 8\.0 8\.9$",
        ),
        ({"version": "1.4.0.76"}, r"Version tag does not match.*Serialized Engine Version: 1\.4\.0\.76$"),
        ({"refuse": "something new"}, "something new$"),
    ],
)
def test_the_logs_reason_is_in_the_error(load, options, words):
    with pytest.raises(EngineRefusedError, match=rf"^tensorrt_rtx 1\.7\.1\.116 cannot load it: .*{words}"):
        load(double(), [BATCHES], **options)


def test_a_truncated_file_is_refused(load, runtime, fake_trt, tmp_path):
    path = fake_trt.write_engine(tmp_path / "a.engine", double(), [BATCHES])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(EngineRefusedError, match=r"cannot load it: the file is not whole$"):
        runtime.load(path)


def test_a_lack_of_memory_is_told_apart(load):
    with pytest.raises(DeviceMemoryError, match="cannot load it"):
        load(double(), [BATCHES], refuse="Error Code 2: OutOfMemory (Requested size was 1000 bytes.)")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["[x.cpp::f::1] Error Code 1: Cuda Runtime (In f at /a/x.cpp:1 (cudaError 35: too old))"], "too old"),
        (["f: Error Code 1: Cuda Runtime (In Scoped at /a/x.cpp:25)"], "CUDA failed in Scoped"),
        (["IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal access)"], "an illegal access"),
        (["Error Code 1: Cuda Runtime (first)", "Error Code 3: API Usage Error (the reason)"], "the reason"),
        (["CUDA initialization failure with error: 35"], "CUDA initialization failure with error: 35"),
        ([" ", ""], "TensorRT gave no reason"),
    ],
)
def test_the_first_line_that_tells_something_is_the_reason(lines, words):
    assert trt_log.reason(lines) == words


def test_cudas_own_lack_of_memory_is_a_lack_of_memory():
    assert trt_log.is_memory(["Error Code 1: Cuda Runtime (out of memory)"])
    assert not trt_log.is_memory(["Error Code 1: Cuda Runtime (an illegal access)"])


def test_no_reason_is_a_reason(load, trt):
    trt.say = lambda *_: None
    with pytest.raises(EngineRefusedError, match="TensorRT gave no reason"):
        load(double(), refuse="x")


def test_a_module_without_a_runtime_is_refused(trt, cuda):
    def broken(logger):
        logger.log(trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.Runtime = broken
    with pytest.raises(EngineRefusedError, match="has no runtime here: CUDA initialization failure with error: 35"):
        TrtRuntime(trt, cuda)


def test_one_logger_serves_every_runtime_of_a_module(trt, cuda):
    TrtRuntime(trt, cuda)
    TrtRuntime(trt, cuda)  # the double has it that a second logger is a fault


def test_lines_of_another_thread_are_not_this_ones_reason(trt, cuda):
    log = TrtRuntime(trt, cuda).log
    mark = log.count

    def other():
        trt.say("of another")

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert log.since(mark) == ["of another"]
    trt.say("of this one")
    assert log.since(mark) == ["of this one"]
    assert log.since(log.count) == []


def test_modules_are_imported_by_the_flavours_name(monkeypatch):
    with pytest.raises(InvalidParameterError, match="backend='onnx' is not known"):
        import_runtime("onnx")
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"running engines needs tensorrt"):
        import_runtime("tensorrt")
    module = types.ModuleType("tensorrt")
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", module)
    assert import_runtime("tensorrt") is module


# --- profiles


def test_the_first_profile_with_this_optimum_comes_first():
    wide, exact, again = ({"x": InputProfile((1,), (b,), (9,))} for b in (8, 4, 4))
    narrow = {"x": InputProfile((3,), (3,), (5,))}
    assert profile_of([wide, narrow, exact, again], {"x": (4,)}, {}) == 2
    assert profile_of([wide, narrow, exact, again], {"x": (5,)}, {}) == 1
    assert profile_of([wide, narrow], {"x": (6,)}, {}) == 0
    assert profile_of([wide, narrow], {"x": (10,)}, {}) is None
    assert profile_of([wide], {"x": (4, 1)}, {}) is None
    assert profile_of([wide], {}, {}) is None
    assert profile_of([{}], {"x": (1,)}, {}) == 0


def test_exact_profiles_come_before_a_range_that_is_tuned_for_the_same():
    wide, exact = {"x": InputProfile((1,), (8,), (9,))}, {"x": InputProfile((8,), (8,), (8,))}
    assert profile_of([wide, exact], {"x": (8,)}, {}) == 1
    assert profile_of([wide, exact], {"x": (7,)}, {}) == 0


DIMS = st.tuples(st.integers(0, 5), st.integers(0, 5))


@given(st.lists(st.tuples(DIMS, DIMS, DIMS), max_size=6), DIMS)
def test_the_profile_contains_the_shape_and_none_that_does_is_narrower(found, shape):
    profiles = [
        {"x": InputProfile(*(tuple(sorted(d)[i] for d in zip(*dims, strict=True)) for i in range(3)))} for dims in found
    ]

    def fits(item):
        return all(a <= s <= b for a, s, b in zip(item.minimum, shape, item.maximum, strict=True))

    def width(item):
        return math.prod(b - a + 1 for a, b in zip(item.minimum, item.maximum, strict=True))

    chosen = profile_of(profiles, {"x": shape}, {})
    fitting = [profile["x"] for profile in profiles if fits(profile["x"])]
    assert (chosen is None) == (not fitting)
    if chosen is not None:
        item = profiles[chosen]["x"]
        assert item in fitting
        assert item.optimum == shape or width(item) == min(map(width, fitting))


# --- contexts


def test_a_context_computes(load, device, cuda):
    context = load(double(), [BATCHES]).context(0)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    output = prepare(context, device, x)
    assert context.output_shapes() == {"y": (3, 4)}
    context.enqueue()
    np.testing.assert_array_equal(cuda.array(output, np.float32, (3, 4)), x + x)


def test_bfloat16_is_computed_as_it_is(load, device, cuda):
    kind = (TensorProto.BFLOAT16, ["n", 4])
    model = graph([helper.make_node("Identity", ["x"], ["y"])], {"x": kind}, {"y": kind})
    context = load(model, [BATCHES]).context(0)
    x = np.arange(4).reshape(1, 4).astype(ml_dtypes.bfloat16)
    output = prepare(context, device, x)
    context.enqueue()
    np.testing.assert_array_equal(cuda.array(output, x.dtype, (1, 4)), x)


def test_equal_calls_tell_tensorrt_nothing(load, device, trt):
    context = load(double(), [BATCHES]).context(0)
    x = np.ones((2, 4), np.float32)
    prepare(context, device, x)
    before = list(trt.events)
    context.set_shape("x", [2, 4])
    context.set_address("x", context._addresses["x"])
    context.set_memory(*context._memory)
    assert context.memory_needed() == 256
    context.output_shapes()
    assert trt.events == before
    context.set_shape("x", (8, 4))
    assert trt.called("set_input_shape") == [("x", (2, 4)), ("x", (8, 4))]
    assert context.output_shapes() == {"y": (8, 4)}


def test_other_shapes_need_their_memory_told_again(load, device, trt):
    context = load(double(), [BATCHES], per_element=100).context(0)
    prepare(context, device, np.ones((2, 4), np.float32))
    context.set_shape("x", (8, 4))
    with pytest.raises(AssertionError, match="activation memory of 1024 bytes: 3328 are needed"):
        context.enqueue()
    assert context.memory_needed() == 3328
    trt.faults.clear()


def test_a_shape_outside_the_profile_is_an_error_with_the_range(load):
    context = load(double(), [BATCHES]).context(0)
    with pytest.raises(
        EngineShapeError, match=r"input 'x' cannot have shape \[9, 4\] \(its profile goes from \[1, 4\] to \[8, 4\]\)"
    ):
        context.set_shape("x", (9, 4))
    context.set_shape("x", (8, 4))
    assert context.output_shapes() == {"y": (8, 4)}


def test_a_refused_shape_is_forgotten(load, trt):
    context = load(double(), [BATCHES]).context(0)
    context.set_shape("x", (2, 4))
    with pytest.raises(EngineShapeError):
        context.set_shape("x", (9, 4))
    context.set_shape("x", (2, 4))
    assert len(trt.called("set_input_shape")) == 2


def test_missing_inputs_are_named(load):
    context = load(reshaper(), [RESHAPES]).context(0)
    with pytest.raises(EngineShapeError, match="shapes or values of inputs are missing: s, x"):
        context.output_shapes()
    with pytest.raises(EngineShapeError, match="the engine has no tensor 'z'; it has x, s, y"):
        context.set_address("z", 256)


def test_values_of_shape_tensors_decide_shapes(load, device, cuda):
    context = load(reshaper(), [RESHAPES]).context(0)
    context.set_shape("x", (6,))
    context.set_values("s", np.array([2, 3], np.int32))  # the engine wants int64
    assert context.output_shapes() == {"y": (2, 3)}
    context.set_values("s", np.array([3, 2]))
    assert context.output_shapes() == {"y": (3, 2)}
    context.set_address("x", device(np.arange(6, dtype=np.float32)))
    output = device(24)
    context.set_address("y", output)
    context.set_memory(device(context.memory_needed()), context.memory_needed())
    context.enqueue()
    np.testing.assert_array_equal(cuda.array(output, np.float32, (3, 2)), np.arange(6.0).reshape(3, 2))


def test_values_are_copied_and_equal_ones_are_not_told_again(load, trt):
    context = load(reshaper(), [RESHAPES]).context(0)
    context.set_shape("x", (6,))
    values = np.array([2, 3])
    context.set_values("s", values)
    context.set_values("s", np.array([2, 3]))
    assert len(trt.called("set_tensor_address")) == 1
    values[:] = 1
    assert context.output_shapes() == {"y": (2, 3)}


def test_values_at_an_address_of_the_callers(load, trt):
    context = load(reshaper(), [RESHAPES]).context(0)
    context.set_shape("x", (6,))
    context.set_values("s", np.array([2, 3]))
    values = np.array([3, 2])
    context.set_address("s", values.ctypes.data)
    assert context.output_shapes() == {"y": (3, 2)}
    values[:] = [1, 6]
    context.set_address("s", values.ctypes.data)  # the same place, other values
    assert context.output_shapes() == {"y": (1, 6)}
    context.set_values("s", np.array([2, 3]))
    assert context.output_shapes() == {"y": (2, 3)}


def test_values_outside_the_profile_are_an_error(load):
    context = load(reshaper(), [RESHAPES]).context(0)
    context.set_shape("x", (12,))
    context.set_values("s", np.array([12, 1]))
    with pytest.raises(EngineShapeError, match=r"do not go together: values \[12, 1\] of s are not in the profile"):
        context.output_shapes()


def test_values_that_do_not_fit_the_type_are_an_error(load):
    context = load(reshaper(), [RESHAPES]).context(0)
    with pytest.raises(EngineShapeError, match=r"input 's': values \[0.5, 2.0\] do not fit its type, int64"):
        context.set_values("s", np.array([0.5, 2]))


def test_each_profile_has_one_context_and_owned_ones_come_on_top(load, trt):
    engine = load(double(), [BATCHES, {"x": ((16, 4), (16, 4), (32, 4))}])
    assert engine.context(1) is engine.context(1)
    assert engine.context(0) is not engine.context(1)
    own = engine.context(1, own=True)
    assert own is not engine.context(1)
    assert trt.called("profile") == [(1,), (0,), (1,)]
    assert trt.called("create_context") == [
        ("USER_MANAGED", "LAZY"),
        ("USER_MANAGED", "LAZY"),
        ("USER_MANAGED", "EAGER"),
    ]
    own.close()
    own.close()
    assert own.closed
    assert trt.contexts == 2
    with pytest.raises(EngineRefusedError, match="it has no profile 2; it has 2"):
        engine.context(2)


def test_one_profile_is_not_switched_to(load, trt):
    load(double(), [BATCHES]).context(0)
    assert trt.called("profile") == []


def test_a_context_that_cannot_be_made_says_why(load, trt):
    engine = load(double(), [BATCHES], fail_context="[cudnn.cpp::build::77] cuDNN graph compilation failed")
    with pytest.raises(EngineRefusedError, match="cannot prepare it: cuDNN graph compilation failed"):
        engine.context(0)
    engine = load(double(), [BATCHES], fail_context="Error Code 2: OutOfMemory (no more)")
    with pytest.raises(DeviceMemoryError, match="cannot prepare it: no more"):
        engine.context(0)


def test_a_failed_run_says_why(load, device, trt):
    context = load(double(), [BATCHES]).context(0)
    prepare(context, device, np.ones((2, 4), np.float32))
    trt.fail_enqueue = "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access)"
    with pytest.raises(EngineRunError, match="the engine did not run: an illegal memory access"):
        context.enqueue()
    trt.fail_enqueue = ""
    context.enqueue()


def test_a_tensor_without_a_place_is_refused(load, trt, monkeypatch):
    context = load(double(), [BATCHES]).context(0)
    monkeypatch.setattr(type(context._raw), "set_tensor_address", lambda *_: False)
    monkeypatch.setattr(type(context._raw), "set_output_allocator", lambda *_: False)
    with pytest.raises(EngineRunError, match="tensor 'x' cannot lie at address 0x100"):
        context.set_address("x", 256)
    with pytest.raises(EngineRunError, match="output 'y' cannot have an allocator"):
        context.set_allocator("y", lambda nbytes: 0)


def test_classic_tensorrt_knows_neither_configuration_nor_cache(fake_trt, cuda, tmp_path):
    trt = fake_trt.FakeTrt(cuda, classic=True)
    path = fake_trt.write_engine(tmp_path / "e.engine", double(), [BATCHES], version=trt.__version__)
    cache = RuntimeCacheFile(tmp_path / "cache", "key", "gpu", trt.__version__)
    with TrtRuntime(trt, cuda).load(path, cache) as engine:
        engine.context(0, own=True)
        assert trt.called("create_context") == [("USER_MANAGED", "")]
        assert not engine.save_runtime_cache()
    trt.finish()


def test_old_modules_are_asked_in_their_way(cuda):
    """TensorRT before 10 knows no strategy; one setter takes the address of the activation memory alone."""
    raw = types.SimpleNamespace(device_memory=None)
    engine = LoadedEngine.__new__(LoadedEngine)
    engine._runtime = types.SimpleNamespace(trt=types.SimpleNamespace())
    engine._raw = types.SimpleNamespace(create_execution_context_without_device_memory=lambda: raw)
    assert engine._raw_context(eager=True) == (raw, None)
    engine.activation_bytes = 4096
    context = engine_module.Context(engine, raw, 0, 1, None, None)
    assert context.memory_needed() == 4096
    assert context.capturable()
    context.set_memory(512, 4096)
    assert raw.device_memory == 512


# --- outputs whose shape the data decide


def test_an_allocator_gets_the_size_and_tells_the_shape(load, device, cuda):
    context = load(nonzero(), [{"x": ((1,), (8,), (64,))}], data_dependent=["y"]).context(0)
    assert not context.capturable()
    places = []

    def allocate(nbytes):
        places.append((device(nbytes), nbytes))
        return places[-1][0]

    context.set_allocator("y", allocate)
    for x, expected in (([0, 3, 0, 4], [[1, 3]]), ([5, 0], [[0]])):
        data = np.array(x, np.float32)
        context.set_shape("x", data.shape)
        context.set_address("x", device(data))
        context.set_memory(device(context.memory_needed()), context.memory_needed())
        assert context.output_shapes() == {"y": (1, -1)}
        context.enqueue()
        shape = context.allocated_shape("y")
        assert (shape, places[-1][1]) == ((1, len(expected[0])), 8 * len(expected[0]))
        np.testing.assert_array_equal(cuda.array(places[-1][0], np.int64, shape), expected)


def test_what_an_allocator_raises_is_raised_by_enqueue(load, device):
    context = load(nonzero(), [{"x": ((1,), (8,), (64,))}], data_dependent=["y"]).context(0)

    def fail(nbytes):
        raise DeviceMemoryError(f"no {nbytes} bytes left")

    context.set_allocator("y", fail)
    with pytest.raises(EngineRunError, match="output 'y': TensorRT did not tell its shape"):
        context.allocated_shape("y")
    context.set_shape("x", (2,))
    context.set_address("x", device(np.ones(2, np.float32)))
    context.set_memory(device(256), 256)
    with pytest.raises(DeviceMemoryError, match="no 16 bytes left"):
        context.enqueue()
    context.set_allocator("y", device)  # another allocator takes its place
    context.enqueue()
    assert context.allocated_shape("y") == (1, 2)


def test_an_output_with_an_address_has_no_allocator_any_more(load, device, cuda):
    context = load(double(), [BATCHES]).context(0)
    x = np.ones((2, 4), np.float32)
    output = prepare(context, device, x)
    asked = []
    context.set_allocator("y", lambda nbytes: asked.append(nbytes) or device(nbytes))
    context.enqueue()
    assert asked == [32]
    context.set_address("y", output)
    context.enqueue()
    assert asked == [32]
    assert (cuda.array(output, np.float32, (2, 4)) == 2).all()


# --- capture


def test_a_captured_context_runs_again_with_the_graph(load, device, cuda):
    engine = load(double(), [BATCHES])
    with engine.context(0, own=True) as own:
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        output = prepare(own, device, x)
        own.enqueue()
        graph = cuda.capture(own.enqueue)
        cuda.array(own._addresses["x"], np.float32, (2, 4))[...] = 7
        engine.context(0).set_shape("x", (3, 4))  # the shared context does not touch it
        graph.launch()
        assert (cuda.array(output, np.float32, (2, 4)) == 14).all()
        graph.close()


# --- closing


def test_an_engine_closes_its_contexts_first(load, trt, cuda):
    engine = load(double(), [BATCHES])
    context, own = engine.context(0), engine.context(0, own=True)
    engine.close()
    engine.close()
    assert engine.closed
    assert context.closed
    assert own.closed
    assert (trt.engines, trt.contexts) == (0, 0)
    assert ("synchronize",) in cuda.events
    for use in (lambda: context.set_shape("x", (1, 4)), context.enqueue, context.memory_needed):
        with pytest.raises(ConverterStateError, match="this engine context is closed"):
            use()
    with pytest.raises(ConverterStateError, match="this engine is closed"):
        engine.context(0)


def test_closing_waits_for_the_work_that_is_under_way(fake_cuda, fake_trt, tmp_path):
    with fake_cuda.opened(lazy=True) as cuda:
        trt = fake_trt.FakeTrt(cuda)
        path = fake_trt.write_engine(tmp_path / "e.engine", double(batch=1), per_element=0)
        x, y = cuda.allocate(16), cuda.allocate(16)
        with TrtRuntime(trt, cuda).load(path) as engine:
            context = engine.context(0)
            context.set_address("x", x.pointer)
            context.set_address("y", y.pointer)
            context.enqueue()
            assert cuda.runtime.pending
        assert not cuda.runtime.pending
        trt.finish()
        x.free()
        y.free()


def test_an_engine_works_on_a_device_that_is_not_the_current_one(fake_cuda, fake_trt, tmp_path):
    runtime = fake_cuda.FakeRuntime()
    runtime.devices = 2
    with fake_cuda.opened(device=1, runtime=runtime) as cuda:
        trt = fake_trt.FakeTrt(cuda)
        path = fake_trt.write_engine(tmp_path / "e.engine", double(batch=1))
        with TrtRuntime(trt, cuda).load(path) as engine:
            engine.context(0)
        trt.finish()


def test_an_engine_is_freed_even_when_the_stream_is_broken(load, trt, cuda):
    engine = load(double(), [BATCHES])
    engine.context(0)
    cuda.fail_next("synchronize")
    with pytest.raises(Exception, match="cudaStreamSynchronize"):
        engine.close()
    assert engine.closed
    assert (trt.engines, trt.contexts) == (0, 0)


def test_a_closed_context_is_made_anew(load):
    engine = load(double(), [BATCHES])
    first = engine.context(0)
    first.close()
    assert engine.context(0) is not first


# --- the runtime cache


def test_kernels_are_compiled_once_for_all_processes(load, trt, tmp_path):
    def cache():
        return RuntimeCacheFile(tmp_path / "cache", "key", "Fake GPU, 9.0", trt.__version__)

    first = load(double(), [BATCHES], runtime_cache=cache())
    assert not first.save_runtime_cache()  # nothing was compiled yet
    first.context(0)
    first.context(0, own=True)
    assert trt.compiled == 1
    assert first.save_runtime_cache()
    again = load(double(), [BATCHES], runtime_cache=cache())
    again.context(0)
    assert trt.compiled == 1


def test_a_cache_that_tensorrt_cannot_read_is_a_miss(load, trt, tmp_path):
    cache = RuntimeCacheFile(tmp_path, "key", "gpu", "1")
    assert cache.write(b"of another kind")
    engine = load(double(), [BATCHES], runtime_cache=cache)
    engine.context(0)
    assert cache.hits == 0
    assert [*cache.misses] == ["TensorRT cannot read it: the runtime cache is of another kind"]
    assert trt.compiled == 1
    assert engine.save_runtime_cache()
    assert cache.read().startswith(b"kernels")


def test_a_cache_that_is_not_handed_out_is_told(load, trt, tmp_path, caplog):
    engine = load(double(), [BATCHES], runtime_cache=RuntimeCacheFile(tmp_path, "key", "gpu", "1"))
    engine.context(0)
    trt.fail_cache = "no"
    assert not engine.save_runtime_cache()
    assert "TensorRT did not hand out its runtime cache: no" in caplog.text
    assert not load(double()).save_runtime_cache()


# --- TensorRT-RTX itself


@pytest.mark.rtx
def test_tensorrt_refuses_an_engine_where_there_is_no_gpu(rtx, cuda, tmp_path):
    if installed_gpus():
        pytest.skip("a GPU is there")
    built = rtx.build(
        model_module.from_proto(double()), [{"x": InputProfile(*BATCHES["x"])}], BuildOptions(), tmp_path / "e.engine"
    )
    runtime = TrtRuntime(import_runtime("tensorrt_rtx"), cuda)
    with pytest.raises(EngineRefusedError, match=r"^tensorrt_rtx [\d.]+ cannot load it: \w") as refused:
        runtime.load(built.path)
    assert "_src" not in str(refused.value)
    built.path.write_bytes(built.path.read_bytes()[:100])
    with pytest.raises(EngineRefusedError, match="cannot load it: the file is not whole"):
        runtime.load(built.path)
    built.path.write_bytes(b"something else" * 100)
    with pytest.raises(EngineRefusedError, match="cannot load it: Trying to load an engine created with incompatible"):
        runtime.load(built.path)
