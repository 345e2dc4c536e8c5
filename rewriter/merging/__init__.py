"""One artifact out of several of the same model: the engines of all of them, for many GPUs and TensorRT versions.

`merge` reads and writes folders; `rewriter.merging.comparing` says whether two models are the same.
"""

from rewriter.merging.merge import Merged, MergedEngine, merge

__all__ = ["Merged", "MergedEngine", "merge"]
