"""Corners of the hybrid executor: shapes as values, strings, failures half-way, who waits for whom."""

import threading

import numpy as np
import pytest

from rewriter.errors import ConversionError, CudaError
from rewriter.runtime.gpu import engine_step


@pytest.fixture
def hybrid(load_double):
    return load_double("hybrid")


@pytest.fixture
def make(hybrid, cuda, trt, fake_trt, tmp_path, monkeypatch):
    hybrid.use_islands_of_the_double(monkeypatch, cuda)
    opened = []

    def make(text=hybrid.SANDWICH, native_ops=("Sin",), options=None, **case_options):
        case = hybrid.make_case(text, tmp_path, fake_trt, native_ops, **case_options)
        opened.append(hybrid.open_case(case, cuda, trt, **(options or {})))
        return case, opened[-1]

    yield make
    for executor in opened:
        executor.close()


def check(case, executor, feeds, runs):
    execution = executor.run(feeds)
    assert (execution.engine_runs, execution.fallbacks) == (runs, {})
    for name, array in case.native(feeds).items():
        np.testing.assert_allclose(execution.outputs[name], array, rtol=1e-6, atol=1e-6, strict=True)


def test_an_island_that_makes_data_and_a_shape(make, hybrid):
    case, executor = make(
        "g (float[N, 4] x) => (float[N, 4] y, int64[1] n) <int64[1] zero = {0}> "
        "{ a = Mul(x, x)  y = Sin(a)  shape = Shape(x)  n = Gather <axis = 0> (shape, zero) }",
        native_ops=("Sin", "Shape", "Gather"),
    )
    for seed in range(5):
        check(case, executor, hybrid.feeds_of(case, 3, seed=seed), 1)
    assert executor.stats()["graphs"] == 1


def test_a_scalar_that_is_a_shape_stays_a_scalar(make, hybrid):
    case, executor = make(
        "g (float[N, 4] x) => (float[N, 4] y, int64 n) <int64 zero = {0}> "
        "{ a = Mul(x, x)  y = Sin(a)  shape = Shape(x)  n = Gather <axis = 0> (shape, zero) }",
        native_ops=("Sin", "Shape", "Gather"),
    )
    for seed in range(5):
        check(case, executor, hybrid.feeds_of(case, 3, seed=seed), 1)
        on_device = executor.run(hybrid.feeds_of(case, 3, seed=seed), on_device=True).outputs["n"]
        assert on_device.numpy().shape == ()


def test_strings_stay_on_the_host(make, hybrid):
    _, executor = make(
        "g (string[N] s, float[N] x) => (float[N] y, string[N] s) { a = Mul(x, x)  y = Add(a, x) }", native_ops=()
    )
    feeds = {"s": np.array(["a", "b"], object), "x": np.array([1, 2], np.float32)}
    for _ in range(4):
        execution = executor.run(feeds)
        assert (execution.engine_runs, execution.fallbacks) == (1, {})
        assert execution.outputs["s"].tolist() == ["a", "b"]
    outputs = executor.run(feeds, on_device=True).outputs
    assert outputs["s"].tolist() == ["a", "b"]
    np.testing.assert_allclose(outputs["y"].numpy(), [2, 6])
    assert executor.stats()["no_plan"] == {"strings stay in CPU memory": 5}


def test_close_goes_on_when_the_device_has_failed(make, hybrid, cuda):
    case, executor = make()
    for seed in range(4):
        executor.run(hybrid.feeds_of(case, 3, seed=seed))
    cuda.fail_next("synchronize")
    executor.close()
    assert cuda.closed
    assert all(slot._closed for slot in executor._pieces.slots.values())


def test_no_page_locked_memory(make, hybrid, cuda):
    case, executor = make()
    cuda.fail_next("cudaHostAlloc", "cudaErrorMemoryAllocation")
    feeds = hybrid.feeds_of(case, 3)
    execution = executor.run(feeds)
    assert execution.fallbacks == {"the call failed on the GPU: out of GPU memory": 2}
    np.testing.assert_allclose(execution.outputs["y"], case.native(feeds)["y"], rtol=1e-6)
    check(case, executor, feeds, 2)


def test_an_output_that_is_dropped_is_freed(make, hybrid, cuda):
    case, executor = make()
    for seed in range(4):
        executor.run(hybrid.feeds_of(case, 3, seed=seed), on_device=True)
    before = cuda.live_bytes
    output = executor.run(hybrid.feeds_of(case, 3), on_device=True)
    assert cuda.live_bytes > before
    del output
    assert cuda.live_bytes == before


