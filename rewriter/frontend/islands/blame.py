"""Which TensorFlow nodes an export failed on."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from rewriter.frontend.islands.graph import Graph, reached_functions

#: The exporter numbers what it makes of a node.
_NUMBER = re.compile(r"__\d+$")
_FAILED = "the converter to ONNX has no way to write it here"


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collects the names of nodes whose translation raises within tf2onnx, which it tells its log only."""
    names: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if str(record.msg).startswith("Failed to convert node") and record.args:
                names.append(str(record.args[0] if isinstance(record.args, tuple) else record.args))

    logger, listener = logging.getLogger("tf2onnx.tfonnx"), Listener()
    logger.addHandler(listener)
    try:
        yield names
    finally:
        logger.removeHandler(listener)


def blamed(graph: Graph, failed: Iterable[tuple[str, str]], known: Mapping[str, str]) -> dict[str, str]:
    """Nodes to send to TensorFlow for what an export failed on.

    Args:
        graph: what was exported.
        failed: (op, node name) as the exporter tells them; "" for an unknown op.
        known: nodes that stay already.

    Returns:
        Node -> reason. A node is found by its name, else by its name within a body, which blames the node that the
        body belongs to, else by its operator. Empty where there is nothing new to try.
    """
    found: dict[str, str] = {}
    for op, name in failed:
        plain = _NUMBER.sub("", name)
        for node in _nodes(graph, op, plain):
            if node not in known:
                found[node] = _FAILED
    return found


def _nodes(graph: Graph, op: str, name: str) -> list[str]:
    if name in graph.nodes and not graph.is_source(name) and name not in graph.inputs:
        return [name]
    inside = {node: _inner(graph, node) for node in graph.nodes}
    by_name = [node for node, inner in inside.items() if any(other == name for _, other in inner)]
    if by_name or not op:
        return by_name
    return [
        node
        for node, inner in inside.items()
        if not graph.is_source(node) and (graph.nodes[node].op == op or any(other == op for other, _ in inner))
    ]


def _inner(graph: Graph, name: str) -> list[tuple[str, str]]:
    """(op, node name) of everything in the bodies of a node."""
    names = reached_functions([graph.nodes[name]], graph.library)
    return [(node.op, node.name) for function in names for node in graph.library[function].node_def]
