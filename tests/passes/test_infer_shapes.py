"""Type inference on literal graphs: what is added, kept, corrected, and left alone."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from passes.base import Pipeline, verify
from passes.canonicalize import Canonicalize
from passes.infer_shapes import InferShapes, value_types
from passes.model import Model, from_proto, make_stub

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def parsed(text, opset=18):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')


def infer(proto, weights=None):
    model = Canonicalize().run(from_proto(proto) if weights is None else Model(proto, weights)).model
    before = model.proto.SerializeToString(deterministic=True)
    result = InferShapes().run(model)
    assert model.proto.SerializeToString(deterministic=True) == before
    assert result.modified == (result.model.proto.SerializeToString(deterministic=True) != before)
    verify(result.model, "infer_shapes", canonical=True)
    assert InferShapes().run(result.model).model is result.model
    return result


def types(result):
    return {name: (spec.dtype, spec.shape) for name, spec in value_types(result.model).items()}


def test_values_of_the_main_graph_and_of_bodies():
    text = """g (float[N,4] x, bool b) => (float[P,Q] y) <int64 n={3}> {
        p = Shape(x) q = Reshape(x, p)
        t = Loop(n, "", q) <body = body (int64 i, bool c, float[R,S] a) => (bool k, float[R,S] o) {
            k = Identity(c) m = Cast<to=1>(i) o = Add(a, m) }>
        y = If(b) <then_branch = th () => (float[U,V] u) { e = Exp(x) u = Neg(e) },
                   else_branch = el () => (float[U,V] v) { v = Neg(t) }> }"""
    found = types(infer(parsed(text)))
    assert found["p"] == (INT64, (2,))
    assert found["q"] == (FLOAT, ("N", 4))
    assert found["m"] == (FLOAT, ())
    assert found["e"] == (FLOAT, ("N", 4))
    assert found["i"] == (INT64, ())
    assert found["k"] == (BOOL, ())
    assert found["n"] == (INT64, ())
    assert found["y"][0] == FLOAT


def test_weight_stubs_have_their_type_and_stay_out_of_inference():
    proto = parsed("g (float[N,4] x) => (float[N,P] y) { h = MatMul(x, w) y = Relu(h) }")
    proto.graph.initializer.append(make_stub("w", FLOAT, [4, 1 << 40]))
    # No array has this size: nothing may look at the data.
    result = infer(proto, {"w": np.broadcast_to(np.float32(0), (4, 1 << 40))})
    assert types(result)["w"] == (FLOAT, (4, 1 << 40))
    assert types(result)["h"] == (FLOAT, ("N", 1 << 40))


def test_outputs_gain_numbers_but_keep_their_symbols():
    proto = parsed("g (float[N,4] x) => (float[batch,wide] y, float[batch,4] z) { y = Neg(x) z = Abs(x) }")
    found = types(infer(proto))
    assert found["y"] == (FLOAT, ("batch", 4))
    assert found["z"] == (FLOAT, ("batch", 4))


def test_outputs_without_a_type_get_one():
    proto = parsed("g (float[N,4] x) => (float[N,4] y) { y = Neg(x) }")
    proto.graph.output[0].ClearField("type")
    assert types(infer(proto))["y"] == (FLOAT, ("N", 4))


def test_the_authors_output_type_is_not_overruled():
    proto = parsed("g (float[2,4] x) => (float[3,4] y) { y = Neg(x) }")
    result = infer(proto)
    assert types(result)["y"] == (FLOAT, (3, 4))


def test_claims_stay_where_inference_knows_less_and_spread_behind_foreign_operators():
    text = """g (float[N,4] x) => (float[N,8] y) <float[N,8] h> {
        h = my.Widen(x) a = Relu(h) i = my.Other(a) y = Neg(a) z = my.Sink(i) w = Neg(z) k = my.Keep(w) }"""
    proto = parsed(text)
    proto.opset_import.append(helper.make_opsetid("my", 1))
    proto.graph.output.append(helper.make_tensor_value_info("k", FLOAT, [1]))
    found = types(infer(proto))
    assert found["h"] == (FLOAT, ("N", 8))
    assert found["a"] == (FLOAT, ("N", 8))
    assert not {"i", "z", "w"} & set(found)


def test_claims_fill_dimensions_that_inference_does_not_know():
    text = """g (float[N,4] x, int64[2] s) => (float[P,Q] y) <float[batch,6] r> { r = Reshape(x, s) y = Neg(r) }"""
    found = types(infer(parsed(text)))
    assert found["r"] == (FLOAT, ("batch", 6))
    assert found["y"] == (FLOAT, ("P", 6))


@pytest.mark.parametrize("claim", ["float[2,5]", "float[2,4,1]", "int32[2,4]"])
def test_wrong_claims_are_corrected_and_said(claim):
    result = infer(parsed(f"g (float[2,4] x) => (float[2,4] y) <{claim} a> {{ a = Neg(x) y = Abs(a) }}"))
    assert types(result)["a"] == (FLOAT, (2, 4))
    assert [(c.rule, c.target) for c in result.changes] == [("correct-type", "a")]
    assert result.changes[0].reason.endswith("-> FLOAT[2, 4]")


def test_invented_symbols_are_dropped_and_given_ones_kept():
    proto = parsed("g (float[unk__0,4] x) => (float[P,4] y) { n = NonZero(x) m = Neg(n) k = Cast<to=1>(m) r = Abs(x)"
                   " e = ReduceSum<keepdims=0>(k) y = Add(r, e) }")  # fmt: skip
    found = types(infer(proto))
    assert found["n"] == (INT64, (2, None))
    assert found["r"] == (FLOAT, ("unk__0", 4))


def test_sequences_are_typed_in_the_graph_but_are_no_tensors():
    proto = parsed("g (float[2] x) => (float[4] y) { s = SequenceConstruct(x, x) y = ConcatFromSequence<axis=0>(s) }")
    result = infer(proto)
    assert result.model.proto.graph.value_info[0].type.HasField("sequence_type")
    assert "s" not in types(result)


def test_one_broken_node_does_not_hide_the_others():
    text = "g (float[2,3] x) => (float[P,Q] y, float[2,3] z) { a = Neg(x) y = MatMul(x, a) z = Abs(a) }"
    found = types(infer(parsed(text)))
    assert found["a"] == (FLOAT, (2, 3))


def test_a_model_that_inference_refuses_keeps_what_it_has(caplog, monkeypatch):
    def refuse(*args, **kwargs):
        raise onnx.shape_inference.InferenceError("weird model")

    model = Pipeline((Canonicalize(),)).run(from_proto(parsed("g (float[2] x) => (float[2] y) { y = Neg(x) }")))[0]
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", refuse)
    result = InferShapes().run(model)
    assert result.model is model
    assert "weird model" in caplog.text


def test_specs_are_named_after_their_values():
    spec = value_types(Model(parsed("g (float[N,4] x) => (float[N,4] y) { y = Neg(x) }")))["x"]
    assert (spec.name, spec.tensor, spec.is_static) == ("x", "x", False)
