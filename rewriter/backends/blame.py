"""Finds the names of nodes in TensorRT's log lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from onnx import NodeProto

from passes.graph_index import bodies_of, iter_graphs
from rewriter.backends.text import is_noise

#: A range of fused nodes is named by its ends, of which neither need be guilty.
_FUSED = "ForeignNode["
_BEFORE = r"(?<![\w./:-])"
#: TensorRT appends a number, or the role of a layer, to the name of the node it was made of.
_AFTER = r"(?:_(?:\d+|[A-Z]\w*))?(?![\w/-])(?!:\w)"
_PLAIN_WORD = re.compile(r"[A-Za-z]+")


def nodes_named(lines: Iterable[str], nodes: Sequence[NodeProto]) -> frozenset[str]:
    """Names of those of `nodes` that `lines` speak of; a node inside a body stands for the node around it.

    Longer names win over shorter ones that they contain. A name that could be an ordinary word counts only in quotes or
    where TensorRT puts a layer's name.
    """
    text = "\n".join(line for line in lines if not is_noise(line))
    if not text or _FUSED in text:
        return frozenset()
    owner = {name: node.name for node in nodes for name in _names(node) if name}
    found = set()
    for name in sorted((n for n in owner if n in text), key=lambda n: (-len(n), n)):
        text, count = _pattern(name).subn("\0", text)
        if count:
            found.add(owner[name])
    return frozenset(found)


def _pattern(name: str) -> re.Pattern[str]:
    word = re.escape(name)
    if not _PLAIN_WORD.fullmatch(name):
        return re.compile(_BEFORE + word + _AFTER)
    suffix = r"(?:_(?:\d+|[A-Z]\w*))?"
    places = (
        rf"'{word}{suffix}'",
        rf'"{word}{suffix}"',
        rf"Layer {word}{suffix}(?=:)",
        rf"{word}_\d+\b",
        rf"\({word}: ",
    )
    return re.compile("|".join((*places, rf"\b{word}{suffix} has no runners")))


def _names(node: NodeProto) -> list[str]:
    inner = [n.name for _, body in bodies_of(node) for graph in iter_graphs(body) for n in graph.node]
    return [node.name, *inner]
