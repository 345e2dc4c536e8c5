"""How many floating point operations one ONNX node takes, by operator.

Rules: a multiply-add counts 2; every other operation on an element counts 1, an exponential as much as an addition;
moving data (Reshape, Transpose, Gather, Cast ...) counts 0. Integer arithmetic counts like floating point arithmetic.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from onnx import AttributeProto, NodeProto

Dims = tuple[int, ...]

#: Operators that compute nothing: they move, view, make or describe data.
FREE = frozenset(  # words in lines: a list would take a page
    """Bernoulli BitCast Cast CastLike CategoryMapper CenterCropPad Col2Im Compress Concat ConcatFromSequence Constant
    ConstantOfShape DepthToSpace Dropout Expand EyeLike Flatten Gather GatherElements GatherND Identity ImageDecoder
    LabelEncoder Multinomial NonZero OneHot Optional OptionalGetElement OptionalHasElement Pad RandomNormal
    RandomNormalLike RandomUniform RandomUniformLike Range RegexFullMatch Reshape ReverseSequence Scatter
    ScatterElements ScatterND SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
    Shape Size Slice SpaceToDepth Split SplitToSequence Squeeze StringConcat StringNormalizer StringSplit
    TensorScatter TfIdfVectorizer Tile Transpose Trilu Unique Unsqueeze""".split()  # noqa: SIM905
)
#: One operation for each element of the output.
ELEMENTWISE = frozenset(
    """Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Celu Clip
    Cos Cosh DequantizeLinear Div DynamicQuantizeLinear Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid
    HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Mish Mod Mul Neg Not Or PRelu Pow QuantizeLinear Reciprocal
    Relu Round Scaler Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Swish Tan Tanh ThresholdedRelu
    Where Xor""".split()  # noqa: SIM905
)
#: Operations for each element that is read.
PER_INPUT: Mapping[str, int] = {
    "ArgMax": 1, "ArgMin": 1, "CumProd": 1, "CumSum": 1, "GlobalAveragePool": 1, "GlobalLpPool": 2, "GlobalMaxPool": 1,
    "Hardmax": 1, "LogSoftmax": 5, "LpNormalization": 3, "MeanVarianceNormalization": 5, "ReduceL1": 2, "ReduceL2": 2,
    "ReduceLogSum": 1, "ReduceLogSumExp": 3, "ReduceMax": 1, "ReduceMin": 1, "ReduceProd": 1,
    "ReduceSum": 1, "ReduceSumSquare": 2, "Softmax": 5, "TopK": 1,
}  # fmt: skip
#: Gates of a recurrent operator, and operations of one step on an element of the state beside the matrix products.
_RECURRENT: Mapping[str, tuple[int, int]] = {"RNN": (1, 1), "GRU": (3, 8), "LSTM": (4, 9)}


@dataclasses.dataclass(frozen=True)
class NodeShapes:
    """A node with the shapes around it.

    Attributes:
        node: the node.
        inputs, outputs: shapes by position; None for unknown ones and for those that are left out.
    """

    node: NodeProto
    inputs: tuple[Dims | None, ...]
    outputs: tuple[Dims | None, ...]

    def input(self, index: int) -> Dims:
        """The shape of an input.

        Raises:
            LookupError: it is unknown, or there is no such input.
        """
        if index >= len(self.inputs) or (found := self.inputs[index]) is None:
            raise LookupError(index)
        return found

    @property
    def output(self) -> Dims:
        """The shape of the first output.

        Raises:
            LookupError: it is unknown.
        """
        if not self.outputs or (found := self.outputs[0]) is None:
            raise LookupError(0)
        return found

    def has(self, index: int) -> bool:
        """Whether that input is given."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return next((int(a.i) for a in self.node.attribute if a.name == name and a.type == AttributeProto.INT), default)

    def integers(self, name: str) -> Dims:
        """A list of integers; () when it is missing."""
        return next((tuple(a.ints) for a in self.node.attribute if a.name == name), ())

    def text(self, name: str, default: str) -> str:
        """A text attribute."""
        return next((a.s.decode("utf-8", "replace") for a in self.node.attribute if a.name == name and a.s), default)


