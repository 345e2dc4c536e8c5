"""Puts other nodes with the same boundary in the place of segments: how lowered segments get back into their model."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from passes.base import PassError
from passes.graph.editing import Namer, filter_initializers, node_namer, replace_names
from passes.graph.value_types import spec_of
from passes.graph.walk import Scope, definitions, iter_graphs, iter_scopes, plain_domain
from passes.graph_index import GraphIndex
from passes.model import Model, Weights, is_stub
from passes.precision.opset import RaiseOpset, opset_of
from passes.precision.recipe import MARK
from passes.segments import Segment, SegmentModel


def substitute(model: Model, segments: Sequence[SegmentModel], replacements: Mapping[str, Model]) -> Model:
    """The model with the nodes of replacements in the place of those of segments.

    1. The operator sets and the IR version are the highest of all parts; parts below are raised first.
    2. The nodes of a replacement lie in the graph of its segment, main graph or body, and this is sorted again. Inner
       values and nodes keep their names, with a suffix where another value or node has that name.
    3. Initializers of replacements become main-graph initializers; equal ones of one name are kept once. Those of the
       model that nothing reads any more are dropped.

    Args:
        model: the model that the segments were extracted from; it stays as it is. Its value names are unique.
        segments: segments of the model; those without a replacement stay.
        replacements: segment name -> stand-alone model with the segment's inputs and outputs (names and element types).

    Raises:
        PassError: a replacement belongs to no segment, has another boundary or functions, or a segment belongs to
            another model; the message names the segment.
    """
    chosen = {s.segment.name: s.segment for s in segments if s.segment.name in replacements}
    _check(segments, replacements)
    if not chosen:
        return model
    base, *parts = _leveled([model, *(replacements[name] for name in chosen)])
    proto = base.copy_proto()
    _remove(proto, list(chosen.values()))
    merger = _Merger.of(proto, chosen.values())
    weights = dict(base.weights)
    graphs = dict(iter_scopes(proto))
    new: dict[Scope, list[NodeProto]] = {}
    for segment, part in zip(chosen.values(), parts, strict=True):
        new.setdefault(segment.scope, []).extend(merger.merge(graphs[segment.scope], segment, part, weights))
    # Inner graphs first: giving a graph its nodes copies them, and with them their bodies as they are by then.
    for scope in sorted(new, key=len, reverse=True):
        graph = graphs[scope]
        graph.node.extend(new[scope])
        _set_nodes(graph, GraphIndex.of(graph).nodes)
    return Model(proto, weights).with_proto(proto)


def _check(segments: Sequence[SegmentModel], replacements: Mapping[str, Model]) -> None:
    known = {s.segment.name: s for s in segments}
    for name, replacement in replacements.items():
        if name not in known:
            raise PassError(f"there is a replacement for {name!r}, but no such segment")
        if replacement.proto.functions:
            raise PassError(f"the replacement of segment {name!r} has model-local functions: inline them first")
        for what, field in (("input", "input"), ("output", "output")):
            wanted = {v.name: v for v in getattr(known[name].model.proto.graph, field)}
            given = {v.name: v for v in getattr(replacement.proto.graph, field)}
            wrong = sorted(set(wanted) ^ set(given)) or [n for n in wanted if _differ(wanted[n], given[n])]
            if wrong:
                raise PassError(f"the replacement of segment {name!r} has another {what} {wrong[0]!r} than the segment")


def _differ(one: ValueInfoProto, other: ValueInfoProto) -> bool:
    """True when both say an element type, and not the same."""
    types = spec_of(one).dtype, spec_of(other).dtype
    return all(types) and types[0] != types[1]


def _leveled(models: Sequence[Model]) -> list[Model]:
    """All models at one IR version and one version of each operator set."""
    version = max(opset_of(model.proto) for model in models)
    raised = [RaiseOpset(version).run(model).model for model in models]
    first = raised[0].copy_proto()
    first.ir_version = max(model.proto.ir_version for model in raised)
    known = {plain_domain(o.domain) for o in first.opset_import}
    for model in raised[1:]:
        for opset in model.proto.opset_import:
            if plain_domain(opset.domain) not in known:
                known.add(opset.domain)
                first.opset_import.append(opset)
    return [Model(first, raised[0].weights), *raised[1:]]


def _remove(proto: ModelProto, segments: Sequence[Segment]) -> None:
    """Takes the nodes of the segments out, with the types of inner values and the weights that only they read."""
    graphs = dict(iter_scopes(proto))
    by_scope: dict[Scope, list[Segment]] = {}
    for segment in segments:
        if segment.scope not in graphs:
            raise PassError(f"segment {segment.name!r} lies at {'/'.join(segment.scope)!r}, where there is no graph")
        by_scope.setdefault(segment.scope, []).append(segment)
    for scope in sorted(by_scope, key=len, reverse=True):
        graph = graphs[scope]
        index = GraphIndex.of(graph)
        members: set[int] = set()
        for segment in by_scope[scope]:
            members.update(index.positions(segment.nodes))
        inner = {name for member in members for name in index.nodes[member].output}
        inner.difference_update(_boundary(by_scope[scope]))
        kept = [value for value in graph.value_info if value.name not in inner]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        _set_nodes(graph, [node for i, node in enumerate(index.nodes) if i not in members])
    weights = {name for segment in segments for name in segment.weights}
    for graph in iter_graphs(proto):
        weights.difference_update(*(node.input for node in graph.node), [value.name for value in graph.output])
    for graph in iter_graphs(proto):
        filter_initializers(graph, lambda tensor: tensor.name not in weights)


def _boundary(segments: Iterable[Segment]) -> set[str]:
    return {name for segment in segments for name in (*segment.inputs, *segment.outputs)}


def _set_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Gives the graph copies of these nodes, which may be its own."""
    fresh = GraphProto()
    fresh.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(fresh.node)


