"""The cut: a GraphDef for the exporter, in which islands are only inputs and outputs, and one GraphDef per island.

Control edges within an island stay, and with them assertions that need nothing from outside; control edges across a cut
carry no data and go. In the exported part they say nothing to ONNX anyway.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rewriter.frontend.islands.graph import (
    Graph,
    control_inputs,
    data_inputs,
    reached_functions,
    spelled,
    tensor,
)
from rewriter.frontend.islands.planning import Island, Plan
from rewriter.frontend.structure import unique

Tensor = tuple[str, int]
INPUT, OUTPUT = "input_{}", "output_{}"


@dataclasses.dataclass(frozen=True)
class Piece:
    """An island cut out.

    Attributes:
        island: what the plan said.
        inputs: tensors of the whole graph that it reads, in the order of its inputs.
        outputs: tensors of the whole graph that it computes for others, in the order of its outputs.
        nodes: what it consists of, sources included, in order.
    """

    island: Island
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Cut:
    """A graph in pieces.

    Attributes:
        pieces: the islands, in topological order.
        exported: names of the nodes for the exporter, sources included.
        entries: tensors of islands that the exporter's part reads, in order.
        exits: tensors of the exporter's part that islands read, in order; those that are the model's outputs are not
            named again.
    """

    pieces: tuple[Piece, ...]
    exported: tuple[str, ...]
    entries: tuple[Tensor, ...]
    exits: tuple[Tensor, ...]


def cut(graph: Graph, plan: Plan) -> Cut:
    """Finds what crosses the boundaries of a plan's islands."""
    owner = {name: number for number, island in enumerate(plan.islands) for name in island.members}
    drafts = []
    for island in plan.islands:
        inside = {*island.members, *island.copies}
        reads = _reads(graph, inside)
        held = _with_assertions(graph, inside, reads)
        drafts.append((island, held, tuple(s for s in reads if not graph.is_source(s[0]))))
    wanted = [t for t in graph.outputs if t[0] not in owner]
    wanted += [t for _, _, reads in drafts for t in reads if t[0] not in owner and t[0] not in graph.inputs]
    exported = _ancestors(graph, [node for node, _ in wanted], owner)
    inside_reads = dict.fromkeys(t for name in exported for t in graph.reads(name))
    entries = tuple(t for t in inside_reads if t[0] in owner)
    asked = dict.fromkeys([*entries, *graph.outputs, *(t for _, _, reads in drafts for t in reads)])
    pieces = tuple(
        Piece(island, reads, tuple(t for t in asked if owner.get(t[0]) == number), held)
        for number, (island, held, reads) in enumerate(drafts)
    )
    exits = dict.fromkeys(t for t in wanted if t not in set(graph.outputs))
    return Cut(pieces, exported, entries, tuple(exits))


def _reads(graph: Graph, inside: set[str]) -> list[Tensor]:
    """Tensors, sources too, that the nodes read from outside, each once, in the order of the graph."""
    chosen = (name for name in graph.nodes if name in inside)
    return list(dict.fromkeys(t for name in chosen for t in graph.reads(name) if t[0] not in inside))


def _with_assertions(graph: Graph, inside: set[str], reads: Iterable[Tensor]) -> tuple[str, ...]:
    """The nodes of an island with its sources, and what it waits for as far as that needs nothing further."""
    known = inside | {node for node, _ in reads}
    held = set(inside) | {node for node, _ in reads if graph.is_source(node)}
    waiting = [c for name in sorted(inside) for c in control_inputs(graph.nodes[name])]
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        group = _closure(graph, name, known)
        if group:
            held |= group
            known |= group
            fresh = {c for n in group for c in control_inputs(graph.all_nodes[n])} - seen
            waiting += sorted(fresh)
            seen |= fresh
    return tuple(name for name in graph.all_nodes if name in held)


