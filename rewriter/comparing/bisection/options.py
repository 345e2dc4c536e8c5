"""The options of `trt-rewriter convert` that take something out of what differs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from onnx import NodeProto

from passes.graph.walk import bodies_of, iter_nodes

#: Nodes that get an option each; more are one expression.
_SINGLE = 4


def patterns(names: Iterable[str]) -> tuple[str, ...]:
    """Regular expressions that find exactly these node names; several names share one where there are many."""
    escaped = [re.escape(name) for name in dict.fromkeys(names)]
    if len(escaped) <= _SINGLE:
        return tuple(f"^{name}$" for name in escaped)
    return (f"^({'|'.join(escaped)})$",)


def option_line(option: str, values: Iterable[str]) -> str:
    """The option once for every value, quoted for a shell; "" without values."""
    return " ".join(f"{option} {shlex.quote(value)}" for value in values)


def names_of(node: NodeProto) -> tuple[str, ...]:
    """The node's name and those of all nodes in its bodies: what must be named to keep the whole of it."""
    return (node.name, *(inner.name for _, body in bodies_of(node) for inner in iter_nodes(body)))
