"""The hybrid executor on the doubles of CUDA and TensorRT: same numbers as one native session, in every mode."""

import threading

import numpy as np
import pytest

from rewriter.errors import ConversionError, ConverterStateError
from rewriter.runtime.gpu.plan_table import MAX_PLANS

pytestmark = pytest.mark.usefixtures("islands")


@pytest.fixture
def hybrid(load_double):
    return load_double("hybrid")


@pytest.fixture
def islands(hybrid, cuda, monkeypatch):
    hybrid.use_islands_of_the_double(monkeypatch, cuda)


@pytest.fixture
def make(hybrid, cuda, trt, fake_trt, tmp_path):
    """Makes (case, executor); executors are closed in the end."""
    opened = []

    def make(text=hybrid.SANDWICH, native_ops=("Sin",), options=None, **case_options):
        case = hybrid.make_case(text, tmp_path, fake_trt, native_ops, **case_options)
        executor = hybrid.open_case(case, cuda, trt, **(options or {}))
        opened.append(executor)
        return case, executor

    yield make
    for executor in opened:
        executor.close()


def check(case, executor, feeds, **expected):
    execution = executor.run(feeds)
    native = case.native(feeds)
    assert list(execution.outputs) == list(native)
    for name, array in native.items():
        np.testing.assert_allclose(execution.outputs[name], array, rtol=1e-6, atol=1e-6, strict=True)
    for name, value in expected.items():
        assert getattr(execution, name) == value, name
    return execution


def test_the_three_lives_of_a_shape(make, hybrid, cuda):
    case, executor = make()
    for number, (discoveries, plans, launches) in enumerate([(1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 1, 2)]):
        check(case, executor, hybrid.feeds_of(case, 3, seed=number), engine_runs=2, fallbacks={})
        stats = executor.stats()
        assert (stats["discoveries"], stats["plans"], stats["graph_launches"]) == (discoveries, plans, launches)
    assert executor.stats()["graphs"] == 1
    assert executor.stats()["no_graph"] == {}
    assert executor.stats()["islands"] == 1


def test_a_captured_call_is_two_copies_and_one_launch(make, hybrid, cuda):
    case, executor = make()
    for seed in range(4):
        check(case, executor, hybrid.feeds_of(case, 2, seed=seed))
    cuda.events.clear()
    check(case, executor, hybrid.feeds_of(case, 2, seed=9))
    assert [event[0] for event in cuda.events if event[0] != "pinned"] == ["to_device", "graph", "to_host", "record"]


def test_alternating_shapes_share_memory_and_stay_right(make, hybrid, cuda):
    case, executor = make()
    sizes = (1, 8, 3, 5)
    for round_ in range(4):
        for size in sizes:
            check(case, executor, hybrid.feeds_of(case, size, seed=round_), engine_runs=2)
    live = cuda.live_bytes
    for round_ in range(10):
        for size in sizes:
            check(case, executor, hybrid.feeds_of(case, size, seed=round_))
    assert cuda.live_bytes == live
    stats = executor.stats()
    assert stats["plans"] == len(sizes)
    assert stats["discoveries"] == len(sizes)


def test_growing_shapes_bind_older_plans_again(make, hybrid):
    sizes = (1, 40, 80, 160)
    case, executor = make(ranges=[dict.fromkeys(("x", "s"), ((1, 4), (4, 4), (200, 4)))])
    for size in sizes:
        for seed in range(4):
            check(case, executor, hybrid.feeds_of(case, size, seed=seed))
    assert executor.stats()["graphs"] == 1  # those of smaller shapes went when the shared memory grew
    for size in sizes:
        for seed in (98, 99):
            check(case, executor, hybrid.feeds_of(case, size, seed=seed))
    assert executor.stats()["graphs"] == 4


def test_without_graphs(make, hybrid):
    case, executor = make(options={"cuda_graph": False})
    for seed in range(4):
        check(case, executor, hybrid.feeds_of(case, 3, seed=seed), engine_runs=2)
    stats = executor.stats()
    assert (stats["graphs"], stats["graph_launches"]) == (0, 0)
    assert stats["no_graph"] == {"cuda_graph=False was asked for": 1}


def test_a_capture_that_fails_is_counted_and_the_steps_go_on(make, hybrid, cuda):
    case, executor = make()
    cuda.fail_capture = True
    for seed in range(4):
        check(case, executor, hybrid.feeds_of(case, 3, seed=seed), engine_runs=2, fallbacks={})
    (reason,) = executor.stats()["no_graph"]
    assert "capture" in reason.lower() or "graph" in reason.lower()
    assert executor.stats()["graphs"] == 0


