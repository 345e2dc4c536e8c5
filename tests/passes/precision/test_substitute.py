"""passes.precision.substitute: other nodes in the place of segments, main graph and bodies."""

import dataclasses
import random

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from passes.base import PassError, verify
from passes.canonicalize import Canonicalize
from passes.extract import Extractor
from passes.graph_index import iter_scopes
from passes.infer_shapes import InferShapes
from passes.model import Model, from_proto, is_stub
from passes.partition import PartitionOptions, propose
from passes.precision.substitute import substitute
from passes.support import SupportMap, Verdict
from passes.testing import random_feeds, random_model
from rewriter.runtime.native import NativeSession


def parse(text, opset=18, **arrays):
    """A canonical model with types; `arrays` are initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>{text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return InferShapes().run(Canonicalize().run(from_proto(proto)).model).model


def cut(model, refused=("Sin", "ScatterND", "If", "Loop"), minimum=1):
    verdicts = (
        Verdict(n.name, n.op_type, n.op_type not in refused and n.name not in refused, reason="no")
        for _, graph in iter_scopes(model.proto)
        for n in graph.node
    )
    segmentation = propose(model, SupportMap.of(verdicts), PartitionOptions(minimum))
    extractor = Extractor(model)
    return [extractor.extract(segment) for segment in segmentation.segments]


def run(model, feeds):
    return NativeSession(model, optimize=False, threads=1).run(feeds)


def assert_same(one, other, feeds):
    expected, actual = run(one, feeds), run(other, feeds)
    assert list(expected) == list(actual)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, strict=True)


def nodes(model):
    return {
        (scope, node.name): (node.op_type, *node.input, "->", *node.output)
        for scope, graph in iter_scopes(model.proto)
        for node in graph.node
    }


def initializers(model):
    return sorted(t.name for t in model.proto.graph.initializer)


TEXT = """g (float[2] x) => (float[2] y, float[2] c)
  <float[2] w = {1, 2}, float[2] v = {3, 4}> {
  [a] a = Mul(x, w)
  [b] b = Add(a, v)
  [s] s = Sin(b)
  [c] c = Mul(s, w)
  [d] y = Tanh(c)
}"""
FEEDS = {"x": np.float32([0.25, -3])}


def test_untouched_segments_give_the_model_back():
    model = parse(TEXT)
    segments = cut(model)
    assert [s.segment.nodes for s in segments] == [("a", "b"), ("c", "d")]
    result = substitute(model, segments, {s.segment.name: s.model for s in segments})
    verify(result, "substitute", canonical=True)
    assert nodes(result) == nodes(model)
    assert initializers(result) == initializers(model)
    assert_same(model, result, FEEDS)


def test_no_replacement_gives_the_model_itself():
    model = parse(TEXT)
    assert substitute(model, cut(model), {}) is model


def replacement(text, opset=18, **arrays):
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>{text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return from_proto(proto)


def test_names_and_weights_of_a_replacement_get_out_of_the_way():
    model = parse(TEXT)
    first, second = cut(model)
    new = replacement(
        """r (float[2] x) => (float[2] b) {
          [d] s = Mul(x, w)
          [b] c = Mul(s, w)
          [x] b = Sub(c, v)
        }""",
        w=np.float32([10, 20]),
        v=np.float32([3, 4]),
    )
    result = substitute(model, [first, second], {first.segment.name: new})
    verify(result, "substitute", canonical=True)
    # w of the model is still read by the other segment, v of both is the same.
    assert initializers(result) == ["v", "w", "w__1"]
    assert nodes(result) == {
        ((), "d__1"): ("Mul", "x", "w__1", "->", "s__1"),
        ((), "b"): ("Mul", "s__1", "w__1", "->", "c__1"),
        ((), "x"): ("Sub", "c__1", "v", "->", "b"),
        ((), "s"): ("Sin", "b", "->", "s"),
        ((), "c"): ("Mul", "s", "w", "->", "c"),
        ((), "d"): ("Tanh", "c", "->", "y"),
    }
    c = np.sin(FEEDS["x"] * np.float32([100, 400]) - np.float32([3, 4])) * np.float32([1, 2])
    np.testing.assert_allclose(run(result, FEEDS)["c"], c, rtol=1e-5)


def test_weights_that_nothing_reads_any_more_go_and_large_ones_stay_shared():
    array = np.arange(400, dtype=np.float32)
    text = "g (float[1,400] x) => (float[1,400] y) { [a] a = Add(x, w) [s] s = Sin(a) [b] y = Add(s, w) }"
    model = parse(text, w=array)
    assert is_stub(model.proto.graph.initializer[0])
    segments = cut(model)
    same = substitute(model, segments, {s.segment.name: s.model for s in segments})
    assert list(same.weights) == ["w"]
    assert same.weights["w"] is model.weights["w"]
    new = {s.segment.name: Model(s.model.proto, {"w": s.model.weights["w"] * np.float32(2)}) for s in segments}
    result = substitute(model, segments, new)
    assert initializers(result) == ["w"]
    np.testing.assert_array_equal(result.weights["w"], array * 2)


def test_an_output_may_become_a_constant():
    model = parse(TEXT)
    first, second = cut(model)
    new = replacement("r (float[2] x) => (float[2] b) { }", b=np.float32([1, 2]))
    result = substitute(model, [first, second], {first.segment.name: new})
    verify(result, "substitute", canonical=True)
    np.testing.assert_allclose(run(result, FEEDS)["c"], np.sin(np.float32([1, 2])) * np.float32([1, 2]), rtol=1e-6)


CONTROL = """g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
  [a] a1 = Relu(x) [s] s1 = Sin(a1) [b] b1 = Mul(s1, w)
  [if] i1 = If (c) <
    then_branch = t () => (float[2] t3) { [t1] t1 = Mul(b1, w) [t2] t2 = Sin(t1) [t3] t3 = Sub(t2, a1) },
    else_branch = e () => (float[2] e2) { [e1] e1 = Sin(a1) [e2] e2 = Add(e1, x) }
  >
  [o] y = Add(i1, a1)
}"""


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("refused", [("Sin", "If"), ("Sin",), ()])
def test_bodies(condition, refused):
    model = parse(CONTROL)
    segments = cut(model, refused)
    if refused == ("Sin", "If"):
        assert {s.segment.scope for s in segments} == {(), ("if/then_branch",), ("if/else_branch",)}
    result = substitute(model, segments, {s.segment.name: s.model for s in segments})
    verify(result, "substitute", canonical=True)
    assert nodes(result) == nodes(model)
    assert_same(model, result, {**FEEDS, "c": np.array(condition)})


def test_the_highest_operator_set_wins():
    model = parse(TEXT)
    first, second = cut(model)
    new = dataclasses.replace(first.model, proto=first.model.copy_proto())
    new.proto.opset_import[0].version = 21
    new.proto.ir_version = 10
    result = substitute(model, [first, second], {first.segment.name: new})
    verify(result, "substitute", canonical=True)
    assert result.proto.opset_import[0].version == 21
    assert result.proto.ir_version == 10
    assert_same(model, result, FEEDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r (float[2] q) => (float[2] b) { [a] b = Relu(q) }", "TRTEngineOp_000.*input"),
        ("r (float[2] x) => (float[2] q) { [a] q = Relu(x) }", "TRTEngineOp_000.*output"),
        ("r (float[2] x) => (int64[2] b) { [a] b = Cast<to = 7>(x) }", "TRTEngineOp_000.*output 'b'"),
    ],
)
def test_another_boundary_is_refused(text, message):
    model = parse(TEXT)
    segments = cut(model)
    with pytest.raises(PassError, match=message):
        substitute(model, segments, {"TRTEngineOp_000": replacement(text)})


def test_an_unknown_segment_is_refused():
    model = parse(TEXT)
    with pytest.raises(PassError, match="no such segment"):
        substitute(model, cut(model), {"TRTEngineOp_009": model})


def test_functions_are_refused():
    model = parse(TEXT)
    first, *_ = cut(model)
    proto = first.model.copy_proto()
    proto.functions.append(helper.make_function("d", "F", ["a"], ["b"], [], [helper.make_opsetid("", 18)]))
    with pytest.raises(PassError, match="functions"):
        substitute(model, [first], {first.segment.name: Model(proto)})


def test_a_segment_of_another_model_is_refused():
    model = parse(CONTROL)
    segments = [s for s in cut(model) if s.segment.scope]
    with pytest.raises(PassError, match="no graph"):
        substitute(parse(TEXT), segments, {s.segment.name: s.model for s in segments})


@given(st.randoms(use_true_random=False), st.integers(0, 2**16), st.sampled_from([1, 3]))
@settings(max_examples=30, deadline=None)
def test_random_models_run_bit_equal(rng, seed, minimum):
    model = InferShapes().run(Canonicalize().run(from_proto(random_model(rng, 12))).model).model
    dice = random.Random(seed)  # noqa: S311 - test data
    refused = {n.name for _, graph in iter_scopes(model.proto) for n in graph.node if dice.random() < 0.3}
    segments = cut(model, ("If", "Loop", *refused) if dice.random() < 0.5 else refused, minimum)
    chosen = [s for s in segments if dice.random() < 0.8]
    result = substitute(model, segments, {s.segment.name: s.model for s in chosen})
    verify(result, "substitute", canonical=True)
    assert nodes(result) == nodes(model)
    assert initializers(result) == initializers(model)
    assert_same(model, result, random_feeds(model.proto))
