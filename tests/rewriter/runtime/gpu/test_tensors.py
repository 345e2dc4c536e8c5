"""Device tensors that go out and come in; the double's device is the host, so numpy is the other library."""

import gc
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from rewriter.errors import CudaError, InputError
from rewriter.runtime.gpu import tensors
from rewriter.runtime.gpu.tensors import DeviceTensor, device_view

TYPES = [
    np.float32,
    np.float16,
    np.int64,
    np.uint8,
    np.bool_,
    np.complex64,
    np.complex128,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
]


def put(cuda, array):
    """The array as an output on the device."""
    buffer = cuda.allocate(array.nbytes)
    cuda.to_device(buffer.pointer, array.ctypes.data, array.nbytes)
    return DeviceTensor(cuda, buffer, array.dtype, array.shape)


class Foreign:
    """Somebody else's tensor, made of one of ours: only the protocol is seen. The capsule can be changed on its way."""

    def __init__(self, tensor, change=None, old=False):
        self.tensor = tensor
        self.change = change
        self.old = old

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, stream=None, **options):
        if self.old and options:
            raise TypeError("unexpected keyword argument 'max_version'")
        capsule = self.tensor.__dlpack__(stream=stream, **options)
        if self.change:
            self.change(tensors._tensor_of(capsule))
        return capsule


def data(dtype, shape=(2, 3)):
    return np.asarray(np.arange(np.prod(shape)).reshape(shape) % 2).astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("old", [False, True])
def test_there_and_back_by_dlpack(cuda, dtype, old):
    array = data(dtype)
    view = device_view(Foreign(put(cuda, array), old=old), cuda)
    gc.collect()
    assert (view.shape, view.dtype, view.nbytes) == ((2, 3), np.dtype(dtype), array.nbytes)
    np.testing.assert_array_equal(cuda.array(view.pointer, view.dtype, view.shape), array)
    del view
    assert cuda.live_bytes == 0


@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.int64])
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (1, 2, 1)])
def test_numpy_takes_it(cuda, dtype, shape):
    array = data(dtype, shape)
    taken = np.from_dlpack(put(cuda, array))
    np.testing.assert_array_equal(taken, array)
    assert taken.dtype == array.dtype
    assert cuda.live_bytes == max(1, array.nbytes)
    del taken
    assert cuda.live_bytes == 0


def test_a_capsule_nobody_takes_leaks_nothing(cuda):
    tensor = put(cuda, data(np.float32))
    capsules = [tensor.__dlpack__(), tensor.__dlpack__(max_version=(1, 0))]
    del tensor
    assert cuda.live_bytes == 24
    del capsules
    assert cuda.live_bytes == 0


def test_an_exception_under_way_survives_the_drop(cuda):
    def fail(capsule, taken, number):
        raise AssertionError

    for tensor in (put(cuda, data(np.float32)), put(cuda, data(np.float32))):
        with pytest.raises(ValueError, match="invalid literal"):
            fail(tensor.__dlpack__(), np.from_dlpack(tensor), int("x"))


def test_it_outlives_the_runtime(fake_cuda):
    cuda = fake_cuda.FakeCuda()
    tensor = put(cuda, np.arange(6.0))
    taken = np.from_dlpack(tensor)
    cuda.close()
    np.testing.assert_array_equal(tensor.numpy(), np.arange(6.0))
    np.testing.assert_array_equal(taken, np.arange(6.0))
    del tensor, taken
    cuda.assert_clean()


def test_numpy_waits(fake_cuda):
    with fake_cuda.opened(lazy=True) as cuda:
        tensor = put(cuda, array := np.arange(3))
        assert cuda.array(tensor.pointer, np.uint8, (24,))[0] == 0xCD
        np.testing.assert_array_equal(tensor.numpy(), array)
        del tensor


def test_as_an_array(cuda):
    tensor = put(cuda, np.arange(3))
    np.testing.assert_array_equal(np.asarray(tensor), np.arange(3))
    assert np.asarray(tensor, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="copy"):
        np.array(tensor, copy=False)
    assert repr(tensor) == "DeviceTensor(shape=(3,), dtype=int64, device=cpu:0)"


def test_what_an_export_refuses(cuda):
    tensor = put(cuda, np.arange(3))
    with pytest.raises(BufferError, match="numpy"):
        tensor.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="numpy"):
        tensor.__dlpack__(dl_device=(2, 5))
    assert tensor.__dlpack__(dl_device=(1, 0), copy=False)
    with pytest.raises(BufferError, match="int4"):
        put(cuda, np.zeros(3, ml_dtypes.int4)).__dlpack__()


