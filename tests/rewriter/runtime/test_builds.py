"""Engines built at run time: the thread with a scripted builder, and real builds with TensorRT-RTX."""

import dataclasses
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from passes import model as models
from passes.extract import Extractor
from passes.precision.ranges import RangeTable, TensorRange
from passes.precision.recipe import Recipe
from passes.segments import Segment
from rewriter.artifact import manifest as manifests
from rewriter.artifact.manifest import EngineEntry
from rewriter.backends.base import BuildFailure, BuiltEngine, InputProfile
from rewriter.errors import BackendError, ConverterStateError, InvalidParameterError, MissingDependencyError
from rewriter.params import ConversionParams
from rewriter.runtime.builds import BackgroundBuilds, RuntimeBuilder
from rewriter.runtime.runtime_builder import MAX_EXACT
from rewriter.runtime.slot_values import set_key
from rewriter.runtime.slots import EngineSlot, Found, Miss, StoredEngine
from rewriter.shapes.harvest import Observed

OP = "TRTEngineOp_000"
#: Longer than any wait in these tests; nothing here takes that long unless it hangs.
LONG = 60


def size_of(seen):
    return seen["x"].shape[0]


def one(size):
    return {"x": Observed((size,))}


class ScriptedBuilder:
    """Builds nothing: gives a range over the sets, waits for a gate where it is told to, fails where it is told to."""

    def __init__(self, fails=None, most_sets=None):
        self.fails = fails or (lambda sizes: None)
        self.most_sets = most_sets
        self.calls, self.counts = [], []
        self.begun, self.gate = threading.Semaphore(0), threading.Event()
        self.gate.set()
        self.threads = set()

    def build(self, segment, sets, counts=None, progress=None):
        sizes = [size_of(item) for item in sets]
        self.calls.append(sizes)
        self.counts.append(list(counts))
        self.threads.add(threading.current_thread())
        self.begun.release()
        assert self.gate.wait(LONG)
        if not progress("build", 0, 1):
            return BuildFailure("cancelled", "the build was cancelled")
        failure = self.fails(sizes)
        if isinstance(failure, Exception):
            raise failure
        if failure:
            return BuildFailure("unsupported", failure)
        profile = {"x": InputProfile((min(sizes),), (sizes[-1],), (max(sizes),))}
        key = f"from{min(sizes)}to{max(sizes)}"
        entry = EngineEntry(OP, key, 1, "0" * 64, "fake", "1", profiles=(profile,))
        return StoredEngine(entry, Path(f"/{key}"))


class Told:
    """Keeps what the thread tells."""

    def __init__(self):
        self.outcomes = []

    def __call__(self, outcome):
        self.outcomes.append(outcome)

    @property
    def settled(self):
        return [
            (getattr(o.result, "reason", None) or o.result.entry.key, sorted(size_of(item) for item in o.sets))
            for o in self.outcomes
        ]


def test_a_request_returns_at_once_and_the_thread_tells_the_end():
    builder, told = ScriptedBuilder(), Told()
    builder.gate.clear()
    with BackgroundBuilds(builder) as builds:
        builds.request(OP, None, one(2), done=told)
        assert builder.begun.acquire(timeout=LONG)
        assert builds.building(OP)
        assert not builds.building("TRTEngineOp_001")
        assert not told.outcomes
        builder.gate.set()
        assert builds.wait(OP, LONG)
        assert told.settled == [("from2to2", [2])]
        assert not builds.building()
    assert threading.current_thread() not in builder.threads


def test_what_waits_joins_and_the_second_build_covers_all_that_missed():
    builder, told = ScriptedBuilder(), Told()
    builder.gate.clear()
    with BackgroundBuilds(builder) as builds:
        builds.request(OP, None, one(2), done=told)
        assert builder.begun.acquire(timeout=LONG)
        for size in (8, 4, 8, 2):  # the running build has 2 already
            builds.request(OP, None, one(size), done=told)
        builder.gate.set()
        assert builds.wait(timeout=LONG)
        assert builder.calls == [[2], [2, 8, 4]]
        assert builder.counts == [[1], [2, 2, 1]]
        assert told.settled == [("from2to2", [2]), ("from2to8", [4, 8])]


