"""TensorRT-RTX's runtime cache on disk: the kernels that an engine's contexts compiled, per GPU and version.

The first context of an engine compiles its kernels for the GPU at hand, which takes seconds; with the cache of an
earlier process it takes milliseconds. An entry is two files beside each other: the bytes, and a JSON sidecar that says
what they are. They are trusted only when every line of the sidecar is as expected, and never unpickled.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

from rewriter.artifact.manifest import FileRecord
from rewriter.building.cache_entry import copy_and_hash, make_folder, write_json
from rewriter.runtime.other_errors import first_line
from rewriter.temporary import TemporaryFolder

FORMAT = "trt-rewriter runtime cache"
#: Raised whenever the layout changes; entries of any other version are misses.
SCHEMA_VERSION = 1

_LOG = logging.getLogger(__name__)


class RuntimeCacheFile:
    """The place of one engine's runtime cache for one GPU and one version of TensorRT-RTX.

    The file name is a hash of all three, so several GPUs and versions live side by side in one folder. Not thread-safe;
    several processes may use one folder: the last one to write wins, and a reader never takes half of an entry.

    Args:
        folder: made when the first entry is written, for this user alone.
        key: cache key of the engine.
        gpu: name and compute capability, "NVIDIA L4, 8.9".
        version: of TensorRT-RTX.

    Attributes:
        hits: how often `read` found something.
        misses: why it did not -> how often.
        writes: how often files were written.
        failed_writes: why they were not -> how often.
    """

    def __init__(self, folder: Path, key: str, gpu: str, version: str) -> None:
        self.folder = folder
        self._identity = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "key": key,
            "gpu": gpu,
            "version": version,
        }
        self.hits = 0
        self.misses: collections.Counter[str] = collections.Counter()
        self.writes = 0
        self.failed_writes: collections.Counter[str] = collections.Counter()
        self._known: FileRecord | None = None  # what lies on the disk, as far as this process has seen

    @property
    def path(self) -> Path:
        """The file with the bytes; its sidecar has the suffix ".json"."""
        name = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:32]
        return self.folder / f"{name}.cache"

    @property
    def sidecar(self) -> Path:
        """The JSON file that says what the bytes are."""
        return self.path.with_suffix(".json")

    def read(self) -> bytes | None:
        """What was written for this engine, GPU and version.

        None when there is nothing that can be trusted; that is counted, with its reason.
        """
        self._known = None
        try:
            data, found = self._trusted()
        except _MissError as error:
            self._miss(str(error))
            return None
        except FileNotFoundError:
            self._miss("there is none")
            return None
        except OSError as error:
            self._miss(f"it cannot be read: {error.strerror or first_line(error)}")
            return None
        self._known = found
        self.hits += 1
        return data

    def refuse(self, reason: str) -> None:
        """Counts what was read as a miss after all: TensorRT cannot use it. The next `write` replaces it."""
        self.hits -= 1
        self._miss(reason)
        self._known = None

    def write(self, data: bytes) -> bool:
        """Writes the cache, atomically; equal bytes are not written again.

        Returns:
            True when the folder holds these bytes now. False when it cannot be written to: that is counted, told once
            per folder, and no failure, for everything works without.
        """
        record = FileRecord(len(data), hashlib.sha256(data).hexdigest())
        if record == self._known and self.path.is_file() and self.sidecar.is_file():
            return True
        try:
            make_folder(self.folder)
            with TemporaryFolder(".new-", self.folder) as scratch:
                fresh, sidecar = scratch / "cache", scratch / "json"
                copy_and_hash(io.BytesIO(data), fresh, durable=True)
                write_json(sidecar, {**self._identity, "size": record.size, "sha256": record.sha256})
                fresh.replace(self.path)
                sidecar.replace(self.sidecar)
        except OSError as error:
            reason = error.strerror or first_line(error)
            self.failed_writes[reason] += 1
            _tell_once(os.fspath(self.folder), reason)
            return False
        self.writes += 1
        self._known = record
        return True

    def _trusted(self) -> tuple[bytes, FileRecord]:
        expected = self._expected()
        data = self.path.read_bytes()
        found = FileRecord(len(data), hashlib.sha256(data).hexdigest())
        if found != expected:
            raise _MissError("its bytes are not those that were written")
        return data, found

    def _expected(self) -> FileRecord:
        """What the sidecar says of the bytes.

        Raises:
            _MissError: it is damaged, or speaks of something else.
            OSError: it cannot be read.
        """
        try:
            found: Any = json.loads(self.sidecar.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise _MissError("its sidecar is damaged") from error
        if not isinstance(found, dict):
            raise _MissError("its sidecar is damaged")
        for name, value in self._identity.items():
            if type(found.get(name)) is not type(value) or found[name] != value:
                raise _MissError(f"its {name} is another one")
        size, sha256 = found.get("size"), found.get("sha256")
        if type(size) is not int or not isinstance(sha256, str):
            raise _MissError("its sidecar is damaged")
        return FileRecord(size, sha256)

    def _miss(self, reason: str) -> None:
        self.misses[reason] += 1
        _LOG.debug("runtime cache %s: %s", self.path, reason)


class _MissError(ValueError):
    """What lies there cannot be used; the message is the reason."""


@functools.lru_cache(maxsize=256)
def _tell_once(folder: str, reason: str) -> None:
    _LOG.warning(
        "runtime cache %s cannot be written (%s): kernels are compiled again when the engines are loaded next time",
        folder,
        reason,
    )
