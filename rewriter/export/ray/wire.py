"""What goes over HTTP: inputs and outputs as JSON or as the bytes of an npz file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from rewriter.errors import ConversionError, InputError
from rewriter.runtime.inputs import bind, to_feeds
from rewriter.source import Signature

__all__ = ["JSON", "NPZ", "checked", "decode", "encode", "from_npz", "media_type", "to_npz"]

JSON = "application/json"
NPZ = "application/x-npz"


def checked(signature: Signature, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Inputs by public name as arrays that fit the signature.

    Raises:
        InputError: they do not.
    """
    feeds = to_feeds(signature, bind(signature, (dict(inputs),), {}))
    return {spec.name: feeds[spec.tensor] for spec in signature.inputs}


def decode(body: bytes, content_type: str) -> dict[str, Any]:
    """The inputs that a request holds.

    Args:
        body: an npz file; or JSON text, {"inputs": {name: nested lists}}.
        content_type: `NPZ`, or anything else for JSON.

    Raises:
        InputError: it holds something else.
    """
    if media_type(content_type) == NPZ:
        return dict(from_npz(body))
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the request's body is no JSON ({error}); npz files need Content-Type: {NPZ}") from error
    inputs = data.get("inputs") if isinstance(data, dict) else None
    if not isinstance(inputs, dict):
        raise InputError('the request\'s body must be {"inputs": {name: nested lists}}')
    return inputs


def encode(outputs: Mapping[str, np.ndarray], content_type: str) -> bytes:
    """Outputs in the form that the request had: npz, or {"outputs": {name: nested lists}}.

    Raises:
        ConversionError: JSON has no word for NaN and infinities.
    """
    if content_type == NPZ:
        return to_npz(outputs)
    data = {"outputs": {name: _text(array).tolist() for name, array in outputs.items()}}
    try:
        return json.dumps(data, allow_nan=False).encode()
    except ValueError as error:
        raise ConversionError(
            f"an output has NaN or infinite values, which JSON cannot hold: ask with Content-Type: {NPZ}"
        ) from error


def to_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an npz file; strings become numpy's own text type."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{name: _text(np.asarray(array)) for name, array in arrays.items()})
    return file.getvalue()


def from_npz(body: bytes) -> dict[str, np.ndarray]:
    """The arrays of an npz file.

    Raises:
        InputError: it is none, or holds Python objects.
    """
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"the request's body is no npz file of plain arrays: {error}") from error


def media_type(header: str) -> str:
    """A Content-Type without its parameters."""
    return header.partition(";")[0].strip().lower()


def _text(array: np.ndarray) -> np.ndarray:
    if array.dtype != object:
        return array
    texts = [each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each) for each in array.ravel()]
    return np.array(texts, dtype=np.str_).reshape(array.shape)
