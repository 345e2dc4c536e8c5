"""Which nodes keep computing in float32 when the others are lowered, and why.

An island is a node (or several in a row) that stays float32 in a lowered graph: its inputs are cast up where it
begins, its results are cast down where it ends. Each costs two Casts and the faster arithmetic, so each has a reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from passes.base import Change
from passes.graph.walk import plain_domain
from passes.precision.floats import taint
from passes.precision.floats.constants import LARGEST, SMALLEST_NORMAL, rounding_error
from passes.precision.floats.facts import Facts
from passes.precision.floats.magnitude import out_of_range
from passes.precision.floats.types import attribute_int
from passes.precision.quantization.split_pairs import PRODUCTS
from passes.precision.recipe import Recipe

_SUMS = ("keep-reduction", "sums of many values leave the range and lose digits")
_POWER = ("keep-reduction", "squares and powers leave the range")
_RANDOM = ("keep-op", "random numbers are drawn in the type that the source asks for")
_SEQUENCE = ("keep-op", "sequences and optionals keep the type of their elements")
#: Operator -> rule and reason why it stays float32 whatever the lower type.
KEPT_OPS: Mapping[str, tuple[str, str]] = {
    "Range": ("keep-range", "steps need exact numbers"),
    "TopK": ("keep-op", "its order decides about indices, so nearly equal values must stay apart"),
    "CumSum": ("keep-op", "running sums lose digits with every step"),
    "Mod": ("keep-op", "a remainder of rounded values is noise"),
    "LogSoftmax": ("keep-op", "the logarithm of a softmax that underflows is -inf"),
    "Det": ("keep-op", "products of many values leave the range"),
    "GridSample": ("keep-op", "positions in a lower type are off by whole pixels of a large picture"),
    "EyeLike": ("keep-op", "it names its own type"),
    "Tan": ("keep-op", "near its poles a rounded operand gives another number"),
    "TensorScatter": ("keep-op", "TensorRT takes a cache only as it comes into the graph"),
    "Pow": _POWER,
    "GlobalLpPool": _SUMS, "LRN": _SUMS, "LpNormalization": _SUMS, "LpPool": _SUMS, "MeanVarianceNormalization": _SUMS,
    "ReduceL1": _SUMS, "ReduceL2": _SUMS, "ReduceLogSum": _SUMS, "ReduceLogSumExp": _SUMS, "ReduceMean": _SUMS,
    "ReduceProd": _SUMS, "ReduceSum": _SUMS, "ReduceSumSquare": _SUMS,
    "Bernoulli": _RANDOM, "Multinomial": _RANDOM, "RandomNormal": _RANDOM, "RandomNormalLike": _RANDOM,
    "RandomUniform": _RANDOM, "RandomUniformLike": _RANDOM,
    "ConcatFromSequence": _SEQUENCE, "Optional": _SEQUENCE, "OptionalGetElement": _SEQUENCE,
    "OptionalHasElement": _SEQUENCE, "SequenceAt": _SEQUENCE, "SequenceConstruct": _SEQUENCE,
    "SequenceEmpty": _SEQUENCE, "SequenceErase": _SEQUENCE, "SequenceInsert": _SEQUENCE, "SequenceLength": _SEQUENCE,
    "SplitToSequence": _SEQUENCE,
}  # fmt: skip
#: Lower type -> operators that TensorRT does not build in it.
NOT_BUILT: Mapping[int, frozenset[str]] = {
    TensorProto.FLOAT16: frozenset({"Celu"}),
    TensorProto.BFLOAT16: frozenset({"Celu", "ConvTranspose", "GRU", "HardSwish", "Mish"}),
}
#: Operators that read floats of any type and make none: they take what is there.
SINKS = frozenset({"ArgMax", "ArgMin", "IsInf", "IsNaN", "NonZero", "Shape", "Size"})

#: Where a constant out of range means "as small (or large) as can be": operator -> its inputs, () for all.
_CLAMPED: Mapping[str, tuple[int, ...]] = {"Clip": (1, 2), "Max": (), "Min": (), "Pad": (2,), "Where": (1, 2)}
_PRODUCT = (
    "keep-product",
    "a sum of 8-bit products is scaled afterwards, and a kernel that stores it in a lower type first leaves its range",
)
#: A scale that rounding changes by more than this stays: half a step of int8 at full range.
_SCALE_ERROR = 2.0**-8
#: The reciprocal of a scale must be so many times smaller than the largest number of the lower type.
_RECIPROCAL_ROOM = 2.0
#: Constants of factors are looked at element by element up to this size.
_FACTOR_ELEMENTS = 1 << 16
#: How far back a mask is recognised.
_MASK_STEPS = 8
#: Number of the input of LSTM that TensorRT takes in float32 only.
_PEEPHOLES = 7
#: Integers that both lower types hold exactly.
_EXACT_INTEGERS = (TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What becomes of every node.

    Attributes:
        low: per node: is it lowered?
        changes: why a node stays float32, and which constants were clamped, in node order.
    """

    low: tuple[bool, ...]
    changes: tuple[Change, ...]


