"""Model repositories on the disk: names, version numbers, and versions that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from rewriter.artifact import is_artifact
from rewriter.artifact.paths import checked_path
from rewriter.errors import ArtifactError, InvalidParameterError
from rewriter.installing import made_parents, sibling

CONFIG_FILE = "config.pbtxt"
#: The settings that a new version replaced.
OLD_CONFIG_FILE = "config.pbtxt.old"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
#: How often a version number is tried that another process takes at the same time.
_TRIES = 20


def checked_name(name: str | None, artifact: Path) -> str:
    """The model's name; that of the artifact's folder for None.

    Raises:
        InvalidParameterError: it cannot be the name of a folder and a part of a URL.
    """
    given = artifact.resolve().name if name is None else name
    if not isinstance(given, str) or not _NAME.fullmatch(given):
        what = "the artifact's folder gives the model the name" if name is None else "the model cannot have the name"
        raise InvalidParameterError(
            f"{what} {given!r}: choose one of letters, digits, '_', '-' and '.' that begins with none of the last two "
            "(name=..., --name)"
        )
    return given


def service_file(name: str) -> str:
    """The file for KServe, which lies beside the model's folder."""
    return f"{name}.inferenceservice.yaml"


def check_repository(repository: str | Path, name: str) -> Path:
    """The repository, resolved; it need not exist.

    Raises:
        ArtifactError: it is a file or lies in an artifact, or what has the model's name there is no model of Triton;
            or a folder stands where the file for KServe has to be.
    """
    root = checked_path(repository).resolve()
    for folder in (root, *root.parents):
        if is_artifact(folder):
            raise ArtifactError(f"the model repository {root} lies in the artifact {folder}: choose another folder")
        if folder.exists() and not folder.is_dir():
            raise ArtifactError(f"the model repository {root} cannot be made: {folder} is a file")
    model = root / name
    if model.exists() and not model.is_dir():
        raise ArtifactError(f"{model} is a file, where the model's folder has to be: choose another name")
    if model.is_dir() and any(model.iterdir()) and not ((model / CONFIG_FILE).is_file() or versions_of(model)):
        raise ArtifactError(
            f"{model} is no model of Triton: it has neither {CONFIG_FILE} nor a version; choose another name"
        )
    if (root / service_file(name)).is_dir():
        raise ArtifactError(f"{root / service_file(name)} is a folder, where a file has to be: choose another name")
    return root


def versions_of(model: Path) -> list[int]:
    """The versions in a model's folder, ascending; names that Triton takes for none are ignored."""
    if not model.is_dir():
        return []
    return sorted(int(path.name) for path in model.iterdir() if path.is_dir() and _VERSION.fullmatch(path.name))


def add_version(root: Path, name: str, config: str, fill: Callable[[Path], None]) -> int:
    """Adds the next version of a model to a repository, and makes its settings those of the model.

    The version is written into a folder beside the repository (where that is on the same disk, for a server that polls
    looks at every folder inside), and is renamed when it is complete. A new model appears with its settings at once;
    for a further version the settings are replaced right after it. Settings that differ stay as `OLD_CONFIG_FILE`.

    Args:
        root: the repository; missing folders are made.
        name: the model's.
        config: the text of `config.pbtxt`.
        fill: writes the version into the empty folder that it is given.

    Returns:
        The version's number.

    Raises:
        ArtifactError: the system refuses; the repository is then as it was.
    """
    with _told(root), made_parents(root):
        scratch = sibling(_scratch_parent(root) / name, "new")
        try:
            model = scratch / "model"
            content = model / "content"
            content.mkdir(parents=True)
            fill(content)
            return _place(root / name, model, content, config)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def write_service(root: Path, name: str, text: str) -> None:
    """Writes a model's file for KServe.

    Raises:
        ArtifactError: the system refuses; the model itself is in the repository.
    """
    with _told(root):
        _write_text(root / service_file(name), text)


def _write_text(path: Path, text: str) -> None:
    """Writes a text file whole, by a rename, and waits until it is on the disk."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _place(target: Path, model: Path, content: Path, config: str) -> int:
    """Moves a finished version to where it belongs; returns its number."""
    if _place_new(target, model, content, config):
        return 1
    for _ in range(_TRIES):
        number = max(versions_of(target), default=0) + 1
        try:
            content.rename(target / str(number))
        except OSError:
            if not (target / str(number)).exists():  # else another process has just made it
                raise
            continue
        try:
            _replace_config(target, config)
        except BaseException:
            (target / str(number)).rename(content)
            raise
        return number
    raise ArtifactError(f"others take version after version of {target}: export again when that is over")


def _place_new(target: Path, model: Path, content: Path, config: str) -> bool:
    """Moves a model with its first version to where it belongs; False when there is a model already."""
    if target.exists() and any(target.iterdir()):
        return False
    content.rename(model / "1")
    _write_text(model / CONFIG_FILE, config)
    try:
        model.rename(target)
    except OSError:
        if not target.exists():
            raise
        (model / "1").rename(content)  # another process was first
        return False
    return True


def _replace_config(target: Path, config: str) -> None:
    path = target / CONFIG_FILE
    if path.is_file():
        before = path.read_text("utf-8", errors="replace")
        if before == config:
            return
        shutil.copyfile(path, target / OLD_CONFIG_FILE)
    _write_text(path, config)


def _scratch_parent(root: Path) -> Path:
    parent = root.parent
    same_disk = os.access(parent, os.W_OK | os.X_OK) and parent.stat().st_dev == root.stat().st_dev
    return parent if same_disk else root


@contextlib.contextmanager
def _told(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ArtifactError(f"cannot write the model repository {root}: {error.strerror or error}{where}") from error
