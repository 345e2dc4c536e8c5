"""The client against a worker that answers, dies, hangs or babbles on command."""

from __future__ import annotations

import gc
import os
import sys
import threading
from pathlib import Path

import pytest

from rewriter.backends import client as client_module
from rewriter.backends import frames, tensorrt, tensorrt_rtx
from rewriter.backends.base import BuildFailure, BuildOptions, InputProfile
from rewriter.backends.client import ProcessBackend, Timeouts
from rewriter.errors import BackendError, InvalidParameterError, MissingDependencyError

FRAMES = str(Path(frames.__file__).resolve())
#: Loads the wire's module alone, which makes a start cheap.
PREAMBLE = f"""
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("frames", {FRAMES!r})
frames = importlib.util.module_from_spec(spec)
spec.loader.exec_module(frames)
read_frame, write_frame = frames.read_frame, frames.write_frame
"""
WORDS = ("segv", "exit", "hang", "babble", "oops", "cancel")
#: Speaks the worker's language; a word in the model says what to do.
FAKE = f"""
{PREAMBLE}
out = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
write_frame(out, {{"event": "ready", "version": "9.9", "targets": ["SM75", "SM80", "SM89"]}})
while (frame := read_frame(sys.stdin.buffer)) is not None:
    header, payload = frame
    what = next((word for word in {WORDS} if word.encode() in payload), "")
    if what == "segv":
        sys.stderr.write("first line\\nthe last line\\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exit":
        os._exit(7)
    if what == "hang":
        signal.pause()
    if what == "babble":
        out.write(b"Unsupported ONNX data type: STRING and more of that")
        out.flush()
        signal.pause()
    if what == "oops":
        write_frame(out, {{"id": header["id"], "error": "OSError: disk full"}})
        continue
    if header["command"] == "parse":
        print("noise on stdout")
        error = dict(node=0, name="n", operator="Op", code="X", message=str(os.getpid()), stage="check")
        write_frame(out, {{"id": header["id"] - 1, "errors": []}})  # an answer to somebody else
        write_frame(out, {{"id": header["id"], "errors": [error]}})
        continue
    for step in range(3):
        write_frame(out, {{"event": "progress", "id": header["id"], "step": ["phase", step, 3]}})
    if what == "cancel":
        told, _ = read_frame(sys.stdin.buffer)
        assert told == {{"command": "cancel", "id": header["id"]}}, told
        write_frame(out, {{"id": header["id"], "failure": {{"kind": "cancelled", "reason": "stopped", "log": []}}}})
        continue
    reason = repr((header["options"], header["profiles"], header["output"]))
    write_frame(out, {{"id": header["id"], "failure": {{"kind": "unsupported", "reason": reason, "log": ["a", "b"]}}}})
"""


@pytest.fixture
def fake_command(tmp_path):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    return [sys.executable, str(script)]


@pytest.fixture
def fake(fake_command):
    backends = []

    def open_fake(targets=(), flavour=tensorrt_rtx.FLAVOUR, **timeouts):
        times = Timeouts(**timeouts) if timeouts else None
        backends.append(ProcessBackend(flavour, targets, timeouts=times, command=fake_command))
        return backends[-1]

    yield open_fake
    for backend in backends:
        backend.close()


@pytest.fixture
def named(make_model):
    def make(name):
        model = make_model([], {}, {}, infer=False)
        model.proto.graph.name = name
        return model

    return make


def child_pid(backend, named):
    return int(backend.parse(named("ok"))[0].message)


def test_a_child_serves_many_requests_and_ignores_stray_answers(fake, named):
    backend = fake()
    assert len({child_pid(backend, named) for _ in range(50)}) == 1
    assert backend.version == "9.9"
    assert backend.flavour == "tensorrt_rtx"
    assert backend.default_targets == ("SM80", "SM89")