def plan(facts: Facts, recipe: Recipe) -> Plan:
    """Decides about every node.

    1. What the user or the accuracy guard names stays.
    2. Shape arithmetic stays: whatever reaches a shape input, and whatever is computed from shapes.
    3. `KEPT_OPS`, `NOT_BUILT` and operators that know no lower type stay.
    4. What is rounded to whole numbers stays, with the element-wise arithmetic before it.
    5. A node with a constant that the lower type cannot hold stays, unless it is a mask, which is clamped. So does a
       QuantizeLinear with a scale whose reciprocal it cannot hold: a kernel may multiply by that.
    6. A node that needs all digits of a sum with a tiny epsilon stays, and the consumers of a DequantizeLinear whose
       scales cannot be lowered. So does a product of two dequantised values (measured with TensorRT-RTX 1.4 on an H100:
       INT8 with FP16 results gives infinities, and wrong numbers where a Relu follows at once; with float32 results and
       a Cast behind it is right).
    7. What a constant beyond (or far below) the range makes is out of range, too, so its readers stay until values are
       of an ordinary size again (`cast_magnitude`). So do the readers of a DequantizeLinear that reaches that far.
    8. Nodes that only move values go with what they read, or with those that read them.

    Control flow itself has no arithmetic: what enters and leaves a body as a value of the node stays float32.
    """
    policy = _Policy(facts, recipe)
    policy.by_node()
    policy.by_neighbours()
    policy.by_magnitude()
    low = _follow(facts, policy)
    names = {i: facts.nodes[i].name for i in policy.kept}
    changes = [(i, 1, Change(rule, names[i], reason)) for i, (rule, reason) in policy.kept.items()]
    changes += [(i, 0, change) for i, change in policy.clamped if low[i]]
    return Plan(low, tuple(change for _, _, change in sorted(changes, key=lambda entry: entry[:2])))


