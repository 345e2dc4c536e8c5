"""Inputs from files."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewriter.errors import InputError

if TYPE_CHECKING:
    import numpy as np


def read_npz(path: str) -> dict[str, Any]:
    """The arrays of an .npz file.

    Raises:
        InputError: it is none, or is damaged.
    """
    import numpy as np

    try:
        if Path(path).is_file() and not zipfile.is_zipfile(path):
            raise InputError(f"{path!r} is no .npz file, or is damaged: write one with numpy.savez, an array an input")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read the inputs {path!r} as an .npz file: {error}") from error


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
