"""What a replica, an actor and a client do, without Ray."""

import json

import numpy as np
import pytest

from rewriter.errors import BackendError, ConversionError, InputError, InvalidParameterError, MissingDependencyError
from rewriter.export.ray import client, deployment, importing
from rewriter.export.ray.client import Client, PassingError
from rewriter.export.ray.datasets import BatchActor
from rewriter.export.ray.replica import ReplicaCore, ReplicaOptions
from rewriter.export.ray.wire import JSON, NPZ, decode, encode, from_npz, to_npz


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


def test_failures_in_a_row_make_it_unhealthy(rows, monkeypatch):
    core = ReplicaCore(ReplicaOptions(str(rows), warmup=False, unhealthy_after=2))

    def fail(inputs):
        raise ConversionError("no")

    with monkeypatch.context() as patch:
        patch.setattr(core._function, "run", fail)
        core.answer([ones(1)])
        core.check_health()
        core.answer([ones(1)])
        with pytest.raises(BackendError, match="the last 2 runs failed"):
            core.check_health()
    core.answer([ones(1)])
    core.check_health()


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


def test_a_client_gives_up_with_the_last_reason():
    def send(inputs, timeout):
        raise PassingError("HTTP 503")

    asked = Client(send, retries=1, timeout_s=1, pause_s=0)
    with pytest.raises(BackendError, match="did not answer in 2 tries, last: HTTP 503"):
        asked.infer(x=1)
    assert asked.stats()["failed"] == 1


def test_a_client_of_a_url_counts_refused_connections():
    asked = client("http://127.0.0.1:9", retries=1, pause_s=0)
    with pytest.raises(BackendError, match="ConnectionRefusedError"):
        asked.infer(x=[1.0])


@pytest.mark.parametrize("options", [{"retries": -1}, {"timeout_s": 0}, {"pause_s": -1}, {"retries": True}])
def test_options_of_a_client_are_checked(options):
    with pytest.raises(InvalidParameterError):
        client("http://127.0.0.1:9", **options)


def test_both_forms_go_there_and_back():
    arrays = {"a": np.arange(3, dtype=np.int64), "s": np.array([b"x", "y"], object)}
    back = from_npz(to_npz(arrays))
    assert back["a"].dtype == np.int64
    assert back["s"].tolist() == ["x", "y"]
    assert json.loads(encode(arrays, JSON)) == {"outputs": {"a": [0, 1, 2], "s": ["x", "y"]}}
    assert decode(b'{"inputs": {"a": [1]}}', "application/json; charset=utf-8") == {"a": [1]}
    assert decode(to_npz(arrays), NPZ)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("body", "kind"), [(b"{", JSON), (b"[]", JSON), (b"{}", JSON), (b"PK", NPZ), (b"", NPZ)])
def test_other_bodies_are_refused(body, kind):
    with pytest.raises(InputError, match="the request's body"):
        decode(body, kind)


def test_json_cannot_hold_nan():
    with pytest.raises(ConversionError, match="JSON cannot hold"):
        encode({"y": np.array([np.nan])}, JSON)


def test_without_ray_the_extra_is_named(rows, monkeypatch):
    def absent(module):
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(importing.importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match=r"pip install 'trt-rewriter\[ray\]'"):
        deployment(rows)
