"""Trained quantisation in floating point, for the nodes that a recipe which quantises leaves in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from onnx import ModelProto, NodeProto, TensorProto, helper

from passes.base import Change
from passes.graph.editing import Namer, node_namer, replace_nodes, value_namer
from passes.graph.value_types import value_types
from passes.graph.walk import iter_graphs, iter_nodes, plain_domain
from passes.model import Model, Weights
from passes.precision.float_weights import float_values
from passes.precision.quantization.fake_quant_chains import Chain
from passes.precision.quantization.sources import PRESERVING
from passes.precision.recipe import MARK, QUANTIZED_OPS, Recipe
from passes.segments import TensorSpec
from passes.steps.quantized_constants import Constants, Quantization

#: What reads a value: a node that the recipe leaves in float, one that it quantises, anything else.
_LEFT, _QUANTIZED, _OTHER = "left", "quantised", "other"
_WEIGHT = "float-weight"
_CHAIN = "float-fake-quant"
_STAYS = "skip-float"


@dataclasses.dataclass(frozen=True)
class FloatReaders:
    """What the nodes that stay in floating point read instead of 8-bit values.

    TensorRT computes a product in 8 bits as soon as both operands come from a DequantizeLinear, and where it has no
    such kernel the build fails. So a node of a type in `QUANTIZED_OPS` that `recipe` leaves out (by `quantize_ops`, or
    by name) must not meet one:

    1. A dequantised constant that it reads becomes the float numbers that it stands for, exactly.
    2. Fake quantisation in float operators that it reads stays what it is, as it does for a recipe without
       quantisation. A QuantizeLinear -> DequantizeLinear pair becomes Div, Round, Clip, Mul: the same values.
    3. Operators between that only move values (`PRESERVING`) go along.
    4. What quantised nodes read as well is written twice, once in each form: the float form is a copy of the last node
       of the chain, a chain of its own beside the pair, or copies of the moving operators.
    5. What no quantised node reads has the float form alone, and its other readers read that. While convolutions are
       quantised, this is so only for what a node that is left out reads: pairs before other operators serve the
       convolution in front of them.
    6. A pair without constant integer scales, or with scales along an unknown axis, stays, with a Change.

    Attributes:
        proto: a canonical model, edited in place by `apply`.
        weights: data of its stubs; new ones are added.
        recipe: one that quantises.
        chains: value -> the fake quantisation that makes it, of all that may become pairs.
        types: value -> type, as far as known.
        constants: of `proto`.
        made_by: value -> the node that makes it, in any graph.
        read_by: value -> the nodes that read it, in any graph.
        outputs: values that graphs return.
    """

    proto: ModelProto
    weights: Weights
    recipe: Recipe
    chains: Mapping[str, Chain]
    types: Mapping[str, TensorSpec]
    constants: Constants
    made_by: Mapping[str, NodeProto]
    read_by: Mapping[str, list[NodeProto]]
    outputs: frozenset[str]

    @classmethod
    def of(
        cls, model: Model, proto: ModelProto, weights: Weights, recipe: Recipe, chains: Iterable[Chain]
    ) -> FloatReaders:
        """The view on `proto`, a copy of that of `model`."""
        read_by: dict[str, list[NodeProto]] = {}
        for node in iter_nodes(proto.graph):
            for name in dict.fromkeys(node.input):
                read_by.setdefault(name, []).append(node)
        return cls(
            proto,
            weights,
            recipe,
            {chain.output: chain for chain in chains},
            value_types(model),
            Constants.of(proto, weights),
            {name: node for node in iter_nodes(proto.graph) for name in node.output if name},
            read_by,
            frozenset(o.name for graph in iter_graphs(proto) for o in graph.output),
        )

    @property
    def needed(self) -> bool:
        """True when there is anything quantised, and the recipe leaves something out."""
        quantised = self.chains or any(_dequantises(node) for node in self.made_by.values())
        return bool(quantised) and (
            "Conv" not in self.recipe.quantize_ops
            or any(self.kind(node) == _LEFT for nodes in self.read_by.values() for node in nodes)
        )

    def apply(self) -> tuple[frozenset[str], list[Change]]:
        """Rewrites the model.

        Returns:
            The last nodes of the chains that must not become pairs, the copies left out; and what was done. What
            nobody reads any more is not removed.
        """
        floats = frozenset(name for name in self._quantised_values() if self._float_alone(name))
        writer = _Writer(self, floats, value_namer(self.proto.graph), node_namer(self.proto.graph))
        writer.write([node for node in iter_nodes(self.proto.graph) if self.kind(node) == _LEFT])
        return frozenset(self.chains[name].end for name in floats if name in self.chains), writer.changes

    def kind(self, node: NodeProto) -> str:
        """What a reader is to this recipe."""
        if node.op_type not in QUANTIZED_OPS or plain_domain(node.domain):
            return _OTHER
        left = node.op_type not in self.recipe.quantize_ops or self.recipe.leaves(node)
        return _LEFT if left else _QUANTIZED

    def reach(self, values: Iterable[str]) -> set[str]:
        """The kinds of the readers of some values, behind operators that only move them."""
        waiting, seen, kinds = list(values), set(), set()
        while waiting:
            value = waiting.pop()
            if value in seen:
                continue
            seen.add(value)
            if value in self.outputs:
                kinds.add(_OTHER)
            for node in self.read_by.get(value, ()):
                moved = [name for name in node.output if name and moves(node, name)] if node.input[0] == value else []
                waiting.extend(moved)
                if not moved:
                    kinds.add(self.kind(node))
        return kinds

    def _quantised_values(self) -> Iterator[str]:
        """What comes out of chains and pairs, in order."""
        for node in iter_nodes(self.proto.graph):
            for name in node.output:
                if name in self.chains or (_dequantises(node) and self.starts_at(node) is not None):
                    yield name

    def starts_at(self, node: NodeProto) -> NodeProto | None:
        """The QuantizeLinear of a computed value whose result a DequantizeLinear reads; None for anything else."""
        start = self.made_by.get(node.input[0])
        if start is None or start.op_type != "QuantizeLinear" or plain_domain(start.domain):
            return None
        return None if start.input[0] in self.constants else start

    def _float_alone(self, value: str) -> bool:
        """Rule 5."""
        kinds = self.reach([value])
        return _QUANTIZED not in kinds and (_LEFT in kinds or "Conv" not in self.recipe.quantize_ops)


def moves(node: NodeProto, output: str) -> bool:
    """True for a node whose result `output` holds values of its first input, or zeros."""
    if node.op_type not in PRESERVING or plain_domain(node.domain):
        return False
    return node.op_type != "MaxPool" or output == node.output[0]


def _dequantises(node: NodeProto) -> bool:
    return node.op_type == "DequantizeLinear" and not plain_domain(node.domain)


@dataclasses.dataclass
class _Writer:
    """Edits the model of `view`; used once.

    Attributes:
        view: the model as it was.
        floats: values of chains and pairs that have the float form alone.
        values, names: give names to new values and nodes.
        forms: value -> its float form, of those made so far.
        behind: node -> new nodes behind it.
        instead: node -> new nodes in its place.
        changes: what was done so far.
    """

    view: FloatReaders
    floats: frozenset[str]
    values: Namer
    names: Namer
    forms: dict[str, str] = dataclasses.field(default_factory=dict)
    behind: dict[str, list[NodeProto]] = dataclasses.field(default_factory=dict)
    instead: dict[str, list[NodeProto]] = dataclasses.field(default_factory=dict)
    changes: list[Change] = dataclasses.field(default_factory=list)

    def write(self, readers: Iterable[NodeProto]) -> None:
        """Gives float values to `readers`, and all readers of `floats`."""
        for name in self.view.made_by:
            if name in self.floats:
                self._alone(name)
        for node in readers:
            for index, name in enumerate(node.input):
                if name:
                    node.input[index] = self._float_form(name)
        if self.behind or self.instead:
            for graph in iter_graphs(self.view.proto):  # lazily: replacing nodes copies their bodies
                changed = [
                    new
                    for node in graph.node
                    for new in (*self.instead.get(node.name, [node]), *self.behind.get(node.name, ()))
                ]
                if len(changed) != len(graph.node):
                    replace_nodes(graph, changed)

    def _alone(self, value: str) -> None:
        """A value that nothing quantised reads: a chain is left as it is, a pair is rewritten in its place."""
        node = self.view.made_by[value]
        self.forms[value] = value
        if value in self.view.chains:
            self.changes.append(Change(_CHAIN, node.name, "no quantised node reads it, so it stays float arithmetic"))
            return
        made = self._float_pair(node, value)
        if made:
            self.instead[node.name] = made
            self.changes.append(Change(_CHAIN, node.name, "no quantised node reads it: the pair is float arithmetic"))

    def _float_form(self, value: str) -> str:
        """The name under which a node that stays in float reads `value`."""
        way: list[tuple[NodeProto, str]] = []
        name = value
        while name not in self.forms:
            node = self.view.made_by.get(name)
            if node is None or not moves(node, name):
                break
            way.append((node, name))
            name = node.input[0]
        form = self._first_form(name)
        for node, result in reversed(way):
            if form != node.input[0]:
                self._move(node, form)
            form = self.forms.get(result, result)
        return form

    def _first_form(self, value: str) -> str:
        """The float form of a value that is not just moved there."""
        if value not in self.forms:
            node = self.view.made_by.get(value)
            if node is not None and value in self.view.chains:
                self.forms[value] = self._copy(node)[value]
                self.changes.append(Change(_CHAIN, node.name, "written twice: nodes that stay in float read it, too"))
            elif node is not None and _dequantises(node):
                self.forms[value] = self._dequantised(node, value)
        return self.forms.get(value, value)

    def _dequantised(self, node: NodeProto, value: str) -> str:
        """The float form of what a DequantizeLinear gives."""
        start = self.view.starts_at(node)
        if start is None:
            array = float_values(node, self.view.constants, self.view.made_by.get(node.input[0]))
            if array is None:
                self._refuse(node)
                return value
            self.changes.append(Change(_WEIGHT, node.name, "its reader computes in floating point"))
            return self.view.constants.add(array, f"{value}{MARK}values")
        made = self._float_pair(node, self.values.fresh(f"{value}{MARK}float"))
        if not made:
            return value
        self.behind.setdefault(node.name, []).extend(made)
        self.changes.append(Change(_CHAIN, node.name, "written twice: nodes that stay in float read it, too"))
        return str(made[-1].output[0])

    def _move(self, node: NodeProto, source: str) -> None:
        """Rule 3: one moving operator on the float form of its input, which its quantised readers do not read."""
        if _QUANTIZED not in self.view.reach(node.output):
            node.input[0] = source
            return
        self.forms.update(self._copy(node))
        self.behind[node.name][-1].input[0] = source

    def _copy(self, node: NodeProto) -> dict[str, str]:
        """Puts a copy of `node` behind it; returns its results by those of `node`."""
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = self._name(node, "float")
        renamed = {name: self.values.fresh(f"{name}{MARK}float") for name in node.output if name}
        copy.output[:] = [renamed.get(name, name) for name in node.output]
        self.behind.setdefault(node.name, []).append(copy)
        return renamed

    def _float_pair(self, end: NodeProto, result: str) -> list[NodeProto]:
        """Float arithmetic with the values of a pair, in nodes that give `result`; none where rule 6 holds."""
        constants = self.view.constants
        start = self.view.starts_at(end)
        plan = Quantization.of(start, constants) if start is not None else None
        other = Quantization.of(end, constants, plan.dtype) if plan is not None else None
        if start is None or plan is None or other is None or not other.equals(plan):
            self._refuse(end)
            return []
        spec = self.view.types.get(start.input[0])
        rank = len(spec.shape) if spec is not None and spec.shape is not None else None
        scale, zero = plan.spread(plan.scale, rank), plan.spread(plan.zero, rank)
        if scale is None or zero is None:
            self._refuse(end)
            return []
        step = constants.add(scale, f"{result}/step")
        ends = [
            constants.add(limit.reshape(zero.shape).astype(scale.dtype), f"{result}/{what}")
            for limit, what in zip(plan.limits, ("lowest", "highest"), strict=True)
        ]
        # Clip takes numbers alone.
        limiting = [("Clip", ends)] if zero.size == 1 else [("Max", ends[:1]), ("Min", ends[1:])]
        nodes: list[NodeProto] = []
        value = start.input[0]
        for op, more in [("Div", [step]), ("Round", []), *limiting, ("Mul", [step])]:
            name = self._name(end, op.lower())
            output = result if op == "Mul" else self.values.fresh(name)
            nodes.append(helper.make_node(op, [value, *more], [output], name))
            value = output
        return nodes

    def _refuse(self, node: NodeProto) -> None:
        kind = self.view.types.get(node.input[0])
        told = TensorProto.DataType.Name(kind.dtype) if kind is not None and kind.dtype else "quantised"
        reason = f"it has no float form ({told} data, or no constant scales along a known axis), so its readers keep it"
        self.changes.append(Change(_STAYS, node.name, reason))

    def _name(self, node: NodeProto, what: str) -> str:
        return self.names.fresh(f"{node.name}{'_' if MARK in node.name else MARK}{what}")
