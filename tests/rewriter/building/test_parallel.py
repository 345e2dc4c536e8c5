"""Builds side by side, on a stub backend whose builds are told step by step."""

from __future__ import annotations

import dataclasses
import hashlib
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from passes.model import from_proto
from passes.partition import PartitionOptions
from passes.segments import Segment, SegmentModel, TensorSpec
from passes.support import SupportMap, Verdict
from rewriter.backends.base import BuildFailure, BuildOptions, BuiltEngine
from rewriter.building.builder import EngineBuilder
from rewriter.building.cache import EngineCache
from rewriter.building.parallel import BuildTask, run_builds
from rewriter.building.planning import make_plan
from rewriter.building.segment_builder import SegmentBuilder
from rewriter.errors import BackendError
from rewriter.precision.lowering import Lowered

RELU = """<ir_version: 10, opset_import: ["" : 18]> {name} (float[2] x) => (float[2] y) {{ [relu] y = Relu(x) }}"""


def lowered(name):
    """A segment of one node; the name stands for its contents."""
    segment = Segment("TRTEngineOp_000", (), ("relu",), ("x",), (), ("y",), 1)
    x, y = TensorSpec("x", TensorProto.FLOAT, (2,)), TensorSpec("y", TensorProto.FLOAT, (2,))
    model = from_proto(onnx.parser.parse_model(RELU.format(name=name)))
    return Lowered(SegmentModel(segment, model, (x,), (y,), content_hash=name))


class Stub:
    """Builds what the names of the graphs say: engine, a kind of failure, or an exception; three steps each.

    Attributes:
        meeting: where builds wait for each other before their first step; None: nowhere.
        built: names in the order of their beginning.
        most: builds that were in work at the same time, at most.
    """

    flavour, version, default_targets = "tensorrt_rtx", "1", ("SM89",)

    def __init__(self, jobs=None, meeting=None):
        self.jobs, self.meeting = jobs, meeting
        self.built, self.interrupted, self.most = [], [], 0
        self._now, self._lock = 0, threading.Lock()
        self._ended = {}

    def build(self, model, profiles, options, output, progress=None):
        name = model.proto.graph.name
        with self._lock:
            self.built.append(name)
            self._now += 1
            self.most = max(self.most, self._now)
            ended = self._ended[threading.get_ident()] = threading.Event()
        try:
            return self._outcome(name, output, progress, ended)
        finally:
            with self._lock:
                self._now -= 1

    def _outcome(self, name, output, progress, ended):
        if self.meeting is not None:
            self.meeting.wait(timeout=60)
        for step in range(3):
            if progress is not None and not progress("phase", step, 3):
                return BuildFailure("cancelled", "the build was cancelled")
        word = name.split("_")[0]
        if word == "hang":
            assert ended.wait(timeout=60)
            return BuildFailure("cancelled", "the build was cancelled")
        if word == "error":
            raise BackendError(f"{name}: disk full")
        if word in ("unsupported", "crash"):
            return BuildFailure(word, name, (name,))
        if word == "shy" and self.most > 1 and self.built.count(name) == 1:
            return BuildFailure("crash", name)
        output.write_bytes(name.encode())
        return BuiltEngine(output, len(name), hashlib.sha256(name.encode()).hexdigest(), 1, 0.1)

    def interrupt(self, thread):
        with self._lock:
            self.interrupted.append(thread)
            if thread in self._ended:
                self._ended[thread].set()


def tasks_for(names, backend, folder, **options):
    builder = SegmentBuilder(backend, BuildOptions(), Path(folder), **options)
    return [BuildTask(f"E{i}", builder, lowered(name), ()) for i, name in enumerate(names)]


def plain(builds):
    return [(b.key, b.profiles, b.outcome, b.lowered.segment.content_hash) for b in builds]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def run(names, jobs, folder, cancels=()):
    """What came of it, what was raised, what was told of each engine, and how often each was built."""
    backend, told = Stub(), {}
    caller = threading.current_thread()

    def progress(event):
        assert threading.current_thread() is caller
        assert event.stage == "build"
        told.setdefault(event.engine.index, []).append((event.done, event.total, event.engine.ended, event.detail))
        return (event.engine.index, event.done) not in cancels

    try:
        found = plain(run_builds(tasks_for(names, backend, folder), jobs, progress))
    except BackendError as error:
        return str(error), None, None
    return found, told, sorted(backend.built)


