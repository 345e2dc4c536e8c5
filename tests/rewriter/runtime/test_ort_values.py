"""Dtypes that numpy lacks go through ONNX Runtime bit by bit."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.model import Model
from rewriter.runtime.native import NativeSession
from rewriter.runtime.ort_values import from_ort_value, is_exotic, to_ort_value

EXOTIC = [
    "BFLOAT16",
    "FLOAT8E4M3FN",
    "FLOAT8E4M3FNUZ",
    "FLOAT8E5M2",
    "FLOAT8E5M2FNUZ",
    "INT4",
    "UINT4",
    "INT2",
    "UINT2",
]
PLAIN = ["FLOAT", "FLOAT16", "DOUBLE", "INT8", "UINT16", "INT64", "BOOL"]


def dtype_of(kind):
    return np.dtype(helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind)))


def skip_unless_known(kind):
    """ONNX Runtime before 1.24 (the last for Python 3.10) has no types of two bits."""
    import onnxruntime

    try:
        onnxruntime.OrtValue.ortvalue_from_shape_and_type((1,), getattr(TensorProto, kind))
    except RuntimeError as error:
        pytest.skip(f"ONNX Runtime {onnxruntime.__version__}: {error}")


def session(source, target, shape=(3,)):
    """A model that casts its input "x" to its output "y"."""
    kinds = [getattr(TensorProto, kind) for kind in (source, target)]
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], "cast", to=kinds[1])],
        "cast",
        [helper.make_tensor_value_info("x", kinds[0], shape)],
        [helper.make_tensor_value_info("y", kinds[1], shape)],
    )
    opset = 25 if {"INT2", "UINT2"} & {source, target} else 23
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)
    onnx.checker.check_model(model)
    return NativeSession(Model(model))


@pytest.mark.parametrize("kind", EXOTIC + PLAIN)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (0, 3)])
def test_bits_survive_the_way_there_and_back(kind, shape):
    skip_unless_known(kind)
    array = np.ones(shape, np.float32).astype(dtype_of(kind))
    back = from_ort_value(to_ort_value(array))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert numpy_helper.from_array(back).raw_data == numpy_helper.from_array(array).raw_data


@pytest.mark.parametrize("kind", EXOTIC)
def test_a_session_takes_and_gives_them(kind):
    skip_unless_known(kind)
    values = np.float32([1, 0, 1])
    there = session("FLOAT", kind).run({"x": values})["y"]
    assert there.dtype == dtype_of(kind)
    assert there.astype(np.float32).tolist() == [1, 0, 1]
    assert session(kind, "FLOAT").run({"x": there})["y"].tolist() == [1, 0, 1]


def test_values_are_rounded_as_the_type_says():
    rounded = session("FLOAT", "BFLOAT16").run({"x": np.float32([1.0078125, -3.14159, 1e30])})["y"]
    assert rounded.tolist() == np.float32([1.0078125, -3.14159, 1e30]).astype(dtype_of("BFLOAT16")).tolist()


def test_only_tensors_beyond_numpy_are_exotic():
    kinds = ["tensor(bfloat16)", "tensor(float8e5m2)", "tensor(int4)", "tensor(string)", "tensor(float)"]
    assert [is_exotic(kind) for kind in [*kinds, "seq(tensor(float))"]] == [True, True, True, False, False, False]
