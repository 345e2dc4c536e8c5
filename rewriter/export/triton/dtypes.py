"""Data types: ONNX's numbers and Triton's names for them."""

from __future__ import annotations

from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.errors import InvalidParameterError

_NAMES: dict[int, str] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.STRING: "STRING",
    TensorProto.BFLOAT16: "BF16",
}


def triton_type(spec: TensorSpec, flavour: str) -> str:
    """Triton's name of a tensor's dtype, as `config.pbtxt` has it: "TYPE_FP32".

    Raises:
        InvalidParameterError: Triton has no name for it, or the python backend no numpy dtype; the tensor is named.
    """
    name = _NAMES.get(spec.dtype)
    if name is None:
        known = TensorProto.DataType.Name(spec.dtype) if spec.dtype in TensorProto.DataType.values() else spec.dtype
        raise InvalidParameterError(
            f"Triton has no data type for {spec.name!r}, which is {known}: cast it in the model to one of "
            f"{', '.join(_NAMES.values())}, and convert again"
        )
    if name == "BF16" and flavour == "python":
        raise InvalidParameterError(
            f"{spec.name!r} is BF16, which Triton's python backend cannot hand over as numpy: cast it in the model to "
            "FP32, and convert again, or use flavour='onnxruntime'"
        )
    return f"TYPE_{name}"
