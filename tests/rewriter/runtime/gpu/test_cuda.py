"""The CUDA layer, over a runtime that records and fails as told; at the end the same on a GPU."""

import gc
import threading
import weakref

import ml_dtypes
import numpy as np
import pytest

from rewriter.errors import (
    CaptureError,
    ConverterStateError,
    CudaError,
    DeviceMemoryError,
    InvalidParameterError,
    MissingDependencyError,
)
from rewriter.runtime.gpu import cudart
from rewriter.runtime.gpu.cuda import Cuda
from rewriter.runtime.gpu.pinned import PinnedPool


def upload(cuda, array):
    """The array in fresh device memory."""
    buffer, staging = cuda.allocate(array.nbytes), cuda.pinned(array.nbytes)
    staging.array(array.dtype, array.shape)[...] = array
    cuda.to_device(buffer.pointer, staging.pointer, array.nbytes)
    cuda.record().synchronize()
    staging.release()
    return buffer


def download(cuda, pointer, dtype, shape):
    staging = cuda.pinned(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    cuda.to_host(staging.pointer, pointer, staging.nbytes)
    cuda.record().synchronize()
    copy = staging.array(dtype, shape).copy()
    staging.release()
    return copy


def test_a_missing_binding_names_the_extra(monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(cudart.importlib, "import_module", refuse)
    with pytest.raises(MissingDependencyError, match=r"trt-rewriter\[gpu\]"):
        Cuda()


def test_what_it_says_of_the_device(cuda):
    assert (cuda.gpu_name, cuda.compute_capability, cuda.device) == ("Fake GPU", (9, 0), 0)
    name, options = Cuda.providers.fget(cuda)[0]
    assert name == "CUDAExecutionProvider"
    assert options["user_compute_stream"] == str(cuda.stream)
    assert options["device_id"] == "0"
    assert cuda.memory() == (80 << 30, 80 << 30)


@pytest.mark.parametrize("dtype", [np.float32, np.bool_, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_bytes_go_there_and_back(cuda, dtype):
    data = (np.arange(24).reshape(2, 3, 4) % 3).astype(dtype)
    buffer = upload(cuda, data)
    other = cuda.allocate(data.nbytes)
    cuda.on_device(other.pointer, buffer.pointer, data.nbytes)
    np.testing.assert_array_equal(download(cuda, other.pointer, dtype, (2, 3, 4)), data)


def test_no_bytes_have_an_address(cuda):
    buffer = cuda.allocate(0)
    assert buffer.pointer
    assert buffer.nbytes == 0
    cuda.to_device(buffer.pointer, 0, 0)


def test_a_failing_call_is_named_and_leaves_no_last_error(cuda):
    cuda.fail_next("to_device")
    buffer = cuda.allocate(4)
    with pytest.raises(CudaError, match=r"cudaMemcpyAsync \(4 bytes\) failed: cudaErrorInvalidValue"):
        cuda.to_device(buffer.pointer, 0, 4)
    assert cuda.runtime.last_error == 0


def test_a_lost_context_is_said(cuda):
    event = cuda.record()
    cuda.fail_next("event.synchronize")
    with pytest.raises(CudaError, match="restart it"):
        event.synchronize()


def test_out_of_memory_says_how_much(cuda):
    cuda.memory_limit = 1000
    first = cuda.allocate(600)
    with pytest.raises(DeviceMemoryError, match=r"\(500 bytes\).*400 of .* bytes of Fake GPU are free"):
        cuda.allocate(500)
    first.free()
    first.free()
    assert cuda.allocate(500).nbytes == 500


def test_no_page_locked_memory(cuda):
    cuda.fail_next("pinned")
    with pytest.raises(DeviceMemoryError, match="page-locked"):
        cuda.pinned(10)


@pytest.mark.parametrize(
    "call", ["cudaGetDevice", "cudaStreamCreateWithFlags", "cudaMemPoolCreate", "cudaGetDeviceProperties"]
)
def test_what_fails_at_the_start_leaves_nothing(fake_cuda, call):
    runtime = fake_cuda.FakeRuntime()
    runtime.failures[call] = [fake_cuda.cudaError_t.cudaErrorInvalidValue]
    with pytest.raises(CudaError, match=call):
        fake_cuda.FakeCuda(runtime=runtime)
    assert not runtime.live


def test_a_device_that_is_not_there(fake_cuda):
    with pytest.raises(CudaError, match="cudaSetDevice"):
        fake_cuda.FakeCuda(device=3)


def test_another_device_is_current_only_inside(fake_cuda):
    runtime = fake_cuda.FakeRuntime()
    runtime.devices = 2
    with fake_cuda.FakeCuda(device=1, runtime=runtime) as cuda:
        assert runtime.cudaGetDevice() == (0, 0)
        with cuda.current():
            assert runtime.cudaGetDevice() == (0, 1)
        assert runtime.cudaGetDevice() == (0, 0)


def test_a_stream_of_the_users(fake_cuda):
    runtime = fake_cuda.FakeRuntime()
    theirs = runtime.make("stream")
    with fake_cuda.FakeCuda(stream=int(theirs), runtime=runtime) as cuda:
        assert cuda.stream == int(theirs)
    assert runtime.live == {int(theirs): "stream"}
    with fake_cuda.FakeCuda(stream=0) as cuda:
        assert cuda.stream == 1
    with pytest.raises(InvalidParameterError, match="device 1"):
        fake_cuda.FakeCuda(stream=0xD1)


def test_events_are_pooled(cuda):
    for _ in range(5):
        assert cuda.record().done()
    assert cuda.runtime.handles("event") == 1
    first, second = cuda.record(), cuda.record()
    assert cuda.runtime.handles("event") == 2
    del first, second
    cuda.fail_next("record")
    with pytest.raises(CudaError, match="cudaEventRecord"):
        cuda.record()


def test_streams_wait_for_each_other(cuda):
    cuda.follow(cuda.stream)
    assert not cuda.runtime.waits
    cuda.follow(77)
    cuda.record().hold_back(88)
    assert [stream for stream, _ in cuda.runtime.waits] == [cuda.stream, 88]


def test_kept_until_done(fake_cuda):
    class Thing:
        pass

    with fake_cuda.opened(lazy=True) as cuda:
        thing = Thing()
        gone = weakref.ref(thing)
        cuda.launch(lambda: None)
        cuda.keep(thing)
        del thing
        gc.collect()
        assert gone() is not None
        cuda.record().synchronize()
        cuda.keep(None)
        gc.collect()
        assert gone() is None


def test_a_graph_replays(cuda):
    a, b = upload(cuda, np.arange(4.0)), cuda.allocate(32)
    graph = cuda.capture(lambda: cuda.on_device(b.pointer, a.pointer, 32))
    assert (cuda.array(b.pointer, np.uint8, (32,)) == 0xCD).all()
    graph.launch()
    np.testing.assert_array_equal(cuda.array(b.pointer, np.float64, (4,)), np.arange(4.0))
    cuda.array(a.pointer, np.float64, (4,))[:] = 7
    graph.launch()
    assert (cuda.array(b.pointer, np.float64, (4,)) == 7).all()
    graph.close()
    graph.close()
    with pytest.raises(ConverterStateError, match="closed"):
        graph.launch()


@pytest.mark.parametrize(
    "call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphUpload"]
)
def test_a_capture_that_fails_leaves_nothing(cuda, call):
    cuda.fail_next(call)
    with pytest.raises(CaptureError, match=call):
        cuda.capture(lambda: None)
    if cuda.capturing:  # the failure was of the end itself
        cuda.runtime.captured = None
    assert cuda.runtime.handles("executable") == cuda.runtime.handles("graph") == 0
    cuda.capture(lambda: None).close()


def test_work_that_raises_ends_the_capture(cuda):
    def work():
        raise ValueError("no such step")

    with pytest.raises(CaptureError, match="no such step") as caught:
        cuda.capture(work)
    assert isinstance(caught.value.__cause__, ValueError)
    assert not cuda.capturing
    assert cuda.runtime.handles("graph") == 0

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cuda.capture(interrupt)
    assert not cuda.capturing


def test_what_a_capture_must_not_hold(cuda):
    buffer = cuda.allocate(8)
    for work in (
        lambda: cuda.allocate(8),
        cuda.synchronize,
        lambda: cuda.to_device(buffer.pointer, np.zeros(1).ctypes.data, 8),
        lambda: cuda.capture(lambda: None),
    ):
        with pytest.raises(CaptureError):
            cuda.capture(work)
    cuda.capture(lambda: None).close()


def test_what_is_freed_in_a_capture_is_freed_after_it(cuda):
    buffer, staging = cuda.allocate(8), cuda.pinned(8)
    held = [staging._block]
    staging._pool._closed = True  # so that the block is freed, not kept
    staging.release()
    del staging

    def work():
        nonlocal buffer
        buffer = None
        held.clear()
        assert cuda.live_bytes == 8

    graph = cuda.capture(work)
    assert cuda.live_bytes == 0
    assert cuda.runtime.bytes_of("host") == 0
    graph.launch()


def test_close(fake_cuda):
    cuda = fake_cuda.FakeCuda()
    survivor = cuda.allocate(16)
    event = cuda.record()
    cuda.close()
    cuda.close()
    for call in (cuda.record, cuda.synchronize, lambda: cuda.allocate(1), lambda: cuda.pinned(1), cuda.memory):
        with pytest.raises(ConverterStateError, match="closed"):
            call()
    with pytest.raises(ConverterStateError, match="closed"), cuda:
        pass
    cuda.check(survivor.pointer, 16)
    out = np.zeros(16, np.uint8)
    cuda.read(out.ctypes.data, survivor.pointer, 16)
    assert (out == 0xCD).all()
    assert cuda.runtime.handles("stream") == cuda.runtime.handles("pool") == 1
    del survivor, event
    cuda.assert_clean()


def test_trim(cuda):
    cuda.trim()
    assert "cudaMemPoolTrimTo" in cuda.runtime.calls


def test_a_reader_on_another_stream_is_waited_for(cuda):
    buffer = cuda.allocate(8)
    buffer.read_on(1)
    buffer.free()
    assert cuda.runtime.waits[-1][0] == cuda.stream
    buffer = cuda.allocate(8)
    buffer.read_on(99)
    buffer.free()
    assert cuda.runtime.calls[-2:] == ["cudaDeviceSynchronize", "cudaFreeAsync"]


def test_a_reader_that_cannot_be_waited_for_now(cuda):
    buffer = cuda.allocate(8)
    buffer.read_on(99)
    cuda.fail_next("cudaDeviceSynchronize", "cudaErrorStreamCaptureUnsupported")
    buffer.free()
    assert cuda.live_bytes == 8
    cuda.synchronize()
    assert cuda.live_bytes == 0


class TestPinned:
    def test_size_classes_and_reuse(self, cuda):
        first = cuda.pinned(5000)
        pointer = first.pointer
        first.release()
        first.release()
        with pytest.raises(ConverterStateError, match="released"):
            first.array(np.uint8, (1,))
        assert cuda.pinned(8000).pointer == pointer
        assert cuda.runtime.calls.count("cudaHostAlloc") == 1

    def test_too_small_for_the_array(self, cuda):
        buffer = cuda.pinned(0)
        with pytest.raises(TypeError):
            buffer.array(np.uint8, (5000,))
        buffer.release()

    def test_idle_bytes_are_bounded(self):
        memory, freed = {}, []

        def allocate(nbytes):
            block = np.zeros(nbytes, np.uint8)
            memory[block.ctypes.data] = block
            return block.ctypes.data

        pool = PinnedPool(allocate, freed.append, idle_bytes=3 << 12)
        buffers = [pool.take(4096) for _ in range(5)]
        for buffer in buffers:
            buffer.release()
        gc.collect()
        assert pool.idle_bytes == 3 << 12
        assert len(freed) == 2
        late = pool.take(4096)
        pool.close()
        assert len(freed) == 4
        late.release()
        assert len(freed) == 5
        assert sorted(freed) == sorted(memory)

    def test_a_forgotten_array_keeps_its_memory(self, cuda):
        array = cuda.pinned(8).array(np.int64, (1,))
        gc.collect()
        array[0] = 5
        assert cuda.runtime.bytes_of("host") == 4096
        del array
        assert cuda.runtime.bytes_of("host") == 0

    def test_threads(self, cuda):
        wrong = []

        def work(value):
            for _ in range(200):
                buffer = cuda.pinned(64)
                array = buffer.array(np.int64, (8,))
                array[:] = value
                cuda.record().synchronize()
                if (array != value).any():
                    wrong.append(value)
                buffer.release()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


@pytest.mark.gpu
class TestOnAGpu:
    """The same layer over the real runtime."""

    @pytest.fixture
    def real(self):
        with Cuda() as cuda:
            yield cuda

    def test_copies_and_a_graph(self, real):
        data = np.arange(1000, dtype=np.float32)
        a, b = upload(real, data), real.allocate(4000)
        graph = real.capture(lambda: real.on_device(b.pointer, a.pointer, 4000))
        graph.launch()
        np.testing.assert_array_equal(download(real, b.pointer, np.float32, (1000,)), data)
        graph.close()
        assert real.memory()[0] < real.memory()[1]
        assert real.device_of(a.pointer) == 0
        real.trim()

    def test_a_failed_capture_leaves_the_stream_in_order(self, real):
        a = real.allocate(8)
        with pytest.raises(CaptureError):
            real.capture(real.synchronize)
        with pytest.raises(CaptureError):
            real.capture(lambda: real.to_device(a.pointer, 0, 8))
        real.capture(lambda: None).launch()
        real.synchronize()

    def test_out_of_memory(self, real):
        with pytest.raises(DeviceMemoryError, match="are free"):
            real.allocate(1 << 50)
        assert real.allocate(8).pointer

    def test_a_buffer_outlives_close(self):
        cuda = Cuda()
        buffer = upload(cuda, np.arange(4))
        cuda.close()
        out = np.zeros(4, np.int64)
        cuda.read(out.ctypes.data, buffer.pointer, 32)
        np.testing.assert_array_equal(out, np.arange(4))
        buffer.free()

    def test_the_default_stream(self):
        with Cuda(stream=0) as cuda:
            buffer = upload(cuda, np.arange(4))
            np.testing.assert_array_equal(download(cuda, buffer.pointer, np.int64, (4,)), np.arange(4))
