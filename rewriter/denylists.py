"""Tells of denylist entries that deny nothing: a TensorFlow name, a misspelt one, a pattern that finds no node."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable

from passes.graph_index import iter_scopes
from passes.model import Model
from rewriter.report import Failure

logger = logging.getLogger(__name__)

#: TensorFlow operators that users of TF_TRT_OP_DENYLIST name -> what they are in ONNX.
_ONNX_NAMES = {
    "Conv2D": "Conv", "Conv3D": "Conv", "DepthwiseConv2dNative": "Conv", "Conv2DBackpropInput": "ConvTranspose",
    "BatchMatMulV2": "MatMul", "BiasAdd": "Add", "AddV2": "Add", "FusedBatchNormV3": "BatchNormalization",
    "AvgPool": "AveragePool", "ConcatV2": "Concat", "GatherV2": "Gather", "Mean": "ReduceMean", "Sum": "ReduceSum",
    "Max": "ReduceMax", "Min": "ReduceMin", "PadV2": "Pad", "StridedSlice": "Slice", "Select": "Where",
    "SelectV2": "Where", "CombinedNonMaxSuppression": "NonMaxSuppression", "TopKV2": "TopK", "ExpandDims": "Unsqueeze",
}  # fmt: skip


def idle_entries(model: Model, op_denylist: Iterable[str], node_denylist: Iterable[str]) -> tuple[Failure, ...]:
    """One entry of the report (and of the log) for each denylist entry that no node of the model answers to.

    Args:
        model: the cleaned model.
        op_denylist: ONNX operator types.
        node_denylist: regular expressions, searched for in node names.
    """
    nodes = [node for _, graph in iter_scopes(model.proto) for node in graph.node]
    types = {node.op_type for node in nodes} | {f"{node.domain}::{node.op_type}" for node in nodes if node.domain}
    found = []
    for entry in op_denylist:
        if entry not in types:
            known = _ONNX_NAMES.get(entry)
            near = [known] if known in types else difflib.get_close_matches(entry, sorted(types), 1, 0.7)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            reason = f"no node of the model is a {entry!r} (names are ONNX's){hint}"
            found.append(Failure("denylist", "op_denylist", "idle", reason))
    found += [
        Failure("denylist", "node_denylist", "idle", f"no node's name contains {pattern!r}")
        for pattern in node_denylist
        if not any(re.search(pattern, node.name) for node in nodes)
    ]
    for failure in found:
        logger.warning("%s: %s", failure.target, failure.reason)
    return tuple(found)
