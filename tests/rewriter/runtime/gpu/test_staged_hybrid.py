"""Models with islands on the doubles of the GPU: every section keeps its engines, its residency and its CUDA graph."""

import concurrent.futures

import numpy as np
import pytest
from onnx import TensorProto

from passes.canonicalize import Canonicalize
from passes.engine_node import EngineAttributes
from passes.extract import Extractor
from passes.infer_shapes import InferShapes
from passes.island_node import ISLAND_DOMAIN, IslandAttributes, make_island
from passes.model import from_proto
from passes.partition import PartitionOptions, propose
from passes.segments import TensorSpec
from passes.splice import splice
from passes.support import SupportMap, Verdict
from rewriter.errors import ConversionError, InputError
from rewriter.runtime import device, staged
from rewriter.runtime.gpu import opening as gpu_opening
from rewriter.runtime.gpu.executor import HybridExecutor
from rewriter.runtime.loading import Runnable, make_function
from rewriter.runtime.options import RuntimeOptions
from rewriter.source import Signature

#: Nodes in front of an island, around it and behind it; Sin stays native.
TEXT = """g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y, float[N, 4] v, float[N, 4] early) {
    a = Mul(x, x)
    b = Add(a, x)
    s = Sin(b)
    early = Mul(s, s)
    c = Mul(v, v)
    d = Add(c, b)
    e = Sin(d)
    f = Add(e, e)
    y = Mul(f, z)
}"""
SPEC = ("N", 4)
SIGNATURE = Signature(
    tuple(TensorSpec(name, TensorProto.FLOAT, SPEC) for name in ("x", "z")),
    tuple(TensorSpec(name, TensorProto.FLOAT, SPEC) for name in ("y", "v", "early")),
)


class NumpyIsland:
    """Stands for TensorFlow: the hyperbolic tangent."""

    def __init__(self, step, *, lazy=False):
        self.step, self.calls, self.closed = step, 0, 0

    def run(self, values):
        [value] = [values[name] for name in self.step.inputs]
        assert type(value) is np.ndarray
        self.calls += 1
        return {self.step.outputs[0]: np.tanh(value)}

    def stats(self):
        return {"ops": ["Tanh"], "reasons": ["why not"], "calls": self.calls, "seconds": 0.0}

    def close(self):
        self.closed += 1


def reference(x, z):
    b = x * x + x
    v = np.tanh(np.sin(b) * np.sin(b))
    y = 2 * np.sin(v * v + b) * z
    return {"y": y, "v": v, "early": np.sin(b) ** 2}


@pytest.fixture
def case(load_double, fake_trt, tmp_path):
    """The spliced model with its engines."""
    hybrid = load_double("hybrid")
    proto = from_proto(hybrid.onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]>\n{TEXT}')).proto
    attributes = IslandAttributes("/nowhere", ("i",), ("o",), ("Tanh",), ("why not",))
    proto.graph.node.insert(4, make_island("TFIsland_000", ("early",), ("v",), attributes))
    proto.opset_import.add(domain=ISLAND_DOMAIN, version=1)
    model = InferShapes().run(Canonicalize().run(from_proto(proto)).model).model
    native = {"Sin", "TFIsland_000"}
    verdicts = SupportMap.of(
        Verdict(n.name, n.op_type, n.op_type not in native, reason="no") for n in model.proto.graph.node
    )
    segmentation = propose(model, verdicts, PartitionOptions(1))
    extractor = Extractor(model)
    segments = [extractor.extract(s) for s in segmentation.segments]
    engines = [hybrid.stored(segment, tmp_path, fake_trt, [hybrid.profile_of(segment, {})]) for segment in segments]
    marks = {s.segment.name: EngineAttributes(s.content_hash, len(s.inputs)) for s in segments}
    return splice(model, segmentation, marks), tuple(engines)


