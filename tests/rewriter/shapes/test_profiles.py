"""Shapes seen at segment boundaries, and the profiles made of them."""

import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, parser

from passes import model as models
from passes.extract import Extractor
from passes.segments import Segment, Segmentation, TensorSpec
from rewriter.backends.base import InputProfile
from rewriter.errors import ConversionError, InputError, InvalidParameterError, SourceError
from rewriter.params import supported_profile_strategies
from rewriter.shapes.harvest import Observations, Observed, SegmentObservations, _Probe, _read_trace
from rewriter.shapes.profiles import (
    harvest,
    make_profiles,
    shape_tensors,
    static_profiles,
)

MAIN = """
<ir_version: 10, opset_import: ["": 20]>
g (float[N, 4] x, float[M, 4] w) => (float[K, 2] z)
<float[N, 4] a, float[M, 4] v, float[P, 4] b, float[K, 2] c>
{
    a = Relu(x)
    v = Neg(w)
    b = Concat<axis = 0>(a, v)
    dims = Shape(b)
    two = Constant<value = int64 {2}>()
    width = Constant<value = int64[1] {2}>()
    zero = Constant<value = int64[1] {0}>()
    rows = Gather(dims, zero)
    twice = Mul(rows, two)
    target = Concat<axis = 0>(twice, width)
    c = Reshape(b, target)
    z = Neg(c)
}
"""

LOOP = """
<ir_version: 10, opset_import: ["": 20]>
g (float[N, 4] x, int64 trip, bool flag) => (float[N, 4] y, float[M, 4] z)
<float[N, 4] outer>
{
    cond = Constant<value = bool {1}>()
    outer = Identity(x)
    y = Loop<body = body (int64 i, bool go, float[N, 4] state) => (bool go_out, float[N, 4] state_out)
        <float[N, 4] sum, float[N, 8] wide>
        {
            go_out = Identity(go)
            sum = Add(state, outer)
            wide = Concat<axis = 1>(sum, outer)
            active = Relu(wide)
            start = Constant<value = int64[1] {0}>()
            end = Constant<value = int64[1] {4}>()
            axis = Constant<value = int64[1] {1}>()
            state_out = Slice(active, start, end, axis)
        }>(trip, cond, x)
    z = If<
        then_branch = yes () => (float[M, 4] yes_out) { both = Concat<axis = 0>(outer, y)
            big = Relu(both)
            yes_out = Neg(big) },
        else_branch = no () => (float[M, 4] no_out) { small = Relu(outer)
            no_out = Neg(small) }>(flag)
}
"""


def named(text):
    """A parsed model in the canonical form: unique node names, constants as initializers."""
    proto = parser.parse_model(text)

    def walk(graph, prefix):
        kept = []
        for node in graph.node:
            if node.op_type == "Constant":
                tensor = node.attribute[0].t
                tensor.name = node.output[0]
                graph.initializer.append(tensor)
                continue
            node.name = f"{prefix}{node.op_type}_{node.output[0]}"
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    walk(attribute.g, f"{node.name}.{attribute.name}.")
            kept.append(node)
        del graph.node[:]
        graph.node.extend(kept)

    walk(proto.graph, "")
    return models.Model(proto)


def cut(model, name, scope, nodes):
    """A segment of the named nodes."""
    inputs, weights, outputs = Extractor(model).boundary(scope, nodes)
    return Segment(name, scope, tuple(nodes), inputs, weights, outputs, len(nodes))


def segmentation(*segments):
    return Segmentation(segments, (), sum(len(s.nodes) for s in segments))


def feeds(n, m):
    return {"x": np.ones((n, 4), np.float32), "w": np.ones((m, 4), np.float32)}


@pytest.fixture
def main():
    return named(MAIN)


@pytest.fixture
def loop():
    return named(LOOP)


def loop_feeds(n, trip, flag):
    return {"x": np.ones((n, 4), np.float32), "trip": np.array(trip), "flag": np.array(flag)}