NAMES = st.sampled_from(["ok_a", "ok_b", "ok_c", "unsupported_a", "crash_a", "error_a", "error_b"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(NAMES, max_size=7),
    jobs=st.integers(2, 5),
    cancels=st.sets(st.tuples(st.integers(0, 6), st.integers(0, 2))),
)
def test_nothing_in_what_comes_of_it_depends_on_jobs(tmp_path, names, jobs, cancels):
    alone, told, built = run(names, 1, tmp_path, cancels)
    beside, told_beside, built_beside = run(names, jobs, tmp_path, cancels)
    assert beside == alone
    if told is not None and "crash_a" not in names:  # which is built again, alone
        assert told_beside == told
        assert built_beside == built


def test_as_many_are_built_at_the_same_time_as_jobs_says(tmp_path):
    backend = Stub(meeting=threading.Barrier(3))
    builds = run_builds(tasks_for([f"ok_{i}" for i in range(6)], backend, tmp_path), 3)
    assert [b.outcome.path.read_text() for b in builds] == [f"ok_{i}" for i in range(6)]
    assert backend.most == 3


@pytest.mark.parametrize(("own", "jobs", "most"), [(1, 4, 1), (2, 4, 2), (None, 1, 1)])
def test_a_backend_builds_no_more_at_the_same_time_than_it_can(tmp_path, own, jobs, most):
    backend = Stub(own, threading.Barrier(most))
    run_builds(tasks_for(["ok_a", "ok_b", "ok_c", "ok_d"], backend, tmp_path), jobs)
    assert backend.most == most


def test_a_backend_without_a_word_about_jobs_is_called_by_the_thread_that_asked(tmp_path):
    threads = set()

    class Simple:
        flavour, version, default_targets = "tensorrt_rtx", "1", ("SM89",)

        def build(self, model, profiles, options, output, progress=None):
            threads.add(threading.current_thread())
            return BuildFailure("unsupported", "no")

    run_builds(tasks_for(["ok_a", "ok_b"], Simple(), tmp_path), 4)
    assert threads == {threading.current_thread()}


def test_two_backends_build_side_by_side_one_engine_each(tmp_path):
    meeting = threading.Barrier(2)
    first, second = Stub(1, meeting), Stub(1, meeting)
    tasks = [
        t for backend in (first, second) for t in tasks_for(["ok_a", "ok_b"], backend, tmp_path / str(id(backend)))
    ]
    for task in tasks:
        task.builder.scratch.mkdir(exist_ok=True)
    assert len(run_builds(tasks, 2)) == 4
    assert (first.most, second.most) == (1, 1)


def test_equal_engines_are_built_once_and_again_where_the_first_was_cancelled(tmp_path):
    backend = Stub()
    builds = run_builds(tasks_for(["ok_a", "ok_a", "ok_b", "ok_a"], backend, tmp_path), 4)
    assert sorted(backend.built) == ["ok_a", "ok_b"]
    assert builds[0].outcome is builds[1].outcome is builds[3].outcome
    backend = Stub()
    tasks = tasks_for(["ok_a", "ok_a", "ok_b"], backend, tmp_path)
    builds = run_builds(tasks, 3, lambda event: event.engine.index != 0)
    assert [getattr(b.outcome, "kind", "engine") for b in builds] == ["cancelled", "engine", "engine"]


def test_a_failure_that_others_may_have_brought_about_is_tried_again_alone(tmp_path):
    backend = Stub(meeting=threading.Barrier(2))
    names = ["shy_a", "ok_b"]
    stub_alone = []
    original = backend._outcome

    def outcome(name, *rest):
        if backend.built.count(name) == 2:
            backend.meeting = None
            stub_alone.append(backend._now)
        return original(name, *rest)

    backend._outcome = outcome
    builds = run_builds(tasks_for([*names, "shy_a"], backend, tmp_path), 2)
    assert all(isinstance(b.outcome, BuiltEngine) for b in builds)
    assert builds[2].outcome is builds[0].outcome
    assert stub_alone == [1]
    assert sorted(backend.built) == ["ok_b", "shy_a", "shy_a"]


def test_an_error_ends_what_comes_after_it_and_waits_for_what_comes_before(tmp_path):
    meeting = threading.Barrier(3)
    backend = Stub(meeting=meeting)
    first = threading.Event()

    def progress(event):
        if event.engine.ended:
            first.set()
        return True

    with pytest.raises(BackendError, match="error_a"):
        run_builds(tasks_for(["ok_a", "error_a", "hang_a"], backend, tmp_path), 3, progress)
    assert first.is_set()
    assert sorted(backend.built) == ["error_a", "hang_a", "ok_a"]
    assert len(set(backend.interrupted)) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_progress_raises_ends_everything(tmp_path, error):
    backend = Stub(meeting=threading.Barrier(3))
    tasks = tasks_for(["hang_a", "hang_b", "ok_a"], backend, tmp_path)

    def progress(event):
        if event.engine.ended:
            raise error
        return True

    with pytest.raises(error):
        run_builds(tasks, 3, progress)
    assert len(set(backend.interrupted)) == 2
    backend = Stub()
    again = tasks_for(["hang_a"], backend, tmp_path)
    assert again[0].builder.known(again[0].lowered, ()) is None


@pytest.fixture
def ctrl_c_is_heard():
    """Also where the tests run in the background, which a shell starts deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_ctrl_c_ends_everything_and_nothing_is_remembered_of_it(tmp_path):
    main = threading.main_thread().ident

    class Pressing(Stub):
        def _outcome(self, name, *rest):
            if name == "hang_b":
                signal.pthread_kill(main, signal.SIGINT)
            return super()._outcome(name, *rest)

    backend = Pressing()
    tasks = tasks_for(["hang_a", "hang_b"], backend, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_builds(tasks, 2)
    assert all(task.builder.known(task.lowered, ()) is None for task in tasks)


def test_what_needs_no_build_starts_no_thread(tmp_path):
    backend, events = Stub(), []
    tasks = tasks_for(["ok_a", "ok_b"], backend, tmp_path)
    run_builds(tasks, 2)
    assert run_builds(tasks, 2, events.append)[1].outcome.path.read_text() == "ok_b"
    assert sorted(backend.built) == ["ok_a", "ok_b"]
    assert [(e.engine.name, e.engine.finished, e.engine.ended) for e in events] == [("E0", 1, True), ("E1", 2, True)]
    bad = dataclasses.replace(tasks[0], profiles="no inputs were seen")
    assert [b.outcome for b in run_builds([bad, bad], 2)] == [BuildFailure("profile", "no inputs were seen")] * 2
    aborted = tasks_for(["ok_a", "ok_b"], backend, tmp_path, abort_builds=True)
    assert {b.outcome.kind for b in run_builds(aborted, 2)} == {"aborted"}
    assert run_builds([], 3) == []


@pytest.mark.parametrize("word", ["ok", "unsupported"])
def test_one_cache_serves_all_threads(tmp_path, word):
    cache = EngineCache(tmp_path / "cache")
    names = [f"{word}_{i}" for i in range(4)]
    found = []
    for folder, backend in (("a", Stub(meeting=threading.Barrier(4))), ("b", Stub())):
        (tmp_path / folder).mkdir()
        builds = run_builds(tasks_for(names, backend, tmp_path / folder, cache=cache), 4)
        found.append([(b.key, getattr(b.outcome, "sha256", b.outcome)) for b in builds])
        assert len(backend.built) == (4 if folder == "a" else 0)
    assert found[0] == found[1]
    stats = cache.stats
    assert (stats.hits, stats.stored) == ((4, 4) if word == "ok" else (0, 0))
    assert stats.known_failures == (0 if word == "ok" else 4)
    assert not stats.damaged
    assert not stats.refused


def test_threads_that_store_in_a_cache_without_room_lose_no_engine(tmp_path):
    cache = EngineCache(tmp_path / "cache", max_bytes=600)  # one or two entries
    names = [f"ok_{i}" for i in range(6)]
    builds = run_builds(tasks_for(names, Stub(meeting=threading.Barrier(3)), tmp_path, cache=cache), 3)
    assert [b.outcome.path.read_text() for b in builds] == names
    assert cache.stats.removed > 0
    assert not cache.stats.damaged


def test_the_caller_is_told_of_every_engine(tmp_path):
    events = []
    run_builds(tasks_for(["ok_a", "unsupported_a"], Stub(), tmp_path), 2, events.append)
    last = [e for e in events if e.engine.ended]
    assert [e.engine.finished for e in last] == [1, 2]
    assert {e.detail for e in last} == {"E0 (1/2): built", "E1 (2/2): no engine (unsupported)"}
    assert {(e.engine.name, e.engine.index, e.engine.total) for e in events} == {("E0", 0, 2), ("E1", 1, 2)}
    assert {e.detail for e in events if not e.engine.ended} == {"E0 (1/2): phase", "E1 (2/2): phase"}


def test_blame_comes_after_the_builds_in_the_order_of_the_plan(tmp_path):
    backend = Stub()
    builder = EngineBuilder(backend, None, BuildOptions(), None, tmp_path)
    segments = tuple(
        dataclasses.replace(s.segment, segment=dataclasses.replace(s.segment.segment, name=f"TRTEngineOp_{i:03}"))
        for i, s in enumerate(lowered(name) for name in ("ok_a", "ok_b", "ok_c"))
    )
    plan = SimpleNamespace(segments=segments, not_runnable={})
    plan.runnable = plan
    profiles = {s.segment.name: () for s in segments}
    results = [
        builder.build(
            None, plan, lambda _: {**profiles, "TRTEngineOp_001": "no inputs", "TRTEngineOp_000": "none"}, jobs=jobs
        )
        for jobs in (1, 3)
    ]
    assert [(f.target, f.reason) for f in results[0].failures] == [
        ("TRTEngineOp_000", "none"),
        ("TRTEngineOp_001", "no inputs"),
    ]
    assert results[0].failures == results[1].failures
    assert list(results[0].builds) == list(results[1].builds) == [s.segment.name for s in segments]


FOUR = """<ir_version: 10, opset_import: ["" : 18, "other" : 1]>
g (float[2] x) => (float[2] y) {
  [a0] a = Relu(x) [a1] b = Exp(a) [a2] c = Abs(b) [n0] d = other.N(c)
  [b0] e = Relu(d) [b1] f = Sin(e) [b2] h = Abs(f) [b3] k = Neg(h) [n1] l = other.N(k)
  [c0] m = Relu(l) [c1] n = Sin(m) [c2] y = Abs(n)
}"""


class Picky:
    """Cannot build segments that hold a Sin, and says which; notes what it was asked for."""

    flavour, version, default_targets = "tensorrt_rtx", "1", ("SM89",)

    def __init__(self):
        self.jobs, self.asked = None, []

    def build(self, model, profiles, options, output, progress=None):
        self.asked.append(tuple(node.name for node in model.proto.graph.node))
        bad = [node.name for node in model.proto.graph.node if node.op_type == "Sin"]
        if bad:
            return BuildFailure("unsupported", f"no {bad[0]}", (f"Layer '{bad[0]}' has no runners",))
        output.write_bytes(b"e")
        return BuiltEngine(output, 1, "00" * 32, 1, 0.1)


def test_the_plan_after_failed_builds_does_not_depend_on_jobs(tmp_path):
    """Two segments hold a node that cannot be built: both are denied, and the graph is cut again."""
    model = from_proto(onnx.parser.parse_model(FOUR))
    support = SupportMap.of(Verdict(n.name, n.op_type, n.domain == "", "parser", "no") for n in model.proto.graph.node)
    checker = SimpleNamespace(check_segment=lambda segment: ())
    found = []
    for jobs in (1, 3):
        backend = Picky()
        builder = EngineBuilder(backend, checker, BuildOptions(), PartitionOptions(2), tmp_path)
        plan = make_plan(model, support, checker, PartitionOptions(2))
        result = builder.build(model, plan, lambda plan: {s.segment.name: () for s in plan.segments}, jobs=jobs)
        builds = {name: (b.key, getattr(b.outcome, "kind", "engine")) for name, b in result.builds.items()}
        cuts = [s.segment.nodes for s in result.plan.segments]
        found.append((cuts, builds, result.failures, result.plan.support.verdicts, sorted(backend.asked)))
    assert found[0] == found[1]
    assert found[0][0] == [("a0", "a1", "a2"), ("b2", "b3")]
    assert [(f.target, f.reason) for f in found[0][2]] == [("TRTEngineOp_001", "no b1"), ("TRTEngineOp_002", "no c1")]
