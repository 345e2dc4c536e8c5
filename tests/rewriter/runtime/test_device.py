"""Whether there is a GPU, as far as that can be told without one."""

import ctypes

import pytest

from rewriter.runtime import device

ASKED = (device.installed_gpus, device.installed_gpu_names, device.installed_compute_capabilities)


class Nvml:
    """The few functions of the driver's library that are asked."""

    def __init__(self, count, init=0):
        self.count = count
        self.init = init
        self.ended = 0
        self.tells_capability = True

    def nvmlInit_v2(self):  # noqa: N802
        return self.init

    def nvmlDeviceGetCount_v2(self, pointer):  # noqa: N802
        pointer._obj.value = self.count
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, pointer):  # noqa: N802
        pointer._obj.value = index.value + 1
        return 0 if index.value == 0 else 2

    def nvmlDeviceGetName(self, handle, buffer, size):  # noqa: N802
        buffer.value = b"NVIDIA H100"[: size - 1]
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle, major, minor):  # noqa: N802
        if self.tells_capability:
            major._obj.value, minor._obj.value = 9, 0
        return 0 if self.tells_capability else 3

    def nvmlShutdown(self):  # noqa: N802
        self.ended += 1


@pytest.fixture(autouse=True)
def fresh():
    for asked in ASKED:
        asked.cache_clear()
    yield
    for asked in ASKED:
        asked.cache_clear()


def test_no_driver(monkeypatch):
    def refuse(name):
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert device.installed_gpus() == 0
    assert device.missing_gpu() == "no GPU"


def test_a_driver_without_devices(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nvml(0, init=9))
    assert device.installed_gpus() == 0


@pytest.mark.parametrize(("visible", "reason"), [(None, ""), ("0", ""), ("", "hides all"), ("-1", "hides all")])
def test_a_gpu_that_may_be_hidden(monkeypatch, visible, reason):
    nvml = Nvml(2)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.installed_gpus() == 2
    assert nvml.ended == 1
    assert reason in device.missing_gpu()
    assert bool(device.missing_gpu()) == bool(reason)


def test_names_of_gpus(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nvml(2))
    assert device.installed_gpu_names() == ("NVIDIA H100", "")
    device.installed_gpu_names.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nvml(0, init=9))
    assert device.installed_gpu_names() == ()


@pytest.mark.parametrize(("tells", "expected"), [(True, ((9, 0), (0, 0))), (False, ((0, 0), (0, 0)))])
def test_compute_capabilities_of_gpus(monkeypatch, tells, expected):
    nvml = Nvml(2)
    nvml.tells_capability = tells
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    assert device.installed_compute_capabilities() == expected
    assert nvml.ended == 1
