"""The order of work of a model with island nodes: ONNX sections and, between them, what TensorFlow computes.

Pure data: nothing is run or loaded here. Rules:
    1. Every node has a *level*: that of the highest value that it reads. A value has the level of the node that makes
       it, and one more behind an island node. The nodes of one level are one section, so a way from a section back
       into it does not exist, whatever the graph looks like.
    2. Nodes that may run earlier or later go where the fewest bytes cross between sections (`section_levels`).
    3. The steps of a run are: section 0, the islands of level 0, section 1 ... A level without ONNX nodes has no
       section.
    4. What nothing wanted depends on is left out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from passes.base import PassError
from passes.engine_node import engine_nodes
from passes.graph.value_types import collect_infos, spec_of, value_info_of
from passes.graph.walk import bodies_of, iter_nodes
from passes.graph_index import GraphIndex
from passes.infer_shapes import InferShapes
from passes.island_node import ISLAND_DOMAIN, IslandAttributes, is_island, read_island
from passes.model import Model, is_stub
from passes.segments import ENGINE_DOMAIN, TensorSpec
from passes.splice import unsplice
from rewriter.runtime.section_levels import place


@dataclasses.dataclass(frozen=True)
class Section:
    """ONNX nodes that run together, between islands.

    Attributes:
        name: "section_000", "section_001" ... in order of the steps.
        model: stand-alone: typed inputs and outputs, and the initializers, weights (shared with the whole model, never
            copied) and functions that its nodes use; engine nodes included.
        inputs: its graph inputs; none where all that it reads is constant.
        outputs: its graph outputs, each read by another step or wanted.
    """

    name: str
    model: Model
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class IslandStep:
    """One island node.

    Attributes:
        name: its operator, "TFIsland_000".
        attributes: what the node says of itself.
        inputs: the values it reads, in the node's order; a value may come twice.
        outputs: the values it makes, in the node's order; "" for one that nobody asked for.
        dtypes: per output the declared onnx.TensorProto data type; 0 where none is declared.
        constants: those of `inputs` that are initializers; they come with the step.
    """

    name: str
    attributes: IslandAttributes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtypes: tuple[int, ...]
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


Step = Section | IslandStep
#: Computes one step: (number of the step, value name -> array of what it reads) -> value name -> array.
Compute = Callable[[int, Mapping[str, Any]], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Route:
    """A model with island nodes as steps, and how long each value is needed.

    Attributes:
        steps: see `split`.
        inputs: names of the model's inputs, in its order.
        outputs: the wanted values, without repeats.
        direct: those of `outputs` that are initializers; read-only.
        expired: per step the values that nothing needs after it.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    direct: Mapping[str, np.ndarray]
    expired: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, model: Model, outputs: Sequence[str] | None = None) -> Route:
        """The route to the wanted values; default: the graph outputs.

        Raises:
            PassError: as `split`.
        """
        wanted = tuple(dict.fromkeys(graph_outputs(model) if outputs is None else outputs))
        steps = split(model, wanted)
        tensors = {t.name: t for t in model.proto.graph.initializer}
        direct = {name: _constant(model, tensors[name]) for name in wanted if name in tensors}
        inputs = tuple(value.name for value in model.proto.graph.input if value.name not in tensors)
        return cls(steps, inputs, wanted, direct, _expired(steps, wanted))

    @property
    def islands(self) -> tuple[IslandStep, ...]:
        """The island steps, in order."""
        return tuple(step for step in self.steps if isinstance(step, IslandStep))

    @functools.cached_property
    def made_by_islands(self) -> frozenset[str]:
        """The values that islands make."""
        return frozenset(name for step in self.islands for name in step.outputs if name)

    def run(self, feeds: Mapping[str, Any], compute: Compute) -> dict[str, Any]:
        """All steps once; each value is let go when nothing needs it any more.

        Args:
            feeds: input name -> array.
            compute: computes one step; what it gives beyond the step's outputs is ignored.

        Returns:
            The wanted values by name.

        Raises:
            ValueError: an input is missing.
        """
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise ValueError(f"no value was given for the input {missing[0]!r}")
        values = {name: feeds[name] for name in self.inputs}
        values.update(self.direct)
        for number, step in enumerate(self.steps):
            made = compute(number, {name: values[name] for name in step.inputs if name in values})
            values.update((name, made[name]) for name in step.outputs if name)
            del made
            for name in self.expired[number]:
                values.pop(name, None)
        return {name: values[name] for name in self.outputs}


