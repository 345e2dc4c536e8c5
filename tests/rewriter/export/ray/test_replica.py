"""What a replica, an actor and a client do, without Ray."""

import asyncio
import contextlib
import math
import re
import socketserver
import threading
import time
import types
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

from rewriter.errors import (
    ArtifactError,
    BackendError,
    ConversionError,
    ConverterStateError,
    InputError,
    InvalidParameterError,
    MissingDependencyError,
)
from rewriter.export.ray import client, deployment, importing, serving
from rewriter.export.ray.checks import check_amount, checked_mapping, checked_range, shared_path
from rewriter.export.ray.client import Client, PassingError
from rewriter.export.ray.datasets import BatchActor
from rewriter.export.ray.replica import ReplicaCore, ReplicaOptions, checked_load_options


def ones(rows, value=1.0):
    return {"x0": np.full((rows, 3), value, np.float32)}


def test_requests_are_joined_and_answered_each(rows):
    core = ReplicaCore(ReplicaOptions(str(rows), 4, load={"provider": "cpu"}))
    good, wrong, list_, wide = core.answer([ones(1), {"x0": "text"}, {"x0": [[2, 2, 2]]}, ones(2, 5.0)])
    assert good["y0"].tolist() == [[3, 3, 3]]
    assert isinstance(wrong, InputError)
    assert list_["y0"].tolist() == [[5, 5, 5]]
    assert wide["y0"].tolist() == [[11, 11, 11]] * 2
    stats = core.stats()
    assert (stats["requests"], stats["failed"], stats["batches"]) == (4, 1, {4: 1})
    assert stats["function"]["warmup_calls"] == 2
    core.check_health()


def test_a_model_without_a_batch_dimension_runs_one_by_one(whole):
    core = ReplicaCore(ReplicaOptions(str(whole), load={"provider": "cpu"}))
    answers = core.answer([{"x0": np.ones(n, np.float32)} for n in (2, 2, 5)])
    assert [float(answer["y0"]) for answer in answers] == [2, 2, 5]
    assert "skipped" in core.stats()["warmup"]


@pytest.mark.parametrize("kind", [ConversionError, MemoryError])
def test_failures_in_a_row_make_it_unhealthy(rows, monkeypatch, kind):
    core = ReplicaCore(ReplicaOptions(str(rows), warmup=False, unhealthy_after=2))
    errors = iter([kind, InputError, kind, InputError])  # inputs that do not fit say nothing about the replica
    with monkeypatch.context() as patch:
        patch.setattr(core._function, "run", mock.Mock(side_effect=errors))
        for failures in (1, 1, 2):
            core.check_health()
            with contextlib.suppress(MemoryError):
                core.answer([ones(1)])
            assert core.stats()["failures_in_a_row"] == failures
        with pytest.raises(BackendError, match="the last 2 runs failed"):
            core.check_health()
    core.answer([ones(1)])
    core.check_health()


@pytest.mark.parametrize("after", [0, True, 1.5])
def test_unhealthy_after_is_a_number_or_never(rows, monkeypatch, after):
    with pytest.raises(InvalidParameterError, match="unhealthy_after must be a whole number"):
        ReplicaOptions(str(rows), unhealthy_after=after)
    core = ReplicaCore(ReplicaOptions(str(rows), warmup=False, unhealthy_after=None))
    monkeypatch.setattr(core._function, "run", lambda inputs: 1 / 0)
    core._failures = 99
    core.check_health()


def test_a_node_that_cannot_read_the_artifact_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"gone.* \(on node .+: each node needs the artifact under this path\)"):
        ReplicaCore(ReplicaOptions(str(tmp_path / "gone")))


def test_threads_follow_the_cpus_of_a_replica():
    assert [checked_load_options({}, cpus)["threads"] for cpus in (0, 0.5, 1, 2.5, 8)] == [1, 1, 1, 2, 8]
    assert checked_load_options({"threads": None, "strict": True}, 4) == {"threads": None, "strict": True}
    assert checked_load_options({"signature": "embed"}, 1)["signature"] == "embed"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"provder": "cpu"}, "unknown option 'provder': rewriter.load has allow_build_at_runtime, .*provider"),
        ({"path": "x"}, "unknown option 'path'"),
        ({"provider": "gpu"}, "provider must be one of auto, cpu, cuda, not 'gpu'"),
    ],
)
def test_options_of_load_are_checked_before_anything_starts(options, words):
    with pytest.raises(InvalidParameterError, match=words):
        checked_load_options(options, 1)


