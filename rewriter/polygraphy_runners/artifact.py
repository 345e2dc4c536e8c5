"""`LoadArtifact`: an artifact for polygraphy's runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from rewriter.polygraphy_runners.execution import resolve_execution

if TYPE_CHECKING:
    from rewriter.runtime.function import ConvertedFunction


@dataclasses.dataclass(frozen=True)
class LoadArtifact:
    """Loads an artifact when it is called; give it to a `TrtRewriterRunner`.

    Attributes:
        path: the folder that `Converter.save` or `trt-rewriter convert` wrote.
        execution: "auto" (engines where there is a GPU, else emulation), "native" or "emulate".
        provider: "auto", "cpu" or "cuda".
        strict: True raises where an engine is not used; default: as `rewriter.load`.
        signature: which of several; default: the first.
        wait_for_builds: True: a call that finds no fitting engine waits until one is built, where the artifact allows
            builds at run time; a comparison is to see engines.
        cuda_graph: False runs no call as a CUDA graph.
    """

    path: str | Path
    execution: str = "auto"
    provider: str = "auto"
    strict: bool | None = None
    signature: str | None = None
    wait_for_builds: bool = True
    cuda_graph: bool = True

    @property
    def label(self) -> str:
        """What the runner's name says of it."""
        return "artifact" if self.execution == "auto" else f"artifact-{self.execution}"

    def __call__(self) -> ConvertedFunction:
        """The function of the artifact.

        Raises:
            ArtifactError: not an artifact, a damaged one, or one that cannot be emulated.
            InvalidParameterError: a value that is not allowed, or "cuda" without a GPU.
            ConversionError: `strict`, and an engine cannot be used; as `rewriter.load` raises it.
        """
        from rewriter.runtime.loading import load

        execution = resolve_execution(self.execution, self.provider, self.strict)
        return load(
            self.path,
            execution=execution,
            provider=self.provider,
            strict=self.strict,
            signature=self.signature,
            wait_for_builds=self.wait_for_builds,
            cuda_graph=self.cuda_graph,
        )
