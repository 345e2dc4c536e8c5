"""How this package speaks in polygraphy's runs: through polygraphy's logger, and errors without a traceback."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from rewriter.errors import ConversionError
from rewriter.runtime.other_errors import import_failure


def import_polygraphy(module: str = "polygraphy") -> Any:
    """A module of polygraphy.

    Raises:
        MissingDependencyError: polygraphy is not installed, or this one lacks the module.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise import_failure(error, "polygraphy", "polygraphy", "compare", "a polygraphy runner") from error


def inform(message: str) -> None:
    """Tells something in polygraphy's log, each time."""
    import_polygraphy("polygraphy.logger").G_LOGGER.info(f"trt-rewriter: {message}")


def warn(message: str) -> None:
    """Warns in polygraphy's log, once for each message."""
    logger = import_polygraphy("polygraphy.logger")
    logger.G_LOGGER.warning(f"trt-rewriter: {message}", mode=logger.LogMode.ONCE)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns this package's errors into polygraphy's, which its commands show as one line.

    Raises:
        PolygraphyException: in the place of a `ConversionError`, which is its cause.
    """
    try:
        yield
    except ConversionError as error:
        raise refusal(str(error)) from error


def refusal(message: str) -> Exception:
    """Writes an error to polygraphy's log; gives the exception to raise, which its commands expect then."""
    logger = import_polygraphy("polygraphy.logger").G_LOGGER
    logger.log(f"trt-rewriter: {message}", logger.CRITICAL)
    exception: Exception = import_polygraphy("polygraphy.exception").PolygraphyException(message)
    return exception
