"""TensorFlow's strings are bytes, ONNX's are UTF-8 text: what a model holds that is none stays in TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_MARK = "_trt_rewriter_bytes"


def no_text(values: Any) -> bool:
    """True for bytes among which some are no UTF-8 text (or end in NUL), which no string of ONNX can hold.

    Args:
        values: an array, or strings one by one; what is no bytes counts as text.
    """
    items = values.reshape(-1).tolist() if isinstance(values, np.ndarray) else values
    return any(isinstance(item, bytes) and not _is_text(item) for item in items)


def _is_text(item: bytes) -> bool:
    """True for UTF-8 without NULs at the end, which numpy drops on the converter's way."""
    if item.endswith(b"\0"):
        return False
    try:
        item.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def const_without_text(node: Any) -> bool:
    """True for a Const node of strings that ONNX cannot hold."""
    return node.op == "Const" and no_text(node.attr["value"].tensor.string_val)


def mark_tables(graph_def: Any, tables: Mapping[bytes, tuple[np.ndarray, np.ndarray]]) -> None:
    """Marks the table nodes that ONNX cannot hold, with the reason; see `why_not`."""
    for node in graph_def.node:
        contents = tables.get(node.attr["shared_name"].s) if "shared_name" in node.attr else None
        if contents is not None and any(no_text(part) for part in contents):
            node.attr[_MARK].s = b"it holds bytes that are no UTF-8 text"


def why_not(table: Any) -> str:
    """Why ONNX cannot hold a table, as `mark_tables` marked it; "" where it can."""
    return table.attr[_MARK].s.decode() if _MARK in table.attr else ""
