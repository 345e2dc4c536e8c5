"""Which values a lower type cannot hold because of constants that it cannot hold: how far they reach downstream."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from onnx import TensorProto, numpy_helper

from passes.precision.floats.constants import LARGEST, OVERFLOW, SMALLEST_NORMAL
from passes.precision.floats.facts import Facts
from passes.precision.floats.taint import MOVES

#: Largest magnitude of the numbers that a DequantizeLinear reads, by element type.
_STORED: Mapping[int, float] = {
    TensorProto.INT4: 7, TensorProto.UINT4: 15, TensorProto.INT8: 127, TensorProto.UINT8: 255,
    TensorProto.INT16: 32767, TensorProto.UINT16: 65535,
    TensorProto.FLOAT8E4M3FN: 448, TensorProto.FLOAT8E5M2: 57344,
}  # fmt: skip
#: Operators that sum products of many elements: a constant of an ordinary size says nothing about the result's.
_DOTS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
_SUMS = frozenset({"Add", "Mean", "Sub", "Sum"})
#: Operators whose results are of an ordinary size whatever they read.
_BOUNDED = frozenset({"Cos", "GRU", "HardSigmoid", "Hardmax", "LSTM", "Log", "RNN", "Sigmoid", "Sign", "Softmax"})
#: Operators that limit large values and pass small ones on.
_LIMITING = frozenset({"Atan", "Erf", "Sin", "Softsign", "Tanh"})
#: Operators that pass large values on; small ones give results of an ordinary size.
_LIFTING = frozenset({"Exp", "LogSoftmax", "ReduceLogSumExp", "Softplus"})
#: Operators -> the epsilon under their root, where they name none.
_NORMS: Mapping[str, float] = {
    "GroupNormalization": 1e-5, "InstanceNormalization": 1e-5, "LayerNormalization": 1e-5, "LpNormalization": 0.0,
    "MeanVarianceNormalization": 1e-9, "RMSNormalization": 1e-5,
}  # fmt: skip
#: Operators to which a small operand may just as well be zero, when their result is of an ordinary size.
_ROBUST = _SUMS | _LIFTING | frozenset({"Cos", "HardSigmoid", "Sigmoid", "Softmax"})
#: Operators whose results are not below zero, and so need an upper bound only.
_NOT_NEGATIVE = frozenset({"Abs", "Exp", "Relu", "Sigmoid", "Softplus", "Sqrt"})


@dataclasses.dataclass(frozen=True)
class Mark:
    """A value that leaves the range.

    Attributes:
        size: binary logarithm of its magnitude, were all inputs of the model of the size of 1.
        origin: number of the node with the constant.
    """

    size: float
    origin: int


def out_of_range(facts: Facts, kept: Collection[int], clamped: Collection[int]) -> dict[int, int]:
    """Nodes that read or make values beyond (or far below) the range of the lower type -> the node that is the cause.

    1. It begins at a constant that the lower type cannot hold, where it makes the result large or small: a factor, a
       large summand, a table, the weight of a convolution; and at a DequantizeLinear that reaches beyond the range or
       stays below it. An epsilon or a tiny bias is no such constant, nor a mask that is clamped.
    2. Sizes are followed as powers of two: factors add, roots halve, a sum is as large as its largest operand.
    3. It ends where the result is of an ordinary size again: within the middle half of the exponents of the lower type
       (2^-7 to 2^8 for FP16). So it does behind bounded operators, and behind factors in the other direction.
    4. Nodes to which a small value may just as well be zero (its sum with something ordinary) are not among them.

    Args:
        facts: the model.
        kept: nodes that stay float32 already.
        clamped: nodes whose constants out of range are clamped if they are lowered.
    """
    tracker = _Tracker(facts, kept, clamped)
    # What goes round a loop is seen in the second turn.
    for _ in range(2 if any(facts.has_body) else 1):
        for number in range(len(facts.nodes)):
            tracker.visit(number)
    return tracker.found


class _Tracker:
    """One walk from the first node to the last."""

    def __init__(self, facts: Facts, kept: Collection[int], clamped: Collection[int]) -> None:
        self.found: dict[int, int] = {}
        self._facts = facts
        self._kept = kept
        self._clamped = clamped
        self._marks: dict[str, Mark] = {}
        self._low = math.log2(SMALLEST_NORMAL[facts.low]) / 2
        self._high = math.log2(LARGEST[facts.low]) / 2
        self._rules: Mapping[str, Callable[[int], float]] = {
            "BatchNormalization": self._batch_normalised, "Clip": self._clipped, "ConstantOfShape": self._filled,
            "DequantizeLinear": self._stored, "Max": self._chosen, "Min": self._chosen, "Pow": self._power,
            **dict.fromkeys(("Div", "Reciprocal", "ReduceSumSquare", "Sqrt"), self._scaled),
            **dict.fromkeys(_NORMS, self._normalised), **dict.fromkeys(_SUMS, self._sum),
        }  # fmt: skip

    def visit(self, number: int) -> None:
        """Marks the results of one node, and notes it if it has to stay."""
        facts, node = self._facts, self._facts.nodes[number]
        if facts.has_body[number]:
            for name in facts.outputs[number]:
                self._pass_on(name, facts.body_results.get(name, ()))
            return
        if node.op_type == "QuantizeLinear" or not facts.touches(number):
            return
        for name in facts.inputs[number]:
            self._pass_on(name, facts.body_sources.get(name, ()))
        marks = [self._marks[name] for name in facts.float_inputs(number) if name in self._marks]
        begins = not marks and self._begins(number)
        if not marks and not begins:
            return
        cause = self._worst(marks)
        size = self._size(number)
        ordinary = self._low <= size <= self._high
        small = all(mark.size < self._low for mark in marks)
        if (marks and not (small and ordinary and node.op_type in _ROBUST)) or (begins and not ordinary):
            self.found[number] = cause.origin if cause else number
        for name in facts.outputs[number]:
            if facts.is_float(name) and not ordinary:
                self._marks[name] = Mark(size, cause.origin if cause else number)

    def _pass_on(self, name: str, sources: Sequence[str]) -> None:
        """Into, round and out of a body."""
        mark = self._worst([self._marks[source] for source in sources if source in self._marks])
        if mark is not None and self._facts.is_float(name):
            self._marks[name] = mark

    def _worst(self, marks: Sequence[Mark]) -> Mark | None:
        """The largest, or the smallest where all are small."""
        large = [mark for mark in marks if mark.size > 0]
        return max(large or marks, key=lambda mark: abs(mark.size), default=None)

    def _begins(self, number: int) -> bool:
        """True for a node with a constant that the lower type cannot hold."""
        facts, op_type = self._facts, self._facts.nodes[number].op_type
        if op_type in ("ConstantOfShape", "DequantizeLinear"):
            return self._cannot_hold(self._size(number))
        if number in self._clamped and number not in self._kept:
            return False
        given, _ = facts.lowered_flags(number)
        data = [name for name in facts.inputs[number] if facts.is_float(name)]
        sizes = [
            self._constant(name)
            for name, low in zip(facts.inputs[number], given, strict=True)
            if low and name in facts.constants
        ]
        if op_type in ("Div", "Mul") and any(self._is_count(name) for name in data):
            return False
        return any(size is not None and self._cannot_hold(size) for size in sizes)

    def _cannot_hold(self, size: float) -> bool:
        low = self._facts.low
        return size >= math.log2(OVERFLOW[low]) or size < math.log2(SMALLEST_NORMAL[low])

    def _is_count(self, name: str) -> bool:
        """True for integers that became floats: a tiny factor makes them ordinary, not small."""
        number = self._facts.producer.get(name, -1)
        source = self._facts.inputs[number][0] if number >= 0 and self._facts.nodes[number].op_type == "Cast" else ""
        return bool(source) and not self._facts.is_float(source)

    def _constant(self, name: str) -> float | None:
        """Size of a constant, also of one that is stored in 8 bits; None for other values and for zeros."""
        facts, number = self._facts, self._facts.producer.get(name, -1)
        while number >= 0 and facts.nodes[number].op_type in MOVES:
            name = facts.inputs[number][0]
            number = facts.producer.get(name, -1)
        if name in facts.constants:
            largest = facts.constants.magnitudes(name).largest
        elif number >= 0 and facts.nodes[number].op_type == "DequantizeLinear":
            largest = self._dequantised(number) if facts.inputs[number][0] in facts.fixed else 0.0
        else:
            return None
        return math.log2(largest) if largest else None

    def _dequantised(self, number: int) -> float:
        """The largest magnitude that a DequantizeLinear can make; 0.0 if it is not known."""
        stored, scale = self._facts.inputs[number][:2]
        if scale not in self._facts.constants:
            return 0.0
        return _STORED.get(self._facts.types.get(stored, 0), 0) * self._facts.constants.magnitudes(scale).largest

    def _of(self, name: str, *, dot: bool = False) -> float:
        """Size of an operand: as it is marked, that of a constant, or that of 1."""
        if name in self._marks:
            return self._marks[name].size
        size = self._constant(name) if name else None
        return 0.0 if size is None or (dot and self._low <= size <= self._high) else size

    def _size(self, number: int) -> float:
        """Size of the results of a node."""
        op_type, names = self._facts.nodes[number].op_type, self._facts.inputs[number]
        if op_type in self._rules:
            return self._rules[op_type](number)
        if op_type in _BOUNDED:
            return 0.0
        if op_type in _DOTS or op_type == "Mul":
            factors = names if op_type == "Einsum" else names[:2]
            return max(sum(self._of(name, dot=op_type in _DOTS) for name in factors), self._summand(names, 2))
        size = self._carried(number)
        if op_type in _LIMITING:
            return min(size, 0.0)
        return max(size, 0.0) if op_type in _LIFTING else size

    def _scaled(self, number: int) -> float:
        """Quotients, roots and squares."""
        op_type, names = self._facts.nodes[number].op_type, self._facts.inputs[number]
        if op_type == "Div":
            return self._of(names[0]) - self._of(names[1])
        return self._of(names[0]) * {"Reciprocal": -1.0, "Sqrt": 0.5, "ReduceSumSquare": 2.0}[op_type]

    def _summand(self, names: Sequence[str], index: int) -> float:
        """Size of a bias; that of nothing where there is none or it is all zeros."""
        if len(names) <= index or not names[index]:
            return -math.inf
        if names[index] not in self._marks and names[index] in self._facts.constants:
            size = self._constant(names[index])
            return -math.inf if size is None else size
        return self._of(names[index])

    def _sum(self, number: int) -> float:
        names = self._facts.inputs[number]
        size = max(self._summand(names, index) for index in range(len(names)))
        return size if math.isfinite(size) else 0.0

    def _carried(self, number: int) -> float:
        """The worst of what is passed on. A small constant beside other values is one among many."""
        facts = self._facts
        given, _ = facts.lowered_flags(number)
        names = [n for n, low in zip(facts.inputs[number], given, strict=True) if low]
        others = any(n not in self._marks and n not in facts.constants for n in names)
        sizes = [self._marks[n].size for n in names if n in self._marks]
        for name in names:
            size = self._constant(name) if name in facts.constants and name not in self._marks else None
            if size is not None and self._cannot_hold(size) and (size > 0 or not (others or sizes)):
                sizes.append(size)
        worst = self._worst([Mark(size, number) for size in sizes])
        if worst is None:  # marked, but not at an input that is lowered
            marks = [self._marks[n] for n in facts.float_inputs(number) if n in self._marks]
            worst = self._worst(marks)
        return worst.size if worst else 0.0

    def _normalised(self, number: int) -> float:
        """Values x become x / sqrt(x^2 + epsilon), times a scale, plus a bias."""
        node, names = self._facts.nodes[number], self._facts.inputs[number]
        given = [a.f for a in node.attribute if a.name == "epsilon"]
        epsilon = given[0] if given else _NORMS[node.op_type]
        size = self._of(names[0]) if names[0] in self._marks else 0.0
        if epsilon > 0:
            size -= max(size, math.log2(epsilon) / 2)
        else:
            size = 0.0
        scale = self._of(names[1], dot=True) if len(names) > 1 else 0.0
        return max(size + scale, self._summand(names, 2))

    def _batch_normalised(self, number: int) -> float:
        """Values x become (x - mean) / sqrt(variance + epsilon) * scale + bias.

        Mean and variance are those of x as a rule, so they alone say nothing about the size of the result.
        """
        facts, names = self._facts, self._facts.inputs[number]
        known = names[0] in self._marks
        size = (self._of(names[0]) if known else 0.0) + self._of(names[1], dot=True)
        if known and names[4] in facts.constants:
            epsilon = next((a.f for a in facts.nodes[number].attribute if a.name == "epsilon"), 1e-5)
            smallest = float(np.min(facts.constants.array(names[4]), initial=np.inf))
            size -= math.log2(max(smallest, 0.0) + epsilon or 1.0) / 2
        return max(size, self._summand(names, 2))

    def _filled(self, number: int) -> float:
        """What a ConstantOfShape repeats."""
        values = [numpy_helper.to_array(a.t) for a in self._facts.nodes[number].attribute if a.name == "value"]
        largest = float(np.abs(values[0].astype(np.float64)).max(initial=0)) if values else 0.0
        return math.log2(largest) if 0 < largest < math.inf else 0.0

    def _stored(self, number: int) -> float:
        largest = self._dequantised(number)
        return math.log2(largest) if largest else 0.0

    def _power(self, number: int) -> float:
        facts, (base, exponent) = self._facts, self._facts.inputs[number]
        if exponent in facts.constants and facts.constants.array(exponent).size == 1:
            return self._of(base) * float(facts.constants.array(exponent).reshape(()))
        return self._of(base)

    def _clipped(self, number: int) -> float:
        """Ordinary between two bounds that the lower type holds."""
        facts, names = self._facts, self._facts.inputs[number]
        bounds = [name for name in names[1:3] if name in facts.constants]
        old = [abs(a.f) for a in facts.nodes[number].attribute if a.name in ("min", "max")]
        fits = all(not facts.constants.overflows(name) for name in bounds) and all(b < OVERFLOW[facts.low] for b in old)
        size = self._of(names[0]) if names[0] in self._marks else 0.0
        return min(size, 0.0) if fits and len(bounds) + len(old) == 2 else size

    def _chosen(self, number: int) -> float:
        """Max and Min: constants are bounds, unless they push everything out of the range themselves."""
        facts, names, up = self._facts, self._facts.inputs[number], self._facts.nodes[number].op_type == "Max"
        sizes = [self._marks[name].size for name in names if name in self._marks]
        fits = False
        for name in names:
            if name not in facts.constants:
                continue
            found = facts.constants.magnitudes(name)
            if not facts.constants.overflows(name):
                fits = fits or all(self._bounded(other, below=not up) for other in names if other != name)
            elif found.positive == up:
                sizes.append(math.log2(found.largest))
        worst = self._worst([Mark(size, number) for size in sizes])
        size = worst.size if worst else 0.0
        return min(size, 0.0) if fits else size

    def _bounded(self, name: str, *, below: bool) -> bool:
        """True for values with a bound on one side that the lower type holds."""
        facts, number = self._facts, self._facts.producer.get(name, -1)
        if number < 0:
            return False
        op_type, names = facts.nodes[number].op_type, facts.inputs[number]
        if op_type == ("Max" if below else "Min"):
            return any(n in facts.constants and not facts.constants.overflows(n) for n in names)
        return below and op_type in _NOT_NEGATIVE
