"""The successor of TF-TRT: TensorFlow models, as ONNX, with TensorRT engines spliced in.

Importing this package is quick and needs none of TensorFlow, TensorRT or ONNX Runtime: what is heavy is imported
with the first use of its name.
"""

import importlib
from typing import TYPE_CHECKING, Any

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
    DEFAULT_TRT_CONVERSION_PARAMS,
    DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE,
    PROFILE_STRATEGY_OPTIMAL,
    PROFILE_STRATEGY_RANGE,
    PROFILE_STRATEGY_RANGE_OPTIMAL,
    ConversionParams,
    TrtPrecisionMode,
    supported_profile_strategies,
)

if TYPE_CHECKING:
    from rewriter.accuracy.target import AccuracyTarget
    from rewriter.converter import Converter
    from rewriter.converter import Converter as TrtGraphConverterV2
    from rewriter.extending import Extended, build_engines
    from rewriter.legacy import TrtGraphConverter, create_inference_graph
    from rewriter.merging import Merged, merge
    from rewriter.pass_selection import RewriterConfig
    from rewriter.precision.options import PrecisionOptions
    from rewriter.progress import EngineStep, ProgressEvent
    from rewriter.reports.dry_run import DryRun
    from rewriter.reports.report import Report
    from rewriter.rescuing import RescueReport, rescue
    from rewriter.runtime.function import ConvertedFunction
    from rewriter.runtime.loading import load

#: TF-TRT's name, for a one-line migration (as is `TrtGraphConverterV2`).
TrtConversionParams = ConversionParams

#: name -> (module, name there), imported with the first use.
_LAZY = {
    "AccuracyTarget": ("rewriter.accuracy.target", "AccuracyTarget"),
    "ConvertedFunction": ("rewriter.runtime.function", "ConvertedFunction"),
    "Converter": ("rewriter.converter", "Converter"),
    "DryRun": ("rewriter.reports.dry_run", "DryRun"),
    "EngineStep": ("rewriter.progress", "EngineStep"),
    "Extended": ("rewriter.extending", "Extended"),
    "Merged": ("rewriter.merging", "Merged"),
    "PrecisionOptions": ("rewriter.precision.options", "PrecisionOptions"),
    "ProgressEvent": ("rewriter.progress", "ProgressEvent"),
    "Report": ("rewriter.reports.report", "Report"),
    "RescueReport": ("rewriter.rescuing", "RescueReport"),
    "RewriterConfig": ("rewriter.pass_selection", "RewriterConfig"),
    "TrtGraphConverter": ("rewriter.legacy", "TrtGraphConverter"),
    "TrtGraphConverterV2": ("rewriter.converter", "Converter"),
    "build_engines": ("rewriter.extending", "build_engines"),
    "create_inference_graph": ("rewriter.legacy", "create_inference_graph"),
    "load": ("rewriter.runtime.loading", "load"),
    "merge": ("rewriter.merging", "merge"),
    "rescue": ("rewriter.rescuing", "rescue"),
}

__all__ = [
    "DEFAULT_TRT_CONVERSION_PARAMS",
    "DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES",
    "PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE",
    "PROFILE_STRATEGY_OPTIMAL",
    "PROFILE_STRATEGY_RANGE",
    "PROFILE_STRATEGY_RANGE_OPTIMAL",
    "AccuracyTarget",
    "ArtifactError",
    "BackendError",
    "ConversionError",
    "ConversionParams",
    "ConvertedFunction",
    "Converter",
    "ConverterStateError",
    "DryRun",
    "EngineStep",
    "ExportError",
    "Extended",
    "InputError",
    "InvalidParameterError",
    "Merged",
    "MissingDependencyError",
    "PrecisionOptions",
    "ProgressEvent",
    "Report",
    "RescueReport",
    "RewriterConfig",
    "SourceError",
    "TrtConversionParams",
    "TrtGraphConverter",
    "TrtGraphConverterV2",
    "TrtPrecisionMode",
    "VerificationError",
    "build_engines",
    "create_inference_graph",
    "load",
    "merge",
    "rescue",
    "supported_profile_strategies",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(__all__) | set(globals()))
