"""The graph with EPContext nodes in the place of engine nodes."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from passes.base import PassError
from passes.engine_node import engine_nodes, read_attributes
from passes.graph.value_types import collect_infos, tensor_type
from passes.graph.walk import iter_graphs, reads
from passes.island_node import island_nodes
from passes.model import Model
from passes.segments import ENGINE_DOMAIN
from rewriter.errors import ExportError
from rewriter.export.epcontext.providers import (
    CONTEXT_DOMAIN,
    CONTEXT_DOMAIN_VERSION,
    CONTEXT_OP,
    Context,
    Provider,
    context_node,
)

#: The newest IR that the providers' own tools write, and that their ONNX Runtime reads.
MAXIMUM_IR_VERSION = 13
#: Element types with which engine inputs and outputs are bound as they are. (Of double TensorRT makes float: an engine
#: then has another type than its node.)
_BOUND_TYPES = {
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL,
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64,
}  # fmt: skip


def engine_ops(model: Model) -> dict[str, str]:
    """Operators of the engine nodes, in graph order -> why the node must never have an engine, "" for others.

    Raises:
        ExportError: there are none; one operator stands in two nodes; there are parts that TensorFlow runs; EPContext
            nodes; or an engine node that cannot be exported (see `check_node`).
    """
    islands = [node.op_type for node in island_nodes(model.proto)]
    if islands:
        raise ExportError(
            f"{len(islands)} part{'s' * (len(islands) != 1)} of the model ({islands[0]}) stay"
            f"{'s' * (len(islands) == 1)} in TensorFlow, which ONNX Runtime cannot run: load the artifact instead"
        )
    if any(node.op_type == CONTEXT_OP for graph in iter_graphs(model.proto) for node in graph.node):
        raise ExportError("the model has EPContext nodes of its own already: export the model that it was made of")
    functions = {f.name: f for f in model.proto.functions if f.domain == ENGINE_DOMAIN}
    infos = collect_infos(model.proto)
    ops: dict[str, str] = {}
    try:
        for _, node in engine_nodes(model.proto):
            if node.op_type in ops:
                raise ExportError(f"{node.op_type} stands in the model twice: convert the model again")
            attributes = read_attributes(node)
            check_node(node, attributes.data_inputs, functions.get(node.op_type), infos)
            ops[node.op_type] = attributes.not_runnable
    except PassError as error:
        raise ExportError(str(error)) from error
    if not ops:
        raise ExportError("the model has no engine node, so there is nothing to export: give a session its model.onnx")
    return ops


def check_node(
    node: NodeProto, data_inputs: int, function: FunctionProto | None, infos: Mapping[str, ValueInfoProto]
) -> None:
    """Refuses an engine node that an EPContext node cannot stand for.

    Providers bind an engine's inputs and outputs by name, and take the node's first one for a name that they do not
    find. The engine has the names of the segment, which are those of its function; so the node must have them, too.

    Args:
        node: the engine node.
        data_inputs: so many of its inputs are data.
        function: its function; None where a tool dropped it.
        infos: value name -> type, as the model declares it.

    Raises:
        ExportError: names differ; a type is none that an engine has; or nobody declares the type of an output.
    """
    if function is None:
        raise ExportError(
            f"engine node {node.name!r} has lost its function: a tool dropped it, convert the model again"
        )
    formal = [*function.input[:data_inputs], *function.output]
    actual = [*node.input[:data_inputs], *node.output]
    if actual != formal:
        name = next((a for a, f in zip(actual, formal, strict=False) if a != f), "one of its values")
        raise ExportError(
            f"{node.op_type}: {name!r} has another name in the engine, so no provider could bind it: a tool renamed "
            "it, convert the model again"
        )
    for name in formal:
        info = _declared(name, function, infos)
        kind = tensor_type(info.type)[0] if info is not None else TensorProto.UNDEFINED
        if kind != TensorProto.UNDEFINED and kind not in _BOUND_TYPES:
            raise ExportError(
                f"{node.op_type}: {name!r} is {TensorProto.DataType.Name(kind).lower()}, a type that an engine cannot "
                "take or give as it is: convert the model with that value inside of a segment"
            )
        if kind == TensorProto.UNDEFINED and name in node.output:
            raise ExportError(
                f"{node.op_type}: the type of {name!r} is not known, and ONNX Runtime cannot infer it of an EPContext "
                "node: a tool dropped it, convert the model again"
            )


def _declared(name: str, function: FunctionProto | None, infos: Mapping[str, ValueInfoProto]) -> ValueInfoProto | None:
    """What the model, or the function around a value, declares of it."""
    if name in infos or function is None:
        return infos.get(name)
    return next((value for value in function.value_info if value.name == name), None)


def with_contexts(model: Model, provider: Provider, contexts: Mapping[str, Context]) -> Model:
    """The model with EPContext nodes for its engine nodes.

    Rules:
        1. An EPContext node reads the data inputs only: the weights are in the engine. Initializers that nothing reads
           any more go; large ones that stay are weights of the result.
        2. The types of its outputs are declared, for ONNX Runtime cannot infer them: they may be known of the function
           only.
        3. The engine nodes' functions go, and the import of their domain.
        4. Everything else stays as it is: native nodes, names, order, other functions, metadata.

    Args:
        model: the spliced model; it stays as it is.
        provider: whose nodes.
        contexts: operator of an engine node -> what its node says, for all of them.
    """
    proto = model.copy_proto()
    infos = collect_infos(model.proto)
    functions = {f.name: f for f in model.proto.functions if f.domain == ENGINE_DOMAIN}
    for graph in iter_graphs(proto):
        for node in graph.node:
            if node.domain == ENGINE_DOMAIN:
                declared = (_declared(name, functions.get(node.op_type), infos) for name in node.output)
                graph.value_info.extend(v for v in declared if v is not None and v.name not in infos)
                data = node.input[: read_attributes(node).data_inputs]
                node.CopyFrom(context_node(provider, contexts[node.op_type], data, node.output))
    for graph in iter_graphs(proto):
        _drop_unread(graph)
    _drop_functions(proto)
    proto.ir_version = min(proto.ir_version, MAXIMUM_IR_VERSION)
    return model.with_proto(proto)


def context_nodes(proto: ModelProto) -> list[NodeProto]:
    """All EPContext nodes, in graph order."""
    return [node for graph in iter_graphs(proto) for node in graph.node if node.op_type == CONTEXT_OP]


def lies_in_bodies(model: Model) -> list[str]:
    """Operators of the engine nodes that lie in bodies of control flow."""
    return [node.op_type for scope, node in engine_nodes(model.proto) if scope]


def _drop_unread(graph: GraphProto) -> None:
    """Drops the initializers of a graph that nothing reads; those that are inputs, too, stay."""
    used = {name for node in graph.node for name in reads(node)}
    used |= {value.name for value in (*graph.output, *graph.input)}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    gone = {tensor.name for tensor in graph.initializer} - used
    if not gone:
        return
    del graph.initializer[:]
    graph.initializer.extend(kept)
    infos = [value for value in graph.value_info if value.name not in gone]
    del graph.value_info[:]
    graph.value_info.extend(infos)


def _drop_functions(proto: ModelProto) -> None:
    """Drops the functions of engine nodes; the import of their domain becomes that of the EPContext nodes."""
    functions = [f for f in proto.functions if f.domain != ENGINE_DOMAIN]
    imports = [o for o in proto.opset_import if o.domain not in (ENGINE_DOMAIN, CONTEXT_DOMAIN)]
    del proto.functions[:], proto.opset_import[:]
    proto.functions.extend(functions)
    proto.opset_import.extend(imports)
    proto.opset_import.add(domain=CONTEXT_DOMAIN, version=CONTEXT_DOMAIN_VERSION)
