"""The directory that a conversion leaves behind: written whole or not at all, checked when it is read.

    out/ model.onnx  model.onnx.data  engines/<op>/<key>.engine + .json  calibration.json  manifest.json  report.json

`model.onnx` is the spliced model; any ONNX runtime runs it without the engines. Further signatures are in
`model.1.onnx`, `report.1.json` ... beside it and share the data file, in which equal weights lie once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import glob
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from passes import model as models
from passes.model import Model
from passes.precision.ranges import RangeTable
from rewriter import manifest as manifests
from rewriter.artifact_check import examine_files, examined
from rewriter.artifact_islands import copy_islands, resolve_islands
from rewriter.artifact_paths import check_output, checked_path, is_artifact, output_errors
from rewriter.errors import ArtifactError
from rewriter.manifest import EngineEntry, FileRecord, Manifest, Part, engine_file, part_files
from rewriter.source import Signature
from rewriter.tensor_walk import all_tensors, external_locations

__all__ = [
    "Artifact",
    "ArtifactPart",
    "EngineEntry",
    "check_output",
    "engine_file",
    "is_artifact",
    "load_artifact",
    "save_artifact",
]

_log = logging.getLogger(__name__)
#: How often an artifact that changes while it is read is read again.
RETRIES = 3


@dataclasses.dataclass(frozen=True)
class ArtifactPart:
    """One signature of an artifact that is to be written.

    Attributes:
        model: the spliced model.
        signature: what the user calls.
        params: conversion parameters (plain data).
        report: the conversion's report (plain data).
        engines: entries with the file that holds each engine now: it is hard-linked, or copied in chunks.
        ranges: what calibration found; None writes no `calibration.json`.
    """

    model: Model
    signature: Signature
    params: Mapping[str, Any]
    report: Mapping[str, Any]
    engines: Sequence[tuple[EngineEntry, Path]] = ()
    ranges: RangeTable | None = None


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One signature of a loaded artifact.

    Attributes:
        path: its directory.
        model: the spliced model, weights memory mapped from `model.onnx.data`.
        signature: what the user calls.
        params: the conversion parameters, as JSON keeps them.
        engines: one entry an engine; those that cannot be used carry the reason in `problem`.
        report: the conversion's report.
        versions: distribution name -> version at conversion.
        created: UTC time of the conversion, ISO 8601.
        ranges: what calibration found; None where nothing was calibrated.
        signatures: names of all signatures of the artifact, the default one first.
    """

    path: Path
    model: Model
    signature: Signature
    params: Mapping[str, Any]
    engines: tuple[EngineEntry, ...]
    report: Mapping[str, Any]
    versions: Mapping[str, str]
    created: str
    ranges: RangeTable | None = None
    signatures: tuple[str, ...] = ()

    def engine_path(self, entry: EngineEntry) -> Path:
        """The file of one of `engines`."""
        return self.path / entry.file