def test_a_set_that_the_finished_engine_takes_is_not_built_for():
    builder, told = ScriptedBuilder(), Told()
    with BackgroundBuilds(builder) as builds:
        builds.request(OP, None, one(2), done=told)
        assert builds.wait(OP, LONG)
        builder.gate.clear()
        builds.request(OP, None, one(8), done=told)
        assert builder.begun.acquire(timeout=LONG)
        assert builder.begun.acquire(timeout=LONG)
        builds.request(OP, None, one(5), done=told)
        builder.gate.set()
        assert builds.wait(OP, LONG)
    assert builder.calls == [[2], [2, 8]]
    assert told.settled[-1] == ("from2to8", [5, 8])


def test_one_build_at_a_time_for_several_nodes():
    builder, told = ScriptedBuilder(), Told()
    builder.gate.clear()
    with BackgroundBuilds(builder) as builds:
        for number in range(3):
            builds.request(f"TRTEngineOp_00{number}", None, one(number + 1), done=told)
        assert builder.begun.acquire(timeout=LONG)
        assert builder.calls == [[1]]
        assert builds.building("TRTEngineOp_002")
        builder.gate.set()
        assert builds.wait(timeout=LONG)
    assert builder.calls == [[1], [2], [3]]


def test_neighbours_are_built_for_but_never_alone():
    builder, told = ScriptedBuilder(fails=lambda sizes: "too large" if 99 in sizes else None), Told()
    with BackgroundBuilds(builder) as builds:
        builds.request(OP, None, one(4), also=[one(1), one(2)], done=told)
        assert builds.wait(OP, LONG)
        builds.request(OP, None, one(7), also=[one(99)], done=told)
        assert builds.wait(OP, LONG)
    assert builder.calls == [[1, 2, 4], [99, 4, 7], [7]]
    assert builder.counts[0] == [0, 0, 1]
    assert told.settled == [("from1to4", [4]), ("too large", []), ("from7to7", [7])]


