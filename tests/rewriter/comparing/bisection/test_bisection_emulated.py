"""native -> emulated: the node that lower precision breaks is found, told apart from what adds up, and kept."""

import math
import shlex

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from passes.precision.ranges import RangeTable, TensorRange
from rewriter.comparing.bisection import bisect
from rewriter.errors import ArtifactError, InputError, InvalidParameterError
from tests.rewriter.comparing.bisection.bisection_models import make_artifact, parse

RANDOM = np.random.default_rng(7)
X = RANDOM.standard_normal((3, 8)).astype(np.float32)
W = RANDOM.standard_normal((8, 5)).astype(np.float32)
#: d overflows in float16: (1000 tanh)^2
OVERFLOW = """g (float[batch, 8] x) => (float[batch, 5] y, float[batch, 5] z) {
    a = MatMul(x, w) b = Tanh(a) c = Mul(b, big) d = Mul(c, c) e = Div(d, huge) f = Relu(e) y = Tanh(f) z = Sin(a) }"""
WEIGHTS = {"w": W, "big": np.float32(1000), "huge": np.float32(5e4)}


def overflow(folder, *cuts):
    return make_artifact(parse(OVERFLOW, **WEIGHTS), folder, "FP16", *cuts)


def test_the_node_that_overflows_is_found_and_kept(tmp_path):
    artifact = overflow(tmp_path / "out", ["n_a", "n_b"], ["n_d", "n_e", "n_f"])
    found = bisect(artifact, [X], 5e-3)
    assert (found.segment, found.node, found.op_type, found.value) == ("TRTEngineOp_001", "n_d", "Mul", "d")
    assert set(found.outputs) == {"y"}
    assert math.isinf(found.difference)
    assert found.before < 5e-3
    assert math.isinf(found.own)
    assert not found.accumulated
    assert found.option == "--keep-nodes '^n_d$' --keep-nodes '^n_e$'"
    assert any("keeping only 'n_d' leaves" in note for note in found.notes)  # e would read an infinity
    assert found.passed
    assert found.verified < 5e-3


def test_the_option_makes_the_next_conversion_pass(tmp_path):
    artifact = overflow(tmp_path / "out", ["n_a", "n_b"], ["n_d", "n_e", "n_f"])
    found = bisect(artifact.path, [X], 5e-3)
    kept = tuple(word for word in shlex.split(found.option) if word != "--keep-nodes")
    cuts = ["n_a", "n_b"], ["n_d", "n_e", "n_f"]
    again = make_artifact(parse(OVERFLOW, **WEIGHTS), tmp_path / "again", "FP16", *cuts, keep_nodes=kept)
    passed = bisect(again, [X], 5e-3)
    assert not passed.outputs
    assert not passed.found
    assert "no output is beyond its tolerance" in passed.text()


def test_within_the_tolerance_nothing_is_looked_for(tmp_path):
    found = bisect(overflow(tmp_path / "out", ["n_a", "n_b"]), [X], {"z": 5e-3})
    assert (found.outputs, found.node, found.option) == ({}, "", "")


def test_a_value_that_recovers_is_not_the_answer(tmp_path):
    # p overflows in float16 and is clipped, which does no harm; v overflows and stays.
    proto = parse(
        """g (float[batch, 8] x) => (float[batch, 8] y) {
        n = Abs(x) o = Add(n, one) s = Mul(o, high) p = Mul(s, s) q = Add(p, x) r = Clip(q, zero, one)
        u = Tanh(x) t = Mul(u, high) v = Mul(t, high) w = Sin(r) y = Add(v, w) }""",
        zero=np.float32(0),
        one=np.float32(1),
        high=np.float32(300),
    )
    cut = [node.name for node in proto.graph.node]
    found = bisect(make_artifact(proto, tmp_path / "out", "FP16", cut), [X], 1e-2)
    assert found.node == "n_v"


def test_a_native_node_that_magnifies_is_told_with_the_largest_contribution(tmp_path):
    # The difference of two nearly equal values: the rounding of a is magnified by a native Sub.
    proto = parse(
        "g (float[batch, 8] x) => (float[batch, 8] y) { a = Tanh(x) r = Relu(x) b = Tanh(x) c = Sub(a, b) "
        " y = Add(c, tiny) }",
        tiny=np.float32(1e-6),
    )
    found = bisect(make_artifact(proto, tmp_path / "out", "FP16", ["n_a"]), [X], 1e-2)
    assert (found.segment, found.node) == (None, "n_c")
    assert found.accumulated
    assert found.own == 0.0
    assert (found.contribution.node, found.contribution.segment) == ("n_a", "TRTEngineOp_000")
    assert found.contribution.own < 1e-3
    assert any("in no engine: it magnifies" in note for note in found.notes)
    assert (found.option, found.passed) == ("--keep-nodes '^n_a$'", True)
    assert "n_a" in found.text()