def graph_outputs(model: Model) -> tuple[str, ...]:
    """Names of the main graph's outputs, in order."""
    return tuple(value.name for value in model.proto.graph.output)


def split(model: Model, outputs: Sequence[str]) -> tuple[Step, ...]:
    """Cuts a model, spliced or not, into ONNX sections and island steps.

    Args:
        model: stays as it is.
        outputs: names of values of the main graph; also those that only island nodes make or read, and inputs and
            initializers (which no step makes).

    Returns:
        The steps in topological order; a model without island nodes is one section at most.

    Raises:
        PassError: there is no such output; an island node is damaged; or the type of a value that goes from one step
            to another is not known.
    """
    index = GraphIndex.of(model.proto.graph)
    wanted = tuple(dict.fromkeys(outputs))
    _check_outputs(model, index, wanted)
    needed = _needed(index, wanted)
    cutter = _Cutter(model, index, needed, wanted)
    islands = [is_island(node) for node in index.nodes]
    levels = place(index, needed, islands, wanted, cutter.sizes)
    steps: list[Step] = []
    groups: dict[int, tuple[list[int], list[int]]] = {}
    for number in needed:
        groups.setdefault(levels[number], ([], []))[islands[number]].append(number)
    sections = 0
    for level in sorted(groups):
        plain, own_islands = groups[level]
        if plain:
            steps.append(cutter.section(f"section_{sections:03d}", plain))
            sections += 1
        steps.extend(cutter.island(number) for number in own_islands)
    return tuple(steps)


def _check_outputs(model: Model, index: GraphIndex, wanted: Iterable[str]) -> None:
    others = {t.name for t in model.proto.graph.initializer} | {value.name for value in model.proto.graph.input}
    for name in wanted:
        if name not in index.producer and name not in others:
            raise PassError(f"the main graph has no value {name!r} that could be an output")


def _needed(index: GraphIndex, wanted: Iterable[str]) -> tuple[int, ...]:
    """The nodes that the wanted values depend on, ascending."""
    stack = [index.producer[name] for name in wanted if name in index.producer]
    found: set[int] = set()
    while stack:
        number = stack.pop()
        if number not in found:
            found.add(number)
            stack.extend(index.preds[number])
    return tuple(sorted(found))