def seen_by(sets, counts=None):
    return Observations({"S": SegmentObservations(tuple(sets), tuple(counts or [1] * len(sets)))}, len(sets))


def test_main_graph_boundaries_are_seen_with_shapes_and_shape_values(main):
    tail = cut(main, "S", (), ["Reshape_c", "Neg_z"])
    assert tail.inputs == ("b", "target")
    found = harvest(main, segmentation(tail), [feeds(1, 2), feeds(3, 2), feeds(1, 2)])
    assert found.samples == 3
    assert found.segments["S"].sets == (
        {"b": Observed((3, 4)), "target": Observed((2,))},
        {"b": Observed((5, 4)), "target": Observed((2,))},
    )
    assert found.segments["S"].counts == (2, 1)


def test_values_are_kept_where_the_type_says_small_integers(main):
    proto = main.copy_proto()
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("target", TensorProto.INT64, [2]))
    model = models.Model(proto)
    tail = cut(model, "S", (), ["Reshape_c", "Neg_z"])
    found = harvest(model, segmentation(tail), [feeds(1, 2), feeds(3, 2)])
    assert [s["target"].values for s in found.segments["S"].sets] == [(6, 2), (10, 2)]
    extracted = Extractor(model).extract(tail)
    assert shape_tensors(extracted) == ("target",)
    assert static_profiles(extracted) is None
    (profile,) = make_profiles(extracted, found)
    assert profile["target"] == InputProfile((6, 2), (10, 2), (10, 2), True)
    assert profile["b"] == InputProfile((3, 4), (5, 4), (5, 4))


def test_a_model_that_onnx_runtime_refuses_is_told():
    model = named(
        '<ir_version: 10, opset_import: ["": 20, "other": 1]> g (float[1] x) => (float[1] y) '
        "{ t = other.F(x) y = Relu(t) }"
    )
    part = cut(model, "S", (), ["Relu_y"])
    with pytest.raises(SourceError, match=r"ONNX Runtime refuses the model: .*other:F"):
        harvest(model, segmentation(part), [{"x": np.zeros(1, np.float32)}])


def test_inputs_of_the_model_need_no_run(main, monkeypatch):
    """A model that is one segment: everything is read off the samples, and no session is made."""
    monkeypatch.setattr("rewriter.shapes.harvest.open_native", None)
    whole = cut(main, "S", (), [n.name for n in main.proto.graph.node])
    found = harvest(main, segmentation(whole), [feeds(2, 5), feeds(1, 1)])
    assert found.segments["S"].sets == (
        {"x": Observed((2, 4)), "w": Observed((5, 4))},
        {"x": Observed((1, 4)), "w": Observed((1, 4))},
    )


def test_values_of_inputs_are_read_off_the_samples(monkeypatch):
    monkeypatch.setattr("rewriter.shapes.harvest.open_native", None)
    model = named(
        '<ir_version: 10, opset_import: ["": 20]> '
        "g (float[N] x, int64[2] size) => (float[A, B] y) { t = Relu(x) y = Reshape(t, size) }"
    )
    whole = Extractor(model).extract(cut(model, "S", (), ["Relu_t", "Reshape_y"]))
    samples = [{"x": np.ones(n, np.float32), "size": np.array([2, n // 2])} for n in (4, 8)]
    (profile,) = make_profiles(whole, harvest(model, segmentation(whole.segment), samples))
    assert profile["size"] == InputProfile((2, 2), (2, 4), (2, 4), True)


def test_only_what_leads_to_a_boundary_runs(main):
    """The last node fails on this sample; the segment before it is seen all the same."""
    bad = {"x": np.ones((1, 4), np.float32), "w": np.ones((2, 4), np.float32)}
    proto = main.copy_proto()
    width = next(t for t in proto.graph.initializer if t.name == "width")
    width.CopyFrom(onnx.numpy_helper.from_array(np.array([5]), "width"))
    model = models.Model(proto)
    found = harvest(model, segmentation(cut(model, "S", (), ["Mul_twice"])), [bad])
    assert found.segments["S"].sets[0]["rows"].shape == (1,)
    with pytest.raises(ConversionError, match="sample 0: the native model fails"):
        harvest(model, segmentation(cut(model, "S", (), ["Neg_z"])), [bad])


def test_weights_that_lead_nowhere_are_left_out():
    proto = named(
        '<ir_version: 10, opset_import: ["": 20]> g (float[N, 4] x) => (float[N, 4] y) '
        "{ a = Add(x, near) b = Relu(a) y = Add(b, far) }"
    ).proto
    for name in ("near", "far"):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 4), np.float32), name))
    model = models.Model(proto)
    probe = _Probe(model, [cut(model, "S", (), ["Relu_b"])])
    assert [t.name for t in probe._model.proto.graph.initializer] == ["near"]
    assert [n.op_type for n in probe._model.proto.graph.node] == ["Add", "Shape"]


