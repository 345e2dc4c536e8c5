"""What errors of other packages say, in our words."""

from __future__ import annotations

from rewriter.errors import MissingDependencyError, missing_dependency


def first_line(error: BaseException) -> str:
    """What an error of another package says, cut to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def import_failure(error: ImportError, module: str, package: str, extra: str, purpose: str) -> MissingDependencyError:
    """The error for an optional package that cannot be imported: not installed, or installed and broken.

    Args:
        error: what its import raised.
        module: the module that was imported, "onnxruntime".
        package: its name for people, "ONNX Runtime".
        extra: the extra of this package that brings it.
        purpose: what needs it.
    """
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        return missing_dependency(package, extra, purpose)
    return MissingDependencyError(
        f"{purpose} needs {package}, which is installed but cannot be loaded: {first_line(_origin(error))}"
    )


def _origin(error: BaseException) -> BaseException:
    """The error behind one whose text is a traceback, as TensorFlow words a missing shared library."""
    while str(error).lstrip().startswith("Traceback") and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__ or error
    return error
