"""What tests of calling a converted model share: a small spliced model, and an executor as a GPU will have one."""

import sys
import types

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper, parser

from passes import model as models
from passes.segments import TensorSpec
from rewriter.artifact.manifest import EngineEntry
from rewriter.backends.base import InputProfile
from rewriter.runtime import device
from rewriter.runtime.executor import Execution, NativeExecutor
from rewriter.source import Signature

# As splicing leaves it: an engine node that is a model-local function with the native segment as its body.
SPLICED = """
<ir_version: 10, opset_import: ["": 20, "trt_rewriter": 1]>
g (float[batch, 4] x, float[batch, 4] y) => (float[batch, 300] product, float[batch, 4] y_1)
{
    product = trt_rewriter.TRTEngineOp_000<
        segment_hash = "ab", data_inputs = 2, precision = "FP16", profiles = "[]", backend = "", backend_version = ""
    >(x, y, w)
    y_1 = Neg(y)
}
<domain: "trt_rewriter", opset_import: ["": 20]>
TRTEngineOp_000 (a, b, w) => (c)
{
    s = Add(a, b)
    m = MatMul(s, w)
    c = Relu(m)
}
"""


class GpuDouble:
    """An executor as the one on the GPU behaves towards a function; it computes on the CPU.

    The engine answers every run but those of shapes that are new to it: these fall back while an engine is built.
    A "device tensor" is a `DeviceArray`.
    """

    provider = "cuda"
    MISS = "an engine for its shapes is being built"

    def __init__(self, model, outputs):
        self.native = NativeExecutor(model, outputs, {})
        self.feeds = []
        self.wanted, self.known = set(), set()
        self.waits = self.closed = self.failed = 0
        self.built = ()

    def run(self, feeds, *, on_device=False):
        self.feeds.append(dict(feeds))
        arrays = {name: value.array if isinstance(value, DeviceArray) else value for name, value in feeds.items()}
        outputs = dict(self.native.run(arrays).outputs)
        if on_device:
            outputs = {name: DeviceArray(array) for name, array in outputs.items()}
        shapes = tuple(array.shape for array in arrays.values())
        if shapes in self.known:
            return Execution(outputs, 1)
        self.wanted.add(shapes)
        return Execution(outputs, 0, {self.MISS: 1})

    def stats(self):
        slot = {"builds": len(self.known), "build_seconds": 0.5 * len(self.known), "failed_builds": {}, "building": 0}
        return {"slots": {"TRTEngineOp_000": slot}, "plans": len(self.known), "graphs": 0, "device_bytes": 64}

    def wait_for_builds(self):
        self.waits += 1
        self.known |= self.wanted

    def built_engines(self):
        return self.built

    def to_host(self, value):
        return value.array

    def close(self):
        self.closed += 1
        self.native.close()


class DeviceArray:
    """A tensor that says that it lies on a CUDA device; reading it as an array fails the test."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def __dlpack__(self, **options):
        raise AssertionError("a device tensor was read")

    def __dlpack_device__(self):
        return 2, 0

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("a device tensor was copied to the host")


@pytest.fixture
def device_array():
    """Makes a device tensor of a numpy array."""
    return DeviceArray


@pytest.fixture
def spliced():
    """A spliced model with one engine node, and its signature."""
    proto = parser.parse_model(SPLICED)
    weights = np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    for number, node in enumerate([*proto.graph.node, *proto.functions[0].node]):
        node.name = f"node_{number}"
    batch = ("batch", 4)
    signature = Signature(
        (TensorSpec("x", TensorProto.FLOAT, batch), TensorSpec("y", TensorProto.FLOAT, batch)),
        (TensorSpec("product", TensorProto.FLOAT, ("batch", 300)), TensorSpec("y", TensorProto.FLOAT, batch, "y_1")),
    )
    return models.from_proto(proto), signature


@pytest.fixture
def entry():
    """An engine of that node, for batches 1, 8 and 16."""
    profile = {name: InputProfile((1, 4), (8, 4), (16, 4)) for name in ("x", "y")}
    return EngineEntry("TRTEngineOp_000", "ab", 4, "0" * 64, "tensorrt_rtx", "1.4.0.76", profiles=(profile,))


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine without a GPU, whatever this one has."""
    monkeypatch.setattr(device, "missing_gpu", lambda: "no GPU")


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU whose executor is a `GpuDouble`.

    Its `opened` lists the arguments of every opening; `made` the executors; `refuse` is a reason to open none.
    """
    state = types.SimpleNamespace(opened=[], made=[], refuse="")

    def open_gpu_executor(model, outputs, engines, options, params, recipe, ranges, runtime_cache_folder):
        state.opened.append(
            types.SimpleNamespace(
                engines=engines, options=options, params=params, recipe=recipe, folder=runtime_cache_folder
            )
        )
        if state.refuse:
            return state.refuse
        state.made.append(GpuDouble(model, outputs))
        return state.made[-1]

    monkeypatch.setattr(device, "missing_gpu", lambda: "")
    opening = types.SimpleNamespace(open_gpu_executor=open_gpu_executor)
    monkeypatch.setitem(sys.modules, "rewriter.runtime.gpu.opening", opening)
    return state


@pytest.fixture
def pair():
    """Makes the two inputs of the spliced model."""

    def make(rows=2, seed=1):
        random = np.random.default_rng(seed)
        return tuple(random.standard_normal((rows, 4)).astype(np.float32) for _ in range(2))

    return make
