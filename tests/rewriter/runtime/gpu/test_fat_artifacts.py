"""Nodes with engines for several GPUs and versions: the best that this machine runs, and what is told of it."""

import dataclasses

import numpy as np
import pytest

from rewriter.errors import ConversionError
from rewriter.runtime.slots import StoredEngine

#: One engine; the double's GPU is SM90.
TEXT = """
g (float[N, 4] x) => (float[N, 4] y) {
    a = Mul(x, x)
    y = Add(a, x)
}
"""
OP = "TRTEngineOp_000"
OWN = "built for this GPU, SM90"


@pytest.fixture
def fat(load_double, cuda, trt, fake_trt, tmp_path, monkeypatch):
    """Opens a model whose node has engines of these keys: key -> (targets, options of the double's engine).

    With the option `runs` the double takes an engine although it was built for other GPUs.
    """
    hybrid = load_double("hybrid")
    hybrid.use_islands_of_the_double(monkeypatch, cuda)
    opened = []

    def make(engines, **options):
        case = hybrid.make_case(TEXT, tmp_path, fake_trt, ())
        (segment,) = case.segments
        case.engines[:] = []
        for key, (targets, more) in engines.items():
            profile = hybrid.profile_of(segment, more.pop("ranges", {}))
            facts = {"backend": more.pop("backend", "tensorrt_rtx"), "problem": more.pop("problem", "")}
            runs_on = [*targets, "SM90"] if more.pop("runs", False) else targets
            item = hybrid.stored(segment, tmp_path, fake_trt, [profile], key=key, targets=runs_on, **more)
            entry = dataclasses.replace(item.entry, targets=tuple(targets), **facts)
            case.engines.append(StoredEngine(entry, item.path))
        opened.append(hybrid.open_case(case, cuda, trt, **options))
        return case, opened[-1], hybrid

    yield make
    for executor in opened:
        if not isinstance(executor, str):
            executor.close()


def check(case, executor, hybrid, size, runs):
    feeds = hybrid.feeds_of(case, size)
    execution = executor.run(feeds)
    np.testing.assert_allclose(execution.outputs["y"], case.native(feeds)["y"], rtol=1e-6)
    assert execution.engine_runs == runs
    return execution


def test_the_engine_for_this_gpu_is_opened_and_no_other(fat, trt):
    case, executor, hybrid = fat(
        {
            "newer": (["SM120"], {}),
            "older": (["SM80"], {}),
            "old": (["SM90"], {"version": "1.4.0.76"}),
            "own": (["SM90"], {}),
        }
    )
    check(case, executor, hybrid, 3, 1)
    assert len(trt.called("deserialize")) == 1
    assert executor.stats()["engines_chosen"] == {
        OP: {
            "engines": {"own": f"tensorrt_rtx 1.7.1.116: {OWN}"},
            "others": {
                "older": "not needed so far: built for SM80, which is older than this GPU, SM90",
                "newer": "not needed so far: built for SM120, which is newer than this GPU, SM90",
                "old": "it was built by tensorrt_rtx 1.4.0.76, and engines run with that version only; "
                "installed is 1.7.1.116",
            },
        }
    }


def test_one_that_tensorrt_refuses_gives_way_to_the_next(fat):
    case, executor, hybrid = fat({"bad": (["SM90"], {"refuse": "no, not this one"}), "here": ([], {})})
    check(case, executor, hybrid, 3, 1)
    told = executor.stats()["engines_chosen"][OP]
    assert told["engines"] == {"here": "tensorrt_rtx 1.7.1.116: built for the GPU of the machine that built it"}
    assert "no, not this one" in told["others"]["bad"]


def test_where_none_fits_the_node_is_native_and_counted(fat):
    case, executor, hybrid = fat({"newer": (["SM120"], {}), "old": (["SM90"], {"version": "1.4.0.76"})})
    execution = check(case, executor, hybrid, 3, 0)
    ((reason, count),) = execution.fallbacks.items()
    assert "compute capability 9.0. Supported compute capabilities: 12.0" in reason
    assert count == 1
    told = executor.stats()["engines_chosen"][OP]
    assert told["engines"] == {}
    assert told["others"]["newer"] == reason
    assert told["others"]["old"].startswith("it was built by tensorrt_rtx 1.4.0.76")


def test_shapes_that_the_best_does_not_take_go_to_the_next(fat):
    small, large = {"ranges": {"x": ((1, 4), (2, 4), (4, 4))}}, {"ranges": {"x": ((1, 4), (8, 4), (16, 4))}}
    case, executor, hybrid = fat({"any": ([], large), "own": (["SM90"], small)}, maximum_cached_engines=2)
    check(case, executor, hybrid, 3, 1)
    assert set(executor.stats()["engines_chosen"][OP]["engines"]) == {"own"}
    check(case, executor, hybrid, 9, 1)
    told = executor.stats()["engines_chosen"][OP]
    assert (set(told["engines"]), told["others"]) == ({"own", "any"}, {})


def test_engines_of_a_package_that_is_not_installed_are_passed_over(fat):
    # The double is every package, so another package is told apart by its version.
    case, executor, hybrid = fat(
        {"classic": ([], {"backend": "tensorrt", "version": "10.9.0"}), "older": (["SM80", "SM90"], {})}
    )
    check(case, executor, hybrid, 3, 1)
    told = executor.stats()["engines_chosen"][OP]
    assert told["others"] == {
        "classic": "it was built by tensorrt 10.9.0, and engines run with that version only; installed is 1.7.1.116"
    }


