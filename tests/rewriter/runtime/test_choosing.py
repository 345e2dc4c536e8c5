"""Which of several engines a machine runs: by compute capability, package and version, with reasons."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.artifact.manifest import EngineEntry
from rewriter.errors import MissingDependencyError
from rewriter.runtime.choosing import choice_lines, chosen, none_chosen, order, rank, usable_here
from rewriter.runtime.slots import StoredEngine

ADA, HOPPER = (8, 9), (9, 0)
INSTALLED = {"tensorrt_rtx": "1.7.1", "tensorrt": "10.9.0"}


def stored(key, targets=(), backend="tensorrt_rtx", version="1.7.1", problem=""):
    entry = EngineEntry("TRTEngineOp_000", key, 1, "0" * 64, backend, version, tuple(targets), problem=problem)
    return StoredEngine(entry, Path(f"{key}.engine"))


def installed(flavour):
    if flavour not in INSTALLED:
        raise MissingDependencyError(f"{flavour} is not there")
    return INSTALLED[flavour]


def keys(ranked):
    return [item.stored.entry.key for item in ranked]


def test_the_exact_capability_goes_first():
    engines = [
        stored("newer", ["SM120"]), stored("oldest", ["SM75"]), stored("older", ["SM80", "SM86"]),
        stored("built here", backend="tensorrt", version="10.9.0"), stored("exact", ["SM80", "SM89", "SM120"]),
    ]  # fmt: skip
    ranked = order(engines, ADA, installed)
    assert keys(ranked) == ["exact", "built here", "older", "oldest", "newer"]
    assert [item.problem for item in ranked] == [""] * 5
    assert [item.fit for item in ranked] == [
        "built for this GPU, SM89",
        "built for the GPU of the machine that built it",
        "built for SM86, which is older than this GPU, SM89",
        "built for SM75, which is older than this GPU, SM89",
        "built for SM120, which is newer than this GPU, SM89",
    ]


@pytest.mark.parametrize(
    ("targets", "gpu", "found"),
    [
        (("SM120",), (12, 0), (0, 0)), (("SM80",), (12, 0), (2, 40)), ((), HOPPER, (1, 0)),
        (("SM80", "SM120"), HOPPER, (2, 10)), (("SM100", "SM120"), HOPPER, (3, 10)), (("SM121",), (12, 0), (3, 1)),
    ],
)  # fmt: skip
def test_capabilities_are_compared_as_numbers(targets, gpu, found):
    assert rank(targets, gpu)[:2] == found


def test_classic_engines_for_other_gpus_go_last():
    classic = {"backend": "tensorrt", "version": "10.9.0"}
    engines = [
        stored("classic older", ["SM86"], **classic), stored("newer", ["SM120"]), stored("older", ["SM80"]),
        stored("classic own", ["SM89"], **classic),
    ]  # fmt: skip
    assert keys(order(engines, ADA, installed)) == ["classic own", "older", "newer", "classic older"]


def test_what_can_never_run_goes_last_with_its_reason():
    engines = [
        stored("old", ["SM89"], version="1.4.0"), stored("torn", ["SM89"], problem="it is damaged"),
        stored("strange", ["SM89"], backend="other", version="1"), stored("good", ["SM120"]),
    ]  # fmt: skip
    ranked = order(engines, ADA, installed)
    assert keys(ranked) == ["good", "old", "torn", "strange"]
    assert [item.problem for item in ranked] == [
        "",
        "it was built by tensorrt_rtx 1.4.0, and engines run with that version only; installed is 1.7.1",
        "it is damaged",
        "it needs other 1: other is not there",
    ]
    assert [item.stored.entry.problem for item in ranked] == [item.problem for item in ranked]
    assert engines[0].entry.problem == ""


def test_a_package_is_asked_for_once_and_only_where_it_matters():
    asked = []

    def ask(flavour):
        asked.append(flavour)
        return installed(flavour)

    order([stored("a"), stored("b"), stored("c", backend="tensorrt", problem="it is damaged")], ADA, ask)
    assert asked == ["tensorrt_rtx"]
    assert order([], ADA, ask) == ()


def test_a_damaged_engine_beside_a_good_one_of_its_package():
    ranked = order([stored("torn", problem="it is damaged"), stored("good")], ADA, installed)
    assert [(item.stored.entry.key, item.problem) for item in ranked] == [("good", ""), ("torn", "it is damaged")]


def test_what_became_of_them_is_told():
    engines = [
        stored("a", ["SM89"]),
        stored("b", ["SM80"]),
        stored("c", ["SM89"], version="1.4.0"),
        stored("d", ["SM120"]),
    ]
    ranked = order(engines, ADA, installed)
    told = chosen(ranked, {"a": engines[0].entry}, {"d": "TensorRT says no"})
    assert told == {
        "engines": {"a": "tensorrt_rtx 1.7.1: built for this GPU, SM89"},
        "others": {
            "b": "not needed so far: built for SM80, which is older than this GPU, SM89",
            "d": "TensorRT says no",
            "c": "it was built by tensorrt_rtx 1.4.0, and engines run with that version only; installed is 1.7.1",
        },
    }
    assert chosen((), {"new": stored("new").entry}, {})["engines"] == {"new": "tensorrt_rtx 1.7.1: built at run time"}
    assert chosen(ranked[:1], {}, {}, "it lies in a loop")["others"] == {"a": "it lies in a loop"}


def test_why_an_engine_that_was_wanted_is_not_there():
    ranked = order([stored("a", ["SM89"]), stored("b", ["SM80"])], ADA, installed)
    told = chosen(ranked, {}, {}, waiting={"b": "wanted, but there is no room", "new": "closed to make room"})
    assert told["others"] == {
        "a": "not needed so far: built for this GPU, SM89",
        "b": "wanted, but there is no room: built for SM80, which is older than this GPU, SM89",
        "new": "closed to make room: built at run time",
    }


def test_a_model_that_runs_natively_tells_why_of_every_engine():
    entries = [stored("a").entry, stored("torn", problem="it is damaged").entry]
    told = none_chosen(entries, lambda op: f"no GPU for {op}")
    assert told == {
        "TRTEngineOp_000": {"engines": {}, "others": {"a": "no GPU for TRTEngineOp_000", "torn": "it is damaged"}}
    }
    assert none_chosen([], str) == {}


def test_which_engines_run_here():
    engines = [stored(key, targets) for key, targets in (("a", ["SM89"]), ("b", ["SM80"]), ("c", []), ("d", ["SM75"]))]
    ranked = order([*engines, stored("old", ["SM89"], version="1.4.0")], ADA, installed)
    entries = [item.stored.entry for item in ranked]
    waiting = {"b": "wanted, but maximum_cached_engines is reached", "c": "closed to make room"}
    node = chosen(ranked, {"a": engines[0].entry}, {"d": "TensorRT says no"}, waiting=waiting)
    assert [entry.key for entry in usable_here(entries, {"TRTEngineOp_000": node})] == ["a", "c", "b"]
    node = chosen(ranked, {}, {})
    assert [entry.key for entry in usable_here(entries, {"TRTEngineOp_000": node})] == ["a", "c", "b", "d"]
    assert usable_here(entries, none_chosen(entries, lambda op: "no GPU")) == tuple(entries)  # none: all as well
    assert usable_here(entries, {}) == tuple(entries)


def test_few_lines_tell_the_choice():
    own, old = "tensorrt_rtx 1.7.1: built for this GPU, SM89", "it was built by tensorrt_rtx 1.4.0"
    told = {f"E{i}": {"engines": {f"k{i}": own}, "others": {f"o{i}": old}} for i in range(5)}
    told["E5"] = {"engines": {"a": own, "b": "tensorrt_rtx 1.7.1: built at run time"}, "others": {}}
    told["E6"] = {"engines": {}, "others": {"k6": old, "k7": "no GPU"}}
    told["E7"] = {"engines": {}, "others": {"k7": "no GPU"}}
    assert choice_lines(told) == [
        f"E0, E1, E2 and 2 more run {own}",
        f"E5 runs {own} and tensorrt_rtx 1.7.1: built at run time",
        "E6 and E7 run natively, with no engine",
        f"6 engines not used: {old}",
        "2 engines not used: no GPU",
    ]
    assert choice_lines({"E7": told["E7"]}, known=["no GPU"]) == []
    assert choice_lines({"E6": told["E6"]}, known=["no GPU"]) == [
        "E6 runs natively, with no engine",
        f"1 engine not used: {old}",
    ]
    assert choice_lines({}) == []


ENGINES = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["SM75", "SM80", "SM86", "SM89", "SM120"]), max_size=3),
        st.sampled_from([("tensorrt_rtx", "1.7.1"), ("tensorrt_rtx", "1.4.0"), ("tensorrt", "10.9.0"), ("none", "1")]),
        st.sampled_from(["", "", "it is damaged"]),
    ),
    max_size=6,
)


@given(ENGINES, st.sampled_from([(8, 0), ADA, HOPPER, (12, 0)]))
def test_order_loses_none_and_puts_the_best_first(drawn, gpu):
    engines = [stored(str(i), targets, *package, problem) for i, (targets, package, problem) in enumerate(drawn)]
    ranked = order(engines, gpu, installed)
    assert sorted(keys(ranked)) == sorted(item.entry.key for item in engines)
    usable = [item for item in ranked if not item.problem]
    assert ranked[: len(usable)] == tuple(usable)
    classes = [rank(item.stored.entry.targets, gpu)[:2] for item in usable]
    bound = [kind >= 2 and i.stored.entry.backend == "tensorrt" for i, (kind, _) in zip(usable, classes, strict=True)]
    assert bound == sorted(bound)
    assert classes[: bound.count(False)] == sorted(classes[: bound.count(False)])
    assert classes[bound.count(False) :] == sorted(classes[bound.count(False) :])
    assert order([item.stored for item in ranked], gpu, installed) == ranked
