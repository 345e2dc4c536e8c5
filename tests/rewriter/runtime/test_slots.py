"""The engines in memory of one engine node, against a simple reference and case by case."""

import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rewriter.artifact.manifest import EngineEntry
from rewriter.backends.base import BuildFailure, InputProfile
from rewriter.errors import ConversionError, ConverterStateError, EngineRefusedError, InvalidParameterError
from rewriter.runtime import slots
from rewriter.runtime.slot_values import profile_of, set_key
from rewriter.runtime.slots import BuildOutcome, EngineSlot, Found, Miss, StoredEngine
from rewriter.shapes.harvest import Observed

SEGMENT = object()


def stored(key, *ranges, problem="", path=None):
    """An engine whose profiles take x of [n] for n in one of the ranges; no ranges: it has to be asked."""
    profiles = tuple({"x": InputProfile((low,), (low,), (high,))} for low, high in ranges)
    entry = EngineEntry("TRTEngineOp_000", key, 1, "0" * 64, "fake", "1", profiles=profiles, problem=problem)
    return StoredEngine(entry, Path(path or f"/{key}"))


class FakeEngine:
    def __init__(self, hidden, log):
        self.hidden, self.log, self.closed = hidden, log, False

    def profile_for(self, shapes, values):
        assert not self.closed
        (size,) = shapes["x"]
        return 0 if self.hidden and self.hidden[0] <= size <= self.hidden[1] else None

    def close(self):
        self.log.append("close")
        self.closed = True


class Opener:
    """Opens engines; remembers which are open and refuses those it is told to refuse."""

    def __init__(self, refuses=(), hidden=None):
        self.refuses, self.hidden = set(refuses), hidden or {}
        self.engines, self.opened, self.log = {}, [], []

    def __call__(self, item):
        key = item.entry.key
        self.opened.append(key)
        if key in self.refuses:
            raise EngineRefusedError(f"{key} is refused")
        self.engines[key] = FakeEngine(self.hidden.get(key), self.log)
        return self.engines[key]

    @property
    def alive(self):
        return {key for key, engine in self.engines.items() if not engine.closed}


class FakeBuilds:
    def __init__(self, waits=False):
        self.waits, self.requests = waits, []

    def request(self, op, segment, wanted, *, also=(), done):
        assert segment is SEGMENT
        self.requests.append((wanted, tuple(also), done))


def look(slot, size):
    return slot.lookup({"x": (size,)}, {})


def make(*engines, refuses=(), hidden=None, **options):
    opener = Opener(refuses, hidden)
    if options.get("builds") is not None:
        options["segment"] = SEGMENT
    return EngineSlot("TRTEngineOp_000", engines, opener, **options), opener


def test_profiles_are_known_without_opening():
    slot, opener = make(stored("a", (1, 4)))
    answer = look(slot, 5)
    assert answer == Miss(slots.OUTSIDE)
    assert not opener.opened
    found = look(slot, 4)
    assert isinstance(found, Found)
    assert (found.profile, found.stored.entry.key) == (0, "a")
    assert slot.stats() == {
        "engines": 1, "hits": 1, "misses": 1, "loads": 1, "evictions": 0, "builds": 0, "refused": {},
        "build_seconds": 0.0, "failed_builds": {}, "building": False,
    }  # fmt: skip


def test_the_tightest_profile_is_taken():
    profiles = stored("a", (1, 8), (4, 4), (2, 6)).entry.profiles
    assert [profile_of(profiles, {"x": (n,)}, {}) for n in (1, 4, 5, 9)] == [0, 1, 2, None]


def test_ranks_values_and_inputs_that_are_not_given():
    profile = {"x": InputProfile((1, 1), (2, 2), (3, 3)), "n": InputProfile((2,), (3,), (5,), is_values=True)}
    assert profile_of([profile], {"x": (1, 3), "n": (1,)}, {"n": (5,)}) == 0
    assert profile_of([profile], {"x": (1, 3), "n": (1,)}, {"n": (6,)}) is None
    assert profile_of([profile], {"x": (1, 3), "n": (1,)}, {}) is None
    assert profile_of([profile], {"x": (3,), "n": (1,)}, {"n": (5,)}) is None
    assert profile_of([profile], {"n": (1,)}, {"n": (5,)}) is None
    assert profile_of([{}], {"x": (7,)}, {}) == 0
    assert profile_of([], {"x": (7,)}, {}) is None


