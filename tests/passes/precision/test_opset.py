"""Raising the opset: no change of an operator is forgotten, and every node means what it meant."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from onnx import defs, numpy_helper

from passes.base import PassError, Pipeline, verify
from passes.canonicalize import Canonicalize
from passes.infer_shapes import InferShapes
from passes.model import Model, from_proto
from passes.precision.opset import _RULES, NEWEST, OLDEST, RaiseOpset, opset_of, raise_opset
from passes.testing import random_feeds, random_model
from rewriter.runtime.native import NativeSession

CANONICAL = Pipeline((Canonicalize(), InferShapes()))

#: Changes of a signature that need no rule: what was added means nothing unless it is given.
HARMLESS = {
    (14, "GRU"): "layout 0 is what was",
    (14, "LSTM"): "layout 0 is what was",
    (14, "RNN"): "layout 0 is what was",
    (14, "Reshape"): "allowzero 0 is what was",
    (15, "Shape"): "the whole shape is the default",
    (16, "ScatterElements"): "reduction none is what was",
    (16, "ScatterND"): "reduction none is what was",
    (18, "LpPool"): "dilations of 1 and no ceil_mode are what was",
    (18, "OptionalHasElement"): "it may have no input now",
    (18, "Pad"): "all axes are the default",
    (18, "Resize"): "all axes, no antialias and stretch are what was",
    (19, "AveragePool"): "dilations of 1 are what was",
    (19, "Cast"): "saturate is for FP8, which was not there",
    (19, "CastLike"): "saturate is for FP8, which was not there",
    (19, "QuantizeLinear"): "saturate is for FP8, which was not there",
    (21, "DequantizeLinear"): "no blocks are the default",
    (21, "QuantizeLinear"): "no blocks are the default; the zero point tells the type",
}
#: Changes in words alone, which no comparison of signatures finds; read in ONNX's changelog.
IN_WORDS = {(22, "AveragePool"), (22, "LpPool"), (22, "MaxPool")}


def signature(schema):
    attributes = {
        name: (a.type, a.required, a.default_value.SerializeToString(deterministic=True))
        for name, a in schema.attributes.items()
    }
    inputs = tuple((i.option, i.is_homogeneous) for i in schema.inputs)
    return attributes, inputs, len(schema.outputs), schema.max_output, schema.min_input, schema.deprecated


def changed_signatures():
    """(version, operator) wherever a signature, types apart, changes within the known versions."""
    schemas = [s for s in defs.get_all_schemas_with_history() if not s.domain]
    for name in sorted({s.name for s in schemas}):
        versions = sorted(s.since_version for s in schemas if s.name == name)
        for old, new in itertools.pairwise(versions):
            if OLDEST < new <= NEWEST and signature(defs.get_schema(name, old, "")) != signature(
                defs.get_schema(name, new, "")
            ):
                yield new, name


def test_every_change_of_a_signature_has_a_rule_or_a_reason_why_it_needs_none():
    ruled = {(rule.since, name) for rule in _RULES for name in rule.operators}
    found = set(changed_signatures())
    assert found - ruled == set(HARMLESS), "a new exception: add a rule, or say why it needs none"
    assert ruled - found - IN_WORDS == set(), "a rule for what does not change"


def parsed(text, opset):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')


CASES = {
    "reduce": (13, 18, "g (float[2,3,4] x) => (float[2,1,4] y) { y = ReduceMax<axes=[1]>(x) }"),
    "reduce-all": (13, 22, "g (float[2,3] x) => (float[1,1] y) { y = ReduceL2(x) }"),
    "reduce-keepdims": (15, 19, "g (float[2,3,4] x) => (float[3] y) { y = ReduceMean<axes=[0,-1], keepdims=0>(x) }"),
    "split": (13, 19, "g (float[4,2] x) => (float[2,2] y, float[2,2] z) { y, z = Split(x) }"),
    "split-sizes": (
        13, 21, "g (float[4,2] x) => (float[1,2] y, float[3,2] z) <int64[2] s={1,3}> { y, z = Split(x, s) }",
    ),
    "grid-sample": (
        16, 21,
        """g (float[1,1,4,4] x, float[1,2,2,2] p) => (float[1,1,2,2] y, float[1,1,2,2] z) {
            y = GridSample<mode="bilinear">(x, p) z = GridSample<mode="nearest">(x, p) }""",
    ),
    "grid-sample-default": (
        16, 20, "g (float[1,1,4,4] x, float[1,2,2,2] p) => (float[1,1,2,2] y) { y = GridSample(x, p) }",
    ),
    "dft": (17, 20, "g (float[2,4,3,1] x) => (float[2,4,3,2] y) { y = DFT(x) }"),
    "dft-axis": (17, 21, "g (float[2,4,3,1] x) => (float[2,4,3,2] y) { y = DFT<axis=2>(x) }"),
    "roi-align": (
        13, 16,
        """g (float[1,1,6,6] x, float[1,4] r) => (float[1,1,2,2] y) <int64[1] i={0}> {
            y = RoiAlign<output_height=2, output_width=2, sampling_ratio=2>(x, r, i) }""",
    ),
    "batch-normalization": (
        13, 22,
        """g (float[2,2,3] x) => (float[2,2,3] y) <float[2] s={1,2}, float[2] b={3,4}, float[2] m={0,1},
            float[2] v={1,2}> { y = BatchNormalization(x, s, b, m, v) }""",
    ),
    "pool": (13, 22, "g (float[1,1,6,6] x) => (float[1,1,5,5] y) { y = MaxPool<kernel_shape=[2,2]>(x) }"),
    "pad": (13, 22, "g (float[2,2] x) => (float[3,2] y) <int64[4] p={1,0,0,0}> { y = Pad(x, p) }"),
    "body": (
        13, 21,
        """g (float[2,3] x, bool c) => (float[2,1] y) {
            y = If(c) <then_branch = t () => (float[2,1] a) { a = ReduceSumSquare<axes=[1]>(x) },
                       else_branch = e () => (float[2,1] b) { b = ReduceMin<axes=[1]>(x) }>
        }""",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_raised_nodes_mean_what_they_meant(case):
    before, after, text = CASES[case]
    model, _ = CANONICAL.run(from_proto(parsed(text, before)))
    result = raise_opset(model, after)
    verify(result.model, "raise_opset", canonical=True)
    assert opset_of(result.model.proto) == after
    assert opset_of(model.proto) == before
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal([d.dim_value for d in model.proto.graph.input[0].type.tensor_type.shape.dim])}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    if case == "body":
        feeds["c"] = np.array(True)
    if case.startswith("grid"):
        feeds["p"] = rng.uniform(-1, 1, (1, 2, 2, 2)).astype(np.float32)
    if case == "roi-align":
        feeds["r"] = np.array([[0.5, 0.5, 4.0, 4.5]], np.float32)
    want, got = (NativeSession(m, optimize=False).run(feeds) for m in (model, result.model))
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


def test_what_is_changed_is_told():
    model, _ = CANONICAL.run(from_proto(parsed(CASES["reduce"][2], 13)))
    (opset, reduce) = RaiseOpset(18).run(model).changes
    assert (opset.target, opset.reason) == ("model", "opset 13 -> 18")
    assert (reduce.rule, reduce.target, reduce.reason) == ("raise-opset", "ReduceMax_y", "axes are an input")


def test_a_model_that_is_new_enough_stays_itself():
    model = from_proto(parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }", 21))
    assert RaiseOpset(19).run(model).model is model
    assert not RaiseOpset(21).run(model).modified


REFUSED = {
    "training": (
        13, 14,
        """g (float[2,2,3] x, float[2] s) => (float[2,2,3] y, float[2] m) {
            y, m = BatchNormalization(x, s, s, s, s) }""",
        "'BatchNormalization_y' .*as in training",
    ),
    "group": (
        18, 21,
        """g (float[2,4,3] x, float[2] s) => (float[2,4,3] y) { y = GroupNormalization<num_groups=2>(x, s, s) }""",
        "'GroupNormalization_y' .*per group",
    ),
    "ceil": (
        19, 22,
        """g (float[1,1,5,5] x) => (float[1,1,3,3] y) {
            y = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x) }""",
        "'AveragePool_y' .*ceil_mode",
    ),
    "old": (11, 19, "g (float[2] x) => (float[2] y) { y = Relu(x) }", "from opset 11 to 19 .*only from 13"),
    "new": (18, 23, "g (float[2] x) => (float[2] y) { y = Relu(x) }", "up to 22"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_raised_is_refused_by_name(case):
    before, after, text, message = REFUSED[case]
    proto = parsed(text, before)
    for node in proto.graph.node:
        node.name = f"{node.op_type}_y"
    with pytest.raises(PassError, match=message):
        raise_opset(Model(proto), after)


def test_large_weights_stay_stubs():
    proto = parsed("g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", 18)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.float32), "w"))
    model, _ = CANONICAL.run(from_proto(proto))
    raised = raise_opset(model, 21).model
    assert raised.weights["w"] is model.weights["w"]


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.integers(0, 10**6), st.sampled_from([18, 19, 21, 22]))
def test_random_models_compute_the_same_bits(seed, version):
    proto = random_model(seed, 12, unsupported=0, opset=13)
    model, _ = CANONICAL.run(from_proto(proto))
    raised = raise_opset(model, version).model
    verify(raised, "raise_opset", canonical=True)
    feeds = random_feeds(model.proto, seed, {"N": 3})
    want, got = (NativeSession(m, optimize=False, threads=1).run(feeds) for m in (model, raised))
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