def test_graph_inputs_and_outputs_are_boundaries_too(main):
    whole = cut(main, "S", (), [n.name for n in main.proto.graph.node])
    found = harvest(main, segmentation(whole), [feeds(2, 5)])
    assert found.segments["S"].sets == ({"x": Observed((2, 4)), "w": Observed((5, 4))},)


def test_the_model_is_left_alone(main):
    before = main.proto.SerializeToString()
    harvest(main, segmentation(cut(main, "S", (), ["Relu_a", "Neg_v"])), [feeds(1, 1)])
    assert main.proto.SerializeToString() == before


def test_no_sample_is_an_error(main):
    with pytest.raises(InputError, match="yielded nothing"):
        harvest(main, segmentation(cut(main, "S", (), ["Relu_a"])), [])


def test_a_failing_sample_is_named(main):
    bad = {"x": np.ones((1, 4), np.float32), "w": np.ones((1, 5), np.float32)}
    with pytest.raises(ConversionError, match=r"sample 1: .*w \[1, 5\]"):
        harvest(main, segmentation(cut(main, "S", (), ["Neg_z"])), [feeds(1, 1), bad])


def test_large_weights_are_read_where_they_lie(tmp_path):
    head = '<ir_version: 10, opset_import: ["": 20]> g (float[N, 40] x) => (float[N, 50] y)'
    proto = named(head + "{ t = MatMul(x, w) y = Relu(t) }").proto
    weights = np.ones((40, 50), np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    model = models.spool(models.from_proto(proto), tmp_path / "weights")
    assert list(model.weights) == ["w"]
    part = cut(model, "S", (), ["Relu_y"])
    found = harvest(model, segmentation(part), [{"x": np.ones((n, 40), np.float32)} for n in (1, 6)])
    assert found.segments["S"].sets == ({"t": Observed((1, 50))}, {"t": Observed((6, 50))})


def test_loop_bodies_are_seen_once_for_every_iteration(loop):
    node = "Loop_y"
    prefix = f"{node}.body."
    inner = cut(loop, "S", (f"{node}/body",), [f"{prefix}Add_sum", f"{prefix}Concat_wide", f"{prefix}Relu_active"])
    assert inner.inputs == ("state", "outer")
    found = harvest(loop, segmentation(inner), [loop_feeds(2, 3, True), loop_feeds(5, 1, False)])
    assert found.segments["S"].sets == (
        {"state": Observed((2, 4)), "outer": Observed((2, 4))},
        {"state": Observed((5, 4)), "outer": Observed((5, 4))},
    )
    assert found.segments["S"].counts == (3, 1)


def test_only_the_branch_that_ran_is_seen(loop):
    yes = cut(loop, "Y", ("If_z/then_branch",), ["If_z.then_branch.Relu_big", "If_z.then_branch.Neg_yes_out"])
    no = cut(loop, "N", ("If_z/else_branch",), ["If_z.else_branch.Relu_small", "If_z.else_branch.Neg_no_out"])
    found = harvest(loop, segmentation(yes, no), [loop_feeds(2, 1, True), loop_feeds(3, 1, True)])
    assert [s["both"].shape for s in found.segments["Y"].sets] == [(4, 4), (6, 4)]
    assert found.segments["N"] == SegmentObservations(reason=found.segments["N"].reason)
    assert "not entered" in found.segments["N"].reason
    assert "not entered" in make_profiles(Extractor(loop).extract(no), found)


def test_a_main_segment_beside_a_body_segment(loop):
    first = cut(loop, "A", (), ["Identity_outer"])
    inner = cut(loop, "B", ("Loop_y/body",), ["Loop_y.body.Relu_active"])
    found = harvest(loop, segmentation(first, inner), [loop_feeds(2, 2, True)])
    assert found.segments["A"].sets == ({"x": Observed((2, 4))},)
    assert found.segments["B"].sets == ({"wide": Observed((2, 8))},)
    assert found.segments["B"].counts == (2,)


NESTED = """
<ir_version: 10, opset_import: ["": 20]>
g (float[N, 4] x, int64 outer, int64 inner, bool flag) => (float[M, 4] y)
{
    cond = Constant<value = bool {1}>()
    big = Concat<axis = 0>(x, x)
    y = Loop<body = a (int64 i, bool go, float[K, 4] state) => (bool go_out, float[L, 4] state_out)
        {
            go_out = Identity(go)
            state_out = If<
                then_branch = t () => (float[P, 4] t_out) {
                    t_out = Loop<body = b (int64 j, bool on, float[Q, 4] deep) => (bool on_out, float[R, 4] deep_out) {
                        on_out = Identity(on)
                        sum = Abs(deep)
                        deep_out = Concat<axis = 0>(sum, x) }>(inner, cond, state) },
                else_branch = e () => (float[S, 4] e_out) {
                    less = Neg(state)
                    one = Constant<value = int64[1] {1}>()
                    end = Constant<value = int64[1] {9}>()
                    zero = Constant<value = int64[1] {0}>()
                    e_out = Slice(less, one, end, zero) }>(flag)
        }>(outer, cond, big)
}
"""
LOOP_A, IF_A = "Loop_y/body", "Loop_y.body.If_state_out"
DEEP = (LOOP_A, f"{IF_A}/then_branch", f"{IF_A}.then_branch.Loop_t_out/body")
DEEP_PREFIX = f"{IF_A}.then_branch.Loop_t_out.body."


def nested_feeds(n, outer, inner, flag):
    return {
        "x": np.ones((n, 4), np.float32),
        "outer": np.array(outer),
        "inner": np.array(inner),
        "flag": np.array(flag),
    }


def test_bodies_inside_bodies_are_seen():
    """The state grows by x with each inner iteration; x itself comes from the main graph."""
    model = named(NESTED)
    deep = cut(model, "S", DEEP, [f"{DEEP_PREFIX}Abs_sum", f"{DEEP_PREFIX}Concat_deep_out"])
    assert deep.inputs == ("deep", "x")
    less = cut(model, "E", (LOOP_A, f"{IF_A}/else_branch"), [f"{IF_A}.else_branch.Neg_less"])
    inputs = [nested_feeds(1, 2, 2, True), nested_feeds(3, 2, 0, False), nested_feeds(1, 1, 1, True)]
    found = harvest(model, segmentation(deep, less), inputs)
    assert [s["deep"].shape[0] for s in found.segments["S"].sets] == [2, 3, 4, 5]
    assert {s["x"].shape for s in found.segments["S"].sets} == {(1, 4)}
    assert found.segments["S"].counts == (2, 1, 1, 1)
    assert [s["state"].shape[0] for s in found.segments["E"].sets] == [6, 5]
    never = harvest(model, segmentation(deep, less), [nested_feeds(2, 0, 5, True)])
    assert {s.reason for s in never.segments.values()} == {
        "its branch or loop body was not entered by any sample input"
    }


def test_only_the_loop_that_is_watched_runs():
    """What follows the loop is not needed for it, and what it reads is."""
    model = named(NESTED)
    deep = cut(model, "S", DEEP, [f"{DEEP_PREFIX}Abs_sum"])
    kept = [node.op_type for node in _Probe(model, [deep])._model.proto.graph.node]
    assert kept == ["Concat", "Loop"]


def test_many_iterations_are_counted(loop):
    inner = cut(loop, "S", ("Loop_y/body",), ["Loop_y.body.Relu_active"])
    found = harvest(loop, segmentation(inner), [loop_feeds(2, 5000, True), loop_feeds(3, 70, True)])
    assert found.segments["S"].counts == (5000, 70)


def test_a_record_that_ends_too_early_is_a_reason(loop, monkeypatch):
    """ONNX Runtime's record holds a million events; segments of the main graph do without it."""
    monkeypatch.setattr("rewriter.shapes.harvest._read_trace", lambda path, runs: None)
    inner = cut(loop, "S", ("Loop_y/body",), ["Loop_y.body.Relu_active"])
    outer = cut(loop, "M", (), ["Identity_outer"])
    found = harvest(loop, segmentation(outer, inner), [loop_feeds(2, 5, True)])
    assert found.segments["M"].sets == ({"x": Observed((2, 4))},)
    assert "ran too long" in found.segments["S"].reason
    assert "ran too long" in make_profiles(Extractor(loop).extract(inner), found)


def test_a_record_of_fewer_runs_is_none(tmp_path):
    run = {"cat": "Session", "name": "model_run"}
    (tmp_path / "trace").write_text(json.dumps([run, run, {"cat": "Node", "name": "a_kernel_time"}]))
    assert _read_trace(tmp_path / "trace", 3) is None
    assert _read_trace(tmp_path / "trace", 2) == [{}, {}]


def test_elements_that_decide_shapes_inside_a_body_are_a_reason(loop):
    """The record has shapes only, and TensorRT wants a range of their values."""
    proto = loop.copy_proto()
    body = proto.graph.node[1].attribute[0].g
    body.node[-1].input[1] = "i_vector"
    body.node.insert(0, onnx.helper.make_node("Unsqueeze", ["i", "axis0"], ["i_vector"], name="Unsqueeze_i"))
    body.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "axis0"))
    model = models.Model(proto)
    part = cut(model, "S", ("Loop_y/body",), ["Loop_y.body.Relu_active", "Loop_y.body.Slice_state_out"])
    extracted = Extractor(model, {"i_vector": TensorSpec("i_vector", TensorProto.INT64, (1,))}).extract(part)
    assert shape_tensors(extracted) == ("i_vector",)
    found = harvest(model, segmentation(part), [loop_feeds(2, 1, True)])
    assert found.segments["S"].counts == (1,)
    assert make_profiles(extracted, found) == (
        "the elements of 'i_vector' decide shapes in it, and inside 'Loop_y/body' they cannot be observed"
    )


