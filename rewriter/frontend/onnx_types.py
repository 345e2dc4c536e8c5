"""TensorFlow's dtypes in ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper


def onnx_dtype(dtype: Any) -> int:
    """The onnx.TensorProto number of a tf.DType, or of its DataType number.

    bfloat16 counts as float32, in which the export computes. UNDEFINED for resources and variants.
    """
    import tensorflow as tf

    dtype = tf.as_dtype(dtype)
    if dtype.name == "bfloat16":
        return int(TensorProto.FLOAT)
    if dtype.name == "string":
        return int(TensorProto.STRING)
    if dtype.name in ("resource", "variant"):
        return int(TensorProto.UNDEFINED)
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype.as_numpy_dtype)))
