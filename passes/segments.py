"""The frozen values between partition, extraction and splicing."""

from __future__ import annotations

import dataclasses

from passes.model import Model
from passes.support import Verdict

#: Domain of the engine nodes and of the model-local functions behind them.
ENGINE_DOMAIN = "trt_rewriter"
#: Version of that domain's opset.
ENGINE_DOMAIN_VERSION = 1


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor at a boundary.

    Attributes:
        name: the public name (of the signature), or the ONNX value name where there is no other.
        dtype: onnx.TensorProto data type number.
        shape: one entry a dimension: int, a symbol, or None for unknown; None as a whole for unknown rank.
        tensor: the ONNX value name; default: the same as `name`.
    """

    name: str
    dtype: int
    shape: tuple[int | str | None, ...] | None
    tensor: str = ""

    def __post_init__(self) -> None:
        if not self.tensor:
            object.__setattr__(self, "tensor", self.name)

    @property
    def is_static(self) -> bool:
        """True when every dimension is a number."""
        return self.shape is not None and all(isinstance(d, int) for d in self.shape)


@dataclasses.dataclass(frozen=True)
class Segment:
    """One set of nodes that becomes one engine.

    Attributes:
        name: `TRTEngineOp_000`, `_001` ... in topological order, main graph before bodies.
        scope: the way to the graph the nodes lie in: () for the main graph, else ("loop_1/body", ...), one entry
            "<control-flow node name>/<attribute name>" a level.
        nodes: node names in topological order.
        inputs: names of the data values that come from outside, in order of first use (no constants).
        weights: names of the initializers (main graph or enclosing bodies) that the nodes read, in order of first use.
        outputs: names of the values used outside, or that are graph outputs, in order of production.
        effective_nodes: nodes that count towards `minimum_segment_size`.
    """

    name: str
    scope: tuple[str, ...]
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    effective_nodes: int


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The proposal of `passes.partition`: segments, and one verdict for every node that stays native."""

    segments: tuple[Segment, ...]
    native: tuple[Verdict, ...]
    effective_nodes: int

    @property
    def coverage(self) -> float:
        """Fraction of the model's effective nodes that lie in segments (1.0 for a model with none)."""
        inside = sum(s.effective_nodes for s in self.segments)
        return inside / self.effective_nodes if self.effective_nodes else 1.0


@dataclasses.dataclass(frozen=True)
class SegmentModel:
    """A segment as a stand-alone model: graph inputs = `segment.inputs`, initializers = `segment.weights`.

    Attributes:
        content_hash: sha256 (hex) over nodes with edges and attributes, opsets, boundary dtypes and shapes, and
            weights, with value and node names made canonical: what must be equal for an engine to be reusable.
    """

    segment: Segment
    model: Model
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    content_hash: str
