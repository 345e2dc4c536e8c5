"""Gives every weight a place in a file, so that another process can map it instead of being sent it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from passes.model import Model, is_file_map, is_stub
from rewriter.temporary import TemporaryFolder, finalize_here


class WeightPlaces:
    """Places of weights by array identity; arrays that are no file maps are written out once.

    A written file lives as long as its array. Not thread-safe.
    """

    def __init__(self) -> None:
        self._folder: TemporaryFolder | None = None
        self._known: dict[int, Path] = {}
        self._count = 0

    def of(self, model: Model) -> list[dict[str, Any]]:
        """For each stub of `model`: name, file, offset and nbytes.

        Raises:
            KeyError: a stub has no array.
            OSError: an array cannot be written out.
        """
        places = []
        for tensor in model.proto.graph.initializer:
            if is_stub(tensor):
                array = model.weights[tensor.name]
                file, offset = self._place(array)
                places.append({"name": tensor.name, "file": file, "offset": offset, "nbytes": int(array.nbytes)})
        return places

    def close(self) -> None:
        """Removes the written files; harmless when repeated."""
        self._known.clear()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def _place(self, array: np.ndarray) -> tuple[str, int]:
        if is_file_map(array):
            assert isinstance(array, np.memmap)  # noqa: S101 - narrows the type
            return str(Path(str(array.filename)).resolve()), int(array.offset)
        key = id(array)
        if key not in self._known:
            self._known[key] = self._write(array)
            finalize_here(array, self._forget, key, self._known[key]).atexit = False
        return str(self._known[key]), 0

    def _write(self, array: np.ndarray) -> Path:
        if self._folder is None:
            self._folder = TemporaryFolder("trt-rewriter-weights-")
        self._count += 1
        path = self._folder.path / f"{self._count}.bin"
        path.write_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return path

    def _forget(self, key: int, path: Path) -> None:
        if self._known.get(key) == path:
            del self._known[key]
        path.unlink(missing_ok=True)
