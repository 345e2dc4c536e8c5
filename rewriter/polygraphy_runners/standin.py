"""A backend for machines without any TensorRT: it takes every node and builds nothing."""

from __future__ import annotations

from pathlib import Path

from passes.model import Model
from rewriter.backends.base import BuildFailure, BuildOptions, ParserError, Profile, Progress

#: Why there is no engine; part of every failure.
NO_TENSORRT = "no TensorRT is installed here"


class TakesAll:
    """Says yes to every node, so that a precision can be emulated on a machine that has no TensorRT.

    What no TensorRT could be given (parts that stay in TensorFlow, float64, what the denylists name) is refused
    before a backend is asked, with this one as with any other.
    """

    flavour = "none"
    version = "0"
    default_targets: tuple[str, ...] = ()

    def parse(self, model: Model) -> tuple[ParserError, ...]:  # noqa: ARG002 - the protocol's
        """No errors, whatever it is given."""
        return ()

    def build(
        self,
        model: Model,  # noqa: ARG002
        profiles: tuple[Profile, ...],  # noqa: ARG002
        options: BuildOptions,  # noqa: ARG002
        output: Path,  # noqa: ARG002
        progress: Progress | None = None,  # noqa: ARG002
    ) -> BuildFailure:
        """Always the same failure, which denies no node."""
        return BuildFailure("gpu", NO_TENSORRT)

    def close(self) -> None:
        """Nothing is held."""