def save_artifact(directory: str | Path, part: ArtifactPart, *others: ArtifactPart, overwrite: bool = False) -> Path:
    """Writes an artifact: into a sibling directory first, then renamed into place.

    Whatever goes wrong, `directory` is afterwards what it was before, and nothing is left beside it.

    Args:
        directory: where to; missing parents are made.
        part: the default signature.
        others: further signatures.
        overwrite: True replaces an existing artifact whose folder holds nothing else; no other folder that is not
            empty is ever replaced.

    Returns:
        The artifact's directory, resolved.

    Raises:
        ArtifactError: the output exists, lies in an artifact or cannot be written, an engine is missing or has
            changed since it was built, the model is too large for one file, two signatures have one name, or
            `params` or a report hold something that JSON cannot.
    """
    # A link is followed here, for renaming a directory onto a link would replace the link.
    target = checked_path(directory).resolve()
    check_output(target, overwrite)
    names = [p.signature.name for p in (part, *others)]
    if len(set(names)) < len(names):
        raise ArtifactError(f"two signatures of {target} have one name: {', '.join(sorted(names))}")
    with output_errors(target), _made_parents(target.parent):
        scratch = _sibling(target, "new")
        try:
            parts = tuple(
                Part(p.signature, p.params, tuple(entry for entry, _ in p.engines), *part_files(number))
                for number, p in enumerate((part, *others))
            )
            files = _write_content(scratch, list(zip(parts, (part, *others), strict=True)))
            content = Manifest(
                created=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                versions=manifests.installed_versions(),
                parts=parts,
                files=files,
            )
            write_json(scratch / manifests.MANIFEST_FILE, manifests.manifest_to_json(content))
            manifests.sync_directory(scratch)
            _install(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    engines = sum(len(p.engines) for p in parts)
    _log.info("saved %s: %d engine%s, %d files", target, engines, "s" * (engines != 1), len(files) + 1)
    return target


def load_artifact(path: str | Path, check_hashes: bool = True, signature: str | None = None) -> Artifact:
    """Reads an artifact.

    A damaged or missing engine is no failure, for its segment can run natively: its entry says what is wrong. An
    artifact that another process replaces meanwhile is read again: never one half of each.

    Args:
        path: the directory.
        check_hashes: False compares sizes only (for very large artifacts on a trusted disk).
        signature: which one to read; None for the default one.

    Raises:
        InvalidParameterError: there is no such signature.
        ArtifactError: not an artifact, of a newer schema, an unsafe path, or a damaged file; the message names it.
    """
    root = checked_path(path)
    for retries_left in reversed(range(RETRIES + 1)):
        before = state_of(root)
        try:
            artifact = _load(root, check_hashes, signature)
        except ArtifactError:
            if not retries_left or not _was_replaced(root, before):
                raise
            continue
        if state_of(root) == before:
            break
    else:
        raise ArtifactError(f"{root} is replaced again and again while it is read: load it when that is over")
    for entry in artifact.engines:
        if not entry.usable:
            _log.warning("%s: %s; its segment runs natively", root, entry.problem)
    return artifact


def _load(root: Path, check_hashes: bool, signature: str | None) -> Artifact:
    """One attempt to read an artifact."""
    content = manifests.manifest_from_json(read_manifest(root), str(root))
    part = content.part(signature, str(root))
    problems = examine_files(root, content.files, check_hashes)
    for name in (part.model, part.report):
        if name not in content.files:
            raise ArtifactError(f"{root}: {manifests.MANIFEST_FILE} is damaged: it does not list {name}")
    model = resolve_islands(_read_model(root, part.model, content.files), root, content.files)
    _check_signature(root, model, part)
    return Artifact(
        path=root,
        model=model,
        signature=part.signature,
        params=part.params,
        engines=tuple(examined(entry, content.files, problems) for entry in part.engines),
        report=_read_json(root, part.report),
        versions=content.versions,
        created=content.created,
        ranges=_read_ranges(root, part.ranges, content.files),
        signatures=tuple(other.signature.name for other in content.parts),
    )


def state_of(root: Path) -> tuple[int, int, bytes] | None:
    """What tells one artifact in `root` from the next: its manifest, and which file that is; None without one."""
    try:
        with (root / manifests.MANIFEST_FILE).open("rb") as file:
            facts = os.fstat(file.fileno())
            return facts.st_ino, facts.st_mtime_ns, file.read()
    except OSError:
        return None


def _was_replaced(root: Path, before: tuple[int, int, bytes] | None) -> bool:
    """True when the artifact is another one by now, or is just between two: `_install` has moved the old one away."""
    now = state_of(root)
    if now is None and any(root.parent.glob(f".{glob.escape(root.name)}.old-*/{glob.escape(root.name)}")):
        _wait_for_rename()
        return True
    return now != before


def _wait_for_rename() -> None:
    """Gives the other process the time of one rename."""
    time.sleep(0.02)


@contextlib.contextmanager
def _made_parents(parent: Path) -> Iterator[None]:
    """Makes missing parent directories; takes them away again on failure."""
    missing = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _sibling(target: Path, purpose: str) -> Path:
    """A new directory beside `target`, with the permissions that `mkdir` would give."""
    path = Path(tempfile.mkdtemp(prefix=f".{target.name}.{purpose}-", dir=target.parent))
    probe = path / "mode"
    probe.mkdir()
    path.chmod(stat.S_IMODE(probe.stat().st_mode))
    probe.rmdir()
    return path


def islands_folder(number: int) -> str:
    """Where the TensorFlow islands of the signature with that number lie, 0 for the first."""
    return f"tensorflow.{number}" if number else "tensorflow"


def _write_content(scratch: Path, parts: Sequence[tuple[Part, ArtifactPart]]) -> dict[str, FileRecord]:
    """Writes everything but the manifest; returns the records of the files."""
    contents = [content for _, content in parts]
    written = [part.model for part, _ in parts]
    spliced: dict[str, Model] = {}
    for number, (part, content) in enumerate(parts):
        spliced[part.model], files_of_islands = copy_islands(content.model, scratch, islands_folder(number))
        written += files_of_islands
    models.save_all(spliced, scratch, manifests.WEIGHTS_FILE)
    written += [manifests.WEIGHTS_FILE] if any(content.model.weights for content in contents) else []
    for part, content in parts:
        write_json(scratch / part.report, manifests.plain(content.report, "report"))
        written.append(part.report)
        if content.ranges is not None:
            (scratch / part.ranges).write_text(content.ranges.to_json() + "\n", "utf-8")
            written.append(part.ranges)
    placed: dict[str, FileRecord] = {}
    for content in contents:
        _place_engines(scratch, content.engines, placed)
    for name in placed:
        written += [name, manifests.sidecar_file(name)]
    files = {name: manifests.hash_file(scratch / name) for name in written}
    for content in contents:
        for entry, source in content.engines:
            if files[entry.file] != FileRecord(entry.size, entry.sha256):
                raise ArtifactError(f"engine {entry.op} has changed since it was built ({source}): build it again")
    return files


def _place_engines(scratch: Path, engines: Sequence[tuple[EngineEntry, Path]], placed: dict[str, FileRecord]) -> None:
    """Puts the engines of one signature into place; one that another signature has as well is there already."""
    own: set[str] = set()
    for entry, source in engines:
        if entry.file in own:
            raise ArtifactError(f"engine {entry.op} is given twice with the key {entry.key}")
        own.add(entry.file)
        record = FileRecord(entry.size, entry.sha256)
        if entry.file not in placed:
            place_engine(scratch, entry, source)
            placed[entry.file] = record
        elif placed[entry.file] != record:
            # Equal segments were built twice: their keys agree, the bytes of two builds need not.
            raise ArtifactError(f"engine {entry.op} was built twice, differently, with the key {entry.key}")


def place_engine(scratch: Path, entry: EngineEntry, source: Path) -> None:
    """Links or copies an engine into the scratch directory and writes its sidecar."""
    if not source.is_file():
        raise ArtifactError(f"the file of engine {entry.op} is gone ({source}): build it again")
    path = scratch / entry.file
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), path)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, path)
    write_json(scratch / manifests.sidecar_file(entry.file), manifests.entry_to_json(entry))