@dataclasses.dataclass(frozen=True)
class _Merger:
    """Brings stand-alone models into one graph, under names that are free there.

    Attributes:
        proto: the model, edited in place.
        values: gives names to values.
        nodes: gives names to nodes.
        made: name of an initializer in a replacement (or in the model) -> those that the model has by now for it.
    """

    proto: ModelProto
    values: Namer
    nodes: Namer
    made: dict[str, list[TensorProto]]

    @classmethod
    def of(cls, proto: ModelProto, segments: Iterable[Segment]) -> _Merger:
        """For a model whose segments' nodes are gone."""
        taken = _boundary(segments)
        for graph in iter_graphs(proto):
            taken.update(definitions(graph))
        made = {t.name: [t] for t in proto.graph.initializer if t.name not in {v.name for v in proto.graph.input}}
        return cls(proto, Namer(taken), node_namer(proto.graph), made)

    def merge(self, graph: GraphProto, segment: Segment, part: Model, weights: Weights) -> list[NodeProto]:
        """The part's nodes under free names; its types go into `graph`, its initializers into the main graph."""
        copy = part.copy_proto().graph
        boundary = {*segment.inputs, *segment.outputs}
        renamed = {t.name: self._initializer(t, part.weights, boundary, weights) for t in copy.initializer}
        for inner in iter_graphs(copy):
            for name in definitions(inner):
                if name not in boundary and name not in renamed:
                    renamed[name] = self.values.fresh(name)
            for node in inner.node:
                node.name = self.nodes.fresh(node.name or node.op_type)
        loose = [name for name in segment.outputs if name in renamed]
        _rename(copy, {old: new for old, new in renamed.items() if old != new})
        for name in loose:
            # An output that lowering or folding made a constant.
            copy.node.add(
                op_type="Identity", input=[renamed[name]], output=[name], name=self.nodes.fresh(f"{name}{MARK}constant")
            )
        graph.value_info.extend(value for value in copy.value_info if value.name not in boundary)
        return list(copy.node)

    def _initializer(
        self, tensor: TensorProto, source: Mapping[str, np.ndarray], boundary: Collection[str], weights: Weights
    ) -> str:
        """The name in the model for an initializer of a part, which is added unless the model has an equal one."""
        candidates = self.made.setdefault(tensor.name, [])
        for candidate in candidates:
            if _equal(tensor, source.get(tensor.name), candidate, weights.get(candidate.name)):
                return candidate.name
        base = f"{tensor.name}{MARK}constant" if tensor.name in boundary else tensor.name
        added = self.proto.graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = self.values.fresh(base)
        if is_stub(tensor):
            weights[added.name] = source[tensor.name]
        candidates.append(added)
        return str(added.name)


def _equal(one: TensorProto, mine: np.ndarray | None, other: TensorProto, its: np.ndarray | None) -> bool:
    """True for two initializers of the same type, shape and bytes."""
    if one.data_type != other.data_type or one.dims != other.dims or is_stub(one) != is_stub(other):
        return False
    if mine is not None and its is not None and is_stub(one):
        return mine is its or np.array_equal(_bytes(mine), _bytes(its))
    return numpy_helper.to_array(one).tobytes() == numpy_helper.to_array(other).tobytes()


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Renames values in a graph whose value names are unique, bodies included, but not its inputs and outputs."""
    for number, inner in enumerate(iter_graphs(graph)):
        for node in inner.node:
            replace_names(node.input, names)
            replace_names(node.output, names)
        owned = (*inner.input, *inner.output, *inner.initializer) if number else ()
        for value in (*inner.value_info, *owned):
            value.name = names.get(value.name, value.name)