def test_what_adds_up_gets_as_many_nodes_as_it_needs(tmp_path):
    steps = " ".join(f"a{i + 1} = Tanh(b{i}) b{i + 1} = Mul(a{i + 1}, grow)" for i in range(12))
    proto = parse(f"g (float[batch, 8] b0) => (float[batch, 8] b12) {{ {steps} }}", grow=np.float32(1.07))
    names = [node.name for node in proto.graph.node]
    half = len(names) // 2
    artifact = make_artifact(proto, tmp_path / "out", "FP16", names[:half], names[half:])
    everything = bisect(artifact, [X], 0.0)
    total = everything.outputs["b12"]
    found = bisect(artifact, [X], 0.6 * total)
    assert found.accumulated
    assert found.contribution is not None
    assert found.passed
    assert found.verified <= 0.6 * total
    assert 1 <= len(found.excluded) < len(names)


def test_whole_numbers_are_decided_by_what_goes_into_them(tmp_path):
    near = np.tile(np.float32([[1.0, 1.0001, 0.5, 0, 0, 0, 0, 0]]), (2, 1))
    proto = parse(
        "g (float[batch, 8] x) => (int64[batch] y) { s = Mul(x, one) y = ArgMax<axis=1, keepdims=0>(s) }",
        one=np.float32(3),
    )
    found = bisect(make_artifact(proto, tmp_path / "out", "FP16", ["n_s", "n_y"]), [near], 1e-2)
    assert (found.node, found.accumulated) == ("n_y", True)
    assert found.contribution.node == "n_s"
    assert any("no floating-point numbers" in note for note in found.notes)
    assert found.passed


def test_the_sample_that_shows_it_need_not_be_the_first(tmp_path):
    artifact = overflow(tmp_path / "out", ["n_d", "n_e"])
    small = np.full((2, 8), 1e-3, np.float32)
    assert not bisect(artifact, [small], 5e-3).outputs
    found = bisect(artifact, [small, {"x": X}], 5e-3)
    assert found.node == "n_d"
    assert "2 sample(s)" in " ".join(found.notes)


def test_nan_of_the_model_itself_is_no_difference(tmp_path):
    proto = parse(
        "g (float[batch, 8] x) => (float[batch, 8] y) { a = Log(x) b = Abs(a) y = Mul(b, big) }", big=np.float32(6e4)
    )
    found = bisect(make_artifact(proto, tmp_path / "out", "FP16", ["n_a", "n_b", "n_y"]), [X], 1e-2)
    assert found.node == "n_y"
    assert found.before < 1e-2


LOOP = """g (float[batch, 8] x, bool c) => (float[batch, 8] y) {
    a = Tanh(x)
    b = If(c) <then_branch = t () => (float[batch, 8] p) { q = Mul(a, big) p = Mul(q, q) },
               else_branch = e () => (float[batch, 8] r) { r = Identity(a) }>
    y = Div(b, huge)
}"""


def test_segments_in_bodies_count_as_their_node(tmp_path):
    proto = parse(LOOP, big=np.float32(1000), huge=np.float32(5e4))
    artifact = make_artifact(proto, tmp_path / "out", "FP16", (("n_b/then_branch",), ["n_q", "n_p"]))
    found = bisect(artifact, [{"x": X, "c": np.array(True)}], 5e-3)
    assert (found.segment, found.node, found.op_type) == ("TRTEngineOp_000", "n_b", "If")
    assert any("bodies cannot be looked into" in note for note in found.notes)
    assert found.excluded == ("n_q", "n_p")
    assert found.passed


def test_control_flow_inside_a_segment_counts_as_one_node(tmp_path):
    proto = parse(LOOP, big=np.float32(1000), huge=np.float32(5e4))
    artifact = make_artifact(proto, tmp_path / "out", "FP16", ["n_a", "n_b", "n_y"])
    found = bisect(artifact, [{"x": X, "c": np.array(True)}], 5e-3)
    assert (found.segment, found.node) == ("TRTEngineOp_000", "n_b")
    assert set(found.excluded) >= {"n_b", "n_q", "n_p", "n_r"}
    assert any("whole If" in note for note in found.notes)
    assert found.passed