def test_native_keeps_what_is_in_memory():
    slot, opener = make(stored("a", (1, 1)), stored("b", (2, 2)))
    first = look(slot, 1)
    version = slot.version
    assert look(slot, 2) == Miss(slots.FULL, version)
    assert look(slot, 1) == first
    assert opener.opened == ["a"]
    assert opener.alive == {"a"}


def test_evict_closes_the_least_recently_used():
    engines = [stored("a", (1, 1)), stored("b", (2, 2)), stored("c", (3, 3))]
    slot, opener = make(*engines, maximum=2, cache_full="evict")
    answers = {size: look(slot, size) for size in (1, 2)}
    assert slot.repeat(answers[1])  # used again, without a search
    look(slot, 3)
    assert opener.alive == {"a", "c"}
    assert not slot.repeat(answers[1])  # the version has changed: the answer has to be looked up again
    assert slot.stats()["evictions"] == 1
    assert slot.stats()["hits"] == 4


def test_refused_engines_are_tried_once_and_the_next_is_taken():
    slot, opener = make(stored("a", (1, 4)), stored("b", (1, 2)), refuses={"a"}, maximum=2)
    assert look(slot, 1).stored.entry.key == "b"
    answer = look(slot, 4)
    assert answer == Miss("a is refused", slot.version)
    assert look(slot, 4) == answer
    assert opener.opened == ["a", "b"]
    assert slot.stats()["refused"] == {"a is refused": 1}


def test_an_unusable_entry_is_never_opened():
    slot, opener = make(stored("a", (1, 4), problem="a.engine is damaged"))
    assert look(slot, 1).reason == "a.engine is damaged"
    assert look(slot, 9).reason == slots.OUTSIDE
    assert not opener.opened
    assert slot.stats()["refused"] == {"a.engine is damaged": 1}


def test_an_unusable_engine_is_replaced_by_one_with_its_key():
    slot, opener = make(stored("a", (1, 4), problem="damaged"))
    slot.add(stored("a", (1, 4), path="/again"))
    assert look(slot, 1).stored.path == Path("/again")
    slot.add(stored("a", (1, 4), path="/third"))
    assert [item.path for item in slot.stored] == [Path("/again")]
    assert opener.opened == ["a"]


def test_other_failures_to_open_hold_for_one_lookup():
    attempts = []

    def open_engine(item):
        attempts.append(item)
        if len(attempts) == 1:
            raise ConversionError("out of device memory")
        return FakeEngine(None, [])

    slot = EngineSlot("TRTEngineOp_000", [stored("a", (1, 4))], open_engine)
    answer = look(slot, 1)
    assert answer.reason == "out of device memory"
    assert not slot.repeat(answer)
    assert isinstance(look(slot, 1), Found)
    assert slot.stats()["refused"] == {}


def test_an_engine_without_profiles_is_asked_once_opened():
    slot, opener = make(stored("a"), stored("b"), hidden={"a": (1, 2), "b": (3, 3)}, maximum=2)
    assert look(slot, 2).stored.entry.key == "a"
    assert look(slot, 3).stored.entry.key == "b"
    assert look(slot, 4).reason == slots.OUTSIDE
    assert opener.opened == ["a", "b"]


def test_an_engine_without_profiles_is_not_loaded_again_for_what_it_declined():
    options = {"hidden": {"a": (1, 2), "b": (3, 3)}, "cache_full": "evict"}
    slot, opener = make(stored("a"), stored("b"), **options)
    for _ in range(3):
        assert look(slot, 3).stored.entry.key == "b"
    assert opener.opened == ["a", "b"]


