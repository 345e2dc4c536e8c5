"""The double is as strict as it says."""

import inspect

import numpy as np
import pytest

from rewriter.errors import CaptureError, CudaError, DeviceMemoryError
from rewriter.runtime.gpu.cuda import Cuda


def test_the_surface_is_that_of_the_real_one(fake_cuda):
    double = fake_cuda.FakeCuda
    assert issubclass(double, Cuda)
    for name, member in vars(double).items():
        real = getattr(Cuda, name, None)
        if inspect.isfunction(member) and inspect.isfunction(real) and name != "__init__":
            assert list(inspect.signature(member).parameters) == list(inspect.signature(real).parameters), name


def test_unknown_freed_and_out_of_bounds(fake_cuda):
    cuda = fake_cuda.FakeCuda()
    buffer, staging = cuda.allocate(8), cuda.pinned(8)
    with pytest.raises(AssertionError, match="no memory of this device"):
        cuda.on_device(buffer.pointer, 12345, 8)
    with pytest.raises(AssertionError, match="only 8 bytes"):
        cuda.check(buffer.pointer, 9)
    with pytest.raises(AssertionError, match="only 4 bytes"):
        cuda.to_host(staging.pointer, buffer.pointer + 4, 8)
    with pytest.raises(AssertionError, match="page-locked"):
        cuda.on_device(buffer.pointer, staging.pointer, 8)
    pointer = buffer.pointer
    buffer.free()
    with pytest.raises(AssertionError, match="freed"):
        cuda.check(pointer, 1)


def test_a_write_past_the_end_is_found(fake_cuda):
    cuda = fake_cuda.FakeCuda()
    buffer = cuda.allocate(8)
    cuda.runtime.blocks[buffer.pointer].raw[cuda.runtime.blocks[buffer.pointer].start + 8] = 0
    with pytest.raises(AssertionError, match="past the end"):
        buffer.free()


def test_fresh_memory_is_poisoned_and_counted(cuda):
    first = cuda.allocate(100)
    assert (cuda.array(first.pointer, np.uint8, (100,)) == 0xCD).all()
    second = cuda.allocate(50)
    assert (cuda.live_bytes, cuda.peak_bytes) == (150, 150)
    first.free()
    second.free()
    assert (cuda.live_bytes, cuda.peak_bytes) == (0, 150)


def test_what_is_left_is_told(fake_cuda):
    cuda = fake_cuda.FakeCuda()
    graph = cuda.capture(lambda: None)
    buffer = cuda.allocate(10)
    cuda.close()
    with pytest.raises(AssertionError, match="never given back"):
        cuda.assert_clean()
    buffer.free()
    with pytest.raises(AssertionError, match="never destroyed"):
        cuda.assert_clean()
    graph.close()
    cuda.assert_clean()


def test_injected_failures(cuda):
    cuda.memory_limit = 10
    with pytest.raises(DeviceMemoryError):
        cuda.allocate(11)
    cuda.fail_capture = True
    for _ in range(2):
        with pytest.raises(CaptureError):
            cuda.capture(lambda: None)
        cuda.runtime.captured = None
    cuda.fail_capture = False
    graph = cuda.capture(lambda: None)
    cuda.fail_next("graph.launch")
    with pytest.raises(CudaError, match="cudaGraphLaunch"):
        graph.launch()
    graph.launch()


def test_replayed_work_is_checked_again(cuda):
    a, b = cuda.allocate(8), cuda.allocate(8)
    graph = cuda.capture(lambda: cuda.on_device(a.pointer, b.pointer, 8))
    graph.launch()
    b.free()
    with pytest.raises(AssertionError, match="freed"):
        graph.launch()


def test_events_tell_the_order(cuda):
    buffer = cuda.allocate(8)
    cuda.launch(lambda: None)
    cuda.enqueue(lambda: None)
    cuda.record()
    assert [e[0] for e in cuda.events] == ["allocate", "launch", "launch", "record"]
    assert cuda.events[0] == ("allocate", buffer.pointer, 8)


def test_lazy_work_waits_to_be_waited_for(fake_cuda):
    done = []
    with fake_cuda.opened(lazy=True) as cuda:
        cuda.launch(lambda: done.append(1))
        event = cuda.record()
        assert not done
        assert not event.done()
        event.synchronize()
        assert done
        assert event.done()
        del event