def count(shapes: NodeShapes) -> int | None:
    """Operations of one node without its bodies; None for an unknown operator, and where shapes are missing."""
    operator = shapes.node.op_type
    rule = _RULES.get(operator)
    try:
        if operator in FREE:
            return 0
        if operator in ELEMENTWISE:
            return math.prod(shapes.output)
        if operator in PER_INPUT:
            return PER_INPUT[operator] * math.prod(shapes.input(0))
        return None if rule is None else rule(shapes)
    except (LookupError, ValueError):  # a shape is unknown, or no valid one: nothing can be said
        return None


def _convolution(weight: int, bias: int | None) -> Callable[[NodeShapes], int]:
    """The rule for convolutions: their kernel [M, C/group, k...] and bias are these inputs."""

    def rule(shapes: NodeShapes) -> int:
        elements = math.prod(shapes.output)
        biased = bias is not None and shapes.has(bias)
        return elements * (2 * math.prod(shapes.input(weight)[1:]) + biased)

    return rule


def _transposed_convolution(shapes: NodeShapes) -> int:
    # The kernel is [C, M/group, k...]: every element of the input is multiplied by one row of it.
    products = 2 * math.prod(shapes.input(0)) * math.prod(shapes.input(1)[1:])
    return products + (math.prod(shapes.output) if shapes.has(2) else 0)


def _matrix_product(right: int) -> Callable[[NodeShapes], int]:
    def rule(shapes: NodeShapes) -> int:
        left = shapes.input(0)
        inner = left[-1] if left else 1
        # A stack of matrices on the right alone must be known too, for the output says how many there are.
        shapes.input(right)
        return 2 * math.prod(shapes.output) * inner

    return rule


def _gemm(shapes: NodeShapes) -> int:
    inner = shapes.input(0)[0 if shapes.integer("transA", 0) else -1]
    return math.prod(shapes.output) * (2 * inner + shapes.has(2))


