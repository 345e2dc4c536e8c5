"""Narrow arithmetic in float32 operators: what ONNX Runtime computes equals numpy's own float16 and bfloat16."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from passes.base import PassError, verify
from passes.canonicalize import Canonicalize
from passes.model import Model, from_proto
from passes.precision.element_types import element_types
from passes.precision.emulate import Emulate
from rewriter.runtime.native import NativeSession

F16, BF16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
ONNX = {F16: "float16", BF16: "bfloat16"}
CODES = {F16: TensorProto.FLOAT16, BF16: TensorProto.BFLOAT16}


def graph(text: str, opset: int = 18, initializers: dict[str, np.ndarray] | None = None) -> Model:
    """A canonical model from ONNX text; large initializers become stubs."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in (initializers or {}).items())
    return Canonicalize().run(from_proto(proto)).model


def emulated(model: Model) -> Model:
    """The emulated model, checked."""
    before = model.proto.SerializeToString(deterministic=True)
    result = Emulate().run(model)
    assert model.proto.SerializeToString(deterministic=True) == before
    verify(result.model, "emulate", canonical=True)
    for now, then in zip(
        (*result.model.proto.graph.input, *result.model.proto.graph.output),
        (*model.proto.graph.input, *model.proto.graph.output),
        strict=True,
    ):
        assert now == then
    assert not Emulate().run(result.model).model.proto.functions
    return result.model


def run(model: Model, **feeds: Any) -> list[np.ndarray]:
    """The outputs of the emulated model in ONNX Runtime."""
    return list(NativeSession(emulated(model), optimize=False).run(feeds).values())


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_every_node_rounds(dtype: np.dtype[Any]) -> None:
    kind = ONNX[dtype]
    model = graph(f"""
      g ({kind}[4] x) => ({kind}[4] y) {{
        a = Mul(x, x)
        b = Sqrt(a)
        y = Add(b, x)
      }}""")
    x = np.array([1.1, 3.3, 77.7, 1e-3], np.float32).astype(dtype)
    wide = x.astype(np.float32)
    a = (wide * wide).astype(dtype).astype(np.float32)
    b = np.sqrt(a).astype(dtype).astype(np.float32)
    (y,) = run(model, x=x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, (b + wide).astype(dtype))


def test_float16_overflows_and_loses_odd_numbers_above_2048() -> None:
    model = graph("""
      g (float[3] x) => (float[3] y) {
        half = Cast<to = 10>(x)
        kept = Relu(half)
        y = Cast<to = 1>(kept)
      }""")
    (y,) = run(model, x=np.array([1e5, 2049, -1], np.float32))
    np.testing.assert_array_equal(y, np.array([np.inf, 2048, 0], np.float32))