@pytest.mark.parametrize(("node", "words"), [("host", "calls back to the CPU"), ("to_device", "copies from or to CPU")])
def test_an_island_that_needs_the_cpu_has_no_graph(make, hybrid, cuda, node, words):
    case, executor = make()
    cuda.runtime.nodes = ("kernel", node)
    for seed in range(4):
        check(case, executor, hybrid.feeds_of(case, 3, seed=seed), engine_runs=2, fallbacks={})
    ((reason, count),) = executor.stats()["no_graph"].items()
    assert words in reason
    assert count == 1


def test_an_engine_that_cannot_be_captured(make, hybrid, cuda):
    case, executor = make(per_op={"TRTEngineOp_001": {"capturable": False}})
    for seed in range(4):
        check(case, executor, hybrid.feeds_of(case, 3, seed=seed), engine_runs=2, fallbacks={})
    assert executor.stats()["no_graph"] == {"TensorRT cannot capture the engine of TRTEngineOp_001": 1}


def test_outside_every_profile_the_twin_runs(make, hybrid):
    case, executor = make()
    for seed in range(4):
        execution = check(case, executor, hybrid.feeds_of(case, 9, seed=seed), engine_runs=0)
        assert execution.fallbacks == {"its shapes are outside every profile": 2}
    assert executor.stats()["graphs"] == 1  # native all through, and captured all the same


def test_strict_raises_outside_the_profiles(make, hybrid):
    case, executor = make(options={"strict": True})
    check(case, executor, hybrid.feeds_of(case, 3))
    with pytest.raises(ConversionError, match="strict: an engine was not used: its shapes are outside every profile"):
        executor.run(hybrid.feeds_of(case, 9))
    check(case, executor, hybrid.feeds_of(case, 3))


def test_a_refused_engine_becomes_native_nodes(make, hybrid):
    case, executor = make(per_op={"TRTEngineOp_000": {"refuse": "The engine cannot run on this GPU"}})
    execution = check(case, executor, hybrid.feeds_of(case, 3), engine_runs=1)
    ((reason, count),) = execution.fallbacks.items()
    assert "cannot run on this GPU" in reason
    assert count == 1
    assert executor.stats()["islands"] == 1  # the refused segment and Sin are one island


def test_strict_refuses_to_open_with_a_refused_engine(make):
    with pytest.raises(
        ConversionError, match=r"strict: 1 engine node would not run on TensorRT; TRTEngineOp_000: .*GPU"
    ):
        make(per_op={"TRTEngineOp_000": {"refuse": "The engine cannot run on this GPU"}}, options={"strict": True})


def test_an_engine_of_another_version_is_refused_with_both_versions(make, hybrid):
    case, executor = make(version="1.4.0.76")
    execution = check(case, executor, hybrid.feeds_of(case, 3), engine_runs=0)
    ((reason, count),) = execution.fallbacks.items()
    assert "1.7.1.116" in reason
    assert "1.4.0.76" in reason
    assert count == 2


def test_a_context_that_cannot_be_made_is_a_refusal(make, hybrid):
    case, executor = make(per_op={"TRTEngineOp_001": {"fail_context": "cuDNN graph compilation failed"}})
    execution = check(case, executor, hybrid.feeds_of(case, 3), engine_runs=1)
    ((reason, _),) = execution.fallbacks.items()
    assert "cuDNN graph compilation failed" in reason


def test_a_failed_enqueue_is_native_for_that_call_only(make, hybrid, trt):
    case, executor = make()
    for seed in range(4):
        check(case, executor, hybrid.feeds_of(case, 3, seed=seed), engine_runs=2)
    trt.fail_enqueue = "an illegal instruction"
    new = hybrid.feeds_of(case, 5)
    execution = check(case, executor, new, engine_runs=0)
    ((reason, count),) = execution.fallbacks.items()
    assert "an illegal instruction" in reason
    assert count == 2
    trt.fail_enqueue = ""
    check(case, executor, new, engine_runs=2, fallbacks={})


def test_a_plan_whose_engine_fails_falls_back(make, hybrid, trt):
    case, executor = make(options={"cuda_graph": False})
    for seed in range(3):
        check(case, executor, hybrid.feeds_of(case, 3, seed=seed), engine_runs=2)
    trt.fail_enqueue = "out of luck"
    check(case, executor, hybrid.feeds_of(case, 3, seed=7), engine_runs=0)
    trt.fail_enqueue = ""
    check(case, executor, hybrid.feeds_of(case, 3, seed=8), engine_runs=2, fallbacks={})


def test_out_of_memory_the_whole_call_runs_on_the_cpu(make, hybrid, cuda):
    case, executor = make()
    check(case, executor, hybrid.feeds_of(case, 3))
    cuda.memory_limit = 0
    execution = check(case, executor, hybrid.feeds_of(case, 8), engine_runs=0)
    assert execution.fallbacks == {"the call failed on the GPU: out of GPU memory": 2}
    cuda.memory_limit = 1 << 30
    check(case, executor, hybrid.feeds_of(case, 8), engine_runs=2, fallbacks={})


