"""`manifest.json`: what an artifact holds, as values.

The manifest is the only index of an artifact: a file that it does not list is not read. Every listed file carries its
size and sha256, and every path is relative, in POSIX spelling, and stays inside the artifact's directory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import math
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rewriter.backends.base import InputProfile, Profile
from rewriter.errors import ArtifactError, InvalidParameterError
from rewriter.source import Signature

#: What `manifest.json` says it is.
FORMAT = "trt-rewriter artifact"
#: Raised whenever an older reader would misread a newer artifact.
SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
REPORT_FILE = "report.json"
RANGES_FILE = "calibration.json"
ENGINES_DIR = "engines"

_CHUNK = 1 << 20
#: Files that are hashed at once.
_THREADS = 4
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
#: Distributions whose versions are worth knowing when an artifact misbehaves later.
_DISTRIBUTIONS = (
    "trt-rewriter", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorflow", "tensorflow-cpu", "keras",
    "tf-keras", "tf2onnx", "tensorrt", "tensorrt-rtx-cu13",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 (hex) of one file of an artifact."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class EngineEntry:
    """One serialised engine of an artifact.

    Attributes:
        op: op_type of the engine node that it belongs to, "TRTEngineOp_000".
        key: the engine's cache key; it names the file.
        size: bytes.
        sha256: hex digest of the file.
        backend: the package that built it, "tensorrt_rtx" or "tensorrt".
        version: that package's version; engines are bound to it.
        targets: compute capabilities that it was built for, as "SM89".
        profiles: optimization profiles, in the engine's order; () for static shapes.
        precision: label of the segment's recipe: "FP32", "INT8+FP16" ...
        segment_hash: `SegmentModel.content_hash` of the segment.
        problem: why this engine cannot be used; "" when it can. Never saved: `load_artifact` finds out.
    """

    op: str
    key: str
    size: int
    sha256: str
    backend: str
    version: str
    targets: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    precision: str = "FP32"
    segment_hash: str = ""
    problem: str = ""

    @property
    def file(self) -> str:
        """The engine's path inside the artifact."""
        return engine_file(self.op, self.key)

    @property
    def usable(self) -> bool:
        """True when nothing is known against it."""
        return not self.problem


@dataclasses.dataclass(frozen=True)
class Part:
    """One signature of an artifact.

    Attributes:
        signature: what the user calls; its name is unique within the artifact.
        params: the conversion parameters in force for it.
        engines: the engines of its engine nodes.
        model, report, ranges: its files; `ranges` is listed only where something was calibrated.
    """

    signature: Signature
    params: Mapping[str, Any]
    engines: tuple[EngineEntry, ...]
    model: str = MODEL_FILE
    report: str = REPORT_FILE
    ranges: str = RANGES_FILE


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        created: UTC time of the conversion, ISO 8601.
        versions: distribution name -> version at conversion.
        parts: the signatures, the default one first. Its fields stand at the top of the JSON, those of the others in a
            list "more_signatures": readers that know one signature only see the first.
        files: relative path -> size and hash of every file.
    """

    created: str
    versions: Mapping[str, str]
    parts: tuple[Part, ...]
    files: Mapping[str, FileRecord]

    def part(self, name: str | None, where: str) -> Part:
        """The part of a signature; of the first one for None.

        Args:
            name: the signature.
            where: the artifact, for the message.

        Raises:
            InvalidParameterError: there is no such signature; the message lists those there are.
        """
        for part in self.parts:
            if name is None or part.signature.name == name:
                return part
        known = ", ".join(repr(part.signature.name) for part in self.parts)
        raise InvalidParameterError(f"{where} has no signature {name!r}; it has: {known}")


def part_files(number: int) -> tuple[str, str, str]:
    """(model, report, ranges): the files of the signature with that number, 0 for the first."""
    if not number:
        return MODEL_FILE, REPORT_FILE, RANGES_FILE
    stems = (name.rpartition(".") for name in (MODEL_FILE, REPORT_FILE, RANGES_FILE))
    model, report, ranges = (f"{stem}.{number}.{suffix}" for stem, _, suffix in stems)
    return model, report, ranges


def engine_file(op: str, key: str) -> str:
    """Where the engine of node `op` with cache key `key` lies inside an artifact.

    Raises:
        ArtifactError: a part is no plain file name.
    """
    for part in (op, key):
        if not _SAFE_NAME.fullmatch(part):
            raise ArtifactError(
                f"engine {op!r}: {part!r} cannot be a file name; use letters, digits, '_', '-', '.', '+'"
            )
    return f"{ENGINES_DIR}/{op}/{key}.engine"


def sidecar_file(engine: str) -> str:
    """The JSON file beside an engine file."""
    return engine.removesuffix(".engine") + ".json"


def hash_file(path: Path) -> FileRecord:
    """Size and sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(_CHUNK))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return FileRecord(size, digest.hexdigest())


def hash_files(folder: Path, names: Sequence[str], known: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
    """Sizes and hashes of the files with these names in a folder, a few files at a time.

    Args:
        folder: where they lie.
        names: their names, in the order of the result.
        known: the records of files that need not be read.
    """

    def record(name: str) -> FileRecord:
        return known.get(name) or hash_file(folder / name)

    with ThreadPoolExecutor(_THREADS) as pool:  # reading and hashing let other threads run
        return dict(zip(names, pool.map(record, names), strict=True))


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable, where the system lets a directory be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that matter, read from their metadata; nothing is imported."""
    versions = {}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def plain(value: object, where: str) -> Any:
    """`value` as JSON knows it: tuples become lists, non-finite floats their names.

    Raises:
        ArtifactError: something that JSON has no word for; the message names where it is.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise ArtifactError(f"{where} is a {type(value).__name__}, which JSON cannot hold: give it as text or numbers")


def entry_to_json(entry: EngineEntry) -> dict[str, Any]:
    """The JSON form of an engine entry: its manifest line and its sidecar."""
    return {
        "op": entry.op,
        "key": entry.key,
        "file": entry.file,
        "size": entry.size,
        "sha256": entry.sha256,
        "backend": entry.backend,
        "version": entry.version,
        "targets": list(entry.targets),
        "precision": entry.precision,
        "segment_hash": entry.segment_hash,
        "profiles": [profile_to_json(profile) for profile in entry.profiles],
    }


def entry_summary(entry: EngineEntry) -> dict[str, Any]:
    """What tells an engine from others, as the commands that add engines print it with `--json`."""
    told = {"op": entry.op, "key": entry.key, "backend": entry.backend, "version": entry.version}
    return {**told, "targets": list(entry.targets), "size": entry.size}


def profile_to_json(profile: Profile) -> dict[str, Any]:
    """The JSON form of an optimization profile (also that of the node attribute `profiles`)."""
    return {
        name: {
            "min": list(item.minimum),
            "opt": list(item.optimum),
            "max": list(item.maximum),
            "values": item.is_values,
        }
        for name, item in profile.items()
    }


def profile_from_json(data: Mapping[str, Any]) -> dict[str, InputProfile]:
    """The inverse of `profile_to_json`."""
    profile = {}
    for name, item in data.items():
        low, best, high = (tuple(int(number) for number in item[bound]) for bound in ("min", "opt", "max"))
        profile[name] = InputProfile(low, best, high, bool(item.get("values", False)))
    return profile
