"""Puts one engine node in the place of every segment, with the native segment behind it as a model-local function.

Any ONNX runtime inlines the function and runs the original nodes; a runtime with engines looks at the attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from passes.base import PassError
from passes.engine_node import EngineAttributes, engine_nodes, read_attributes, read_engines, write_attributes
from passes.graph.editing import Namer, node_namer, value_namer
from passes.graph.value_types import collect_infos
from passes.graph.walk import Scope, bodies_of, defined_names, iter_graphs, iter_scopes, plain_domain
from passes.graph_index import GraphIndex
from passes.model import Model
from passes.segments import ENGINE_DOMAIN, ENGINE_DOMAIN_VERSION, Segment, Segmentation

#: FunctionProto.value_info, which carries the types of inner values, exists since this IR version.
MINIMUM_IR_VERSION = 10

__all__ = ["EngineAttributes", "read_attributes", "read_engines", "splice", "unsplice"]


def splice(model: Model, segmentation: Segmentation, engines: Mapping[str, EngineAttributes]) -> Model:
    """Replaces every segment by an engine node.

    1. The node is `trt_rewriter.<segment name>`; its inputs are the segment's data inputs, then its weights, which stay
       initializers where they are; its name is the segment's, with a suffix where a node has that name already.
    2. The function of the same name holds the segment's nodes unchanged, under their own value names, with the types of
       its values; it imports the operator sets that they use.
    3. Every graph that was touched is sorted again, in bodies as well.

    Args:
        model: the model that `segmentation` was proposed for; it stays as it is.
        segmentation: from `passes.partition.propose`.
        engines: segment name -> attributes, one for every segment; `data_inputs` is that of the segment.

    Raises:
        PassError: attributes are missing, left over or wrong, the model holds engine nodes already, or the segmentation
            belongs to another model; the message names the segment.
    """
    _check(model, segmentation, engines)
    proto = model.copy_proto()
    infos = collect_infos(model.proto)
    graphs = dict(iter_scopes(proto))
    names = node_namer(proto.graph)
    by_scope: dict[Scope, list[Segment]] = {}
    for segment in segmentation.segments:
        by_scope.setdefault(segment.scope, []).append(segment)
    # Inner graphs first: rewriting a graph copies its nodes, and with them their bodies as they are by then.
    for scope in sorted(by_scope, key=len, reverse=True):
        if scope not in graphs:
            raise PassError(f"segment {by_scope[scope][0].name!r} lies at {'/'.join(scope)!r}, where there is no graph")
        _rewrite(graphs[scope], by_scope[scope], engines, names)
    sources = {scope: GraphIndex.of(graph) for scope, graph in iter_scopes(model.proto) if scope in by_scope}
    for segment in segmentation.segments:
        proto.functions.append(_function(proto, sources[segment.scope], segment, infos))
    if segmentation.segments:
        proto.ir_version = max(proto.ir_version, MINIMUM_IR_VERSION)
        proto.opset_import.add(domain=ENGINE_DOMAIN, version=ENGINE_DOMAIN_VERSION)
    return model.with_proto(proto)


def unsplice(model: Model, keep: Collection[str] = ()) -> Model:
    """The native model again: every engine node is replaced by the nodes of its function, under their own names.

    Inner values keep their names unless the model uses them elsewhere by now. The IR version stays.

    Args:
        model: the spliced model; it stays as it is.
        keep: operators of engine nodes that are left as they are; their functions stay, and with the first of them the
            import of the domain.

    Raises:
        PassError: the function of an engine node is missing (some tools drop functions).
    """
    proto = model.copy_proto()
    functions = {f.name: f for f in model.proto.functions if f.domain == ENGINE_DOMAIN}
    kept = {node.op_type for _, node in engine_nodes(proto)}.intersection(keep)
    found = {scope for scope, node in engine_nodes(proto) if node.op_type not in kept}
    graphs = dict(iter_scopes(proto))
    values = value_namer(proto.graph)
    names = node_namer(proto.graph)
    for scope in sorted(found, key=lambda way: (-len(way), way)):
        graph = graphs[scope]
        nodes: list[NodeProto] = []
        for node in graph.node:
            if node.domain != ENGINE_DOMAIN or node.op_type in kept:
                nodes.append(node)
                continue
            if node.op_type not in functions:
                raise PassError(f"engine node {node.name!r} has lost its function: a tool dropped it, convert again")
            nodes += _inline(node, functions[node.op_type], graph, values, names)
        _replace_nodes(graph, nodes)
    left = [f for f in proto.functions if f.domain != ENGINE_DOMAIN or f.name in kept]
    del proto.functions[:]
    proto.functions.extend(left)
    imports = [o for o in proto.opset_import if o.domain != ENGINE_DOMAIN or kept]
    del proto.opset_import[:]
    proto.opset_import.extend(imports)
    return model.with_proto(proto)


def _check(model: Model, segmentation: Segmentation, engines: Mapping[str, EngineAttributes]) -> None:
    if any(f.domain == ENGINE_DOMAIN for f in model.proto.functions):
        raise PassError("the model holds engine nodes already: unsplice it first")
    segments = {segment.name: segment for segment in segmentation.segments}
    if set(segments) != set(engines):
        difference = ", ".join(sorted(set(segments) ^ set(engines)))
        raise PassError(f"every segment needs engine attributes, and nothing else does: {difference}")
    for name, segment in segments.items():
        said = engines[name].data_inputs
        if said != len(segment.inputs):
            raise PassError(f"segment {name!r} has {len(segment.inputs)} data inputs, but its attributes say {said}")


def _rewrite(
    graph: GraphProto, segments: Sequence[Segment], engines: Mapping[str, EngineAttributes], names: Namer
) -> None:
    """Replaces the segments of one graph, in place."""
    index = GraphIndex.of(graph)
    owner: dict[int, Segment] = {}
    last: dict[int, Segment] = {}
    inner: set[str] = set()
    for segment in segments:
        members = index.positions(segment.nodes)
        taken = next((m for m in members if m in owner), None)
        if taken is not None:
            raise PassError(f"node {index.nodes[taken].name!r} lies in {owner[taken].name!r} and in {segment.name!r}")
        owner.update((m, segment) for m in members)
        last[members[-1]] = segment
        inner.update(name for m in members for name in index.nodes[m].output)
        inner.difference_update(segment.outputs)
    nodes: list[NodeProto] = []
    for number, node in enumerate(index.nodes):
        if number not in owner:
            nodes.append(node)
        elif number in last:
            nodes.append(_engine_node(last[number], engines[last[number].name], names))
    _replace_nodes(graph, nodes)
    kept = [value for value in graph.value_info if value.name not in inner]
    if len(kept) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _engine_node(segment: Segment, attributes: EngineAttributes, names: Namer) -> NodeProto:
    node = NodeProto(op_type=segment.name, domain=ENGINE_DOMAIN, name=names.fresh(segment.name))
    node.input.extend((*segment.inputs, *segment.weights))
    node.output.extend(segment.outputs)
    write_attributes(node, attributes)
    return node


def _replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Gives the graph these nodes, topologically sorted."""
    fresh = GraphProto(name=graph.name)
    fresh.output.extend(graph.output)
    fresh.node.extend(nodes)
    ordered = GraphIndex.of(fresh).nodes
    del graph.node[:]
    graph.node.extend(ordered)


