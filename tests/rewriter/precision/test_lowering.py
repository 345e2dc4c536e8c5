"""What a lowering keeps, absorbs after failed builds, and needs to know."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from passes.base import Change
from passes.extract import Extractor
from passes.model import from_proto
from passes.precision.ranges import RangeTable, TensorRange
from passes.precision.recipe import Recipe
from passes.support import Verdict
from rewriter.errors import ConversionError
from rewriter.precision.lowering import Lowering, find_needs


def fake_quant_net(lowest=0.0):
    """Conv - fake quantisation (256 levels of 1/32 from `lowest`) - Conv."""
    rng = np.random.default_rng(0)

    def scalar(name, value):
        return numpy_helper.from_array(np.float32(value), name)

    weights = [numpy_helper.from_array(rng.standard_normal((4, 4, 1, 1)).astype(np.float32), n) for n in ("w", "v")]
    step = 1 / 32
    constants = [scalar("inverse", 1 / step), scalar("step", step), scalar("low", lowest / step)]
    constants.append(scalar("high", lowest / step + 255))
    graph = h.make_graph(
        [
            h.make_node("Conv", ["x", "w"], ["c"], "first"),
            h.make_node("Mul", ["c", "inverse"], ["q1"], "scaled"),
            h.make_node("Round", ["q1"], ["q2"], "rounded"),
            h.make_node("Clip", ["q2", "low", "high"], ["q3"], "clipped"),
            h.make_node("Mul", ["q3", "step"], ["q"], "quantised"),
            h.make_node("Conv", ["q", "v"], ["y"], "second"),
        ],
        "g",
        [h.make_tensor_value_info("x", T.FLOAT, [1, 4, 8, 8])],
        [h.make_tensor_value_info("y", T.FLOAT, [1, 4, 8, 8])],
        [*weights, *constants],
        value_info=[h.make_tensor_value_info(n, T.FLOAT, [1, 4, 8, 8]) for n in ("c", "q1", "q2", "q3", "q")],
    )
    model = from_proto(h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10))
    names = [node.name for node in model.proto.graph.node]
    return Extractor(model).extract_nodes((), names, "TRTEngineOp_000")


def test_trained_ranges_are_no_needs():
    needs = find_needs([fake_quant_net()], Recipe.of("INT8"))
    assert needs.required == ("x",)
    assert needs.readers["x"] == ("first",)
    assert find_needs([fake_quant_net()], Recipe.of("FP16")).tensors == ()


def test_a_trained_range_that_gets_lost_leaves_its_reader_in_float():
    """The fake quantisation is kept out of INT8 (a failed build, say): the next Conv has no range any more."""
    lowering = Lowering(Recipe.of("INT8", "FP32"), RangeTable({"x": TensorRange(-1, 1)}))
    lowering = lowering.keeping({"quantised": "it failed"})
    lowered = lowering.apply(fake_quant_net())
    assert Change("skip-quantize", "second", "there is no range of its input 'q'") in lowered.changes
    quantised = [n.input[0] for n in lowered.segment.model.proto.graph.node if n.op_type == "QuantizeLinear"]
    assert quantised == ["x"]


def test_a_lowered_segment_has_a_hash_of_its_own():
    segment = fake_quant_net()
    table = RangeTable({"x": TensorRange(-1, 1)})
    lowered = [Lowering(Recipe.of(mode), table).apply(segment).segment for mode in ("FP32", "FP16", "BF16", "INT8")]
    assert lowered[0].content_hash == segment.content_hash
    assert len({s.content_hash for s in lowered}) == 4
    wider = Lowering(Recipe.of("INT8"), RangeTable({"x": TensorRange(-2, 2)})).apply(segment).segment
    assert wider.content_hash != lowered[3].content_hash
    assert {s.segment.name for s in lowered} == {"TRTEngineOp_000"}


def test_a_segment_that_stays_as_it_is_says_why():
    lowering = Lowering(Recipe.of("FP16", keep_nodes=(".",)))
    segment = fake_quant_net()
    lowered = lowering.apply(segment)
    assert lowered.segment is segment
    assert {c.target for c in lowered.changes if c.rule == "keep-user"} >= {"first", "second"}


def blamed(*names):
    return [Verdict(name, "Conv", False, "build", "TensorRT cannot build it: no") for name in names]


def test_a_failed_node_goes_up_step_by_step():
    lowering = Lowering(Recipe.of("INT8"))
    one, denials = lowering.absorb(blamed("first//quantize", "first"))
    assert (one.recipe.unquantized, one.recipe.kept, denials) == ({"first"}, frozenset(), [])
    two, denials = one.absorb(blamed("first//cast"))
    assert (two.recipe.kept, denials) == ({"first"}, [])
    assert two.reasons == {"first": "in INT8+FP16 TensorRT cannot build it: no"}
    three, denials = two.absorb(blamed("first", "first//cast"))
    assert three == two
    assert [denial.node for denial in denials] == ["first"]


def test_without_lowering_a_failed_node_is_denied_at_once():
    same, denials = Lowering().absorb(blamed("first"))
    assert same == Lowering()
    assert [(denial.node, denial.supported) for denial in denials] == [("first", False)]


@pytest.mark.parametrize(
    "apply", [lambda lowering, s: lowering.apply(s), lambda lowering, s: find_needs([s], lowering.recipe)]
)
def test_a_refused_range_is_an_error_of_ours(apply):
    lowering = Lowering(Recipe.of("INT8", asymmetric="refuse"), RangeTable({"x": TensorRange(-1, 1)}))
    with pytest.raises(ConversionError, match=r"TRTEngineOp_000 cannot be lowered to INT8\+FP16: .*quantised"):
        apply(lowering, fake_quant_net(lowest=-1.0))