def test_the_named_sample_is_the_optimum(main, pair):
    part = cut(main, "S", (), ["Relu_a", "Neg_v", "Concat_b"])
    found = harvest(main, segmentation(part), [feeds(1, 1), feeds(3, 2), feeds(9, 9), feeds(9, 9)], {1})
    assert found.segments["S"].optimum == 1
    (profile,) = make_profiles(pair, found)
    assert profile["x"] == InputProfile((1, 4), (3, 4), (9, 4))
    groups = make_profiles(pair, found, "ImplicitBatchModeCompatible")
    assert [p["x"] for p in groups] == [InputProfile((1, 4), (3, 4), (9, 4))]


def test_inside_a_loop_the_first_execution_of_the_named_sample_is(loop):
    inner = cut(loop, "S", ("Loop_y/body",), ["Loop_y.body.Relu_active"])
    found = harvest(loop, segmentation(inner), [loop_feeds(n, 3, True) for n in (2, 5, 7)], {1})
    assert found.segments["S"].sets[found.segments["S"].optimum]["wide"].shape == (5, 8)


def test_implicit_batch_has_a_profile_for_each_of_the_other_sizes():
    model = named('<ir_version: 10, opset_import: ["": 20]> g (float[N, L] x) => (float[N, L] y) { y = Relu(x) }')
    part = Extractor(model).extract(cut(model, "S", (), ["Relu_y"]))
    sets = [{"x": Observed(shape)} for shape in ((4, 5), (2, 7), (8, 5))]
    found = make_profiles(part, seen_by(sets), "ImplicitBatchModeCompatible")
    assert [p["x"] for p in found] == [InputProfile((1, 5), (8, 5), (8, 5)), InputProfile((1, 7), (2, 7), (2, 7))]


