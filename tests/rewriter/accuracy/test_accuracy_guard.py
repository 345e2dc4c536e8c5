"""The guard on literal models: which nodes it asks about, what it keeps, and what it says."""

import json

import numpy as np
import pytest
from onnx import parser

from passes.extract import Extractor
from passes.model import Model
from passes.precision.recipe import Recipe
from rewriter.accuracy.guard import guard, lowered_nodes
from rewriter.accuracy.target import AccuracyTarget
from rewriter.errors import ConversionError, InvalidParameterError

# Two chains with a node between them that is in no segment.
MODEL = """
<ir_version: 10, opset_import: ["": 20]>
g (float[batch, 4] x) => (float[batch, 4] y)
{
    a = Relu(x)
    b = Exp(a)
    c = Neg(b)
    d = Sin(c)
    s = Shape(d)
    e = Abs(d)
    f = Tanh(e)
    y = Reshape(f, s)
}
"""
NATIVE = [{"y": np.float32([[100, 1], [2, 3]])}]
TARGET = AccuracyTarget([np.zeros((2, 4))], max_rel_diff=0.01)


@pytest.fixture
def segments():
    proto = parser.parse_model(MODEL)
    for node in proto.graph.node:
        node.name = f"n_{node.output[0]}"
    for name, dtype in (*dict.fromkeys("abcdef", 1).items(), ("s", 7)):
        value = proto.graph.value_info.add(name=name)
        value.type.tensor_type.elem_type = dtype
    extractor = Extractor(Model(proto))
    parts = [["n_a", "n_b", "n_c"], ["n_s", "n_e", "n_f", "n_y"]]
    return [extractor.extract_nodes((), part, f"TRTEngineOp_{i:03}") for i, part in enumerate(parts)]


class Emulation:
    """The output is off by the sum of what each lowered node costs."""

    def __init__(self, costs, nodes=("n_a", "n_b", "n_c", "n_s", "n_e", "n_f", "n_y"), always=0.0):
        self.costs, self.nodes, self.always, self.recipes = costs, nodes, always, []

    def __call__(self, recipe):
        self.recipes.append(recipe)
        lowered = [node for node in self.nodes if node not in recipe.kept]
        off = self.always + sum(self.costs.get(node, 0.0) for node in lowered)
        return [{"y": NATIVE[0]["y"] + np.float32(off)}]


def test_nodes_that_lowering_changes(segments):
    first, second = segments
    assert lowered_nodes(first, Recipe.of("FP16")) == ("n_a", "n_b", "n_c")
    assert lowered_nodes(second, Recipe.of("BF16")) == ("n_s", "n_e", "n_f", "n_y")
    assert lowered_nodes(first, Recipe.of("FP16", keep_ops=("Exp",), kept=frozenset({"n_c"}))) == ("n_a",)
    assert lowered_nodes(first, Recipe.of("FP32")) == ()
    assert lowered_nodes(first, Recipe.of("INT8", "FP32")) == ()
    assert lowered_nodes(first, Recipe.of("INT8")) == ("n_a", "n_b", "n_c")


def test_quantised_nodes_and_nodes_without_floats():
    proto = parser.parse_model("""
    <ir_version: 10, opset_import: ["": 20]>
    g (float[2, 2] x, int64[2] i, float[2, 2] w) => (float[2, 2] y, int64[2] z)
    { m = MatMul(x, w)
      y = Relu(m)
      z = Neg(i) }
    """)
    for node in proto.graph.node:
        node.name = f"n_{node.output[0]}"
    segment = Extractor(Model(proto)).extract_nodes((), ["n_m", "n_y", "n_z"], "s")
    assert lowered_nodes(segment, Recipe.of("INT8", "FP32")) == ("n_m",)
    assert lowered_nodes(segment, Recipe.of("FP32", int4_block=32)) == ("n_m",)
    assert lowered_nodes(segment, Recipe.of("FP16")) == ("n_m", "n_y")


def test_nothing_is_kept_when_the_target_is_met(segments):
    emulation = Emulation({"n_a": 0.5})
    result = guard(TARGET, segments, Recipe.of("FP16"), emulation, NATIVE)
    assert not result.kept
    assert result.recipe == Recipe.of("FP16")
    assert emulation.recipes == [Recipe.of("FP16")]
    assert result.before == result.after
    assert result.report.runs == 1


def test_the_guilty_node_is_kept_and_the_reason_tells_the_figures(segments):
    emulation = Emulation({"n_e": 3.0, "n_a": 0.1})
    recipe = Recipe.of("FP16", kept=frozenset({"known"}))
    calls = []
    result = guard(TARGET, segments, recipe, emulation, NATIVE, progress=lambda *step: calls.append(step))
    assert dict(result.kept) == {
        "n_e": "FP16: output 'y' differs by 0.031, relative to its largest value (limit 0.01) when this node is "
        "lowered beside the segments that can be"
    }
    assert result.recipe.kept == {"known", "n_e"}
    assert (result.before.passed, result.after.passed) == (False, True)
    assert result.before.value == pytest.approx(0.031, rel=1e-3)
    assert result.after.value == pytest.approx(0.001, rel=1e-3)
    assert all("known" in r.kept for r in emulation.recipes)
    assert len({r.kept for r in emulation.recipes}) == len(emulation.recipes) == result.report.runs, "none runs twice"
    assert [call[0] for call in calls] == list(range(result.report.runs))
    assert calls[0][2] == "7 of 7 nodes in FP16"


