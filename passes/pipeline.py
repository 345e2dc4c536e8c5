"""The one literal list of the cleaning passes."""

from __future__ import annotations

from passes.base import Pipeline
from passes.canonicalize import Canonicalize
from passes.fold_constants import FoldConstants
from passes.infer_shapes import InferShapes
from passes.legalize import Legalize
from passes.steps.evaluation import Evaluate


def default_pipeline(evaluate: Evaluate | None = None) -> Pipeline:
    """The passes that every model goes through before it is partitioned.

    Args:
        evaluate: runs a small model, for constant folding; default: ONNX's reference evaluator.
    """
    return Pipeline(
        (
            Canonicalize(),
            # Types first: Shape of a static dimension folds only where the dimension is known.
            InferShapes(),
            FoldConstants(evaluate),
            # Folded shape operands (of Reshape, Expand, Slice ...) make more dimensions static; the second fold takes
            # the Shape nodes behind those. A third round found nothing in any model tried.
            InferShapes(),
            FoldConstants(evaluate),
            # Legalisation reads types and constants, so it comes after both; it leaves no-op Casts behind.
            Legalize(),
            Canonicalize(),
            InferShapes(),
        ),
        canonical=True,
    )