def _function(
    proto: ModelProto, index: GraphIndex, segment: Segment, infos: Mapping[str, ValueInfoProto]
) -> FunctionProto:
    members = index.positions(segment.nodes)
    function = FunctionProto(name=segment.name, domain=ENGINE_DOMAIN)
    function.input.extend((*segment.inputs, *segment.weights))
    function.output.extend(segment.outputs)
    function.node.extend(index.nodes[m] for m in members)
    bodies = (body for node in function.node for _, body in bodies_of(node))
    domains = {plain_domain(node.domain) for body in bodies for graph in iter_graphs(body) for node in graph.node}
    domains.update(plain_domain(node.domain) for node in function.node)
    function.opset_import.extend(o for o in proto.opset_import if plain_domain(o.domain) in domains)
    made = (name for node in function.node for name in node.output if name)
    known = (infos.get(name) for name in (*function.input, *made))
    function.value_info.extend(value for value in known if value is not None)
    return function


def _inline(
    node: NodeProto, function: FunctionProto, graph: GraphProto, values: Namer, names: Namer
) -> list[NodeProto]:
    """Copies of the function's nodes with the engine node's own inputs and outputs; adds their types to the graph."""
    renamed = dict(zip(function.input, (*node.input, *[""] * len(function.input)), strict=False))
    # An output that a tool left out, because nobody reads it, is an inner value by now.
    renamed.update((formal, actual) for formal, actual in zip(function.output, node.output, strict=False) if actual)
    inner = [name for n in function.node for name in n.output if name and name not in renamed]
    for name in inner:
        renamed[name] = values.fresh(name)
    renamed = {old: new for old, new in renamed.items() if old != new}
    nodes: list[NodeProto] = []
    for original in function.node:
        copy = NodeProto()
        copy.CopyFrom(original)
        copy.name = names.fresh(copy.name)
        if renamed:
            _rename(copy, renamed)
        nodes.append(copy)
    known = {value.name: value for value in function.value_info}
    for name in inner:
        if name in known:
            value = graph.value_info.add()
            value.CopyFrom(known[name])
            value.name = renamed.get(name, name)
    return nodes


def _rename(node: NodeProto, renamed: Mapping[str, str]) -> None:
    """Renames what a node reads and makes, also what its bodies capture; names that a body defines hide outer ones."""
    for field in (node.input, node.output):
        changed = [renamed.get(name, name) for name in field]
        del field[:]
        field.extend(changed)
    for _, body in bodies_of(node):
        hidden = defined_names(body)
        visible = {old: new for old, new in renamed.items() if old not in hidden}
        for inner in body.node:
            _rename(inner, visible)
        for output in body.output:
            output.name = visible.get(output.name, output.name)
