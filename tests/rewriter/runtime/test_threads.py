"""Many threads, mixed shapes: equal results, exact counters. On every executor there is."""

import concurrent.futures

import numpy as np
import pytest

from rewriter.runtime.loading import Runnable, make_function
from rewriter.runtime.options import RuntimeOptions

THREADS, CALLS = 8, 200
ROWS = (1, 2, 3, 5, 8)


def on_cpu(spliced, request):
    request.getfixturevalue("no_gpu")
    return make_function(Runnable(*spliced))


def on_gpu_double(spliced, request):
    """Over the seam of the GPU; engines are there for the even numbers of rows only."""
    gpu = request.getfixturevalue("gpu")
    function = make_function(Runnable(*spliced))
    gpu.made[0].known = {((rows, 4), (rows, 4)) for rows in ROWS if rows % 2 == 0}
    return function


def lazily(spliced, request):
    request.getfixturevalue("no_gpu")
    return make_function(Runnable(*spliced), RuntimeOptions(), lazy=True)


@pytest.fixture(params=[on_cpu, on_gpu_double, lazily], ids=lambda maker: maker.__name__)
def function(request, spliced):
    """A function of the spliced model, over one executor after the other."""
    with request.param(spliced, request) as made:
        yield made


def test_threads_get_equal_results_and_counters_are_exact(function, spliced, pair):
    with make_function(Runnable(*spliced), RuntimeOptions(provider="cpu")) as reference:
        cases = [(inputs, reference(*inputs)) for rows in ROWS for inputs in [pair(rows, seed=rows)]]

    def work(thread):
        engine_runs = 0
        for call in range(CALLS):
            (x, y), expected = cases[(thread + call) % len(cases)]
            outputs = function(x, y=y) if call % 2 else function.run({"x": x, "y": y})
            engine_runs += len(x) % 2 == 0
            for name, array in outputs.items():
                np.testing.assert_array_equal(array, expected[name])
        return engine_runs

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        even = sum(pool.map(work, range(THREADS)))
    stats = function.stats()
    calls = THREADS * CALLS
    assert stats["calls"] == calls
    assert stats["engine_calls"] == (even if stats["provider"] == "cuda" else 0)
    assert stats["engine_calls"] + stats["native_calls"] == calls
    assert sum(stats["fallbacks"].values()) == calls - stats["engine_calls"]


def test_warmup_and_stats_beside_calls(function, pair):
    x, y = pair(4)

    def work(thread):
        for _ in range(20):
            if thread == 0:
                function.warmup({"x": (4, 4)})
            elif thread == 1:
                function.stats()
            else:
                function(x, y)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert function.stats()["calls"] == 40
