"""Whether the files of an artifact are those that its manifest lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from rewriter.artifact import manifest as manifests
from rewriter.artifact.manifest import EngineEntry, FileRecord
from rewriter.errors import ArtifactError


def examine_files(root: Path, files: Mapping[str, FileRecord], check_hashes: bool) -> dict[str, str]:
    """What is wrong with the files of engines, by name; anything wrong with another file is an error."""
    problems = {}
    for name, record in files.items():
        problem = _examine_file(root, name, record, check_hashes)
        if not problem:
            continue
        if not name.startswith(f"{manifests.ENGINES_DIR}/"):
            raise ArtifactError(f"{root}: {problem}: convert the model again, or copy the artifact again")
        problems[name] = problem
    return problems


def _examine_file(root: Path, name: str, record: FileRecord, check_hashes: bool) -> str:
    """What is wrong with one file, "" for nothing.

    Raises:
        ArtifactError: a link leads out of the artifact.
    """
    path = root / name
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return f"{name} is missing"
    if not resolved.is_relative_to(root.resolve()):
        raise ArtifactError(f"{root}: {name} is a link that leads out of the artifact: put the file itself there")
    if not resolved.is_file():
        return f"{name} is not a file"
    try:
        size = resolved.stat().st_size
        if size != record.size:
            return f"{name} is damaged: it has {size} bytes instead of {record.size}"
        if check_hashes and manifests.hash_file(resolved) != record:
            return f"{name} is damaged: its sha256 is not the one in {manifests.MANIFEST_FILE}"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"
    return ""


def examined(entry: EngineEntry, files: Mapping[str, FileRecord], problems: Mapping[str, str]) -> EngineEntry:
    """The entry with what is wrong with it."""
    problem = ""
    if files.get(entry.file) != FileRecord(entry.size, entry.sha256):
        problem = f"{entry.file} is not listed in {manifests.MANIFEST_FILE} as built"
    for name in (entry.file, manifests.sidecar_file(entry.file)):
        problem = problem or problems.get(name, "")
    return dataclasses.replace(entry, problem=problem)