def test_missing_optional_inputs_do_not_shift_the_record():
    model = named(
        """
        <ir_version: 10, opset_import: ["": 20]>
        g (float[N, 4] x, bool flag) => (float[A, B] z)
        {
            z = If<
                then_branch = yes () => (float[A, B] yes_out) {
                    high = ReduceMax<keepdims = 0>(x)
                    clipped = Clip(x, , high)
                    yes_out = Neg(clipped) },
                else_branch = no () => (float[A, B] no_out) { no_out = Neg(x) }>(flag)
        }
        """
    )
    part = cut(model, "S", ("If_z/then_branch",), ["If_z.then_branch.Clip_clipped", "If_z.then_branch.Neg_yes_out"])
    found = harvest(model, segmentation(part), [{"x": np.ones((3, 4), np.float32), "flag": np.array(True)}])
    assert found.segments["S"].sets == ({"x": Observed((3, 4)), "high": Observed(())},)


@pytest.fixture
def pair(main):
    """A segment with the inputs x and w."""
    return Extractor(main).extract(cut(main, "S", (), ["Relu_a", "Neg_v", "Concat_b"]))


def shapes(x, w=(1, 4)):
    return {"x": Observed(x), "w": Observed(w)}


def test_range_spans_all_and_is_tuned_for_the_most_frequent(pair):
    (profile,) = make_profiles(pair, seen_by([shapes((8, 4)), shapes((2, 4), (5, 4)), shapes((4, 4))], [1, 3, 1]))
    assert profile == {
        "x": InputProfile((2, 4), (2, 4), (8, 4)),
        "w": InputProfile((1, 4), (5, 4), (5, 4)),
    }


