"""Which TensorFlow operators an output depends on: one of them is exported wrongly where the output differs."""

from __future__ import annotations

from collections.abc import Callable

from rewriter.frontend.freeze import Frozen
from rewriter.frontend.islands.graph import Graph
from rewriter.frontend.islands.vocabulary import MOVES

#: More than so many different operators are no help.
MOST = 8

Suspects = Callable[[str], tuple[str, ...]]


def suspects(frozen: Frozen) -> Suspects:
    """A function from an output's public name to the operators that it depends on, in order of names.

    Those that only move elements are left out. Empty where there are more than `MOST`.
    """
    tensors = dict(zip(frozen.output_names, frozen.outputs, strict=True))

    def found(output: str) -> tuple[str, ...]:
        graph = Graph.of(frozen.graph_def, (), (tensors[output],))
        computing = (node for name, node in graph.nodes.items() if not graph.is_source(name))
        ops = sorted({node.op for node in computing} - MOVES - {"Placeholder"})
        return tuple(ops) if len(ops) <= MOST else ()

    return found
