"""What every front end returns: a model in ONNX and the signature its user knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from passes.model import Model
from passes.segments import TensorSpec


@dataclasses.dataclass(frozen=True)
class Signature:
    """Names, order and dtypes as the source model has them.

    `TensorSpec.name` is the public name (TensorFlow's signature), `TensorSpec.tensor` the ONNX graph input or
    output that carries it. They differ only where ONNX forbids a name (an input and an output called alike).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    name: str = "serving_default"


@dataclasses.dataclass(frozen=True)
class Verification:
    """The comparison of the exported model with the source framework on sample inputs.

    Attributes:
        samples: number of sample inputs run through both.
        max_rel_diff: public output name -> max|difference| / max|reference| over all samples.
    """

    samples: int
    max_rel_diff: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The largest difference over all outputs (0.0 for none)."""
        return max(self.max_rel_diff.values(), default=0.0)


@dataclasses.dataclass(frozen=True)
class SourceModel:
    """A model as ONNX, before any pass.

    Attributes:
        model: the graph and its weights.
        signature: what the user calls.
        origin: one line that says what it was made from ("SavedModel /a/b, tags serve, signature serving_default").
        verification: the comparison with the source framework; None for ONNX sources.
        samples: the sample inputs of that comparison, by public input name (reused for shapes and demos).
        timings: stage name -> seconds ("load", "freeze", "export", "verify").
        notes: what the user should know of the export, a line each (weights that lost their int8 grid, ...).
    """

    model: Model
    signature: Signature
    origin: str
    verification: Verification | None = None
    samples: tuple[Mapping[str, Any], ...] = ()
    timings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
