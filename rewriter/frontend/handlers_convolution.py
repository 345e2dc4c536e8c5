"""Transposed convolutions: the sizes that TensorFlow gives them, in ONNX's terms."""

from __future__ import annotations

from typing import Any

from rewriter.frontend.handlers_stock import stock

#: TensorFlow ops that this file has a handler for -> their spatial axes.
SPATIAL = {"Conv2DBackpropInput": 2, "Conv3DBackpropInputV2": 3}


def conv_transpose(graph: Any, node: Any, *_: Any) -> None:
    """A transposed convolution whose borders stand where TensorFlow has them.

    tf2onnx halves the surplus of every axis (the full size less the wanted one), also where it is negative: a kernel
    that is smaller than the stride, or an output larger than the full one. ONNX allows no negative padding, and
    TensorFlow cuts and adds otherwise:

    1. At the start it cuts half of the surplus, rounded down, with "SAME"; nothing with "VALID"; what the node says
       with "EXPLICIT". It never adds there.
    2. The rest of the surplus is cut at the end; where that is negative, so many zeros are added (`output_padding`).

    An axis of unknown size stays as tf2onnx has it.
    """
    op, spatial = node.type, SPATIAL[node.type]
    first = 2 if node.get_attr_value("data_format", b"NHWC")[1:2] == b"C" else 1
    padding = node.get_attr_value("padding", b"VALID")
    explicit = list(node.get_attr_value("explicit_paddings", []))[2 * first :: 2][:spatial]
    stock(op, graph, node)
    pads = node.get_attr_value("pads")
    if not pads:
        return
    surplus = [pads[axis] + pads[axis + spatial] for axis in range(spatial)]
    starts = {b"SAME": [max(cut, 0) // 2 for cut in surplus], b"EXPLICIT": explicit}.get(padding, [0] * spatial)
    ends = [cut - start for cut, start in zip(surplus, starts, strict=True)]
    node.set_attr("pads", [*starts, *(max(end, 0) for end in ends)])
    if min(ends) < 0:
        node.set_attr("output_padding", [max(-end, 0) for end in ends])
