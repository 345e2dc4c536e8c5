"""passes.partition with a mock oracle on literal models."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from passes.base import PassError
from passes.graph_index import GraphIndex, iter_scopes
from passes.model import Model, from_proto
from passes.partition import PartitionOptions, propose
from passes.support import SupportMap, Verdict

ROOT = Path(__file__).resolve().parents[2]


def parse(text):
    return from_proto(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]>\n{text}'))


def judge(model, bad_ops=("Sin",), bad_nodes=()):
    """The mock oracle: denies operators and nodes by name."""
    return SupportMap.of(
        Verdict(n.name, n.op_type, n.op_type not in bad_ops and n.name not in bad_nodes, reason=f"no {n.op_type}")
        for _, graph in iter_scopes(model.proto)
        for n in graph.node
    )


def cut(model, minimum=3, *, absorb=True, **bad):
    result = propose(model, judge(model, **bad), PartitionOptions(minimum, absorb))
    assert_valid(model, result)
    return result


def assert_valid(model, result):
    """Each node once: in a segment, in a body of a segment's node, or native with a reason; quotients are acyclic."""
    inside = {name for s in result.segments for name in s.nodes}
    assert len(inside) == sum(len(s.nodes) for s in result.segments)
    native = [v.node for v in result.native]
    assert len(set(native)) == len(native)
    assert not inside & set(native)
    assert all(v.reason and not v.supported for v in result.native)
    expected = set()
    for scope, graph in iter_scopes(model.proto):
        if not any(entry.rpartition("/")[0] in inside for entry in scope):
            expected |= {n.name for n in graph.node}
    assert inside | set(native) == expected
    assert [s.name for s in result.segments] == [f"TRTEngineOp_{i:03d}" for i in range(len(result.segments))]
    graphs = dict(iter_scopes(model.proto))
    for scope, graph in graphs.items():
        owner = {n: s.name for s in result.segments if s.scope == scope for n in s.nodes}
        index = GraphIndex.of(graph)
        merged = {}
        for node, reads in zip(index.nodes, index.reads, strict=True):
            target = merged.setdefault(owner.get(node.name, node.name), helper.make_node("N", [], [], name="m"))
            target.input.extend(reads)
            target.output.extend(name for name in node.output if name)
        for node in merged.values():
            mine = set(node.output)
            kept = [name for name in node.input if name not in mine]
            del node.input[:]
            node.input.extend(kept)
        GraphIndex.of(helper.make_graph(list(merged.values()), "q", [], []))  # raises on a cycle


def test_one_segment_with_its_boundary_in_order():
    model = parse(
        "g (float[2] x, float[2] u) => (float[2] y, float[2] b1) <float[2] w = {1, 2}, float[2] v = {3, 4}> {"
        "[a] a1 = Add(u, w) [b] b1 = Mul(a1, x) [c] c1 = Sub(b1, v) [d] d1 = Sin(c1) "
        "[e] e1 = Add(c1, w) [f] y = Add(d1, e1) }"
    )
    result = cut(model)
    (segment,) = result.segments
    assert segment.nodes == ("a", "b", "c", "e")
    assert segment.inputs == ("u", "x")
    assert segment.weights == ("w", "v")
    assert segment.outputs == ("b1", "c1", "e1")
    assert segment.effective_nodes == 4
    assert [(v.node, v.rule) for v in result.native] == [("d", "parser"), ("f", "min_segment")]
    assert result.native[0].reason == "no Sin"
    assert "1 effective node," in result.native[1].reason
    assert result.coverage == pytest.approx(4 / 6)


def test_diamond_with_a_native_side():
    result = cut(
        parse(
            "g (float[2] x) => (float[2] y) { [a] a1 = Relu(x) [b] b1 = Abs(a1) [c] c1 = Sin(a1) [d] y = Add(b1, c1) }"
        ),
        1,
    )
    assert [s.nodes for s in result.segments] == [("a", "b"), ("d",)]


