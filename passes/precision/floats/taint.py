"""Which nodes a question of exactness reaches: shape arithmetic, rounding to whole numbers, tiny epsilons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnx import TensorProto

from passes.precision.floats.facts import Facts
from passes.precision.floats.types import attribute_int

#: Operator -> numbers of the inputs that are shapes, sizes, positions or counts.
SHAPE_INPUTS: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2), "ConstantOfShape": (0,),
    "CumSum": (1,), "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,), "Loop": (0,), "MaxUnpool": (2,),
    "NonMaxSuppression": (2,), "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "Reshape": (1,),
    "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,),
    "Trilu": (1,), "Unsqueeze": (1,), "Upsample": (1,),
}  # fmt: skip
#: Operators whose result depends on shapes only: shape arithmetic begins behind them.
SHAPE_SOURCES = frozenset({"Shape", "Size"})
#: Operators that only move values.
MOVES = frozenset(
    {
        "Compress", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
        "Identity", "Reshape", "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
        "Trilu", "Unsqueeze",
    }
)  # fmt: skip

_ROUNDING = frozenset({"Ceil", "Floor", "Round"})
_INTEGERS = frozenset(
    {
        TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
        TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
    }
)  # fmt: skip
#: What rounding looks back through: a wrong digit there is a whole step of the result.
_EXACT_CHAIN = MOVES | frozenset(
    {"Abs", "Add", "Cast", "Ceil", "Clip", "Div", "Floor", "Max", "Min", "Mod", "Mul", "Neg", "Round", "Sub"}
)
#: Where the way back from a shape ends: what these compute was never exact.
_INEXACT = frozenset(
    {
        "ArgMax", "ArgMin", "Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "NonMaxSuppression",
        "NonZero", "RNN", "TopK",
    }
)  # fmt: skip
#: Results that fit in FP16 for every size up to 2^31.
_SMALL = frozenset({"Cos", "Log", "Sigmoid", "Sin", "Softmax", "Sqrt", "Tanh"})
#: What has to go on with all digits of a sum with an epsilon.
_BEHIND_EPSILON = frozenset({"Log", "Reciprocal", "Sqrt"})
_BY_OPERAND = frozenset({"Add", "Div", "Mul", "Pow", "Sub"})


def feeding_shapes(facts: Facts) -> set[int]:
    """Nodes whose values reach a shape input, seen through bodies; ends at Shape and at what was never exact."""
    start = []
    for number, node in enumerate(facts.nodes):
        inputs = facts.inputs[number]
        start += [inputs[i] for i in SHAPE_INPUTS.get(node.op_type, ()) if i < len(inputs)]
    found: set[int] = set()
    seen: set[str] = set()
    todo = [name for name in start if name]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo += facts.body_sources.get(name, ())
        todo += facts.body_results.get(name, ())
        number = facts.producer.get(name, -1)
        if number < 0 or facts.nodes[number].op_type in SHAPE_SOURCES | _INEXACT:
            continue
        found.add(number)
        if not facts.has_body[number]:
            todo += facts.inputs[number]
    return found


def from_shapes(facts: Facts) -> tuple[set[int], set[int]]:
    """Float nodes that compute with sizes: those that read nothing else, and those where one operand is a size.

    A size has any magnitude: FP16 ends at 65504 and counts whole numbers to 2048.
    """
    pure: set[int] = set()
    mixed: set[int] = set()
    sizes: set[str] = set()
    for number, node in enumerate(facts.nodes):
        if facts.has_body[number]:
            continue
        op_type = node.op_type
        if op_type in SHAPE_SOURCES:
            sizes.update(facts.outputs[number])
            continue
        shapes = SHAPE_INPUTS.get(op_type, ()) if op_type != "Range" else ()
        data = [n for i, n in enumerate(facts.inputs[number]) if n and i not in shapes and n not in facts.fixed]
        hits = [n for n in data if n in sizes]
        if not hits:
            continue
        if len(hits) == len(data) or op_type == "Range":
            pure.add(number)
            if op_type not in _SMALL:
                sizes.update(facts.outputs[number])
        elif op_type in _BY_OPERAND and any(facts.is_float(n) for n in hits):
            mixed.add(number)
    return pure, mixed


def before_rounding(facts: Facts) -> set[int]:
    """Floor, Ceil, Round and Casts to integers with the element-wise arithmetic in front of them."""
    found: set[int] = set()
    todo: list[int] = []
    for number, node in enumerate(facts.nodes):
        inputs = facts.inputs[number]
        if not inputs or not facts.is_float(inputs[0]):
            continue
        if node.op_type in _ROUNDING:
            todo.append(number)
        elif node.op_type == "Cast" and attribute_int(node, "to") in _INTEGERS:
            todo += _makers(facts, inputs[:1])
    while todo:
        number = todo.pop()
        if number in found or facts.nodes[number].op_type not in _EXACT_CHAIN:
            continue
        found.add(number)
        todo += _makers(facts, facts.float_data(number))
    return found


def _makers(facts: Facts, names: Iterable[str]) -> list[int]:
    return [facts.producer[name] for name in names if name in facts.producer]


def behind_epsilons(facts: Facts, epsilons: Mapping[int, float]) -> set[int]:
    """Nodes that need all digits of a sum (or maximum) with a tiny constant.

    1. Roots, inverses and logarithms of it, one after the other.
    2. A division by it: the divisor may be as small as the constant.
    3. Products and quotients with the root or inverse, when the root of the constant is no full-precision FP16 number
       itself: 0 * 1/sqrt(1e-12) must be 0, not 0 * inf.

    Args:
        facts: the model.
        epsilons: node that adds a tiny constant -> the constant.
    """
    found: set[int] = set()
    for number, epsilon in epsilons.items():
        todo = [(name, 0) for name in facts.outputs[number]]
        while todo:
            name, roots = todo.pop()
            for reader in facts.readers.get(name, ()):
                op_type = facts.nodes[reader].op_type
                if reader in found:
                    continue
                if op_type in _BEHIND_EPSILON:
                    found.add(reader)
                    todo += [(made, roots + 1) for made in facts.outputs[reader]]
                elif op_type in MOVES:
                    todo += [(made, roots) for made in facts.outputs[reader]]
                elif op_type in ("Div", "Mul") and _divides(facts, reader, name, roots, epsilon):
                    found.add(reader)
    return found


def _divides(facts: Facts, reader: int, name: str, roots: int, epsilon: float) -> bool:
    if roots:
        return epsilon < 2.0**-28
    return facts.nodes[reader].op_type == "Div" and len(facts.inputs[reader]) > 1 and facts.inputs[reader][1] == name
