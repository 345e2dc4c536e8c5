"""The one literal list of the cleaning passes."""

from __future__ import annotations

from passes.base import Pipeline
from passes.canonicalize import Canonicalize
from passes.evaluation import Evaluate
from passes.fold_constants import FoldConstants
from passes.infer_shapes import InferShapes


def default_pipeline(evaluate: Evaluate | None = None) -> Pipeline:
    """The passes that every model goes through before it is partitioned.

    Args:
        evaluate: runs a small model, for constant folding; default: ONNX's reference evaluator.
    """
    return Pipeline((Canonicalize(), InferShapes(), FoldConstants(evaluate), InferShapes()))
