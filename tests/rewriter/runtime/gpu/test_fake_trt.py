"""The double of TensorRT is strict: what a GPU would punish late, or never, fails here at once."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from onnx import TensorProto, helper

BATCHES = {"x": ((1, 4), (2, 4), (8, 4))}
LATER = {"x": ((16, 4), (16, 4), (32, 4))}


def double():
    """y = x + x, x of shape [n, 4]."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    proto = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", infos[:1], infos[1:])
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def bare(fake_trt, cuda):
    """A module whose faults the test looks at itself."""
    return fake_trt.FakeTrt(cuda)


@pytest.fixture
def engine_of(bare, fake_trt, tmp_path):
    class Quiet(bare.ILogger):
        def log(self, severity, msg):
            pass

    def make(*profiles, **options):
        path = fake_trt.write_engine(tmp_path / "e.engine", double(), profiles or [BATCHES], **options)
        return bare.Runtime(bare.logger or Quiet()).deserialize_cuda_engine(path.read_bytes())

    return make


def context_of(bare, engine):
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(bare.ExecutionContextAllocationStrategy.USER_MANAGED)
    return engine.create_execution_context(config)


@pytest.fixture
def ready(bare, engine_of, cuda):
    """An engine, a context that has all it needs, and its buffers."""
    engine = engine_of()
    context = context_of(bare, engine)
    buffers = [cuda.allocate(nbytes) for nbytes in (32, 32, 256)]
    cuda.array(buffers[0].pointer, np.float32, (2, 4))[...] = 1
    context.set_input_shape("x", (2, 4))
    context.set_tensor_address("x", buffers[0].pointer)
    context.set_tensor_address("y", buffers[1].pointer)
    context.set_device_memory(buffers[2].pointer, 256)
    yield engine, context, buffers
    for buffer in buffers:
        buffer.free()


def test_a_context_that_has_all_it_needs_runs(bare, ready, cuda):
    _, context, buffers = ready
    assert context.execute_async_v3(cuda.stream)
    assert (cuda.array(buffers[1].pointer, np.float32, (2, 4)) == 2).all()
    assert (cuda.array(buffers[2].pointer, np.uint8, (256,)) == 0xAB).all()
    assert bare.faults == []


def forget_address(context, cuda, buffers):
    del context._addresses["y"]


def forget_shape(context, cuda, buffers):
    context.set_optimization_profile_async(0, cuda.stream)


def freed(context, cuda, buffers):
    buffers[1].free()


def too_small(context, cuda, buffers):
    context.set_input_shape("x", (8, 4))


def unknown(context, cuda, buffers):
    context.set_tensor_address("y", 4096)


def overlapping(context, cuda, buffers):
    context.set_tensor_address("y", buffers[0].pointer)


def no_memory(context, cuda, buffers):
    context.update_device_memory_size_for_shapes()


def little_memory(context, cuda, buffers):
    context.set_device_memory(buffers[2].pointer, 16)


def other_device(context, cuda, buffers):
    cuda.runtime.thread.device = 1


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (forget_address, "without an address of 'y'"),
        (forget_shape, r"enqueued without \['x'\]"),
        (freed, "'y': .* was freed"),
        (too_small, "'[xy]': .*only 32 bytes"),
        (unknown, "'y': .*no memory of this device"),
        (overlapping, "'[xy]' and '[xy]' overlap"),
        (no_memory, "without activation memory"),
        (little_memory, "activation memory of 16 bytes: 256 are needed"),
        (other_device, "device 1 is the current one, not 0"),
    ],
)
def test_a_wrong_enqueue_is_a_fault(bare, ready, cuda, harm, words):
    _, context, buffers = ready
    harm(context, cuda, buffers)
    try:
        with pytest.raises(AssertionError, match=words):
            context.execute_async_v3(cuda.stream)
    finally:
        cuda.runtime.thread.device = 0
    assert len(bare.faults) == 1
    with pytest.raises(AssertionError):
        bare.finish()


def test_another_stream_is_a_fault(bare, ready, cuda):
    _, context, _ = ready
    with pytest.raises(AssertionError, match="a stream that is not the runtime's"):
        context.execute_async_v3(cuda.stream + 1)


def test_two_threads_in_one_context_are_a_fault(bare, ready, cuda):
    _, context, _ = ready
    caught = []

    def other():
        try:
            context.set_input_shape("x", (1, 4))
        except AssertionError as error:
            caught.append(str(error))

    with context._alone():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert caught == ["two threads are inside one context"]


def test_an_engine_freed_before_its_contexts_is_a_fault(bare, engine_of):
    engine = engine_of()
    context = context_of(bare, engine)
    del engine
    assert bare.faults == ["an engine was freed before its contexts"]
    del context


def test_several_profiles_need_a_choice_first(bare, engine_of, cuda):
    engine = engine_of(BATCHES, LATER)
    context = context_of(bare, engine)
    with pytest.raises(AssertionError, match="before the profile was chosen"):
        context.set_input_shape("x", (2, 4))
    assert not context.set_optimization_profile_async(2, cuda.stream)
    assert context.set_optimization_profile_async(1, cuda.stream)
    assert not context.set_input_shape("x", (2, 4))
    assert not context.set_input_shape("x", (16, 4, 1))
    assert context.set_input_shape("x", (16, 4))


def test_a_graph_outlives_neither_its_context_nor_its_shapes(bare, ready, cuda):
    _, context, _ = ready
    graph = cuda.capture(lambda: context.execute_async_v3(cuda.stream))
    graph.launch()
    context.set_input_shape("x", (1, 4))
    with pytest.raises(AssertionError, match="a graph was replayed after the shapes of its context changed"):
        graph.launch()
    graph.close()


def test_a_graph_of_a_closed_context_is_a_fault(bare, engine_of, cuda):
    engine = engine_of(per_element=0)
    context = context_of(bare, engine)
    buffers = [cuda.allocate(16), cuda.allocate(16)]
    context.set_input_shape("x", (1, 4))
    for name, buffer in zip("xy", buffers, strict=True):
        context.set_tensor_address(name, buffer.pointer)
    graph = cuda.capture(lambda context=context: context.execute_async_v3(cuda.stream))
    del context
    with pytest.raises(AssertionError, match="a context was closed before its work was done, or its graph replayed"):
        graph.launch()
    graph.close()
    for buffer in buffers:
        buffer.free()


def test_a_second_logger_is_a_fault(bare):
    bare.Runtime(bare.ILogger())
    with pytest.raises(AssertionError, match="TensorRT keeps its first logger"):
        bare.Runtime(bare.ILogger())


def test_what_is_left_open_is_a_fault(bare, engine_of):
    engine = engine_of()
    with pytest.raises(AssertionError, match="not closed"):
        bare.finish()
    del engine
    bare.finish()
