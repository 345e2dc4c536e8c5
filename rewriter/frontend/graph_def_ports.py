"""Which tensors of a GraphDef are its inputs and outputs, and which nodes lie between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewriter.errors import InvalidParameterError, SourceError

_PLACEHOLDERS = frozenset({"Placeholder", "PlaceholderV2"})
#: Their results are no output of a model, though nobody reads them.
_NO_OUTPUTS = frozenset(
    {
        "Assert",
        "Const",
        "NoOp",
        "Placeholder",
        "PlaceholderV2",
        "PlaceholderWithDefault",
        "Print",
        "PrintV2",
        "HashTable",
        "HashTableV2",
        "MutableHashTable",
        "MutableHashTableV2",
        "ControlTrigger",
        "Enter",
        "Switch",
        "LoopCond",
        "NextIteration",
        "VarIsInitializedOp",
        "IsVariableInitialized",
        "ReportUninitializedVariables",
        "MergeSummary",
        "SaveV2",
        "RestoreV2",
        "ShardedFilename",
        "MergeV2Checkpoints",
    }
)
#: Ops of graphs that train: what nobody reads there is not only the model's result.
_TRAINING = ("Apply", "ResourceApply", "SparseApply", "ResourceSparseApply", "Assign")
#: More candidates than this are not listed.
_SHOWN = 12


def tensor_name(name: str) -> str:
    """The name of a tensor: "x" and "x:0" as "x:0"."""
    return name if ":" in name else f"{name}:0"


def public_name(tensor: str) -> str:
    """A tensor name without ":0"."""
    return tensor.removesuffix(":0")


def as_names(names: Sequence[str] | str | None, kind: str) -> list[str] | None:
    """What the user gave ("x,y:0" or a sequence) as a list; None stays None.

    Raises:
        InvalidParameterError: not names; or none, for outputs.
    """
    if names is None:
        return None
    listed = [part.strip() for part in names.split(",")] if isinstance(names, str) else list(names)
    if not all(isinstance(name, str) and name for name in listed) or not (listed or kind == "inputs"):
        raise InvalidParameterError(f"{kind} is {names!r}: give tensor or node names, as 'x' or 'x:0'")
    return listed


def choose_outputs(
    graph_def: Any, inputs: Sequence[str] | None, outputs: Sequence[str] | None, origin: str
) -> tuple[str, ...]:
    """Tensor names of the outputs.

    Inferred outputs are all results of the nodes none of whose results is read and that depend on a placeholder (or
    on a named input): a frozen graph ends there. A graph that trains has more ends than outputs: they must be named.

    Raises:
        SourceError: a name is not there, or there is no or no clear candidate; the message lists candidates.
        InvalidParameterError: a name is given twice, or none is given.
    """
    nodes = {node.name: node for node in graph_def.node}
    candidates = _ends(graph_def, inputs)
    if outputs is not None:
        return _given(outputs, "outputs", nodes, candidates, origin)
    trains = sorted({node.op for node in graph_def.node if node.op.startswith(_TRAINING)})
    if trains or not candidates:
        why = f"it trains ({', '.join(trains[:3])})" if trains else "no result is left unread"
        raise SourceError(
            f"the outputs of {origin} cannot be told, for {why}: name them with outputs=[...] (--graph-outputs); "
            f"candidates: {_listed(candidates or [public_name(f'{n}:0') for n in list(nodes)[-3:]])}"
        )
    return tuple(candidates)


def choose_inputs(
    nodes: Mapping[str, Any], inputs: Sequence[str] | None, outputs: Sequence[str], origin: str
) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Tensor names of the inputs, and the nodes between inputs and outputs with the node inputs that stay.

    Raises:
        SourceError: a name is not there; or the outputs need a placeholder that is not among the inputs.
        InvalidParameterError: a name is given twice.
    """
    placeholders = [f"{node.name}:0" for node in nodes.values() if node.op in _PLACEHOLDERS]
    given = None if inputs is None else _given(inputs, "inputs", nodes, placeholders, origin)
    kept = between(nodes, set(given or placeholders), outputs)
    if given is not None:
        needed = [p for p in placeholders if public_name(p) in kept]
        if needed:
            raise SourceError(
                f"{origin}: the outputs need {_listed(needed)}, which inputs does not name ({_listed(given) or 'none'})"
            )
        return given, kept
    read = {tensor_name(i) for node_inputs in kept.values() for i in node_inputs if not i.startswith("^")}
    return tuple(p for p in placeholders if p in read or p in outputs), kept


