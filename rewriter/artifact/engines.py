"""Engines that were built after the conversion, added to an artifact on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from passes.base import PassError
from passes.engine_node import read_engines
from rewriter.artifact import manifest as manifests
from rewriter.artifact.check import examine_files
from rewriter.artifact.manifest import EngineEntry, FileRecord, Manifest, Part, engine_file, sidecar_file
from rewriter.artifact.manifest_json import manifest_from_json, manifest_to_json
from rewriter.artifact.parts import Artifact
from rewriter.artifact.paths import checked_path, output_errors
from rewriter.artifact.reading import RETRIES, read_manifest, read_ranges, state_of
from rewriter.artifact.writing import place_engine, write_json
from rewriter.errors import ArtifactError
from rewriter.runtime.slot_values import StoredEngine

_log = logging.getLogger(__name__)


def save_engines(
    path: str | Path,
    engines: Sequence[StoredEngine],
    signature: str | None = None,
    *,
    built_from: Artifact | None = None,
) -> tuple[StoredEngine, ...]:
    """Adds engines to an artifact.

    Rules:
        1. Files first, the manifest last and by one rename: whatever goes wrong, and whenever the machine stops, the
           artifact is valid, with the engines or without. (After a stop, files that no manifest lists may be left.)
        2. An engine whose node and key the signature has already is skipped, unless its file there is damaged or gone.
           Where only another signature has it, its file serves both: no other build takes its place.
        3. Processes that add engines at once wait for each other (a lock on the folder, where the system has one);
           when the manifest changes meanwhile in spite of it, all is read again and nothing of the other's is lost.
        4. Only the manifest is changed, and it is what `load_artifact` reads. `model.onnx` and `report.json` go on
           naming the engines of the conversion: two files cannot be changed in one step, and a model that does not
           fit the manifest's hash would be refused.
        5. The parameter "targets" of the signature, where it names any, then names those of the new engines, too, in
           the same step: so that engines built at run time fit wherever the artifact is used. A target for which
           another node with engines has none stays out: TensorRT may refuse that node for it, and with it every
           engine that is for all targets.

    Engines of a node may be more than `maximum_cached_engines`, which limits those in memory.

    Args:
        path: the artifact's folder.
        engines: the engines; their files are linked or copied. Of none only the artifact's manifest is checked.
        signature: whose engines they are; None for the artifact's first or only one.
        built_from: the artifact as it was read before they were built; None where that is not known.

    Returns:
        Those that were added, with their files in the artifact.

    Raises:
        InvalidParameterError: the artifact has no such signature.
        ArtifactError: no artifact, an engine that belongs to another model or has changed since it was built, the
            artifact is another one than `built_from`, or the folder cannot be written.
    """
    root = checked_path(path).resolve()
    for _ in range(RETRIES + 1):
        before = state_of(root)
        content = manifest_from_json(read_manifest(root), str(root))
        part = content.part(signature, str(root))
        if not engines:
            return ()
        with output_errors(root), _locked(root):
            if state_of(root) != before:
                continue
            _check_nodes(root, part.model, engines)
            _check_arithmetic(root, content, part, built_from)
            missing, taken = _missing(root, content, part, engines)
            added = [*(stored.entry for stored in missing), *taken]
            if not added or _write(root, content, part, missing, taken, before):
                _log.info("%s: %d of %d engines added", root, len(added), len(engines))
                return tuple(StoredEngine(entry, root / entry.file) for entry in added)
    raise ArtifactError(f"{root} is changed again and again by another process: save the engines when that is over")


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keeps other processes and threads that add engines out; a crash frees the lock. Does nothing on Windows."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder = os.open(root, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: the manifest is compared all the same
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _check_nodes(root: Path, model: str, engines: Sequence[StoredEngine]) -> None:
    """Refuses engines of nodes that the artifact's model does not have, or has with another segment."""
    try:
        proto = onnx.load(root / model, load_external_data=False)
        known = {op: attributes.segment_hash for _, attributes, op in read_engines(proto)}
    except (DecodeError, PassError) as error:
        raise ArtifactError(f"{root}: {model} is damaged: {error}") from error
    for stored in engines:
        entry = stored.entry
        if entry.op not in known:
            raise ArtifactError(f"{root} has no engine node {entry.op}: its engine belongs to another artifact")
        if known[entry.op] != entry.segment_hash:
            raise ArtifactError(
                f"{root}: the segment of {entry.op} is not the one that engine {entry.key} was built of"
            )


def _check_arithmetic(root: Path, content: Manifest, part: Part, built_from: Artifact | None) -> None:
    """Refuses engines where the artifact has another recipe or other ranges than when they were begun."""
    if built_from is None:
        return
    ranges, old = read_ranges(root, part.ranges, content.files), built_from.ranges
    if part.params.get("recipe") != built_from.params.get("recipe") or ranges != old:
        raise ArtifactError(
            f"{root} was replaced while engines were built for it, and its recipe or calibration is another one now: "
            "build them again"
        )


