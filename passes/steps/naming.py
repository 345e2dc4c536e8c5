"""Unique names in the whole model: what lets later passes treat a name as an identity."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto

from passes.base import Change, PassError
from passes.graph.editing import Namer, node_namer, place, rename_annotation, replace_names, value_namer
from passes.graph.walk import Scope, bodies_of, definitions, iter_nodes


def unique_values(graph: GraphProto) -> list[Change]:
    """Renames values of bodies that share their name with another value; the main graph keeps all its names.

    Raises:
        PassError: one graph defines a name twice.
    """
    changes: list[Change] = []
    namer = value_namer(graph)
    claimed = set(_local_names(graph, ()))
    for node in graph.node:
        for entry, body in bodies_of(node):
            _rename_body(body, (entry,), {}, claimed, namer, changes)
    return changes


def unique_nodes(graph: GraphProto) -> list[Change]:
    """Gives every node of the model a name of its own; the first owner of a name keeps it.

    Nameless nodes are called "<operator>_<first output>".
    """
    changes: list[Change] = []
    namer = node_namer(graph)
    seen: set[str] = set()
    for node in iter_nodes(graph):
        old = node.name
        if not old:
            output = next((o for o in node.output if o), "")
            node.name = namer.fresh(f"{node.op_type}_{output}" if output else node.op_type)
            changes.append(Change("name-node", node.name, "the node had no name"))
        elif old in seen:
            node.name = namer.fresh(old)
            changes.append(Change("rename-node", node.name, f"another node is called {old!r}"))
        seen.add(node.name)
    return changes


def _local_names(graph: GraphProto, scope: Scope) -> list[str]:
    """Names that one graph defines, each once.

    Raises:
        PassError: a name is defined twice (an initializer may share the name of an input).
    """
    inputs = {value.name for value in graph.input}
    seen: set[str] = set()
    for name in definitions(graph):
        if name in seen and name not in inputs:
            raise PassError(f"value {name!r} is defined more than once in {place(scope)}: the model is not valid ONNX")
        seen.add(name)
    _reject_outputs_named_as_inputs(graph, inputs, scope)
    return list(dict.fromkeys(definitions(graph)))


def _reject_outputs_named_as_inputs(graph: GraphProto, inputs: set[str], scope: Scope) -> None:
    for node in graph.node:
        for name in node.output:
            if name and name in inputs:
                raise PassError(
                    f"node {node.name!r} ({node.op_type}) produces {name!r}, which is also an input of {place(scope)}"
                )


def _rename_body(
    graph: GraphProto,
    scope: Scope,
    outer: Mapping[str, str],
    claimed: set[str],
    namer: Namer,
    changes: list[Change],
) -> None:
    """Renames one body and those below it; `outer` holds the renames that are visible here."""
    local: dict[str, str] = {}
    for name in _local_names(graph, scope):
        local[name] = name
        if name in claimed:
            local[name] = namer.fresh(name)
            changes.append(Change("rename-value", local[name], f"{name!r} in {place(scope)} hides another value"))
        claimed.add(local[name])
    # Only names that really change travel down, so a model with many bodies stays linear.
    renames = {old: new for old, new in outer.items() if old not in local}
    renames.update((old, new) for old, new in local.items() if old != new)
    if renames:
        _apply(graph, renames)
    for node in graph.node:
        for entry, body in bodies_of(node):
            _rename_body(body, (*scope, entry), renames, claimed, namer, changes)


def _apply(graph: GraphProto, renames: Mapping[str, str]) -> None:
    """Renames definitions and uses of one graph, without the bodies below it."""
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        for value in values:
            value.name = renames.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = renames.get(sparse.values.name, sparse.values.name)
    for node in graph.node:
        replace_names(node.input, renames)
        replace_names(node.output, renames)
    for annotation in graph.quantization_annotation:
        rename_annotation(annotation, renames)
