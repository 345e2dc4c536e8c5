"""Tells of entries of denylists, keep_ops and keep_nodes that no node answers to: a TensorFlow name, a misspelt one."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Iterable, Mapping

from passes.graph_index import iter_scopes
from passes.model import Model
from rewriter.reports.report import Failure

logger = logging.getLogger(__name__)

#: TensorFlow operator -> the ONNX operators that do its work once the model is exported. Shapes, casts and other
#: helpers that the export puts around them are left out; operators that keep their name are not here, but for those
#: whose name means something else in ONNX.
ONNX_OPERATORS: Mapping[str, tuple[str, ...]] = {
    # convolutions, products and normalisation
    "Conv1D": ("Conv",), "Conv2D": ("Conv",), "Conv3D": ("Conv",), "DepthwiseConv2dNative": ("Conv",),
    "Conv2DBackpropInput": ("ConvTranspose",), "Conv3DBackpropInputV2": ("ConvTranspose",),
    "MatMul": ("MatMul", "Gemm"), "_FusedMatMul": ("MatMul", "Gemm"), "_FusedConv2D": ("Conv",),
    "BatchMatMul": ("MatMul",), "BatchMatMulV2": ("MatMul",), "BatchMatMulV3": ("MatMul",),
    "Einsum": ("Einsum", "MatMul"), "FusedBatchNorm": ("BatchNormalization",),
    "FusedBatchNormV2": ("BatchNormalization",), "FusedBatchNormV3": ("BatchNormalization",),
    "L2Normalization": ("LpNormalization",), "CudnnRNN": ("LSTM", "GRU"), "CudnnRNNV3": ("LSTM", "GRU"),
    # pooling and reduction
    "AvgPool": ("AveragePool", "GlobalAveragePool"), "AvgPool3D": ("AveragePool", "GlobalAveragePool"),
    "MaxPoolV2": ("MaxPool",), "MaxPool3D": ("MaxPool",), "MaxPoolWithArgmax": ("MaxPool",),
    "Mean": ("ReduceMean", "GlobalAveragePool"), "Sum": ("ReduceSum",), "Max": ("ReduceMax", "GlobalMaxPool"),
    "Min": ("ReduceMin",), "Prod": ("ReduceProd",), "EuclideanNorm": ("ReduceL2",), "Cumsum": ("CumSum",),
    "All": ("ReduceSum", "ReduceMin"), "Any": ("ReduceSum", "ReduceMax"), "TopKV2": ("TopK",),
    "UniqueWithCounts": ("Unique",), "UniqueV2": ("Unique",), "SegmentSum": ("ScatterElements", "ScatterND"),
    # arithmetic
    "BiasAdd": ("Add",), "BiasAddV1": ("Add",), "AddV2": ("Add",), "AddN": ("Sum", "Add"), "RealDiv": ("Div",),
    "TruncateDiv": ("Div",), "FloorDiv": ("Div",), "DivNoNan": ("Div",), "FloorMod": ("Mod",), "Maximum": ("Max",),
    "Minimum": ("Min",), "Square": ("Mul",), "SquaredDifference": ("Sub",), "Rsqrt": ("Sqrt",), "Inv": ("Reciprocal",),
    "Rint": ("Round",), "Relu6": ("Clip",), "ClipByValue": ("Clip", "Min", "Max"), "Prelu": ("PRelu",),
    "FakeQuantWithMinMaxArgs": ("QuantizeLinear", "DequantizeLinear"),
    "FakeQuantWithMinMaxVars": ("QuantizeLinear", "DequantizeLinear"),
    "FakeQuantWithMinMaxVarsPerChannel": ("QuantizeLinear", "DequantizeLinear"),
    "QuantizeAndDequantizeV2": ("QuantizeLinear", "DequantizeLinear"),
    "QuantizeAndDequantizeV3": ("QuantizeLinear", "DequantizeLinear"),
    "QuantizeAndDequantizeV4": ("QuantizeLinear", "DequantizeLinear"),
    # comparison and logic
    "NotEqual": ("Equal",), "GreaterEqual": ("GreaterOrEqual",), "LessEqual": ("LessOrEqual",), "LogicalAnd": ("And",),
    "LogicalOr": ("Or",), "LogicalNot": ("Not",), "IsNan": ("IsNaN",), "Invert": ("BitwiseNot",),
    "Select": ("Where",), "SelectV2": ("Where",), "Where": ("NonZero",),
    # shapes and indices
    "ConcatV2": ("Concat",), "Pack": ("Concat",), "Unpack": ("Split",), "SplitV": ("Split",), "GatherV2": ("Gather",),
    "ResourceGather": ("Gather",), "GatherNd": ("GatherND",), "ScatterNd": ("ScatterND",),
    "TensorScatterUpdate": ("ScatterND",), "TensorScatterAdd": ("ScatterND",), "TensorScatterSub": ("ScatterND",),
    "TensorScatterMax": ("ScatterND",), "TensorScatterMin": ("ScatterND",), "PadV2": ("Pad",), "MirrorPad": ("Pad",),
    "StridedSlice": ("Slice",), "ExpandDims": ("Unsqueeze", "Reshape"), "Fill": ("Expand", "ConstantOfShape"),
    "BroadcastTo": ("Expand",), "ReverseV2": ("ReverseSequence",), "Roll": ("Slice",), "OneHot": ("OneHot", "Gather"),
    "BatchToSpaceND": ("DepthToSpace",), "SpaceToBatchND": ("SpaceToDepth",), "InvertPermutation": ("TopK",),
    "StopGradient": ("Identity",), "Snapshot": ("Identity",), "MatrixBandPart": ("Trilu", "EyeLike"),
    # images and detection
    "ResizeBilinear": ("Resize",), "ResizeNearestNeighbor": ("Resize",), "ResizeBicubic": ("Resize",),
    "ResizeArea": ("Resize",), "CropAndResize": ("RoiAlign", "Resize"),
    "CombinedNonMaxSuppression": ("NonMaxSuppression",), "NonMaxSuppressionV2": ("NonMaxSuppression",),
    "NonMaxSuppressionV3": ("NonMaxSuppression",), "NonMaxSuppressionV4": ("NonMaxSuppression",),
    "NonMaxSuppressionV5": ("NonMaxSuppression",),
    # control flow and random numbers
    "StatelessIf": ("If",), "While": ("Loop", "Scan"), "StatelessWhile": ("Loop", "Scan"),
    "RandomStandardNormal": ("RandomNormal", "RandomNormalLike"),
    "RandomUniform": ("RandomUniform", "RandomUniformLike"),
}  # fmt: skip


def translate(operators: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """TensorFlow's operators in ONNX's words.

    Returns:
        Operator -> all ONNX operators that do its work; a name that the table does not hold stands for itself.
    """
    return {name: ONNX_OPERATORS.get(name, (name,)) for name in operators}


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
        node_denylist: regular expressions, searched for in node names.
        keep_ops: as `op_denylist`; findings carry the rule "precision" and this name as target.
        keep_nodes: as `node_denylist`, likewise.
        op_fakelist: as `op_denylist`; findings carry the rule "fakelist".
        translations: environment variable -> what it names in TensorFlow's words -> ONNX's words for it (see
            `translate`). One of these that is in the model is enough, and what they are in ONNX is not told again
            where the lists above hold it, too.
    """
    nodes = [node for _, graph in iter_scopes(model.proto) for node in graph.node]
    types = {node.op_type for node in nodes}
    types |= {f"{node.domain}::{node.op_type}" for node in nodes if node.domain}
    translated = {name for words in (translations or {}).values() for names in words.values() for name in names}
    found: list[Failure] = []
    for rule, ops_name, ops, names_name, patterns in (
        ("denylist", "op_denylist", op_denylist, "node_denylist", node_denylist),
        ("precision", "keep_ops", keep_ops, "keep_nodes", keep_nodes),
        ("fakelist", "op_fakelist", op_fakelist, "", ()),
    ):
        # A recipe keeps by operator type alone, without the domain.
        known = {node.op_type for node in nodes} if rule == "precision" else types
        idle = [entry for entry in ops if entry not in known and (rule == "precision" or entry not in translated)]
        found += [Failure(rule, ops_name, "idle", _no_operator(entry, known)) for entry in idle]
        found += [
            Failure(rule, names_name, "idle", f"no node's name contains {pattern!r}")
            for pattern in patterns
            if not any(re.search(pattern, node.name) for node in nodes)
        ]
    for variable, words in (translations or {}).items():
        rule = "fakelist" if variable.endswith("FAKELIST") else "denylist"
        for name, operators in words.items():
            if types.isdisjoint(operators):
                meant = "" if operators == (name,) else f" (in ONNX {' or '.join(operators)})"
                found.append(Failure(rule, variable, "idle", f"no node of the model is a {name!r}{meant}"))
    for failure in found:
        logger.warning("%s: %s", failure.target, failure.reason)
    return tuple(found)


def _no_operator(entry: str, types: Collection[str]) -> str:
    known = [name for name in ONNX_OPERATORS.get(entry, ()) if name in types]
    near = known[:1] or difflib.get_close_matches(entry, sorted(types), 1, 0.7)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no node of the model is a {entry!r} (names are ONNX's){hint}"
