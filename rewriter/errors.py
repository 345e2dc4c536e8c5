"""The one tree of errors. Each message says what happened, to which object, and what to do."""

from __future__ import annotations


class ConversionError(RuntimeError):
    """Root of every error that this package raises on purpose."""


class InvalidParameterError(ConversionError, ValueError):
    """A parameter has a value that is not allowed; the message lists what is."""


class SourceError(ConversionError):
    """The model cannot be read: no such path, wrong kind, wrong tag or signature, damaged file."""


class ExportError(ConversionError):
    """The model was read but cannot be expressed in ONNX; the message names the ops."""


class VerificationError(ConversionError):
    """The exported model does not compute what TensorFlow computes; the message names the outputs."""


class MissingDependencyError(ConversionError, ImportError):
    """An optional package is not installed, or cannot be loaded; the message names the extra that brings it."""


class BackendError(ConversionError):
    """TensorRT, or the process it runs in, failed in a way that is no verdict on the model."""


class ArtifactError(ConversionError):
    """An artifact cannot be written or read: exists, damaged, unknown version, unsafe path."""


class ConverterStateError(ConversionError):
    """A method was called out of order; the message says which comes first."""


class InputError(ConversionError, ValueError):
    """The inputs of a call do not fit the signature; the message names the input and what is expected."""


class EngineError(ConversionError):
    """An engine, or TensorRT's runtime, did not do what it was asked; the message says what TensorRT's log tells."""


class EngineRefusedError(EngineError):
    """TensorRT's runtime cannot use an engine on this machine: another GPU, another version, a damaged file."""


class EngineShapeError(EngineError):
    """An engine cannot take these shapes or shape values; the message names the input and what it can take."""


class EngineRunError(EngineError):
    """An engine that was given all it needs failed to run."""


class CudaError(ConversionError):
    """A call of the CUDA runtime failed; the message names the call and CUDA's own reason."""


class DeviceMemoryError(CudaError):
    """The GPU, or the host for page-locked memory, has not enough; the message says how much was asked for."""


class CaptureError(CudaError):
    """Work could not be captured as a CUDA graph; it can still be run step by step."""


def missing_dependency(package: str, extra: str, purpose: str) -> MissingDependencyError:
    """The error for an optional package, with the line that installs it."""
    return MissingDependencyError(f"{purpose} needs {package}: pip install 'trt-rewriter[{extra}]'")
