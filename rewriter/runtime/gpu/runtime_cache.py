"""TensorRT-RTX's runtime cache on disk: the kernels that an engine's first context compiled, per GPU and version."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass
class RuntimeCacheFile:
    """The place of one engine's runtime cache."""

    folder: Path
    key: str
    gpu: str
    version: str

    def read(self) -> bytes | None:
        """What was written for this engine, GPU and version; None when there is nothing that can be trusted."""
        return None

    def write(self, data: bytes) -> bool:
        """Writes the cache; True when it is there afterwards."""
        return bool(data) and False
