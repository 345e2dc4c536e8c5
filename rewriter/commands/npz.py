"""Inputs from files, and outputs to them: strings are text (dtype `U`), nothing is pickled."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewriter.errors import InputError
from rewriter.runtime.strings import to_text, to_valid_text

if TYPE_CHECKING:
    import numpy as np


def read_npz(path: str) -> dict[str, Any]:
    """The arrays of an .npz file.

    Raises:
        InputError: it is none, is damaged, or holds Python objects.
    """
    import numpy as np

    found: dict[str, Any] = {}
    name = ""
    try:
        if Path(path).is_file() and not zipfile.is_zipfile(path):
            raise InputError(f"{path!r} is no .npz file, or is damaged: write one with numpy.savez, an array an input")
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                found[name] = file[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        if "allow_pickle" in str(error):
            raise InputError(
                f"array {name!r} of {path!r} holds Python objects, which are not read: store strings as text, "
                f"numpy.savez(path, {name}=numpy.array([...], dtype=str))"
            ) from error
        raise InputError(f"cannot read the inputs {path!r} as an .npz file: {error}") from error
    return found


def write_npz(path: str, arrays: Mapping[str, Any]) -> None:
    """Writes arrays to an .npz file that `read_npz` reads; strings become text of numpy's own.

    Args:
        path: the file, under this very name.
        arrays: name -> array or scalar; those of objects hold `str` or bytes.

    Raises:
        InputError: it cannot be written; or strings cannot be kept, and the other arrays are in the file.
    """
    import numpy as np

    kept, lost = {}, []
    for name, value in arrays.items():
        array = np.asarray(value)
        text = _as_text(array) if array.dtype.kind in "OSU" else array
        if text is None:
            lost.append(name)
        else:
            kept[name] = text
    try:
        # Not by numpy.savez, which adds ".npz" to the path and has no word for an array called "file".
        with zipfile.ZipFile(path, "w") as file:
            for name, array in kept.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot write the outputs to {path!r}: {error}") from error
    if lost:
        raise InputError(
            f"{path!r} lacks {', '.join(map(repr, lost))}: strings that are no UTF-8 text, or end with a null "
            "character, cannot be kept in an .npz file; call the model from Python (rewriter.load) for them"
        )


def _as_text(array: np.ndarray) -> np.ndarray | None:
    """Strings with numpy's text dtype; None where they would not come back as they are."""
    import numpy as np

    text = to_valid_text(array)
    made = text.astype(np.str_)
    return made if np.array_equal(made.astype(object), to_text(array)) else None


def batches(arrays: Mapping[str, np.ndarray], size: int, path: str) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    """An `input_fn` that yields the arrays `size` rows at a time; the last batch may be smaller.

    Args:
        arrays: input name -> array [samples, ...].
        size: rows of a batch.
        path: where they come from, for messages.

    Raises:
        InputError: there is no array, one has no rows, or they differ in their number of rows.
    """
    rows = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if not rows or len(set(rows.values())) > 1 or not min(rows.values()):
        told = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()) or "no array"
        raise InputError(f"{path!r} must hold one array an input, each with the same number of samples, not {told}")
    total = next(iter(rows.values()))

    def input_fn() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, total, size):
            yield {name: array[start : start + size] for name, array in arrays.items()}

    return input_fn