def test_quantisation_clips_what_calibration_never_saw(tmp_path):
    proto = parse(
        "g (float[batch, 8] x) => (float[batch, 5] y) { a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) y = Tanh(c) }",
        w=W,
        v=RANDOM.standard_normal((5, 5)).astype(np.float32),
    )
    ranges = RangeTable({"x": TensorRange(-4.0, 4.0), "b": TensorRange(0.0, 0.01)})
    artifact = make_artifact(
        proto, tmp_path / "out", "INT8", ["n_a", "n_b", "n_c", "n_y"], ranges=ranges, float_type="FP32"
    )
    found = bisect(artifact, [X], 0.1)
    assert (found.node, found.op_type) == ("n_c", "MatMul")
    assert not found.accumulated
    assert found.passed


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_broken_lowering_of_any_node_is_found_exactly(data, tmp_path_factory):
    ops = data.draw(st.lists(st.sampled_from(["Neg", "LeakyRelu<alpha=0.5>", "Elu"]), min_size=2, max_size=7))
    nodes = " ".join(f"v{i + 1} = {op}(v{i})" for i, op in enumerate(ops))
    proto = parse(f"g (float[batch, 8] v0) => (float[batch, 8] v{len(ops)}) {{ {nodes} }}")
    names = [node.name for node in proto.graph.node]
    cut = data.draw(st.integers(0, len(names)))
    guilty = data.draw(st.integers(0, len(names) - 1))
    cuts = [part for part in (names[:cut], names[cut:]) if part]
    artifact = make_artifact(proto, tmp_path_factory.mktemp("a") / "out", "FP16", *cuts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rewriter.precision.emulation.emulated_artifact", breaking(names[guilty]))
        found = bisect(artifact, [X], 2e-2)
    assert found.node == names[guilty]
    assert found.segment == f"TRTEngineOp_{int(guilty >= cut and len(cuts) > 1):03d}"
    assert not found.accumulated
    assert found.excluded == (names[guilty],)
    assert found.passed


def breaking(name):
    """emulated_artifact with a wrong node: unless it is kept, its result is negated and shifted."""
    from rewriter.precision.emulation import emulated_artifact

    def broken(model, recipe, ranges=None):
        emulated = emulated_artifact(model, recipe, ranges)
        proto = emulated.copy_proto()
        node = next(n for n in proto.graph.node if n.name == name)
        if not recipe.keeps(node):
            read = node.input[0]
            node.input[0] = f"{read}_broken"
            place = list(proto.graph.node).index(node)
            added = helper.make_node("Exp", [read], [f"{read}_broken"], "broken")
            proto.graph.node.insert(place, added)
        return emulated.with_proto(proto)

    return broken


def test_values_are_compared_a_few_at_a_time(tmp_path):
    artifact = overflow(tmp_path / "out", ["n_a", "n_b"], ["n_d", "n_e", "n_f"])
    assert bisect(artifact, [X], 5e-3, most=1).to_dict() == bisect(artifact, [X], 5e-3).to_dict()


def test_mistakes_are_told_in_one_line(tmp_path):
    artifact = overflow(tmp_path / "out", ["n_d"])
    for arguments, words in (
        ({"samples": []}, "at least one sample"),
        ({"tolerance": -1}, "at least 0"),
        ({"tolerance": {"q": 1}}, "names the output 'q'"),
        ({"tolerance": {}}, "names no output"),
        ({"result": "native"}, "nothing between"),
        ({"reference": "emulated"}, "reference must be one of"),
        ({"reference": "source"}, "needs source="),
    ):
        with pytest.raises(InvalidParameterError, match=words):
            bisect(artifact, **{"samples": [X], "tolerance": 1e-3, **arguments})
    with pytest.raises(InputError):
        bisect(artifact, [{"q": X}], 1e-3)
    del artifact.params["recipe"]
    with pytest.raises(ArtifactError, match="convert the model again"):
        bisect(artifact, [X], 1e-3)


def test_a_precision_that_cannot_keep_the_tolerance_is_told_instead_of_an_option(tmp_path):
    names = "abcdefgh"
    body = " ".join(f"{after} = Tanh({before})" for before, after in zip("x" + names, names + "y", strict=True))
    artifact = make_artifact(
        parse(f"g (float[n, 8] x) => (float[n, 8] y) {{ {body} }}"),
        tmp_path / "out",
        "BF16",
        [f"n_{v}" for v in names + "y"],
    )
    x = np.random.default_rng(2).standard_normal((4, 8)).astype(np.float32)
    found = bisect(artifact, [x], 1e-7)
    assert found.node
    assert (found.option, found.excluded, found.passed) == ("", (), None)
    assert any("this precision cannot keep the tolerance" in note for note in found.notes)