def test_strict_raises_out_of_memory(make, hybrid, cuda):
    case, executor = make(options={"strict": True})
    cuda.memory_limit = 0
    with pytest.raises(ConversionError, match="out of GPU memory"):
        executor.run(hybrid.feeds_of(case, 3))


def test_a_device_that_fails_while_a_call_is_waited_for(make, hybrid, cuda):
    case, executor = make()
    check(case, executor, hybrid.feeds_of(case, 3))
    cuda.fail_next("event.synchronize")
    execution = check(case, executor, hybrid.feeds_of(case, 3), engine_runs=0)
    ((reason, _),) = execution.fallbacks.items()
    assert reason.startswith("the call failed on the GPU: ")


def test_shapes_that_depend_on_data(make, hybrid):
    case, executor = make(
        """
        g (float[N, 4] x) => (float[M, 4] y, int64[2, M2] where) {
            a = Mul(x, x)
            b = Sub(a, x)
            where = NonZero(b)
            axis0 = Constant <value_ints = [0]> ()
            axis1 = Constant <value_ints = [1]> ()
            row = Slice(where, axis0, axis1, axis0)
            zero = Constant <value_ints = [0]> ()
            rows = Squeeze(row, zero)
            picked = Gather <axis = 0> (x, rows)
            c = Mul(picked, picked)
            y = Add(c, picked)
        }
        """,
        native_ops=("NonZero", "Slice", "Squeeze", "Gather"),
        ranges=[{"picked": ((1, 4), (4, 4), (64, 4))}],
    )
    for seed in range(4):
        feeds = hybrid.feeds_of(case, 3, seed=seed)
        feeds["x"][0] = 0 if seed % 2 else 1  # other shapes from equal ones
        check(case, executor, feeds, engine_runs=2)
    stats = executor.stats()
    assert stats["no_plan"] == {"shapes depend on the data": 4}
    assert stats["plans"] == 0


def test_two_profiles_have_two_contexts(make, hybrid, trt):
    ranges = [
        {"x": ((1, 4), (1, 4), (2, 4)), "s": ((1, 4), (1, 4), (2, 4))},
        {"x": ((3, 4), (8, 4), (8, 4)), "s": ((3, 4), (8, 4), (8, 4))},
    ]
    case, executor = make(ranges=ranges)
    for seed in range(5):
        for size in (1, 8, 2, 5):
            check(case, executor, hybrid.feeds_of(case, size, seed=seed), engine_runs=2)


def test_shape_tensors_are_constants_of_a_plan(make, hybrid):
    """The shape of one input makes the values that an engine reads in CPU memory."""
    case, executor = make(
        """
        g (float[N, 6] x) => (float[P, Q] y) {
            shape = Shape(x)
            first = Gather <axis = 0> (shape, zero)
            rest = Constant <value_ints = [2, 3]> ()
            target = Concat <axis = 0> (first, rest)
            a = Mul(x, x)
            r = Reshape(a, target)
            b = Mul(r, r)
            f = Flatten <axis = 1> (b)
            y = Add(f, f)
        }
        """.replace("=> (float[P, Q] y) {", "=> (float[P, Q] y) <int64[1] zero = {0}> {"),
        native_ops=("Shape", "Gather", "Concat"),
        ranges=[{"x": ((1, 6), (4, 6), (8, 6)), "target": ((1, 2, 3), (4, 2, 3), (8, 2, 3), True)}],
    )
    for seed in range(5):
        for size in (1, 4, 8):
            check(case, executor, hybrid.feeds_of(case, size, seed=seed), engine_runs=1, fallbacks={})
    stats = executor.stats()
    assert stats["plans"] == 3
    assert stats["graphs"] == 3
    # nothing of the island is asked for but a constant, so a plan leaves it out


def test_outputs_that_no_step_makes(make, hybrid):
    case, executor = make(
        "g (float[N, 4] x, float[2] k) => (float[N, 4] y, float[2] k, float[2] w) <float[2] w = {1, 2}> "
        "{ a = Mul(x, x)  y = Sin(a) }"
    )
    for seed in range(4):
        check(case, executor, hybrid.feeds_of(case, 2, seed=seed))


def test_several_inputs_outputs_and_types(make, hybrid):
    case, executor = make(
        """
        g (float[N, 4] x, int64[N] i, bool[N, 4] m) => (float[N, 4] y, int64[N] j, float[N, 4] s) {
            z = Mul(x, x)
            s = Sin(z)
            y = Where(m, s, x)
            j = Add(i, i)
        }
        """,
        native_ops=("Sin",),
    )
    for seed in range(4):
        for size in (1, 5):
            check(case, executor, hybrid.feeds_of(case, size, seed=seed))


