"""Inputs from files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from rewriter.errors import InputError


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
