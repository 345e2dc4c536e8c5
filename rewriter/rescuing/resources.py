"""What keeps serialized engines alive leaves the graph: nodes, functions, and calls of them."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

from rewriter.errors import SourceError
from rewriter.rescuing.report import Removed
from rewriter.rescuing.spellings import RESOURCE_OPS, called_functions

#: Ops that give a variable its first value: input 0 is the variable, input 1 the value.
_ASSIGN_OPS = frozenset({"AssignVariableOp", "Assign"})


def strip_resources(meta_graph: Any, asset_tensors: Iterable[str], source: str) -> Removed:
    """Takes the resources of engines out of a MetaGraphDef, in place; its object graph is left to `strip_objects`.

    Rules: 1. A function goes when it holds a resource node, or calls a function that goes. 2. In the main graph, these
    nodes go: resource nodes, calls of functions that go, the nodes that hold the paths of engine files, what reads
    any of them, and variables that were only to hold such a path. 3. Control inputs, colocations and collections
    forget the nodes that are gone. 4. What a signature gives can never go.

    Args:
        meta_graph: changed in place.
        asset_tensors: names of the tensors with the paths of engine files.
        source: the model, for messages.

    Raises:
        SourceError: a signature needs what has to go.
    """
    graph_def = meta_graph.graph_def
    functions = _doomed_functions(graph_def)
    started = {name.partition(":")[0] for name in asset_tensors}
    doomed = functions | RESOURCE_OPS
    started |= {node.name for node in graph_def.node if {node.op, *called_functions(node)} & doomed}
    nodes = _with_readers(graph_def, started)
    _check_signatures(meta_graph, nodes, source)
    _delete(graph_def.node, lambda node: node.name in nodes)
    _delete(graph_def.library.function, lambda function: function.signature.name in functions)
    _delete(graph_def.library.gradient, lambda g: {g.function_name, g.gradient_func} & functions)
    for node in graph_def.node:
        _forget(node, nodes)
    for key in [k for k in meta_graph.meta_info_def.function_aliases if k in functions]:
        del meta_graph.meta_info_def.function_aliases[key]
    _clean_collections(meta_graph, nodes)
    return Removed(nodes=tuple(sorted(nodes)), functions=tuple(sorted(functions)))


def _doomed_functions(graph_def: Any) -> set[str]:
    """Rule 1."""
    calls = {
        function.signature.name: {name for node in function.node_def for name in (node.op, *called_functions(node))}
        for function in graph_def.library.function
    }
    doomed = {
        function.signature.name
        for function in graph_def.library.function
        if any(node.op in RESOURCE_OPS for node in function.node_def)
    }
    while more := {name for name, called in calls.items() if called & doomed} - doomed:
        doomed |= more
    return doomed


def _with_readers(graph_def: Any, started: Set[str]) -> set[str]:
    """These nodes, all that read them, and variables that one of them assigns, with all that read those."""
    readers: dict[str, list[Any]] = {}
    for node in graph_def.node:
        for reference in node.input:
            if not reference.startswith("^"):
                readers.setdefault(reference.partition(":")[0], []).append(node)
    present = {node.name for node in graph_def.node}
    gone: set[str] = set()
    queue = sorted(started & present)
    while queue:
        name = queue.pop()
        if name in gone:
            continue
        gone.add(name)
        for node in readers.get(name, ()):
            queue.append(node.name)
            if node.op in _ASSIGN_OPS and len(node.input) > 1 and node.input[1].partition(":")[0] == name:
                queue.append(node.input[0].partition(":")[0])
    return gone


def _check_signatures(meta_graph: Any, nodes: Set[str], source: str) -> None:
    """Rule 4."""
    for key, signature in meta_graph.signature_def.items():
        for name, info in [*signature.inputs.items(), *signature.outputs.items()]:
            if info.name.partition(":")[0].removeprefix("^") in nodes:
                raise SourceError(
                    f"signature {key} of {source} needs {name!r} ({info.name}), which belongs to TF-TRT's engine "
                    "resources: this is no file that TF-TRT wrote, take the model from before the conversion"
                )


def _forget(node: Any, gone: Set[str]) -> None:
    """Rule 3 for one node."""
    if any(reference.startswith("^") and reference[1:] in gone for reference in node.input):
        node.input[:] = [r for r in node.input if not (r.startswith("^") and r[1:] in gone)]
    if "_class" in node.attr:
        kept = [s for s in node.attr["_class"].list.s if s.decode("utf-8", "replace").removeprefix("loc:@") not in gone]
        if len(kept) < len(node.attr["_class"].list.s):
            del node.attr["_class"].list.s[:]
            node.attr["_class"].list.s.extend(kept)
            if not kept:
                del node.attr["_class"]


def _clean_collections(meta_graph: Any, gone: Set[str]) -> None:
    """Rule 3 for collections of nodes; those that end up empty are dropped."""
    for key in list(meta_graph.collection_def):
        collection = meta_graph.collection_def[key]
        if collection.WhichOneof("kind") != "node_list":
            continue
        values = collection.node_list.value
        kept = [name for name in values if name.partition(":")[0] not in gone]
        if len(kept) < len(values):
            del values[:]
            values.extend(kept)
            if not kept:
                del meta_graph.collection_def[key]


def _delete(items: Any, condition: Any) -> None:
    """Deletes from a repeated field."""
    for index in reversed([i for i, item in enumerate(items) if condition(item)]):
        del items[index]