def test_a_child_that_was_started_early_serves_the_first_request(fake, named):
    backend = fake()
    backend.start()
    backend.start()
    begun = backend._begun._process
    assert child_pid(backend, named) == begun.pid
    backend.start()
    assert child_pid(backend, named) == begun.pid
    backend.close()
    backend.start()
    assert begun.poll() is not None


def test_an_early_child_that_nobody_asks_ends_with_its_backend(fake):
    backend = fake()
    backend.start()
    begun = backend._begun._process
    backend.close()
    assert begun.poll() is not None


@pytest.mark.parametrize("command", [[sys.executable, "-c", "raise SystemExit(5)"], ["/no/such/program"]])
def test_what_goes_wrong_with_an_early_start_is_told_by_the_first_request(named, command):
    with ProcessBackend(tensorrt_rtx.FLAVOUR, command=command) as backend:
        backend.start()
        with pytest.raises(BackendError, match=r"status 5|cannot be started"):
            backend.parse(named("ok"))


def test_a_crash_is_one_error_with_signal_and_last_words_and_the_next_request_works(fake, named):
    backend = fake()
    before = child_pid(backend, named)
    (error,) = backend.parse(named("segv"))
    assert (error.stage, error.node) == ("crash", -1)
    assert "SIGSEGV" in error.message
    assert "the last line" in error.message
    assert child_pid(backend, named) != before


def test_an_exit_names_its_status(fake, named):
    (error,) = fake().parse(named("exit"))
    assert "status 7" in error.message


def test_a_hang_is_ended(fake, named):
    backend = fake(parse=0.2)
    before = child_pid(backend, named)
    (error,) = backend.parse(named("hang"))
    assert error.stage == "crash"
    assert "no sign of life for 0.2 s" in error.message
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)
    assert backend.build(named("b"), (), BuildOptions(), Path("x")).kind == "unsupported"


def test_a_parse_may_take_longer_the_more_nodes_there_are(fake, named, monkeypatch):
    seen = []
    backend = fake(parse=10, parse_per_node=2)
    backend.parse(named("ok"))
    original = backend._child.receive
    monkeypatch.setattr(backend._child, "receive", lambda timeout: seen.append(timeout) or original(timeout))
    model = named("ok")
    for _ in range(3):
        model.proto.graph.node.add()
    backend.parse(model)
    assert set(seen) == {16.0}


def test_babble_on_the_wire_is_a_crash(fake, named):
    (error,) = fake().parse(named("babble"))
    assert "unreadable" in error.message


def test_an_error_that_says_nothing_about_the_model_is_raised_and_the_child_lives(fake, named):
    backend = fake()
    before = child_pid(backend, named)
    with pytest.raises(BackendError, match="disk full"):
        backend.parse(named("oops"))
    assert child_pid(backend, named) == before


@pytest.mark.parametrize("how", ["segv", "exit"])
def test_a_crash_in_a_build_is_a_failure(fake, named, how, tmp_path):
    backend = fake()
    outcome = backend.build(named(how), (), BuildOptions(), tmp_path / "e")
    assert isinstance(outcome, BuildFailure)
    assert outcome.kind == "crash"
    assert child_pid(backend, named) > 0


def test_a_hanging_build_is_ended(fake, named, tmp_path):
    outcome = fake(build=0.2).build(named("hang"), (), BuildOptions(), tmp_path / "e")
    assert outcome.kind == "crash"


def test_everything_about_a_build_reaches_the_child(fake, named, tmp_path):
    backend = fake(targets=["8.9"])
    profile = {"x": InputProfile((1,), (2,), (3,), True)}
    outcome = backend.build(named("b"), (profile,), BuildOptions(7, optimization_level=2, tf32=True), tmp_path / "e")
    assert outcome.log == ("a", "b")
    for part in ("'workspace_bytes': 7", "'SM89'", "'optimization_level': 2", "'tf32': True", "'is_values': True"):
        assert part in outcome.reason
    assert str(tmp_path / "e") in outcome.reason
    explicit = backend.build(named("b"), (), BuildOptions(targets=("sm75",)), tmp_path / "e")
    assert "['SM75']" in explicit.reason


