"""Engines that are added to an artifact, with real TensorRT-RTX: for more GPUs, what there is once, nothing half."""

import numpy as np
import pytest

from rewriter import load
from rewriter.artifact import check_output, load_artifact
from rewriter.artifact.engines import save_engines
from rewriter.backends.base import BuildFailure
from rewriter.cli import main
from rewriter.errors import (
    ConversionError,
    InvalidParameterError,
)
from rewriter.extending import build_engines
from rewriter.merging import merge
from rewriter.runtime.choosing import order
from rewriter.runtime.slot_values import StoredEngine

from . import small_models
from .small_models import IMAGE, files_of

pytestmark = pytest.mark.rtx
BOTH = ["TRTEngineOp_000", "TRTEngineOp_001"]


def facts(engines):
    return sorted((item.entry.op, *item.entry.targets) for item in engines)


def batches(entry):
    return [(p["image"].minimum[0], p["image"].optimum[0], p["image"].maximum[0]) for p in entry.profiles]


class Wrapped:
    """The shared TensorRT-RTX, which fails, or does something else, for some builds."""

    def __init__(self, rtx, build=None, **facts):
        self._rtx, self._build = rtx, build
        self.flavour, self.version = facts.get("flavour", rtx.flavour), facts.get("version", rtx.version)
        self.default_targets = facts.get("targets", rtx.default_targets)
        self.known_targets = facts.get("targets", rtx.known_targets)
        self.built = []

    def parse(self, model):
        return self._rtx.parse(model)

    def build(self, model, profiles, options, output, progress=None):
        self.built.append(options)
        answer = self._build(model, options) if self._build else None
        return answer or self._rtx.build(model, profiles, options, output, progress)

    def close(self):
        raise AssertionError("an open backend is the caller's")


def test_an_engine_for_each_target(artifact, rtx):
    path = artifact()
    before, old = files_of(path), load_artifact(path)
    done = build_engines(path, targets=["sm80", "8.9", "SM120"], backends=[rtx])
    assert done.path == path
    assert facts(done.added) == [(op, target) for op in BOTH for target in ("SM120", "SM80")]
    assert facts(done.present) == [(op, "SM89") for op in BOTH]
    assert (done.failures, done.notes) == ((), ())
    loaded = load_artifact(path)
    assert loaded.engines == (*old.engines, *(item.entry for item in done.added))
    assert all(entry.usable and entry.version == rtx.version for entry in loaded.engines)
    assert loaded.params == {**old.params, "targets": ["SM89", "SM80", "SM120"]}
    assert all(entry.profiles == old.engines[0].profiles for entry in loaded.engines if entry.op == BOTH[0])
    assert [name for name in before if files_of(path)[name] != before[name]] == ["manifest.json"]
    check_output(path, overwrite=True)  # nothing lies there that the manifest does not list


def test_every_gpu_gets_its_own_engine(artifact, rtx):
    path = artifact()
    build_engines(path, targets=["SM80", "SM120"], backends=[rtx])
    loaded = load_artifact(path)
    own = [StoredEngine(e, loaded.engine_path(e)) for e in loaded.engines if e.op == BOTH[0]]
    for capability, target in (((8, 0), "SM80"), ((8, 6), "SM80"), ((8, 9), "SM89"), ((12, 0), "SM120")):
        first = order(own, capability, lambda flavour: rtx.version)[0]
        assert (first.stored.entry.targets, first.problem) == ((target,), "")
    image = next(small_models.images(3)())
    with load(path, provider="cpu") as extended, load(artifact("other"), provider="cpu") as other:
        for name, array in other(image).items():
            np.testing.assert_array_equal(extended(image)[name], array)


