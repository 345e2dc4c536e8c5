"""The dry run on literal graphs with made-up verdicts: no TensorRT."""

import json

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from passes.base import PassRecord
from passes.graph.flops import estimate
from passes.model import from_proto
from passes.partition import PartitionOptions
from passes.pipeline import default_pipeline
from passes.segments import TensorSpec
from passes.support import FAKELIST, SupportMap, Verdict
from rewriter.building.builder import BuildResult
from rewriter.building.planning import make_plan
from rewriter.conversion import Conversion
from rewriter.errors import InvalidParameterError
from rewriter.reports.dry_run import SizeRow, describe, make_dry_run, recommend
from rewriter.reports.dry_run_text import coverage_text
from rewriter.reports.operations import count_operations
from rewriter.reports.report import flops_text
from rewriter.source import Signature, SourceModel


class Content:
    """Accepts every segment."""

    def check_segment(self, segment):
        return ()


def chain(pattern, batch="batch"):
    """One node a letter: m MatMul with an 8x8 weight, r Relu, x an operator that the tests deny, f one to fake."""
    ops = {"m": "MatMul", "r": "Relu", "x": "Sin", "f": "Cos"}
    nodes, value = [], "x"
    for number, letter in enumerate(pattern):
        inputs = [value, f"w{number}"] if letter == "m" else [value]
        value = f"v{number}"
        nodes.append(h.make_node(ops[letter], inputs, [value], f"{ops[letter]}_{number}"))
    nodes[-1].output[0] = "y"
    weights = [
        h.make_tensor(f"w{n}", T.FLOAT, [8, 8], np.full((8, 8), n + 1, np.float32).tobytes(), raw=True)
        for n, letter in enumerate(pattern)
        if letter == "m"
    ]
    ports = [[h.make_tensor_value_info(name, T.FLOAT, [batch, 8])] for name in ("x", "y")]
    graph = h.make_graph(nodes, "g", *ports, weights)
    proto = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    return default_pipeline().run(from_proto(proto))


def judged(model):
    def verdict(node):
        if node.op_type == "Cos":
            return Verdict(node.name, "Cos", True, FAKELIST, "no layer for Cos")
        refused = node.op_type == "Sin"
        return Verdict(node.name, node.op_type, not refused, reason="no layer for Sin" if refused else "")

    return SupportMap.of(map(verdict, model.proto.graph.node))


def dry(pattern, size=3, **options):
    model, _ = chain(pattern)
    asked = PartitionOptions(minimum_segment_size=size)
    plan = make_plan(model, judged(model), Content(), asked)
    return describe("a chain", model, plan, asked, estimate(model, **options))


def test_what_would_be_built_and_what_would_not():
    found = dry("mmrxrrxmr", sizes={"batch": 4})
    (engine,) = found.engines
    assert engine.op_counts == {"MatMul": 2, "Relu": 1}
    assert engine.flops == 2 * (2 * 4 * 8 * 8) + 4 * 8
    assert [(spec.tensor, spec.dtype) for spec in engine.inputs] == [("x", T.FLOAT)]
    assert len(engine.outputs) == 1
    assert found.total_nodes == found.effective_nodes == 9
    assert found.coverage == pytest.approx(3 / 9)
    assert found.flops == 3 * 512 + 6 * 32
    assert found.flops_coverage == pytest.approx(1056 / found.flops)
    denied = next(group for group in found.native if group.rule == "parser")
    assert (denied.op_counts, denied.reason, denied.flops) == ({"Sin": 2}, "no layer for Sin", 64)
    assert found.unsupported == {"Sin": 2}
    assert sum(len(group.nodes) for group in found.native) == 6
    assert all(group.reason for group in found.native)
    assert any("batch = 4" in line for line in found.assumptions)


def test_what_other_sizes_would_give():
    found = dry("mmrxrrxmr", sizes={"batch": 1})
    table = {row.size: (row.engines, row.nodes) for row in found.sizes}
    assert table == {1: (3, 7), 2: (3, 7), 3: (1, 3)}
    assert [row.size for row in found.sizes if row.flops_coverage > 0.9] == [1, 2]
    assert found.recommended == 1
    assert "in force is 3" in found.rule