def test_range_prefers_the_largest_of_equally_frequent(pair):
    (profile,) = make_profiles(pair, seen_by([shapes((2, 4)), shapes((8, 4)), shapes((4, 4))]))
    assert profile["x"].optimum == (8, 4)


def test_optimal_gives_one_exact_profile_for_each_set(pair):
    found = make_profiles(pair, seen_by([shapes((8, 4)), shapes((2, 4))]), "Optimal")
    assert [p["x"] for p in found] == [InputProfile((8, 4), (8, 4), (8, 4)), InputProfile((2, 4), (2, 4), (2, 4))]


def test_range_and_optimal_does_not_repeat_itself(pair):
    assert len(make_profiles(pair, seen_by([shapes((8, 4)), shapes((2, 4))]), "Range+Optimal")) == 3
    assert len(make_profiles(pair, seen_by([shapes((8, 4))]), "Range+Optimal")) == 1


def test_implicit_batch_begins_at_one(pair):
    (profile,) = make_profiles(pair, seen_by([shapes((8, 4), (6, 4))]), "ImplicitBatchModeCompatible")
    assert profile == {"x": InputProfile((1, 4), (8, 4), (8, 4)), "w": InputProfile((1, 4), (6, 4), (6, 4))}


def test_empty_tensors_keep_their_zero(pair):
    for strategy in ("Range", "ImplicitBatchModeCompatible"):
        (profile,) = make_profiles(pair, seen_by([shapes((0, 4)), shapes((3, 4))]), strategy)
        assert profile["x"].minimum == (0, 4)


