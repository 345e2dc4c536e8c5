"""Is there an NVIDIA GPU? Asked of the driver's management library, without a package and without a CUDA context."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import TypeVar

_Answer = TypeVar("_Answer")


@functools.lru_cache(maxsize=1)
def installed_gpus() -> int:
    """Number of NVIDIA GPUs that the driver reports; 0 without a driver.

    NVML is asked, not CUDA: initialising CUDA would spoil every child process that is forked later.
    """
    return _ask_nvml(_count, 0)


@functools.lru_cache(maxsize=1)
def installed_gpu_names() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that the driver reports, in its order; "" for one that it cannot name."""
    return _ask_nvml(lambda nvml: tuple(_gpu_name(nvml, index) for index in range(_count(nvml))), ())


@functools.lru_cache(maxsize=1)
def installed_compute_capabilities() -> tuple[tuple[int, int], ...]:
    """Compute capability, major and minor, of the GPUs in the driver's order; (0, 0) for one that it cannot tell of."""
    return _ask_nvml(lambda nvml: tuple(_compute_capability(nvml, index) for index in range(_count(nvml))), ())


def _ask_nvml(question: Callable[[ctypes.CDLL], _Answer], default: _Answer) -> _Answer:
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return default
    if nvml.nvmlInit_v2() != 0:
        return default
    try:
        return question(nvml)
    finally:
        nvml.nvmlShutdown()


def _count(nvml: ctypes.CDLL) -> int:
    count = ctypes.c_uint(0)
    return int(count.value) if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0 else 0


def _gpu_name(nvml: ctypes.CDLL, index: int) -> str:
    handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
        return ""
    return name.value.decode("utf-8", "replace") if nvml.nvmlDeviceGetName(handle, name, 96) == 0 else ""


def _compute_capability(nvml: ctypes.CDLL, index: int) -> tuple[int, int]:
    handle, major, minor = ctypes.c_void_p(), ctypes.c_int(0), ctypes.c_int(0)
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
        return 0, 0
    if nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) != 0:
        return 0, 0
    return major.value, minor.value


def missing_gpu() -> str:
    """Why no GPU can be used, in a few words; "" when one can."""
    if not installed_gpus():
        return "no GPU"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in ("", "-1"):
        return "no GPU (CUDA_VISIBLE_DEVICES hides all)"
    return ""
