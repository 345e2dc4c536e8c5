"""Tensors of dtypes that numpy itself lacks (bfloat16, float8, int4, int2), into and out of ONNX Runtime.

ONNX Runtime's Python API neither takes nor gives arrays of ml_dtypes: float8e4m3fn comes back as uint8, the others
are refused. Here their bits are copied, in ONNX's own packed layout.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

#: ONNX Runtime's names of the tensor types that go through numpy as they are.
PLAIN_TYPES = frozenset(
    f"tensor({name})"
    for name in (
        "float", "double", "float16", "bool", "string", "complex64", "complex128",
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    )
)  # fmt: skip


def is_exotic(ort_type: str) -> bool:
    """True for a tensor type, as ONNX Runtime names it, that numpy lacks."""
    return ort_type.startswith("tensor(") and ort_type not in PLAIN_TYPES


def to_ort_value(array: np.ndarray) -> Any:
    """An array as an OrtValue in CPU memory; arrays of numpy's own dtypes are shared, not copied.

    Raises:
        RuntimeError: an array of strings, which ONNX Runtime does not take this way.
    """
    import onnxruntime as ort

    if array.dtype.isbuiltin == 1:
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
    tensor = numpy_helper.from_array(array)
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), tensor.data_type)
    ctypes.memmove(value.data_ptr(), tensor.raw_data, len(tensor.raw_data))
    return value


def from_ort_value(value: Any) -> np.ndarray:
    """The array in a tensor OrtValue, in ONNX's dtype for it."""
    data_type = value.element_type()
    if np.dtype(helper.tensor_dtype_to_np_dtype(data_type)).isbuiltin == 1:
        return np.asarray(value.numpy())
    size = 0 if 0 in value.shape() else value.tensor_size_in_bytes()
    bits = ctypes.string_at(value.data_ptr(), size) if size else b""
    return numpy_helper.to_array(TensorProto(data_type=data_type, dims=value.shape(), raw_data=bits))
