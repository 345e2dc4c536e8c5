"""What goes over HTTP: inputs and outputs as JSON or as the bytes of an npz file."""

from __future__ import annotations

import io
import json
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rewriter.errors import ConversionError, InputError
from rewriter.runtime.inputs import bind, first_line, to_feeds
from rewriter.source import Signature

__all__ = ["ABOUT", "JSON", "NPZ", "checked", "decode", "encode", "from_npz", "media_type", "to_npz"]

JSON = "application/json"
NPZ = "application/x-npz"
#: The array of an npz file that holds JSON text about the others; see `to_npz`.
ABOUT = "__about__"
#: What zipfile, zlib and numpy raise where bytes are damaged; a size that no memory holds is damage, too.
_DAMAGE = (
    ValueError, OSError, EOFError, AttributeError, LookupError, TypeError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip


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
        return from_npz(body)
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
        ConversionError: JSON has no word for NaN, infinities and complex numbers; bytes that are not UTF-8 go in
            neither form.
    """
    if content_type == NPZ:
        return to_npz(outputs)
    data = {"outputs": {name: _for_json(name, array).tolist() for name, array in outputs.items()}}
    try:
        return json.dumps(data, allow_nan=False).encode()
    except ValueError as error:
        raise ConversionError(
            f"an output has NaN or infinite values, which JSON cannot hold: ask with Content-Type: {NPZ}"
        ) from error


def to_npz(arrays: Mapping[str, Any]) -> bytes:
    """The bytes of an npz file.

    1. Strings become numpy's own text type.
    2. What numpy has no dtype for (bfloat16, float8, int4) is written as unsigned integers of the same bits; `ABOUT`
       has its name: {"dtypes": {"y": "bfloat16"}}.
    3. Numbers, strings and lists of Python have no dtype yet: they are in `ABOUT` as well, {"plain": {"x": [1, 2]}}.

    Raises:
        ConversionError: a string that an npz file cannot hold.
        InputError: an object that is no string.
    """
    written: dict[str, np.ndarray] = {}
    about: dict[str, dict[str, Any]] = {"dtypes": {}, "plain": {}}
    for name, value in arrays.items():
        if _is_plain(value):
            about["plain"][name] = value
            continue
        array = np.asarray(value)
        if array.dtype.kind in "OSU":
            array = _texts(name, array)
            if any(text.endswith("\0") for text in array.ravel()):
                raise ConversionError(f"{name!r} has a string that ends in a NUL, which npz files drop: ask by handle")
            array = array.astype(np.str_)
        elif array.dtype.isbuiltin == 2:  # made by another package
            about["dtypes"][name] = array.dtype.name
            array = array.view(f"u{array.dtype.itemsize}")
        written[name] = array
    if any(about.values()):
        written[ABOUT] = np.array(json.dumps(about))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # np.savez has arguments of its own, which a tensor may be called like
        for name, array in written.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return file.getvalue()


def from_npz(body: bytes) -> dict[str, Any]:
    """The arrays, and what else there is, of an npz file as `to_npz` writes it.

    Raises:
        InputError: it is none, or holds Python objects.
    """
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        about = json.loads(str(found.pop(ABOUT, "{}")))
        for name, dtype in about.get("dtypes", {}).items():
            found[name] = found[name].view(_dtype(dtype))
        return {**found, **about.get("plain", {})}
    except _DAMAGE as error:
        raise InputError(f"the request's body is no npz file of plain arrays: {first_line(error)}") from error


def media_type(header: str) -> str:
    """A Content-Type without its parameters."""
    return header.partition(";")[0].strip().lower()


def _is_plain(value: Any) -> bool:
    """True for numbers, strings and nested lists of Python that JSON can hold."""
    if isinstance(value, np.generic) or not isinstance(value, (bool, int, float, str, list, tuple)):
        return False
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):  # arrays or bytes in a list
        return False
    return True


def _dtype(name: str) -> np.dtype[Any]:
    """The dtype of ml_dtypes, which onnx needs anyway, called so.

    Raises:
        TypeError, AttributeError: there is none.
    """
    import ml_dtypes

    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found


def _for_json(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "c":
        raise ConversionError(f"output {name!r} is complex, which JSON cannot hold: ask with Content-Type: {NPZ}")
    return _texts(name, array) if array.dtype.kind in "OSU" else array


def _texts(name: str, array: np.ndarray) -> np.ndarray:
    """Strings, as `str` or bytes, as an object array of `str`."""
    found = np.empty(array.size, object)
    values = array.ravel().tolist()
    others = [type(each).__name__ for each in values if not isinstance(each, (str, bytes))]
    if others:
        raise InputError(f"{name!r} holds a {others[0]}: give numbers or strings, or arrays of them")
    try:
        found[:] = [each.decode() if isinstance(each, bytes) else str(each) for each in values]
        "".join(found).encode()
    except UnicodeError as error:
        raise ConversionError(f"{name!r} holds bytes that are no UTF-8 text: ask by handle instead of HTTP") from error
    return found.reshape(array.shape)