def test_cross_merge():
    model = parse(
        "g (float[2] x, float[2] u) => (float[2] y, float[2] z) {"
        "[a] a1 = Relu(x) [c] c1 = Relu(u) [p] p1 = Sin(a1) [q] q1 = Sin(c1) [b] y = Add(a1, q1) [d] z = Add(c1, p1) }"
    )
    for absorb in (True, False):
        assert len(cut(model, 1, absorb=absorb).segments) >= 2


def test_multi_output_nodes_keep_every_used_value():
    model = parse(
        "g (float[4] x, int64[2] s) => (float[2] y) {"
        "[a] a1 = Relu(x) [b] p, q = Split(a1, s) [c] p1 = Sin(p) [d] q1 = Neg(q) "
        "[e] q2 = Abs(q1) [f] y = Add(p1, q2) }"
    )
    (segment,) = cut(model).segments
    assert segment.outputs == ("p", "q2")


def test_dead_ends_are_no_segments():
    model = parse(
        "g (float[2] x) => (float[2] y) { [s] y = Sin(x) [a] a1 = Relu(x) [b] b1 = Abs(a1) [c] c1 = Neg(b1) }"
    )
    result = cut(model)
    assert result.segments == ()
    assert {v.rule for v in result.native} == {"parser", "dead_end"}


def test_constants_only_are_no_segment():
    model = parse(
        "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {"
        "[a] a1 = Relu(w) [b] b1 = Abs(a1) [c] c1 = Neg(b1) [s] s1 = Sin(c1) [t] y = Sin(s1) }"
    )
    result = cut(model)
    assert result.segments == ()
    assert [v.rule for v in result.native] == ["constant"] * 3 + ["parser"] * 2


def test_an_initializer_that_callers_may_replace_is_data():
    model = parse("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { [a] y = Add(x, w) }")
    (segment,) = cut(model, 1).segments
    assert (segment.inputs, segment.weights) == (("x", "w"), ())


class TestPassThrough:
    def test_does_not_count(self):
        result = cut(parse("g (float[2] x) => (float[2] y) { [a] a1 = Relu(x) [i] i1 = Identity(a1) [b] y = Abs(i1) }"))
        assert result.segments == ()
        assert result.effective_nodes == 2
        assert {v.rule for v in result.native} == {"min_segment"}

    def test_from_graph_input_to_graph_output_stays_native(self):
        model = parse(
            "g (float[2] x) => (float[2] y, float[2] p) {"
            "[p0] p1 = Identity(x) [p1] p = Identity(p1) [a] a1 = Relu(x) [b] b1 = Abs(a1) [c] y = Neg(b1) }"
        )
        result = cut(model)
        assert [s.nodes for s in result.segments] == [("a", "b", "c")]
        assert [(v.node, v.rule) for v in result.native] == [("p0", "pass_through"), ("p1", "pass_through")]
        assert result.coverage == 1.0

    def test_at_the_end_towards_native_nodes_is_given_back(self):
        model = parse(
            "g (float[2] x) => (float[2] y) {"
            "[a] a1 = Relu(x) [b] b1 = Abs(a1) [c] c1 = Neg(b1) [i] i1 = Identity(c1) "
            "[j] j1 = Identity(i1) [s] y = Sin(j1) }"
        )
        (segment,) = cut(model).segments
        assert (segment.nodes, segment.outputs) == (("a", "b", "c"), ("c1",))

    def test_at_a_graph_output_stays_inside(self):
        model = parse(
            "g (float[2] x) => (float[2] y) { [a] a1 = Relu(x) [b] b1 = Abs(a1) [c] c1 = Neg(b1) [i] y = Identity(c1) }"
        )
        (segment,) = cut(model).segments
        assert segment.nodes == ("a", "b", "c", "i")
        assert segment.effective_nodes == 3

    def test_between_effective_nodes_stays_inside(self):
        model = parse(
            "g (float[2] x) => (float[2] y) { [a] a1 = Relu(x) [i] i1 = Identity(a1) [b] b1 = Abs(i1) [c] y = Neg(b1) }"
        )
        (segment,) = cut(model).segments
        assert segment.nodes == ("a", "i", "b", "c")

    def test_a_cast_counts_only_when_it_casts(self):
        text = (
            "g (float[2] x) => (float[2] y) <float[2] a1, float[2] b1> {"
            "[a] a1 = Relu(x) [b] b1 = Cast<to = TYPE>(a1) [c] c1 = Cast<to = 1>(b1) [d] y = Neg(c1) }"
        )
        assert cut(parse(text.replace("TYPE", "1"))).effective_nodes == 2
        half = parse(text.replace("TYPE", "10").replace("float[2] b1", "float16[2] b1"))
        assert cut(half).effective_nodes == 4