class _Policy:
    """Collects the nodes that stay, rule by rule; the first rule that holds gives the reason."""

    def __init__(self, facts: Facts, recipe: Recipe) -> None:
        self.facts = facts
        self.recipe = recipe
        self.kept: dict[int, tuple[str, str]] = {}
        self.clamped: list[tuple[int, Change]] = []
        self.epsilons: dict[int, float] = {}
        self._type = recipe.float_type

    def keep(self, number: int, rule: str, reason: str) -> None:
        """Keeps a node with floats, unless it is kept already."""
        if number not in self.kept and self.facts.touches(number) and not self.facts.has_body[number]:
            self.kept[number] = (rule, reason)

    def by_node(self) -> None:
        """Rules 1 to 5."""
        facts = self.facts
        touching = [number for number in range(len(facts.nodes)) if facts.touches(number)]
        named = self.recipe.keep_ops or self.recipe.keep_nodes or self.recipe.kept
        for number in touching if named else ():
            if any(self.recipe.keeps(node) for node in (facts.nodes[number], *facts.owners[number])):
                self.keep(number, "keep-user", "named in the precision recipe")
        self._by_shapes()
        for number in touching:
            self._by_operator(number, facts.nodes[number].op_type)
        self._keep_all(taint.before_rounding(facts), "keep-rounding", "rounding to whole numbers follows")
        for number in touching:
            if number not in self.kept:
                self._by_constants(number)

    def _by_shapes(self) -> None:
        self._keep_all(taint.feeding_shapes(self.facts), "keep-shape-math", "its result becomes a shape")
        pure, mixed = taint.from_shapes(self.facts)
        self._keep_all(pure, "keep-shape-math", "it computes with sizes only, which the lower type rounds")
        if self.facts.low == TensorProto.FLOAT16:
            self._keep_all(mixed, "keep-shape-math", "an operand is a size, which may leave the range")

    def _keep_all(self, numbers: Iterable[int], rule: str, reason: str) -> None:
        for number in sorted(numbers):
            self.keep(number, rule, reason)

    def by_neighbours(self) -> None:
        """Rule 6, and squares in front of a reduction that stays."""
        facts = self.facts
        behind = taint.behind_epsilons(facts, self.epsilons)
        self._keep_all(behind, "keep-epsilon", "it needs all digits of a sum with a tiny constant")
        for number, node in enumerate(facts.nodes):
            if node.op_type == "Mul" and len(set(facts.inputs[number])) == 1:
                readers = [r for name in facts.outputs[number] for r in facts.readers.get(name, ())]
                if any(self.kept.get(r, ("",))[0] == "keep-reduction" for r in readers):
                    self.keep(number, *_POWER)
            elif node.op_type in PRODUCTS and all(self._dequantised(name) for name in facts.inputs[number][:2]):
                self.keep(number, *_PRODUCT)
            elif node.op_type == "DequantizeLinear" and self.kept.get(number, ("",))[0] == "keep-scale":
                self._keep_readers(number)

    def by_magnitude(self) -> None:
        """Rule 7."""
        found = out_of_range(self.facts, self.kept.keys(), {number for number, _ in self.clamped})
        for number, cause in sorted(found.items()):
            if number == cause:
                self.keep(number, "keep-range-behind", f"its values leave the range of {self._type}")
            else:
                name = self.facts.nodes[cause].name
                self.keep(number, "keep-range-behind", f"values from {name!r} leave the range of {self._type}")

    def _dequantised(self, name: str) -> bool:
        """True for what comes from a DequantizeLinear, moved about perhaps."""
        facts = self.facts
        number = facts.producer.get(name)
        while number is not None and facts.nodes[number].op_type in taint.MOVES:
            number = facts.producer.get(facts.inputs[number][0])
        return number is not None and facts.nodes[number].op_type == "DequantizeLinear"

    def _keep_readers(self, number: int) -> None:
        """A Cast behind a DequantizeLinear would part it from the node that TensorRT computes in 8 bits with it."""
        todo = list(self.facts.outputs[number])
        while todo:
            for reader in self.facts.readers.get(todo.pop(), ()):
                self.keep(reader, "keep-scale", "the scales of a quantised operand are too small for the lower type")
                if self.facts.nodes[reader].op_type in taint.MOVES:
                    todo += self.facts.outputs[reader]

    def _by_operator(self, number: int, op_type: str) -> None:
        node = self.facts.nodes[number]
        if op_type == "Cast" or takes_any(self.facts, number):
            return
        if op_type in KEPT_OPS and not plain_domain(node.domain):
            self.keep(number, *KEPT_OPS[op_type])
        elif any(owner.op_type == "Scan" for owner in self.facts.owners[number]):
            self.keep(number, "keep-op", f"TensorRT does not build every Scan with {self._type} in its body")
        elif self._is_depthwise(number) and self.facts.low == TensorProto.BFLOAT16:
            # Built, but TensorRT-RTX 1.4 on an H100 cannot load it: "cuDNN graph compilation failed".
            self.keep(number, "keep-op", "not every GPU has a depthwise convolution in BF16")
        elif op_type in NOT_BUILT[self.facts.low] or (op_type == "LSTM" and _has_peepholes(node)):
            self.keep(number, "keep-op", f"TensorRT does not build it in {self._type}")
        elif op_type == "DequantizeLinear" and attribute_int(node, "output_dtype"):
            self.keep(number, "keep-op", "it names its own type")
        elif op_type == "ConstantOfShape":
            self._by_fill(number)
        elif not any(any(flags) for flags in self.facts.lowered_flags(number)):
            self.keep(number, "keep-type", f"the operator knows no {self._type}")

    def _is_depthwise(self, number: int) -> bool:
        """True for a convolution with one input channel a group; with groups and an unknown weight as well."""
        node, weight = self.facts.nodes[number], self.facts.inputs[number][1:2]
        if node.op_type != "Conv" or (attribute_int(node, "group") or 1) == 1:
            return False
        constants = self.facts.constants
        return weight[0] not in constants or constants.array(weight[0]).shape[1] == 1

    def _by_fill(self, number: int) -> None:
        node = self.facts.nodes[number]
        for attribute in node.attribute:
            if attribute.name == "value" and rounding_error(numpy_helper.to_array(attribute.t), self.facts.low) >= 1:
                self.keep(number, "keep-constant", f"{self._type} cannot hold the value that it repeats")

    def _by_constants(self, number: int) -> None:
        facts, node = self.facts, self.facts.nodes[number]
        given, _ = facts.lowered_flags(number)
        for position, name in enumerate(facts.inputs[number]):
            if not given[position] or name not in facts.constants:
                continue
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                if position == 1:
                    self._by_scale(number, name)
                continue
            found = facts.constants.magnitudes(name)
            limit = SMALLEST_NORMAL[facts.low]
            if facts.constants.overflows(name):
                if self._is_mask(number, position, name):
                    why = f"{name!r} reaches {found.largest:.3g}; {self._type} ends at {LARGEST[facts.low]:.5g}"
                    self.clamped.append((number, Change("clamp-constant", node.name, why)))
                else:
                    self.keep(number, "keep-constant", f"{name!r} reaches {found.largest:.3g}, beyond {self._type}")
            elif 0 < found.largest < limit:
                self.keep(
                    number, "keep-constant", f"{name!r} is at most {found.largest:.3g}, too small for {self._type}"
                )
                self.epsilons[number] = found.largest
            elif node.op_type in ("Mul", "Div") and found.size <= _FACTOR_ELEMENTS and 0 < found.smallest < limit:
                self.keep(
                    number, "keep-constant", f"a factor in {name!r} is {found.smallest:.3g}, too small for {self._type}"
                )

    def _by_scale(self, number: int, name: str) -> None:
        """Scales that the lower type cannot hold, or whose reciprocals, which a kernel may quantise with."""
        facts = self.facts
        scales = facts.constants.array(name)
        if rounding_error(scales, facts.low) > _SCALE_ERROR:
            self.keep(number, "keep-scale", f"{self._type} cannot hold the scales {name!r}")
        elif facts.nodes[number].op_type == "QuantizeLinear" and np.min(scales, initial=np.inf) < (
            _RECIPROCAL_ROOM / LARGEST[facts.low]
        ):
            self.keep(number, "keep-scale", f"{self._type} cannot hold 1 / {np.min(scales):.3g} of the scales {name!r}")

    def _is_mask(self, number: int, position: int, name: str) -> bool:
        """True where the largest number of the lower type does as well as a constant beyond it.

        1. Where, Clip, Max, Min and Pad: it is a bound or a filler.
        2. Add: all elements are zero or negative and out of range; Sub: the same, subtracted or subtracted from.
        3. Mul: such a factor times something that is 0 or 1 (a mask made from integers or booleans).
        """
        facts, op_type = self.facts, self.facts.nodes[number].op_type
        if op_type in _CLAMPED:
            return not _CLAMPED[op_type] or position in _CLAMPED[op_type]
        found = facts.constants.magnitudes(name)
        if found.between > 0:
            return False
        if op_type == "Add":
            return not found.positive
        if op_type == "Mul":
            other = facts.inputs[number][1 - position]
            return not found.positive and _is_indicator(facts, other, _MASK_STEPS)
        return False


