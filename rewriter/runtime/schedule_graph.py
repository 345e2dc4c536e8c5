"""The graph that a schedule is cut from: a spliced model in which tools may have changed this and that."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from passes.base import PassError
from passes.engine_node import engine_nodes, read_attributes
from passes.graph.editing import Namer, node_namer, replace_nodes, value_namer
from passes.graph.value_types import collect_infos, set_tensor_type
from passes.graph.walk import plain_domain
from passes.graph_index import GraphIndex
from passes.infer_shapes import InferShapes
from passes.model import Model
from passes.segments import ENGINE_DOMAIN
from passes.splice import unsplice


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The spliced model with only the engine nodes that become steps, their functions, and why others do not."""

    model: Model
    functions: Mapping[str, FunctionProto]
    native: Mapping[str, str]


def prepare(model: Model, engines: Collection[str]) -> Prepared:
    """Unsplices all engine nodes but those that become steps, and mends what tools did to the graph.

    Raises:
        PassError: an operator of `engines` has no node; an engine node has lost its function or its attributes.
    """
    proto = model.copy_proto()
    _make_constants_plain(proto)
    functions = {f.name: f for f in proto.functions if f.domain == ENGINE_DOMAIN}
    native = {
        node.op_type: f"it lies in the body of {scope[0].rpartition('/')[0]!r}, which ONNX Runtime runs as a whole"
        for scope, node in engine_nodes(proto)
        if scope
    }
    own = [node for node in proto.graph.node if node.domain == ENGINE_DOMAIN]
    unknown = sorted(set(engines) - {node.op_type for node in own} - set(native))
    if unknown:
        raise PassError(f"the model has no engine node of the operator {unknown[0]!r}: convert again")
    constants = {t.name: t for t in proto.graph.initializer}
    values = value_namer(proto.graph)
    infos = set(collect_infos(proto))
    keep: set[str] = set()
    wanted = set(engines) - set(native)
    for node in own:
        function = functions.get(node.op_type)
        if function is None:
            raise PassError(f"engine node {node.name!r} has lost its function: a tool dropped it, convert again")
        problem = _damage(node, function, constants) if node.op_type in wanted else ""
        if problem:
            native[node.op_type] = problem
        elif node.op_type in wanted:
            keep.add(node.op_type)
            infos.update(_complete(proto, node, function, constants, values))
        _add_types(proto, node, function, infos)
    _name_nodes(proto)
    return Prepared(unsplice(model.with_proto(proto), keep - set(native)), functions, dict(sorted(native.items())))


def _make_constants_plain(proto: ModelProto) -> None:
    """Dense Constant nodes of the main graph become initializers, sparse initializers become Constant nodes.

    Inputs that are initializers too, which are only defaults, are no inputs any more. `Canonicalize` leaves little of
    all this; tools bring it back.
    """
    graph = proto.graph
    nodes: list[NodeProto] = []
    for sparse in graph.sparse_initializer:
        node = NodeProto(op_type="Constant", output=[sparse.values.name])
        attribute = node.attribute.add(name="sparse_value", type=AttributeProto.SPARSE_TENSOR)
        attribute.sparse_tensor.CopyFrom(sparse)
        nodes.append(node)
    for node in graph.node:
        held = [a for a in node.attribute if a.name == "value"] if node.op_type == "Constant" else []
        if not held or plain_domain(node.domain):
            nodes.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(held[0].t)
        tensor.name = node.output[0]
    del graph.sparse_initializer[:]
    replace_nodes(graph, nodes)
    defaults = {t.name for t in graph.initializer} | {n.output[0] for n in nodes if n.op_type == "Constant"}
    inputs = [value for value in graph.input if value.name not in defaults]
    del graph.input[:]
    graph.input.extend(inputs)