CONTROL = """g (float[2] x, bool c) => (float[2] y) {
  [a] a1 = Relu(x) [s] s1 = Sin(a1) [b] b1 = Relu(s1)
  [if] y = If (c) <
    then_branch = t () => (float[2] t3) { [t1] t1 = Relu(b1) [t2] t2 = Abs(t1) [t3] t3 = Add(t2, a1) },
    else_branch = e () => (float[2] e1) { [e1] e1 = Neg(a1) }
  >
}"""


class TestControlFlow:
    def test_a_supported_node_goes_in_whole(self):
        result = cut(parse(CONTROL))
        (segment,) = [s for s in result.segments if "if" in s.nodes]
        assert segment.scope == ()
        assert set(segment.inputs) == {"s1", "c", "a1"}
        assert segment.effective_nodes == 6  # b, if and the four nodes of its bodies
        assert not {"t1", "t2", "t3", "e1"} & {v.node for v in result.native}
        assert result.effective_nodes == 8

    def test_a_native_node_is_cut_inside(self):
        result = cut(parse(CONTROL), bad_nodes=("if",))
        (segment,) = result.segments
        assert segment.scope == ("if/then_branch",)
        assert segment.nodes == ("t1", "t2", "t3")
        assert segment.inputs == ("b1", "a1")
        assert segment.outputs == ("t3",)
        assert {v.node: v.rule for v in result.native}["e1"] == "min_segment"

    def test_a_denied_node_in_a_body_keeps_the_whole_out(self):
        result = cut(parse(CONTROL), bad_nodes=("e1",))
        verdict = next(v for v in result.native if v.node == "if")
        assert verdict.reason == "node 'e1' in its body is not supported: no Neg"
        assert [s.scope for s in result.segments] == [("if/then_branch",)]

    def test_minus_one_leaves_the_main_graph_native(self):
        result = cut(parse(CONTROL), -1)
        assert [s.scope for s in result.segments] == [("if/then_branch",)]
        assert {v.node for v in result.native if v.rule == "main_graph_native"} == {"a", "s", "b", "if"}

    def test_a_native_node_that_captures_cannot_close_a_cycle(self):
        """a1 -> If (native, captures a1) -> z: a and z must not share a segment."""
        model = parse(
            "g (float[2] x, bool c) => (float[2] z) { [a] a1 = Relu(x) "
            "[if] y = If (c) <then_branch = t () => (float[2] t1) { [t1] t1 = Sin(a1) },"
            " else_branch = e () => (float[2] e1) { [e1] e1 = Sin(a1) }> [z] z = Add(a1, y) }"
        )
        assert [s.nodes for s in cut(model, 1).segments] == [("a",), ("z",)]

    def test_nested_bodies_are_reached(self):
        model = parse(
            "g (float[2] x, bool c) => (float[2] y) { [o] y = If (c) <"
            "then_branch = t () => (float[2] t1) { [i] t1 = If (c) <"
            " then_branch = tt () => (float[2] u3) { [u1] u1 = Relu(x) [u2] u2 = Neg(u1) [u3] u3 = Abs(u2) },"
            " else_branch = te () => (float[2] v1) { [v1] v1 = Sin(x) }> },"
            "else_branch = e () => (float[2] e1) { [e1] e1 = Sin(x) }> }"
        )
        (segment,) = cut(model).segments
        assert segment.scope == ("o/then_branch", "i/then_branch")

    def test_a_loop_body_without_data_from_outside_has_its_own_inputs(self):
        result = cut(loop_model(), 2, bad_nodes=("loop",))
        (segment,) = result.segments
        assert segment.scope == ("loop/body",)
        assert segment.inputs == ("v_in", "x")