def test_the_rule_prefers_few_engines_that_keep_the_work():
    def row(size, engines, nodes, flops):
        return SizeRow(size, engines, nodes, nodes / 100, flops, flops / 1000)

    rows = [row(1, 9, 100, 1000), row(3, 4, 95, 995), row(5, 2, 91, 991), row(10, 1, 60, 990)]
    assert recommend(rows, 3)[0] == 5
    assert recommend(rows[:2], 3) == (3, recommend(rows[:2], 3)[1])
    assert "the one in force" in recommend(rows[:2], 3)[1]
    equal = [row(1, 2, 100, 1000), row(3, 2, 100, 1000)]
    assert recommend(equal, 3)[0] == 3, "nothing would be won by another size"
    assert recommend(equal, 7)[0] == 1
    assert recommend([row(3, 0, 0, 0)], 3)[0] is None
    assert "no size gives an engine" in recommend([], 3)[1]
    # One size wins by operations, another by nodes: operations decide.
    torn = [row(1, 3, 100, 10), row(4, 1, 20, 1000)]
    assert recommend(torn, 1)[0] == 4


def test_bodies_only_is_a_row_of_its_own():
    found = dry("mmr", size=-1)
    assert (found.engines, found.coverage) == ((), 0)
    assert [(row.size, row.engines) for row in found.sizes] == [(-1, 0), (1, 1), (2, 1), (3, 1)]
    assert found.native[0].rule == "main_graph_native"
    assert found.unsupported == {}


def test_the_fake_list_is_what_if_only():
    found = dry("mfr")
    (engine,) = found.engines
    assert "no layer for Cos" in engine.not_runnable
    text = found.render()
    assert "TRTEngineOp_000 is what-if only" in text
    assert "1 of them not runnable (fake list)" in coverage_text(found)


def test_text_and_json_say_the_same():
    found = dry("mmrxrrxmr", sizes={"batch": 4})
    data = json.loads(found.to_json())
    assert data["schema_version"] == 1
    assert data["engines"][0]["op_counts"] == {"MatMul": 2, "Relu": 1}
    assert [row["size"] for row in data["sizes"]] == [1, 2, 3]
    for width in (80, 160):
        text = found.render(width)
        assert max(map(len, text.splitlines())) <= max(width, 100)
        for words in ("TRTEngineOp_000", "no layer for Sin", "x: float32 [batch, 8]", "recommended", "in force"):
            assert words in " ".join(text.split()), (width, words)
    assert "x: float32" not in found.render(detailed=False)
    lines = [line.split() for line in found.render().splitlines()]
    assert ["1", "to", "2", "3", "7", "77.8%", "1.66", "kFLOP", "96.3%", "1:", "recommended"] in lines
    assert ["3", "1", "3", "33.3%", "1.06", "kFLOP", "61.1%", "in", "force"] in lines
    assert str(found) == found.render()


def test_nothing_to_convert():
    found = dry("xx")
    assert (found.engines, found.recommended) == ((), None)
    assert "none" in found.render()
    assert "Recommended minimum_segment_size: none" in found.render()


def test_sizes_come_from_the_samples_and_batches_are_one():
    model, records = chain("mmr")
    asked = PartitionOptions()
    plan = make_plan(model, judged(model), Content(), asked)
    spec = TensorSpec("x", T.FLOAT, ("batch", "width"))
    source = SourceModel(model, Signature((spec,), ()), "samples", samples=({"x": np.zeros((5, 8), np.float32)},))
    conversion = Conversion(
        source, model, records, BuildResult(plan, {}, ()), (), count_operations(model, source), None
    )
    assert isinstance(records[0], PassRecord)
    found = make_dry_run(conversion, asked)
    assert found.flops == 2 * 2 * 64 + 8
    assert make_dry_run(conversion, asked, sizes={"batch": 3}).flops == 3 * found.flops
    for wrong, message in (
        ({"sizes": {"batch": 0}}, "size of batch must be an integer of at least 1, not 0"),
        ({"sizes": {"batch": "8"}}, "not '8'"),
        ({"default_dim": True}, "default_dim must be an integer of at least 1"),
        ({"sizes": {"length": 8}}, "'length', which is no open dimension of the model: batch"),
    ):
        with pytest.raises(InvalidParameterError, match=message):
            make_dry_run(conversion, asked, **wrong)


def test_operations_in_words():
    assert [flops_text(n) for n in (0, 999, 1500, 7_732_461_448, 2 * 10**12)] == [
        "0 FLOP", "999 FLOP", "1.50 kFLOP", "7.73 GFLOP", "2.00 TFLOP",
    ]  # fmt: skip