def _damage(node: NodeProto, function: FunctionProto, constants: Collection[str]) -> str:
    """Why an engine node cannot be a step although it is in the main graph; "" when it can."""
    given = read_attributes(node).data_inputs
    actual = [*node.input, *[""] * (len(function.input) - len(node.input))]
    for place, (formal, name) in enumerate(zip(function.input, actual, strict=False)):
        if not name:
            return f"its input {formal!r} was taken away by a tool"
        if place >= given and name not in constants:
            return f"its weight {formal!r} is no constant any more"
    return ""


def _complete(
    proto: ModelProto, node: NodeProto, function: FunctionProto, constants: Mapping[str, TensorProto], values: Namer
) -> list[str]:
    """Gives the node a value for each output, and one that a node makes for each constant among its data.

    Returns:
        The values that were added to the graph, with their types.
    """
    added: list[str] = []
    for place in range(read_attributes(node).data_inputs):
        tensor = constants.get(node.input[place])
        if tensor is not None:
            name = values.fresh(tensor.name)
            proto.graph.node.add(op_type="Identity", input=[tensor.name], output=[name])
            set_tensor_type(proto.graph.value_info.add(name=name).type, tensor.data_type, tuple(tensor.dims))
            node.input[place] = name
            added.append(name)
    made = [*node.output, *[""] * (len(function.output) - len(node.output))]
    del node.output[:]
    node.output.extend(name or values.fresh(formal) for formal, name in zip(function.output, made, strict=False))
    return added


def _add_types(proto: ModelProto, node: NodeProto, function: FunctionProto, infos: set[str]) -> None:
    """Declares what the function knows of the node's inputs and outputs and the graph does not."""
    known = {value.name: value for value in function.value_info}
    pairs = [*zip(function.input, node.input, strict=False), *zip(function.output, node.output, strict=False)]
    for formal, actual in pairs:
        if actual and actual not in infos and formal in known:
            value = proto.graph.value_info.add()
            value.CopyFrom(known[formal])
            value.name = actual
            infos.add(actual)


def _name_nodes(proto: ModelProto) -> None:
    """Gives every node of the main graph a name of its own, by which it is cut."""
    names = node_namer(proto.graph)
    seen: set[str] = set()
    for node in proto.graph.node:
        if not node.name or node.name in seen:
            node.name = names.fresh(node.name or node.op_type)
        seen.add(node.name)


def with_types(whole: Model) -> Model:
    """The model with the type of every value, inferred only when one is missing: that takes time."""
    known = collect_infos(whole.proto)
    if all(name in known for node in whole.proto.graph.node for name in node.output if name):
        return whole
    return InferShapes().run(whole).model


def prune(model: Model, wanted: Sequence[str], infos: Mapping[str, ValueInfoProto]) -> Model:
    """The model with the wanted outputs and the nodes that they need, with the types in `infos`.

    The import of the engine nodes' domain and their functions go: no step has use for them.

    Raises:
        PassError: there is no such value in the main graph.
    """
    proto = model.copy_proto()
    graph = proto.graph
    index = GraphIndex.of(graph)
    others = {t.name for t in graph.initializer} | {value.name for value in graph.input}
    for name in wanted:
        if name not in index.producer and name not in others:
            raise PassError(f"the main graph has no value {name!r} that could be an output")
    stack = [index.producer[name] for name in wanted if name in index.producer]
    needed: set[int] = set()
    while stack:
        number = stack.pop()
        if number not in needed:
            needed.add(number)
            stack.extend(index.preds[number])
    replace_nodes(graph, [index.nodes[number] for number in sorted(needed)])
    # Types that were inferred, sequences among them, and those of former outputs.
    declared = {value.name for value in graph.value_info}.union(wanted)
    made = [name for node in graph.node for name in node.output if name not in declared]
    graph.value_info.extend(infos[name] for name in made if name in infos)
    del graph.output[:]
    graph.output.extend(infos.get(name) or ValueInfoProto(name=name) for name in wanted)
    imports = [o for o in proto.opset_import if o.domain != ENGINE_DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(imports)
    functions = [f for f in proto.functions if f.domain != ENGINE_DOMAIN]
    del proto.functions[:]
    proto.functions.extend(functions)
    return model.with_proto(proto)