def _given(
    names: Sequence[str], kind: str, nodes: Mapping[str, Any], candidates: Sequence[str], origin: str
) -> tuple[str, ...]:
    """Names as the user gave them, as tensor names."""
    tensors = [tensor_name(name) for name in names]
    for name, tensor in zip(names, tensors, strict=True):
        node, _, index = tensor.partition(":")
        if node not in nodes or not index.isdigit() or not _has_result(nodes[node], int(index)):
            why = "has no such result" if node in nodes else "is not there"
            raise SourceError(f"{origin}: {name!r} of {kind} {why}; candidates: {_listed(candidates) or 'none'}")
    twice = sorted({t for t in tensors if tensors.count(t) > 1})
    if twice:
        raise InvalidParameterError(f"{kind} names {twice[0]!r} more than once")
    return tuple(tensors)


def _has_result(node: Any, index: int) -> bool:
    count = _results(node)
    return count is None or index < count


def _results(node: Any) -> int | None:
    """How many results a node has; None where its op is not registered (functions of the graph)."""
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(node.op)
    if definition is None:
        return None
    total = 0
    for argument in definition.output_arg:
        if argument.type_list_attr:
            total += len(node.attr[argument.type_list_attr].list.type)
        elif argument.number_attr:
            total += node.attr[argument.number_attr].i
        else:
            total += 1
    return total


def _ends(graph_def: Any, inputs: Sequence[str] | None) -> list[str]:
    """Tensor names of the results that a model of this graph could end in."""
    read = {_node_of(i) for node in graph_def.node for i in node.input if not i.startswith("^")}
    starts = {node.name for node in graph_def.node if node.op in _PLACEHOLDERS}
    starts |= {_node_of(name) for name in inputs or ()}
    fed = _downstream(graph_def, starts)
    nodes = {node.name: node for node in graph_def.node}
    found = []
    for node in graph_def.node:
        if node.name in read or node.op in _NO_OUTPUTS or node.op.endswith("Summary") or node.name not in fed:
            continue
        if _through_identities(node, nodes).op in ("Switch", "RefSwitch"):
            continue  # what tells the side of a branch, and has no value on the other
        count = 1 if node.op == "Merge" else _results(node)
        found += [f"{node.name}:{index}" for index in range(1 if count is None else count)]
    return found


def _downstream(graph_def: Any, starts: set[str]) -> set[str]:
    """Names of the nodes that depend on `starts` by data."""
    readers: dict[str, list[str]] = {}
    for node in graph_def.node:
        for value in node.input:
            if not value.startswith("^"):
                readers.setdefault(_node_of(value), []).append(node.name)
    found, pending = set(starts), list(starts)
    while pending:
        for reader in readers.get(pending.pop(), ()):
            if reader not in found:
                found.add(reader)
                pending.append(reader)
    return found


def between(nodes: Mapping[str, Any], feeds: set[str], outputs: Sequence[str]) -> dict[str, list[str]]:
    """Name -> node inputs of all nodes that the outputs need, up to the fed tensors.

    Control inputs stay (loops need them), but for those on assertions and on fed or dropped nodes.
    """
    kept: dict[str, list[str]] = {}
    pending = [_node_of(tensor) for tensor in outputs if tensor not in feeds]
    while pending:
        name = pending.pop()
        if name in kept:
            continue
        if name not in nodes:
            raise SourceError(f"the GraphDef is damaged: node {name!r} is read and not there")
        inputs = []
        for value in nodes[name].input:
            if value.startswith("^"):
                before = nodes.get(value[1:])
                if before is None or before.op == "Assert" or f"{value[1:]}:0" in feeds:
                    continue
            inputs.append(value)
            if value.startswith("^") or tensor_name(value) not in feeds:
                pending.append(_node_of(value))
        kept[name] = inputs
    return kept


def _through_identities(node: Any, nodes: Mapping[str, Any]) -> Any:
    """The node behind a chain of Identity nodes."""
    while node.op == "Identity" and node.input and _node_of(node.input[0]) in nodes:
        node = nodes[_node_of(node.input[0])]
    return node


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").split(":")[0]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(public_name, names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