def write_json(path: Path, data: object) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _install(scratch: Path, target: Path) -> None:
    """Renames `scratch` to `target`; an artifact already there is put aside first and brought back on failure."""
    if not target.exists():
        scratch.rename(target)
        return
    aside = _sibling(target, "old")
    old = aside / target.name
    try:
        target.rename(old)
        try:
            scratch.rename(target)
        except BaseException:
            old.rename(target)
            raise
    finally:
        # Only what has been replaced may go: if bringing back failed as well, the old artifact stays in `aside`.
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)


def read_manifest(root: Path) -> object:
    """The parsed manifest; says what `root` is when it is no artifact."""
    if root.is_file():
        what = "an ONNX file" if root.suffix == ".onnx" else "a file"
        raise ArtifactError(f"{root} is {what}, not an artifact: convert it first (trt-rewriter convert {root} -o OUT)")
    if not root.is_dir():
        raise ArtifactError(f"no such artifact: {root}")
    if not (root / manifests.MANIFEST_FILE).is_file():
        if (root / "saved_model.pb").is_file() or (root / "saved_model.pbtxt").is_file():
            raise ArtifactError(
                f"{root} is a SavedModel, not an artifact: convert it first (trt-rewriter convert {root} -o OUT)"
            )
        raise ArtifactError(f"{root} is not an artifact: it has no {manifests.MANIFEST_FILE}")
    return _read_json(root, manifests.MANIFEST_FILE)


def _read_json(root: Path, name: str) -> Any:
    try:
        return json.loads((root / name).read_text("utf-8"))
    except OSError as error:
        raise ArtifactError(f"{root}: cannot read {name}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{root}: {name} is damaged: {error}") from error


def _read_ranges(root: Path, name: str, files: Mapping[str, FileRecord]) -> RangeTable | None:
    if name not in files:
        return None
    try:
        return RangeTable.from_json((root / name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{root}: {name} is damaged: {error}") from error


def _read_model(root: Path, name: str, files: Mapping[str, FileRecord]) -> Model:
    """A spliced model; only data files that the manifest lists are mapped."""
    path = root / name
    try:
        proto = onnx.load(path, load_external_data=False)
        unlisted = sorted(set(external_locations(proto)) - set(files))
        if unlisted:
            raise ArtifactError(f"{root}: {path.name} refers to {unlisted[0]!r}, which the manifest does not list")
        model = models.from_proto(proto, root)
    except (DecodeError, ValueError, OSError) as error:
        raise ArtifactError(f"{root}: {path.name} is damaged: {error}") from error
    inner = {t.name for t in all_tensors(model.proto) if t.data_location == onnx.TensorProto.EXTERNAL}
    inner -= set(model.weights)
    if inner:
        raise ArtifactError(
            f"{root}: {path.name} keeps {min(inner)!r}, which is not a weight of the main graph, outside"
        )
    return model


def _check_signature(root: Path, model: Model, part: Part) -> None:
    graph, signature = model.proto.graph, part.signature
    for kind, specs, values in (("input", signature.inputs, graph.input), ("output", signature.outputs, graph.output)):
        names = {value.name for value in values}
        for spec in specs:
            if spec.tensor not in names:
                raise ArtifactError(f"{root}: the signature's {kind} {spec.name!r} is not in {part.model}")