def test_inspect_shows_what_was_added(artifact, rtx, capsys):
    path = artifact()
    build_engines(path, targets=["SM80", "SM120"], backends=[rtx])
    assert main(["inspect", str(path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for entry in load_artifact(path).engines:
        assert entry.file in text
        assert f"{entry.backend} {entry.version}, {entry.targets[0]}" in text
    assert main(["inspect", str(path), "--json"]) == 0


def test_a_second_time_all_is_there(artifact, rtx):
    path = artifact()
    first = build_engines(path, targets=["SM80", "SM120"], backends=[rtx])
    before = files_of(path)
    again = build_engines(path, targets=["SM120", "SM80"], backends=[rtx])
    assert again.added == ()
    assert facts(again.present) == facts(first.added)
    assert files_of(path) == before
    assert build_engines(path, targets=["SM80", "SM120"], backends=[rtx], together=True).added == ()


def test_one_engine_for_all_targets(artifact, rtx):
    path = artifact()
    done = build_engines(path, targets=["SM80", "SM89", "SM120"], backends=[rtx], together=True)
    assert facts(done.added) == [(op, "SM80", "SM120") for op in BOTH]
    assert facts(done.present) == [(op, "SM89") for op in BOTH]
    assert load_artifact(path).params["targets"] == ["SM89", "SM80", "SM120"]


def test_an_engine_for_several_targets_serves_each_of_them(artifact, rtx):
    path = artifact(target=None)
    done = build_engines(path, targets=["SM80", "SM120"], backends=[rtx])
    assert (done.added, facts(done.present)) == ((), [(op, *rtx.default_targets) for op in BOTH])
    assert build_engines(path, backends=[rtx]).added == ()


def test_a_damaged_engine_is_built_again(artifact, rtx):
    path = artifact()
    entry = load_artifact(path).engines[0]
    (path / entry.file).write_bytes(b"?" * entry.size)
    done = build_engines(path, backends=[rtx])
    assert facts(done.added) == [(BOTH[0], "SM89")]
    assert [(e.key, e.problem) for e in load_artifact(path).engines] == [
        (entry.key, ""), (load_artifact(artifact("other")).engines[1].key, ""),
    ]  # fmt: skip


def test_an_artifact_without_engines_gets_them_for_given_shapes(artifact, rtx):
    path = artifact(engines=False)
    with pytest.raises(InvalidParameterError, match=r"no engine is there to take the shapes from: give those"):
        build_engines(path, targets=["SM80"], backends=[rtx])
    done = build_engines(path, targets=["SM80", "SM89"], backends=[rtx], shapes=IMAGE)
    assert facts(done.added) == [(op, target) for op in BOTH for target in ("SM80", "SM89")]
    assert [batches(item.entry) for item in done.added if item.entry.op == BOTH[0]] == [[(1, 2, 6)]] * 2
    more = build_engines(path, targets=["SM120"], backends=[rtx])
    assert [batches(item.entry) for item in more.added if item.entry.op == BOTH[0]] == [[(1, 2, 6)]]


def test_without_targets_the_engines_are_those_of_the_conversion(artifact, rtx):
    path = artifact(engines=False)
    done = build_engines(path, backends=[rtx], input_fn=small_models.images(1, 4))
    converted = load_artifact(artifact("other")).engines
    assert [item.entry.key for item in done.added] == [entry.key for entry in converted]
    assert [item.entry.profiles for item in done.added] == [entry.profiles for entry in converted]


def test_targets_of_the_artifact_that_this_version_does_not_know_are_told(artifact, rtx):
    path = artifact()
    build_engines(path, targets=["SM120"], backends=[rtx])
    older = Wrapped(rtx, version="1.2.0", targets=("SM80", "SM89"))
    done = build_engines(path, backends=[older])
    assert facts(done.added) == [(op, "SM89") for op in BOTH]
    assert done.notes == ("SM120: left out, as tensorrt_rtx 1.2.0 builds no such engine for it",)
    assert build_engines(path, targets=["SM80"], backends=[older]).notes == ()


def test_given_shapes_go_before_those_of_the_engines(artifact, rtx):
    path = artifact()
    done = build_engines(path, backends=[rtx], shapes=IMAGE)
    (first, *_) = done.added
    assert (first.entry.targets, batches(first.entry)) == (("SM89",), [(1, 2, 6)])
    assert done.notes[0] == (
        f"{BOTH[0]} has engines for 2 different ranges of shapes, and maximum_cached_engines is 1: load with "
        "maximum_cached_engines=2 to have all of them in memory"
    )
    both = build_engines(path, targets=["SM80"], backends=[rtx])  # a GPU that is added now takes all of these shapes
    assert [batches(i.entry) for i in both.added if i.entry.op == BOTH[0]] == [[(1, 4, 4)], [(1, 2, 6)]]


def test_fixed_shapes_need_nothing(artifact, rtx):
    path = artifact(text=small_models.FIXED, batches=(2,), engines=False)
    assert facts(build_engines(path, backends=[rtx]).added) == [(BOTH[0], "SM89")]


def test_static_engines_are_for_the_batches_of_the_conversion(artifact, rtx):
    path = artifact(engines=False, static=3)
    done = build_engines(path, targets=["SM80"], backends=[rtx])
    assert batches(done.added[0].entry) == [(1, 3, 3)]


def test_signatures_share_what_is_equal(artifact, rtx, tmp_path):
    path = small_models.together(tmp_path / "both", serve=artifact("a"), embed=artifact("b"))
    backend = Wrapped(rtx)
    done = build_engines(path, targets=["SM80"], backends=[backend])
    assert sorted((i.signature, i.entry.op) for i in done.added) == [(s, op) for s in ("embed", "serve") for op in BOTH]
    assert len(backend.built) == 2
    assert len(list(path.glob("engines/*/*.engine"))) == 4
    for name in ("serve", "embed"):
        loaded = load_artifact(path, signature=name)
        assert all(entry.usable for entry in loaded.engines)
        assert loaded.params["targets"] == ["SM89", "SM80"]


def test_one_signature_alone(artifact, rtx, tmp_path):
    path = small_models.together(tmp_path / "both", serve=artifact("a"), embed=artifact("b", engines=False))
    done = build_engines(path, targets=["SM80"], backends=[rtx])
    assert {item.signature for item in done.added} == {"serve"}
    assert [note.partition(":")[0] for note in done.notes] == [f"{op} was left out" for op in BOTH]
    with pytest.raises(InvalidParameterError, match="no engine is there to take the shapes from"):
        build_engines(path, backends=[rtx], signatures=["embed"])
    done = build_engines(path, backends=[rtx], signatures=["embed"], input_fn={"embed": small_models.images(2)})
    assert {item.signature for item in done.added} == {"embed"}
    assert load_artifact(path, signature="embed").params["targets"] == ["SM89"]


def test_targets_that_lack_the_arithmetic_are_told_and_the_others_go_on(artifact, rtx):
    path = artifact(precision_mode="FP8", op_denylist=["Conv"])
    done = build_engines(path, targets=["SM80", "SM120"], backends=[rtx])
    assert {item.entry.targets for item in done.added} == {("SM120",)}
    (failure,) = done.failures
    assert (failure.op, failure.targets, failure.kind) == ("", ("SM80",), "target")
    assert failure.reason == "precision_mode='FP8' needs targets of SM89 or newer, not SM80"
    with pytest.raises(ConversionError, match=r"no engine was built .*: every engine for SM80: precision_mode='FP8'"):
        build_engines(path, targets=["SM80"], backends=[rtx])


def test_engines_have_the_calibrated_ranges(artifact, rtx):
    path = artifact(precision_mode="INT8", op_denylist=["Conv"], engines=False)
    done = build_engines(path, backends=[rtx], input_fn=small_models.images(1, 4))
    converted = load_artifact(artifact("other", precision_mode="INT8", op_denylist=["Conv"])).engines
    assert [item.entry.key for item in done.added] == [entry.key for entry in converted]
    assert {item.entry.precision for item in done.added} == {"INT8+FP16"}


def test_what_a_version_computes_wrongly_is_not_built(artifact, rtx):
    if rtx.version.startswith("1.4."):
        pytest.skip("this version builds no INT8 convolution, so there is no artifact with one")
    path = artifact(precision_mode="INT8")
    done = build_engines(path, backends=[Wrapped(rtx, version="1.4.0.76")])
    assert facts(done.added) == [(BOTH[1], "SM89")]
    (failure,) = done.failures
    assert (failure.op, failure.version, failure.kind) == (BOTH[0], "1.4.0.76", "fault")
    assert "it has no INT8 convolution" in failure.reason


def test_a_failed_segment_is_told_and_the_others_go_on(artifact, rtx):
    def fails(model, options):
        conv = any(node.op_type == "Conv" for node in model.proto.graph.node)
        return BuildFailure("workspace", "it needs 9 GB") if conv and options.targets == ("SM80",) else None

    path = artifact()
    done = build_engines(path, targets=["SM80", "SM120"], backends=[Wrapped(rtx, fails)])
    assert facts(done.added) == [(BOTH[0], "SM120"), (BOTH[1], "SM120"), (BOTH[1], "SM80")]
    (failure,) = done.failures
    assert (failure.op, failure.targets, failure.kind, failure.reason) == (
        BOTH[0], ("SM80",), "workspace", "it needs 9 GB",
    )  # fmt: skip
    assert done.to_json()["failures"][0]["targets"] == ["SM80"]


def test_a_target_that_a_node_cannot_be_built_for_spoils_no_later_engine(artifact, rtx):
    def fails(model, options):
        conv = any(node.op_type == "Conv" for node in model.proto.graph.node)
        return BuildFailure("unsupported", "not for SM80") if conv and "SM80" in options.targets else None

    path = artifact()
    done = build_engines(path, targets=["SM80", "SM120"], backends=[Wrapped(rtx, fails)])
    assert [failure.targets for failure in done.failures] == [("SM80",)]
    assert load_artifact(path).params["targets"] == ["SM89", "SM120"]
    later = build_engines(path, backends=[Wrapped(rtx, fails)], input_fn=small_models.images(7))
    assert (facts(later.added), later.failures) == ([(op, "SM89", "SM120") for op in BOTH], ())
    build_engines(path, targets=["SM80"], backends=[rtx])
    assert load_artifact(path).params["targets"] == ["SM89", "SM120", "SM80"]


def test_nothing_built_is_an_error(artifact, rtx):
    path = artifact(engines=False)
    before = files_of(path)
    backend = Wrapped(rtx, lambda *_: BuildFailure("memory", "no memory"))
    with pytest.raises(
        ConversionError, match=r"no engine was built for .*: TRTEngineOp_000 for SM80: no memory \(2 fa"
    ):
        build_engines(path, targets=["SM80"], backends=[backend], shapes=IMAGE)
    assert files_of(path) == before


def test_two_packages(artifact, rtx):
    path = artifact()
    classic = Wrapped(rtx, flavour="tensorrt", version="10.9.0", targets=())
    done = build_engines(path, backends=[rtx, classic])
    assert sorted(i.entry.backend for i in (*done.added, *done.present)) == ["tensorrt"] * 2 + ["tensorrt_rtx"] * 2
    assert load_artifact(path).params["targets"] == ["SM89"]
    again = build_engines(path, backends=[classic, rtx])
    assert (again.added, len(again.present)) == ((), 4)
    with pytest.raises(InvalidParameterError, match="tensorrt builds only for the GPU of this machine"):
        build_engines(path, targets=["SM80"], backends=[rtx, classic])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision_mode": "FP16"}, "replaced while engines were built for it, and its recipe or calibration"),
        ({"text": small_models.TWO_ENGINES.replace("Relu", "Tanh")}, "the segment of TRTEngineOp_000 is not the one"),
        ({"text": small_models.TWO_ENGINES.replace("two (", "other (")}, "has no signature 'two'; it has: 'other'"),
    ],
)
def test_an_artifact_that_was_replaced_meanwhile_is_left_alone(artifact, rtx, tmp_path, options, words):
    path, other = artifact(), artifact("other", target="SM120", **options)

    def replaces(*_):
        if other.exists():
            path.rename(tmp_path / "old")
            other.rename(path)

    with pytest.raises(ConversionError, match=words):
        build_engines(path, targets=["SM80"], backends=[Wrapped(rtx, replaces)])
    assert {entry.targets for entry in load_artifact(path).engines} == {("SM120",)}


def test_what_another_process_added_meanwhile_is_present(artifact, rtx, tmp_path):
    path, twin = artifact(), artifact("twin")
    build_engines(twin, targets=["SM80"], backends=[rtx])
    ready = load_artifact(twin)
    engines = [StoredEngine(e, ready.engine_path(e)) for e in ready.engines if e.targets == ("SM80",)]

    def adds(*_):
        save_engines(path, engines)

    done = build_engines(path, targets=["SM80"], backends=[Wrapped(rtx, adds)])
    assert (done.added, facts(done.present)) == ((), [(op, "SM80") for op in BOTH])
    assert len(load_artifact(path).engines) == 4


def test_extended_artifacts_are_merged(artifact, rtx, tmp_path):
    first, second = artifact("a"), artifact("b")
    build_engines(first, targets=["SM80"], backends=[rtx])
    build_engines(second, targets=["SM120", "SM80"], backends=[rtx])
    merged = merge([first, second], tmp_path / "out")
    entries = load_artifact(merged.path).engines
    assert sorted((e.op, *e.targets) for e in entries) == [(op, t) for op in BOTH for t in ("SM120", "SM80", "SM89")]
    assert all(entry.usable for entry in entries)
    assert build_engines(merged.path, targets=["SM80", "SM89", "SM120"], backends=[rtx]).added == ()


def test_engines_out_of_the_cache(artifact, rtx, tmp_path):
    built = [Wrapped(rtx), Wrapped(rtx)]
    for number, backend in enumerate(built):
        build_engines(artifact(f"a{number}"), targets=["SM80"], backends=[backend], engine_cache_dir=tmp_path / "cache")
    assert [len(backend.built) for backend in built] == [2, 0]


def test_progress_and_cancelling(artifact, rtx):
    path, events = artifact(), []
    build_engines(path, targets=["SM80"], backends=[rtx], progress=events.append)
    assert [event.stage for event in events if event.seconds is not None] == ["read", "build", "add"]
    assert {event.engine.name for event in events if event.engine} == {f"{op} for SM80" for op in BOTH}
    done = build_engines(
        path,
        targets=["SM120"],
        backends=[rtx],
        progress=lambda event: event.engine is None or event.engine.name != f"{BOTH[0]} for SM120",
    )
    assert facts(done.added) == [(BOTH[1], "SM120")]
    assert [(f.op, f.kind) for f in done.failures] == [(BOTH[0], "cancelled")]


def test_jobs_that_an_open_backend_cannot_do_are_told(artifact, rtx):
    done = build_engines(artifact(), targets=["SM80"], backends=[rtx], jobs=2)
    assert done.notes[0].startswith("jobs=2: the open backend builds 1 engine at a time; open_backend('tensorrt_rtx'")
    assert build_engines(done.path, targets=["SM120"], backends=["tensorrt_rtx"], jobs=2).notes == ()


def test_several_jobs_give_the_same(artifact):
    made = []
    for jobs in (1, 2):
        path = artifact(f"jobs{jobs}")
        done = build_engines(path, targets=["SM80", "SM120"], backends=["tensorrt_rtx"], jobs=jobs)
        made.append([(item.entry.op, item.entry.key, item.entry.targets) for item in done.added])
    assert made[0] == made[1]
