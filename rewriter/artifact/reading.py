"""Reads artifacts, and checks what it reads."""

from __future__ import annotations

import glob
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from passes import model as models
from passes.model import Model
from passes.precision.ranges import RangeTable
from rewriter.artifact import manifest as manifests
from rewriter.artifact.check import examine_files, examined
from rewriter.artifact.islands import resolve_islands
from rewriter.artifact.manifest import FileRecord, Part
from rewriter.artifact.manifest_json import manifest_from_json
from rewriter.artifact.parts import Artifact
from rewriter.artifact.paths import checked_path, is_artifact
from rewriter.errors import ArtifactError
from rewriter.tensor_walk import all_tensors, external_locations

_log = logging.getLogger(__name__)
#: How often an artifact that changes while it is read is read again.
RETRIES = 3


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
            _log.warning("%s: %s; its segment runs natively, unless it has another engine", root, entry.problem)
    return artifact


def _load(root: Path, check_hashes: bool, signature: str | None) -> Artifact:
    """One attempt to read an artifact."""
    content = manifest_from_json(read_manifest(root), str(root))
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
        ranges=read_ranges(root, part.ranges, content.files),
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
    """True when the artifact is another one by now, or is just between two: `install` has moved the old one away."""
    now = state_of(root)
    if now is None and any(root.parent.glob(f".{glob.escape(root.name)}.old-*/{glob.escape(root.name)}")):
        _wait_for_rename()
        return True
    return now != before


def _wait_for_rename() -> None:
    """Gives the other process the time of one rename."""
    time.sleep(0.02)


def read_manifest(root: Path) -> object:
    """The parsed manifest; says what `root` is when it is no artifact."""
    if root.is_file():
        outer = next(filter(is_artifact, list(root.parents)[:3]), None)  # of a model, or of an engine
        if outer is not None:
            raise ArtifactError(f"{root} is a file in an artifact: give the folder of that, {outer}")
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


def read_ranges(root: Path, name: str, files: Mapping[str, FileRecord]) -> RangeTable | None:
    """The ranges of a signature; None where the manifest does not list them.

    Args:
        root: the artifact.
        name: their file.
        files: what the manifest lists.

    Raises:
        ArtifactError: the file is damaged.
    """
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