@pytest.fixture
def make(case, cuda, fake_trt, fake_cuda, load_double, monkeypatch):
    """Makes functions; every section is opened on the doubles, by the road of real ones."""
    load_double("hybrid").use_islands_of_the_double(monkeypatch, cuda)
    monkeypatch.setattr(device, "missing_gpu", lambda: "")
    monkeypatch.setattr(staged, "TensorFlowIsland", NumpyIsland)
    opened, functions, refused, modules = [], [], [], []

    def open_gpu_executor(model, outputs, engines, options, params, recipe, ranges, folder):
        opened.append((model, tuple(outputs), [e.entry.op for e in engines], options))
        if len(opened) in refused:
            return "refused"
        own = fake_cuda.FakeCuda(runtime=cuda.runtime)
        modules.append(fake_trt.FakeTrt(own))
        opener = gpu_opening.Opener(own, folder, lambda flavour, module=modules[-1]: module)
        return gpu_opening.assemble(model, outputs, engines, options, params, recipe, ranges, opener)

    monkeypatch.setattr(gpu_opening, "open_gpu_executor", open_gpu_executor)

    def make(refuse=(), **options):
        refused[:] = refuse
        model, engines = case
        options = RuntimeOptions(**{"allow_build_at_runtime": False, **options})
        function = make_function(Runnable(model, SIGNATURE, engines), options)
        functions.append(function)
        return function

    make.opened = opened
    yield make
    for function in functions:
        function.close()
    for module in modules:
        module.finish()


def feeds(rows, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((rows, 4)).astype(np.float32) for name in ("x", "z")}


def check(function, given):
    found = function(**given)
    for name, array in reference(**given).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def test_every_section_has_its_engines_and_its_graph(make, case):
    function = make()
    ops = [ops for _, _, ops, _ in make.opened]
    assert len(ops) == 2
    assert not set(ops[0]) & set(ops[1])
    assert sorted(ops[0] + ops[1]) == sorted({e.entry.op for e in case[1]})
    for _ in range(5):
        check(function, feeds(3))
    stats = function.stats()
    assert stats["provider"] == "cuda"
    assert (stats["calls"], stats["engine_calls"], stats["fallbacks"]) == (5, 5, {})
    assert (stats["sections"], stats["plans"], stats["graphs"]) == (2, 2, 2)
    assert stats["graph_launches"] == 2 * 3
    assert set(stats["slots"]) == {e.entry.op for e in case[1]}
    assert stats["tensorflow"] == {
        "TFIsland_000": {"ops": ["Tanh"], "reasons": ["why not"], "calls": 5, "seconds": 0.0}
    }


def test_warm_up_goes_through_all_sections(make):
    function = make()
    ready = function.warmup({"x": [(2, 4), (5, 4)], "z": [(2, 4), (5, 4)]})
    assert (ready["plans"], ready["graphs"], ready["fallbacks"]) == (4, 4, {})
    before = function.stats()["discoveries"]
    check(function, feeds(5))
    assert function.stats()["discoveries"] == before


def test_outputs_stay_on_the_device_but_not_those_of_an_island(make):
    function = make()
    given = feeds(2)
    for _ in range(4):
        found = function.run(given, device_outputs=True)
        assert isinstance(found["v"], np.ndarray)
        assert not isinstance(found["y"], np.ndarray)
        for name, array in reference(**given).items():
            value = found[name] if name == "v" else found[name].numpy()
            np.testing.assert_allclose(value, array, rtol=1e-5, atol=1e-6)


def test_inputs_may_lie_on_the_device(make):
    function = make()
    given = feeds(2)
    on_device = function.run(given, device_outputs=True)
    x = on_device["y"]
    expected = reference(x.numpy(), given["z"])
    for _ in range(4):
        found = function(x=x, z=given["z"])
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def test_a_device_tensor_of_another_shape_is_told(make):
    function = make()
    wrong = function.run(feeds(2), device_outputs=True)["y"]

    class Wrong:
        def __init__(self, of):
            self.__cuda_array_interface__ = {**of.__cuda_array_interface__, "shape": (4, 2), "strides": None}

    with pytest.raises(InputError, match=r"input 'x' has shape \[4, 2\]"):
        function(x=Wrong(wrong), z=feeds(2)["z"])


