"""Several children behind one backend, with a worker whose builds last until the test lets them go."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from passes.model import Model, make_stub
from rewriter import backends
from rewriter.backends import frames, tensorrt_rtx
from rewriter.backends.base import Backend, BuildFailure, BuildOptions
from rewriter.backends.client import NotStartedError, ProcessBackend
from rewriter.backends.pool import PoolBackend
from rewriter.errors import BackendError, InvalidParameterError

#: Answers with its process id; a word in the model's name says what else: "held" waits for a cancel, "segv" dies.
WORKER = f"""
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("frames", {str(Path(frames.__file__).resolve())!r})
frames = importlib.util.module_from_spec(spec)
spec.loader.exec_module(frames)
out = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
frames.write_frame(out, {{"event": "ready", "version": "9.9", "targets": ["SM75", "SM80", "SM89"]}})
while (frame := frames.read_frame(sys.stdin.buffer)) is not None:
    header, payload = frame
    number = header["id"]
    error = dict(node=0, name="n", operator="Op", code="X", message=str(os.getpid()), stage="check")
    if header["command"] == "parse":
        frames.write_frame(out, {{"id": number, "errors": [error]}})
        continue
    frames.write_frame(out, {{"event": "progress", "id": number, "step": ["phase", 0, 1]}})
    if b"segv" in payload:
        os.kill(os.getpid(), signal.SIGSEGV)
    kind = "unsupported"
    if b"held" in payload:
        frames.read_frame(sys.stdin.buffer)
        kind = "cancelled"
    places = [place["file"] for place in header["weights"]]
    frames.write_frame(out, {{"id": number, "failure": {{"kind": kind, "reason": str(os.getpid()), "log": places}}}})
