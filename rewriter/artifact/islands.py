"""The SavedModels of island nodes inside an artifact: `tensorflow/<operator>/saved_model.pb` and what goes with it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from passes.base import PassError
from passes.island_node import ISLAND_PREFIX, island_nodes, read_island, with_folders
from passes.model import Model
from rewriter.errors import ArtifactError

#: Folder of an artifact's first signature.
FOLDER = "tensorflow"
_MAIN_FILE = "saved_model.pb"


def copy_islands(model: Model, scratch: Path, folder: str = FOLDER) -> tuple[Model, list[str]]:
    """Copies the SavedModels of a model into an artifact that is being written.

    Args:
        model: with absolute folders; it stays as it is.
        scratch: root of the artifact.
        folder: where below it; further signatures, whose islands have the same names, need one of their own.

    Returns:
        The model with folders relative to `scratch`, and all files that were written, relative as well, in POSIX
        spelling, sorted. Without island nodes the model itself, and nothing.

    Raises:
        ArtifactError: a SavedModel is gone, or holds what is no plain file.
        OSError: it cannot be read, or written.
    """
    folders: dict[str, str] = {}
    files: list[str] = []
    for op, source in saved_models(model):
        place = f"{folder}/{op}"
        folders[op] = place
        for path in _files(source, op):
            relative = f"{place}/{path}"
            link_or_copy(source / path, scratch / relative)
            files.append(relative)
    return with_folders(model, folders), sorted(files)


def resolve_islands(model: Model, root: Path, listed: Collection[str]) -> Model:
    """The model of an artifact with absolute folders, after checking that they are the artifact's own.

    The contents of files are not looked at: the manifest's hashes are checked elsewhere, for every listed file.

    Args:
        model: with relative folders; it stays as it is.
        root: the artifact.
        listed: files of its manifest, relative to `root` in POSIX spelling.

    Raises:
        ArtifactError: an island node is damaged; its folder leads out of the artifact; or there is a file in it that
            the manifest does not list, or one is missing.
    """
    names = set(listed)
    folders: dict[str, str] = {}
    try:
        for node in island_nodes(model.proto):
            folder = _checked(read_island(node).saved_model, node.op_type, root)
            own = {name for name in names if name.startswith(f"{folder}/")}
            if f"{folder}/{_MAIN_FILE}" not in own:
                raise ArtifactError(f"{root}: the manifest lists no SavedModel of {node.op_type!r} at {folder!r}")
            for path in _files(root / folder, node.op_type):
                if f"{folder}/{path}" not in own:
                    raise ArtifactError(
                        f"{root}: the file '{folder}/{path}' is not in the manifest, so {node.op_type!r} is not loaded"
                    )
            folders[node.op_type] = str((root / folder).absolute())
    except PassError as error:
        raise ArtifactError(f"{root}: {error}") from error
    return with_folders(model, folders)


def keep_islands(model: Model, folder: Path) -> Model:
    """The model with SavedModels of its own below `folder`, for one that outlives those that it has.

    Raises:
        ArtifactError, OSError: as `copy_islands`.
    """
    copy, _ = copy_islands(model, folder)
    return with_folders(copy, {op: str(folder / path) for op, path in saved_models(copy)})


def saved_models(model: Model) -> Iterator[tuple[str, Path]]:
    """(operator, SavedModel folder) of every island node, in graph order.

    Raises:
        ArtifactError: an island node is damaged, or has an operator that cannot be one.
    """
    for node in island_nodes(model.proto):
        number = node.op_type.removeprefix(ISLAND_PREFIX)
        if not node.op_type.startswith(ISLAND_PREFIX) or not (number.isascii() and number.isdigit()):
            raise ArtifactError(f"island node {node.name!r} has the operator {node.op_type!r}: convert the model again")
        try:
            yield node.op_type, Path(read_island(node).saved_model)
        except PassError as error:
            raise ArtifactError(str(error)) from error


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that nobody changes, or a copy where the file system gives none; folders are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        shutil.copyfile(source, target)


def _checked(path: str, op: str, root: Path) -> str:
    """A folder inside an artifact, as it stands in the model."""
    parts = PurePosixPath(path).parts
    plain = path == "/".join(parts) and not any(c in path for c in '\\:\0"')
    if not plain or not parts or path.startswith("/") or any(part in (".", "..") for part in parts):
        raise ArtifactError(f"{root}: the SavedModel of {op!r} has the unsafe path {path!r}")
    place = root
    for part in parts:
        place = place / part
        if place.is_symlink():
            raise ArtifactError(f"{root}: the SavedModel of {op!r} lies behind the link {str(place)!r}")
    return path


def _files(folder: Path, op: str) -> list[str]:
    """All files below a SavedModel's folder, relative to it in POSIX spelling, sorted."""
    if not (folder / _MAIN_FILE).is_file():
        raise ArtifactError(f"the SavedModel of {op!r} is not at {folder}: convert the model again")
    found: list[str] = []
    for place, inner, names in os.walk(folder, onerror=_fail):
        for name in (*inner, *names):
            path = Path(place) / name
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ArtifactError(f"the SavedModel of {op!r} holds {str(path)!r}, which is no plain file")
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in names]
    return sorted(found)


def _fail(error: OSError) -> None:
    raise error