class _Cutter:
    """Cuts steps out of the main graph of one model; node names need not be unique.

    Args:
        model: the model.
        index: of its main graph.
        needed: the nodes that become part of steps.
        wanted: the values that are asked for.
    """

    def __init__(self, model: Model, index: GraphIndex, needed: Sequence[int], wanted: Sequence[str]) -> None:
        self._model = model
        self._index = index
        self._needed = frozenset(needed)
        self._wanted = frozenset(wanted)
        graph = model.proto.graph
        self._tensors = {t.name: t for t in graph.initializer}
        self._sparse = {s.values.name: s for s in graph.sparse_initializer}
        self._infos = _declared(graph)
        self._functions = {(f.domain, f.name, f.overload): f for f in model.proto.functions}

    def sizes(self, name: str) -> TensorSpec:
        """What is declared of a value."""
        info = self._infos.get(name)
        return TensorSpec(name, TensorProto.UNDEFINED, None) if info is None else spec_of(info)

    def section(self, name: str, members: Sequence[int]) -> Section:
        """The stand-alone model of some nodes of one level."""
        inside = set(members)
        constants, inputs = self._read_by(members, inside)
        outputs = [
            value
            for number in members
            for value in self._index.makes[number]
            if value and (value in self._wanted or self._leaves(value, inside))
        ]
        source = self._model.proto
        proto = ModelProto(ir_version=source.ir_version, producer_name=source.producer_name)
        graph = proto.graph
        graph.name = name
        graph.node.extend(self._index.nodes[number] for number in members)
        graph.initializer.extend(self._tensors[value] for value in constants if value in self._tensors)
        graph.sparse_initializer.extend(self._sparse[value] for value in constants if value in self._sparse)
        graph.input.extend(self._typed(value, name) for value in inputs)
        graph.output.extend(self._typed(value, name) for value in outputs)
        inner = {value for number in members for value in self._index.makes[number] if value}.difference(outputs)
        graph.value_info.extend(self._infos[value] for value in sorted(inner) if value in self._infos)
        proto.functions.extend(self._used_functions(graph.node))
        left_out = {ISLAND_DOMAIN}
        if not any(True for _ in engine_nodes(proto)):
            left_out.add(ENGINE_DOMAIN)
        proto.opset_import.extend(entry for entry in source.opset_import if entry.domain not in left_out)
        weights = {value: self._model.weights[value] for value in constants if value in self._model.weights}
        return Section(name, Model(proto, weights), tuple(inputs), tuple(outputs))

    def island(self, number: int) -> IslandStep:
        """The step of an island node."""
        node = self._index.nodes[number]
        attributes = read_island(node)
        if "" in node.input:
            raise PassError(f"island node {node.name!r} has lost an input: convert the model again")
        outputs = tuple(value if value and self._is_read(value) else "" for value in node.output)
        constants = {
            value: _constant(self._model, self._tensors[value]) for value in node.input if value in self._tensors
        }
        dtypes = tuple(self.sizes(value).dtype if value else TensorProto.UNDEFINED for value in node.output)
        return IslandStep(node.op_type, attributes, tuple(node.input), outputs, dtypes, constants)

    def _read_by(self, members: Sequence[int], inside: set[int]) -> tuple[list[str], list[str]]:
        """(initializers, values from outside) that the nodes read, each in order of first use."""
        constants: dict[str, None] = {}
        inputs: dict[str, None] = {}
        for number in members:
            for value in self._index.reads[number]:
                if value in self._tensors or value in self._sparse:
                    constants[value] = None
                elif self._index.producer.get(value, -1) not in inside:
                    inputs[value] = None
        return list(constants), list(inputs)

    def _leaves(self, value: str, inside: set[int]) -> bool:
        readers = self._index.consumers.get(value, ())
        return any(reader in self._needed and reader not in inside for reader in readers)

    def _is_read(self, value: str) -> bool:
        return value in self._wanted or any(r in self._needed for r in self._index.consumers.get(value, ()))

    def _typed(self, name: str, section: str) -> ValueInfoProto:
        """The declared type of a value that crosses into or out of a section; inferred where none is declared."""
        if name not in self._infos:
            self._infos = {**self._inferred, **self._infos}
        if name not in self._infos:
            raise PassError(
                f"the type of value {name!r} is not known, but it has to be passed to or from {section!r}: run "
                "infer_shapes first"
            )
        return self._infos[name]

    @functools.cached_property
    def _inferred(self) -> dict[str, ValueInfoProto]:
        return _declared(InferShapes().run(unsplice(self._model)).model.proto.graph)

    def _used_functions(self, nodes: Iterable[NodeProto]) -> list[FunctionProto]:
        """The model-local functions that some nodes call, directly or not, in the order of the model."""
        used: set[tuple[str, str, str]] = set()
        stack = list(nodes)
        while stack and self._functions:
            node = stack.pop()
            stack.extend(inner for _, body in bodies_of(node) for inner in iter_nodes(body))
            key = (node.domain, node.op_type, node.overload)
            if key in self._functions and key not in used:
                used.add(key)
                stack.extend(self._functions[key].node)
        return [function for key, function in self._functions.items() if key in used]


def _declared(graph: GraphProto) -> dict[str, ValueInfoProto]:
    """The values of one graph that have a type; those of bodies may hide them under the same names."""
    light = ModelProto()
    for values, own in (
        (graph.value_info, light.graph.value_info),
        (graph.output, light.graph.output),
        (graph.input, light.graph.input),
    ):
        own.extend(value for value in values if value.type.WhichOneof("value") is not None)
    found = collect_infos(light)
    found.update(
        (t.name, value_info_of(t.name, TensorSpec(t.name, t.data_type, tuple(t.dims)))) for t in graph.initializer
    )
    return found


def _constant(model: Model, tensor: TensorProto) -> np.ndarray:
    """An initializer as a read-only array; strings as `str`, bytes that are no UTF-8 as lone surrogates."""
    if tensor.data_type == TensorProto.STRING:
        view = np.empty(len(tensor.string_data), dtype=object)
        view[:] = [item.decode("utf-8", "surrogateescape") for item in tensor.string_data]
        view = view.reshape(tuple(tensor.dims))
    else:
        array = model.weights[tensor.name] if is_stub(tensor) else np.asarray(numpy_helper.to_array(tensor))
        view = array.view()
    view.flags.writeable = False
    return view


def _expired(steps: Sequence[Step], wanted: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Per step the values that no later step reads and nobody wants."""
    alive = set(wanted)
    found: list[tuple[str, ...]] = []
    for step in reversed(steps):
        named = dict.fromkeys((*step.inputs, *step.outputs))
        found.append(tuple(name for name in named if name and name not in alive))
        alive.update(named)
    return tuple(reversed(found))