def _has_peepholes(node: NodeProto) -> bool:
    return len(node.input) > _PEEPHOLES and bool(node.input[_PEEPHOLES])


def takes_any(facts: Facts, number: int) -> bool:
    """True for a node that makes no floats and reads them in whatever type they are."""
    op_type = facts.nodes[number].op_type
    return op_type in SINKS or (op_type == "Cast" and not facts.is_float(facts.outputs[number][0]))


def _is_indicator(facts: Facts, name: str, steps: int) -> bool:
    """True for what is 0 or 1 as far as can be seen: a Cast of integers or booleans, 1 - that, moved about."""
    number = facts.producer.get(name)
    if number is None or steps == 0:
        return False
    node, inputs = facts.nodes[number], facts.inputs[number]
    if node.op_type == "Cast":
        return not facts.is_float(inputs[0])
    if node.op_type == "Sub":
        one = inputs[0] in facts.constants and facts.constants.magnitudes(inputs[0]).largest == 1.0
        return one and _is_indicator(facts, inputs[1], steps - 1)
    return node.op_type in taint.MOVES and _is_indicator(facts, inputs[0], steps - 1)


def _follow(facts: Facts, policy: _Policy) -> tuple[bool, ...]:
    """Rule 8: lowered or not, for every node; nodes that stay float32 for their neighbours' sake are added to `kept`.

    1. What reads float32 islands only stays float32.
    2. So does what reads values that nobody lowered (inputs of the graph or of a body) when nobody behind it is
       lowered.
    3. DequantizeLinear goes with its readers; QuantizeLinear with its operand, so that nothing is rounded twice.
    4. Integers that become floats stay float32 where some reader does: rounded once, their digits are gone.
    """
    demand = _demand(facts, policy.kept)
    low = [False] * len(facts.nodes)
    islands: set[str] = set()
    for number, node in enumerate(facts.nodes):
        if facts.has_body[number] or not facts.touches(number):
            continue
        stays = number in policy.kept
        if not stays and not takes_any(facts, number):
            stays = _goes_along(facts, number, demand, low, islands)
            if stays and node.op_type != "QuantizeLinear":
                policy.kept[number] = ("keep-passive", "it moves or makes values that are used in float32")
        low[number] = not stays
        if stays:
            islands.update(facts.outputs[number])
    return tuple(low)


