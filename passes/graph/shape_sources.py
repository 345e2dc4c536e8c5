"""What decides the shapes of a model: which values have a shape, or even elements, that follow from input shapes.

Sound and conservative: what is not known here counts as decided by data. One walk in topological order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from onnx import NodeProto

from passes.graph.value_types import value_types
from passes.graph.walk import bodies_of, iter_nodes, plain_domain
from passes.graph_index import GraphIndex
from passes.model import Model

#: Operator -> places of the inputs that hold shapes, counts, positions or axes instead of data.
SHAPE_PLACES: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "ConstantOfShape": (0,), "CumSum": (1,),
    "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,), "Loop": (0,),
    "NonMaxSuppression": (2,), "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "Reshape": (1,), "Resize": (3,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Trilu": (1,),
    "Unsqueeze": (1,), "Upsample": (1,),
    **{f"Reduce{kind}": (1,) for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum",
                                          "SumSquare")},
}  # fmt: skip
#: What these give depends on the shape of what they read, not on its elements.
SHAPE_READERS = ("Shape", "Size")

#: Further places, of whatever type, whose elements decide the shape of an output: scales of Resize, for one.
_MORE_PLACES: Mapping[str, tuple[int, ...]] = {
    "Col2Im": (1, 2), "DFT": (1, 2), "MaxUnpool": (2,), "MelWeightMatrix": (0, 1), "Resize": (1, 2), "STFT": (1, 3),
    "Tile": (2,),
}  # fmt: skip
#: Operators of the default domain whose output shapes follow from the shapes of their inputs, from attributes and from
#: the elements in the two tables above: not those whose results are as long as the data say (NonZero, Unique ...).
_BY_SHAPE_TEXT = """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Bernoulli
    BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip Col2Im
    Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DFT DeformConv DepthToSpace
    DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU
    Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
    GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity InstanceNormalization
    IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul
    MatMulInteger Max MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul
    Multinomial Neg NegativeLogLikelihoodLoss Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear
    RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
    ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    RegexFullMatch Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT Scatter ScatterElements
    ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign
    SpaceToDepth Split Sqrt Squeeze StringConcat Sub Sum Swish Tan Tanh TfIdfVectorizer ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
"""
_BY_SHAPE = frozenset(_BY_SHAPE_TEXT.split())
_BY_SHAPE_ML = frozenset(["Binarizer", "CategoryMapper", "Imputer", "LabelEncoder", "Normalizer", "Scaler"])
#: Their elements differ from run to run; Dropout's do when it is told to train.
_RANDOM = frozenset(
    ["Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)
_DOMAINS = ("", "ai.onnx.ml")


@dataclasses.dataclass(frozen=True)
class ShapeSources:
    """What the shapes of a model's inputs decide, by value name of the main graph.

    Attributes:
        fixed: values whose *shape* is the same whenever the shapes of the model's inputs are.
        shape_values: values whose *elements* are the same then; constants are among them.
    """

    fixed: frozenset[str]
    shape_values: frozenset[str]


def shape_sources(model: Model) -> ShapeSources:
    """Walks the main graph; engine nodes must be unspliced first, for nothing is known of an unknown operator.

    1. Inputs that are tensors have a fixed shape; constants have fixed elements as well.
    2. A value whose declared shape is all numbers is fixed, whatever makes it.
    3. `Shape` and `Size` of a fixed value have fixed elements; so has what an operator of ONNX makes of such values
       alone, bodies and their captures included, unless it draws random numbers.
    4. An operator whose output shapes follow from its inputs' gives fixed outputs when all that it reads is fixed and
       what it reads in a place for shapes has fixed elements.
    5. All else (unknown operators and domains, control flow, sequences, NonZero ...) depends on data.
    """
    graph = model.proto.graph
    static = {name for name, spec in value_types(model).items() if spec.is_static}
    constants = {t.name for t in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    inputs = {value.name for value in graph.input if value.type.HasField("tensor_type")}
    # An initializer that is an input too is only a default.
    elements = constants - {value.name for value in graph.input}
    fixed = inputs | elements
    index = GraphIndex.of(graph)
    for node, reads, makes in zip(index.nodes, index.reads, index.makes, strict=True):
        made = [name for name in makes if name]
        if elements.issuperset(reads) and _is_deterministic(node):
            elements.update(made)
            fixed.update(made)
        elif fixed.issuperset(reads) and _follows_shapes(node, elements):
            fixed.update(made)
            if node.op_type in SHAPE_READERS:
                elements.update(made)
        else:
            fixed.update(name for name in made if name in static)
    return ShapeSources(frozenset(fixed), frozenset(elements))


def _is_deterministic(node: NodeProto) -> bool:
    """True for operators of ONNX, bodies included, that give the same elements for the same inputs."""
    nodes = [node]
    if node.attribute:
        nodes += [inner for _, body in bodies_of(node) for inner in iter_nodes(body)]
    return all(n.op_type not in _RANDOM and plain_domain(n.domain) in _DOMAINS for n in nodes)


def _follows_shapes(node: NodeProto, elements: set[str]) -> bool:
    """True when the shapes of the inputs, and those elements that are decided already, decide the output shapes."""
    domain = plain_domain(node.domain)
    if domain:
        return domain == "ai.onnx.ml" and node.op_type in _BY_SHAPE_ML
    if node.op_type not in _BY_SHAPE:
        return False
    places = (*SHAPE_PLACES.get(node.op_type, ()), *_MORE_PLACES.get(node.op_type, ()))
    held = [node.input[place] for place in places if place < len(node.input)]
    return all(not name or name in elements for name in held)
