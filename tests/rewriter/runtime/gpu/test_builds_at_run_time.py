"""Engines built at run time take over in the executor; the builder is a double."""

import dataclasses
import threading

import numpy as np
import pytest

from rewriter.backends.base import BuildFailure, InputProfile
from rewriter.runtime.builds import BackgroundBuilds
from rewriter.runtime.gpu import opening

TEXT = """
g (float[N, 4] x) => (float[N, 4] y) {
    a = Mul(x, x)
    b = Add(a, x)
    y = Sin(b)
}
"""


class Builder:
    """Writes engine files of TensorRT's double, exactly for the shapes asked for; waits until it is let go."""

    most_sets = None

    def __init__(self, hybrid, fake_trt, folder):
        self.hybrid, self.fake_trt, self.folder = hybrid, fake_trt, folder
        self.go = threading.Event()
        self.go.set()
        self.failure = ""
        self.built = []

    def build(self, segment, sets, counts=None, progress=None):
        assert self.go.wait(30)
        self.built.append([{name: item.shape for name, item in seen.items()} for seen in sets])
        if self.failure:
            return BuildFailure("unsupported", self.failure)
        dims = {name: [seen[name].shape for seen in sets] for name in sets[0]}
        profile = {
            name: InputProfile(
                tuple(map(min, zip(*all_, strict=True))), all_[-1], tuple(map(max, zip(*all_, strict=True)))
            )
            for name, all_ in dims.items()
        }
        key = f"{len(self.built):02x}"
        return self.hybrid.stored(segment, self.folder, self.fake_trt, [profile], key=key)

    def close(self):
        pass


@pytest.fixture
def setup(load_double, cuda, trt, fake_trt, tmp_path, monkeypatch):
    hybrid = load_double("hybrid")
    hybrid.use_islands_of_the_double(monkeypatch, cuda)
    builder = Builder(hybrid, fake_trt, tmp_path / "built")
    builds = []

    def make_builds(engines, options, params, recipe, ranges, undo):
        if not options.allow_build_at_runtime:
            return None, None
        builds.append(BackgroundBuilds(builder))
        return builder, builds[-1]

    monkeypatch.setattr(opening, "_builds", make_builds)
    opened = []

    def make(engines=True, **options):
        case = hybrid.make_case(TEXT, tmp_path, fake_trt, ("Sin",))
        if not engines:
            case.engines.clear()
        opened.append(hybrid.open_case(case, cuda, trt, **{"allow_build_at_runtime": True, **options}))
        return case, opened[-1], builder

    yield dataclasses.make_dataclass("Setup", ["make", "hybrid"])(make, hybrid)
    for executor in opened:
        executor.close()


def check(setup, case, executor, size, seed=0):
    feeds = setup.hybrid.feeds_of(case, size, seed=seed)
    execution = executor.run(feeds)
    np.testing.assert_allclose(execution.outputs["y"], case.native(feeds)["y"], rtol=1e-6)
    return execution


def test_calls_run_natively_until_the_engine_is_there(setup):
    case, executor, builder = setup.make(engines=False)
    builder.go.clear()
    for seed in range(4):
        execution = check(setup, case, executor, 3, seed)
        assert execution.fallbacks == {"an engine for its shapes is being built": 1}
    builder.go.set()
    executor.wait_for_builds()
    for seed in range(4):
        execution = check(setup, case, executor, 3, seed)
        assert (execution.engine_runs, execution.fallbacks) == (1, {})
    assert executor.stats()["graphs"] == 1
    assert [stored.entry.op for stored in executor.built_engines()] == ["TRTEngineOp_000"]
    assert len(builder.built) == 1


def test_a_call_waits_when_it_was_asked_to(setup):
    case, executor, _ = setup.make(engines=False, wait_for_builds=True)
    assert check(setup, case, executor, 3).engine_runs == 1


def test_a_full_cache_builds_nothing(setup):
    case, executor, builder = setup.make()
    execution = check(setup, case, executor, 9)
    (reason,) = execution.fallbacks
    assert "maximum_cached_engines" in reason
    assert builder.built == []


def test_a_full_cache_that_evicts_settles(setup):
    """Two shapes that alternate: the second build covers both, and nothing is built or loaded after that."""
    case, executor, builder = setup.make(engines=False, cache_full="evict", wait_for_builds=True)
    for seed in range(6):
        for size in (3, 12):
            check(setup, case, executor, size, seed)
    assert len(builder.built) == 2
    assert check(setup, case, executor, 3, 7).engine_runs == 1
    assert check(setup, case, executor, 12, 7).engine_runs == 1
    stats = executor.stats()["slots"]["TRTEngineOp_000"]
    assert stats["engines"] == 1
    assert stats["evictions"] == 1


def test_a_failed_build_is_remembered_with_its_reason(setup):
    case, executor, builder = setup.make(engines=False, wait_for_builds=True)
    builder.failure = "no kernel for it"
    for seed in range(5):
        execution = check(setup, case, executor, 3, seed)
        ((reason, count),) = execution.fallbacks.items()
        assert "no kernel for it" in reason
        assert count == 1
    assert len(builder.built) == 1
    assert executor.stats()["graphs"] == 1


def test_no_build_when_it_is_not_allowed(setup):
    case, executor, builder = setup.make(engines=False, allow_build_at_runtime=False)
    assert check(setup, case, executor, 3).fallbacks == {"it has no engine": 1}
    assert builder.built == []