def test_a_set_that_fails_alone_is_remembered_and_left_out_of_later_builds():
    builder, told = ScriptedBuilder(fails=lambda sizes: "no kernel" if 9 in sizes else None), Told()
    with BackgroundBuilds(builder) as builds:
        for size in (1, 9, 9, 4):
            builds.request(OP, None, one(size), done=told)
            assert builds.wait(OP, LONG)
    assert builder.calls == [[1], [1, 9], [9], [1, 4]]
    assert told.settled == [
        ("from1to1", [1]), ("no kernel", []), ("no kernel", [9]), ("no kernel", [9]), ("from1to4", [4]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error", [MissingDependencyError("TensorRT is not installed"), BackendError("gone"), ZeroDivisionError("a fault")]
)
def test_an_exception_of_the_builder_is_a_remembered_failure(error, caplog):
    builder, told = ScriptedBuilder(fails=lambda sizes: error), Told()
    reason = f"engines cannot be built here: {error}"
    with BackgroundBuilds(builder) as builds:
        builds.request(OP, None, one(1), done=told)
        assert builds.wait(OP, LONG)
        builds.request(OP, None, one(2), done=told)
        assert builds.wait(OP, LONG)
        assert builder.calls == [[1]]
        assert told.settled == [(reason, [1]), (reason, [2])]
        builder.fails = lambda sizes: None
        builds.request("TRTEngineOp_001", None, one(3), done=told)  # the thread lives, or a new one does
        assert builds.wait(timeout=LONG)
        assert told.settled[-1] == ("from3to3", [3])
    assert str(error) in caplog.text


def test_a_listener_that_raises_does_not_end_the_thread(caplog):
    def done(outcome):
        raise ValueError("bad listener")

    builder, told = ScriptedBuilder(), Told()
    with BackgroundBuilds(builder) as builds:
        builds.request(OP, None, one(1), done=done)
        builds.request(OP, None, one(1), done=told)
        assert builds.wait(OP, LONG)
        assert builds.wait(OP, LONG)
    assert "bad listener" in caplog.text


def test_close_cancels_the_running_build_and_drops_the_others():
    builder, told = ScriptedBuilder(), Told()
    builder.gate.clear()
    builds = BackgroundBuilds(builder)
    builds.request(OP, None, one(1), done=told)
    builds.request("TRTEngineOp_001", None, one(2), done=told)
    assert builder.begun.acquire(timeout=LONG)
    closer = threading.Thread(target=builds.close)
    closer.start()
    assert builds.wait(timeout=LONG)  # closing ends all waits
    builder.gate.set()
    closer.join(LONG)
    assert not closer.is_alive()
    builds.close()
    (thread,) = builder.threads
    assert not thread.is_alive()
    assert builder.calls == [[1]]
    assert told.settled == [("the build was cancelled", [1])]
    with pytest.raises(ConverterStateError, match="no engine can be built any more"):
        builds.request(OP, None, one(1))


def test_no_thread_stays_when_nothing_waits():
    builder = ScriptedBuilder()
    with BackgroundBuilds(builder, wait=True) as builds:
        builds.request(OP, None, one(1))
        for thread in builder.threads:
            thread.join(LONG)
            assert not thread.is_alive()
        builds.request(OP, None, one(2))
        assert len(builder.calls) == 2


def test_more_sets_than_an_engine_can_have():
    builder, told = ScriptedBuilder(most_sets=2), Told()
    builder.gate.clear()
    with BackgroundBuilds(builder) as builds:
        builds.request(OP, None, one(1), done=told)
        assert builder.begun.acquire(timeout=LONG)
        for size in (10, 20, 30):
            builds.request(OP, None, one(size), done=told)
        builder.gate.set()
        assert builds.wait(OP, LONG)
    assert builder.calls == [[1], [10, 20], [20, 30]]
    assert sorted(size for _, sizes in told.settled for size in sizes) == [1, 10, 20, 30]


def test_eight_threads_ask_and_one_engine_is_built_for_each_need():
    builder = ScriptedBuilder()

    class Engine:
        def close(self):
            pass

    builds = BackgroundBuilds(builder)
    slot = EngineSlot(OP, (), lambda stored: Engine(), maximum=1, cache_full="evict", builds=builds, segment=object())
    start, wrong = threading.Barrier(8), []

    def work(seed):
        start.wait(LONG)
        for step in range(100):
            size = 1 + (seed + step) % 4
            answer = slot.lookup({"x": (size,)}, {})
            if isinstance(answer, Miss) and "being built" not in answer.reason:
                wrong.append(answer)

    with builds:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert builds.wait(timeout=LONG)
        assert not wrong
        assert len(builder.calls) <= 4
        before = slot.stats()
        for _ in range(3):
            for size in (1, 4, 2, 3):  # whatever came first, the widest engine takes all: nothing is built or loaded
                assert isinstance(slot.lookup({"x": (size,)}, {}), Found)
        after = slot.stats()
        assert after["builds"] == before["builds"]
        assert after["loads"] <= before["loads"] + 2
        assert after["hits"] + after["misses"] == 800 + 12
    slot.close()


def test_two_alternating_shapes_need_two_builds_and_no_more():
    builder = ScriptedBuilder()

    class Engine:
        def close(self):
            pass

    with BackgroundBuilds(builder, wait=True) as builds:
        slot = EngineSlot(
            OP, (), lambda stored: Engine(), maximum=1, cache_full="evict", builds=builds, segment=object()
        )
        for _ in range(10):
            for size in (1, 8):
                assert isinstance(slot.lookup({"x": (size,)}, {}), Found)
        stats = slot.stats()
        assert (stats["builds"], stats["loads"], stats["evictions"], stats["hits"]) == (2, 2, 1, 20)


# Real segments.


def segment_of(static=False):
    dims = "2, 4" if static else "batch, 4"
    proto = parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 20]>
        g (float[{dims}] x) => (float[{dims}] y)
        {{
            a = MatMul(x, w)
            b = Relu(a)
            y = Sigmoid(b)
        }}
        """
    )
    for number, node in enumerate(proto.graph.node):
        node.name = f"node_{number}"
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32) / 2, "w"))
    names = tuple(node.name for node in proto.graph.node)
    inferred = onnx.shape_inference.infer_shapes(proto)
    return Extractor(models.from_proto(inferred)).extract(Segment(OP, (), names, ("x",), ("w",), ("y",), 3))


class FakeBackend:
    """Says what it was asked to build, and writes a file."""

    flavour, version, default_targets = "tensorrt_rtx", "1.2.3", ("SM80", "SM89")

    def __init__(self, known_targets=None):
        self.built, self.closed = [], 0
        if known_targets is not None:
            self.known_targets = known_targets

    def parse(self, model):
        return ()

    def build(self, model, profiles, options, output, progress=None):
        self.built.append((model, profiles, options))
        output.write_bytes(b"engine")
        record = manifests.hash_file(output)
        return BuiltEngine(output, record.size, record.sha256, 3, 0.1)

    def close(self):
        self.closed += 1


def params(**more):
    return {**ConversionParams()._asdict(), "dynamic_shape_profile_strategy": "Range", **more}


def runtime_builder(backend, mode="FP32", **more):
    given = params(precision_mode=mode, **more)
    return RuntimeBuilder(recipe=Recipe.of(mode), ranges=None, params=given, backend=backend)


def batch(size):
    return {"x": Observed((size, 4))}


def ranges_of(stored):
    return [(p["x"].minimum[0], p["x"].optimum[0], p["x"].maximum[0]) for p in stored.entry.profiles]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("Range", [(2, 4, 8)]),
        ("Optimal", [(2, 2, 2), (8, 8, 8), (4, 4, 4)]),
        ("Range+Optimal", [(2, 4, 8), (2, 2, 2), (8, 8, 8), (4, 4, 4)]),
        ("ImplicitBatchModeCompatible", [(1, 4, 8)]),
    ],
)
def test_the_strategy_decides_what_is_built(strategy, expected):
    with runtime_builder(FakeBackend(), dynamic_shape_profile_strategy=strategy) as builder:
        stored = builder.build(segment_of(), [batch(2), batch(8), batch(4)], [1, 1, 3])
        assert ranges_of(stored) == expected
        assert builder.most_sets == (MAX_EXACT if strategy == "Optimal" else None)


def test_many_sets_do_not_make_many_profiles():
    sets = [batch(size) for size in range(1, MAX_EXACT + 6)]
    with runtime_builder(FakeBackend(), dynamic_shape_profile_strategy="Range+Optimal") as builder:
        found = ranges_of(builder.build(segment_of(), sets))
    assert found[0][::2] == (1, MAX_EXACT + 5)
    assert [low for low, _, _ in found[1:]] == list(range(6, MAX_EXACT + 6))


def test_the_entry_says_what_was_built():
    backend, segment = FakeBackend(), segment_of()
    with runtime_builder(backend, mode="FP16", max_workspace_size_bytes=123456, targets=["SM89"]) as builder:
        stored = builder.build(segment, [batch(2)])
        entry = stored.entry
        assert (entry.op, entry.precision, entry.segment_hash) == (OP, "FP16", segment.content_hash)
        assert (entry.backend, entry.version, entry.targets) == ("tensorrt_rtx", "1.2.3", ("SM89",))
        assert manifests.hash_file(stored.path) == manifests.FileRecord(entry.size, entry.sha256)
        assert stored.path.name == f"{entry.key}.engine"
        model, _, options = backend.built[0]
        assert (options.workspace_bytes, options.tf32) == (123456, False)
        assert "Cast" in {node.op_type for node in model.proto.graph.node}
        assert builder.build(segment, [batch(2)]) == stored
        assert len(backend.built) == 1
        path = stored.path
    assert not path.exists()
    assert not backend.closed  # it is the caller's
    with pytest.raises(ConverterStateError, match="builder of engines is closed"):
        builder.build(segment, [batch(2)])


def test_targets_that_this_version_does_not_know_are_left_out():
    options = {}
    for known in (("SM80", "SM89"), ("SM90",)):
        backend = FakeBackend(known)
        with runtime_builder(backend, targets=["SM89", "SM121"]) as builder:
            builder.build(segment_of(), [batch(2)])
        options[known] = backend.built[0][2].targets
    assert options == {("SM80", "SM89"): ("SM89",), ("SM90",): ()}


def test_the_key_is_that_of_a_conversion(tmp_path):
    from rewriter.backends.base import BuildOptions
    from rewriter.building.segment_builder import SegmentBuilder
    from rewriter.precision.lowering import Lowering
    from rewriter.shapes.profiles import static_profiles

    backend, segment = FakeBackend(), segment_of(static=True)
    conversion = SegmentBuilder(backend, BuildOptions(tf32=True), tmp_path)
    lowering = Lowering(Recipe.of("TF32"))
    expected = conversion.key(lowering.apply(segment), static_profiles(segment))
    with runtime_builder(backend, mode="TF32", targets=["SM80", "SM89"]) as builder:
        assert builder.build(segment, [batch(2)]).entry.key == expected


def test_an_engine_of_the_cache_on_disk_is_not_built_again(tmp_path):
    backend = FakeBackend()
    keys = []
    for _ in range(2):
        with RuntimeBuilder(
            recipe=Recipe(), ranges=None, params=params(), backend=backend, engine_cache_dir=tmp_path / "cache"
        ) as builder:
            keys.append(builder.build(segment_of(), [batch(2)]).entry.key)
    assert len(set(keys)) == len(backend.built) == 1


def test_the_engine_cache_keeps_to_its_cap(tmp_path):
    backend = FakeBackend()
    cache = {"engine_cache_dir": tmp_path / "cache", "engine_cache_max_bytes": 1}
    for _ in range(2):
        with RuntimeBuilder(recipe=Recipe(), ranges=None, params=params(), backend=backend, **cache) as builder:
            builder.build(segment_of(), [batch(2)])
    assert len(backend.built) == 2  # one byte has room for none


def test_parameters_that_are_not_allowed():
    with pytest.raises(InvalidParameterError, match="engine_cache_max_bytes needs engine_cache_dir"):
        RuntimeBuilder(recipe=Recipe(), ranges=None, params=params(), engine_cache_max_bytes=1)
    with pytest.raises(InvalidParameterError, match="dynamic_shape_profile_strategy must be one of"):
        runtime_builder(FakeBackend(), dynamic_shape_profile_strategy="Widest")


def test_sets_that_no_profile_can_express_are_a_failure():
    with runtime_builder(FakeBackend()) as builder:
        failure = builder.build(segment_of(), [batch(2), {"x": Observed((2, 4, 1))}])
    assert failure.kind == "profile"
    assert "rank" in failure.reason


@pytest.mark.rtx
@pytest.mark.parametrize("mode", ["FP32", "FP16"])
def test_real_engines_are_built_for_what_missed(rtx, mode):
    with runtime_builder(rtx, mode=mode) as builder, BackgroundBuilds(builder, wait=True) as builds:
        told = Told()
        for size in (1, 8):
            builds.request(OP, segment_of(), batch(size), done=told)
        first, second = (outcome.result for outcome in told.outcomes)
        assert ranges_of(first) == [(1, 1, 1)]
        assert ranges_of(second) == [(1, 8, 8)]
        assert second.entry.precision == mode
        assert second.entry.version == rtx.version
        assert manifests.hash_file(second.path).sha256 == second.entry.sha256
        assert [set_key(item) for item in told.outcomes[1].sets] == [set_key(batch(8))]


@pytest.mark.rtx
def test_a_node_that_cannot_be_built_is_the_answer(rtx):
    segment = segment_of()
    bad = segment.model.copy_proto()
    bad.graph.node[1].CopyFrom(helper.make_node("NoSuchOperator", ["a"], ["b"], "node_1"))
    broken = dataclasses.replace(segment, model=segment.model.with_proto(bad))
    with runtime_builder(rtx) as builder:
        failure = builder.build(broken, [batch(2)])
    assert isinstance(failure, BuildFailure)
    assert failure.kind == "unsupported"


@pytest.mark.rtx
@pytest.mark.parametrize("mode", ["FP32", "FP16"])
def test_an_artifact_gets_the_engines_that_were_built_at_run_time(rtx, tmp_path, mode):
    """From conversion to conversion's own key: the artifact alone tells how to build."""
    from rewriter.artifact import load_artifact
    from rewriter.artifact.engines import save_engines
    from rewriter.converter import Converter
    from rewriter.runtime.schedule import EngineStep, make_schedule

    source = segment_of().model.proto
    with Converter(model=source, backend=rtx, progress=False, precision_mode=mode) as converter:
        converter.convert()
        empty = converter.save(tmp_path / "empty")
        converter.build(lambda: ({"x": np.zeros((size, 4), np.float32)} for size in (2, 8)))
        full = converter.save(tmp_path / "full")
    (expected,) = load_artifact(full).engines
    artifact = load_artifact(empty)
    schedule = make_schedule(artifact.model, [spec.tensor for spec in artifact.signature.outputs], [OP])
    (step,) = [item for item in schedule.steps if isinstance(item, EngineStep)]
    recipe = Recipe.from_json(artifact.params["recipe"])
    with RuntimeBuilder(recipe=recipe, ranges=artifact.ranges, params=artifact.params, backend=rtx) as builder:
        built = builder.build(step.native, [batch(2), batch(8)])
        assert built.entry == dataclasses.replace(expected, size=built.entry.size, sha256=built.entry.sha256)
        (saved,) = save_engines(empty, [built])
        assert save_engines(full, [built]) == ()
    (entry,) = load_artifact(empty).engines
    assert entry.usable
    assert saved.path.is_file()


def test_what_this_version_computes_wrongly_is_not_built(monkeypatch):
    """The artifact is of another TensorRT: its arithmetic may be one that is wrong here."""
    backend, asked = FakeBackend(), []

    def why_faulty(lowering, segment, lowered, flavour, version):
        asked.append((lowering.recipe.mode, segment.segment.name, flavour, version))
        return "its FP8 is wrong"

    monkeypatch.setattr("rewriter.runtime.runtime_builder.why_faulty", why_faulty)
    ranges = RangeTable({name: TensorRange(-1, 1) for name in "xab"}, "minmax", 1)
    for mode, expected in (("FP8", True), ("FP16", False)):
        recipe = Recipe.of(mode)
        with RuntimeBuilder(recipe=recipe, ranges=ranges, params=params(), backend=backend) as builder:
            result = builder.build(segment_of(), [batch(2)])
            assert isinstance(result, BuildFailure) == expected
            if expected:
                assert (result.kind, result.reason) == ("fault", "its FP8 is wrong")
    assert asked == [("FP8", OP, "tensorrt_rtx", "1.2.3")]
    assert len(backend.built) == 1
