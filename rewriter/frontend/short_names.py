"""Inner names without the trail of function calls that TensorFlow's inlining puts in front of them.

"StatefulPartitionedCall/StatefulPartitionedCall/digits_1/mul:0" becomes "digits_1/mul:0": shorter to read, and the
same however deep the model was wrapped, so a node_denylist written for it keeps its meaning.
"""

from __future__ import annotations

import re

from onnx import GraphProto, ModelProto, NodeProto

from rewriter.frontend.naming import bodies, rename, value_names
from rewriter.frontend.structure import unique

_CALLS = re.compile(r"^(?:(?:Stateful)?PartitionedCall(?:_\d+)?/)+(?=[^/:])")


def shorten(proto: ModelProto) -> None:
    """Shortens node names and inner value names in place; graph inputs and outputs keep theirs.

    A short name that is taken gets a number.
    """
    fixed = {v.name for v in (*proto.graph.input, *proto.graph.output)}
    values = sorted(value_names(proto.graph) - fixed)
    taken = {name for name in values if not _CALLS.match(name)} | fixed
    names = {name: unique(_CALLS.sub("", name), taken) for name in values if _CALLS.match(name)}
    rename(proto.graph, names)
    nodes = _nodes(proto.graph)
    taken = {node.name for node in nodes if not _CALLS.match(node.name)}
    for node in nodes:
        if _CALLS.match(node.name):
            node.name = unique(_CALLS.sub("", node.name), taken)


def without_calls(name: str) -> str:
    """A name of TensorFlow's without the trail in front; what `shorten` makes of it unless that is taken."""
    return _CALLS.sub("", name)


def _nodes(graph: GraphProto) -> list[NodeProto]:
    found = []
    for node in graph.node:
        found.append(node)
        for body in bodies(node):
            found += _nodes(body)
    return found
