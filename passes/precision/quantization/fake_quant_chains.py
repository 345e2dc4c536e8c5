"""Finds fake quantisation that is written in float operators, by what it computes rather than by how it is spelt."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from passes.graph.value_types import value_types
from passes.graph.walk import iter_graphs
from passes.model import Model
from passes.precision.ranges import TensorRange
from passes.segments import TensorSpec
from passes.steps.quantized_constants import Constants

#: What a chain is made of beside one Floor or Round.
_LINKS = ("Mul", "Div", "Add", "Sub", "Min", "Max", "Clip")
_OPERATORS = {
    "Mul": np.multiply, "Div": np.divide, "Add": np.add, "Sub": np.subtract, "Min": np.minimum, "Max": np.maximum,
}  # fmt: skip
_ROUNDERS = ("Floor", "Round")
#: Most links before and behind the rounding: min, max, shift, scale, shift, half; clip, scale.
_MOST_BEFORE, _MOST_BEHIND = 8, 3
#: Far outside every range: what a chain that clips maps to an end of its grid.
_FAR = np.float32(1e30)
#: More levels are no fake quantisation; so many of them are tried.
_MOST_LEVELS, _TRIED = 1 << 16, 1 << 10
#: Fraction of a step by which a level may miss its place: float32 leaves 2**-24 of the range for up to 2**16 levels.
_PLACE = 0.02
_EIGHT_BITS = (255, 256)


@dataclasses.dataclass(frozen=True)
class Chain:
    """Nodes of one graph that round a value to a grid of levels.

    Attributes:
        source: the value that goes in.
        output: the value that comes out.
        end: name of the last node.
        low, high, step: the ends of the grid and the distance of its levels, each one number or, in a shape that
            broadcasts with the value, one a channel.
        levels: the number of levels (256 and 255 for 8 bits, wide and narrow).
    """

    source: str
    output: str
    end: str
    low: np.ndarray
    high: np.ndarray
    step: np.ndarray
    levels: int

    @property
    def bits(self) -> int:
        """The width that holds the levels."""
        return int(self.levels - 1).bit_length()

    @property
    def eight_bits(self) -> bool:
        """True for the only width that int8 stands for."""
        return self.levels in _EIGHT_BITS

    @property
    def range(self) -> TensorRange:
        """The whole range, over all channels."""
        return TensorRange(float(self.low.min()), float(self.high.max()))

    @property
    def symmetric(self) -> bool:
        """True for one range whose levels int8 holds as they are: -128 or -127 to 127 steps."""
        return self.nearly_symmetric and round(float((self.high / self.step).max())) == 127

    @property
    def nearly_symmetric(self) -> bool:
        """True as well where the zero point was rounded the other way, so that there is a level 128, and no -128.

        TensorFlow's own arithmetic does so for -1..1.
        """
        if self.step.size != 1 or not self.eight_bits:
            return False
        below, above = (round(float((end / self.step).max())) for end in (self.low, self.high))
        return (below, above) in ((-128, 127), (-127, 127), (-127, 128))


def find_chains(model: Model) -> list[list[Chain]]:
    """The chains of every graph (in the order of `iter_graphs`), in the order of their last nodes.

    A chain is one Floor or Round with elementwise operators and constants around it whose function f
    1. is bounded: very small and very large values come out as the ends of a grid of equally spaced levels,
    2. maps every level (up to 1024 of them are tried) to itself, and what lies a quarter step beside it, too.
    The shortest such stretch counts, so a Relu6 or a scale in front of it is no part of it.
    """
    constants = Constants.of(model.proto, dict(model.weights))
    readers, types = _readers(model.proto), value_types(model)
    found = [_in_graph(graph, constants, readers) for graph in iter_graphs(model.proto)]
    return [[chain for chain in chains if _keeps_rank(chain, types.get(chain.source))] for chains in found]


def _keeps_rank(chain: Chain, source: TensorSpec | None) -> bool:
    """False where the constants have more dimensions than the value, so that the chain adds some."""
    return source is None or source.shape is None or len(source.shape) >= chain.step.ndim


def _readers(proto: ModelProto) -> Mapping[str, list[NodeProto]]:
    readers: dict[str, list[NodeProto]] = {}
    for graph in iter_graphs(proto):
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                readers.setdefault(name, []).append(node)
    return readers


def _in_graph(graph: GraphProto, constants: Constants, readers: Mapping[str, list[NodeProto]]) -> list[Chain]:
    producer = {name: node for node in graph.node for name in node.output if name}
    exposed = {o.name for o in graph.output}
    found = []
    for node in graph.node:
        if node.op_type in _ROUNDERS and not node.domain:
            before = _walk_back(node, producer, constants)
            behind = _walk_on(node, readers, producer, constants, exposed)
            chain = _shortest(node, before, behind, constants)
            if chain is not None:
                found.append(chain)
    place = {node.name: i for i, node in enumerate(graph.node)}
    return sorted(found, key=lambda chain: place[chain.end])


def _variable_input(node: NodeProto, constants: Constants) -> str | None:
    """The only input of a link that is no constant; None when the node is no link."""
    if node.op_type not in _LINKS or node.domain:
        return None
    names = [name for name in node.input if name]
    variable = [name for name in names if name not in constants]
    if len(variable) != 1 or len(names) < 2:
        return None
    if node.op_type in ("Div", "Clip") and node.input[0] != variable[0]:
        return None
    fixed = [name for name in names if name != variable[0]]
    return variable[0] if all(constants.dtype(name) == TensorProto.FLOAT for name in fixed) else None


def _walk_back(start: NodeProto, producer: Mapping[str, NodeProto], constants: Constants) -> list[NodeProto]:
    """Links that lead to `start`, the nearest first."""
    links: list[NodeProto] = []
    name = start.input[0]
    while len(links) < _MOST_BEFORE:
        node = producer.get(name)
        source = _variable_input(node, constants) if node is not None else None
        if node is None or source is None:
            break
        links.append(node)
        name = source
    return links


def _walk_on(
    start: NodeProto,
    readers: Mapping[str, list[NodeProto]],
    producer: Mapping[str, NodeProto],
    constants: Constants,
    exposed: set[str],
) -> list[NodeProto]:
    """Links behind `start`, as long as each value has one reader in the same graph."""
    links: list[NodeProto] = []
    name = start.output[0]
    while len(links) < _MOST_BEHIND and name not in exposed:
        following = readers.get(name, [])
        if len(following) != 1 or producer.get(following[0].output[0]) is not following[0]:
            break
        if _variable_input(following[0], constants) is None:
            break
        links.append(following[0])
        name = following[0].output[0]
    return links


def _shortest(
    middle: NodeProto, before: Sequence[NodeProto], behind: Sequence[NodeProto], constants: Constants
) -> Chain | None:
    """The shortest stretch around `middle` that is a fake quantisation."""
    sizes = itertools.product(range(1, len(behind) + 1), range(len(before) + 1))
    for after, ahead in sorted(sizes, key=lambda pair: (sum(pair), pair)):
        stretch = [*reversed(before[:ahead]), middle, *behind[:after]]
        if stretch[-1].op_type == "Mul":
            chain = _chain(stretch, middle, constants)
            if chain is not None:
                return chain
    return None


def _chain(stretch: Sequence[NodeProto], middle: NodeProto, constants: Constants) -> Chain | None:
    """The chain that a stretch of nodes is; None when it computes something else."""
    first = stretch[0]
    source = first.input[0] if first is middle else _variable_input(first, constants)
    arrays = {
        name: np.asarray(constants.array(name), np.float32)
        for node in stretch
        for name in node.input
        if name in constants
    }
    try:
        shape = np.broadcast_shapes(*(array.shape for array in arrays.values()))
    except ValueError:
        return None
    factor = next((name for name in stretch[-1].input if name in constants), "")
    step = np.broadcast_to(arrays[factor], shape)
    if source is None or not bool(np.all(np.isfinite(step) & (step > 0))):
        return None
    with np.errstate(all="ignore"):
        ends = _compute(
            stretch, source, arrays, np.broadcast_to([[-_FAR], [_FAR]], (2, 1)).reshape(2, *[1] * len(shape))
        )
        low, high = (np.array(np.broadcast_to(end, shape)) for end in ends)
        levels = _levels(low, high, step)
        if levels is None or not _is_identity(stretch, source, arrays, (low, high, step)):
            return None
    return Chain(source, stretch[-1].output[0], stretch[-1].name, low, high, np.array(step), levels)


def _levels(low: np.ndarray, high: np.ndarray, step: np.ndarray) -> int | None:
    """How many levels there are between the ends, the largest number of all channels; None where that is no grid."""
    if not bool(np.all(np.isfinite(low) & np.isfinite(high) & (low <= 0) & (high >= 0) & (low < high))):
        return None
    below, above = low / step, high / step
    if float(max(-below.min(), above.max())) >= _MOST_LEVELS:
        return None
    if max(float(np.abs(side - np.rint(side)).max()) for side in (below, above)) > _PLACE:
        return None
    return int(np.rint(above - below).max()) + 1


def _is_identity(
    stretch: Sequence[NodeProto],
    source: str,
    arrays: Mapping[str, np.ndarray],
    grid: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> bool:
    """Rule 2 of `find_chains`."""
    low, high, step = (array.astype(np.float64) for array in grid)
    count = int(np.rint((high - low) / step).max()) + 1
    picked = np.unique(np.linspace(0, count - 1, min(count, _TRIED)).astype(int))
    points = np.minimum(low + picked.reshape(-1, *[1] * low.ndim) * step, high)
    for beside in (0.0, 0.25, -0.25):
        values = (points + beside * step).astype(np.float32)
        if not bool(np.all(np.abs(_compute(stretch, source, arrays, values) - points) <= _PLACE * step)):
            return False
    return True


def _compute(
    stretch: Sequence[NodeProto], source: str, arrays: Mapping[str, np.ndarray], value: np.ndarray
) -> np.ndarray:
    """Runs the stretch in float32."""
    values: dict[str, np.ndarray] = {**arrays, source: value.astype(np.float32)}
    for node in stretch:
        first, *others = (values.get(name) for name in node.input)
        result = np.asarray(first)
        if node.op_type in _ROUNDERS:
            result = np.floor(result) if node.op_type == "Floor" else np.rint(result)
        elif node.op_type == "Clip":
            for bound, limit in zip(others, (np.maximum, np.minimum), strict=False):
                result = result if bound is None else limit(result, bound)
        else:
            for other in others:
                result = _OPERATORS[node.op_type](result, np.asarray(other))
        values[node.output[0]] = result
    return values[stretch[-1].output[0]]
