"""Tells of entries of denylists, keep_ops and keep_nodes that no node answers to: a TensorFlow name, a misspelt one."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Iterable, Mapping

from passes.graph_index import iter_scopes
from passes.island_node import island_nodes, read_island
from passes.model import Model
from rewriter.node_patterns import argument_of, told_idle
from rewriter.reports.report import Failure

logger = logging.getLogger(__name__)

#: What follows an operator's name in an island's list: "Add x3".
_COUNT = re.compile(r" x\d+$")

#: TensorFlow operator -> the ONNX operators that do its work once the model is exported: found by exporting each
#: operator on its own. Of a composite only those are here that nothing but work of its kind is made of (Erfc: Erf, not
#: the Mul and Add beside it); where there are none such, all of them. Shapes, casts, transposes and other helpers are
#: left out, and so are operators that keep their name, but for those whose name means something else in ONNX.
#: Operators that have no export (Inv, Log1p, L2Loss, ResizeArea ...) stay in TensorFlow: `idle_entries` tells so.
ONNX_OPERATORS: Mapping[str, tuple[str, ...]] = {
    # convolutions, products and normalisation
    "Conv2D": ("Conv",), "Conv3D": ("Conv",), "DepthwiseConv2dNative": ("Conv",),
    "Conv2DBackpropInput": ("ConvTranspose",), "Conv3DBackpropInputV2": ("ConvTranspose",),
    "MatMul": ("MatMul", "Gemm"), "_FusedMatMul": ("MatMul", "Gemm"), "_FusedConv2D": ("Conv",),
    "BatchMatMul": ("MatMul",), "BatchMatMulV2": ("MatMul",), "BatchMatMulV3": ("MatMul",),
    "Einsum": ("Einsum", "MatMul"), "FusedBatchNorm": ("BatchNormalization",),
    "FusedBatchNormV2": ("BatchNormalization",), "FusedBatchNormV3": ("BatchNormalization",),
    "L2Normalization": ("LpNormalization",), "CudnnRNN": ("LSTM", "GRU"), "CudnnRNNV3": ("LSTM", "GRU"),
    "MatrixDeterminant": ("Det",), "SoftmaxCrossEntropyWithLogits": ("LogSoftmax",),
    "SparseSoftmaxCrossEntropyWithLogits": ("LogSoftmax", "Exp", "Log"),
    # pooling and reduction
    "AvgPool": ("AveragePool", "GlobalAveragePool"), "AvgPool3D": ("AveragePool", "GlobalAveragePool"),
    "MaxPoolV2": ("MaxPool",), "MaxPool3D": ("MaxPool",), "MaxPoolWithArgmax": ("MaxPool",),
    "Mean": ("ReduceMean", "GlobalAveragePool"), "Sum": ("ReduceSum",), "Max": ("ReduceMax", "GlobalMaxPool"),
    "Min": ("ReduceMin",), "Prod": ("ReduceProd",), "All": ("ReduceSum", "Greater", "Not"),
    "Any": ("ReduceSum", "Greater"), "Cumsum": ("CumSum",), "Cumprod": ("Loop",), "TopKV2": ("TopK",),
    "UniqueWithCounts": ("Unique",), "DenseBincount": ("Unique", "Compress"), "Bincount": ("Unique", "Compress"),
    "SegmentSum": ("ScatterElements",), "SegmentMean": ("ScatterElements",), "SegmentMax": ("ScatterElements",),
    "SegmentMin": ("ScatterElements",), "SegmentProd": ("ScatterElements",), "UnsortedSegmentSum": ("ScatterElements",),
    "UnsortedSegmentMax": ("ScatterElements",), "UnsortedSegmentMin": ("ScatterElements",),
    "UnsortedSegmentProd": ("ScatterElements",),
    "SparseSegmentSum": ("ScatterElements",), "SparseSegmentMean": ("ScatterElements",),
    "SparseSegmentSqrtN": ("ScatterElements",),
    "SparseSegmentSumWithNumSegments": ("ScatterElements",), "SparseSegmentMeanWithNumSegments": ("ScatterElements",),
    "SparseSegmentSqrtNWithNumSegments": ("ScatterElements",),
    # arithmetic
    "BiasAdd": ("Add",), "BiasAddV1": ("Add",), "AddV2": ("Add",), "AddN": ("Sum", "Add"), "RealDiv": ("Div",),
    "TruncateDiv": ("Div",), "FloorDiv": ("Div", "Floor"), "DivNoNan": ("Div", "Equal", "Where"), "FloorMod": ("Mod",),
    "Maximum": ("Max",), "Minimum": ("Min",), "Square": ("Mul",), "SquaredDifference": ("Sub", "Mul"),
    "Rsqrt": ("Sqrt", "Reciprocal"), "Rint": ("Round",), "Relu6": ("Clip",), "ClipByValue": ("Clip", "Min", "Max"),
    "Prelu": ("PRelu",), "Erfc": ("Erf",), "Atan2": ("Atan", "Sign"),
    "FakeQuantWithMinMaxArgs": ("QuantizeLinear", "DequantizeLinear", "Floor"),
    "FakeQuantWithMinMaxVars": ("QuantizeLinear", "DequantizeLinear", "Floor"),
    "FakeQuantWithMinMaxVarsPerChannel": ("QuantizeLinear", "DequantizeLinear", "Floor"),
    "QuantizeAndDequantizeV2": ("QuantizeLinear", "DequantizeLinear", "Round"),
    "QuantizeAndDequantizeV3": ("QuantizeLinear", "DequantizeLinear", "Round"),
    "QuantizeAndDequantizeV4": ("QuantizeLinear", "DequantizeLinear", "Round"),
    # comparison and logic
    "NotEqual": ("Equal", "Not"), "GreaterEqual": ("GreaterOrEqual",), "LessEqual": ("LessOrEqual",),
    "LogicalAnd": ("And",), "LogicalOr": ("Or",), "LogicalNot": ("Not",), "IsNan": ("IsNaN",),
    "IsFinite": ("IsNaN", "IsInf"), "Invert": ("BitwiseNot", "Sub"), "LeftShift": ("BitShift",),
    "RightShift": ("BitShift",), "Select": ("Where",), "SelectV2": ("Where",), "Where": ("NonZero",),
    # shapes and indices
    "ConcatV2": ("Concat",), "Pack": ("Concat",), "Unpack": ("Split",), "SplitV": ("Split",),
    "GatherV2": ("Gather", "GatherND"), "ResourceGather": ("Gather",), "GatherNd": ("GatherND",),
    "ScatterNd": ("ScatterND", "ScatterElements"), "DynamicStitch": ("ScatterElements",),
    "TensorScatterUpdate": ("ScatterND",), "TensorScatterAdd": ("ScatterElements",),
    "TensorScatterSub": ("ScatterElements",),
    "TensorScatterMax": ("ScatterElements",), "TensorScatterMin": ("ScatterElements",), "PadV2": ("Pad",),
    "MirrorPad": ("Pad",),
    "StridedSlice": ("Slice",), "ExpandDims": ("Unsqueeze", "Reshape"), "Fill": ("Expand", "ConstantOfShape"),
    "ZerosLike": ("ConstantOfShape", "Expand"), "OnesLike": ("ConstantOfShape", "Expand"),
    "BroadcastTo": ("Expand",), "ReverseV2": ("Slice",), "Roll": ("Slice", "Concat"),
    "OneHot": ("Equal", "Where"), "BatchToSpaceND": ("DepthToSpace",), "SpaceToBatchND": ("SpaceToDepth",),
    "InvertPermutation": ("ScatterElements",), "StopGradient": ("Identity",), "MatrixBandPart": ("Mul", "CumSum"),
    "MatrixDiag": ("If", "ReverseSequence"), "MatrixDiagV2": ("If", "ReverseSequence"),
    "MatrixDiagV3": ("If", "ReverseSequence"), "MatrixDiagPart": ("GatherElements",),
    "MatrixDiagPartV2": ("GatherElements",), "MatrixDiagPartV3": ("GatherElements",),
    # images and detection
    "ResizeBilinear": ("Resize",), "ResizeNearestNeighbor": ("Resize",), "CropAndResize": ("RoiAlign", "Resize"),
    "CombinedNonMaxSuppression": ("NonMaxSuppression",), "NonMaxSuppressionV2": ("NonMaxSuppression",),
    "NonMaxSuppressionV3": ("NonMaxSuppression",), "NonMaxSuppressionV4": ("NonMaxSuppression",),
    "NonMaxSuppressionV5": ("NonMaxSuppression",),
    # control flow and random numbers
    "StatelessIf": ("If",), "While": ("Loop", "Scan"), "StatelessWhile": ("Loop", "Scan"),
    "RandomStandardNormal": ("RandomNormal", "RandomNormalLike"),
    "RandomUniform": ("RandomUniform", "RandomUniformLike"), "RandomUniformInt": ("RandomUniform",),
}  # fmt: skip


def translate(operators: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """TensorFlow's operators in ONNX's words.

    Returns:
        Operator -> all ONNX operators that do its work; a name that the table does not hold stands for itself.
    """
    return {name: ONNX_OPERATORS.get(name, (name,)) for name in operators}


def describe(words: Mapping[str, tuple[str, ...]]) -> str:
    """Translated operators in one line, with how far they reach: a list of operators takes all of a kind."""
    return ", ".join(
        name if known == (name,) else f"{name} (in ONNX every {' and every '.join(known)})"
        for name, known in words.items()
    )


def idle_entries(
    model: Model,
    op_denylist: Iterable[str] = (),
    node_denylist: Iterable[str] = (),
    *,
    keep_ops: Iterable[str] = (),
    keep_nodes: Iterable[str] = (),
    op_fakelist: Iterable[str] = (),
    translations: Mapping[str, Mapping[str, tuple[str, ...]]] | None = None,
) -> tuple[Failure, ...]:
    """One entry of the report (and of the log) for each entry of these parameters that no node of the model answers to.

    Args:
        model: the cleaned model.
        op_denylist: ONNX operator types.
        node_denylist: regular expressions, searched for in node names; one that stands for an entry of another
            argument (`NodePattern`) is told by that.
        keep_ops: as `op_denylist`; findings carry the rule "precision" and this name as target.
        keep_nodes: as `node_denylist`, likewise.
        op_fakelist: as `op_denylist`; findings carry the rule "fakelist".
        translations: environment variable -> what it names in TensorFlow's words -> ONNX's words for it (see
            `translate`). One of these that is in the model is enough, and what they are in ONNX is not told again
            where the lists above hold it, too.

    An operator that is not in the ONNX graph because TensorFlow runs it is told so, with its island.
    """
    nodes = [node for _, graph in iter_scopes(model.proto) for node in graph.node]
    types = {node.op_type for node in nodes}
    types |= {f"{node.domain}::{node.op_type}" for node in nodes if node.domain}
    translated = {name for words in (translations or {}).values() for names in words.values() for name in names}
    islands = _operators_of_islands(model)
    found: list[Failure] = []
    for rule, ops_name, ops, names_name, patterns in (
        ("denylist", "op_denylist", op_denylist, "node_denylist", node_denylist),
        ("precision", "keep_ops", keep_ops, "keep_nodes", keep_nodes),
        ("fakelist", "op_fakelist", op_fakelist, "", ()),
    ):
        # A recipe keeps by operator type alone, without the domain.
        known = {node.op_type for node in nodes} if rule == "precision" else types
        idle = [entry for entry in ops if entry not in known and (rule == "precision" or entry not in translated)]
        found += [Failure(rule, ops_name, "idle", _no_operator(entry, known, islands)) for entry in idle]
        found += [
            Failure(rule, argument_of(pattern, names_name), "idle", told_idle(pattern))
            for pattern in patterns
            if not any(re.search(pattern, node.name) for node in nodes)
        ]
    for variable, words in (translations or {}).items():
        rule = "fakelist" if variable.endswith("FAKELIST") else "denylist"
        for name, operators in words.items():
            if not types.isdisjoint(operators):
                continue
            if name in islands:
                found.append(Failure(rule, variable, "idle", _in_tensorflow(name, islands[name])))
            else:
                meant = "" if operators == (name,) else f" (in ONNX {' or '.join(operators)})"
                found.append(Failure(rule, variable, "idle", f"no node of the model is a {name!r}{meant}"))
    for failure in found:
        logger.warning("%s: %s", failure.target, failure.reason)
    return tuple(found)


def _operators_of_islands(model: Model) -> dict[str, list[str]]:
    """TensorFlow operator -> the island nodes that hold it."""
    found: dict[str, list[str]] = {}
    for node in island_nodes(model.proto):
        for told in read_island(node).ops:
            found.setdefault(_COUNT.sub("", told), []).append(node.op_type)
    return found


def _in_tensorflow(entry: str, islands: list[str]) -> str:
    return f"{entry!r} is not given to TensorRT anyway: it stays in TensorFlow ({', '.join(islands)})"


def _no_operator(entry: str, types: Collection[str], islands: Mapping[str, list[str]]) -> str:
    if entry in islands:
        return _in_tensorflow(entry, islands[entry])
    known = [name for name in ONNX_OPERATORS.get(entry, ()) if name in types]
    near = known[:1] or difflib.get_close_matches(entry, sorted(types), 1, 0.7)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no node of the model is a {entry!r} (names are ONNX's){hint}"