def test_the_report_is_json(segments):
    emulation = Emulation({"n_e": np.inf})
    report = guard(TARGET, segments, Recipe.of("FP16"), emulation, NATIVE).report
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["before"]["value"] == "inf"
    assert data["after"]["passed"] is True
    assert data["target"] == "outputs within a relative difference of 0.01"
    assert data["nodes"] == 7
    (kept,) = data["kept"]
    assert (kept["node"], kept["op_type"], kept["segment"]) == ("n_e", "Abs", "TRTEngineOp_001")
    assert data["measurements"][0] == {"level": "segments", "lowered": 7, "value": "inf", "passed": False}


def test_one_segment_is_searched_at_once(segments):
    result = guard(TARGET, segments[:1], Recipe.of("BF16"), Emulation({"n_b": 2.0}), NATIVE)
    assert list(result.kept) == ["n_b"]
    assert "beside" not in result.kept["n_b"]
    assert {m["level"] for m in result.report.measurements} == {"nodes"}


def test_nodes_that_fail_only_together(segments):
    result = guard(TARGET, segments, Recipe.of("FP16"), Emulation({"n_c": 0.8, "n_f": 0.7}), NATIVE)
    assert len(result.kept) == 1
    assert set(result.kept) <= {"n_c", "n_f"}
    assert "when this node is lowered beside" in next(iter(result.kept.values()))
    assert result.after.passed


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 6])
def test_a_small_budget_keeps_more_but_meets_the_target(segments, budget):
    emulation = Emulation({"n_b": 3.0, "n_y": 3.0})
    result = guard(TARGET, segments, Recipe.of("FP16"), emulation, NATIVE, budget=budget)
    assert {"n_b", "n_y"} <= set(result.kept)
    assert result.after.passed
    assert result.report.runs <= budget + 1
    assert result.report.exhausted
    assert all(reason.startswith("FP16: ") for reason in result.kept.values())


@pytest.mark.parametrize("budget", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("always", [0.0, 5.0])
def test_a_budget_that_the_question_for_the_rung_uses_up(segments, budget, count, always):
    """INT8 asks whether FP16 alone would do: after that there may be no run left to search with."""
    recipe = Recipe.of("INT8", quantize_ops=("Exp", "Abs"))
    runs = []

    def evaluate(recipe):
        runs.append(recipe)
        quantised = {"n_b", "n_e"} - recipe.unquantized - recipe.kept
        floats = {"n_a", "n_b", "n_c"} - recipe.kept
        return [{"y": NATIVE[0]["y"] + np.float32(5 * ("n_b" in quantised) + always * bool(floats))}]

    result = guard(TARGET, segments[:count], recipe, evaluate, NATIVE, budget=budget)
    assert result.after.passed
    assert result.report.rung == ("kept" if always else "unquantized")
    assert "n_b" in result.kept
    assert result.report.runs == len(runs) <= max(budget, 2) + 1
    if budget < 3:
        assert result.report.exhausted
        assert set(result.kept.values()) == {
            f"INT8+FP16: the runs allowed ({budget}) were used up before this node was tried"
        }


def test_one_run_is_enough_for_a_target_that_is_met(segments):
    recipe = Recipe.of("INT8", quantize_ops=("Exp", "Abs"))
    result = guard(TARGET, segments, recipe, Emulation({}), NATIVE, budget=1)
    assert (dict(result.kept), result.report.runs, result.report.exhausted) == ({}, 1, False)


def test_everything_kept_is_run_as_well(segments):
    emulation = Emulation(dict.fromkeys(("n_a", "n_b", "n_c", "n_s", "n_e", "n_f", "n_y"), 5.0))
    result = guard(TARGET, segments, Recipe.of("FP16"), emulation, NATIVE)
    assert len(result.kept) == 7
    assert result.after.value == 0.0
    assert result.report.measurements[-1] == {"level": "rest", "lowered": 0, "value": 0.0, "passed": True}


def test_a_target_that_nothing_meets_is_an_error(segments):
    with pytest.raises(ConversionError, match=r"with nothing lowered output 'y' differs by 0.05"):
        guard(TARGET, segments, Recipe.of("FP16"), Emulation({"n_a": 9.0}, always=5.0), NATIVE)
    target = AccuracyTarget([0], metric=lambda outputs: 0.5, minimum=0.9)
    with pytest.raises(InvalidParameterError, match="the native model itself"):
        guard(target, segments, Recipe.of("FP16"), Emulation({}), NATIVE)


def test_a_recipe_that_changes_nothing_runs_nothing(segments):
    emulation = Emulation({})
    result = guard(TARGET, segments, Recipe.of("FP32"), emulation, NATIVE)
    assert not emulation.recipes
    assert (result.after.passed, result.report.nodes, result.report.runs) == (True, 0, 0)
    assert not guard(TARGET, [], Recipe.of("FP16"), emulation, NATIVE).kept