def test_a_build_is_asked_for_once_for_each_input_set():
    builds = FakeBuilds()
    slot, _ = make(builds=builds)
    version = slot.version
    for _ in range(3):
        assert look(slot, 2) == Miss(slots.BUILDING, version)
    ((wanted, also, done),) = builds.requests
    assert wanted == {"x": Observed((2,))}
    assert also == ()
    assert slot.stats()["building"]
    done(BuildOutcome(stored("new", (2, 2)), (wanted,), 1.5))
    assert slot.version > version
    assert look(slot, 2).stored.entry.key == "new"
    assert [item.entry.key for item in slot.built] == ["new"]
    stats = slot.stats()
    assert (stats["builds"], stats["build_seconds"], stats["building"]) == (1, 1.5, False)
    assert (stats["hits"], stats["misses"]) == (1, 3)


def test_a_failed_build_is_remembered_with_its_reason():
    builds = FakeBuilds()
    slot, _ = make(builds=builds)
    look(slot, 2)
    wanted, _, done = builds.requests[0]
    done(BuildOutcome(BuildFailure("workspace", "too little workspace"), (wanted,), 0.5))
    for _ in range(2):
        assert look(slot, 2).reason == "an engine for its shapes cannot be built: too little workspace"
    assert len(builds.requests) == 1
    assert slot.stats()["failed_builds"] == {"too little workspace": 1}
    look(slot, 3)
    assert len(builds.requests) == 2


def test_a_cancelled_build_may_be_asked_for_again():
    builds = FakeBuilds()
    slot, _ = make(builds=builds)
    look(slot, 2)
    wanted, _, done = builds.requests[0]
    done(BuildOutcome(BuildFailure("cancelled", "cancelled"), (wanted,), 0.5))
    assert look(slot, 2).reason == slots.BUILDING
    assert len(builds.requests) == 2


def test_a_built_engine_that_is_refused_is_not_built_again():
    builds = FakeBuilds()
    slot, opener = make(builds=builds, refuses={"new"})
    look(slot, 2)
    wanted, _, done = builds.requests[0]
    done(BuildOutcome(stored("new", (2, 2)), (wanted,), 0.5))
    for _ in range(3):
        assert look(slot, 2).reason == "new is refused"
    assert len(builds.requests) == 1
    assert opener.opened == ["new"]


def test_full_and_native_asks_for_nothing():
    builds = FakeBuilds()
    slot, _ = make(stored("a", (1, 1)), builds=builds)
    look(slot, 1)
    assert look(slot, 2).reason == slots.FULL
    assert not builds.requests


def test_where_engines_are_evicted_a_new_one_is_to_take_the_old_shapes_too():
    builds = FakeBuilds()
    slot, _ = make(stored("a", (1, 4)), builds=builds, cache_full="evict")
    look(slot, 1)
    look(slot, 8)
    _, also, _ = builds.requests[0]
    assert [item["x"].shape for item in also] == [(1,), (4,)]


def test_a_build_in_the_place_of_a_refused_engine_is_for_its_shapes():
    builds = FakeBuilds()
    slot, _ = make(stored("a", (1, 4)), refuses={"a"}, builds=builds)
    assert look(slot, 2).reason == slots.BUILDING
    _, also, _ = builds.requests[0]
    assert [item["x"].shape for item in also] == [(1,), (4,)]


def test_corners_keep_what_a_profile_leaves_out_and_the_rank_of_values():
    from rewriter.runtime.slot_values import corners

    like = {"x": Observed((7,)), "n": Observed((), (3,)), "y": Observed((2, 2))}
    profile = {"x": InputProfile((1,), (2,), (3,)), "n": InputProfile((4,), (5,), (6,), is_values=True)}
    low, best, high = corners([profile], like)
    assert low == {"x": Observed((1,)), "n": Observed((), (4,)), "y": Observed((2, 2))}
    assert (best["x"].shape, high["n"].values) == ((2,), (6,))


