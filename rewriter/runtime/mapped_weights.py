"""Weights that ONNX Runtime maps from their files itself, instead of copying them into its own memory.

What it is handed as arrays it copies, and copies again while it packs each for its kernels; files it maps, and with
packing switched off it computes from there. That takes longer at every call, but no memory that the system could not
take back at any time: right for a model that is run once or twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from passes.model import Model, is_file_map, is_stub

#: Sets the folder that places of weights are relative to.
_FOLDER = "session.model_external_initializers_file_folder_path"


def has_files(model: Model) -> bool:
    """True when a weight of the model is a map of a file."""
    return any(is_file_map(array) for array in model.weights.values())


def with_places(model: Model, options: Any) -> tuple[ModelProto, Sequence[str]]:
    """A proto whose stubs name file, offset and length where their arrays are maps of files in one folder.

    Args:
        model: its proto is not changed.
        options: `onnxruntime.SessionOptions`; the folder is set in it, and packing of weights switched off.

    Returns:
        The proto, and the names of the stubs in it that have no such place, in order.
    """
    options.add_session_config_entry("session.disable_prepacking", "1")
    proto = model.copy_proto()
    folder: Path | None = None
    left = []
    for tensor in proto.graph.initializer:
        if not is_stub(tensor):
            continue
        place = _place(model.weights[tensor.name])
        if place is None or folder not in (None, place[0].parent):
            left.append(tensor.name)
            continue
        path, offset, size = place
        folder = path.parent
        del tensor.external_data[:]
        for key, value in (("location", path.name), ("offset", str(offset)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
    if folder is not None:
        options.add_session_config_entry(_FOLDER, str(folder))
    return proto, left


def _place(array: np.ndarray) -> tuple[Path, int, int] | None:
    """File, offset and bytes of an array that is a map of a file."""
    if not is_file_map(array):
        return None
    assert isinstance(array, np.memmap)  # noqa: S101 - narrows the type
    return Path(str(array.filename)).resolve(), int(array.offset), int(array.nbytes)
