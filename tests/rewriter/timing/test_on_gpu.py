"""The stream to time on, over the GPU's double; and on a GPU."""

import numpy as np
import pytest

from rewriter.errors import CudaError
from rewriter.timing.on_gpu import GpuStream


def test_arrays_lie_on_the_device_and_strings_stay(stream, cuda, image):
    words = np.array(["a"], object)
    found = stream.put({"image": image, "turned": image.T, "one": np.float32(3), "words": words})
    assert found["words"] is words
    for name, expected in (("image", image), ("turned", image.T), ("one", np.float32(3))):
        tensor = found[name]
        np.testing.assert_array_equal(tensor.numpy(), expected, strict=True)
        cuda.check(tensor.pointer, tensor.nbytes)


def test_times_of_the_device(stream):
    calls = []
    found = stream.measure(lambda: calls.append(1), 3)
    assert (len(calls), found.seconds) == (3, (0.002,) * 3)
    assert stream.gpu.keys() == {"name", "compute_capability"}


def test_events_go_with_a_failed_call(stream, cuda):
    def fail():
        raise CudaError("broken")

    before = len(cuda.runtime.live)
    with pytest.raises(CudaError, match="broken"):
        stream.measure(fail, 3)
    assert len(cuda.runtime.live) == before


def test_finish_waits(stream, cuda):
    stream.finish()
    assert cuda.events[-1] == ("record",)
    assert stream.handle == cuda.stream


@pytest.mark.gpu
def test_on_a_gpu(image):
    with GpuStream.open() as stream:
        tensor = stream.put({"image": image})["image"]
        np.testing.assert_array_equal(tensor.numpy(), image)
        assert stream.measure(lambda: None, 5).calls == 5
        stream.finish()