def test_progress_is_reported_and_can_cancel(fake, named, tmp_path):
    seen = []
    backend = fake()
    backend.build(named("b"), (), BuildOptions(), tmp_path / "e", lambda *step: seen.append(step) or True)
    assert seen == [("phase", 0, 3), ("phase", 1, 3), ("phase", 2, 3)]
    seen.clear()
    outcome = backend.build(named("cancel"), (), BuildOptions(), tmp_path / "e", lambda *step: bool(seen.append(step)))
    assert outcome.kind == "cancelled"
    assert seen == [("phase", 0, 3)]


def test_an_exception_in_progress_ends_the_child_and_passes(fake, named, tmp_path):
    backend = fake()
    before = child_pid(backend, named)

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.build(named("b"), (), BuildOptions(), tmp_path / "e", interrupt)
    assert child_pid(backend, named) != before


@pytest.mark.parametrize("targets", [["SM121"], ["SM89", "9.0"]])
def test_targets_that_the_version_lacks_list_what_it_has(fake, named, targets, tmp_path):
    with pytest.raises(InvalidParameterError, match="SM75, SM80, SM89"):
        fake(targets=targets).default_targets  # noqa: B018
    with pytest.raises(InvalidParameterError, match="SM75, SM80, SM89"):
        fake().build(named("b"), (), BuildOptions(targets=tuple(targets)), tmp_path / "e")


def test_a_bad_optimization_level_is_refused(fake, named, tmp_path):
    with pytest.raises(InvalidParameterError, match="0, 1, 2, 3, 4, 5"):
        fake().build(named("b"), (), BuildOptions(optimization_level=6), tmp_path / "e")


def test_threads_wait_for_each_other(fake, named):
    backend = fake()
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(child_pid(backend, named) for _ in range(10))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    assert len(set(found)) == 1


def test_close_ends_the_child_is_repeatable_and_final(fake, named):
    backend = fake()
    with backend:
        pid = child_pid(backend, named)
    backend.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(BackendError, match="closed"):
        backend.parse(named("ok"))


def test_a_backend_that_is_dropped_ends_its_child(fake_command, named):
    backend = ProcessBackend(tensorrt_rtx.FLAVOUR, command=fake_command)
    pid = child_pid(backend, named)
    del backend
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_child_that_cannot_start_is_a_backend_error(named):
    backend = ProcessBackend(tensorrt_rtx.FLAVOUR, command=["/no/such/program"])
    with pytest.raises(BackendError, match="cannot be started"):
        backend.parse(named("ok"))
    silent = ProcessBackend(tensorrt_rtx.FLAVOUR, command=[sys.executable, "-c", "raise SystemExit('no luck')"])
    with pytest.raises(BackendError, match="no luck"):
        silent.parse(named("ok"))


def test_a_missing_module_names_the_extra_and_a_broken_one_its_reason(monkeypatch, named):
    script = f"{PREAMBLE}write_frame(sys.stdout.buffer, dict(event='failed', reason='ImportError: libnvinfer.so'))"
    command = [sys.executable, "-c", script]
    monkeypatch.setattr(client_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"trt-rewriter\[trt\]"):
        ProcessBackend(tensorrt.FLAVOUR, command=command).version  # noqa: B018
    monkeypatch.setattr(client_module.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(BackendError, match=r"cannot be loaded: ImportError: libnvinfer\.so"):
        ProcessBackend(tensorrt.FLAVOUR, command=command).version  # noqa: B018


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_copy_does_not_speak_to_the_parents_child(fake, named):
    backend = fake()
    mine = child_pid(backend, named)
    backend._child.owner = -1  # what a forked copy sees: a child that another process owns
    assert child_pid(backend, named) != mine
