"""Engines on disk, shared by conversions and processes: a folder of entries under content keys.

    cache/ <key>/engine  <key>/entry.json  failures/<key>.json

An entry is made whole under another name and then renamed, so that it is there with both files or not at all, however
many processes store it at once. What it holds is checked whenever it is read: sidecar, key, size and sha256. Nothing
that goes wrong in the folder fails a conversion: it costs a build, and is counted with its reason.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewriter.artifact.manifest import FileRecord, sync_directory
from rewriter.backends.base import BuildFailure, BuiltEngine
from rewriter.building.cache_entry import (
    ENGINE_FILE,
    FORMAT,
    SCHEMA_VERSION,
    SIDECAR_FILE,
    DamagedError,
    check_folder,
    copy_and_hash,
    entry_size,
    last_used,
    make_folder,
    read_entry,
    write_json,
)
from rewriter.errors import InvalidParameterError
from rewriter.reports.report import CacheStats

FAILURE_FORMAT = "trt-rewriter failed build"
#: What the engines of a folder may take together, bytes.
DEFAULT_MAX_BYTES = 8 << 30
FAILURES_DIR = "failures"
#: Kinds of failure that say something about the nodes, and would come again.
LASTING_FAILURES = ("unsupported",)
#: Failures remembered in a folder; the oldest go first.
MAX_FAILURES = 4096

_LOG = logging.getLogger(__name__)
_KEY = re.compile(r"[0-9a-f]{16,64}")
_TEMPORARY = ".part-"
#: Nanoseconds after which a folder that a process left half made is taken for abandoned.
_ABANDONED = 24 * 3600 * 10**9


class EngineCache:
    """A folder of engines that outlives the process; safe for threads and for several processes at once.

    Rules:
        1. A hit is copied, so that neither removal here nor a change of the copy touches the other.
        2. An entry that is damaged or foreign is a miss, counted with its reason, and removed.
        3. A folder that cannot be read or written is told once for each reason, counted, and done without.
        4. Above `max_bytes` what was not used for longest goes first, never what was just stored.

    Args:
        directory: the folder; made, for this user alone, when something is stored first.
        max_bytes: what all entries may take together.

    Raises:
        InvalidParameterError: the path is empty or a file, or max_bytes is no positive integer.
    """

    def __init__(self, directory: str | Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if not isinstance(directory, (str, Path)) or not str(directory) or "\0" in str(directory):
            raise InvalidParameterError(f"engine_cache_dir must be the path of a folder, not {directory!r}")
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise InvalidParameterError(f"engine_cache_max_bytes must be an integer of at least 1, not {max_bytes!r}")
        self.directory = Path(directory).absolute()
        self.max_bytes = max_bytes
        check_folder(self.directory)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._seconds_saved = 0.0
        self._damaged: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    @property
    def stats(self) -> CacheStats:
        """What this object was asked and did so far."""
        with self._lock:
            return CacheStats(
                hits=self._counts["hits"],
                misses=self._counts["misses"],
                known_failures=self._counts["known_failures"],
                stored=self._counts["stored"],
                removed=self._counts["removed"],
                seconds_saved=self._seconds_saved,
                damaged=dict(self._damaged),
                refused=dict(self._refused),
            )

    def get(self, key: str, output: Path) -> BuiltEngine | None:
        """Copies the engine of `key` to `output`; None when there is none, or none that can be trusted.

        Args:
            key: content key of everything that reaches the builder.
            output: the file to write; left alone (or removed) when there is no hit. Its folder must exist.

        Returns:
            The engine; its `seconds` are those of the copy.
        """
        started = time.perf_counter()
        entry = self._entry(key)
        facts = None
        try:
            facts = read_entry(entry, key, output)
        except DamagedError as error:
            self._count_reason(self._damaged, str(error), f"cached engine {key}: {error}: built again")
            self._remove(entry)
        except OSError as error:
            self._refuse("read", error)
        if facts is None:
            self._count("misses")
            return None
        with contextlib.suppress(OSError):  # a folder of another user, or read-only: its order of use stays as it is
            os.utime(entry / SIDECAR_FILE)
        with self._lock:
            self._counts["hits"] += 1
            self._seconds_saved += facts["seconds"]
        _LOG.debug("cached engine %s: %d bytes", key, facts["size"])
        return BuiltEngine(
            output, facts["size"], facts["sha256"], facts["layers"], round(time.perf_counter() - started, 3)
        )

    def put(self, key: str, engine: BuiltEngine, facts: Mapping[str, Any]) -> None:
        """Stores a copy of an engine, unless another process was faster; then makes room.

        Args:
            key: content key of everything that reaches the builder.
            engine: the engine; its file is only read.
            facts: what the key was made of, for people who look into the folder (plain data).
        """
        entry = self._entry(key)
        if engine.size > self.max_bytes:
            self._refuse("store", f"larger than the whole cache may be ({self.max_bytes:,} bytes)")
            return
        content = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "key": key,
            "size": engine.size,
            "sha256": engine.sha256,
            "layers": engine.layers,
            "seconds": engine.seconds,
            "created": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "facts": dict(facts),
        }
        try:
            make_folder(self.directory)
            stored = self._store(entry, engine, content)
        except OSError as error:
            self._refuse("store", error)
            return
        if stored:
            self._count("stored")
        else:
            self._refuse("store", "another process stored it first")
        self._make_room(key)

    def known_failure(self, key: str, context: str) -> BuildFailure | None:
        """The failure that an earlier build of `key` ended with; None when none is remembered.

        Args:
            key: content key of everything that reaches the builder.
            context: what the key leaves out and the failure may depend on, as node names that its log has.
        """
        path = self._failure_file(key, context)
        try:
            data = json.loads(path.read_text("utf-8"))
            if (data["format"], data["schema_version"]) != (FAILURE_FORMAT, SCHEMA_VERSION):
                raise ValueError("another format")
            if data["key"] != key or data["kind"] not in LASTING_FAILURES:
                raise ValueError("another key or kind")
            failure = BuildFailure(data["kind"], str(data["reason"]), tuple(str(line) for line in data["log"]))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._refuse("read", error)
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            self._count_reason(self._damaged, "failure record is damaged", f"{path} is damaged: built again")
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        self._count("known_failures")
        return failure

    def remember_failure(self, key: str, context: str, failure: BuildFailure) -> None:
        """Remembers that `key` cannot be built, when the failure speaks of the nodes and TensorRT said why.

        Args:
            key: content key of everything that reaches the builder.
            context: as for `known_failure`.
            failure: what came of the build; memory, crashes, a missing GPU and so on are not remembered.
        """
        if failure.kind not in LASTING_FAILURES or not failure.log:
            return
        content = {
            "format": FAILURE_FORMAT,
            "schema_version": SCHEMA_VERSION,
            "key": key,
            "kind": failure.kind,
            "reason": failure.reason,
            "log": list(failure.log),
        }
        path = self._failure_file(key, context)
        try:
            make_folder(self.directory)
            make_folder(path.parent)
            part = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.directory))
            try:
                write_json(part / path.name, content)
                (part / path.name).replace(path)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            for old in sorted(path.parent.glob("*.json"), key=last_used)[:-MAX_FAILURES]:
                old.unlink(missing_ok=True)
        except OSError as error:
            self._refuse("store", error)

    def _entry(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key: hexadecimal digits are")
        return self.directory / key

    def _failure_file(self, key: str, context: str) -> Path:
        digest = hashlib.sha256(f"{self._entry(key).name}\n{context}".encode()).hexdigest()[:32]
        return self.directory / FAILURES_DIR / f"{digest}.json"

    def _store(self, entry: Path, engine: BuiltEngine, content: Mapping[str, Any]) -> bool:
        """Makes the entry beside its place and renames it there; False when one is there already."""
        part = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.directory))
        try:
            with engine.path.open("rb") as source:
                copied = copy_and_hash(source, part / ENGINE_FILE, durable=True)
            if copied != FileRecord(engine.size, engine.sha256):
                raise OSError(f"{engine.path.name} has changed since it was built")
            write_json(part / SIDECAR_FILE, content)
            part.chmod(stat.S_IMODE(self.directory.stat().st_mode))
            sync_directory(part)
            try:
                part.rename(entry)  # onto a folder that holds something this fails, on every system
            except OSError:
                if entry.is_dir():
                    return False
                raise
            sync_directory(self.directory)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return True

    def _make_room(self, kept: str) -> None:
        """Removes what was not used for longest until all fits, and what dead processes left behind."""
        entries = []
        try:
            for path in self.directory.iterdir():
                if _KEY.fullmatch(path.name):
                    entries.append((last_used(path / SIDECAR_FILE), path, entry_size(path)))
                elif path.name.startswith(_TEMPORARY) and time.time_ns() - last_used(path) > _ABANDONED:
                    shutil.rmtree(path, ignore_errors=True)
        except OSError as error:
            self._refuse("make room", error)
            return
        total = sum(size for _, _, size in entries)
        for _, path, size in sorted(entries):
            if total <= self.max_bytes:
                return
            if path.name != kept:
                total -= size  # gone in either case: if not by us, then by another process
                if self._remove(path):
                    self._count("removed")

    def _remove(self, entry: Path) -> bool:
        """Takes an entry away whole; False when it was gone already or cannot be removed."""
        aside = None
        try:
            aside = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.directory))
            entry.rename(aside / entry.name)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self._refuse("remove", error)
            return False
        finally:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
        return True

    def _refuse(self, verb: str, error: OSError | str) -> None:
        words = error if isinstance(error, str) else (error.strerror or str(error))
        reason = f"cannot {verb}: {words}"
        self._count_reason(self._refused, reason, f"engine cache {self.directory}: {reason}")

    def _count_reason(self, counter: Counter[str], reason: str, message: str) -> None:
        with self._lock:
            counter[reason] += 1
            first = counter[reason] == 1
        _LOG.log(logging.WARNING if first else logging.DEBUG, "%s", message)

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1


def open_cache(directory: str | Path | None, max_bytes: int | None) -> EngineCache | None:
    """The cache that a conversion is told to use; None for none.

    Args:
        directory: its folder (`engine_cache_dir`).
        max_bytes: its cap (`engine_cache_max_bytes`); None for `DEFAULT_MAX_BYTES`.

    Raises:
        InvalidParameterError: as `EngineCache`; or a cap is given without a folder.
    """
    if directory is not None:
        return EngineCache(directory, DEFAULT_MAX_BYTES if max_bytes is None else max_bytes)
    if max_bytes is not None:
        raise InvalidParameterError("engine_cache_max_bytes needs engine_cache_dir: there is no cache without a folder")
    return None
