"""Tells of entries of denylists, keep_ops and keep_nodes that no node answers to: a TensorFlow name, a misspelt one."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Iterable

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


def idle_entries(
    model: Model,
    op_denylist: Iterable[str] = (),
    node_denylist: Iterable[str] = (),
    *,
    keep_ops: Iterable[str] = (),
    keep_nodes: Iterable[str] = (),
) -> tuple[Failure, ...]:
    """One entry of the report (and of the log) for each entry of these parameters that no node of the model answers to.

    Args:
        model: the cleaned model.
        op_denylist: ONNX operator types.
        node_denylist: regular expressions, searched for in node names.
        keep_ops: as `op_denylist`; findings carry the rule "precision" and this name as target.
        keep_nodes: as `node_denylist`, likewise.
    """
    nodes = [node for _, graph in iter_scopes(model.proto) for node in graph.node]
    types = {node.op_type for node in nodes}
    types |= {f"{node.domain}::{node.op_type}" for node in nodes if node.domain}
    found: list[Failure] = []
    for rule, ops_name, ops, names_name, patterns in (
        ("denylist", "op_denylist", op_denylist, "node_denylist", node_denylist),
        ("precision", "keep_ops", keep_ops, "keep_nodes", keep_nodes),
    ):
        # A recipe keeps by operator type alone, without the domain.
        known = types if rule == "denylist" else {node.op_type for node in nodes}
        found += [Failure(rule, ops_name, "idle", _no_operator(entry, known)) for entry in ops if entry not in known]
        found += [
            Failure(rule, names_name, "idle", f"no node's name contains {pattern!r}")
            for pattern in patterns
            if not any(re.search(pattern, node.name) for node in nodes)
        ]
    for failure in found:
        logger.warning("%s: %s", failure.target, failure.reason)
    return tuple(found)


def _no_operator(entry: str, types: Collection[str]) -> str:
    known = _ONNX_NAMES.get(entry)
    near = [known] if known in types else difflib.get_close_matches(entry, sorted(types), 1, 0.7)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no node of the model is a {entry!r} (names are ONNX's){hint}"
