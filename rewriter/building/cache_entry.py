"""One entry of the engine cache: how it is written, and what is checked when it is read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from rewriter.artifact.manifest import FileRecord
from rewriter.errors import InvalidParameterError

FORMAT = "trt-rewriter cached engine"
#: Raised whenever the layout of an entry changes; entries of any other version are no hits.
SCHEMA_VERSION = 1
ENGINE_FILE = "engine"
SIDECAR_FILE = "entry.json"

_LOG = logging.getLogger(__name__)
_CHUNK = 4 << 20


class DamagedError(ValueError):
    """An entry that is not what its key promises; the message is the reason."""


def check_folder(directory: Path) -> None:
    """Refuses a path that can never be a folder; tells of a folder in which others can put engines.

    Raises:
        InvalidParameterError: it is a file, or lies below one.
    """
    for path in (directory, *directory.parents):
        if os.path.lexists(path):
            if not path.is_dir():
                raise InvalidParameterError(f"engine_cache_dir must be a folder, and {path} is none")
            break
    if os.name == "posix" and directory.is_dir() and directory.stat().st_mode & 0o022:
        _LOG.warning("engine cache %s: other users may write there, and TensorRT runs what engines hold", directory)


def make_folder(directory: Path) -> None:
    """Makes a folder for this user alone; one that is there keeps its permissions."""
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)


def read_entry(entry: Path, key: str, output: Path) -> dict[str, Any] | None:
    """Checks an entry and copies its engine to `output`; None when there is no such entry.

    Raises:
        DamagedError: it is not what it should be; then `output` is gone.
        OSError: it cannot be read, or `output` not written.
    """
    while (before := _identity(entry)) is not None:
        try:
            return _read_files(entry, key, output)
        except DamagedError:
            if _identity(entry) == before:
                raise
            # Another process removed or replaced it meanwhile, and its files were not all of one entry.
    return None


def _identity(entry: Path) -> tuple[int, int] | None:
    """What a folder of the same name that is made later has not; None for an entry that is gone.

    Raises:
        DamagedError: there is something else than a folder.
    """
    try:
        found = entry.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(found.st_mode):
        raise DamagedError("not a folder")
    return found.st_ino, found.st_ctime_ns


def _read_files(entry: Path, key: str, output: Path) -> dict[str, Any]:
    try:
        facts = _checked(_read_json(entry / SIDECAR_FILE), key)
        with (entry / ENGINE_FILE).open("rb") as source:
            if os.fstat(source.fileno()).st_size != facts["size"]:
                raise DamagedError("size differs")
            copied = copy_and_hash(source, output)
    except (FileNotFoundError, IsADirectoryError) as error:
        missing = Path(error.filename or "")
        if missing.parent != entry:  # the fault lies with `output`
            raise
        raise DamagedError(f"no file {missing.name}") from error
    if copied != FileRecord(facts["size"], facts["sha256"]):
        output.unlink(missing_ok=True)
        raise DamagedError("sha256 differs")
    return facts


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedError("sidecar is damaged") from error


def _checked(data: Any, key: str) -> dict[str, Any]:
    """The sidecar's content once it is what this program writes for `key`."""
    if not isinstance(data, dict) or (data.get("format"), data.get("schema_version")) != (FORMAT, SCHEMA_VERSION):
        raise DamagedError("unknown format")
    if data.get("key") != key:
        raise DamagedError("another key")
    checks: dict[str, Callable[[Any], bool]] = {
        "size": lambda value: type(value) is int and value > 0,
        "layers": lambda value: type(value) is int and value >= 0,
        "seconds": lambda value: type(value) in (int, float) and 0 <= value < float("inf"),
        "sha256": lambda value: isinstance(value, str),
    }
    for name, fits in checks.items():
        if not fits(data.get(name)):
            raise DamagedError("sidecar is damaged")
    return data


def copy_and_hash(source: BinaryIO, target: Path, *, durable: bool = False) -> FileRecord:
    """Copies a file and hashes what it copies; a copy cut short is removed.

    The hash is most of the work and leaves Python's lock alone, so it is taken in a thread while the next piece is
    read and written. When Python is ending, which is when runtime caches are often saved, it starts no thread any more:
    then the hash is taken in between.

    Args:
        source: open for reading.
        target: the file to write.
        durable: True waits until the copy is on the disk.
    """
    digest = hashlib.sha256()
    size = 0
    try:
        with target.open("wb") as copy, ThreadPoolExecutor(1) as hashing:
            hashed: Future[None] | None = None
            while chunk := source.read(_CHUNK):
                if hashed is not None:  # at most two pieces are in memory
                    hashed.result()
                hashed = _beside(hashing, digest.update, chunk)
                copy.write(chunk)
                size += len(chunk)
            if durable:
                copy.flush()
                os.fsync(copy.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return FileRecord(size, digest.hexdigest())


def _beside(threads: ThreadPoolExecutor, work: Callable[[bytes], None], chunk: bytes) -> Future[None]:
    """Starts the work in a thread; does it at once where no thread can be started."""
    try:
        return threads.submit(work, chunk)
    except RuntimeError:
        done: Future[None] = Future()
        work(chunk)
        done.set_result(None)
        return done


def write_json(path: Path, data: object) -> None:
    """Writes plain data as JSON and waits until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def last_used(path: Path) -> int:
    """When a file was last written or touched, in nanoseconds; 0 for one that is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def entry_size(entry: Path) -> int:
    """Bytes of an entry's files; 0 for one that is gone."""
    try:
        return sum(path.stat().st_size for path in entry.iterdir())
    except OSError:
        return 0