def _einsum(shapes: NodeShapes) -> int:
    """The index space times the operands; without a sum, one multiplication less for each element.

    Raises:
        ValueError: the equation does not fit the shapes.
    """
    equation = shapes.text("equation", "").replace(" ", "")
    left, _, right = equation.partition("->")
    operands = [shapes.input(i) for i in range(len(shapes.node.input))]
    sizes: dict[str, int] = {}
    seen: list[str] = []
    for term, dims in zip(left.split(","), operands, strict=True):
        names = _labels(term, len(dims))
        seen += names
        for name, size in zip(names, dims, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    if "->" in equation:
        kept = set(right.replace("...", "")) | {name for name in seen if len(name) > 1}
    else:  # implicit output: what occurs once
        kept = {name for name in seen if len(name) > 1 or seen.count(name) == 1}
    summed = any(name not in kept for name in sizes)
    return math.prod(sizes.values()) * (len(operands) - 1 + summed)


def _labels(term: str, rank: int) -> list[str]:
    """One name a dimension; those behind an ellipsis are "...-1", "...-2" ... counted from the right."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(f"...{i - hidden}" for i in range(hidden)), *after]


def _recurrent(shapes: NodeShapes) -> int:
    gates, rest = _RECURRENT[shapes.node.op_type]
    weights = shapes.input(1)  # [directions, gates * hidden, input]
    hidden = shapes.input(2)[2]
    sequence, batch, features = shapes.input(0)  # or batch first: it comes to the same
    biased = gates * shapes.has(3)
    step = hidden * (2 * gates * (features + hidden) + gates + biased + rest)
    return sequence * batch * weights[0] * step


def _pool(shapes: NodeShapes) -> int:
    per_element = 2 if shapes.node.op_type == "LpPool" else 1
    return math.prod(shapes.output) * math.prod(shapes.integers("kernel_shape")) * per_element


def _normalisation(base: int, scale: int, bias: int) -> Callable[[NodeShapes], int]:
    """`base` operations an element, and one each for scale and bias, which are these inputs."""
    return lambda shapes: math.prod(shapes.input(0)) * (base + shapes.has(scale) + shapes.has(bias))


def _local_response(shapes: NodeShapes) -> int:
    return math.prod(shapes.input(0)) * (2 * shapes.integer("size", 1) + 3)


def _many(shapes: NodeShapes) -> int:
    """Sum, Max, Min and Mean of several tensors."""
    operands = sum(map(bool, shapes.node.input))
    return math.prod(shapes.output) * (operands - 1 + (shapes.node.op_type == "Mean"))


def _reduction_of_mean(shapes: NodeShapes) -> int:
    return math.prod(shapes.input(0)) + math.prod(shapes.output)


def _resize(shapes: NodeShapes) -> int:
    taps = {"linear": 2, "cubic": 4}.get(shapes.text("mode", "nearest"), 0)
    changed = sum(a != b for a, b in zip(shapes.input(0), shapes.output, strict=True))
    return math.prod(shapes.output) * 2 * taps**changed if taps and changed else 0


def _fourier(shapes: NodeShapes) -> int:
    """5 n log2 n for each transform of n points, as it is usual."""
    data = shapes.input(0)
    axis = shapes.integer("axis", -2 if len(data) > 1 else -1)
    points = max(data[axis], shapes.output[axis])
    transforms = math.prod(shapes.output) // max(shapes.output[axis] * shapes.output[-1], 1)
    return math.ceil(5 * points * math.log2(max(points, 2))) * transforms


def _attention(shapes: NodeShapes) -> int:
    """Two matrix products and a softmax: of [B, H, L, E] with [B, H, S, E], or [B, L, H*E] with [B, S, H*E]."""
    query, key, value = (shapes.input(i) for i in range(3))
    if len(query) == 4:
        batch, heads, length = query[:3]
        width, other, out = query[3], key[2], value[3]
    else:
        heads = shapes.integer("q_num_heads", shapes.integer("num_heads", 1))
        batch, length = query[:2]
        groups = shapes.integer("kv_num_heads", heads)
        width, other, out = query[2] // heads, key[1], value[2] // groups
    return batch * heads * length * other * (2 * width + 5 + 2 * out)


def _roi(shapes: NodeShapes) -> int:
    return math.prod(shapes.output) * 8 * max(shapes.integer("sampling_ratio", 0), 1) ** 2


def _taps(number: int) -> Callable[[NodeShapes], int]:
    return lambda shapes: number * math.prod(shapes.output)


_RULES: Mapping[str, Callable[[NodeShapes], int]] = {
    "Conv": _convolution(1, 2),
    "ConvInteger": _convolution(1, None),
    "QLinearConv": _convolution(3, 8),
    "DeformConv": _convolution(1, 3),
    "ConvTranspose": _transposed_convolution,
    "MatMul": _matrix_product(1),
    "MatMulInteger": _matrix_product(1),
    "QLinearMatMul": _matrix_product(3),
    "Gemm": _gemm,
    "Einsum": _einsum,
    **dict.fromkeys(_RECURRENT, _recurrent),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), _pool),
    # Mean and variance are constants, so scale and shift are all that is left.
    "BatchNormalization": lambda shapes: 2 * math.prod(shapes.input(0)),
    # Mean, difference, square, sum and the division; then scale and bias.
    **dict.fromkeys(("LayerNormalization", "GroupNormalization", "InstanceNormalization"), _normalisation(5, 1, 2)),
    "RMSNormalization": _normalisation(3, 1, 2),
    "LRN": _local_response,
    **dict.fromkeys(("Sum", "Max", "Min", "Mean"), _many),
    "ReduceMean": _reduction_of_mean,
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "DFT": _fourier,
    **dict.fromkeys(("Attention", "MultiHeadAttention"), _attention),
    "RoiAlign": _roi,
    "GridSample": _taps(8),
    # Interpolation of angles, complex products: a handful of operations for each element.
    "RotaryEmbedding": _taps(3),
}


def rule_names() -> Sequence[str]:
    """Every operator that something is known of, sorted."""
    return sorted({*FREE, *ELEMENTWISE, *PER_INPUT, *_RULES})