def loop_model():
    body = onnx.parser.parse_graph(
        "body (int64 i, bool cond_in, float[2] v_in) => (bool cond_out, float[2] v_out) {"
        "[keep] cond_out = Identity(cond_in) [m] v1 = Mul(v_in, x) [n] v_out = Tanh(v1) }"
    )
    node = helper.make_node("Loop", ["trips", "", "x"], ["y"], name="loop", body=body)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value("x", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT, [2])],
        [onnx.numpy_helper.from_array(np.array(3), "trips")],
    )
    return from_proto(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]))


def test_nodes_without_a_verdict_stay_native():
    model = parse("g (float[2] x) => (float[2] y) { [a] y = Relu(x) }")
    result = propose(model, SupportMap.of([]), PartitionOptions(1))
    assert [(v.node, v.op_type, v.rule) for v in result.native] == [("a", "Relu", "unexamined")]


def test_operators_of_other_domains_are_told_by_domain():
    node = helper.make_node("Foo", ["x"], ["y"], name="n", domain="my.ops")
    result = propose(Model(helper.make_model(helper.make_graph([node], "g", [], []))), SupportMap.of([]))
    assert result.native[0].op_type == "my.ops::Foo"


def test_an_empty_graph_gives_an_empty_segmentation():
    result = propose(Model(helper.make_model(helper.make_graph([], "g", [], []))), SupportMap.of([]))
    assert (result.segments, result.native, result.coverage) == ((), (), 1.0)


@pytest.mark.parametrize("size", [0, -2])
def test_bad_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"-1 or at least 1, not {size}"):
        PartitionOptions(size)


def test_node_names_must_be_unique():
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name="same") for i in range(2)]
    model = Model(helper.make_model(helper.make_graph(nodes, "g", [], [])))
    with pytest.raises(PassError, match="'same' is used twice"):
        _ = propose(model, judge(model), PartitionOptions(1)), GraphIndex.of(model.proto.graph).position


TWO_SIZES = (
    "g (float[2] x) => (float[2] y, float[2] z) { [a] a1 = Relu(x) [s] s1 = Sin(a1) [b] b1 = Abs(s1) [c] c1 = Neg(b1) "
    "[t] t1 = Sin(c1) [d] d1 = Relu(t1) [u] u1 = Sin(d1) [e] y = Relu(u1) [f] z = Neg(y) }"
)


class TestMaxEngines:
    def limited(self, model, limit, minimum=1, **bad):
        result = propose(model, judge(model, **bad), PartitionOptions(minimum, max_engines=limit))
        assert len(result.segments) <= limit
        return result

    def test_the_largest_stay_and_the_first_of_equals(self):
        model = parse(TWO_SIZES)
        assert [s.nodes for s in self.limited(model, 4).segments] == [("a",), ("b", "c"), ("d",), ("e", "f")]
        result = self.limited(model, 3)
        assert [(s.name, s.nodes) for s in result.segments] == [
            ("TRTEngineOp_000", ("a",)), ("TRTEngineOp_001", ("b", "c")), ("TRTEngineOp_002", ("e", "f")),
        ]  # fmt: skip
        assert [s.nodes for s in self.limited(model, 1).segments] == [("b", "c")]
        assert_valid(model, self.limited(model, 1))

    def test_what_goes_has_its_reason_in_graph_order(self):
        result = self.limited(parse(TWO_SIZES), 2)
        assert [(v.node, v.rule) for v in result.native] == [
            ("a", "max_engines"), ("s", "parser"), ("t", "parser"), ("d", "max_engines"), ("u", "parser"),
        ]  # fmt: skip
        assert result.native[0].reason == "its segment has 1 effective node, and max_engines keeps the 2 largest"
        assert result.effective_nodes == 9
        assert result.coverage == pytest.approx(4 / 9)

    def test_none_at_all(self):
        result = self.limited(parse(TWO_SIZES), 0)
        assert (result.segments, result.coverage) == ((), 0.0)
        assert len(result.native) == 9

    def test_nodes_in_bodies_go_with_theirs(self):
        model = parse(CONTROL)
        full = propose(model, judge(model), PartitionOptions(1))
        assert {s.nodes for s in full.segments} == {("a",), ("b", "if")}
        assert [s.nodes for s in self.limited(model, 1).segments] == [("b", "if")]
        none = self.limited(model, 0)
        assert {v.node for v in none.native if v.rule == "max_engines"} == {"a", "b", "if", "t1", "t2", "t3", "e1"}
        assert none.effective_nodes == full.effective_nodes
        assert_valid(model, none)

    def test_it_counts_over_all_graphs(self):
        result = self.limited(parse(CONTROL), 1, bad_nodes=("if",))
        assert [(s.name, s.scope) for s in result.segments] == [("TRTEngineOp_000", ("if/then_branch",))]

    def test_a_negative_number_is_refused(self):
        with pytest.raises(ValueError, match="max_engines is None or at least 0, not -1"):
            PartitionOptions(max_engines=-1)