def _goes_along(facts: Facts, number: int, demand: list[int], low: list[bool], islands: set[str]) -> bool:
    """True for a node that stays float32 because of its neighbours."""
    op_type, data = facts.nodes[number].op_type, facts.float_data(number)
    every = demand[number] == _ALL
    if op_type in ("ConstantOfShape", "DequantizeLinear"):
        return every
    if op_type == "Cast":
        exact = facts.types.get(facts.inputs[number][0], 0) in _EXACT_INTEGERS
        return every or (demand[number] == _SOME and not exact)
    if op_type == "QuantizeLinear":
        return bool(data) and not _lowered(facts, data[0], low)
    if op_type not in taint.MOVES:
        return False
    only_islands = bool(data) and all(name in islands for name in data)
    return only_islands or (every and not any(_lowered(facts, name, low) for name in data))


def _lowered(facts: Facts, name: str, low: list[bool]) -> bool:
    number = facts.producer.get(name)
    return number is not None and low[number]


_NONE, _SOME, _ALL = 0, 1, 2


def _demand(facts: Facts, kept: Mapping[int, object]) -> list[int]:
    """Per node: do none, some or all readers want its results in float32? Nodes that move values pass it on."""
    demand = [_NONE] * len(facts.nodes)
    passes_on = taint.MOVES | {"DequantizeLinear"}
    for number in range(len(facts.nodes) - 1, -1, -1):
        wishes: list[int] = []
        for name in facts.outputs[number]:
            if name in facts.results:
                wishes.append(_ALL)
            for reader in facts.readers.get(name, ()):
                op_type = facts.nodes[reader].op_type
                if takes_any(facts, reader):
                    continue
                if reader in kept or facts.has_body[reader]:
                    wishes.append(_ALL)
                else:
                    wishes.append(demand[reader] if op_type in passes_on else _NONE)
        if wishes and any(wishes):
            demand[number] = _ALL if all(wish == _ALL for wish in wishes) else _SOME
    return demand
