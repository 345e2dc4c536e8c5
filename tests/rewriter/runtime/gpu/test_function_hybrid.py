"""Converted functions over the hybrid executor on the doubles: threads, warm-up, outputs on the device, fallbacks."""

import concurrent.futures

import numpy as np
import pytest
from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.errors import ConversionError, InputError
from rewriter.runtime.function import ConvertedFunction
from rewriter.runtime.options import RuntimeOptions
from rewriter.source import Signature

THREADS, CALLS = 8, 200
ROWS = (1, 2, 3, 5, 8, 9)
#: The largest batch that the engines take.
LARGEST = 8

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
SIGNATURE = Signature(
    (TensorSpec("image", TensorProto.FLOAT, ("N", 4), "x"),), (TensorSpec("result", TensorProto.FLOAT, ("N", 4), "y"),)
)


@pytest.fixture
def make(load_double, cuda, trt, fake_trt, tmp_path, monkeypatch):
    """Makes (case, function)."""
    hybrid = load_double("hybrid")
    hybrid.use_islands_of_the_double(monkeypatch, cuda)
    opened = []

    def make(**options):
        case = hybrid.make_case(SANDWICH, tmp_path, fake_trt, ("Sin",))
        executor = hybrid.open_case(case, cuda, trt, **options)
        entries = [stored.entry for stored in case.engines]
        function = ConvertedFunction(executor, SIGNATURE, entries, RuntimeOptions(**options), engine_nodes=2)
        opened.append(function)
        return case, function

    yield make
    for function in opened:
        function.close()


def image(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 4)).astype(np.float32)


def check(case, function, x):
    native = case.native({"x": x})["y"]
    np.testing.assert_allclose(function(x)["result"], native, rtol=1e-6, atol=1e-6, strict=True)


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_threads_get_equal_results_and_counters_are_exact(make, cuda_graph):
    case, function = make(cuda_graph=cuda_graph)
    cases = [(x, case.native({"x": x})["y"]) for rows in ROWS for x in [image(rows, rows)]]

    def work(thread):
        outside = 0
        for call in range(CALLS):
            x, expected = cases[(3 * thread + call) % len(cases)]
            outside += len(x) > LARGEST
            np.testing.assert_allclose(function(image=x)["result"], expected, rtol=1e-6, atol=1e-6)
        return outside

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        outside = sum(pool.map(work, range(THREADS)))
    stats = function.stats()
    calls = THREADS * CALLS
    assert (stats["calls"], stats["engine_calls"], stats["native_calls"]) == (calls, calls - outside, outside)
    assert sum(stats["fallbacks"].values()) == 2 * outside  # two engine nodes a call
    assert bool(stats["graph_launches"]) is cuda_graph


def test_warmup_leaves_graphs_and_nothing_to_discover(make):
    case, function = make()
    ready = function.warmup({"image": [(2, 4), (5, 4)]})
    assert (ready["plans"], ready["graphs"], ready["discoveries"], ready["fallbacks"]) == (2, 2, 2, {})
    before = function.stats()
    check(case, function, image(2))
    check(case, function, image(5))
    after = function.stats()
    assert after["graph_launches"] - before["graph_launches"] == 2
    assert after["discoveries"] == before["discoveries"]
    assert (after["calls"], after["warmup_calls"]) == (2, ready["runs"])


def test_warmup_takes_the_optimum_of_the_profiles(make):
    _, function = make()
    assert function.warmup()["plans"] == 1
    assert function.stats()["graphs"] == 1


def test_outputs_on_the_device_go_in_again(make):
    case, function = make()
    x = image(3)
    once = case.native({"x": x})["y"]
    twice = case.native({"x": once})["y"]
    for _ in range(4):  # discovery, fixed addresses, capture, launch
        first = function.run(x, device_outputs=True)["result"]
        np.testing.assert_allclose(first.numpy(), once, rtol=1e-6, atol=1e-6)
        assert (first.shape, first.dtype) == (x.shape, x.dtype)
        second = function(first)["result"]
        assert isinstance(second, np.ndarray)
        np.testing.assert_allclose(second, twice, rtol=1e-5, atol=1e-6)
        del first


def test_a_device_tensor_that_does_not_fit_is_told(make):
    _, function = make()
    on_device = function.run(image(2), device_outputs=True)["result"]

    class Wrong:
        """The same memory as another shape."""

        def __init__(self, of):
            self.__cuda_array_interface__ = {**of.__cuda_array_interface__, "shape": (4, 2), "strides": None}

    with pytest.raises(InputError, match=r"input 'x' has shape \[4, 2\], expected \[N, 4\]: dimension 1 must be 4"):
        function(Wrong(on_device))


def test_shapes_outside_the_profiles_run_natively(make, caplog):
    case, function = make()
    for _ in range(3):
        check(case, function, image(LARGEST + 1))
    stats = function.stats()
    assert (stats["native_calls"], sum(stats["fallbacks"].values())) == (3, 6)
    assert len([r for r in caplog.records if "run natively" in r.getMessage()]) == len(stats["fallbacks"])


def test_strict_takes_no_shape_outside_the_profiles(make):
    case, strict = make(strict=True)
    with pytest.raises(ConversionError, match="strict: an engine was not used: its shapes are outside every profile"):
        strict(image(LARGEST + 1))
    check(case, strict, image(LARGEST))