def test_a_section_that_gets_no_gpu_runs_on_the_cpu(make):
    function = make(refuse=[1])
    for _ in range(3):
        check(function, feeds(3))
    stats = function.stats()
    assert (stats["provider"], stats["engine_calls"]) == ("cuda", 3)
    assert list(stats["fallbacks"]) == ["refused"]
    x = function.run(feeds(2), device_outputs=True)["y"]
    check_x = function(x=x, z=feeds(2)["z"])  # its first section reads the device tensor on the host
    np.testing.assert_allclose(check_x["early"], reference(x.numpy(), feeds(2)["z"])["early"], rtol=1e-5, atol=1e-6)


def test_strict_and_cuda_want_every_engine_node_there(make):
    with pytest.raises(ConversionError, match=r"strict: .* engine node.* would not run on TensorRT; .*: refused"):
        make(refuse=[2], strict=True)
    make.opened.clear()
    with pytest.raises(ConversionError, match="provider 'cuda' cannot be used: refused"):
        make(refuse=[1], provider="cuda")
    make.opened.clear()
    assert make(strict=True, provider="cuda").provider == "cuda"


def test_islands_are_no_fallbacks(make):
    function = make(strict=True)
    check(function, feeds(3))
    assert function.stats()["fallbacks"] == {}


def test_threads(make):
    function = make()
    cases = [(feeds(rows, rows), reference(**feeds(rows, rows))) for rows in (1, 2, 5)]

    def work(thread):
        for call in range(30):
            given, expected = cases[(thread + call) % len(cases)]
            found = function(**given)
            for name, array in expected.items():
                np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert function.stats()["calls"] == 120


def test_closing_closes_everything_and_twice_is_no_harm(make):
    function = make()
    check(function, feeds(3))
    function.close()
    function.close()
    assert function.stats()["tensorflow"]["TFIsland_000"]["calls"] == 1


def test_sections_without_engines_want_no_builder(make):
    make(allow_build_at_runtime=True)
    assert all(options.allow_build_at_runtime for _, _, ops, options in make.opened if ops)


def test_what_only_sections_read_stays_on_the_device(make, monkeypatch):
    function = make()
    seen = []
    real = HybridExecutor.run

    def run(self, feeds, **options):
        seen.append({name: type(value).__name__ for name, value in feeds.items()})
        return real(self, feeds, **options)

    monkeypatch.setattr(HybridExecutor, "run", run)
    for _ in range(4):  # discovery, fixed addresses, capture, launch
        seen.clear()
        check(function, feeds(3))
        first, second = seen
        assert first == {"x": "ndarray"}
        assert second == {"v": "ndarray", "z": "ndarray", "b": "DeviceTensor"}
    assert function.stats()["graphs"] == 2


def test_the_cpu_helps_out_where_a_later_section_fails(make, monkeypatch):
    function = make()
    check(function, feeds(3))
    real = HybridExecutor._run

    def run(self, given, *rest, **options):
        if "v" in given:
            raise RuntimeError("the GPU is tired")
        return real(self, given, *rest, **options)

    monkeypatch.setattr(HybridExecutor, "_run", run)
    check(function, feeds(3))
    assert list(function.stats()["fallbacks"]) == ["the call failed on the GPU: the GPU is tired"]


def test_outputs_of_some_names_stay(make):
    executor = make()._ready()
    found = executor.run(feeds(2), on_device={"early"})
    assert [name for name, value in found.outputs.items() if not isinstance(value, np.ndarray)] == ["early"]
    np.testing.assert_allclose(executor.to_host(found.outputs["early"]), reference(**feeds(2))["early"], rtol=1e-5)