def _missing(
    root: Path, content: Manifest, part: Part, engines: Sequence[StoredEngine]
) -> tuple[list[StoredEngine], list[EngineEntry]]:
    """What the part does not hold in good order, each once: engines to be written, and entries of other parts' files.

    Signatures with equal segments have engines of one node and key, and so one file.
    """
    listed = content.files
    known = {
        entry.file: entry
        for other in (*content.parts, part)
        for entry in other.engines
        if listed.get(entry.file) == FileRecord(entry.size, entry.sha256)
    }
    missing: dict[str, StoredEngine] = {}
    taken: dict[str, EngineEntry] = {}
    for stored in engines:
        file = stored.entry.file
        if file not in known or not _is_whole(root, listed, file):
            missing.setdefault(file, stored)
        elif known[file] not in part.engines:
            taken[file] = known[file]
    return list(missing.values()), list(taken.values())


def _is_whole(root: Path, listed: Mapping[str, FileRecord], engine: str) -> bool:
    """True when an engine file and its sidecar lie there as the manifest says."""
    names = (engine, sidecar_file(engine))
    files = {name: listed[name] for name in names if name in listed}
    return len(files) == len(names) and not examine_files(root, files, check_hashes=True)


def _grown(
    content: Manifest, part: Part, added: Sequence[StoredEngine], taken: Sequence[EngineEntry]
) -> tuple[Part, ...]:
    """All parts with the new entries: `part` gets each, another one in the place of what it had for the same file."""
    written = {s.entry.file: dataclasses.replace(s.entry, problem="") for s in added}
    more = {**written, **{entry.file: entry for entry in taken}}
    parts = []
    for other in content.parts:
        engines = tuple(written.get(entry.file, entry) for entry in other.engines)
        params = other.params
        if other is part:
            held = {entry.file for entry in other.engines}
            engines = tuple(more.get(entry.file, entry) for entry in other.engines)
            engines += tuple(entry for file, entry in more.items() if file not in held)
            params = _with_targets(params, more.values(), engines)
        parts.append(dataclasses.replace(other, engines=engines, params=params))
    return tuple(parts)


def _with_targets(
    params: Mapping[str, Any], new: Iterable[EngineEntry], engines: Iterable[EngineEntry]
) -> Mapping[str, Any]:
    """The parameters with the targets of new engines that every node is served for; none mean all, which stays.

    Args:
        params: of the signature.
        new: its new engines.
        engines: all its engines.
    """
    known = params.get("targets")
    if not known:
        return params
    served: dict[str, set[str]] = {}
    for entry in engines:
        served.setdefault(entry.op, set()).update(entry.targets)
    common = set.intersection(*served.values())
    more = (target for entry in new for target in entry.targets if target in common)
    return {**params, "targets": list(dict.fromkeys([*known, *more]))}


def _write(
    root: Path,
    content: Manifest,
    part: Part,
    added: Sequence[StoredEngine],
    taken: Sequence[EngineEntry],
    before: tuple[int, int, bytes] | None,
) -> bool:
    """Writes files and manifest; False when the manifest is another one by now, and then nothing is left behind."""
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
    placed: list[Path] = []
    try:
        records = _prepare(scratch, added)
        parts = _grown(content, part, added, taken)
        merged = dataclasses.replace(content, parts=parts, files={**content.files, **records})
        manifest = scratch / manifests.MANIFEST_FILE
        write_json(manifest, manifest_to_json(merged))
        for name in records:
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name not in content.files:
                placed.append(target)
            (scratch / name).replace(target)
        for folder in {(root / name).parent for name in records}:
            manifests.sync_directory(folder)
        if state_of(root) != before:
            _remove(root, placed)
            return False
        manifest.replace(root / manifests.MANIFEST_FILE)
        manifests.sync_directory(root)
    except BaseException:
        _remove(root, placed)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def _prepare(scratch: Path, added: Sequence[StoredEngine]) -> dict[str, FileRecord]:
    """Puts engines and sidecars into the scratch folder, laid out as in the artifact; their records."""
    records: dict[str, FileRecord] = {}
    for stored in added:
        entry = stored.entry
        place_engine(scratch, entry, stored.path)
        for name in (engine_file(entry.op, entry.key), sidecar_file(entry.file)):
            _sync_file(scratch / name)
            records[name] = manifests.hash_file(scratch / name)
        if records[entry.file] != FileRecord(entry.size, entry.sha256):
            raise ArtifactError(
                f"engine {entry.op} has changed since it was built ({stored.path}): load the artifact and build again"
            )
    return records


def _sync_file(path: Path) -> None:
    """Waits until a file is on the disk: the manifest must not get there before it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(root: Path, placed: Sequence[Path]) -> None:
    """Takes away files of ours that the manifest does not list; none when it cannot be read."""
    try:
        listed = json.loads((root / manifests.MANIFEST_FILE).read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for path in placed:
        if path.relative_to(root).as_posix() not in listed:
            path.unlink(missing_ok=True)
