"""Trained ranges: float fake quantisation becomes the symmetric Q/DQ pairs that TensorRT computes in 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from passes.base import Change, PassError, PassResult
from passes.graph.editing import Namer, finish, node_namer, replace_nodes, substitute, value_namer
from passes.graph.walk import iter_graphs
from passes.model import Model, Weights
from passes.precision.opset import opset_of, raise_opset
from passes.precision.quantization.fake_quant_chains import Chain, find_chains
from passes.precision.quantization.float_readers import FloatReaders
from passes.precision.quantization.int8_to_fp8 import has_int8, int8_to_fp8
from passes.precision.ranges import TensorRange
from passes.precision.recipe import MARK, Recipe, origin
from passes.steps.cleanup import drop_stale_value_info, remove_dead
from passes.steps.quantized_constants import Constants, Quantization

_ELEMENTS = {"INT8": TensorProto.INT8, "FP8": TensorProto.FLOAT8E4M3FN}
#: FP8 is no type of QuantizeLinear before.
_FP8_OPSET = 19
#: Half a unit in the last place of E4M3 at its largest number (16 of 448), as a fraction of the range.
_FP8_ERROR = 1 / 28
#: A range that reaches this close to the new grid's end needs no clipping there (fraction of the range).
_CLOSE = 1e-5
#: So many producers are asked for the bounds of a value.
_DEEPEST = 8
#: Operators whose results lie within fixed bounds.
_BOUNDED = {"Relu": (0.0, np.inf), "Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "HardSigmoid": (0.0, 1.0)}
#: Operators that keep the bounds of their first input.
_KEEP_BOUNDS = ("MaxPool", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "GlobalAveragePool",
                "GlobalMaxPool", "ReduceMean", "Identity", "Slice", "Gather")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CollapseFakeQuant:
    """Replaces fake quantisation in float operators by QuantizeLinear -> DequantizeLinear with zero point 0.

    1. One symmetric range (its levels are -128 or -127 to 127 steps) collapses exactly: the scale is the step. Values
       half way between two levels may round the other way, and with a narrow range what lies below it comes out one
       step lower. Levels -127 to 128, which TensorFlow makes of -1..1, go the same way; the highest one saturates.
    2. Any other range a..b is widened to -c..c with c = max(|a|, |b|) and the scale s' = c / 127; ranges per channel
       are first united, for TensorRT takes one scale per activation. A Clip to a..b stays in front where the source
       does not promise that bound itself (Relu, Clip, Sigmoid ...), so nothing passes that was clipped before.
       Both grids round a clipped value to their nearest level, so it changes by at most half an old and half a new
       step, (s + s') / 2; where the range ends at -c, what lies below comes out at -128 s', one new step off.
    3. FP8 takes s' = c / 448 in every case; E4M3 rounds by at most c / 28, so a value changes by at most
       s / 2 + c / 28.
    4. Chains with one source and equal grids share a pair. A node that the recipe keeps by name keeps its chain.

    5. int8 pairs and dequantised int8 constants that are there already stay in INT8; FP8 takes them along, for TensorRT
       builds nothing that has both (`passes.precision.quantization.int8_to_fp8`).
    6. Nodes that the recipe leaves in floating point read none of all that: their quantised weights become floats, and
       the fake quantisation before them stays float arithmetic (`passes.precision.quantization.float_readers`).

    Attributes:
        recipe: INT8 or FP8; `asymmetric` says what becomes of rule 2: "symmetrise" does it and reports the bound,
            "refuse" raises.
    """

    recipe: Recipe
    name: str = "collapse_fake_quant"

    def run(self, model: Model) -> PassResult:
        """Collapses every chain of `model`, bodies included.

        Raises:
            PassError: a chain has another width than 8 bits, or an asymmetric range that the recipe refuses.
        """
        if not self.recipe.quantizes:
            return PassResult(model)
        chains = [[chain for chain in found if self._wanted(chain)] for found in find_chains(model)]
        separated, floats = self._separate(model, [chain for found in chains for chain in found])
        chains = [[chain for chain in found if chain.end not in floats] for found in chains]
        if not any(chains) and not self._has_int8(separated.model):
            return separated
        collapsed = self._collapse(separated.model, chains)
        return PassResult(collapsed.model, (*separated.changes, *collapsed.changes))

    def _separate(self, model: Model, chains: list[Chain]) -> tuple[PassResult, frozenset[str]]:
        """(Rule 6, the last nodes of the chains that stay float arithmetic); such are told though nothing changes."""
        proto, weights = model.copy_proto(), dict(model.weights)
        readers = FloatReaders.of(model, proto, weights, self.recipe, chains)
        if not readers.needed:
            return PassResult(model), frozenset()
        floats, changes = readers.apply()
        if not changes:
            return PassResult(model), floats
        remove_dead(proto)
        drop_stale_value_info(proto.graph)
        return PassResult(finish(model, proto, weights, changes).model, tuple(changes)), floats

    def _collapse(self, model: Model, found: list[list[Chain]]) -> PassResult:
        """Rules 1 to 5 for the chains of each graph."""
        changes: list[Change] = []
        base, fp8 = model, self.recipe.mode == "FP8"
        if fp8 and opset_of(model.proto) < _FP8_OPSET:
            raised = raise_opset(model, _FP8_OPSET)
            base, changes = raised.model, list(raised.changes)
        proto, weights = base.copy_proto(), dict(base.weights)
        work = _Work.of(proto, weights, self.recipe.mode)
        if fp8:
            changes.extend(int8_to_fp8(proto, work.constants))
        shared: dict[str, str] = {}
        for graph, chains in zip(iter_graphs(proto), found, strict=True):
            for chain in chains:
                self._check(chain)
            changes.extend(_collapse(graph, chains, work, shared))
        substitute(proto.graph, shared)
        remove_dead(proto)
        drop_stale_value_info(proto.graph)
        return finish(model, proto, weights, changes)

    def _has_int8(self, model: Model) -> bool:
        """True for FP8 where there is int8 to take along."""
        return self.recipe.mode == "FP8" and has_int8(model.proto, Constants.of(model.proto, dict(model.weights)))

    def _wanted(self, chain: Chain) -> bool:
        # Not `keeps` of the last node itself: whoever keeps every Mul does not speak of quantisation.
        return not self.recipe.keeps(NodeProto(op_type="QuantizeLinear", name=chain.end))

    def _check(self, chain: Chain) -> None:
        low, high = chain.range.minimum, chain.range.maximum
        if not chain.eight_bits:
            raise PassError(
                f"{self.name}: {chain.end!r} is fake quantisation with num_bits={chain.bits} ({chain.levels} levels), "
                f"and {self.recipe.mode} has 8 bits: train it with num_bits=8, or keep the node as it is (keep_nodes)"
            )
        if self.recipe.asymmetric == "refuse" and not chain.symmetric:
            raise PassError(
                f"{self.name}: the trained range of {chain.end!r}, {low:.6g}..{high:.6g}"
                f"{' in several channels' if chain.step.size > 1 else ''}, is not symmetric: retrain it, allow "
                "asymmetric='symmetrise', or keep the node as it is (keep_nodes)"
            )


def fake_quant_ranges(model: Model) -> Mapping[str, TensorRange]:
    """Trained ranges: value name -> range, of what goes into and what comes out of each fake quantisation.

    These are the chains that `CollapseFakeQuant` finds and the int8 pairs with zero point 0 that are there already.
    A value that goes into several has the widest of their ranges.
    """
    found: dict[str, TensorRange] = {}

    def add(name: str, new: TensorRange) -> None:
        old = found.get(name, new)
        found[name] = TensorRange(min(old.minimum, new.minimum), max(old.maximum, new.maximum))

    for chains in find_chains(model):
        for chain in chains:
            add(chain.source, chain.range)
            add(chain.output, chain.range)
    constants = Constants.of(model.proto, dict(model.weights))
    for quantize, dequantize, scale in _pairs(model.proto, constants):
        add(quantize.input[0], TensorRange(-127 * scale, 127 * scale))
        add(dequantize.output[0], TensorRange(-127 * scale, 127 * scale))
    return found


def _pairs(proto: ModelProto, constants: Constants) -> Iterator[tuple[NodeProto, NodeProto, float]]:
    """(QuantizeLinear, DequantizeLinear, largest scale) of the int8 pairs with zero point 0 on what is no constant."""
    for graph in iter_graphs(proto):
        starts = {n.output[0]: n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants}
        for node in graph.node:
            start = starts.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
            plan = Quantization.of(start, constants) if start is not None else None
            if start is not None and plan is not None and plan.symmetric:
                yield start, node, float(plan.scale.max())


@dataclasses.dataclass(frozen=True)
class _Work:
    """What replacing needs beside the chain: constants, names, and who makes each value."""

    constants: Constants
    values: Namer
    names: Namer
    producer: Mapping[str, NodeProto]
    exposed: frozenset[str]
    mode: str
    made: dict[tuple[str, bytes, tuple[int, ...]], str]
    promised: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, proto: ModelProto, weights: Weights, mode: str) -> _Work:
        graphs = list(iter_graphs(proto))
        producer = {name: node for graph in graphs for node in graph.node for name in node.output if name}
        exposed = frozenset(o.name for graph in graphs for o in graph.output)
        constants = Constants.of(proto, weights)
        return cls(constants, value_namer(proto.graph), node_namer(proto.graph), producer, exposed, mode, {}, {})

    def constant(self, array: np.ndarray, base: str) -> str:
        """A constant, one for each value."""
        key = (array.dtype.name, array.tobytes(), array.shape)
        if key not in self.made:
            self.made[key] = self.constants.add(array, self.values.fresh(base))
        return self.made[key]

    def node(self, chain: Chain, op: str, inputs: list[str], what: str, output: str = "") -> NodeProto:
        """A node that stems from the last node of the chain."""
        name = self.names.fresh(f"{origin(chain.end)}{MARK}{what}")
        return helper.make_node(op, inputs, [output or self.values.fresh(name)], name)

    def bounds(self, name: str, depth: int = _DEEPEST) -> tuple[float, float]:
        """What the producers of a value promise of it: (lowest, highest)."""
        if name in self.promised:
            return self.promised[name]
        node = self.producer.get(name)
        if node is None or node.domain or not depth:
            return -np.inf, np.inf
        if node.op_type in _KEEP_BOUNDS:
            return self.bounds(node.input[0], depth - 1)
        if node.op_type == "Add":
            one, other = (self.bounds(term, depth - 1) for term in node.input)
            return one[0] + other[0], one[1] + other[1]
        if node.op_type == "Clip":
            limits = [self.constants.array(bound) if bound else None for bound in [*node.input[1:3], "", ""][:2]]
            return (
                -np.inf if limits[0] is None else float(limits[0].max()),
                np.inf if limits[1] is None else float(limits[1].max()),
            )
        return _BOUNDED.get(node.op_type, (-np.inf, np.inf))


def _collapse(graph: GraphProto, chains: list[Chain], work: _Work, shared: dict[str, str]) -> list[Change]:
    """Puts pairs in the places of the last nodes; the rest of the chains is dead then."""
    changes: list[Change] = []
    replaced: dict[str, list[NodeProto]] = {}
    first: dict[tuple[str, bytes], str] = {}
    for chain in chains:
        key = (chain.source, b"".join(a.tobytes() for a in (chain.low, chain.high, chain.step)))
        if key in first and chain.output not in work.exposed:
            shared[chain.output] = first[key]
            replaced[chain.end] = []
            changes.append(Change("share-pair", chain.end, f"the same grid on {chain.source!r} as before"))
            continue
        scale, clipped, change = _plan(chain, work)
        changes.append(change)
        nodes, value = _clip(chain, clipped, work)
        zero = np.zeros(
            (), np.int8 if work.mode == "INT8" else helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
        )
        parameters = [
            work.constant(np.asarray(scale, np.float32), f"{chain.output}/scale"),
            work.constant(zero, f"{chain.output}/zero"),
        ]
        nodes.append(work.node(chain, "QuantizeLinear", [value, *parameters], "quantize"))
        last = work.node(chain, "DequantizeLinear", [nodes[-1].output[0], *parameters], "dequantize", chain.output)
        replaced[chain.end] = [*nodes, last]
        first[key] = chain.output
    if replaced:
        replace_nodes(graph, [new for node in graph.node for new in replaced.get(node.name, [node])])
    return changes


def _plan(chain: Chain, work: _Work) -> tuple[float, tuple[bool, bool], Change]:
    """(scale, whether to clip at the lower and the upper end, what to report)."""
    step, amax = float(chain.step.max()), chain.range.amax
    if work.mode == "INT8" and chain.nearly_symmetric:
        reason = f"the range is symmetric, its step {step:.6g} stays"
        if chain.symmetric:
            return step, (False, False), Change("collapse-fake-quant", chain.end, reason)
        reason += (
            f"; the highest of its levels, {chain.range.maximum:.6g}, comes out one step lower, "
            f"largest change of a value <= {step:.6g}"
        )
        return step, (False, False), Change("symmetrise", chain.end, reason)
    scale = chain.range.scale(work.mode)
    low, high = chain.range.minimum, chain.range.maximum
    promised = work.bounds(chain.source)
    below = bool(np.any(chain.low > -amax * (1 - _CLOSE)) and promised[0] < float(chain.low.max()))
    above = bool(np.any(chain.high < amax * (1 - _CLOSE)) and promised[1] > float(chain.high.min()))
    ends_low = bool(np.any(chain.low <= -amax * (1 - _CLOSE)))
    work.promised[chain.output] = (low - scale if ends_low else low, high)
    if work.mode == "FP8":
        bound, rule = step / 2 + amax * _FP8_ERROR, "collapse-fake-quant"
    else:
        bound, rule = (scale if ends_low else (step + scale) / 2), "symmetrise"
    channels = f" in {chain.step.size} channels" if chain.step.size > 1 else ""
    reason = (
        f"range {low:.6g}..{high:.6g}{channels} became {-amax:.6g}..{amax:.6g}: step {step:.6g} -> {scale:.6g}, "
        f"largest change of a value <= {bound:.6g}"
    )
    return scale, (below, above), Change(rule, chain.end, reason)


def _clip(chain: Chain, clipped: tuple[bool, bool], work: _Work) -> tuple[list[NodeProto], str]:
    """Nodes that keep the old bounds where they still matter, and the value to quantise."""
    if not any(clipped):
        return [], chain.source
    ends = [end.reshape(()) if end.size == 1 else end for end in (chain.low, chain.high)]
    low = work.constant(ends[0].astype(np.float32), f"{chain.output}/low") if clipped[0] else ""
    high = work.constant(ends[1].astype(np.float32), f"{chain.output}/high") if clipped[1] else ""
    if chain.low.size == 1:
        node = work.node(chain, "Clip", [chain.source, low, high] if high else [chain.source, low], "clip")
        return [node], node.output[0]
    nodes: list[NodeProto] = []
    value = chain.source
    for op, bound in (("Max", low), ("Min", high)):
        if bound:
            nodes.append(work.node(chain, op, [value, bound], op.lower()))
            value = nodes[-1].output[0]
    return nodes, value
