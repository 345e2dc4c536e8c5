"""The successor of TF-TRT: TensorFlow models, as ONNX, with TensorRT engines spliced in.

Importing this package is quick and needs none of TensorFlow, TensorRT or ONNX Runtime.
"""

from rewriter.converter import Converter
from rewriter.errors import (
    ArtifactError,
    BackendError,
    ConversionError,
    ConverterStateError,
    ExportError,
    InputError,
    InvalidParameterError,
    MissingDependencyError,
    SourceError,
    VerificationError,
)
from rewriter.params import (
    DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    ConversionParams,
    TrtPrecisionMode,
    supported_profile_strategies,
)
from rewriter.progress import ProgressEvent
from rewriter.report import Report
from rewriter.runtime.function import ConvertedFunction, load

#: TF-TRT's names, for a one-line migration.
TrtGraphConverterV2 = Converter
TrtConversionParams = ConversionParams

__all__ = [
    "DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES",
    "ArtifactError",
    "BackendError",
    "ConversionError",
    "ConversionParams",
    "ConvertedFunction",
    "Converter",
    "ConverterStateError",
    "ExportError",
    "InputError",
    "InvalidParameterError",
    "MissingDependencyError",
    "ProgressEvent",
    "Report",
    "SourceError",
    "TrtConversionParams",
    "TrtGraphConverterV2",
    "TrtPrecisionMode",
    "VerificationError",
    "load",
    "supported_profile_strategies",
]
