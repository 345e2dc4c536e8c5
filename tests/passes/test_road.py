"""The whole road on random models: clean, partition, extract, splice, unsplice, with the same bits at every step."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passes.extract import Extractor
from passes.graph.walk import iter_nodes
from passes.model import Model, from_proto
from passes.partition import PartitionOptions, propose
from passes.pipeline import default_pipeline
from passes.splice import EngineAttributes, splice, unsplice
from passes.support import SupportMap, Verdict
from passes.testing import random_feeds, random_model
from rewriter.runtime.native import NativeSession, evaluate


def run(model, feeds):
    return NativeSession(model, optimize=False, threads=1).run(feeds)


def cut(model, minimum, denied=()):
    verdicts = [Verdict(n.name, n.op_type, n.name not in denied, reason="denied") for n in iter_nodes(model.proto)]
    return propose(model, SupportMap.of(verdicts), PartitionOptions(minimum))


def spliced(model, segmentation):
    extractor = Extractor(model)
    found = {s.name: extractor.extract(s) for s in segmentation.segments}
    engines = {name: EngineAttributes(s.content_hash, len(s.inputs)) for name, s in found.items()}
    return splice(model, segmentation, engines), found


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, want in expected.items():
        np.testing.assert_array_equal(actual[name], want, err_msg=name, strict=True)


def exposed(model, names):
    """The model with these inner values of the main graph as additional outputs."""
    proto = model.copy_proto()
    have = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    known = {v.name: v for v in proto.graph.value_info}
    for output in proto.graph.output:
        if output.name in known:
            output.CopyFrom(known[output.name])
    return Model(proto, model.weights)


def assert_segments_compute_the_same(model, parts, feeds):
    """Every main-graph segment alone gives, on the values that the whole model makes, the values that it makes."""
    main = [part for part in parts.values() if not part.segment.scope]
    names = list(dict.fromkeys(n for p in main for n in (*p.segment.inputs, *p.segment.outputs) if n not in feeds))
    values = {**feeds, **run(exposed(model, names), feeds)}
    for part in main:
        actual = run(part.model, {name: values[name] for name in part.segment.inputs})
        assert_same(actual, {name: values[name] for name in part.segment.outputs})


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    nodes=st.integers(3, 40),
    minimum=st.sampled_from([-1, 1, 2, 3]),
    denied=st.floats(0, 0.6),
)
def test_the_same_bits_at_every_step(seed, nodes, minimum, denied):
    model, _ = default_pipeline(evaluate).run(from_proto(random_model(seed, nodes)))
    rng = np.random.default_rng(seed)
    refused = {node.name for node in iter_nodes(model.proto) if rng.random() < denied}
    segmentation = cut(model, minimum, refused)
    result, parts = spliced(model, segmentation)
    feeds = random_feeds(model.proto, seed % 1000, {"N": 1 + seed % 3})
    expected = run(model, feeds)
    assert_same(run(result, feeds), expected)
    assert_same(run(unsplice(result), feeds), expected)
    assert_segments_compute_the_same(model, parts, feeds)


def parse(text):
    return from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]>\n{text}'))


def test_a_boundary_value_of_unknown_type_stays_untyped():
    model = parse("g (float[2] x) => (float[2] y) { [a] v = Relu(x) [b] w = Sin(v) [c] y = Neg(w) }")
    result, parts = spliced(model, cut(model, 1, {"b"}))
    first, second = parts.values()
    assert (first.outputs[0].dtype, first.outputs[0].shape) == (onnx.TensorProto.UNDEFINED, None)
    assert not first.model.proto.graph.output[0].HasField("type")
    assert (second.inputs[0].dtype, second.outputs[0].dtype) == (onnx.TensorProto.UNDEFINED, onnx.TensorProto.FLOAT)
    feeds = {"x": np.float32([-1, 2])}
    assert_same(run(result, feeds), run(model, feeds))
    assert_same(run(unsplice(result), feeds), run(model, feeds))


@pytest.mark.parametrize("given_shape", ["2", "N"])
def test_an_input_with_a_default_is_data_not_a_weight(given_shape):
    model = parse(f"""g (float[2] x, float[{given_shape}] k) => (float[2] y) <float[2] k = {{3, 4}}> {{
        [a] v = Add(x, k) [b] y = Neg(v) }}""")
    result, parts = spliced(model, cut(model, 1))
    (part,) = parts.values()
    assert (part.segment.inputs, part.segment.weights) == (("x", "k"), ())
    assert part.inputs[1].shape == ((2,) if given_shape == "2" else ("N",))
    x = np.float32([1, 2])
    for feeds in ({"x": x, "k": np.float32([5, 6])}, {"x": x}):
        assert_same(run(result, feeds), run(model, feeds))
        assert_same(run(unsplice(result), feeds), run(model, feeds))


def test_a_segment_in_a_body_that_only_the_output_of_the_body_reads():
    model = parse("""g (float[2] x, bool c) => (float[2] y) {
        [if] y = If(c) <
            then_branch = t () => (float[2] p) { [t1] q = Relu(x) [t2] p = Neg(q) },
            else_branch = e () => (float[2] r) { [e1] r = Abs(x) }> }""")
    segmentation = cut(model, 1, {"if", "e1"})
    (segment,) = segmentation.segments
    assert (segment.scope, segment.nodes, segment.outputs) == (("if/then_branch",), ("t1", "t2"), ("p",))
    result, _ = spliced(model, segmentation)
    onnx.checker.check_model(result.proto, full_check=True)
    for flag in (True, False):
        feeds = {"x": np.float32([-1, 2]), "c": np.array(flag)}
        assert_same(run(result, feeds), run(model, feeds))
        assert_same(run(unsplice(result), feeds), run(model, feeds))


def test_a_value_that_a_graph_output_and_a_segment_inside_share():
    model = parse("g (float[2] x) => (float[2] v, float[2] y) { [a] v = Relu(x) [b] w = Neg(v) [c] y = Abs(w) }")
    segmentation = cut(model, 1)
    (segment,) = segmentation.segments
    assert segment.outputs == ("v", "y")
    result, _ = spliced(model, segmentation)
    feeds = {"x": np.float32([-1, 2])}
    assert_same(run(result, feeds), run(model, feeds))
