"""INT4 weights: a quarter of the memory traffic of FP16, for networks that wait for their weights."""

from __future__ import annotations

import dataclasses

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from passes.base import Change, PassError, PassResult
from passes.graph.editing import Namer, filter_initializers, node_namer, replace_nodes, value_namer
from passes.graph.value_types import value_info_of
from passes.graph.walk import iter_graphs
from passes.model import Model, Weights, stow
from passes.precision.opset import raise_opset
from passes.precision.quantization.placement import SKIP
from passes.precision.quantization.quantize import int4_scales, quantize_int4
from passes.precision.quantization.sources import Graphs
from passes.precision.recipe import MARK, Recipe
from passes.segments import TensorSpec

#: Opset from which there are INT4 and scales for blocks.
_OPSET = 21
#: INT4 constants lie in the proto itself (numpy has no such type), which must stay below 2 GB.
_INLINE_LIMIT = 1 << 30
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Int4Weights:
    """Stores the constant weights [K, N] of MatMul as INT4; data stay what they are.

    1. Along K each `recipe.int4_block` numbers of a column share a scale: scales are [K / block, N], in the type of
       the weight; integers are -7 .. 7.
    2. A weight whose K is no multiple of the block or that is no matrix stays, with a Change; so does what the recipe
       keeps. Other readers of a converted weight go on reading it in full.
    3. The opset is raised to 21.
    4. Runs before `InsertQDQ`, which leaves such nodes alone: TensorRT multiplies INT4 with floats only.

    Skipped nodes are among the changes, so a model that only has such is reported as modified though it is not.

    Attributes:
        recipe: the block and the exclusions; a block of 0 does nothing.
    """

    recipe: Recipe
    name: str = "int4_weights"

    def run(self, model: Model) -> PassResult:
        """Converts the weights, one after the other.

        Raises:
            PassError: a weight is not finite, or the opset cannot be raised; the message names the object.
        """
        block = self.recipe.int4_block
        if not block:
            return PassResult(model)
        graphs = Graphs.of(model)
        chosen: dict[str, str] = {}
        skipped: list[Change] = []
        room = _INLINE_LIMIT
        for node in graphs.nodes:
            if node.op_type != "MatMul" or node.domain or not graphs.is_constant(node.input[1]):
                continue
            weight = node.input[1]
            reason = self._refusal(graphs, node, block)
            if not reason and weight not in chosen.values():
                size = _packed_bytes(graphs, weight)
                reason = "the INT4 constants would not fit into a proto, which is limited to 2 GB" * (size > room)
                room -= 0 if reason else size
            if reason:
                skipped.append(Change(SKIP, node.name, f"no INT4 weight: {reason}"))
            else:
                chosen[node.name] = weight
        if not chosen:
            return PassResult(model, tuple(skipped))
        raised = raise_opset(model, _OPSET)
        changes = [Change("int4-weight", name, f"{w!r} in blocks of {block}") for name, w in chosen.items()]
        return PassResult(_rewrite(raised.model, chosen, block), (*skipped, *raised.changes, *changes))

    def _refusal(self, graphs: Graphs, node: NodeProto, block: int) -> str:
        """Why the weight of a MatMul stays as it is, or ""."""
        weight = node.input[1]
        shape = graphs.shape(weight)
        if self.recipe.keeps(node):
            return "the recipe keeps the node as it is"
        if graphs.dtype(weight) not in _FLOATS:
            return f"{weight!r} is {TensorProto.DataType.Name(graphs.dtype(weight))}"
        if shape is None or len(shape) != 2:
            return f"{weight!r} is no matrix"
        if not isinstance(shape[0], int) or not shape[0] or shape[0] % block:
            return f"the inner dimension {shape[0]} of {weight!r} is no multiple of {block}"
        return ""


def _packed_bytes(graphs: Graphs, weight: str) -> int:
    rows, columns = graphs.shape(weight) or (0, 0)
    return int(rows or 0) * int(columns or 0) // 2


def _rewrite(model: Model, chosen: dict[str, str], block: int) -> Model:
    """The model with the weights of the `chosen` nodes (name -> weight) as INT4."""
    proto = model.copy_proto()
    stock = _Stock(model, proto, block, value_namer(proto.graph), node_namer(proto.graph))
    for graph in iter_graphs(proto):  # lazily: bodies are looked up when their nodes are replaced
        if any(node.name in chosen for node in graph.node):
            stock.serve(graph, chosen)
    used = {name for graph in iter_graphs(proto) for node in graph.node for name in node.input}
    used.update(output.name for graph in iter_graphs(proto) for output in graph.output)
    gone = set(chosen.values()) - used
    filter_initializers(proto.graph, lambda t: t.name not in gone)
    return Model(proto, {**model.weights, **stock.weights}).with_proto(proto)


@dataclasses.dataclass
class _Stock:
    """INT4 weights that were made, each once."""

    model: Model
    proto: ModelProto
    block: int
    values: Namer
    names: Namer
    weights: Weights = dataclasses.field(default_factory=dict)
    made: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    def serve(self, graph: GraphProto, chosen: dict[str, str]) -> None:
        """Turns the chosen nodes of one graph to dequantised weights; readers of one weight share a node."""
        local: dict[str, str] = {}
        nodes: list[NodeProto] = []
        for node in graph.node:
            weight = chosen.get(node.name, "")
            if weight:
                if weight not in local:
                    nodes.append(self._dequantize(graph, node, weight))
                    local[weight] = nodes[-1].output[0]
                node.input[1] = local[weight]
            nodes.append(node)
        replace_nodes(graph, nodes)

    def _dequantize(self, graph: GraphProto, reader: NodeProto, weight: str) -> NodeProto:
        if weight not in self.made:
            self.made[weight] = self._store(weight)
        small, scales = self.made[weight]
        back = self.values.fresh(f"{weight}{MARK}dequantized")
        tensor = next(t for t in self.proto.graph.initializer if t.name == weight)
        graph.value_info.append(value_info_of(back, TensorSpec(back, tensor.data_type, tuple(tensor.dims))))
        name = self.names.fresh(f"{reader.name}{MARK}weight")
        return helper.make_node("DequantizeLinear", [small, scales], [back], name, axis=0, block_size=self.block)

    def _store(self, weight: str) -> tuple[str, str]:
        """Adds the INT4 constant and its scales; returns their names."""
        array = self.model.weights.get(weight)
        if array is None:
            array = numpy_helper.to_array(next(t for t in self.proto.graph.initializer if t.name == weight))
        try:
            scales = int4_scales(array, self.block)
        except ValueError as error:
            raise PassError(f"weight {weight!r} cannot be stored as INT4: {error}") from error
        names = self.values.fresh(f"{weight}{MARK}int4"), self.values.fresh(f"{weight}{MARK}scales")
        for name, values in zip(names, (quantize_int4(array, scales, self.block), scales), strict=True):
            self.proto.graph.initializer.append(stow(numpy_helper.from_array(values, name), self.weights))
        return names
