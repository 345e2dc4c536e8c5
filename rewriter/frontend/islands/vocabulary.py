"""What the exporter has words for, and what operators cost: tables of TensorFlow operators."""

from __future__ import annotations

import functools


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Operators without a handler that tf2onnx's rewriters replace, that go away with the function they call, or that are
#: folded where shapes are known. Where they are not, the export says so and they are sent to TensorFlow after all.
REWRITTEN = _names(
    "Assert BroadcastArgs ConcatOffset ConstV2 Enter Exit GRUBlockCell HashTable LinSpace ListDiff LoopCond "
    "LSTMBlockCell MatrixSetDiag Merge NextIteration NoOp PartitionedCall QuantizeAndDequantizeV2 "
    "QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 RandomStandardNormal Rank ShapeN StatefulPartitionedCall Switch "
    "TensorArrayGatherV2 TensorArrayGatherV3 TensorArrayReadV2 TensorArrayReadV3 TensorArrayScatterV3 "
    "TensorArraySizeV3 TensorArrayV2 TensorArrayV3 TensorArrayWriteV2 TensorArrayWriteV3 _FusedConv2D "
    "_FusedDepthwiseConv2dNative _FusedMatMul"
)

#: Operators whose export is right for strings too: they move elements and look at none.
STRING_MOVES = _names(
    "BroadcastTo ConcatV2 Const EnsureShape ExpandDims Fill GatherNd GatherV2 Identity IdentityN If Pack Placeholder "
    "Rank Reshape ReverseV2 Select SelectV2 Shape Size Slice Split SplitV Squeeze StatelessIf StopGradient "
    "StridedSlice TensorScatterUpdate Tile Transpose Unique Unpack"
)

#: Operators that move or count elements, whatever their dtype: cheap enough to lie in an island.
MOVES = _names(
    "Bitcast BroadcastArgs BroadcastTo Cast Concat ConcatOffset ConcatV2 EnsureShape ExpandDims Fill Gather GatherNd "
    "GatherV2 Identity IdentityN MirrorPad OneHot OnesLike Pack Pad PadV2 PreventGradient Range Rank Reshape ReverseV2 "
    "Select SelectV2 Shape ShapeN Size Slice Snapshot Split SplitV Squeeze StopGradient StridedSlice Tile Transpose "
    "Unpack Where ZerosLike"
)

#: Operators with about one instruction per element: a few of them may lie in an island where that saves another one.
LIGHT = _names(
    "Abs Add AddN AddV2 All Any ArgMax ArgMin BiasAdd Ceil ClipByValue Cos Cumsum Div DivNoNan Equal Exp Expm1 Floor "
    "FloorDiv FloorMod Greater GreaterEqual IsFinite IsInf IsNan LeakyRelu Less LessEqual Log Log1p LogSoftmax Max "
    "Maximum Mean Min Minimum Mul Neg NotEqual Pow Prod RealDiv Reciprocal Relu Relu6 Rint Round Rsqrt Sigmoid Sign "
    "Sin Softmax Softplus Sqrt Square SquaredDifference Sub Sum Tanh"
)

#: Operators that only measure a tensor: their results are a few numbers, whatever the tensor holds.
MEASURES = frozenset({"Rank", "Shape", "ShapeN", "Size"})

#: Products and convolutions: work for an engine or for ONNX Runtime's kernels, with integers too.
PRODUCTS = _names(
    "BatchMatMul BatchMatMulV2 BatchMatMulV3 Conv Conv2D Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 "
    "DepthwiseConv2dNative Dilation2D Einsum MatMul XlaDot XlaDotV2"
)

#: Operators whose results depend on values in number or order, and that ONNX writes in many nodes.
DATA_DEPENDENT = _names(
    "DynamicPartition RaggedGather RaggedRange RaggedTensorToSparse RaggedTensorToTensor SparseFillEmptyRows "
    "SparseReshape Unique UniqueWithCounts Where"
)

#: Operators that run Python code of the process they were made in.
PYTHON = frozenset({"EagerPyFunc", "PyFunc", "PyFuncStateless"})

#: Operators that change a table while the model runs.
TABLE_WRITES = frozenset({"LookupTableInsertV2", "LookupTableRemoveV2", "LookupTableImportV2", "InitializeTableV2"})

#: Exported, but to something else: operator -> (what is wrong, relative error seen).
WRONG = {
    "AdjustSaturation": ("its export makes other colours", 0.7),
    "ResizeArea": ("its export averages other pixels", 2.5),
    "ResizeBicubic": ("its export interpolates with other weights", 3e-3),
}

#: Operators without a schema that tf2onnx makes -> the operators of TensorFlow that it makes them of; they are nodes of
#: bodies with made-up names, by which nobody can tell.
MADE_OF = {"com.microsoft::Range": ("MatrixDiagPartV2", "MatrixDiagPartV3", "MatrixSetDiagV3")}


@functools.cache
def handled() -> frozenset[str]:
    """Operators that tf2onnx, its rewriters or our own handlers have a translation for."""
    import tf2onnx.tfonnx  # noqa: F401 - registers the handlers
    from tf2onnx.handler import tf_op

    from rewriter.frontend.export import OPSET
    from rewriter.frontend.handlers import handlers

    # Handlers of other domains ("com.microsoft") are not used: their results run in one runtime only.
    known = (op for maps in tf_op.get_opsets()[""][: OPSET + 1] for op in maps or ())
    return REWRITTEN | frozenset(known) | frozenset(handlers([]))