def test_a_changing_rank_is_a_reason(pair):
    assert "rank of 'x' changes" in make_profiles(pair, seen_by([shapes((2, 4)), shapes((2, 4, 1))]))


def test_an_unknown_segment_is_a_reason(pair):
    assert "not watched" in make_profiles(pair, Observations({}, 1))


def test_strategies_are_listed_and_unknown_ones_refused(pair):
    assert supported_profile_strategies() == ["Range", "Optimal", "Range+Optimal", "ImplicitBatchModeCompatible"]
    with pytest.raises(InvalidParameterError, match=r"one of Range, Optimal.*'range'"):
        make_profiles(pair, seen_by([shapes((1, 4))]), "range")


def test_static_profiles_need_fixed_shapes(pair):
    assert static_profiles(pair) is None
    model = named('<ir_version: 10, opset_import: ["": 20]> g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }')
    fixed = Extractor(model).extract(cut(model, "S", (), ["Relu_y"]))
    assert static_profiles(fixed) == ({"x": InputProfile((2, 3), (2, 3), (2, 3))},)


def test_elements_behind_a_shape_node_are_no_shape_tensors():
    model = named(
        """
        <ir_version: 10, opset_import: ["": 20]>
        g (int64[3] ids, int64[2] wanted, int64[3] index, float[6] x) => (float[A, B] y, int64[3] z)
        {
            size = Shape(ids)
            both = Mul(wanted, size)
            y = Reshape(x, both)
            z = Add(ids, index)
        }
        """
    )
    extracted = Extractor(model).extract(cut(model, "S", (), [n.name for n in model.proto.graph.node]))
    assert shape_tensors(extracted) == ("wanted",)


@pytest.mark.parametrize("window", ["BlackmanWindow", "HammingWindow", "HannWindow"])
def test_the_length_of_a_window_is_a_shape(window):
    model = named(f'<ir_version: 10, opset_import: ["": 20]> g (int32 size) => (float[N] y) {{ y = {window}(size) }}')
    assert shape_tensors(Extractor(model).extract(cut(model, "S", (), [f"{window}_y"]))) == ("size",)


def test_shape_tensors_are_found_through_bodies(loop):
    whole = Extractor(loop).extract(cut(loop, "S", (), ["Identity_outer", "Loop_y"]))
    assert shape_tensors(whole) == ("trip",)


def test_values_of_changing_length_become_dims(main):
    proto = main.copy_proto()
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("target", TensorProto.INT64, [2]))
    extracted = Extractor(models.Model(proto)).extract(cut(main, "S", (), ["Reshape_c", "Neg_z"]))
    sets = [
        {"b": Observed((3, 4)), "target": Observed((2,), (6, 2))},
        {"b": Observed((3, 4)), "target": Observed((3,), (3, 2, 2))},
    ]
    (profile,) = make_profiles(extracted, seen_by(sets))
    assert profile["target"] == InputProfile((2,), (3,), (3,))


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6, unique=True),
    strategy=st.sampled_from(supported_profile_strategies()),
)
def test_every_seen_set_fits_a_profile_and_bounds_are_ordered(sizes, strategy):
    main = named(MAIN)
    part = Extractor(main).extract(cut(main, "S", (), ["Relu_a", "Neg_v", "Concat_b"]))
    found = make_profiles(part, seen_by([shapes((n, 4), (m, 4)) for n, m in sizes]), strategy)
    for profile in found:
        for item in profile.values():
            assert all(a <= b <= c for a, b, c in zip(item.minimum, item.optimum, item.maximum, strict=True))
    for n, m in sizes:
        assert any(
            p["x"].minimum[0] <= n <= p["x"].maximum[0] and p["w"].minimum[0] <= m <= p["w"].maximum[0] for p in found
        )