@pytest.mark.parametrize(
    ("wanted", "given", "found"),
    [
        (3, {}, {"num_replicas": 3}),
        (3, {"name": "x"}, {"num_replicas": 3, "name": "x"}),
        ("auto", {}, {"num_replicas": "auto", "autoscaling_config": {"target_ongoing_requests": 16}}),
        (1, {"autoscaling_config": {"max_replicas": 4}},
         {"autoscaling_config": {"max_replicas": 4, "target_ongoing_requests": 16}}),
        ("auto", {"autoscaling_config": {"target_ongoing_requests": 3}},
         {"num_replicas": "auto", "autoscaling_config": {"target_ongoing_requests": 3}}),
    ],
)  # fmt: skip
def test_serve_is_told_how_many_replicas_or_how_to_scale(wanted, given, found):
    assert serving._replicas(wanted, given, 16) == found


@pytest.mark.parametrize("wanted", [0, -1, True, 1.5, "many", None])
def test_the_number_of_replicas_is_checked(wanted):
    with pytest.raises(InvalidParameterError, match='whole number of at least 1, or "auto"'):
        serving._replicas(wanted, {}, 8)


def test_a_fixed_number_and_scaling_exclude_each_other():
    with pytest.raises(InvalidParameterError, match="num_replicas=2 leaves nothing to scale"):
        serving._replicas(2, {"autoscaling_config": {"max_replicas": 4}}, 8)


@pytest.mark.parametrize("keep", [True, False])
def test_an_actor_adds_columns(rows, keep):
    actor = BatchActor(ReplicaOptions(str(rows), 4, False), {"x0": "in"}, {"y0": "out"}, keep)
    found = actor({"in": ones(3)["x0"], "id": np.arange(3)})
    assert found["out"].tolist() == [[3, 3, 3]] * 3
    assert ("id" in found) is keep


def test_an_actor_runs_whole_inputs_row_by_row(whole):
    actor = BatchActor(ReplicaOptions(str(whole), 1, False), {"x0": "x0"}, {"y0": "sum"}, True)
    column = np.empty(2, object)
    column[:] = [np.ones(2, np.float32), np.ones(5, np.float32)]
    assert actor({"x0": column})["sum"].tolist() == [2, 5]


@pytest.mark.parametrize(
    ("name", "value", "found"), [("bfloat16", 1.5, "float32"), ("float8_e5m2", 2, "float32"), ("int4", -8, "int8")]
)
def test_dtypes_that_tables_lack_become_wider_ones(rows, monkeypatch, name, value, found):
    actor = BatchActor(ReplicaOptions(str(rows), 4, False), {"x0": "in"}, {"y0": "out"}, False)
    narrow = np.full((2, 3), value, np.dtype(getattr(ml_dtypes, name)))
    monkeypatch.setattr(actor._core._function, "run", lambda inputs: {"y0": narrow})
    column = actor({"in": ones(2)["x0"]})["out"]
    assert (column.dtype.name, column.tolist()) == (found, [[value] * 3] * 2)


def test_the_cluster_is_asked_for_gpus_where_nothing_was_said(monkeypatch):
    ray = types.SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"CPU": 4, "GPU": 2})
    monkeypatch.setattr(importing, "import_ray", lambda: ray)
    assert [importing.gpus_of_one(each) for each in (None, 0, 0.5)] == [1, 0, 0.5]
    ray.cluster_resources = dict
    assert importing.gpus_of_one(None) == 0
    ray.is_initialized = lambda: False
    with pytest.raises(ConverterStateError, match=r"call ray.init\(\) first, or give num_gpus="):
        importing.gpus_of_one(None)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "1", None, True])
def test_amounts_are_finite_numbers(value):
    with pytest.raises(InvalidParameterError, match="num_cpus must be a number of at least 0, not"):
        check_amount("num_cpus", value)


@pytest.mark.parametrize("value", [0, (2, 1), (1, 2, 3), "2", 1.5, None, (1, "2"), True])
def test_actors_are_a_number_or_two(value):
    with pytest.raises(InvalidParameterError, match=r"actors must be at least 1, or \(least, most\)"):
        checked_range("actors", value)
    assert (checked_range("actors", 2), checked_range("actors", (1, 3))) == ((2, 2), (1, 3))