def test_builds_at_run_time_use_a_package_that_is_there(fat, monkeypatch):
    from rewriter.runtime.gpu import opening

    seen = []

    def builds(engines, *rest):
        seen.extend(stored.entry.key for stored in engines)
        return None, None

    monkeypatch.setattr(opening, "_builds", builds)
    fat({"old": (["SM90"], {"version": "1.4.0.76"}), "older": (["SM80", "SM90"], {})})
    assert seen == ["older", "old"]


def test_the_nearest_older_gpu_is_preferred(fat, trt):
    case, executor, hybrid = fat({"far": (["SM75", "SM80"], {}), "near": (["SM80", "SM89"], {"runs": True})})
    check(case, executor, hybrid, 3, 1)
    assert len(trt.called("deserialize")) == 1
    assert executor.stats()["engines_chosen"][OP] == {
        "engines": {"near": "tensorrt_rtx 1.7.1.116: built for SM89, which is older than this GPU, SM90"},
        "others": {"far": "not needed so far: built for SM80, which is older than this GPU, SM90"},
    }


TORN = "engines/x.engine is damaged: its sha256 is not the one in manifest.json"
OTHER = "and engines run with that version only; installed is 1.7.1.116"


def test_a_damaged_best_gives_way_to_the_next_best(fat, trt):
    case, executor, hybrid = fat(
        {"own": (["SM90"], {"problem": TORN}), "older": (["SM80"], {"runs": True})}, strict=True
    )
    execution = check(case, executor, hybrid, 3, 1)
    assert dict(execution.fallbacks) == {}
    assert len(trt.called("deserialize")) == 1  # the damaged one is never looked at
    told = executor.stats()["engines_chosen"][OP]
    assert (set(told["engines"]), told["others"]) == ({"older"}, {"own": TORN})


@pytest.mark.parametrize(
    ("engines", "others"),
    [
        ({"a": (["SM90"], {"problem": TORN}), "b": ([], {"problem": "engines/b is missing"})},
         {"a": TORN, "b": "engines/b is missing"}),
        ({"old": (["SM90"], {"version": "1.4.0.76"})}, {"old": f"it was built by tensorrt_rtx 1.4.0.76, {OTHER}"}),
        ({"classic": (["SM90"], {"backend": "tensorrt", "version": "10.9.0"})},
         {"classic": f"it was built by tensorrt 10.9.0, {OTHER}"}),
    ],
    ids=["all damaged", "other version only", "other flavour only"],
)  # fmt: skip
def test_what_can_never_run_leaves_the_node_native_counted_and_named(fat, trt, engines, others):
    case, executor, hybrid = fat(engines)
    execution = check(case, executor, hybrid, 3, 0)
    assert dict(execution.fallbacks) == {next(iter(others.values())): 1}
    assert trt.called("deserialize") == []
    assert executor.stats()["engines_chosen"] == {OP: {"engines": {}, "others": others}}


def test_strict_names_why_no_engine_is_left(fat):
    with pytest.raises(
        ConversionError, match=f"strict: 1 engine node would not run on TensorRT; {OP}: engines/x.engine is"
    ):
        fat({"own": (["SM90"], {"problem": TORN}), "old": (["SM80"], {"version": "1.4.0.76"})}, strict=True)


SMALL, LARGE = ({"ranges": {"x": ((1, 4), (2, 4), (top, 4))}} for top in (4, 16))


def test_without_room_shapes_of_another_engine_run_natively_and_it_is_told(fat):
    case, executor, hybrid = fat({"any": (["SM80"], {"runs": True, **LARGE}), "own": (["SM90"], dict(SMALL))})
    check(case, executor, hybrid, 3, 1)
    execution = check(case, executor, hybrid, 9, 0)
    (reason,) = execution.fallbacks
    assert reason == "maximum_cached_engines is reached, and no engine in memory takes its shapes"
    told = executor.stats()["engines_chosen"][OP]
    assert told["others"] == {
        "any": "wanted, but maximum_cached_engines is reached: built for SM80, which is older than this GPU, SM90"
    }
    check(case, executor, hybrid, 3, 1)


def test_evicted_engines_are_told(fat):
    engines = {"any": (["SM80"], {"runs": True, **LARGE}), "own": (["SM90"], dict(SMALL))}
    case, executor, hybrid = fat(engines, cache_full="evict")
    check(case, executor, hybrid, 3, 1)
    check(case, executor, hybrid, 9, 1)
    told = executor.stats()["engines_chosen"][OP]
    assert (set(told["engines"]), told["others"]) == ({"any"}, {"own": f"closed to make room: {OWN}"})


def test_shapes_of_the_best_stay_with_it(fat):
    engines = {"any": (["SM80"], {"runs": True, **LARGE}), "own": (["SM90"], dict(SMALL))}
    case, executor, hybrid = fat(engines, maximum_cached_engines=2)
    for size in (9, 3, 16, 1):
        check(case, executor, hybrid, size, 1)
    stats = executor.stats()
    assert (stats["slots"][OP]["loads"], stats["slots"][OP]["misses"]) == (2, 0)


def test_without_cuda_in_onnx_runtime_the_engines_own_reason_is_told(fat, monkeypatch):
    from rewriter.runtime.gpu import opening

    monkeypatch.setattr(opening, "cuda_provider_problem", lambda cuda: "ONNX Runtime has no CUDA provider")
    _, executor, _ = fat({"old": (["SM90"], {"version": "1.4.0.76"})})
    assert executor == f"it was built by tensorrt_rtx 1.4.0.76, {OTHER}; ONNX Runtime has no CUDA provider"
