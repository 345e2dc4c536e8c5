"""Which section a node belongs to: as early as its inputs allow, or later where fewer bytes have to cross then."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from passes.graph_index import GraphIndex
from passes.segments import TensorSpec


def place(
    index: GraphIndex,
    needed: Sequence[int],
    islands: Sequence[bool],
    wanted: Sequence[str],
    spec: Callable[[str], TensorSpec],
) -> dict[int, int]:
    """The level of every needed node.

    Args:
        index: the graph.
        needed: its nodes that run, ascending; what they read from is needed, too.
        islands: per node of the graph whether it is an island node.
        wanted: values that are asked for.
        spec: what is known of a value.
    """
    levels: dict[int, int] = {}
    for number in needed:
        before = (levels[source] + islands[source] for source in index.preds[number])
        levels[number] = max(before, default=0)
    return levels