def test_where_calls_wait_the_answer_is_that_after_the_build():
    class Waiting(FakeBuilds):
        def request(self, op, segment, wanted, *, also=(), done):
            super().request(op, segment, wanted, also=also, done=done)
            worker = threading.Thread(target=done, args=(BuildOutcome(stored("new", (2, 2)), (wanted,), 0.1),))
            worker.start()  # as the building thread would: the slot's lock must be free
            worker.join(30)
            assert not worker.is_alive()

    slot, _ = make(builds=Waiting(waits=True))
    assert look(slot, 2).stored.entry.key == "new"
    assert (slot.stats()["hits"], slot.stats()["misses"]) == (1, 0)


def test_closed():
    builds = FakeBuilds()
    slot, opener = make(stored("a", (1, 1)), builds=builds, maximum=2)
    found = look(slot, 1)
    look(slot, 2)
    slot.close()
    slot.close()
    assert opener.log == ["close"]
    assert not slot.repeat(found)
    with pytest.raises(ConverterStateError, match="engines of TRTEngineOp_000 are closed"):
        look(slot, 1)
    with pytest.raises(ConverterStateError, match="closed"):
        slot.add(stored("b", (1, 1)))
    wanted, _, done = builds.requests[0]
    done(BuildOutcome(stored("new", (2, 2)), (wanted,), 0.1))  # too late, and harmless
    assert slot.stats()["engines"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maximum": 0}, "maximum_cached_engines must be at least 1, not 0"),
        ({"cache_full": "drop"}, "cache_full must be one of native, evict"),
        ({"builds": FakeBuilds()}, "give segment="),
    ],
)
def test_arguments_that_are_not_allowed(options, message):
    with pytest.raises(InvalidParameterError, match=message):
        EngineSlot("TRTEngineOp_000", (), Opener(), **options)


def test_threads_see_no_more_engines_than_allowed():
    engines = [stored(str(n), (n, n)) for n in range(8)]
    slot, opener = make(*engines, maximum=3, cache_full="evict")
    start, wrong = threading.Barrier(4), []

    def work(seed):
        start.wait(30)
        for step in range(200):
            size = (seed * 7 + step * 5) % 9
            answer = look(slot, size)
            if isinstance(answer, Found) != (size < 8):
                wrong.append(size)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = slot.stats()
    assert not wrong
    assert stats["hits"] + stats["misses"] == 800
    assert len(opener.alive) == stats["engines"] == 3
    assert stats["loads"] - stats["evictions"] == 3


SIZES = st.integers(0, 3)
RANGES = st.tuples(SIZES, st.sampled_from([0, 0, 0, 1])).map(lambda pair: (pair[0], pair[0] + pair[1]))
STATES = st.sampled_from(["good", "good", "good", "refused", "damaged"])