def test_links_in_the_path_are_kept_for_the_other_nodes(tmp_path, monkeypatch):
    (tmp_path / "volume").mkdir()
    (tmp_path / "shared").symlink_to(tmp_path / "volume")
    monkeypatch.chdir(tmp_path)
    assert shared_path("shared") == tmp_path / "shared"
    with pytest.raises(ArtifactError, match=r"must be a str or a pathlib.Path, not NoneType"):
        shared_path(None)


def test_mappings_have_known_keys():
    def known(_self, name, number):
        pass

    assert checked_mapping("options", None) == {}
    assert checked_mapping("options", {"name": 1}, known) == {"name": 1}
    with pytest.raises(InvalidParameterError, match=r"options must be a mapping, not \[1\]"):
        checked_mapping("options", [1])
    with pytest.raises(InvalidParameterError, match="options has an unknown '_self'; there are: name, number"):
        checked_mapping("options", {"_self": 1}, known)


def test_rows_of_different_shapes_are_no_batch(rows):
    actor = BatchActor(ReplicaOptions(str(rows), 4, False), {"x0": "in"}, {"y0": "out"}, True)
    column = np.empty(2, object)
    column[:] = [np.zeros(3, np.float32), np.zeros(4, np.float32)]
    with pytest.raises(InputError, match=r"column 'in' has rows of different shapes, \[3\] and \[4\].*batch_size=1"):
        actor({"in": column})


def test_an_actor_names_the_column(rows):
    actor = BatchActor(ReplicaOptions(str(rows), 4, False), {"x0": "in"}, {"y0": "id"}, True)
    with pytest.raises(InputError, match=r"no column 'in'.*it has id"):
        actor({"id": np.arange(3)})
    with pytest.raises(InputError, match="has a column 'id' already"):
        actor({"in": ones(3)["x0"], "id": np.arange(3)})


def test_a_client_asks_again_and_counts_why():
    tries = iter([PassingError("ActorDiedError"), PassingError("HTTP 500"), {"y": 1}])

    def send(inputs, timeout):
        found = next(tries)
        if isinstance(found, Exception):
            raise found
        return found

    asked = Client(send, retries=2, timeout_s=1, pause_s=0)
    assert asked.infer(x=1) == {"y": 1}
    reasons = {"ActorDiedError": 1, "HTTP 500": 1}
    assert asked.stats() == {"requests": 1, "retries": 2, "failed": 0, "reasons": reasons}


def test_a_client_for_asyncio_leaves_the_loop_free():
    def send(inputs, timeout):
        time.sleep(0.01)
        return inputs

    async def ask():
        asked = Client(send, retries=0, timeout_s=1, pause_s=0)
        return await asyncio.gather(*(asked.infer_async(self=number) for number in range(3)))

    assert asyncio.run(ask()) == [{"self": 0}, {"self": 1}, {"self": 2}]


def test_a_client_gives_up_with_the_last_reason():
    def send(inputs, timeout):
        raise PassingError("HTTP 503")

    asked = Client(send, retries=1, timeout_s=1, pause_s=0)
    with pytest.raises(BackendError, match="did not answer in 2 tries, last: HTTP 503"):
        asked.infer(x=1)
    assert asked.stats()["failed"] == 1


def test_a_client_of_a_url_counts_refused_connections():
    asked = client("http://127.0.0.1:9", retries=1, pause_s=0)
    with pytest.raises(BackendError, match=r"^http://127.0.0.1:9 did not answer in 2 tries.*ConnectionRefusedError"):
        asked.infer(x=[1.0])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nshort", "IncompleteRead"),
        (b"HTTP/1.0 422 No\r\nContent-Length: 100\r\n\r\nshort", "IncompleteRead"),
        (b"not HTTP\r\n\r\n", "BadStatusLine"),
        (b"", "RemoteDisconnected"),
        (b"HTTP/1.0 503 No\r\nContent-Length: 0\r\n\r\n", "HTTP 503"),
    ],
)
def test_answers_that_break_are_asked_for_again(one_answer, answer, reason):
    asked = client(one_answer(answer), retries=1, pause_s=0)
    with pytest.raises(BackendError, match="did not answer in 2 tries"):
        asked.infer(x=[1.0])
    assert asked.stats()["reasons"] == {reason: 2}


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", BackendError, "answers with no npz file: is it"),
        (b"HTTP/1.0 404 No\r\n\r\nno route", ConversionError, r"refuses the request \(HTTP 404\): no route"),
        (b'HTTP/1.0 400 No\r\n\r\n{"error": "bad x"}', InputError, r"refuses the request \(HTTP 400\): bad x"),
    ],
)
def test_other_answers_are_final(one_answer, answer, kind, words):
    asked = client(one_answer(answer), retries=3, pause_s=0)
    with pytest.raises(kind, match=words):
        asked.infer(x=[1.0])
    assert asked.stats()["retries"] == 0


