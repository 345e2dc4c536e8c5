"""The one literal list of the cleaning passes."""

from __future__ import annotations

from passes.base import Pipeline
from passes.canonicalize import Canonicalize
from passes.infer_shapes import InferShapes


def default_pipeline() -> Pipeline:
    """The passes that every model goes through before it is partitioned."""
    return Pipeline((Canonicalize(), InferShapes()))