"""


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return [sys.executable, str(script)]


@pytest.fixture
def open_pool(command):
    with contextlib.ExitStack() as stack:

        def made(jobs=None, patience=0.0, targets=()):
            pool = PoolBackend(tensorrt_rtx.FLAVOUR, targets, jobs=jobs, command=command, patience=patience)
            return stack.enter_context(pool)

        yield made


@pytest.fixture
def named(make_model):
    def make(name):
        model = make_model([], {}, {}, infer=False)
        model.proto.graph.name = name
        return model

    return make


def build(pool, model, progress=None):
    return pool.build(model, (), BuildOptions(), Path("engine"), progress)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def together(pool, models):
    """The outcomes of builds that are all in work at the same time."""
    meeting = threading.Barrier(len(models))

    def one(model):
        return build(pool, model, lambda *step: meeting.wait(timeout=60) >= 0)

    with ThreadPoolExecutor(len(models)) as executor:
        return list(executor.map(one, models))


def test_who_builds_one_engine_at_a_time_has_one_child(open_pool, named):
    pool = open_pool()
    assert isinstance(pool, Backend)
    (error,) = pool.parse(named("a"))
    assert {build(pool, named("a")).reason for _ in range(5)} == {error.message}
    assert (pool.flavour, pool.version, pool.jobs) == ("tensorrt_rtx", "9.9", None)
    assert pool.known_targets == ("SM75", "SM80", "SM89")
    assert pool.default_targets == ("SM80", "SM89")


def test_builds_at_the_same_time_have_a_child_each_and_those_are_used_again(open_pool, named):
    pool = open_pool()
    models = [named(name) for name in "abc"]
    first = {outcome.reason for outcome in together(pool, models)}
    assert len(first) == 3
    assert {outcome.reason for outcome in together(pool, models)} == first
    assert pool.parse(named("a"))[0].message in first


def test_there_are_never_more_children_than_jobs(open_pool, named):
    pool = open_pool(jobs=2)
    with ThreadPoolExecutor(5) as executor:
        outcomes = list(executor.map(lambda name: build(pool, named(name)), "abcdefghij"))
    assert len({outcome.reason for outcome in outcomes}) <= 2
    assert len(pool._children) <= 2


def test_what_is_built_in_no_time_is_not_worth_another_child(open_pool, named):
    pool = open_pool(patience=1000.0)
    with ThreadPoolExecutor(4) as executor:
        outcomes = list(executor.map(lambda name: build(pool, named(name)), "abcdefghij"))
    assert len({outcome.reason for outcome in outcomes}) == 1


def test_the_version_is_told_while_every_child_builds(open_pool, named):
    pool = open_pool(jobs=1)
    assert pool.version == "9.9"

    def ask(*step):
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(lambda: (pool.version, pool.default_targets)).result(60) == ("9.9", ("SM80", "SM89"))

    assert build(pool, named("a"), ask).kind == "unsupported"


def test_a_crash_ends_its_own_child_alone(open_pool, named):
    pool = open_pool()
    outcomes = together(pool, [named("a"), named("segv"), named("b")])
    assert [outcome.kind for outcome in outcomes] == ["unsupported", "crash", "unsupported"]
    assert "SIGSEGV" in outcomes[1].reason
    before = {outcomes[0].reason, outcomes[2].reason}
    after = {outcome.reason for outcome in together(pool, [named("a"), named("b"), named("c")])}
    assert before < after


def test_a_cancel_is_for_one_build(open_pool, named):
    pool = open_pool()
    meeting = threading.Barrier(2)

    def one(name):
        return build(pool, named(name), lambda *step: meeting.wait(timeout=60) >= 0 and name != "held")

    with ThreadPoolExecutor(2) as executor:
        assert [outcome.kind for outcome in executor.map(one, ["held", "b"])] == ["cancelled", "unsupported"]


def test_a_build_is_interrupted_from_another_thread_and_the_others_go_on(open_pool, named):
    pool = open_pool()
    meeting, threads = threading.Barrier(3), {}
    outcomes = {}

    def one(name):
        def step(*_):
            threads[name] = threading.get_ident()
            return meeting.wait(timeout=60) >= 0

        outcomes[name] = build(pool, named(name), step)

    workers = {name: threading.Thread(target=one, args=(name,)) for name in ("held", "b")}
    for worker in workers.values():
        worker.start()
    meeting.wait(timeout=60)
    pool.interrupt(threads["held"])
    for worker in workers.values():
        worker.join(60)
    assert outcomes["held"] == BuildFailure("cancelled", "the build was cancelled")
    assert outcomes["b"].kind == "unsupported"
    pool.interrupt(threads["held"])  # nothing is in work for it any more
    assert {outcome.kind for outcome in together(pool, [named("a"), named("b")])} == {"unsupported"}


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(3)"])
def test_a_further_child_that_does_not_start_is_done_without(tmp_path, named, caplog, how):
    script, mark = tmp_path / "worker.py", tmp_path / "first"
    start = f"import os, signal, sys\nif os.path.exists({str(mark)!r}): {how}\nopen({str(mark)!r}, 'w').close()\n"
    script.write_text(start + WORKER)
    with PoolBackend(tensorrt_rtx.FLAVOUR, command=[sys.executable, str(script)], patience=0.0) as pool:
        pool.parse(named("a"))
        with ThreadPoolExecutor(4) as executor:
            found = list(executor.map(lambda name: build(pool, named(name)), "abcd"))
        assert len({outcome.reason for outcome in found}) == 1
        assert (pool.jobs, len(pool._children), len(pool._free)) == (1, 1, 1)
    assert "engines are built by 1 process(es) from now on: the process for tensorrt_rtx did not start" in caplog.text


def test_a_child_that_is_interrupted_while_it_starts_is_given_to_nobody(open_pool, named, monkeypatch):
    """Where a build is to end, another start would only keep it."""
    pool = open_pool()
    pool.parse(named("a"))
    kept = ProcessBackend._started

    def started(self):
        if self is not pool._first:
            self._spawned()
            pool.interrupt(threading.get_ident())
            raise NotStartedError("it was killed")
        return kept(self)

    monkeypatch.setattr(ProcessBackend, "_started", started)
    with pool._borrowed():
        assert build(pool, named("b")) == BuildFailure("cancelled", "the build was cancelled")
    assert pool.jobs is None


def test_a_first_child_that_does_not_start_is_an_error(named):
    with PoolBackend(tensorrt_rtx.FLAVOUR, command=[sys.executable, "-c", "raise SystemExit(3)"]) as pool:
        with pytest.raises(BackendError, match="did not start"):
            build(pool, named("a"))
        with pytest.raises(BackendError, match="did not start"):
            build(pool, named("a"))


def test_trim_ends_all_idle_children_but_the_first(open_pool, named):
    pool = open_pool()
    first = pool.parse(named("a"))[0].message
    pids = {outcome.reason for outcome in together(pool, [named("a"), named("b"), named("c")])}
    pool.trim()
    assert {pid for pid in pids if not gone(int(pid))} == {first}
    assert build(pool, named("a")).reason == first
    assert first in {outcome.reason for outcome in together(pool, [named("a"), named("b")])}


def test_close_ends_all_children_is_repeatable_and_final(open_pool, named):
    pool = open_pool()
    pool.start()
    pids = [int(outcome.reason) for outcome in together(pool, [named("a"), named("b")])]
    pool.close()
    pool.close()
    assert all(gone(pid) for pid in pids)
    for use in (pool.parse, lambda model: build(pool, model), lambda model: pool.trim(), lambda model: pool.start()):
        with pytest.raises(BackendError, match="closed"):
            use(named("a"))


def test_who_waits_for_a_child_of_a_pool_that_is_closed_is_told(open_pool, named):
    pool = open_pool(jobs=1)
    found, begun = [], threading.Event()

    def waiter():
        begun.set()
        try:
            build(pool, named("b"))
        except BackendError as error:
            found.append(str(error))

    threads = [threading.Thread(target=waiter)]

    def step(*_):
        threads[0].start()
        begun.wait(60)
        closer = threading.Thread(target=pool.close)
        threads.append(closer)
        closer.start()
        threads[0].join(60)
        return True

    assert build(pool, named("a"), step).kind == "unsupported"
    for thread in threads:
        thread.join(60)
    assert "closed" in found[0]


def test_a_pool_that_is_dropped_ends_its_children(command, named):
    pool = PoolBackend(tensorrt_rtx.FLAVOUR, command=command, patience=0.0)
    pids = [int(outcome.reason) for outcome in together(pool, [named("a"), named("b")])]
    del pool
    gc.collect()
    assert all(gone(pid) for pid in pids)


def test_a_forked_copy_has_children_of_its_own(open_pool, named):
    pool = open_pool()
    mine = {outcome.reason for outcome in together(pool, [named("a"), named("b")])}
    parents = tuple(pool._children)
    pool._owner = -1  # what a forked copy sees: a pool of another process
    pool._changed.acquire()  # held by a thread that is not in the copy
    theirs = {outcome.reason for outcome in together(pool, [named("a"), named("b")])}
    assert not mine & theirs
    for child in parents:
        child.close()


def test_weights_are_written_once_for_all_children(open_pool, named):
    pool = open_pool()
    array = np.ones((100, 100), np.float32)

    def model(name):
        proto = named(name).proto
        proto.graph.initializer.append(make_stub("w", TensorProto.FLOAT, (100, 100)))
        return Model(proto, {"w": array})

    outcomes = together(pool, [model("a"), model("b")])
    assert outcomes[0].reason != outcomes[1].reason
    assert outcomes[0].log == outcomes[1].log
    assert len(outcomes[0].log) == 1
    pool.close()
    assert not Path(outcomes[0].log[0]).exists()


@pytest.mark.parametrize("jobs", [0, -1, True, 1.5])
def test_jobs_is_a_positive_integer(command, jobs):
    with pytest.raises(InvalidParameterError, match="jobs must be an integer of at least 1"):
        PoolBackend(tensorrt_rtx.FLAVOUR, jobs=jobs, command=command)


def test_bad_targets_are_refused_as_by_one_child(command, open_pool):
    with pytest.raises(InvalidParameterError, match="compute capability"):
        PoolBackend(tensorrt_rtx.FLAVOUR, ["ampere"], command=command)
    with pytest.raises(InvalidParameterError, match="SM75, SM80, SM89"):
        open_pool(targets=["sm121"]).default_targets  # noqa: B018


def test_open_backend_gives_a_pool_where_more_than_one_job_is_asked_for(monkeypatch, command):
    monkeypatch.setattr(backends, "_installed", lambda name: True)
    assert type(backends.open_backend("tensorrt_rtx", command=command)) is ProcessBackend
    pool = backends.open_backend("tensorrt_rtx", ["sm89"], jobs=3, command=command)
    with pool:
        assert (type(pool), pool.jobs, pool.default_targets) == (PoolBackend, 3, ("SM89",))
        assert backends.as_backend(pool, jobs=None) is pool
    assert backends.open_backend("tensorrt_rtx", jobs=None).jobs is None
    with pytest.raises(InvalidParameterError, match="jobs must be"):
        backends.open_backend("tensorrt_rtx", jobs=True)
