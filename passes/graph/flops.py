"""Estimates how much arithmetic every node of a model takes, from shapes alone: nothing is run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from onnx import ModelProto, NodeProto, TensorShapeProto

from passes.graph.flop_rules import Dims, NodeShapes, count
from passes.graph.value_types import value_types
from passes.graph.walk import bodies_of, iter_graphs, iter_nodes, plain_domain
from passes.infer_shapes import InferShapes
from passes.model import Model
from passes.segments import TensorSpec

#: Domains whose operators of known names do what ONNX's of that name do.
_KNOWN_DOMAINS = frozenset({"", "com.microsoft", "ai.onnx.ml"})


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate(Mapping[str, "int | None"]):
    """Floating point operations by node name, bodies of If, Loop and Scan included; a multiply-add counts 2.

    A node with bodies counts what is in them, each body once, however often it runs and whichever branch is taken: sum
    up one graph, or the nodes of segments, but not a node and its body.

    Attributes:
        flops: node name -> operations; None where the operator or a shape is unknown.
        sizes: dimension name -> the size that it was given.
        guessed: dimensions of values that are unknown and were taken as `default_dim`.
        default_dim: the size of every dimension that nothing is known of.
        repeated: names of the nodes with bodies, which count once.
        total: operations of the whole model, unknown nodes left out.
        unknown: op_type -> number of nodes whose count is None, most frequent first.
    """

    flops: Mapping[str, int | None]
    sizes: Mapping[str, int]
    guessed: int
    default_dim: int
    repeated: tuple[str, ...]
    total: int
    unknown: Mapping[str, int]

    def __getitem__(self, node: str) -> int | None:
        return self.flops[node]

    def __iter__(self) -> Iterator[str]:
        return iter(self.flops)

    def __len__(self) -> int:
        return len(self.flops)

    def of(self, nodes: Iterable[str]) -> int:
        """The operations of some nodes; unknown counts, and nodes that are not there, add nothing."""
        return sum(self.flops.get(node) or 0 for node in nodes)


def estimate(model: Model, sizes: Mapping[str, int] | None = None, default_dim: int = 1) -> Estimate:
    """Counts the operations of every node.

    1. Named dimensions of inputs and values get their size out of `sizes`, or `default_dim`; shapes are inferred again.
    2. What is unknown still (its size depends on data) is taken as `default_dim`; without a rank there is no count.
    3. `passes.graph.flop_rules` says what each operator costs.

    Args:
        model: a model with unique value and node names (canonicalize gives them); it stays as it is.
        sizes: dimension name -> size, as {"batch": 8}.
        default_dim: the size of all others, at least 1.

    Raises:
        ValueError: a size is below 1.
    """
    for name, size in {**(sizes or {}), "default_dim": default_dim}.items():
        if size < 1:
            raise ValueError(f"a size must be at least 1: {name} is {size}")
    fixed, given, nameless = _fix(model, sizes or {}, default_dim)
    shapes = _Shapes(value_types(InferShapes().run(fixed).model), default_dim)
    flops: dict[str, int | None] = {}
    repeated: list[str] = []
    unknown: Counter[str] = Counter()
    # Bodies come after the graphs around them, so from the back every body is known before its node.
    for node in reversed(list(iter_nodes(model.proto))):
        bodies = [body for _, body in bodies_of(node)]
        if bodies:
            repeated.append(node.name)
            flops[node.name] = sum(flops[inner.name] or 0 for body in bodies for inner in body.node)
            continue
        known = plain_domain(node.domain) in _KNOWN_DOMAINS
        flops[node.name] = count(shapes.around(node)) if known else None
        if flops[node.name] is None:
            unknown[node.op_type] += 1
    return Estimate(
        dict(reversed(flops.items())),
        given,
        shapes.guessed + nameless,
        default_dim,
        tuple(reversed(repeated)),
        sum(flops[node.name] or 0 for node in model.proto.graph.node),
        dict(sorted(unknown.items(), key=lambda item: (-item[1], item[0]))),
    )


class _Shapes:
    """Shapes of values as numbers; counts the dimensions that had to be guessed, each value once."""

    def __init__(self, types: Mapping[str, TensorSpec], default_dim: int) -> None:
        self._types = types
        self._default = default_dim
        self._known: dict[str, Dims | None] = {}
        self.guessed = 0

    def around(self, node: NodeProto) -> NodeShapes:
        """The shapes of a node's inputs and outputs."""
        return NodeShapes(node, tuple(map(self._shape, node.input)), tuple(map(self._shape, node.output)))

    def _shape(self, name: str) -> Dims | None:
        if name not in self._known:
            spec = self._types.get(name)
            shape = spec.shape if spec else None
            self._known[name] = None if shape is None else tuple([self._size(size) for size in shape])
        return self._known[name]

    def _size(self, size: int | str | None) -> int:
        if isinstance(size, int):
            return size
        self.guessed += 1
        return self._default


def _fix(model: Model, sizes: Mapping[str, int], default_dim: int) -> tuple[Model, dict[str, int], int]:
    """The model with numbers in the place of names, the size of every name that was met, and nameless input sizes."""
    given: dict[str, int] = {}
    proto = model.copy_proto()
    for dim in _dims(proto):
        if dim.dim_param:
            name = dim.dim_param
            dim.dim_value = given.setdefault(name, sizes.get(name, default_dim))
    nameless = 0
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if not dim.HasField("dim_value"):  # it would hide every shape behind it
                dim.dim_value = default_dim
                nameless += 1
    return Model(proto, model.weights), dict(sorted(given.items())), nameless


def _dims(proto: ModelProto) -> Iterator[TensorShapeProto.Dimension]:
    """Every dimension of every declared tensor."""
    for graph in iter_graphs(proto):
        for values in (graph.input, graph.output, graph.value_info):
            for value in values:
                if value.type.HasField("tensor_type"):
                    yield from value.type.tensor_type.shape.dim
