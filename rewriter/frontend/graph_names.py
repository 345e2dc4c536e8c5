"""Names of a frozen GraphDef's constants and functions that are the same in every run."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from rewriter.frontend.islands.graph import TABLES, reached_functions
from rewriter.frontend.islands.loading import rename_calls, rename_function
from rewriter.frontend.large_weights import MARK
from rewriter.frontend.structure import unique

#: Nodes without inputs and with one output that may be called by a number.
_SINGLE = frozenset(("Const", *TABLES))
#: What TensorFlow counts in the names of functions: "__inference_cond_true_123_45".
_COUNTERS = re.compile(r"_\d+(?=_|$)")


def settle_names(graph_def: Any, fixed: Collection[str]) -> None:
    """Gives weights the names by which they are read, and lets readers read them directly; `graph_def` is changed.

    1. A marked placeholder (a large weight) takes the name of an Identity of it, which reading a variable has become,
       and the readers of all such Identities read it itself: the converter sees through an Identity of a constant, of
       a placeholder it would not. Its name is then that which the converter gives to a constant.
    2. A constant, table or marked placeholder whose name is a mere number, which TensorFlow takes from a counter of the
       process, is named after its first reader.
    3. Functions, whose names end with such counters, are numbered in order of first use; the converter gives their
       names to what is in them. Functions that nothing calls are taken out.

    Args:
        graph_def: frozen and inlined; of functions the names change, the nodes in them only where they call others.
        fixed: names of nodes that stay: inputs and outputs.
    """
    weights = {node.name for node in graph_def.node if MARK in node.attr}
    sources = _identities(graph_def, weights)
    names: dict[str, str] = {}
    for identity in sorted(sources.keys() - set(fixed)):
        names.setdefault(sources[identity], identity)
    dropped = set(names.values())
    _redirect(graph_def, sources)
    kept = [node for node in graph_def.node if node.name not in dropped]
    if dropped:
        copies = type(graph_def)()
        copies.node.extend(kept)
        del graph_def.node[:]
        graph_def.node.extend(copies.node)
    names |= _of_numbers(graph_def, names.keys() | set(fixed))
    for node in graph_def.node:
        node.name = names.get(node.name, node.name)
    _redirect(graph_def, names)
    _number_functions(graph_def)


def _number_functions(graph_def: Any) -> None:
    """Rule 3. Every function has a number of its own, so that no two names clash."""
    library = {function.signature.name: function for function in graph_def.library.function}
    order = reached_functions(graph_def.node, library)
    names = {name: f"{_COUNTERS.sub('', name)}_{number}" for number, name in enumerate(order)}
    for function in library.values():
        rename_function(function, names)
    for node in graph_def.node:
        rename_calls(node, names)
    kept = type(graph_def.library)(function=[library[name] for name in order])
    graph_def.library.CopyFrom(kept)


def _identities(graph_def: Any, weights: Collection[str]) -> dict[str, str]:
    """Identity nodes of weights, also by way of other such nodes: name -> weight.

    Control inputs are passed over: the weight is there from the beginning.
    """
    sources: dict[str, str] = {}
    waiting = [node for node in graph_def.node if node.op == "Identity"]
    while True:
        # Nodes are in no order, so one round may find the sources of the next.
        found = {}
        for node in waiting:
            source = node.input[0].removesuffix(":0")
            source = sources.get(source, source)
            if source in weights:
                found[node.name] = source
        if not found:
            return sources
        sources |= found
        waiting = [node for node in waiting if node.name not in sources]


def _of_numbers(graph_def: Any, settled: Collection[str]) -> dict[str, str]:
    """New names for constants and tables that are called by a number."""
    numbered = {
        node.name
        for node in graph_def.node
        if node.name.isdigit() and node.name not in settled and (node.op in _SINGLE or MARK in node.attr)
    }
    taken = {node.name for node in graph_def.node}
    names: dict[str, str] = {}
    for node in graph_def.node:
        for name in node.input:
            source = "" if name.startswith("^") else _node_of(name)
            if source in numbered and source not in names:
                names[source] = unique(f"{node.name}/value", taken)
    return names


def _redirect(graph_def: Any, names: Mapping[str, str]) -> None:
    """Lets every input that names a node of `names` name its new one, control inputs included."""
    for node in graph_def.node:
        for index, name in enumerate(node.input):
            source = _node_of(name)
            if source in names:
                node.input[index] = f"^{names[source]}" if name.startswith("^") else names[source]


def _node_of(name: str) -> str:
    """The node that an input names; all nodes renamed here have one output."""
    return name.removeprefix("^").removesuffix(":0")
