"""Puts the Q/DQ pairs in that `placement` proposes, and stores weights as INT8 or FP8."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from passes.base import Change, PassError, PassResult
from passes.graph.editing import Namer, filter_initializers, node_namer, replace_nodes, value_namer
from passes.graph.value_types import value_info_of, value_types
from passes.graph.walk import iter_graphs
from passes.model import DETACH_MIN_INTEGER_BYTES, Model, Weights, make_stub, stow
from passes.precision.opset import raise_opset
from passes.precision.quantization.placement import SKIP, Edge, Placement, WeightEdge, quantized_tensors
from passes.precision.quantization.quantize import ELEMENTS, quantize, scale_array, smallest_scale, weight_scales
from passes.precision.ranges import LARGEST, RangeTable
from passes.precision.recipe import MARK, Recipe
from passes.segments import TensorSpec

#: Opset from which QuantizeLinear has an axis, and from which it knows FP8 and takes float16.
_PLAIN_OPSET, _WIDE_OPSET = 13, 19


@dataclasses.dataclass(frozen=True)
class InsertQDQ:
    """Quantises a segment as `quantized_tensors` proposes.

    1. A computed value gets one QuantizeLinear and one DequantizeLinear in each graph where it is quantised, shared by
       all readers there: one scale, zero point 0. Its scale follows from `ranges`, or from Q/DQ of the model.
    2. A weight becomes an initializer of int8 (-127 .. 127) or float8e4m3fn with a DequantizeLinear: a scale for each
       output channel in INT8, one in all in FP8. Readers that ask for the same share it.
    3. No bias is quantised: TensorRT refuses that.
    4. A node that reads a value without a range stays as it is, with a Change; so does everything `placement` skips.
       (Whoever plans a conversion says beforehand that ranges are missing; here they can get lost, where a node that
       gave one is kept out of the recipe later.)
    5. The opset is raised where FP8 or float16 needs it.
    6. Where floats become FP16, a calibrated FP8 scale is raised to the smallest normal float16 (not of values that
       are all below that number): a kernel may multiply by the reciprocal, which float16 cannot hold for scales below
       1.5e-5, and E4M3 has no infinity, so that all would be NaN. Attention over 196 tokens reaches 0.0066, its scale
       1.5e-5. FP8 loses hardly anything, for it has an exponent. INT8 would lose steps: there `LowerFloats` keeps a
       QuantizeLinear with too small a scale in float32.

    Values keep their type beside the pairs, and the model its inputs and outputs. Needs a canonical model with types.
    Skipped nodes are among the changes, so a model that only has such is reported as modified though it is not.

    Attributes:
        recipe: mode, operators and exclusions.
        ranges: what calibration found.
    """

    recipe: Recipe
    ranges: RangeTable = dataclasses.field(default_factory=RangeTable)
    name: str = "insert_qdq"

    def run(self, model: Model) -> PassResult:
        """Inserts the pairs.

        Raises:
            PassError: a range is none, a weight is not finite, or the opset cannot be raised; the message names the
                tensor.
        """
        first = quantized_tensors(model, self.recipe)
        unknown = set(self.ranges.missing(first.tensors))
        lost = {edge.node: edge.tensor for edge in first.edges if edge.tensor in unknown}
        changes = [Change(SKIP, node, f"there is no range of its input {tensor!r}") for node, tensor in lost.items()]
        # Without a quantised Conv there is nothing to fuse a residual Add with, so the plan is made again.
        recipe = dataclasses.replace(self.recipe, unquantized=self.recipe.unquantized | frozenset(lost))
        plan = quantized_tensors(model, recipe) if lost else first
        edges = plan.edges
        changes += [change for change in plan.skipped if change.target not in lost]
        if not edges and not plan.weights:
            return PassResult(model, tuple(changes))
        raised = raise_opset(model, _needed_opset(model, edges, plan.weights))
        changes.extend(raised.changes)
        writer = _Writer.of(raised.model, self.ranges, plan, self.recipe.float_type)
        changes.extend(writer.write(edges, plan.weights))
        return PassResult(writer.finished(), tuple(changes))


def _needed_opset(model: Model, edges: Iterable[Edge], weights: Iterable[WeightEdge]) -> int:
    types = value_types(model)
    used = [(e.tensor, e.format) for e in edges] + [(w.weight, w.format) for w in weights]
    wide = any(f == "FP8" or (n in types and types[n].dtype != TensorProto.FLOAT) for n, f in used)
    return _WIDE_OPSET if wide else _PLAIN_OPSET


@dataclasses.dataclass
class _Writer:
    """Edits one copy of a model; used once."""

    model: Model
    proto: ModelProto
    weights: Weights
    types: dict[str, TensorSpec]
    ranges: RangeTable
    known: dict[str, float]
    float_type: str
    values: Namer
    names: Namer
    #: (weight, axis, format) -> names of the stored weight and its scales, in the whole model.
    stored: dict[tuple[str, int | None, str], tuple[str, str]] = dataclasses.field(default_factory=dict)
    #: (value, format) -> names of the scale and the zero point of its pairs.
    scales: dict[tuple[str, str], tuple[str, str]] = dataclasses.field(default_factory=dict)
    zeros: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, ranges: RangeTable, plan: Placement, float_type: str) -> _Writer:
        proto = model.copy_proto()
        types = dict(value_types(model))
        known = dict(plan.known)
        namers = value_namer(proto.graph), node_namer(proto.graph)
        return cls(model, proto, {}, types, ranges, known, float_type, *namers)

    def write(self, edges: Iterable[Edge], weights: Iterable[WeightEdge]) -> list[Change]:
        """Inserts all pairs and weights; one Change a node."""
        reads: dict[str, list[Edge | WeightEdge]] = {}
        every: tuple[Edge | WeightEdge, ...] = (*edges, *weights)
        for edge in every:
            reads.setdefault(edge.node, []).append(edge)
        changes = []
        for graph in iter_graphs(self.proto):  # lazily: bodies are looked up when their nodes are replaced
            if any(node.name in reads for node in graph.node):
                changes.extend(self._graph(graph, reads))
        return changes

    def finished(self) -> Model:
        """The new model, without the weights that only the quantised readers read."""
        used = {name for graph in iter_graphs(self.proto) for node in graph.node for name in node.input}
        used.update(output.name for graph in iter_graphs(self.proto) for output in graph.output)
        replaced = {weight for weight, _, _ in self.stored}
        filter_initializers(self.proto.graph, lambda t: t.name not in replaced or t.name in used)
        return Model(self.proto, {**self.model.weights, **self.weights}).with_proto(self.proto)

    def _graph(self, graph: GraphProto, reads: dict[str, list[Edge | WeightEdge]]) -> list[Change]:
        """One graph: every new node goes in front of its first reader."""
        nodes: list[NodeProto] = []
        local: dict[tuple[object, ...], str] = {}
        changes = []
        for node in graph.node:
            told = []
            for edge in sorted(reads.get(node.name, ()), key=lambda e: e.index):
                if isinstance(edge, Edge):
                    key: tuple[object, ...] = (edge.tensor, edge.format)
                    made = [] if key in local else self._pair(graph, node, edge)
                else:
                    key = (edge.weight, edge.axis, edge.format)
                    made = [] if key in local else [self._dequantized_weight(graph, node, edge)]
                if made:
                    local[key] = made[-1].output[0]
                    nodes.extend(made)
                node.input[edge.index] = local[key]
                told.append(_describe(edge))
            if told:
                changes.append(Change("quantize", node.name, "; ".join(told)))
            nodes.append(node)
        replace_nodes(graph, nodes)
        return changes

    def _pair(self, graph: GraphProto, reader: NodeProto, edge: Edge) -> list[NodeProto]:
        """QuantizeLinear and DequantizeLinear of a computed value."""
        scale, zero = self._scale(edge)
        small = self._value(graph, f"{edge.tensor}{MARK}quantized", ELEMENTS[edge.format], edge.tensor)
        back = self._value(graph, f"{edge.tensor}{MARK}dequantized", 0, edge.tensor)
        return [
            self._node("QuantizeLinear", "quantize", reader, [edge.tensor, scale, zero], small),
            self._node("DequantizeLinear", "dequantize", reader, [small, scale, zero], back),
        ]

    def _dequantized_weight(self, graph: GraphProto, reader: NodeProto, edge: WeightEdge) -> NodeProto:
        """DequantizeLinear of a weight, which is stored when it is met first."""
        key = (edge.weight, edge.axis, edge.format)
        if key not in self.stored:
            self.stored[key] = self._store(edge)
        small, scales = self.stored[key]
        back = self._value(graph, f"{edge.weight}{MARK}dequantized", 0, edge.weight)
        node = self._node("DequantizeLinear", "weight", reader, [small, scales], back)
        if edge.axis is not None:
            node.attribute.append(helper.make_attribute("axis", edge.axis))
        return node

    def _store(self, edge: WeightEdge) -> tuple[str, str]:
        """Quantises one weight; returns the names of what is stored and of its scales."""
        array = self.model.weights.get(edge.weight)
        if array is None:
            tensor = next(t for g in iter_graphs(self.proto) for t in g.initializer if t.name == edge.weight)
            array = numpy_helper.to_array(tensor)
        try:
            scales = weight_scales(array, edge.axis, edge.format)
        except ValueError as error:
            raise PassError(f"weight {edge.weight!r} of node {edge.node!r} cannot be quantised: {error}") from error
        small = self._constant(quantize(array, scales, edge.axis, edge.format), f"{edge.weight}{MARK}quantized")
        return small, self._constant(scales, f"{edge.weight}{MARK}scales")

    def _scale(self, edge: Edge) -> tuple[str, str]:
        """Names of the scale and the zero point of a computed value."""
        key = (edge.tensor, edge.format)
        if key not in self.scales:
            known = self.known.get(edge.tensor)
            scale = self._calibrated(edge) if known is None else known
            spec = self.types.get(edge.tensor)
            try:
                array = scale_array(scale, spec.dtype if spec is not None else TensorProto.FLOAT)
            except ValueError as error:
                raise PassError(f"the range of {edge.tensor!r} cannot be used: {error}") from error
            if edge.format not in self.zeros:
                zero = np.zeros((), helper.tensor_dtype_to_np_dtype(ELEMENTS[edge.format]))
                self.zeros[edge.format] = self._constant(zero, f"{edge.format.lower()}{MARK}zero")
            self.scales[key] = self._constant(array, f"{edge.tensor}{MARK}scale"), self.zeros[edge.format]
        return self.scales[key]

    def _calibrated(self, edge: Edge) -> float:
        """Rule 6."""
        scale = self.ranges.ranges[edge.tensor].scale(edge.format)
        least = smallest_scale(np.dtype(np.float16))
        # What does not even reach that number stays float32 (`LowerFloats`), and would become zero.
        halves = edge.format == "FP8" and self.float_type == "FP16" and scale * LARGEST["FP8"] >= least
        return max(scale, least) if halves else scale

    def _constant(self, array: np.ndarray, base: str) -> str:
        """Adds a main-graph initializer; returns its name."""
        name = self.values.fresh(base)
        if array.nbytes >= DETACH_MIN_INTEGER_BYTES:  # straight away, without a copy in a proto
            array.flags.writeable = False
            self.weights[name] = array
            tensor = make_stub(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        else:
            tensor = stow(numpy_helper.from_array(array, name), self.weights)
        self.proto.graph.initializer.append(tensor)
        return name

    def _value(self, graph: GraphProto, base: str, dtype: int, like: str) -> str:
        """A new value of the shape of `like`; `dtype` 0: of its type, too."""
        name = self.values.fresh(base)
        spec = self.types.get(like)
        if spec is not None:
            graph.value_info.append(value_info_of(name, TensorSpec(name, dtype or spec.dtype, spec.shape)))
        return name

    def _node(self, op: str, what: str, reader: NodeProto, inputs: list[str], output: str) -> NodeProto:
        return helper.make_node(op, inputs, [output], self.names.fresh(f"{reader.name}{MARK}{what}"))


def _describe(edge: Edge | WeightEdge) -> str:
    if isinstance(edge, Edge):
        return f"{edge.format} for input {edge.index}"
    return f"{edge.format} for weight {edge.index}" + (f" along axis {edge.axis}" if edge.axis is not None else "")