@pytest.fixture
def one_answer():
    """Starts a server that gives the same bytes to every request; returns its URL."""
    with contextlib.ExitStack() as stack:

        def start(answer):
            class Handler(socketserver.BaseRequestHandler):
                def handle(self):
                    head, _, body = b"", b"", b""
                    while b"\r\n\r\n" not in head:
                        head += self.request.recv(1 << 16)
                    head, _, body = head.partition(b"\r\n\r\n")
                    length = int(re.search(rb"Content-Length: (\d+)", head)[1])
                    while len(body) < length:
                        body += self.request.recv(1 << 16)
                    self.request.sendall(answer)

            server = stack.enter_context(socketserver.TCPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}/"

        yield start


@pytest.mark.parametrize(
    "options",
    [{"retries": -1}, {"timeout_s": 0}, {"timeout_s": "1"}, {"pause_s": -1}, {"pause_s": math.nan}, {"retries": True}],
)
def test_options_of_a_client_are_checked(options):
    with pytest.raises(InvalidParameterError):
        client("http://127.0.0.1:9", **options)


@pytest.mark.parametrize("url", ["http://", "http://a:b/", "http://a:0", "http://a b/", "http://a/\n"])
def test_what_is_no_url_is_said_at_once(url):
    with pytest.raises(InvalidParameterError, match="is no URL"):
        client(url)


LOST = ["RayActorError", "ActorUnavailableError", "NodeDiedError", "ObjectLostError", "RayTaskError"]
LOST += ["BackPressureError", "DeploymentUnavailableError"]


@pytest.fixture
def fake_ray(monkeypatch):
    """Stands in for Ray's modules: connected, and with an application "known" whose handle is a `Handle`."""

    class Handle:
        pass

    class UnknownError(Exception):
        pass

    def get_app_handle(name):
        if name != "known":
            raise UnknownError(f"Application {name!r} does not exist.\nmore")
        return Handle()

    modules = {
        "ray": types.SimpleNamespace(is_initialized=lambda: True),
        "ray.serve": types.SimpleNamespace(get_app_handle=get_app_handle),
        "ray.serve.handle": types.SimpleNamespace(DeploymentHandle=Handle),
        "ray.exceptions": mock.MagicMock(**dict.fromkeys(LOST, UnknownError)),
        "ray.serve.exceptions": mock.MagicMock(**dict.fromkeys(LOST, UnknownError), RayServeException=UnknownError),
    }
    monkeypatch.setattr(importing.importlib, "import_module", modules.__getitem__)
    return modules


def test_a_request_by_handle_that_takes_too_long_is_cancelled(fake_ray):
    response = mock.Mock()
    response.result.side_effect = [TimeoutError, {"y": 1}]
    handle = fake_ray["ray.serve.handle"].DeploymentHandle()
    handle.infer = mock.Mock()
    handle.infer.remote.return_value = response
    asked = client(handle, retries=1, pause_s=0)
    assert asked.infer(x=1) == {"y": 1}
    response.cancel.assert_called_once_with()
    assert asked.stats()["reasons"] == {"TimeoutError": 1}


def test_names_and_handles_are_looked_at_at_once(fake_ray):
    assert client("known")
    with pytest.raises(BackendError, match=r"no handle of 'other': Application 'other' does not exist.*serve status"):
        client("other")
    with pytest.raises(InvalidParameterError, match="target must be a URL, an application's name or a handle, not 3"):
        client(3)
    fake_ray["ray"].is_initialized = lambda: False
    with pytest.raises(ConverterStateError, match=r"asked for 'known': call ray.init\(\) first, or give a URL"):
        client("known")


def test_without_ray_the_extra_is_named(rows, monkeypatch):
    def absent(module):
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(importing.importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match=r"pip install 'trt-rewriter\[ray\]'"):
        deployment(rows)
