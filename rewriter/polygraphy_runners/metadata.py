"""Names, dtypes and shapes between our signatures and polygraphy.

Rules:
    1. A dimension that is not fixed is None for polygraphy, whatever its name; a shape of unknown rank is None.
    2. bfloat16 and the float8 types are float32 for polygraphy, whose data loader and comparisons work with numpy's
       own dtypes: inputs are rounded to them, outputs are widened.
    3. Strings: inputs are arrays of objects, which a data loader script must give, for polygraphy makes none up.
       Outputs are told as their bytes (UTF-8, padded with zeros to the longest), uint8 [..., bytes]: polygraphy
       compares numbers only, and strings of another length make another shape, which fails as it should.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from passes.segments import TensorSpec
from rewriter.errors import InvalidParameterError
from rewriter.polygraphy_runners.talk import import_polygraphy, refusal
from rewriter.runtime.native import numpy_dtype
from rewriter.runtime.strings import to_bytes


def tensor_metadata(specs: Iterable[TensorSpec]) -> Any:
    """Inputs as polygraphy's `TensorMetadata`.

    Raises:
        InvalidParameterError: an input has complex numbers, which polygraphy has no word for.
    """
    types = import_polygraphy("polygraphy.datatype").DataType
    found = import_polygraphy("polygraphy.common").TensorMetadata()
    for spec in specs:
        dtype = np.dtype(numpy_dtype(spec.dtype))
        if dtype.kind == "c":
            raise InvalidParameterError(
                f"input {spec.name!r} has complex numbers ({dtype.name}), which polygraphy has no word for: use "
                "`trt-rewriter compare`"
            )
        if dtype.kind == "O":
            kind = Strings(spec.name)
        else:
            kind = types.from_dtype(np.dtype(np.float32) if is_narrow(dtype) else dtype, "numpy")
        shape = None if spec.shape is None else [dim if isinstance(dim, int) else None for dim in spec.shape]
        found.add(spec.name, dtype=kind, shape=shape)
    return found


class Strings:
    """The dtype of an input of strings: polygraphy's own STRING fits no array of strings that holds any.

    It is equal to every dtype of numpy that has strings, so that such arrays are taken as they are; who asks whether
    it is a kind of number, as polygraphy does to make inputs up, is told that there are none.

    Args:
        name: of the input, for the message.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Strings) or (isinstance(other, np.dtype) and other.kind in "OSU")

    def __hash__(self) -> int:
        return hash(np.dtype(object))

    def __repr__(self) -> str:
        return "object"

    @property
    def is_integral(self) -> bool:
        """Asked by polygraphy's data loader.

        Raises:
            PolygraphyException: always; one line for its user.
        """
        raise refusal(
            f"input {self._name!r} takes strings, and polygraphy makes none up: give them with --data-loader-script "
            "(arrays with dtype=object)"
        )

    is_floating = is_integral


def is_narrow(dtype: np.dtype[Any]) -> bool:
    """True for floating-point types that numpy has only through ml_dtypes."""
    return dtype.kind in "Vf" and dtype.isbuiltin != 1


def narrowed(inputs: Mapping[str, Any], specs: Iterable[TensorSpec]) -> dict[str, Any]:
    """The inputs with those of rule 2 rounded to the dtype of the signature; the others as they are."""
    wanted = {spec.name: np.dtype(numpy_dtype(spec.dtype)) for spec in specs}
    return {
        name: value.astype(wanted[name])
        if name in wanted and is_narrow(wanted[name]) and isinstance(value, np.ndarray)
        else value
        for name, value in inputs.items()
    }


def widened(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs as arrays of numbers, by rules 2 and 3."""
    return {name: _numbers(np.asarray(value)) for name, value in outputs.items()}


def _numbers(array: np.ndarray) -> np.ndarray:
    if is_narrow(array.dtype):
        return array.astype(np.float32)
    if array.dtype.kind not in "OSU":
        return array
    encoded = np.array(to_bytes(array).reshape(-1).tolist(), dtype=np.bytes_)  # pads with zeros
    return np.frombuffer(encoded.tobytes(), np.uint8).reshape(*array.shape, encoded.dtype.itemsize)