def _closure(graph: Graph, name: str, known: set[str]) -> set[str]:
    """`name` and what it reads, where all of that comes from `known` and constants; else nothing."""
    found: set[str] = set()
    stack = [name]
    while stack:
        node = graph.all_nodes.get(stack.pop())
        if node is not None and (node.name in known or node.name in found):
            continue
        if node is None or node.op == "Placeholder" or (node.name in graph.nodes and not graph.is_source(node.name)):
            return set()
        found.add(node.name)
        stack += [source for source, _ in data_inputs(node)]
    return found


def _ancestors(graph: Graph, roots: Sequence[str], owner: Mapping[str, int]) -> tuple[str, ...]:
    """What the roots are computed from outside of islands, with the fed Placeholders."""
    found = set(graph.inputs)
    stack = [name for name in roots if name not in found]
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack += [s for s, _ in graph.reads(name) if s not in owner and s not in found]
    return tuple(name for name in graph.nodes if name in found)


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of tensors: DataType number and shape (None: unknown rank) by ("node", port)."""

    dtypes: Mapping[Tensor, int]
    shapes: Mapping[Tensor, tuple[int | None, ...] | None]


def exported_graph(graph: Graph, parts: Cut, known: Known) -> tuple[Any, tuple[str, ...]]:
    """The GraphDef for the exporter, and the names of the Placeholders that stand for `parts.entries`."""
    kept = set(parts.exported)
    used = set(kept)
    stand_ins = {t: unique(f"{t[0]}_{t[1]}" if t[1] else t[0], used) for t in parts.entries}
    made = type(graph.graph_def)(versions=graph.graph_def.versions)
    for source, name in stand_ins.items():
        _placeholder(made, name, known.dtypes[source], known.shapes[source])
    for name in parts.exported:
        _copy(made, graph.nodes[name], kept, stand_ins)
    _add_library(made, graph)
    return made, tuple(stand_ins.values())


def island_graph(graph: Graph, piece: Piece, known: Known) -> Any:
    """The GraphDef of an island, with Placeholders "island_input_0"... for what it reads.

    Returns:
        Its nodes keep their names (a Placeholder's name that is taken gets a number in `input_names`), so the outputs
        are found under theirs.
    """
    held = set(piece.nodes)
    made = type(graph.graph_def)(versions=graph.graph_def.versions)
    names = input_names(piece)
    for source, name in zip(piece.inputs, names, strict=True):
        _placeholder(made, name, known.dtypes[source], known.shapes[source])
    spelling = dict(zip(piece.inputs, names, strict=True))
    for name in piece.nodes:
        _copy(made, graph.all_nodes[name], held, spelling)
    _add_library(made, graph)
    return made


def input_names(piece: Piece) -> tuple[str, ...]:
    """Names of the Placeholders in an island's GraphDef."""
    taken = set(piece.nodes)
    return tuple(unique(f"island_input_{index}", taken) for index in range(len(piece.inputs)))


def _placeholder(made: Any, name: str, dtype: int, shape: tuple[int | None, ...] | None) -> None:
    node = made.node.add(name=name, op="Placeholder")
    node.attr["dtype"].type = dtype
    if shape is None:
        node.attr["shape"].shape.unknown_rank = True
    else:
        node.attr["shape"].shape.SetInParent()
        for size in shape:
            node.attr["shape"].shape.dim.add(size=-1 if size is None else size)


def _copy(made: Any, node: Any, kept: set[str], spelling: Mapping[Tensor, str]) -> None:
    """Adds a node; tensors that come through a Placeholder are read from there, lost control edges go."""
    copy = made.node.add()
    copy.CopyFrom(node)
    del copy.input[:]
    for name in node.input:
        if name.startswith("^"):
            if name[1:] in kept:
                copy.input.append(name)
        else:
            source = tensor(name)
            copy.input.append(spelling.get(source, spelled(*source)))


def _add_library(made: Any, graph: Graph) -> None:
    """The functions that the nodes call."""
    for name in reached_functions(made.node, graph.library):
        made.library.function.add().CopyFrom(graph.library[name])
