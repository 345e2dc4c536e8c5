"""passes.precision.element_types: the types that ONNX infers, without shapes."""

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from passes.canonicalize import Canonicalize
from passes.graph.value_types import collect_infos
from passes.infer_shapes import infer
from passes.model import from_proto, stubs_as_inputs
from passes.precision.element_types import element_type, element_types
from passes.testing import random_model


def parse(text, opset=18):
    return from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>{text}'))


@given(st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_as_inferred(rng):
    model = Canonicalize().run(from_proto(random_model(rng, 12))).model
    inferred = infer(stubs_as_inputs(model))
    found = element_types(model)
    for name, info in collect_infos(inferred).items():
        assert found[name] == element_type(info.type), name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("v = Shape(h)", TensorProto.INT64),
        ("v = IsNaN(h)", TensorProto.BOOL),
        ("v = CastLike(x, h)", TensorProto.FLOAT16),
        ("v = CastLike(h, x)", TensorProto.FLOAT),
        ("v = Where(c, h, h)", TensorProto.FLOAT16),
        ("v = EyeLike(h)", TensorProto.FLOAT16),
        ("v = EyeLike<dtype = 16>(h)", TensorProto.BFLOAT16),
        ("v = ConstantOfShape(n)", TensorProto.FLOAT),
        ("v = ConstantOfShape<value = int32[1] {2}>(n)", TensorProto.INT32),
        ("v = Constant<value_ints = [1]>()", TensorProto.INT64),
        ("v = QuantizeLinear(x, x)", TensorProto.UINT8),
        ("v = DequantizeLinear(q, h)", TensorProto.FLOAT16),
        ("v = SequenceConstruct(h, h)", TensorProto.FLOAT16),
        ("s = SequenceConstruct(h, h) v = SequenceAt(s, n)", TensorProto.FLOAT16),
        ("a, v = LayerNormalization(h, h)", TensorProto.FLOAT),
        ("a, v = LayerNormalization<stash_type = 16>(h, h)", TensorProto.BFLOAT16),
        ("a, v = TopK(h, n)", TensorProto.INT64),
        ("v = HannWindow<output_datatype = 10>(n)", TensorProto.FLOAT16),
        ("v = HannWindow(n)", TensorProto.FLOAT),
        ("v = unknown.Operator(h)", TensorProto.FLOAT16),
    ],
)
def test_one_operator(line, expected):
    text = f"g (float16[2,2] h, float[2,2] x, bool c, int64[1] n, int8[2,2] q) => (float y) {{ {line} }}"
    model = parse(text)
    if "unknown" in line:
        model.proto.opset_import.add(domain="unknown", version=1)
    assert element_types(model)["v"] == expected


def test_the_declared_type_counts_behind_unknown_operators_only():
    model = parse("g (float16[2] h) => (float y) <int8[2] a, int8[2] b> { a = unknown.Operator(h) b = Neg(h) }")
    found = element_types(model)
    assert (found["a"], found["b"]) == (TensorProto.INT8, TensorProto.FLOAT16)
