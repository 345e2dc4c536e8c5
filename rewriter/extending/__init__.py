"""Engines for more GPUs, and of the TensorRT that is installed here, added to an artifact that is there.

`build_engines` does it. `rewriter.extending.targets` and `rewriter.extending.profiles` say what each engine is built
for, `rewriter.extending.planning` which engines are missing.
"""

from rewriter.extending.extend import build_engines
from rewriter.extending.results import AddedEngine, Extended, MissingEngine

__all__ = ["AddedEngine", "Extended", "MissingEngine", "build_engines"]
