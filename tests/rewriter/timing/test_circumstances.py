"""What figures depend on beside the model."""

import pytest

from rewriter.artifact.manifest import EngineEntry
from rewriter.timing.circumstances import circumstances, tf32_use, tf32_words


def engine(backend):
    return EngineEntry("E", "00", 1, "0" * 64, backend, "1.4")


H100, T4 = {"name": "H100", "compute_capability": "9.0"}, {"name": "T4", "compute_capability": "7.5"}


@pytest.mark.parametrize(
    ("gpu", "backend", "mode", "engines", "native"),
    [
        (H100, "tensorrt_rtx", "FP32", True, True),
        (H100, "tensorrt", "FP32", False, True),
        (H100, "tensorrt", "TF32", True, True),
        (H100, None, "FP32", None, True),
        (T4, "tensorrt", "TF32", False, False),
    ],
)
def test_tf32(gpu, backend, mode, engines, native, monkeypatch):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    entries = () if backend is None else (engine(backend),)
    found = tf32_use(on_gpu=True, gpu=gpu, engines=entries, params={"precision_mode": mode})
    assert found == {"engines": engines, "native": native, "override": None}


def test_tf32_in_words(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    found = tf32_use(on_gpu=True, gpu=H100, engines=(engine("tensorrt_rtx"),), params={})
    assert tf32_words(found) == "on in engines, off in native nodes, NVIDIA_TF32_OVERRIDE=0"
    found = tf32_use(on_gpu=True, gpu=H100, engines=(), params={})
    assert tf32_words(found) == "off (NVIDIA_TF32_OVERRIDE=0)"
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    assert tf32_words(tf32_use(on_gpu=False, gpu=None, engines=(), params={})) == "off (CPU)"


def test_all_of_it():
    found = circumstances(on_gpu=False, gpu=H100, engines=(engine("tensorrt_rtx"),) * 2)
    assert found["gpu"] is None
    assert (found["tensorrt"], found["engines"]) == ({}, ["tensorrt_rtx 1.4"])
    assert {"numpy", "onnx"} <= set(found["packages"])
    assert found["cpus"] >= 1
    assert circumstances(on_gpu=True, gpu=H100)["gpu"] == H100
