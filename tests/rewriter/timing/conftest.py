"""The doubles of the GPU runtime for tests of what times it; a clock that tests set."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.runtime.function import ConvertedFunction
from rewriter.runtime.options import RuntimeOptions
from rewriter.source import Signature
from rewriter.timing.on_gpu import GpuStream

_GPU = Path(__file__).parents[1] / "runtime" / "gpu" / "conftest.py"
_spec = importlib.util.spec_from_file_location("gpu_doubles.conftest_of_timing", _GPU)
_doubles = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _doubles
_spec.loader.exec_module(_doubles)
fake_cuda, cuda, fake_trt, trt, load_double = (
    getattr(_doubles, name) for name in ("fake_cuda", "cuda", "fake_trt", "trt", "_load_double")
)


class Clock:
    """Seconds that stand still, but for what is added."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def takes(self, *seconds):
        """A call that takes so long, each time the next of these; the last one from then on."""
        left = list(seconds)

        def call():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


@pytest.fixture
def clock():
    return Clock()


class TimedRuntime:
    """The runtime's double with events that know the time: each pair is 2 ms apart."""

    def __init__(self, runtime):
        self._runtime = runtime

    def __getattr__(self, name):
        return getattr(self._runtime, name)

    def cudaEventCreate(self):  # noqa: N802 - CUDA's name
        return self._runtime.cudaError_t.cudaSuccess, self._runtime.make("event")

    def cudaEventElapsedTime(self, first, last):  # noqa: N802 - CUDA's name
        assert {self._runtime.live[int(event)] for event in (first, last)} == {"event"}
        return self._runtime.cudaError_t.cudaSuccess, 2.0


@pytest.fixture
def stream(cuda):
    """A stream of the double."""
    with GpuStream(cuda, TimedRuntime(cuda.runtime)) as opened:
        yield opened


#: Two engines around a native Sin; N is dynamic.
SANDWICH = """
g (float[N, 4] x) => (float[N, 4] y) {
    a = Mul(x, x)
    b = Add(a, x)
    s = Sin(b)
    c = Mul(s, s)
    y = Add(c, x)
}
"""


@pytest.fixture
def hybrid_function(load_double, cuda, trt, fake_trt, tmp_path, monkeypatch):
    """A function over the hybrid executor on the doubles."""
    hybrid = load_double("hybrid")
    hybrid.use_islands_of_the_double(monkeypatch, cuda)
    case = hybrid.make_case(SANDWICH, tmp_path, fake_trt, ("Sin",))
    specs = [TensorSpec(public, TensorProto.FLOAT, ("N", 4), name) for public, name in (("image", "x"), ("out", "y"))]
    entries = [stored.entry for stored in case.engines]
    with ConvertedFunction(
        hybrid.open_case(case, cuda, trt),
        Signature((specs[0],), (specs[1],), "serve"),
        entries,
        RuntimeOptions(),
        engine_nodes=2,
    ) as function:
        yield function


@pytest.fixture
def image():
    return np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