def test_strings_run_on_the_host(make, hybrid):
    _, executor = make(
        """
        g (string[N] s, float[N] x) => (float[N] y, string[N] t) {
            e = Equal(s, word)
            f = Cast <to = 1> (e)
            y = Mul(f, x)
            t = Identity(s)
        }
        """.replace("(float[N] y, string[N] t) {", '(float[N] y, string[N] t) <string[1] word = {"a"}> {'),
        native_ops=("Equal", "Cast", "Identity"),
        opset=19,
    )
    feeds = {"s": np.array(["a", "b", "a"], object), "x": np.array([1, 2, 3], np.float32)}
    for _ in range(3):
        execution = executor.run(feeds)
        np.testing.assert_array_equal(execution.outputs["y"], [1, 0, 3])
        assert execution.outputs["t"].tolist() == ["a", "b", "a"]
        assert execution.engine_runs == 1


def test_empty_tensors(make, hybrid):
    case, executor = make(ranges=[{"x": ((0, 4), (1, 4), (8, 4)), "s": ((0, 4), (1, 4), (8, 4))}])
    for seed in range(4):
        check(case, executor, hybrid.feeds_of(case, 0, seed=seed))
        check(case, executor, hybrid.feeds_of(case, 2, seed=seed))


def test_only_some_outputs_can_be_asked_for(hybrid, cuda, trt, fake_trt, tmp_path):
    text = hybrid.SANDWICH.replace("(float[N, 4] y)", "(float[N, 4] y, float[N, 4] s)")
    case = hybrid.make_case(text, tmp_path, fake_trt, ("Sin",))
    case.outputs = ("s",)
    executor = hybrid.open_case(case, cuda, trt)
    feeds = hybrid.feeds_of(case, 2)
    execution = executor.run(feeds)
    np.testing.assert_allclose(execution.outputs["s"], case.native(feeds)["s"], rtol=1e-6)
    assert execution.engine_runs == 1
    executor.close()


def test_plans_are_bounded(make, hybrid, cuda):
    case, executor = make(ranges=[{"x": ((1, 4), (4, 4), (200, 4)), "s": ((1, 4), (4, 4), (200, 4))}])
    for seed in range(3):
        for size in range(1, MAX_PLANS + 5):
            check(case, executor, hybrid.feeds_of(case, size, seed=seed))
            check(case, executor, hybrid.feeds_of(case, size, seed=seed + 10))
    assert executor.stats()["plans"] == MAX_PLANS


def test_outputs_on_the_device(make, hybrid, cuda):
    case, executor = make()
    for seed in range(5):
        feeds = hybrid.feeds_of(case, 3, seed=seed)
        execution = executor.run(feeds, on_device=True)
        np.testing.assert_allclose(execution.outputs["y"].numpy(), case.native(feeds)["y"], rtol=1e-6)
    kept = execution.outputs["y"]
    other = executor.run(hybrid.feeds_of(case, 3, seed=77), on_device=True).outputs["y"]
    np.testing.assert_allclose(kept.numpy(), case.native(feeds)["y"], rtol=1e-6)
    executor.close()
    assert other.numpy().shape == (3, 4)


def test_nothing_waits_inside_a_call_that_leaves_its_outputs_on_the_device(make, hybrid, cuda):
    case, executor = make()
    for seed in range(4):
        executor.run(hybrid.feeds_of(case, 3, seed=seed), on_device=True)
    cuda.events.clear()
    executor.run(hybrid.feeds_of(case, 3, seed=9), on_device=True)
    assert "synchronize" not in [event[0] for event in cuda.events]


def test_close_frees_everything_and_is_final(make, hybrid):
    case, executor = make()
    check(case, executor, hybrid.feeds_of(case, 3))
    executor.close()
    executor.close()
    with pytest.raises(ConverterStateError, match="closed"):
        executor.run(hybrid.feeds_of(case, 3))


def test_eight_threads_with_mixed_shapes(make, hybrid):
    case, executor = make()
    wanted = {}
    for size in (1, 3, 8, 9):
        for seed in range(3):
            feeds = hybrid.feeds_of(case, size, seed=seed)
            wanted[size, seed] = feeds, case.native(feeds)["y"]
    problems = []

    def work(number):
        for turn in range(200):
            feeds, expected = wanted[(1, 3, 8, 9)[(number + turn) % 4], turn % 3]
            actual = executor.run(feeds).outputs["y"]
            if not np.allclose(actual, expected, rtol=1e-6, atol=1e-6):
                problems.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
