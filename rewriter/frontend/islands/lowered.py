"""What lies between a way into a TF1 loop or branch (Enter, Switch) and the way out that belongs to it (Exit, Merge).

A tensor in there may be *dead*, or exist once per iteration, which nothing but TensorFlow's executor understands. Every
tensor gets a stack: an Enter puts its frame on it and an Exit takes that off, a Switch puts its predicate and the side
on it and the Merge of both sides takes that off. Tensors of an empty stack are like those of any other graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rewriter.frontend.islands.graph import Graph, control_inputs, data_inputs, postorder

_ENTER, _EXIT = frozenset({"Enter", "RefEnter"}), frozenset({"Exit", "RefExit"})
_SWITCH, _MERGE = frozenset({"Switch", "RefSwitch"}), frozenset({"Merge", "RefMerge"})
_NEXT = frozenset({"NextIteration", "RefNextIteration"})
#: A frame ("", name, 0), or a predicate (node, "", port of it) with the side that was taken.
_Level = tuple[str, str, int, int]
_Stack = tuple[_Level, ...]


class _UnbalancedError(Exception):
    """A way out that fits no way in."""


def lowered_edges(graph: Graph) -> set[tuple[tuple[str, int], str]]:
    """(tensor, reader) of every edge within a TF1 loop or branch, its ways in and out included.

    Where ways in and out do not fit together (a graph that was rewritten by hand), everything behind any way in and
    before any way out counts as one.
    """
    if not any(node.op in _ENTER | _SWITCH for node in graph.nodes.values()):
        return set()
    edges = [(source, name) for name in graph.nodes for source in graph.reads(name)]
    try:
        stacks = _stacks(graph)
    except _UnbalancedError:
        inside = _between(graph)
        return {(source, reader) for source, reader in edges if source[0] in inside and reader in inside}
    return {
        (source, reader)
        for source, reader in edges
        if graph.nodes[source[0]].op in _NEXT or _of(graph.nodes[source[0]], source[1], stacks)
    }


def _stacks(graph: Graph) -> dict[str, _Stack]:
    """The stack of every node's outputs; the side that a Switch takes is not on it yet.

    Raises:
        _UnbalancedError: a Merge or an Exit fits nothing, or an output of the model is still inside.
    """
    nodes = graph.all_nodes

    def reads(name: str) -> Iterator[str]:
        node = nodes[name]
        if node.op in _NEXT:
            return iter(())  # the way back, which makes a circle of a loop
        waits = control_inputs(node) if _waits(node) else ()
        return (n for n in (*(s for s, _ in data_inputs(node)), *waits) if n in nodes)

    stacks: dict[str, _Stack] = {}
    for name in postorder(graph.nodes, reads, set()):
        stacks[name] = _stack(graph, nodes[name], stacks)
    if any(_of(nodes[name], port, stacks) for name, port in graph.outputs):
        raise _UnbalancedError
    return stacks


def _waits(node: Any) -> bool:
    """True for constants and the like: what holds them in a loop or a branch is a control edge."""
    return not any(data_inputs(node))


def _stack(graph: Graph, node: Any, stacks: Mapping[str, _Stack]) -> _Stack:
    nodes = graph.all_nodes
    if node.op in _NEXT:
        return ()
    waits = [(name, 0) for name in control_inputs(node)] if _waits(node) else []
    sources = [(name, port) for name, port in (*data_inputs(node), *waits) if name in nodes]
    given = [_of(nodes[name], port, stacks) for name, port in sources if nodes[name].op not in _NEXT]
    longest = max(given, key=len, default=())
    if node.op in _ENTER:
        return (*longest, ("", node.attr["frame_name"].s.decode(), 0, 0))
    if node.op in _SWITCH:
        name, port = _predicate(graph, sources[1])
        return (*longest, (name, "", port, -1))
    if node.op in _EXIT:
        frames = [index for index, level in enumerate(longest) if not level[0]]
        if not frames:
            raise _UnbalancedError
        return longest[: frames[-1]]
    if node.op in _MERGE and len(given) == len(sources):
        return _merged(given)
    return longest


def _of(node: Any, port: int, stacks: Mapping[str, _Stack]) -> _Stack:
    """The stack of one output."""
    stack = stacks[node.name]
    if node.op not in _SWITCH:
        return stack
    return (*stack[:-1], (*stack[-1][:3], port))


def _predicate(graph: Graph, source: tuple[str, int]) -> tuple[str, int]:
    """What a Switch asks, without the copies that are made of it."""
    while graph.all_nodes[source[0]].op == "Identity":
        source = next(data_inputs(graph.all_nodes[source[0]]))
    return source


def _merged(given: Sequence[_Stack]) -> _Stack:
    """Behind a Merge of two sides of a branch; a side without a stack is a constant that waits for nothing."""
    sides = [stack for stack in given if stack]
    tops = {stack[-1] for stack in sides}
    if not sides or any(not top[0] for top in tops) or len({top[:3] for top in tops}) > 1 or len(tops) < len(sides):
        raise _UnbalancedError
    return max((stack[:-1] for stack in sides), key=len)


def _between(graph: Graph) -> set[str]:
    """Nodes behind a way in and before a way out, both included."""
    reads = {name: [s for s, _ in graph.reads(name)] for name in graph.nodes}
    ops = {name: node.op for name, node in graph.nodes.items()}
    behind = _reach((n for n, op in ops.items() if op in _ENTER | _SWITCH), graph.consumers)
    return behind & _reach((n for n, op in ops.items() if op in _EXIT | _MERGE), reads)


def _reach(starts: Iterable[str], edges: Mapping[str, Sequence[str]]) -> set[str]:
    return set(postorder(starts, edges.__getitem__, set()))
