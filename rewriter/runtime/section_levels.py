"""Which section each node belongs to, so that little has to cross between sections.

A section gives arrays of the host to the next one: on a GPU every value that crosses is copied to the host and back.
So a node that could run in several sections goes where that costs least:

    1. Where a node may run is bounded: not before the islands that it depends on, not after an island that needs it.
    2. Between each section and all later ones a cheapest cut decides what of the rest stays in it. A value that is made
       here and read later costs its bytes twice (once, where it goes to the host anyway), a value of the host that both
       sides read costs its bytes once, and every transfer costs something for itself.
    3. Of equal cuts the one that runs more nodes early is taken. But no section is made for such nodes alone: where
       nothing has to run in a section, nothing does, and where nothing has to run later, all that can runs here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence

from onnx import TensorProto

from passes.graph_index import GraphIndex
from passes.segments import TensorSpec
from rewriter.runtime.min_cut import INFINITE, Arc, sink_side
from rewriter.runtime.native import numpy_dtype

#: What one transfer costs beside its bytes: about as long as so many bytes take on the way to a GPU.
TRANSFER_BYTES = 1 << 16
#: Taken for dimensions that are not known.
_UNKNOWN_SIZE = 16
_SOURCE, _SINK = "source", "sink"


def place(
    index: GraphIndex,
    needed: Sequence[int],
    islands: Sequence[bool],
    wanted: Collection[str],
    spec: Callable[[str], TensorSpec],
) -> dict[int, int]:
    """The level of every needed node: the section that it runs in, for an island the section that it runs behind.

    Args:
        index: the graph.
        needed: its nodes that run, ascending; what they read from is needed, too.
        islands: per node of the graph whether it is an island node.
        wanted: values that are asked for, and go to the host in any case.
        spec: what is known of a value.
    """
    earliest = _earliest(index, needed, islands)
    levels = {number: level for number, level in earliest.items() if islands[number]}
    waiting = [number for number in needed if not islands[number]]
    to_host = {name for number in levels for name in index.reads[number]}.union(wanted)
    for level in range(max(earliest.values(), default=0)):
        if not waiting:
            break
        bound = _feeding(index, [n for n, at in levels.items() if islands[n] and at <= level])
        first = {number for number in waiting if number in bound}
        later = {number for number in waiting if earliest[number] > level}
        free = [number for number in waiting if number not in first and number not in later]
        if later and first and free:
            arcs = _arcs(index, first, later, free, to_host, spec)
            behind = sink_side(arcs, _SOURCE, _SINK)
            first.update(number for number in free if number not in behind)
        elif not later:
            first.update(free)
        levels.update((number, level) for number in first)
        waiting = [number for number in waiting if number not in first]
    last = max(earliest.values(), default=0)
    levels.update((number, last) for number in waiting)
    return levels


def _earliest(index: GraphIndex, needed: Sequence[int], islands: Sequence[bool]) -> dict[int, int]:
    """The level of every node if all run as early as they can."""
    found: dict[int, int] = {}
    for number in needed:
        found[number] = max((found[source] + islands[source] for source in index.preds[number]), default=0)
    return found


def _feeding(index: GraphIndex, numbers: Sequence[int]) -> set[int]:
    """All nodes that some nodes depend on."""
    found: set[int] = set()
    stack = list(numbers)
    while stack:
        fresh = [source for source in index.preds[stack.pop()] if source not in found]
        found.update(fresh)
        stack.extend(fresh)
    return found


def _arcs(
    index: GraphIndex,
    first: Collection[int],
    later: Collection[int],
    free: Sequence[int],
    to_host: Collection[str],
    spec: Callable[[str], TensorSpec],
) -> Iterator[Arc]:
    """The network whose cuts are the choices for the free nodes, priced in bytes.

    The nodes in `first` are its source, those in `later` its sink; whatever else makes a value has run before.
    """
    ends: dict[int, Hashable] = {number: number for number in free}
    ends.update((number, _SOURCE) for number in first)
    ends.update((number, _SINK) for number in later)
    made = {name: number for number in ends for name in index.makes[number] if name}
    readers: dict[str, dict[Hashable, None]] = {}
    for number, end in ends.items():
        for name in index.reads[number]:
            readers.setdefault(name, {})[end] = None
            if name in made and end != ends[made[name]]:
                # A node that runs first needs what it reads to run first.
                yield end, ends[made[name]], INFINITE
    # Constants are copied into each section, and cost nothing.
    varies = {value.name for value in index.graph.input}.union(index.producer)
    for name, ways in readers.items():
        if name not in varies:
            continue
        price = TRANSFER_BYTES + _bytes(spec(name))
        behind = ("behind", name)
        if name in made:
            yield ends[made[name]], behind, price if name in to_host else 2 * price
        elif len(ways) > 1:
            ahead = ("ahead", name)
            yield ahead, behind, price
            yield from ((end, ahead, INFINITE) for end in ways)
        else:
            continue
        yield from ((behind, end, INFINITE) for end in ways)


def _bytes(spec: TensorSpec) -> int:
    """What a value takes, roughly; strings never lie on a GPU and cost nothing."""
    if spec.dtype in (TensorProto.UNDEFINED, TensorProto.STRING):
        return 0
    sizes = [size if isinstance(size, int) else _UNKNOWN_SIZE for size in spec.shape or ()]
    return math.prod(sizes) * numpy_dtype(spec.dtype).itemsize