class TestStreams:
    """What is told to streams, with a double that says it is a CUDA device."""

    @pytest.fixture
    def gpu(self, cuda):
        cuda.device_type = "cuda"
        cuda.dlpack_device = (2, 0)
        return cuda

    @pytest.mark.parametrize(("stream", "waits"), [(None, [1]), (1, [1]), (7, [7]), (-1, [])])
    def test_a_consumers_stream_waits(self, gpu, stream, waits):
        tensor = put(gpu, np.arange(3))
        assert tensor.__dlpack_device__() == (2, 0)
        capsule = tensor.__dlpack__(stream=stream)
        assert [s for s, _ in gpu.runtime.waits] == waits
        place = tensors._tensor_of(capsule).device
        assert (place.type, place.index) == (2, 0)

    def test_our_own_stream_does_not_wait(self, gpu):
        tensor = put(gpu, np.arange(3))
        tensor.__dlpack__(stream=gpu.stream)
        del tensor
        assert not gpu.runtime.waits
        assert "cudaDeviceSynchronize" not in gpu.runtime.calls

    def test_the_array_interface(self, gpu):
        tensor = put(gpu, data(np.float16))
        interface = tensor.__cuda_array_interface__
        assert interface == {
            "shape": (2, 3),
            "typestr": "<f2",
            "data": (tensor.pointer, False),
            "version": 3,
            "strides": None,
            "stream": 1,
        }
        assert [s for s, _ in gpu.runtime.waits] == [1]
        assert not hasattr(put(gpu, data(ml_dtypes.bfloat16)), "__cuda_array_interface__")

    def test_the_producers_stream_is_given_ours(self, gpu):
        asked = []
        tensor = put(gpu, np.arange(3))

        class Producer(Foreign):
            def __dlpack__(self, stream=None, **options):
                asked.append(stream)
                return super().__dlpack__(stream, **options)

        assert device_view(Producer(tensor), gpu).pointer == tensor.pointer
        assert asked == [gpu.stream]

    def test_another_device(self, gpu):
        gpu.dlpack_device = (2, 1)
        value = SimpleNamespace(__dlpack_device__=lambda: (2, 0))
        with pytest.raises(InputError, match="device 0, but the model runs on device 1"):
            device_view(value, gpu)
        assert device_view(SimpleNamespace(__dlpack_device__=lambda: (1, 0)), gpu) is None


def test_what_is_no_device_tensor(cuda):
    for value in (np.zeros(3), np.float32(1), [1, 2], "text", 5, None):
        assert device_view(value, cuda) is None


def test_our_own_output_is_read_at_once(cuda):
    tensor = put(cuda, data(np.float32))
    view = device_view(tensor, cuda)
    assert (view.pointer, view.keep) == (tensor.pointer, tensor)


def strided(*steps):
    def change(tensor):
        for axis, step in enumerate(steps):
            tensor.strides[axis] = step

    return change


@pytest.mark.parametrize(("shape", "steps"), [((2, 3), (1, 2)), ((2, 3), (6, 1)), ((4,), (0,))])
def test_not_dense(cuda, shape, steps):
    with pytest.raises(InputError, match="contiguous"):
        device_view(Foreign(put(cuda, data(np.float32, shape)), strided(*steps)), cuda)


@pytest.mark.parametrize(
    ("shape", "steps"), [((1, 3), (99, 1)), ((0, 3), (7, 7)), ((3, 0), (7, 7)), ((2, 1, 3), (3, 5, 1))]
)
def test_steps_that_do_not_matter(cuda, shape, steps):
    assert device_view(Foreign(put(cuda, data(np.float32, shape)), strided(*steps)), cuda).shape == shape


def test_an_offset(cuda):
    def change(tensor):
        tensor.byte_offset = 8
        tensor.shape[0] = 1

    tensor = put(cuda, np.arange(2))
    assert device_view(Foreign(tensor, change), cuda).pointer == tensor.pointer + 8


def test_a_type_without_a_name(cuda):
    def change(tensor):
        tensor.dtype.lanes = 4

    with pytest.raises(InputError, match="4 lanes"):
        device_view(Foreign(put(cuda, data(np.float32)), change), cuda)


def test_a_library_that_refuses(cuda):
    class Refuses(Foreign):
        def __dlpack__(self, **options):
            raise BufferError("it requires grad")

    with pytest.raises(InputError, match="it requires grad"):
        device_view(Refuses(put(cuda, data(np.float32))), cuda)


class TestInterface:
    """Arrays that have ``__cuda_array_interface__`` only."""

    def make(self, tensor, **changes):
        base = {"shape": tensor.shape, "typestr": tensor.dtype.str, "data": (tensor.pointer, False), "version": 3}
        return SimpleNamespace(__cuda_array_interface__=base | changes)

    def test_it_is_read_in_order(self, cuda):
        tensor = put(cuda, data(np.float32))
        value = self.make(tensor, strides=(12, 4), stream=55)
        view = device_view(value, cuda)
        assert (view.pointer, view.shape, view.dtype) == (tensor.pointer, (2, 3), np.float32)
        assert view.keep is value
        assert [s for s, _ in cuda.runtime.waits] == [cuda.stream]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [({"strides": (4, 8)}, "contiguous"), ({"mask": 1}, "masked"), ({"typestr": "<V2"}, "DLPack")],
    )
    def test_refused(self, cuda, changes, message):
        with pytest.raises(InputError, match=message):
            device_view(self.make(put(cuda, data(np.float32)), **changes), cuda)

    def test_another_device(self, cuda, monkeypatch):
        monkeypatch.setattr(cuda, "device_of", lambda pointer: 3)
        with pytest.raises(InputError, match="device 3"):
            device_view(self.make(put(cuda, data(np.float32))), cuda)
        monkeypatch.undo()
        cuda.fail_next("cudaPointerGetAttributes")
        with pytest.raises(CudaError):
            device_view(self.make(put(cuda, data(np.float32))), cuda)
