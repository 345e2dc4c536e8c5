"""The order of work of a spliced model: engines and native islands, cut once, pure data.

An *island* is a stand-alone model of native nodes; ONNX Runtime runs it between the engines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, numpy_helper

from passes.base import PassError
from passes.engine_node import read_attributes
from passes.extract import Extractor
from passes.graph.clustering import Dag, cluster
from passes.graph.content_hash import WeightDigests, content_hash, opset_versions
from passes.graph.order import stable_order
from passes.graph.shape_sources import shape_sources
from passes.graph.value_types import collect_infos, value_info_of, value_types
from passes.graph_index import GraphIndex
from passes.model import Model, is_stub
from passes.segments import ENGINE_DOMAIN, Segment, SegmentModel, TensorSpec
from passes.splice import unsplice
from rewriter.runtime.schedule_graph import prepare, prune, with_types


@dataclasses.dataclass(frozen=True)
class Binding:
    """One tensor between a step and the rest.

    Attributes:
        value: its name in the scheduled graph.
        tensor: its name inside the step's model or engine; another one when a tool renamed values around the node.
    """

    value: str
    tensor: str


@dataclasses.dataclass(frozen=True)
class EngineStep:
    """One engine node of the main graph.

    Attributes:
        name: name of the node.
        op: its operator, "TRTEngineOp_000".
        inputs: its data inputs, in the segment's order; two may have the same value.
        outputs: all outputs of the segment in its order, also those that nobody reads.
        native: the segment as a stand-alone model, not lowered: what runs when no engine can, and what builds at run
            time start from. Its inputs and outputs are the tensors of `inputs` and `outputs`, one for one.
    """

    name: str
    op: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    native: SegmentModel


@dataclasses.dataclass(frozen=True)
class NativeStep:
    """One native island.

    Attributes:
        name: "native_000", "native_001" ... in order of the steps.
        inputs: its graph inputs; none when all that it reads is constant.
        outputs: its graph outputs, each read by another step or asked for.
        model: the stand-alone model.
        on_host: True when a boundary value has no place on the device (strings, and what is no tensor).
    """

    name: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    model: Model
    on_host: bool


Step = EngineStep | NativeStep


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What runs in which order, and what is known of the values in between.

    Attributes:
        steps: in topological order.
        inputs: of the model, all of them, in its order; `tensor` is the value name.
        outputs: value names as asked for, without repeats. Each is made by a step, an input, or in `direct`.
        specs: dtype and shape, as far as known, of every value that crosses a step's boundary, of inputs and outputs.
        direct: outputs that are constants (no step makes them); read-only for the caller.
        fixed: of the values in `specs` those whose *shape* the shapes of the model's inputs decide.
        shape_values: of the values in `specs` those whose *elements* these shapes decide; constants are among them.
        inner: engine operator -> why it runs natively inside an island: it lies in a body, or a tool damaged it.
    """

    steps: tuple[Step, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    specs: Mapping[str, TensorSpec]
    direct: Mapping[str, np.ndarray]
    fixed: frozenset[str]
    shape_values: frozenset[str]
    inner: Mapping[str, str]

    @property
    def is_fixed(self) -> bool:
        """True when the shapes of the inputs decide all others: then a plan can be made once for them."""
        return self.fixed.issuperset(self.specs)


def make_schedule(model: Model, outputs: Sequence[str], engines: Collection[str], *, hashed: bool = True) -> Schedule:
    """Cuts a spliced model into engine steps and as few native islands as possible.

    1. Engine nodes that are not in `engines`, or cannot be steps (see `Schedule.inner`), become native nodes again.
    2. Nodes that no asked output needs are dropped, engine nodes too; nodes on the way to them never form a step.
    3. Native nodes are clustered, connected or not, so that contracting each cluster gives no cycle: the islands.
    4. Constants are copied into each step that reads them. Where an engine reads one as data, because a tool folded
       what made it, an island makes it.
    5. An output that a tool left out at an engine node gets a name of its own: engines write all their outputs.

    Args:
        model: spliced; it stays as it is. Large weights are shared with the steps, never copied.
        outputs: names of values of the main graph.
        engines: operators of the main graph's engine nodes that are to be engine steps; those that lie in bodies of
            control flow are native in any case.
        hashed: False leaves `content_hash` of the native models empty (`passes.extract.rehash` fills it in later):
            then no weights are read, which takes about a second a gigabyte and brings mapped weights into memory.

    Raises:
        PassError: there is no such output or engine; an engine node has lost its function or its attributes; or the
            type of a value between two steps is not known.
    """
    work = prepare(model, engines)
    whole = with_types(unsplice(work.model))
    wanted = tuple(dict.fromkeys(outputs))
    spliced = prune(work.model, wanted, collect_infos(whole.proto))
    extractor = Extractor(spliced, value_types(whole))
    index = extractor.index(())
    tensors = {t.name: t for t in spliced.proto.graph.initializer}
    cutter = _Cutter(spliced, extractor, tensors, WeightDigests() if hashed else None)
    steps: list[Step] = []
    islands = 0
    for members in _groups(index):
        first = index.nodes[members[0]]
        if first.domain == ENGINE_DOMAIN:
            steps.append(cutter.engine_step(first, work.functions[first.op_type]))
        else:
            steps.append(cutter.native_step(f"native_{islands:03d}", [index.names[member] for member in members]))
            islands += 1
    inputs = tuple(extractor.spec(value.name) for value in spliced.proto.graph.input)
    names = [spec.tensor for spec in inputs] + [b.value for s in steps for b in (*s.inputs, *s.outputs)]
    specs = {name: extractor.spec(name) for name in (*names, *wanted)}
    sources = shape_sources(whole)
    return Schedule(
        tuple(steps),
        inputs,
        wanted,
        specs,
        _direct(spliced, tensors, wanted),
        sources.fixed.intersection(specs),
        sources.shape_values.intersection(specs),
        work.native,
    )


def _groups(index: GraphIndex) -> list[tuple[int, ...]]:
    """The nodes of every step, in the order of the steps: islands, and engine nodes alone."""
    native = [node.domain != ENGINE_DOMAIN for node in index.nodes]
    # No cluster reaches this weight, so all that can be one island become one.
    islands = cluster(Dag.of(index.preds, native), minimum=len(native) + 1, absorb=True)
    alone = [(number,) for number, is_native in enumerate(native) if not is_native]
    groups = sorted([*islands, *alone])
    group_of = {number: group for group, members in enumerate(groups) for number in members}
    sources = [
        sorted({group_of[p] for number in members for p in index.preds[number]} - {group})
        for group, members in enumerate(groups)
    ]
    order, _ = stable_order(sources)
    return [groups[group] for group in order]


@dataclasses.dataclass(frozen=True)
class _Cutter:
    """Cuts steps out of one model.

    Attributes:
        model: the main graph with those engine nodes that are steps.
        extractor: of that model, with all types that are known.
        tensors: its initializers by name.
        digests: of its weights, so that each is hashed once; None for models without a hash.
    """

    model: Model
    extractor: Extractor
    tensors: Mapping[str, TensorProto]
    digests: WeightDigests | None

    def native_step(self, name: str, nodes: Sequence[str]) -> NativeStep:
        island = self.extractor.extract_nodes((), nodes, name, hashed=False)
        island.model.proto.functions.extend(self.model.proto.functions)
        for value in island.model.proto.graph.input:
            if not value.HasField("type"):
                raise PassError(f"the type of value {value.name!r} is not known, but it has to be passed to {name!r}")
        specs = (*island.inputs, *island.outputs)
        on_host = any(spec.dtype in (TensorProto.STRING, TensorProto.UNDEFINED) for spec in specs)
        inputs, outputs = (tuple(Binding(s.tensor, s.tensor) for s in side) for side in (island.inputs, island.outputs))
        return NativeStep(name, inputs, outputs, island.model, on_host)

    def engine_step(self, node: NodeProto, function: FunctionProto) -> EngineStep:
        given = read_attributes(node).data_inputs
        inputs = tuple(Binding(v, t) for v, t in zip(node.input[:given], function.input[:given], strict=True))
        outputs = tuple(Binding(v, t) for v, t in zip(node.output, function.output, strict=True))
        weights = dict(zip(function.input[given:], node.input[given:], strict=True))
        return EngineStep(node.name, node.op_type, inputs, outputs, self._native(function, inputs, outputs, weights))

    def _native(
        self,
        function: FunctionProto,
        inputs: Sequence[Binding],
        outputs: Sequence[Binding],
        weights: Mapping[str, str],
    ) -> SegmentModel:
        """The stand-alone model of a function under the function's own names, which the engine has too.

        It is what `Extractor` cut when the engine was built, whatever tools renamed since. `weights` maps names in the
        function to initializers of the model.
        """
        proto = ModelProto(ir_version=self.model.proto.ir_version, producer_name=self.model.proto.producer_name)
        proto.opset_import.extend(self.model.proto.opset_import)
        proto.functions.extend(self.model.proto.functions)
        graph = proto.graph
        graph.name = function.name
        graph.node.extend(function.node)
        arrays: dict[str, np.ndarray] = {}
        for formal, actual in weights.items():
            tensor = graph.initializer.add()
            tensor.CopyFrom(self.tensors[actual])
            tensor.name = formal
            if is_stub(tensor):
                arrays[formal] = self.model.weights[actual]
        ins, outs = self._specs(inputs), self._specs(outputs)
        graph.input.extend(value_info_of(spec.tensor, spec) for spec in ins)
        graph.output.extend(value_info_of(spec.tensor, spec) for spec in outs)
        outside = {spec.tensor for spec in (*ins, *outs)}.union(weights)
        graph.value_info.extend(value for value in function.value_info if value.name not in outside)
        digest = ""
        if self.digests is not None:
            digest = content_hash(
                graph,
                opsets=opset_versions(proto),
                inputs=ins,
                outputs=outs,
                weights=arrays,
                digests=self.digests,
                inline={},
            )
        names = tuple(inner.name for inner in function.node)
        formals = (tuple(b.tensor for b in inputs), tuple(weights), tuple(b.tensor for b in outputs))
        segment = Segment(function.name, (), names, *formals, len(names))
        return SegmentModel(segment, Model(proto, arrays), ins, outs, digest)

    def _specs(self, bindings: Sequence[Binding]) -> tuple[TensorSpec, ...]:
        """What is known of the bound values, under their names inside."""
        known = ((binding.tensor, self.extractor.spec(binding.value)) for binding in bindings)
        return tuple(TensorSpec(name, spec.dtype, spec.shape) for name, spec in known)


def _direct(model: Model, tensors: Mapping[str, TensorProto], wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """The wanted values that are constants."""
    found: dict[str, np.ndarray] = {}
    for name in wanted:
        if name in tensors:
            stub = is_stub(tensors[name])
            array = model.weights[name] if stub else numpy_helper.to_array(tensors[name])
            array.flags.writeable = False
            found[name] = array
    return found
