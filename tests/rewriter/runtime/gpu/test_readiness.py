"""What `doctor` says of the GPU, on doubles of it."""

import pytest

from rewriter.backends.base import BuildFailure, BuiltEngine
from rewriter.errors import CudaError
from rewriter.runtime.gpu import readiness


class Backend:
    """Writes an engine file of TensorRT's double."""

    flavour, version = "tensorrt_rtx", "1.7.1.116"

    def __init__(self, fake_trt, **options):
        self.fake_trt, self.options = fake_trt, options
        self.failure = None

    def build(self, model, profiles, options, output, progress=None):
        if self.failure:
            return self.failure
        self.fake_trt.write_engine(output, model, profiles, **self.options)
        return BuiltEngine(output, output.stat().st_size, "", 1, 0.0)


@pytest.fixture
def gpu(monkeypatch, cuda, trt):
    monkeypatch.setattr(readiness.driver, "missing_gpu", lambda: "")
    monkeypatch.setattr(readiness, "Cuda", lambda device: cuda)
    monkeypatch.setattr(readiness, "import_runtime", lambda flavour: trt)


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(readiness.driver, "missing_gpu", lambda: "no GPU")
    assert readiness.gpu_readiness(None) == (("GPU", "no GPU", False),)


def test_a_driver_that_fails(monkeypatch):
    def fail(device):
        raise CudaError("the driver is too old")

    monkeypatch.setattr(readiness.driver, "missing_gpu", lambda: "")
    monkeypatch.setattr(readiness, "Cuda", fail)
    assert readiness.gpu_readiness(None) == (("GPU", "the driver is too old", False),)


def test_all_works(gpu, fake_trt):
    found = readiness.gpu_readiness(Backend(fake_trt))
    assert [works for _, _, works in found] == [True, True, True]
    assert found[0][1] == "Fake GPU, compute capability 9.0"
    assert found[2] == ("engines", "those of tensorrt_rtx 1.7.1.116 run", True)


def test_a_refused_engine_and_a_failed_build(gpu, fake_trt):
    (*_, (what, why, works)) = readiness.gpu_readiness(Backend(fake_trt, refuse="The engine cannot run on this GPU"))
    assert (what, works) == ("engines", False)
    assert "cannot run on this GPU" in why


def test_a_build_that_fails(gpu, fake_trt):
    backend = Backend(fake_trt)
    backend.failure = BuildFailure("gpu", "no kernels")
    assert readiness.gpu_readiness(backend)[-1] == ("engines", "no engine can be built: no kernels", False)
