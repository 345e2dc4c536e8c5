"""A frozen GraphDef as nodes and edges: names, ports, bodies, and an order that control-flow loops cannot upset."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rewriter.frontend.islands.dtypes import node_dtypes

#: Lookup tables: they hold no values of the computation and are rebuilt wherever they are read.
TABLES = frozenset({"HashTable", "HashTableV2", "MutableHashTable", "MutableHashTableV2"})
_Key = TypeVar("_Key", bound=Hashable)
_CONSTANTS = frozenset({"Const", *TABLES})
_SWITCHES = frozenset({"Switch", "RefSwitch"})


def tensor(name: str) -> tuple[str, int]:
    """("node", port) of a NodeDef's data input: "node" or "node:1"."""
    node, _, port = name.partition(":")
    return node, int(port or 0)


def spelled(node: str, port: int) -> str:
    """A NodeDef's spelling of an output."""
    return f"{node}:{port}" if port else node


@dataclasses.dataclass(frozen=True)
class Graph:
    """A read-only view of a GraphDef.

    Attributes:
        graph_def: stays as it is.
        inputs: names of the Placeholder nodes that the caller feeds, in order.
        outputs: tensors that are returned, in order.
        nodes: every node that an output depends on (`reads`), and every fed Placeholder, by name, in an order in which
            producers come first (within a loop of TF1 control flow as well as can be).
    """

    graph_def: Any
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, int], ...]
    nodes: Mapping[str, Any]

    @classmethod
    def of(cls, graph_def: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
        """A view; inputs and outputs are tensor names ("node:0")."""
        by_name = {node.name: node for node in graph_def.node}
        heads = tuple(tensor(name)[0] for name in inputs)
        ends = tuple(tensor(name) for name in outputs)
        roots = [*heads, *(node for node, _ in ends)]
        order = postorder(roots, lambda name: [source for source, _ in _reads(by_name, name)], set())
        return cls(graph_def, heads, ends, {name: by_name[name] for name in order})

    @functools.cached_property
    def library(self) -> dict[str, Any]:
        """Function name -> FunctionDef."""
        return {function.signature.name: function for function in self.graph_def.library.function}

    @functools.cached_property
    def all_nodes(self) -> dict[str, Any]:
        """Every node by name, also those that only control edges reach (assertions)."""
        return {node.name: node for node in self.graph_def.node}

    @functools.cached_property
    def consumers(self) -> dict[str, tuple[str, ...]]:
        """Node -> the nodes that read its outputs, each once."""
        found: dict[str, dict[str, None]] = {name: {} for name in self.nodes}
        for name in self.nodes:
            for source, _ in self.reads(name):
                found[source][name] = None
        return {name: tuple(readers) for name, readers in found.items()}

    @functools.cached_property
    def dtypes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Node -> DataType numbers of its data inputs and outputs."""
        return {name: node_dtypes(node, self.library) for name, node in self.nodes.items()}

    def dtype(self, source: tuple[str, int]) -> int:
        """The DataType number of a tensor; 0 where it is not known."""
        outputs = self.dtypes[source[0]][1]
        return outputs[source[1]] if source[1] < len(outputs) else 0

    def reads(self, name: str) -> list[tuple[str, int]]:
        """The tensors that a node depends on: its data, and of a constant in a TF1 loop or branch what it waits for.

        Without that such a constant would be there in every branch, and in no iteration.
        """
        return _reads(self.all_nodes, name)

    def is_source(self, name: str) -> bool:
        """True for nodes that compute nothing and read nothing: constants, tables and hidden weights."""
        node = self.nodes[name]
        return (node.op in _CONSTANTS and not self.reads(name)) or (
            node.op == "Placeholder" and name not in self.inputs
        )


def data_inputs(node: Any) -> Iterator[tuple[str, int]]:
    """The tensors that a NodeDef reads, in order; control edges left out."""
    return (tensor(name) for name in node.input if not name.startswith("^"))


def _reads(nodes: Mapping[str, Any], name: str) -> list[tuple[str, int]]:
    """See `Graph.reads`. What constants wait for there is the copy of one side of a Switch."""
    found = list(data_inputs(nodes[name]))
    if not found:
        for other in control_inputs(nodes[name]):
            sources = list(data_inputs(nodes[other])) if other in nodes and nodes[other].op == "Identity" else []
            if sources and nodes[sources[0][0]].op in _SWITCHES:
                found.append((other, 0))
    return found


def control_inputs(node: Any) -> Iterator[str]:
    """The nodes that a NodeDef waits for."""
    return (name[1:] for name in node.input if name.startswith("^"))


def functions_of(node: Any) -> Iterator[str]:
    """Names of the functions in a NodeDef's attributes (bodies of loops and branches, calls)."""
    for key in sorted(node.attr):
        value = node.attr[key]
        if value.HasField("func"):
            yield value.func.name
        for function in value.list.func:
            yield function.name


def reached_functions(nodes: Iterable[Any], library: Mapping[str, Any]) -> list[str]:
    """Functions that the nodes call, directly or not, in the order in which they are met."""
    found: dict[str, None] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop(0)
        for name in [node.op, *functions_of(node)]:
            if name in library and name not in found:
                found[name] = None
                waiting += library[name].node_def
    return list(found)


def postorder(roots: Iterable[_Key], edges: Callable[[_Key], Iterable[_Key]], seen: set[_Key]) -> list[_Key]:
    """What the roots reach and `seen` does not hold, each behind what it leads to as far as cycles let that be.

    `seen` grows by it. Iterative, for graphs are deep.
    """
    found: list[_Key] = []
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(edges(root)))]
        while stack:
            name, ahead = stack[-1]
            fresh = next((other for other in ahead if other not in seen), None)
            if fresh is None:
                found.append(name)
                stack.pop()
            else:
                seen.add(fresh)
                stack.append((fresh, iter(edges(fresh))))
    return found
