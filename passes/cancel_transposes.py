"""Transposes that undo each other go, also through elementwise operators between them, and those before reductions."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from passes.base import Change, PassResult
from passes.graph.editing import finish, label, replace_nodes, substitute
from passes.graph.value_types import set_tensor_type, tensor_type, value_types
from passes.graph.walk import iter_graphs
from passes.model import Model
from passes.steps.cleanup import drop_stale_value_info
from passes.steps.transposed_reductions import reduce_before_transposes

#: One result element from one input element, whatever its place.
_UNARY = frozenset({
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Cos", "Cosh", "Elu",
    "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish",
    "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
    "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu",
})  # fmt: skip
#: The same with other operands that must be constants of one element.
_WITH_SCALARS = frozenset({
    "Add", "And", "Clip", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min",
    "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Xor",
})  # fmt: skip
Permutation = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class CancelTransposes:
    """Makes one Transpose, or none, of two that follow each other.

    1. A Transpose whose permutation moves nothing goes.
    2. Two Transposes, one behind the other or with elementwise operators between them, become one behind them with
       both permutations, or none where they undo each other.
    3. Elementwise operators are unary ones, and binary ones whose other operand is a constant of one element and of
       no higher rank. All values between the two Transposes must have one reader and be no output of a graph.
    4. A reduction that drops its axes reads what is before a Transpose, over the axes' old places, where the axes that
       are left come in the same order. The Transpose must have no other reader. The sum may be taken in another order.
    5. Names of graph outputs stay. Nothing is moved across quantisation, out of a graph or into one.

    A Transpose is never copied and none is added, so the graph has fewer of them afterwards or stays as it is. Needs a
    canonical model (`Canonicalize`) with types (`InferShapes`).

    Attributes:
        through_elementwise: whether rule 2 looks through elementwise operators.
        reductions: whether rule 4 is applied.
    """

    through_elementwise: bool = True
    reductions: bool = True
    name: str = "cancel_transposes"

    def run(self, model: Model) -> PassResult:
        """Cancels all it can; a second run finds nothing."""
        proto = model.copy_proto()
        changes: list[Change] = []
        # A Transpose that goes may leave another one with a single reader, so again until nothing is found: each round
        # but the last one takes a Transpose away.
        while True:
            found = len(changes)
            sweep = _Sweep(Model(proto, model.weights), self.through_elementwise, changes)
            for graph in iter_graphs(proto.graph):
                sweep.run(graph)
            substitute(proto.graph, sweep.alias, outputs=True)
            if len(changes) == found:
                break
        if self.reductions:
            changes.extend(reduce_before_transposes(proto))
        if changes:
            changes.extend(drop_stale_value_info(proto.graph))
        return finish(model, proto, {}, changes)


class _Sweep:
    """Walks graphs in topological order; renames are collected and made at the end, all at once.

    Attributes:
        alias: value -> the value that replaces it everywhere, its producer included.
    """

    def __init__(self, model: Model, through: bool, changes: list[Change]) -> None:
        self.alias: dict[str, str] = {}
        self._through = through
        self._changes = changes
        self._types = value_types(model)
        main = model.proto.graph
        self._scalars = {t.name: len(t.dims) for t in main.initializer if math.prod(t.dims) == 1}
        self._outputs = {value.name for graph in iter_graphs(main) for value in graph.output}
        self._annotated = {a.tensor_name for graph in iter_graphs(main) for a in graph.quantization_annotation}
        #: Value -> number of nodes that read it, bodies included; value names are unique in the whole model.
        self._readers: Counter[str] = Counter()
        for graph in iter_graphs(main):
            for node in graph.node:
                self._readers.update(set(node.input))

    def run(self, graph: GraphProto) -> None:
        """Cancels the Transposes of one graph."""
        self._producer = {name: node for node in graph.node for name in node.output if name}
        self._claims = {value.name: value for value in graph.value_info}
        self._gone: set[str] = set()
        for node in graph.node:
            if node.op_type == "Transpose" and not node.domain:
                self._transpose(node)
        if self._gone:
            replace_nodes(graph, [node for node in graph.node if node.name not in self._gone])

    def _transpose(self, node: NodeProto) -> None:
        """Applies rule 2, then rule 1, to one Transpose."""
        own = self._permutation(node)
        if own is None or node.output[0] in self._annotated:
            return
        if _moves_nothing(own):
            self._drop(node, self._resolve(node.input[0]), "it moves nothing")
            return
        between, first = self._before(node, len(own))
        before = self._permutation(first) if first is not None else None
        if first is None or before is None or len(before) != len(own):
            return
        both = tuple(before[axis] for axis in own)
        reason = f"{label(first)} comes before it" + (f", with {len(between)} nodes between" if between else "")
        if not between and _moves_nothing(both):
            if self._drop(node, self._resolve(first.input[0]), reason):
                self._release(first)
        elif self._private(self._resolve(first.output[0])):
            self._join(node, between, first, before, both, reason)

    def _join(
        self,
        node: NodeProto,
        between: list[NodeProto],
        first: NodeProto,
        before: Permutation,
        both: Permutation,
        reason: str,
    ) -> None:
        """Takes `first` out, and `node` as well where `both` moves nothing; `between` is last node first."""
        source, moved = self._resolve(first.input[0]), self._resolve(first.output[0])
        reader = between[-1] if between else node
        for place, name in enumerate(reader.input):
            if name and self._resolve(name) == moved:
                reader.input[place] = source
        self._gone.add(first.name)
        for step in between:
            self._permute_claim(step.output[0], before)
        if _moves_nothing(both):
            self._changes.append(Change("cancel-transpose", first.name, f"{label(node)} undoes it"))
            self._drop(node, self._resolve(between[0].output[0]), reason)
            return
        del node.attribute[:]
        node.attribute.add(name="perm", type=AttributeProto.INTS, ints=both)
        self._changes.append(Change("join-transpose", first.name, f"{label(node)} does its work as well"))

    def _before(self, node: NodeProto, rank: int) -> tuple[list[NodeProto], NodeProto | None]:
        """The elementwise nodes in front of a Transpose, last one first, and the Transpose in front of these."""
        between: list[NodeProto] = []
        value = self._resolve(node.input[0])
        while True:
            maker = self._producer.get(value)
            if maker is None or maker.domain or maker.name in self._gone:
                return between, None
            if maker.op_type == "Transpose":
                return between, maker
            data = self._data_input(maker, rank) if self._through and self._private(value) else None
            if data is None:
                return between, None
            between.append(maker)
            value = data

    def _data_input(self, node: NodeProto, rank: int) -> str | None:
        """The only input of an elementwise node that has more than one element; None where there is no such."""
        if node.op_type not in _UNARY and node.op_type not in _WITH_SCALARS:
            return None
        names = {self._resolve(name) for name in node.input if name}
        data = [name for name in names if self._scalars.get(name, rank + 1) > rank]
        return data[0] if len(data) == 1 else None

    def _drop(self, node: NodeProto, source: str, reason: str) -> bool:
        """Removes a Transpose whose result is `source`; False where its name has to stay on it."""
        result = node.output[0]
        read = self._resolve(node.input[0])
        if result in self._outputs:
            if not self._renamable(source):
                return False
            self.alias[source] = result
            self._producer[result] = self._producer[source]
            self._readers[result] += self._readers[source]
        else:
            self.alias[result] = source
            self._readers[source] += self._readers[result]
        self._readers[self._resolve(read)] -= 1
        self._gone.add(node.name)
        self._changes.append(Change("cancel-transpose", node.name, reason))
        return True

    def _release(self, node: NodeProto) -> None:
        """Removes a Transpose that nothing reads any more."""
        result = self._resolve(node.output[0])
        if self._readers[result] == 0 and result not in self._outputs and result not in self._annotated:
            self._readers[self._resolve(node.input[0])] -= 1
            self._gone.add(node.name)
            self._changes.append(Change("cancel-transpose", node.name, "nothing reads it any more"))

    def _private(self, value: str) -> bool:
        """True for a value with one reader, that nobody else asks for."""
        return self._readers[value] == 1 and value not in self._outputs and value not in self._annotated

    def _renamable(self, value: str) -> bool:
        return value in self._producer and value not in self._outputs and value not in self._annotated

    def _resolve(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def _permutation(self, node: NodeProto) -> Permutation | None:
        """What a Transpose does; None where it relies on an unknown rank."""
        for attribute in node.attribute:
            if attribute.name == "perm":
                return tuple(attribute.ints)
        spec = self._types.get(node.input[0])
        return tuple(reversed(range(len(spec.shape)))) if spec is not None and spec.shape is not None else None

    def _permute_claim(self, name: str, before: Permutation) -> None:
        """Turns the declared shape of a value behind a Transpose into the one it has without it."""
        claim = self._claims.get(name)
        dtype, shape = tensor_type(claim.type) if claim is not None else (TensorProto.UNDEFINED, None)
        if claim is None or shape is None:
            return
        sizes: list[int | str | None] = [None] * len(shape)
        for place, axis in enumerate(before):
            sizes[axis] = shape[place]
        set_tensor_type(claim.type, dtype, tuple(sizes))


def _moves_nothing(permutation: Permutation) -> bool:
    return permutation == tuple(range(len(permutation)))
