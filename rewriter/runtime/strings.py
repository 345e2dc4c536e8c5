"""Strings between ONNX Runtime, which has `str`, and TensorFlow, which has bytes.

Rules:
    1. Text is UTF-8 on the TensorFlow side.
    2. Bytes that are no UTF-8 become lone surrogates (`surrogateescape`), from which the same bytes are made again:
       from one island to another, and from an island to the caller, nothing is lost.
    3. ONNX Runtime takes no lone surrogates: where it reads what an island made they become U+FFFD, with a warning; in
       inputs of the caller they are an error.
    4. Other lone surrogates than those of rule 2 are neither text nor bytes: `inputs` refuses them.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def to_text(array: np.ndarray) -> np.ndarray:
    """An array of bytes or `str` as an object array of `str` of the same shape."""
    return _mapped(array, lambda v: v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else str(v))


def to_bytes(array: np.ndarray) -> np.ndarray:
    """An array of `str` or bytes as an object array of bytes of the same shape.

    Raises:
        UnicodeEncodeError: there is a `stray_surrogate`.
    """
    return _mapped(array, lambda v: v if isinstance(v, bytes) else str(v).encode("utf-8", "surrogateescape"))


def to_valid_text(array: np.ndarray) -> np.ndarray:
    """An array of bytes or `str` as `str` that can be written as UTF-8: what ONNX Runtime takes."""
    return _mapped(array, _valid)


def holds_no_text(value: Any) -> bool:
    """True for an array with a string that cannot be written as UTF-8."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "OU":
        return False
    return any(isinstance(item, str) and _valid(item) != item for item in value.reshape(-1).tolist())


def stray_surrogate(array: np.ndarray) -> str | None:
    """The first `str` with a surrogate that stands for no byte (rule 2): no bytes can be made of it. None for none."""
    for item in array.reshape(-1).tolist():
        if isinstance(item, str) and not item.isascii():
            try:
                item.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                return item
    return None


def _valid(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    text = str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text


def _mapped(array: np.ndarray, change: Any) -> np.ndarray:
    found = np.empty(array.size, dtype=object)
    found[:] = [change(item) for item in array.reshape(-1).tolist()]
    return found.reshape(array.shape)
