"""From a segment to an engine or to the nodes to blame: with a builder that is a table, and with real TensorRT-RTX."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from passes import model as model_module
from passes.extract import Extractor
from rewriter.backends.base import BuildFailure, BuildOptions, BuiltEngine, InputProfile
from rewriter.building.compile import blame, compile_segment

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
OPTIONS = BuildOptions()
SM89 = BuildOptions(targets=("SM89",))


def make_segment(nodes, inputs, outputs, initializers=()):
    """A whole literal graph as one segment; inputs and outputs are name -> (dtype, shape)."""

    def infos(values):
        return [helper.make_tensor_value_info(n, dtype, shape) for n, (dtype, shape) in values.items()]

    graph = helper.make_graph(nodes, "g", infos(inputs), infos(outputs), list(initializers))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model = model_module.from_proto(onnx.shape_inference.infer_shapes(proto))
    return Extractor(model).extract_nodes((), [n.name for n in nodes], "TRTEngineOp_000")


def chain(length, special=(), operator="TopK"):
    """Relu nodes n0, n1, ... on [batch, 8], where those numbered in `special` have another operator."""
    nodes = [
        helper.make_node(operator if i in special else "Relu", [f"v{i}"], [f"v{i + 1}"], name=f"n{i}")
        for i in range(length)
    ]
    return make_segment(nodes, {"v0": (FLOAT, ["b", 8])}, {f"v{length}": (FLOAT, ["b", 8])})


BATCH = {"v0": InputProfile((1, 8), (2, 8), (4, 8))}


class TableBuilder:
    """Fails when `bad(names of the nodes)` is a failure; counts builds and remembers profiles."""

    def __init__(self, bad):
        self._bad = bad
        self.profiles = []

    def build(self, model, profiles, options, output, progress=None):
        self.profiles.append(profiles)
        failure = self._bad([n.name for n in model.proto.graph.node])
        if failure is not None:
            return failure
        output.write_bytes(b"e")
        return BuiltEngine(output, 1, "", 1, 0.0)


UNNAMED = BuildFailure("unsupported", "no kernel", ("no kernel",))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 120), st.data())
def test_bisection_finds_the_first_guilty_node_in_few_builds(tmp_path_factory, length, data):
    guilty = data.draw(st.sets(st.integers(0, length - 1), min_size=1, max_size=3))
    names = {f"n{i}" for i in guilty}
    builder = TableBuilder(lambda nodes: UNNAMED if names & set(nodes) else None)
    scratch = tmp_path_factory.mktemp("scratch")
    (found,) = blame(builder, chain(length), (BATCH,), OPTIONS, UNNAMED, scratch)
    assert found.node == f"n{min(guilty)}"
    assert (found.rule, found.reason) == ("build", "TensorRT cannot build it: no kernel")
    assert len(builder.profiles) <= 2 + math.ceil(math.log2(length + 1))
    assert all(profiles == (BATCH,) for profiles in builder.profiles)
    assert list(scratch.iterdir()) == []


def test_names_in_the_log_save_the_search(tmp_path):
    builder = TableBuilder(lambda nodes: UNNAMED)
    failure = BuildFailure("unsupported", "bad", ("n1_0 has no runners that implement it", "layer n12: bad"))
    found = blame(builder, chain(13), (BATCH,), OPTIONS, failure, tmp_path)
    assert [v.node for v in found] == ["n1", "n12"]
    assert builder.profiles == []


def test_a_single_node_needs_no_search(tmp_path):
    builder = TableBuilder(lambda nodes: UNNAMED)
    assert [v.node for v in blame(builder, chain(1), (BATCH,), OPTIONS, UNNAMED, tmp_path)] == ["n0"]
    assert builder.profiles == []


def test_a_pattern_is_broken_at_its_end(tmp_path):
    builder = TableBuilder(lambda nodes: UNNAMED if {"n2", "n5"} <= set(nodes) else None)
    (found,) = blame(builder, chain(9), (BATCH,), OPTIONS, UNNAMED, tmp_path)
    assert found.node == "n5"


@pytest.mark.parametrize("kind", ["workspace", "memory", "cancelled", "profile"])
def test_failures_that_are_no_fault_of_a_node_deny_nothing(tmp_path, kind):
    builder = TableBuilder(lambda nodes: UNNAMED)
    assert blame(builder, chain(4), (BATCH,), OPTIONS, BuildFailure(kind, "n1", ("n1",)), tmp_path) == ()
    assert builder.profiles == []


def test_a_failure_that_goes_away_or_changes_denies_all_jointly(tmp_path):
    moody = [lambda nodes: None, lambda nodes: BuildFailure("memory", "full") if len(nodes) < 4 else UNNAMED]
    for bad in moody:
        found = blame(TableBuilder(bad), chain(4), (BATCH,), OPTIONS, UNNAMED, tmp_path)
        assert [v.node for v in found] == ["n0", "n1", "n2", "n3"]
        assert all("jointly with 3 other nodes: no kernel" in v.reason for v in found)


def test_a_crash_is_bisected_and_keeps_its_rule(tmp_path):
    crash = BuildFailure("crash", "killed by SIGSEGV")
    builder = TableBuilder(lambda nodes: crash if "n3" in nodes else None)
    (found,) = blame(builder, chain(8), (BATCH,), OPTIONS, crash, tmp_path)
    assert (found.node, found.rule) == ("n3", "crash")


def test_a_quantised_value_is_never_cut_from_its_reader(tmp_path):
    """A cut after QuantizeLinear fails for itself; the guilty node must still be found behind it."""

    def bad(nodes):
        return UNNAMED if nodes[-1] == "n3" or "n6" in nodes else None

    found = blame(TableBuilder(bad), chain(8, {3}, "QuantizeLinear"), (BATCH,), OPTIONS, UNNAMED, tmp_path)
    assert [v.node for v in found] == ["n6"]


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({}, "the dynamic inputs v0 have no range"),
        ({"v0": InputProfile((4, 8), (2, 8), (8, 8))}, "not minimum <= optimum <= maximum"),
        ({"v0": InputProfile((1, 8), (2, 8), (8,))}, "differ in length"),
        ({"v0": InputProfile((-1, 8), (2, 8), (8, 8))}, "negative"),
    ],
)
def test_a_bad_profile_is_a_failure_before_anything_is_built(tmp_path, profile, words):
    builder = TableBuilder(lambda nodes: None)
    outcome = compile_segment(builder, chain(2), (BATCH, profile), OPTIONS, tmp_path / "e")
    assert outcome.kind == "profile"
    assert "profile 1 of TRTEngineOp_000" in outcome.reason
    assert words in outcome.reason
    assert builder.profiles == []


def compile_and_blame(rtx, segment, profiles, tmp_path, options=SM89):
    failure = compile_segment(rtx, segment, profiles, options, tmp_path / "e")
    assert isinstance(failure, BuildFailure)
    assert rtx.parse(segment.model) == ()  # the parser sees nothing wrong
    return failure, [v.node for v in blame(rtx, segment, profiles, options, failure, tmp_path)]


@pytest.mark.rtx
def test_an_engine_is_built(rtx, tmp_path):
    outcome = compile_segment(rtx, chain(5), (BATCH,), OPTIONS, tmp_path / "e")
    assert isinstance(outcome, BuiltEngine)
    assert (tmp_path / "e").stat().st_size == outcome.size


@pytest.mark.rtx
def test_non_max_suppression_is_blamed_by_name(rtx, tmp_path):
    nodes = [
        helper.make_node("Sigmoid", ["s"], ["p"], name="scope/sigmoid"),
        helper.make_node("NonMaxSuppression", ["b", "p", "m"], ["i"], name="scope/nms:1"),
        helper.make_node("NonMaxSuppression", ["b", "p", "m"], ["j"], name="scope/nms"),
        helper.make_node("Cast", ["i"], ["f"], name="scope/cast", to=FLOAT),
    ]
    segment = make_segment(
        nodes,
        {"b": (FLOAT, [1, 100, 4]), "s": (FLOAT, [1, 1, 100])},
        {"f": (FLOAT, [None, 3]), "j": (INT64, [None, 3])},
        [helper.make_tensor("m", INT64, [1], [10])],
    )
    failure, found = compile_and_blame(rtx, segment, (), tmp_path)
    assert failure.kind == "unsupported"
    assert found
    assert set(found) <= {"scope/nms:1", "scope/nms"}


@pytest.mark.rtx
def test_a_large_k_is_blamed_in_a_long_chain(rtx, tmp_path):
    nodes = [helper.make_node("Relu", ["v0"], ["v1"], name="n0")]
    nodes += [helper.make_node("Sigmoid", [f"v{i}"], [f"v{i + 1}"], name=f"n{i}") for i in range(1, 30)]
    nodes.append(helper.make_node("TopK", ["v30", "k"], ["v31", "which"], name="n30"))
    nodes += [helper.make_node("Tanh", [f"v{i}"], [f"v{i + 1}"], name=f"n{i}") for i in range(31, 40)]
    k = helper.make_tensor("k", INT64, [1], [5000])
    segment = make_segment(nodes, {"v0": (FLOAT, ["b", 6000])}, {"v40": (FLOAT, ["b", 5000])}, [k])
    profile = {"v0": InputProfile((1, 6000), (2, 6000), (4, 6000))}
    failure, found = compile_and_blame(rtx, segment, (profile,), tmp_path)
    assert "3840" in failure.reason
    assert found == ["n30"]
    nameless = BuildFailure("unsupported", failure.reason)
    assert [v.node for v in blame(rtx, segment, (profile,), SM89, nameless, tmp_path)] == ["n30"]


@pytest.mark.rtx
def test_a_dynamic_depth_is_blamed_though_the_builder_names_no_node(rtx, tmp_path):
    nodes = [
        helper.make_node("Abs", ["i"], ["a"], name="abs"),
        helper.make_node("OneHot", ["a", "d", "v"], ["h"], name="hot"),
        helper.make_node("Relu", ["h"], ["y"], name="relu"),
    ]
    values = numpy_helper.from_array(np.array([0, 1], np.float32), "v")
    segment = make_segment(nodes, {"i": (INT64, ["b"]), "d": (INT64, [1])}, {"y": (FLOAT, ["b", None])}, [values])
    profile = {"i": InputProfile((1,), (2,), (4,)), "d": InputProfile((2,), (4,), (8,), is_values=True)}
    failure, found = compile_and_blame(rtx, segment, (profile,), tmp_path)
    assert "Depth input" in failure.reason
    assert found == ["hot"]


@pytest.mark.rtx
def test_an_if_whose_branches_differ_in_rank_is_blamed_by_its_own_name(rtx, tmp_path):
    def branch(name, shape):
        nodes = [helper.make_node("Reshape", ["v0", f"{name}_s"], [f"{name}_o"], name=f"{name}_reshape")]
        out = helper.make_tensor_value_info(f"{name}_o", FLOAT, shape)
        return helper.make_graph(nodes, name, [], [out], [helper.make_tensor(f"{name}_s", INT64, [len(shape)], shape)])

    nodes = [
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch("t", [6]), else_branch=branch("e", [2, 3])),
        helper.make_node("Relu", ["v0"], ["z"], name="relu"),
    ]
    segment = make_segment(
        nodes, {"v0": (FLOAT, [2, 3]), "c": (TensorProto.BOOL, [])}, {"y": (FLOAT, None), "z": (FLOAT, [2, 3])}
    )
    _, found = compile_and_blame(rtx, segment, (), tmp_path)
    assert found == ["if"]


@pytest.mark.rtx
def test_too_little_workspace_denies_nothing(rtx, tmp_path):
    weight = np.random.default_rng(0).random((8, 8), np.float32)
    segment = make_segment(
        [helper.make_node("MatMul", ["v0", "w"], ["y"], name="mm")],
        {"v0": (FLOAT, ["b", 8])},
        {"y": (FLOAT, ["b", 8])},
        [numpy_helper.from_array(weight, "w")],
    )
    outcome = compile_segment(rtx, segment, (BATCH,), BuildOptions(workspace_bytes=1), tmp_path / "e")
    assert outcome.kind == "workspace"
    assert "1 bytes" in outcome.reason
    assert blame(rtx, segment, (BATCH,), OPTIONS, outcome, tmp_path) == ()


@pytest.mark.rtx
def test_a_cancelled_build_denies_nothing(rtx, tmp_path):
    outcome = compile_segment(rtx, chain(3), (BATCH,), OPTIONS, tmp_path / "e", lambda *_: False)
    assert outcome.kind == "cancelled"
    assert blame(rtx, chain(3), (BATCH,), OPTIONS, outcome, tmp_path) == ()
    assert list(tmp_path.iterdir()) == []
