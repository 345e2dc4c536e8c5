"""What it costs to have a node in TensorFlow that ONNX has a word for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewriter.frontend.islands.graph import Graph, data_inputs, functions_of
from rewriter.frontend.islands.units import Units
from rewriter.frontend.islands.vocabulary import LIGHT, MOVES, PRODUCTS

#: Prices: a node that only moves elements, or has to do with integers, booleans and strings alone and is no product;
#: one of cheap floating-point arithmetic; one that belongs into an engine.
FREE, ARITHMETIC, HEAVY = 0, 1, 1 << 20
#: A node that reads a constant of so many bytes does real work with it (an embedding, a product).
LARGE = 1 << 16
#: Marked as having a state, which is the table's, and that never changes here.
_PURE = frozenset({"LookupTableFindV2", "LookupTableSizeV2"})
_FLOATS = frozenset({1, 2, 8, 14, 18, 19})


def costs(graph: Graph, units: Units) -> Sequence[int]:
    """The price of each unit; loops, branches and whatever has several nodes are heavy."""
    return [_price(graph, members[0]) if len(members) == 1 else HEAVY for members in units.members]


def _price(graph: Graph, name: str) -> int:
    node = graph.nodes[name]
    if node.op in PRODUCTS or _stateful(node.op) or any(functions_of(node)) or _reads_large(graph, name):
        return HEAVY
    inputs, outputs = graph.dtypes[name]
    if node.op in MOVES or _FLOATS.isdisjoint((*inputs, *outputs)):
        return FREE
    return ARITHMETIC if node.op in LIGHT else HEAVY


def _stateful(op: str) -> bool:
    """True for operators that may not run twice (random numbers); one that TensorFlow does not know counts as well."""
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(op)
    return definition is None or (definition.is_stateful and op not in _PURE)


def _reads_large(graph: Graph, name: str) -> bool:
    """True for a node that reads much data that the model holds; hidden weights are large in any case."""
    """True for a node that reads much data that the model holds; hidden weights are large in any case."""
    sources = [graph.nodes[source] for source, _ in data_inputs(graph.nodes[name]) if graph.is_source(source)]
    return any(node.op == "Placeholder" or (node.op == "Const" and _size(node) >= LARGE) for node in sources)


def _size(node: Any) -> int:
    return int(node.attr["value"].tensor.ByteSize())
