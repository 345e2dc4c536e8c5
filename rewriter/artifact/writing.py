"""Writes artifacts: into a sibling directory first, then renamed into place."""

from __future__ import annotations

import datetime
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from passes import model as models
from passes.model import Model
from rewriter.artifact import manifest as manifests
from rewriter.artifact.islands import copy_islands
from rewriter.artifact.manifest import EngineEntry, FileRecord, Manifest, Part, part_files
from rewriter.artifact.manifest_json import manifest_to_json
from rewriter.artifact.parts import ArtifactPart
from rewriter.artifact.paths import check_output, checked_path, output_errors
from rewriter.artifact.sharing import share_engines
from rewriter.errors import ArtifactError
from rewriter.installing import install, made_parents, sibling

_log = logging.getLogger(__name__)


def save_artifact(
    directory: str | Path,
    part: ArtifactPart,
    *others: ArtifactPart,
    overwrite: bool = False,
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Writes an artifact: into a sibling directory first, then renamed into place.

    Whatever goes wrong, `directory` is afterwards what it was before, and nothing is left beside it.

    Args:
        directory: where to; missing parents are made.
        part: the default signature.
        others: further signatures.
        overwrite: True replaces an existing artifact whose folder holds nothing else; no other folder that is not
            empty is ever replaced.
        versions: distribution name -> version at the conversion; default: what is installed.

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
    with output_errors(target), made_parents(target.parent):
        scratch = sibling(target, "new")
        try:
            contents = share_engines((part, *others))
            parts = tuple(
                Part(p.signature, p.params, tuple(entry for entry, _ in p.engines), *part_files(number))
                for number, p in enumerate(contents)
            )
            files = _write_content(scratch, list(zip(parts, contents, strict=True)))
            content = Manifest(
                created=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                versions=manifests.installed_versions() if versions is None else versions,
                parts=parts,
                files=files,
            )
            write_json(scratch / manifests.MANIFEST_FILE, manifest_to_json(content))
            manifests.sync_directory(scratch)
            install(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    engines = sum(len(p.engines) for p in parts)
    _log.info("saved %s: %d engine%s, %d files", target, engines, "s" * (engines != 1), len(files) + 1)
    return target


def islands_folder(number: int) -> str:
    """Where the TensorFlow islands of the signature with that number lie, 0 for the first."""
    return f"tensorflow.{number}" if number else "tensorflow"


def _write_content(scratch: Path, parts: Sequence[tuple[Part, ArtifactPart]]) -> dict[str, FileRecord]:
    """Writes everything but the manifest; returns the records of the files."""
    contents = [content for _, content in parts]
    placed: list[str] = []
    for content in contents:
        for entry, source in content.engines:
            if entry.file not in placed:  # another signature may have it as well
                place_engine(scratch, entry, source)
                placed.append(entry.file)
    with ThreadPoolExecutor(1) as pool:  # the engines are read while the weights are written
        engines = pool.submit(manifests.hash_files, scratch, placed, {})
        written, hashed = _write_models(scratch, parts)
    written += [name for file in placed for name in (file, manifests.sidecar_file(file))]
    files = manifests.hash_files(scratch, written, hashed | engines.result())
    for content in contents:
        for entry, source in content.engines:
            if files[entry.file] != FileRecord(entry.size, entry.sha256):
                raise ArtifactError(f"engine {entry.op} has changed since it was built ({source}): build it again")
    return files


def _write_models(scratch: Path, parts: Sequence[tuple[Part, ArtifactPart]]) -> tuple[list[str], dict[str, FileRecord]]:
    """Writes models, reports and ranges; returns the names of the files, and the records of those known already."""
    written = [part.model for part, _ in parts]
    spliced: dict[str, Model] = {}
    for number, (part, content) in enumerate(parts):
        spliced[part.model], files_of_islands = copy_islands(content.model, scratch, islands_folder(number))
        written += files_of_islands
    hashed = models.save_all(spliced, scratch, manifests.WEIGHTS_FILE)
    written += hashed
    for part, content in parts:
        write_json(scratch / part.report, manifests.plain(content.report, "report"))
        written.append(part.report)
        if content.ranges is not None:
            (scratch / part.ranges).write_text(content.ranges.to_json() + "\n", "utf-8")
            written.append(part.ranges)
    return written, {name: FileRecord((scratch / name).stat().st_size, digest) for name, digest in hashed.items()}


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
    """Writes a JSON file, and waits until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