class SlotMachine(RuleBasedStateMachine):
    """Random lookups, additions and ends of builds, beside a reference that keeps plain lists."""

    @initialize(
        maximum=st.integers(1, 3),
        cache_full=st.sampled_from(["native", "evict"]),
        builds=st.booleans(),
        engines=st.lists(st.tuples(RANGES, STATES), max_size=6),
    )
    def begin(self, maximum, cache_full, builds, engines):
        self.maximum, self.evicts = maximum, cache_full == "evict"
        self.builds = FakeBuilds() if builds else None
        self.opener = Opener()
        self.count, self.lookups, self.closings = 0, 0, 0
        self.stored, self.bad, self.opened, self.recent = [], {}, [], []
        self.asked, self.finished = {}, 0
        self.answers = {}
        items = [self.new(span, state) for span, state in engines]
        self.slot = EngineSlot(
            "TRTEngineOp_000", items, self.opener, maximum=maximum, cache_full=cache_full, builds=self.builds,
            segment=SEGMENT,
        )  # fmt: skip

    def new(self, span, state):
        key = str(self.count)
        self.count += 1
        self.stored.append((key, span))
        if state == "damaged":
            self.bad[key] = "damaged"
        elif state == "refused":
            self.opener.refuses.add(key)
        return stored(key, span, problem="damaged" if state == "damaged" else "")

    def expected(self, size):
        """The engine's key, or the reason, after what a lookup does to the reference's memory."""
        fits = [key for key, (low, high) in self.stored if low <= size <= high]
        open_ones = [key for key in self.opened if key in fits]
        if open_ones:
            return self.use(open_ones[0])
        for key in fits:
            if key in self.bad:
                continue
            if not self.room:
                return slots.FULL
            if len(self.opened) == self.maximum:
                self.opened.remove(self.recent.pop(0))
                self.closings += 1
            if key not in self.opener.refuses:
                self.opened.append(key)
                self.recent.append(key)
                return self.use(key)
            self.bad[key] = f"{key} is refused"
        return self.reason(size, [self.bad[key] for key in fits])

    @property
    def room(self):
        return len(self.opened) < self.maximum or self.evicts

    def reason(self, size, refusals):
        if self.builds is not None and self.room:
            self.asked.setdefault(size, slots.BUILDING)
        if self.asked.get(size) or refusals:
            return self.asked.get(size) or refusals[0]
        if self.builds is not None and not self.room:
            return slots.FULL
        return slots.OUTSIDE if self.stored else slots.NO_ENGINE

    def use(self, key):
        self.recent.remove(key)
        self.recent.append(key)
        return f"engine {key}"

    @rule(size=SIZES)
    def lookup(self, size):
        before = self.slot.version
        answer = look(self.slot, size)
        self.lookups += 1
        text = f"engine {answer.stored.entry.key}" if isinstance(answer, Found) else answer.reason
        assert text == self.expected(size)
        if isinstance(answer, Found):
            assert not answer.engine.closed
        known = self.answers.get(size)
        if known is not None and known[0] == before:
            assert known[1] == text
        self.answers[size] = (answer.version, text, answer)

    @rule(size=SIZES)
    def repeat(self, size):
        if size in self.answers:
            version, text, answer = self.answers[size]
            again = self.slot.repeat(answer)
            assert again == (version == self.slot.version)
            self.lookups += again
            if again and isinstance(answer, Found):
                assert not answer.engine.closed
                assert self.use(answer.stored.entry.key) == text

    @rule(span=RANGES, state=STATES)
    def add(self, span, state):
        self.slot.add(self.new(span, state))

    @precondition(lambda self: getattr(self, "builds", None) is not None and self.finished < len(self.builds.requests))
    @rule(good=st.booleans(), wider=st.integers(0, 2))
    def finish_build(self, good, wider):
        wanted, _, done = self.builds.requests[self.finished]
        self.finished += 1
        (size,) = wanted["x"].shape
        if good:
            done(BuildOutcome(self.new((size, size + wider), "good"), (wanted,), 1.0))
            self.asked[size] = ""
        else:
            done(BuildOutcome(BuildFailure("unsupported", "no kernel"), (wanted,), 1.0))
            self.asked[size] = "an engine for its shapes cannot be built: no kernel"

    @invariant()
    def agrees(self):
        if not hasattr(self, "slot"):
            return
        stats = self.slot.stats()
        assert self.opener.alive == set(self.opened)
        assert stats["engines"] == len(self.opened) <= self.maximum
        assert stats["hits"] + stats["misses"] == self.lookups
        assert stats["evictions"] == self.closings == len(self.opener.log)
        assert stats["loads"] == len(self.opened) + self.closings
        assert self.evicts or not self.opener.log
        refused = [key for key in self.opener.opened if key in self.opener.refuses]
        assert len(refused) == len(set(refused))
        assert sum(stats["refused"].values()) == len(self.bad)
        if self.builds is not None:
            keys = [set_key(wanted) for wanted, _, _ in self.builds.requests]
            assert len(keys) == len(set(keys))
            assert stats["building"] == (self.finished < len(self.builds.requests))

    def teardown(self):
        if hasattr(self, "slot"):
            self.slot.close()
            assert not self.opener.alive


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
