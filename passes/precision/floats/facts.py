"""One model as lowering sees it: nodes of all graphs in one order, who makes and who reads a value, and its type."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from onnx import GraphProto, NodeProto, TensorProto

from passes.graph.boundary import constant_names
from passes.graph.walk import bodies_of, plain_domain
from passes.model import Model
from passes.precision.element_types import element_types
from passes.precision.floats.constants import Constants
from passes.precision.floats.types import FIXED_INPUTS, Flags, Signature, attribute_int, signature

_FLOAT = TensorProto.FLOAT


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """What the policy asks about.

    Attributes:
        low: the lower element type.
        opset: version of the default domain.
        nodes: nodes of all graphs; those of bodies right before the node that has them.
        inputs, outputs: per node the names as they stand.
        owners: per node the nodes whose bodies it is in, outermost first.
        has_body: per node: does it have bodies?
        types: value name -> element type.
        producer: value name -> number of its node.
        readers: value name -> numbers of the nodes that read it as an input.
        body_sources: input of a body -> outer values that it may hold.
        body_results: value name of a control-flow node's output -> body values that it may hold.
        results: names of the outputs of the graph and of all bodies: they keep their type.
        fixed: names of all constants, whatever their type.
        constants: the float32 constants of the main graph.
        signatures: per node its signature, None for an unknown operator.
        floats: per node: does it read or make a float32 value?
    """

    low: int
    opset: int
    nodes: Sequence[NodeProto]
    inputs: Sequence[Sequence[str]]
    outputs: Sequence[Sequence[str]]
    owners: Sequence[tuple[NodeProto, ...]]
    has_body: Sequence[bool]
    types: Mapping[str, int]
    producer: Mapping[str, int]
    readers: Mapping[str, Sequence[int]]
    body_sources: Mapping[str, Sequence[str]]
    body_results: Mapping[str, Sequence[str]]
    results: frozenset[str]
    fixed: frozenset[str]
    constants: Constants
    signatures: Sequence[Signature | None]
    floats: Sequence[bool]
    _flags: dict[int, tuple[Flags, Flags]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, low: int) -> Facts:
        """Looks at a canonical model once."""
        collector = _Collector()
        collector.visit(model.proto.graph, ())
        versions = {plain_domain(o.domain): o.version for o in model.proto.opset_import}
        producer: dict[str, int] = {}
        readers: dict[str, list[int]] = {}
        for number, names in enumerate(collector.outputs):
            producer.update((name, number) for name in names if name)
        for number, names in enumerate(collector.inputs):
            for name in dict.fromkeys(names):
                if name:
                    readers.setdefault(name, []).append(number)
        types = element_types(model)
        known = {name for name, dtype in types.items() if dtype == _FLOAT}
        return cls(
            low,
            versions.get("", 1),
            collector.nodes,
            collector.inputs,
            collector.outputs,
            collector.owners,
            collector.has_body,
            types,
            producer,
            readers,
            collector.body_sources,
            collector.body_results,
            frozenset(collector.results),
            constant_names(model.proto),
            Constants(model, low),
            [signature(n.op_type, n.domain, versions.get(plain_domain(n.domain), 1), low) for n in collector.nodes],
            [
                not known.isdisjoint(i) or not known.isdisjoint(o)
                for i, o in zip(collector.inputs, collector.outputs, strict=True)
            ],
        )

    def touches(self, number: int) -> bool:
        """True for a node that reads or makes a float32 value."""
        return self.floats[number]

    def is_float(self, name: str) -> bool:
        """True for a float32 value."""
        return bool(name) and self.types.get(name) == _FLOAT

    def float_inputs(self, number: int) -> list[str]:
        """The float32 values that a node reads, constants included."""
        return [name for name in self.inputs[number] if self.types.get(name) == _FLOAT]

    def float_data(self, number: int) -> list[str]:
        """The float32 values that a node reads and that are no constants."""
        return [name for name in self.float_inputs(number) if name not in self.constants]

    def lowered_flags(self, number: int) -> tuple[Flags, Flags]:
        """Which inputs and outputs become the lower type when the node is lowered."""
        cached = self._flags.get(number)
        if cached is None:
            cached = self._flags[number] = self._lowered_flags(number)
        return cached

    def _lowered_flags(self, number: int) -> tuple[Flags, Flags]:
        node, kind, inputs = self.nodes[number], self.signatures[number], self.inputs[number]
        if kind is None:
            return (False,) * len(inputs), (False,) * len(self.outputs[number])
        fixed = FIXED_INPUTS.get(node.op_type, ())
        may = kind.lowered_inputs(len(inputs))
        given = tuple(
            [
                ok and i not in fixed and self.types.get(name) == _FLOAT
                for i, (ok, name) in enumerate(zip(may, inputs, strict=True))
            ]
        )
        if node.op_type == "ConstantOfShape" or (node.op_type == "Cast" and attribute_int(node, "to") == _FLOAT):
            return tuple([self.types.get(name) == _FLOAT and node.op_type == "Cast" for name in inputs]), (True,)
        made = kind.lowered_outputs(node, given)
        made = tuple([ok and self.types.get(n) == _FLOAT for ok, n in zip(made, self.outputs[number], strict=True)])
        return given, made


class _Collector:
    """Fills the lists of `Facts` in one walk."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.inputs: list[list[str]] = []
        self.outputs: list[list[str]] = []
        self.owners: list[tuple[NodeProto, ...]] = []
        self.has_body: list[bool] = []
        self.body_sources: dict[str, list[str]] = {}
        self.body_results: dict[str, list[str]] = {}
        self.results: set[str] = set()

    def visit(self, graph: GraphProto, owners: tuple[NodeProto, ...]) -> None:
        """Adds the nodes of a graph, those of bodies first, so that a value is made before it is read."""
        self.results.update(value.name for value in graph.output)
        for node in graph.node:
            bodies = bodies_of(node)
            for _, body in bodies:
                self._connect(node, body)
                self.visit(body, (*owners, node))
            self.nodes.append(node)
            self.inputs.append(node.input[:])
            self.outputs.append(node.output[:])
            self.owners.append(owners)
            self.has_body.append(bool(bodies))

    def _connect(self, node: NodeProto, body: GraphProto) -> None:
        """Notes which values flow into a body, round it and out of it."""
        made = [value.name for value in body.output]
        first = 1 if node.op_type == "Loop" else 0  # a Loop's first body output is its condition
        for name, result in zip(node.output, made[first:], strict=False):
            self.body_results.setdefault(name, []).append(result)
        carried = len(body.input) - first if node.op_type == "Loop" else len(node.output)
        for i, value in enumerate(body.input):
            sources = [node.input[i]] if i < len(node.input) and node.input[i] else []
            back = i - 1 if node.op_type == "Loop" else i
            if 0 <= back < min(len(made), carried):
                sources.append(made[back])
            self.body_sources[value.name] = sources
