"""Island nodes back in the exported ONNX graph, where the exporter saw inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, helper

from passes.graph.order import stable_order
from passes.island_node import (
    ISLAND_DOMAIN,
    ISLAND_DOMAIN_VERSION,
    ISLAND_PREFIX,
    IslandAttributes,
    island_nodes,
    make_island,
)
from rewriter.frontend.islands.cutting import INPUT, OUTPUT, Cut, Piece, Tensor
from rewriter.frontend.islands.graph import Graph
from rewriter.frontend.islands.planning import ops_of
from rewriter.frontend.naming import bodies, rename
from rewriter.frontend.structure import unique


@dataclasses.dataclass(frozen=True)
class Crossing:
    """The type of an island's output.

    Attributes:
        elem_type: onnx.TensorProto number.
        shape: None entries unknown; None as a whole: unknown rank.
        symbols: per axis the symbol of an input dimension that it equals, if any.
    """

    elem_type: int
    shape: tuple[int | None, ...] | None
    symbols: tuple[str | None, ...]


def operator(index: int) -> str:
    """The operator of the n-th island, which is its node's name as well."""
    return f"{ISLAND_PREFIX}{index:03d}"


def insert(
    proto: ModelProto,
    graph: Graph,
    parts: Cut,
    stand_ins: Sequence[str],
    folders: Sequence[str],
    elem_types: Mapping[Tensor, int],
) -> None:
    """Puts the islands into the export, in place.

    Args:
        proto: has the whole graph's inputs and the stand-ins as inputs, its own outputs and `parts.exits` as outputs.
        graph: the whole graph.
        parts: the islands.
        stand_ins: the Placeholders for `parts.entries`, by their names in the exported GraphDef.
        folders: SavedModel of each island.
        elem_types: onnx.TensorProto numbers of inputs, outputs and crossing tensors.

    Afterwards its inputs and outputs are those of `graph`, in order, called like its tensors ("node:0").
    """
    rename(proto.graph, {f"{name}:0": _name(t) for name, t in zip(stand_ins, parts.entries, strict=True)})
    nodes = [
        *proto.graph.node,
        *(_node(graph, p, operator(i), f) for i, (p, f) in enumerate(zip(parts.pieces, folders, strict=True))),
    ]
    ordered = _ordered(nodes)
    del proto.graph.node[:]
    proto.graph.node.extend(ordered)
    present = {value.name: value for value in (*proto.graph.input, *proto.graph.output)}
    inputs = [_value(present, (name, 0), elem_types) for name in graph.inputs]
    outputs = [_value(present, t, elem_types) for t in graph.outputs]
    for field, values in ((proto.graph.input, inputs), (proto.graph.output, outputs)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    proto.opset_import.append(helper.make_opsetid(ISLAND_DOMAIN, ISLAND_DOMAIN_VERSION))


def _name(source: Tensor) -> str:
    return f"{source[0]}:{source[1]}"


def _node(graph: Graph, piece: Piece, name: str, folder: str) -> NodeProto:
    reasons: dict[str, list[str]] = {}
    for node, reason in piece.island.reasons.items():
        reasons.setdefault(f"{graph.nodes[node].op}: {reason}", []).append(node)
    attributes = IslandAttributes(
        folder,
        tuple(INPUT.format(i) for i in range(len(piece.inputs))),
        tuple(OUTPUT.format(i) for i in range(len(piece.outputs))),
        ops_of(graph, (*piece.island.members, *piece.island.copies)),
        tuple(reasons),
    )
    return make_island(name, tuple(map(_name, piece.inputs)), tuple(map(_name, piece.outputs)), attributes)


def _value(present: Mapping[str, Any], source: Tensor, elem_types: Mapping[Tensor, int]) -> Any:
    """The description of a tensor; an island's has no shape yet."""
    name = _name(source)
    return present[name] if name in present else helper.make_tensor_value_info(name, elem_types[source], None)


def _ordered(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Every node behind what it reads, bodies included."""
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    order, _ = stable_order([[maker[name] for name in _read(node) if name in maker] for node in nodes])
    return [nodes[index] for index in order]


def _read(node: NodeProto) -> list[str]:
    found = list(node.input)
    for body in bodies(node):
        found += _read_in(body)
    return found


def _read_in(graph: GraphProto) -> list[str]:
    """Names that a body reads; its own are among them and mean nothing outside."""
    return [name for node in graph.node for name in _read(node)]


def describe(proto: ModelProto, outputs: Sequence[Sequence[Crossing]], symbols: Mapping[Any, str]) -> None:
    """Writes dtype and shape of every island's outputs as value_info.

    Args:
        proto: with public names already.
        outputs: per island its outputs.
        symbols: those of the inputs; an unknown dimension of an island that equals none of them gets a new one.
    """
    graph = proto.graph
    named = {value.name for value in graph.output}
    taken = set(symbols.values())
    for node, described in zip(island_nodes(proto), outputs, strict=True):
        for index, (name, known) in enumerate(zip(node.output, described, strict=True)):
            dims: list[int | str] | None = None
            if known.shape is not None:
                dims = [
                    size if size is not None else symbol or unique(f"{node.name}_{index}_dim{axis}", taken)
                    for axis, (size, symbol) in enumerate(zip(known.shape, known.symbols, strict=True))
                ]
            if name not in named:
                graph.value_info.append(helper.make_tensor_value_info(name, known.elem_type, dims))
