"""Where INT8 and FP8 quantisation goes: which reads of which nodes get a Q/DQ pair, and which weights are stored small.

The rules follow NVIDIA's advice for explicit quantisation ("quantize all inputs of weighted operations", "don't
quantize their outputs", "quantize the residual input of skip connections"):

1. Conv, ConvTranspose, MatMul and Gemm (alpha = beta = 1) with a constant weight: the data input gets a pair, the
   weight is stored quantised. Depthwise and grouped convolutions and the first convolution are no exceptions.
2. MatMul of two computed values: both get a pair. Those of an attention block (the result goes into a Softmax, or a
   Softmax goes in) are left alone in INT8: 127 even steps are too few for probabilities, and TensorRT fuses the block
   in floating point as well. FP8 keeps small values, so it takes them, and TensorRT fuses the quantised block.
3. Add of two values of equal shape, one of which comes straight from a quantised Conv (constant scale and bias of a
   BatchNormalization may lie between): TensorRT fuses it into the Conv, so the *other* operand gets a pair.
4. ConvTranspose stays in float with FP8: no TensorRT has such a kernel. (TensorRT-RTX 1.7 has none for INT8 either:
   it builds the pair, then multiplies in float.)
5. What a Q/DQ pair of the model (quantisation-aware training) already covers is used: its scale is *known*, and behind
   operators that only move values or clip them at zero it still holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping

from onnx import NodeProto, TensorProto

from passes.base import Change
from passes.model import Model
from passes.precision.quantization.sources import Graphs, Source, attribute
from passes.precision.recipe import Recipe

#: Rule of every "no" of this module.
SKIP = "skip-quantize"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_MATRIX_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
#: Between a MatMul and the Softmax of its attention block.
_ATTENTION_LINKS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Dropout"}
)
_ATTENTION_REACH = 8


@dataclasses.dataclass(frozen=True)
class Edge:
    """One read of a computed value that becomes a read of its quantised and dequantised self.

    Attributes:
        node: name of the reading node.
        index: which of its inputs.
        tensor: the value that is read.
        format: "INT8" or "FP8".
    """

    node: str
    index: int
    tensor: str
    format: str


@dataclasses.dataclass(frozen=True)
class WeightEdge:
    """One read of a constant that becomes a read of its dequantised small self.

    Attributes:
        node: name of the reading node.
        index: which of its inputs.
        weight: name of the initializer.
        axis: the dimension whose entries have a scale each; None for one scale in all.
        format: "INT8" or "FP8".
    """

    node: str
    index: int
    weight: str
    axis: int | None
    format: str


@dataclasses.dataclass(frozen=True)
class Placement:
    """The proposal of `quantized_tensors`.

    Attributes:
        edges: reads of computed values that get a pair; reads of a DequantizeLinear that is there already are not
            among them.
        weights: reads of constants that are stored quantised.
        tensors: values of `edges` whose range must be found, in order of first use.
        required: those of `tensors` that Conv, ConvTranspose, MatMul or Gemm read; without the range of another one
            only the fusion of a residual Add is lost.
        known: values of `edges` whose scale (not range) follows from Q/DQ of the model.
        skipped: what was considered and left alone, with the reason.
    """

    edges: tuple[Edge, ...] = ()
    weights: tuple[WeightEdge, ...] = ()
    tensors: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    known: Mapping[str, float] = dataclasses.field(default_factory=dict)
    skipped: tuple[Change, ...] = ()


def quantized_tensors(model: Model, recipe: Recipe, nodes: Collection[str] | None = None) -> Placement:
    """What to quantise in a model or a part of it: the same for a segment as for its nodes in the whole model.

    Args:
        model: canonical, with types; main graph and bodies are looked at.
        recipe: mode, operators and exclusions; one that does not quantise gives an empty placement.
        nodes: names of the nodes of *one* segment to look at, for a model that the segment is not cut out of yet;
            Q/DQ outside of it counts as unseen, as it will be when it is cut. None: all nodes.
    """
    if not recipe.quantizes:
        return Placement()
    return _Planner(Graphs.of(model, nodes), recipe).plan()


@dataclasses.dataclass
class _Planner:
    """Collects a placement; used once."""

    graphs: Graphs
    recipe: Recipe
    edges: list[Edge] = dataclasses.field(default_factory=list)
    weights: list[WeightEdge] = dataclasses.field(default_factory=list)
    skipped: list[Change] = dataclasses.field(default_factory=list)
    known: dict[str, float] = dataclasses.field(default_factory=dict)
    #: Convolutions that are quantised, by us or by the model: name -> format.
    convolutions: dict[str, str] = dataclasses.field(default_factory=dict)

    def plan(self) -> Placement:
        """Matrix operators first, for residual Adds depend on them."""
        for node in self.graphs.nodes:
            if node.op_type in _MATRIX_OPS and not node.domain:
                reason = self._matrix(node)
                if reason:
                    self.skipped.append(Change(SKIP, node.name, reason))
        required = tuple(dict.fromkeys(e.tensor for e in self.edges if e.tensor not in self.known))
        if "Add" in self.recipe.quantize_ops:
            for node in self.graphs.nodes:
                if node.op_type == "Add" and not node.domain:
                    self._residual(node)
        tensors = tuple(dict.fromkeys(e.tensor for e in self.edges if e.tensor not in self.known))
        return Placement(
            tuple(self.edges), tuple(self.weights), tensors, required, dict(self.known), tuple(self.skipped)
        )

    def _matrix(self, node: NodeProto) -> str:
        """Plans one matrix operator; returns why not, or ""."""
        sources = [self.graphs.source(name) for name in node.input[:2]]
        reason = self._refusal(node, sources)
        if reason:
            return reason
        formats = dict.fromkeys(s.format for s in sources if s.format)
        if len(formats) > 1:
            return f"its inputs are quantised to {' and '.join(formats)} already"
        chosen = next(iter(formats), self.recipe.mode)
        if node.op_type == "ConvTranspose" and chosen == "FP8":
            return "TensorRT has no FP8 kernel for it"
        computed = node.op_type == "MatMul" and not any(s.constant or s.format for s in sources)
        if computed and chosen == "INT8" and self._in_attention(node):
            return "it is part of an attention block, which TensorRT fuses in floating point"
        for index, (name, source) in enumerate(zip(node.input[:2], sources, strict=True)):
            if source.constant and not source.format:
                self.weights.append(WeightEdge(node.name, index, name, self._axis(node, index, chosen), chosen))
            elif not source.constant:
                self._read(node, index, source, chosen)
        if node.op_type == "Conv":
            self.convolutions[node.name] = chosen
        return ""

    def _refusal(self, node: NodeProto, sources: list[Source]) -> str:
        """Why a matrix operator is left alone, or ""."""
        if node.op_type not in self.recipe.quantize_ops:
            return f"{node.op_type} is not among the operators to quantise"
        if self.recipe.leaves(node):
            return "the recipe keeps it as it is"
        if node.op_type == "Gemm" and (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)) != (1.0, 1.0):
            return "alpha or beta is not 1: the factor would come between the data and the quantised product"
        return next((reason for reason in self._doubts(node, sources) if reason), "")

    def _doubts(self, node: NodeProto, sources: list[Source]) -> Iterator[str]:
        """What is wrong with the inputs of a matrix operator; "" for each that is in order."""
        for name, source in zip(node.input[:2], sources, strict=True):
            yield source.refusal and f"its input {name!r} {source.refusal}"
            vector = source.constant and self.graphs.rank(name) == 1
            yield f"its weight {name!r} is a vector" if vector else ""
        yield "both inputs are constant" if all(s.constant for s in sources) else ""
        convolves = node.op_type in ("Conv", "ConvTranspose")
        yield "its data are constant" if convolves and sources[0].constant else ""
        dtype = next((d for d in map(self.graphs.dtype, node.input[:2]) if d), 0)
        kind = TensorProto.DataType.Name(dtype) if dtype else "unknown"
        yield "" if dtype in _FLOATS else f"its type is {kind}; FLOAT, FLOAT16 and BFLOAT16 can be quantised"

    def _read(self, node: NodeProto, index: int, source: Source, chosen: str) -> None:
        """One read of a computed value: nothing to do behind a DequantizeLinear, else an edge."""
        if source.format and source.direct:
            return
        name = node.input[index]
        if source.format:
            self.known[name] = source.scale
        self.edges.append(Edge(node.name, index, name, chosen))

    def _axis(self, node: NodeProto, index: int, chosen: str) -> int | None:
        """The dimension of a constant weight that has a scale an entry.

        FP8 has one scale a tensor: its exponent covers what channels differ by, and per-channel FP8 kernels are rare.
        A grouped ConvTranspose has C_out / groups entries there for C_out channels, so it has one scale as well.
        """
        if chosen == "FP8" or index == 0:
            return None
        if node.op_type == "Conv":
            return 0
        if node.op_type == "ConvTranspose":
            return 1 if attribute(node, "group", 1) == 1 else None
        if node.op_type == "Gemm":
            return 0 if attribute(node, "transB", 0) else 1
        rank = self.graphs.rank(node.input[index])
        return None if rank is None else rank - 1

    def _residual(self, node: NodeProto) -> None:
        """Rule 3: the operand beside the one that the Add is fused with."""
        shapes = [self.graphs.shape(name) for name in node.input]
        if shapes[0] is None or shapes[0] != shapes[1] or None in shapes[0] or node.input[0] == node.input[1]:
            return
        branches = [self._convolution(name) for name in node.input]
        if not any(branches):
            return
        if self.recipe.leaves(node):
            self.skipped.append(Change(SKIP, node.name, "the recipe keeps it as it is"))
            return
        # With a Conv on both sides the later one takes the Add: the other result is there by then.
        order = [self.graphs.position(name) if name else -1 for name in branches]
        fused = 0 if order[0] > order[1] else 1
        other = 1 - fused
        source = self.graphs.source(node.input[other])
        chosen = self.convolutions[branches[fused]]
        if source.constant or source.refusal or (source.format and source.format != chosen):
            return
        self._read(node, other, source, chosen)

    def _convolution(self, value: str) -> str:
        """The quantised Conv that `value` comes from by constant scales and biases alone, which nothing else reads."""
        while self.graphs.uses(value) == 1:
            node = self.graphs.producer(value)
            if node is None:
                return ""
            if node.op_type == "Conv":
                return node.name if node.name in self.convolutions else ""
            step = self._past_scale(node)
            if not step:
                return ""
            value = step
        return ""

    def _past_scale(self, node: NodeProto) -> str:
        """The data input of a BatchNormalization, or of a Mul or Add with a constant; "" for anything else."""
        if node.domain:
            return ""
        if node.op_type == "BatchNormalization":
            return str(node.input[0])
        if node.op_type in ("Mul", "Add"):
            data = [name for name in node.input if not self.graphs.is_constant(name)]
            return data[0] if len(data) == 1 else ""
        return ""

    def _in_attention(self, node: NodeProto) -> bool:
        """True when the result reaches a Softmax, or a Softmax reaches an operand, by elementwise steps."""
        return any(n.op_type == "Softmax" for n in self._around(node, forward=True)) or any(
            n.op_type == "Softmax" for n in self._around(node, forward=False)
        )

    def _around(self, node: NodeProto, *, forward: bool) -> Iterator[NodeProto]:
        """Nodes that are reached from `node` over `_ATTENTION_LINKS`, these and what ends the way included."""
        level = [node]
        for _ in range(_ATTENTION_REACH):
            beside = [n for at in level for n in (self.graphs.readers(at) if forward else self.graphs.sources(at))]
            yield from beside
            level = [n for n in beside if n.op_type in _ATTENTION_LINKS][:16]
