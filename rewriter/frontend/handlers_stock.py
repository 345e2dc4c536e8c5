"""tf2onnx's own handlers, for ours that only prepare a node for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def stock(op: str, graph: Any, node: Any) -> None:
    """Translates a node of the TensorFlow op `op` as tf2onnx does."""
    convert, arguments = _handlers()[op]
    if arguments.get("onnx_op"):
        node.type = arguments["onnx_op"]
    convert(graph, node, **arguments)


@functools.cache
def _handlers() -> dict[str, tuple[Callable[..., None], dict[str, Any]]]:
    """TensorFlow op -> (handler, arguments) for the opset of the export."""
    from tf2onnx.handler import tf_op

    from rewriter.frontend.export import OPSET

    found: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {}
    for handlers in tf_op.get_opsets()[""][: OPSET + 1]:
        found |= handlers or {}
    return found