@st.composite
def models(draw):
    count = draw(st.integers(1, 20))
    nodes = []
    for i in range(count):
        sources = draw(st.lists(st.integers(max(0, i - 6), i), min_size=1, max_size=3))
        op = draw(st.sampled_from(["Sum", "Sum", "Sum", "Identity", "Sin"]))
        inputs = [f"v{s}" for s in (sources if op == "Sum" else sources[:1])]
        nodes.append(helper.make_node(op, inputs, [f"v{i + 1}"], name=f"n{i}"))
    value = helper.make_tensor_value_info
    outputs = sorted({count, *draw(st.sets(st.integers(1, count), max_size=2))})
    graph = helper.make_graph(nodes, "g", [value("v0", 1, [2])], [value(f"v{o}", 1, [2]) for o in outputs])
    return from_proto(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]))


@settings(max_examples=150)
@given(models(), st.integers(1, 4), st.booleans())
def test_random_models_are_cut_validly_and_stably(model, minimum, absorb):
    result = cut(model, minimum, absorb=absorb)
    assert all(s.effective_nodes >= minimum and s.inputs and s.outputs for s in result.segments)
    assert 0.0 <= result.coverage <= 1.0
    again = propose(model, judge(model), PartitionOptions(minimum, absorb))
    assert again == result


@settings(max_examples=100)
@given(models(), st.integers(0, 4))
def test_random_models_keep_their_largest_segments(model, limit):
    full = cut(model, 1)
    result = propose(model, judge(model), PartitionOptions(1, max_engines=limit))
    assert_valid(model, result)
    sizes = sorted((s.effective_nodes for s in full.segments), reverse=True)
    assert sorted((s.effective_nodes for s in result.segments), reverse=True) == sizes[:limit]
    assert {s.nodes for s in result.segments} <= {s.nodes for s in full.segments}
    assert result.effective_nodes == full.effective_nodes
    assert propose(model, judge(model), PartitionOptions(1, max_engines=max(len(sizes), limit))) == full


def test_the_result_does_not_depend_on_hash_seeds(tmp_path):
    path = tmp_path / "m.onnx"
    nodes = [
        helper.make_node("Sum", [f"v{max(0, i - s)}" for s in (0, i % 5, i % 3)], [f"v{i + 1}"], name=f"n{i}")
        for i in range(300)
    ]
    value = helper.make_tensor_value_info
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [value("v0", 1, [2])], [value("v300", 1, [2])])), path)
    code = (
        "import sys\nfrom passes.model import load\nfrom passes.partition import propose\n"
        "from passes.extract import Extractor\nfrom passes.support import SupportMap, Verdict\nm = load(sys.argv[1])\n"
        "s = propose(m, SupportMap.of(Verdict(f'n{i}', 'Sum', i % 5 > 0, reason='r') for i in range(300)))\n"
        "e = Extractor(m)\nprint(s, [e.extract(g).content_hash for g in s.segments])"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code, str(path)], env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "1")
    }  # fmt: skip
    assert len(results) == 1
