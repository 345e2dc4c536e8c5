"""The pool of actors, with a Ray that is none: every row once, whoever dies when."""

import types
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.errors import BackendError, ConversionError, InputError
from rewriter.export.ray.pool import TRIES, Pool, chunks


@given(
    sizes=st.lists(st.integers(0, 9), max_size=12),
    offset=st.integers(0, 3),
    rows=st.lists(st.integers(1, 12), min_size=1, max_size=5),
)
def test_chunks_hold_every_row_once_and_in_order(sizes, offset, rows):
    blocks = [(number, offset, offset + size) for number, size in enumerate(sizes)]
    found = list(chunks(blocks, lambda number: rows[number % len(rows)]))
    seen = [
        (block, row)
        for chunk in found
        for block, (start, end) in zip(chunk.blocks, chunk.cuts, strict=True)
        for row in range(start, end)
    ]
    assert seen == [(number, row) for number, start, end in blocks for row in range(start, end)]
    assert [chunk.first for chunk in found] == [sum(each.rows for each in found[:i]) for i in range(len(found))]
    assert [chunk.rows for chunk in found[:-1]] == [rows[i % len(rows)] for i in range(len(found))][:-1]
    assert all(sum(end - start for start, end in chunk.cuts) == chunk.rows for chunk in found)


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        self.cause = cause


class RayActorError(RayError):
    pass


class WorkerCrashedError(RayError):
    pass


class NodeDiedError(RayError):
    pass


class ObjectLostError(RayError):
    pass


class FakeActor:
    """Its calls are answered when the fake Ray says so; a dead one answers all of them with an error."""

    def __init__(self, ray, number):
        self.ray, self.number, self.alive = ray, number, True
        self.load = types.SimpleNamespace(remote=lambda: ray.call(self, "load", ()))
        self.count = types.SimpleNamespace(remote=lambda *arguments: ray.call(self, "count", arguments))


class FakeRay:
    """`outcome(actor, method, arguments)` says what a call comes to: a value, an exception, or "die"."""

    exceptions = types.SimpleNamespace(
        RayError=RayError,
        RayTaskError=RayTaskError,
        RayActorError=RayActorError,
        WorkerCrashedError=WorkerCrashedError,
        NodeDiedError=NodeDiedError,
        ObjectLostError=ObjectLostError,
    )

    def __init__(self, outcome, pick=lambda count: 0):
        self.outcome, self.pick = outcome, pick
        self.calls, self.actors, self.killed, self.most = [], [], [], Counter()

    def make(self):
        self.actors.append(FakeActor(self, len(self.actors)))
        return self.actors[-1]

    def call(self, actor, method, arguments):
        self.calls.append((actor, method, arguments))
        return len(self.calls) - 1

    def wait(self, references, num_returns, timeout):
        held = Counter(self.calls[reference][0].number for reference in references)
        self.most |= held
        return [references[self.pick(len(references))]], []

    def get(self, reference):
        actor, method, arguments = self.calls[reference]
        result = self.outcome(actor, method, arguments) if actor.alive else "die"
        if result == "die":
            actor.alive = False
            raise RayActorError("the actor is dead\nand this is a long story")
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self, actor):
        self.killed.append(actor)


def rows_of(first, cuts, *blocks):
    return [(block, row) for block, (start, end) in zip(blocks, cuts, strict=True) for row in range(start, end)]


def run(ray, size, blocks=10, rows=3):
    taken = []
    with Pool(ray, ray.make, size) as pool:
        pool.run(chunks([(number, 0, 5) for number in range(blocks)], lambda number: rows), taken.extend)
    return taken


@settings(max_examples=80, deadline=None)
@given(data=st.data(), size=st.integers(1, 4), blocks=st.integers(0, 9))
def test_every_row_is_taken_once_whoever_dies(data, size, blocks):
    left = {"load": 3, "count": 3}  # deaths

    def outcome(actor, method, arguments):
        if left[method] and data.draw(st.booleans()):
            left[method] -= 1
            if method == "load":
                return "die"
            return data.draw(st.sampled_from(["die", ObjectLostError(), RayTaskError(ObjectLostError())]))
        return None if method == "load" else rows_of(*arguments)

    ray = FakeRay(outcome, lambda count: data.draw(st.integers(0, count - 1)))
    taken = run(ray, size, blocks)
    assert sorted(taken) == [(number, row) for number in range(blocks) for row in range(5)]
    assert {actor.number for actor in ray.killed} == {actor.number for actor in ray.actors}
    assert max(ray.most.values(), default=0) <= 2  # one chunk ahead


def test_no_chunk_for_an_actor_that_is_not_ready():
    def outcome(actor, method, arguments):
        return None if method == "load" else rows_of(*arguments)

    ray = FakeRay(outcome, lambda count: count - 1 if count < 3 else 0)
    run(ray, 3)
    first = {actor: method for actor, method, _ in reversed(ray.calls)}
    assert set(first.values()) == {"load"}


def test_an_error_of_the_model_ends_all():
    def outcome(actor, method, arguments):
        return None if method == "load" else RayTaskError(InputError("calibration sample 3 (rows 24 to 31): no"))

    ray = FakeRay(outcome)
    with pytest.raises(InputError, match="rows 24 to 31"):
        run(ray, 2)
    assert len(ray.killed) == 2


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (RayTaskError(OSError("disk full")), "calibration failed over the rows 0 to 2: disk full"),
        (RayError("no idea"), "calibration failed over the rows 0 to 2: no idea"),
    ],
)
def test_other_errors_name_the_rows(error, match):
    ray = FakeRay(lambda actor, method, arguments: None if method == "load" else error)
    with pytest.raises(BackendError, match=match):
        run(ray, 1)


def test_rows_that_every_actor_dies_of_are_named():
    def outcome(actor, method, arguments):
        if method == "load":
            return None
        return "die" if arguments[0] == 6 else rows_of(*arguments)

    ray = FakeRay(outcome)
    with pytest.raises(
        BackendError, match=f"^calibration failed {TRIES} times over the rows 6 to 8, last: the actor is dead: do"
    ):
        run(ray, 1)


def test_actors_that_die_before_they_are_ready_are_given_up():
    ray = FakeRay(lambda actor, method, arguments: "die")
    with pytest.raises(BackendError, match=f"{TRIES} actors in a row died before they were ready: the actor is dead"):
        run(ray, 1)
    assert len(ray.actors) == TRIES


def test_an_actor_that_gets_ready_makes_earlier_deaths_forgotten():
    loads = iter(["die"] * (TRIES - 1) + [None] + ["die"] * (TRIES - 1) + [None])
    counts = iter(["die"])

    def outcome(actor, method, arguments):
        return next(loads) if method == "load" else next(counts, rows_of(*arguments))

    ray = FakeRay(outcome)
    run(ray, 1)
    assert len(ray.actors) == 2 * TRIES


def test_what_load_raises_is_raised():
    ray = FakeRay(lambda actor, method, arguments: RayTaskError(ConversionError("no ONNX Runtime here")))
    with pytest.raises(ConversionError, match="no ONNX Runtime here"):
        run(ray, 2)