def test_onnx_runtime_without_memory(make, hybrid, monkeypatch):
    """It says so in words of its own; what can be made again is given up, and the call is tried once more."""
    case, executor = make()
    real, failures = (
        executor._discovery.run,
        [RuntimeError("Failed to allocate memory for requested buffer of size 12")],
    )

    def run(inputs):
        if failures:
            raise failures.pop()
        return real(inputs)

    monkeypatch.setattr(executor._discovery, "run", run)
    check(case, executor, hybrid.feeds_of(case, 3), 2)
    assert failures == []
    assert executor.stats()["memory_retries"] == 1


def test_a_plan_whose_island_fails_goes_on_step_by_step(make, hybrid, monkeypatch):
    case, executor = make(options={"cuda_graph": False})
    for seed in range(2):
        executor.run(hybrid.feeds_of(case, 3, seed=seed))
    (plan,) = executor._plans._plans.values()

    def fail():
        raise RuntimeError("a kernel failed at [3, 4]")

    monkeypatch.setattr(plan, "run", fail)
    check(case, executor, hybrid.feeds_of(case, 3), 2)
    assert executor.stats()["no_plan"] == {"a kernel failed at [...]": 1}
    check(case, executor, hybrid.feeds_of(case, 3), 2)
    assert executor.stats()["plans"] == 1


def test_a_plan_whose_device_fails_is_made_again(make, hybrid, cuda):
    case, executor = make(options={"cuda_graph": False})
    for seed in range(3):
        executor.run(hybrid.feeds_of(case, 3, seed=seed))
    cuda.fail_next("to_device")
    assert executor.run(hybrid.feeds_of(case, 3)).engine_runs == 0
    assert executor.stats()["plans"] == 0
    check(case, executor, hybrid.feeds_of(case, 3), 2)


def test_reasons_are_counted_without_sizes():
    from rewriter.runtime.gpu.discovery import reason_of

    assert reason_of(CudaError("input 'x' cannot have shape [3, 4]")) == "input 'x' cannot have shape [...]"
    assert reason_of(RuntimeError("Failed to allocate memory for requested buffer of size 7")) == "out of GPU memory"


def test_a_graph_that_was_given_up_has_one_reason(make, hybrid, cuda):
    case, executor = make(options={"cuda_graph": False})
    cuda.runtime.nodes = ("host",)
    for seed in range(4):
        executor.run(hybrid.feeds_of(case, 3, seed=seed))
    assert executor.stats()["no_graph"] == {"cuda_graph=False was asked for": 1}


def test_others_go_on_while_a_call_waits_for_a_build(make, hybrid, monkeypatch):
    """The lock is free while a call waits: other calls, stats() and close() do not hang."""
    case, executor = make(options={"wait_for_builds": True})
    entered, leave = threading.Event(), threading.Event()
    monkeypatch.setattr(executor, "wait_for_builds", lambda: (entered.set(), leave.wait(30)))
    judged = executor._with_blocked
    monkeypatch.setattr(
        executor,
        "_with_blocked",
        lambda fallbacks: judged(fallbacks) if leave.is_set() else {"an engine for its shapes is being built": 1},
    )
    results = []
    thread = threading.Thread(target=lambda: results.append(executor.run(hybrid.feeds_of(case, 3))))
    thread.start()
    assert entered.wait(30)
    assert executor.stats()["discoveries"] == 1
    assert executor._lock.acquire(timeout=30)
    executor._lock.release()
    leave.set()
    thread.join(30)
    assert results[0].engine_runs == 2


def test_objects_are_never_copied_to_the_device(cuda):
    with pytest.raises(ConversionError, match="no place on the device"):
        engine_step.to_device(np.array(["a"], object), cuda)


def test_islands_and_the_last_resort_compute_with_the_threads_that_were_said(make, hybrid, cuda, monkeypatch):
    import onnxruntime

    found, real = [], onnxruntime.InferenceSession

    def session(model, options, **more):
        found.append(options.intra_op_num_threads)
        return real(model, options, **more)

    case, executor = make(options={"threads": 2})
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    feeds = hybrid.feeds_of(case, 3)
    assert executor.run(feeds).engine_runs == 2
    cuda.fail_next("to_device")
    assert executor.run(feeds).engine_runs == 0
    assert [each for each in found if each] == [2, 2]  # the others are those of TensorRT's double
