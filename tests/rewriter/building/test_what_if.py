"""Segments that are never built (fake list), limits and aborted builds: with mocks, and with real TensorRT-RTX."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from passes.engine_node import read_engines
from passes.graph_index import iter_scopes
from passes.model import from_proto
from passes.partition import PartitionOptions
from passes.support import FAKELIST, SupportMap, Verdict
from rewriter.backends.base import BuildOptions, BuiltEngine
from rewriter.building.builder import EngineBuilder
from rewriter.building.planning import make_plan
from rewriter.building.segment_builder import ABORTED

TEXT = """<ir_version: 10, opset_import: ["" : 18]>
g (float[2] x, bool c) => (float[2] y, float[2] z) {
  [a] a1 = Relu(x) [f] f1 = Sin(a1) [b] b1 = Abs(f1) [n] n1 = Exp(b1) [d] d1 = Relu(n1) [e] z = Abs(d1)
  [if] y = If (c) <
    then_branch = t () => (float[2] t2) { [t1] t1 = Sin(d1) [t2] t2 = Abs(t1) },
    else_branch = e () => (float[2] e2) { [e1] e1 = Neg(d1) [e2] e2 = Abs(e1) }
  >
}"""
MINIMUM_TWO = PartitionOptions(2)


class Checker:
    """Answers from a table: nodes to deny, and nodes to mark, where the segment holds them."""

    def __init__(self, deny=(), mark=()):
        self.deny, self.mark = deny, mark

    def check_segment(self, segment):
        nodes = {n.name: n.op_type for n in segment.model.proto.graph.node}
        marks = [Verdict(n, nodes[n], True, FAKELIST, "no such thing") for n in self.mark if n in nodes]
        return (*(Verdict(n, nodes[n], False, "parser", "no") for n in self.deny if n in nodes), *marks)


class Backend:
    """Builds everything, and remembers what."""

    flavour, version, default_targets = "mock", "1", ("SM89",)

    def __init__(self):
        self.built = []

    def build(self, model, profiles, options, output, progress=None):
        self.built.append([n.name for n in model.proto.graph.node])
        output.write_bytes(b"e")
        return BuiltEngine(output, 1, "00" * 32, 0.1, 1)


@pytest.fixture
def model():
    return from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(TEXT)))


def judge(model, fakes=("f", "t1"), bad=("n", "if")):
    return SupportMap.of(
        Verdict(n.name, n.op_type, n.name not in bad, FAKELIST if n.name in fakes else "parser", f"no {n.op_type}")
        for _, graph in iter_scopes(model.proto)
        for n in graph.node
    )


def test_a_plan_knows_which_segments_are_what_if_only(model):
    plan = make_plan(model, judge(model), Checker(), MINIMUM_TWO)
    names = {s.segment.nodes: s.segment.name for s in plan.segments}
    assert set(names) == {("a", "f", "b"), ("d", "e"), ("t1", "t2"), ("e1", "e2")}
    assert set(plan.not_runnable) == {names["a", "f", "b"], names["t1", "t2"]}
    reason = plan.not_runnable[names["a", "f", "b"]]
    assert reason.startswith("'f' counted as supported only because op_fakelist (TF_TRT_OP_FAKELIST) names Sin: no Sin")
    assert {s.segment.nodes for s in plan.runnable.segments} == {("d", "e"), ("e1", "e2")}
    assert plan.runnable.segmentation.segments == tuple(s.segment for s in plan.runnable.segments)


def test_what_the_parser_refuses_only_in_its_segment_is_marked_and_not_denied(model):
    plan = make_plan(model, judge(model, fakes=()), Checker(deny=["e1"], mark=["f"]), MINIMUM_TWO)
    assert plan.support.verdicts["f"].pretended
    assert set(plan.not_runnable) == {"TRTEngineOp_000"}
    assert not plan.support.supported("e1")


def test_a_plan_without_fakes_is_its_own_runnable_plan(model):
    plan = make_plan(model, judge(model, fakes=()), Checker(), MINIMUM_TWO)
    assert plan.runnable is plan


def build(model, folder, *, fakes=("f", "t1"), abort=False):
    backend = Backend()
    builder = EngineBuilder(backend, Checker(), BuildOptions(), MINIMUM_TWO, folder, abort_builds=abort)
    plan = make_plan(model, judge(model, fakes), Checker(), MINIMUM_TWO)
    observed = []

    def observe(plan):
        observed.extend(s.segment.nodes for s in plan.segments)
        return {s.segment.name: () for s in plan.segments}

    return backend, observed, builder.build(model, plan, observe)


def test_what_if_segments_are_neither_observed_nor_built(model, tmp_path):
    backend, observed, result = build(model, tmp_path)
    assert observed == [("d", "e"), ("e1", "e2")]
    assert backend.built == [["d", "e"], ["e1", "e2"]]
    kinds = {s.segment.nodes: getattr(result.builds[s.segment.name].outcome, "kind", "") for s in result.plan.segments}
    assert kinds == {("a", "f", "b"): "not runnable", ("d", "e"): "", ("t1", "t2"): "not runnable", ("e1", "e2"): ""}
    assert [f.kind for f in result.failures] == ["not runnable"] * 2


def test_aborted_builds_deny_nothing_and_are_not_remembered(model, tmp_path):
    backend, _, result = build(model, tmp_path, fakes=(), abort=True)
    assert backend.built == []
    assert {(f.kind, f.reason) for f in result.failures} == {("aborted", ABORTED)}
    assert "TF_TRT_ABORT_CUDA_ENGINE_BUILD" in ABORTED
    assert len(result.builds) == len(result.plan.segments) == 4
    assert list(tmp_path.iterdir()) == []


def island_of_classics():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "a"),
        helper.make_node("Exp", ["a"], ["b"], "b"),
        helper.make_node("Scaler", ["b"], ["c"], "scale", domain="ai.onnx.ml", offset=[0.5], scale=[-2.0]),
        helper.make_node("Neg", ["c"], ["d"], "d"),
        helper.make_node("Abs", ["d"], ["y"], "e"),
    ]
    value = helper.make_tensor_value_info
    inner = [value("c", TensorProto.FLOAT, ["n", 4])]
    ends = [value("x", TensorProto.FLOAT, ["n", 4])], [value("y", TensorProto.FLOAT, ["n", 4])]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(
        helper.make_graph(nodes, "g", *ends, value_info=inner), opset_imports=opsets, ir_version=10
    )


@pytest.mark.rtx
def test_the_fake_list_from_model_to_loaded_artifact(rtx, tmp_path):
    from rewriter.artifact import load_artifact
    from rewriter.converter import Converter
    from rewriter.runtime.loading import load

    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    with Converter(
        model=island_of_classics(), backend=rtx, progress=False, op_fakelist=["ai.onnx.ml::Scaler"]
    ) as converter:
        converter.convert()
        converter.build(lambda: [{"x": x}])
        (engine,) = converter.report.engines
        assert engine.reason.startswith("not runnable: 'scale' counted as supported only because op_fakelist")
        assert (engine.nodes, engine.built, converter.report.native) == (5, False, ())
        assert (converter.report.coverage, converter.report.built_coverage) == (1.0, 0.0)
        converter.save(tmp_path / "out")
    artifact = load_artifact(tmp_path / "out")
    assert artifact.engines == ()
    ((_, attributes, _),) = read_engines(artifact.model.proto)
    assert "op_fakelist" in attributes.not_runnable
    assert dataclasses.replace(attributes, not_runnable="").engine_files == ()
    expected = np.abs(-(np.exp(np.maximum(x, 0)) - 0.5) * -2.0)
    with load(tmp_path / "out") as function:
        np.testing.assert_allclose(function(x=x)["y"], expected, rtol=1e-5)
        assert sum(function.stats()["fallbacks"].values()) == 1
