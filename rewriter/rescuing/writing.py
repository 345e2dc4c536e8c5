"""The folder that a rescue leaves behind: written beside its place, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

from rewriter.errors import InvalidParameterError, SourceError
from rewriter.installing import install, made_parents, sibling
from rewriter.rescuing.reading import CHUNKED_FILE, MODEL_FILES

#: Files and folders of a SavedModel; a folder with anything else is never overwritten.
_OWN = {
    *MODEL_FILES,
    CHUNKED_FILE,
    "fingerprint.pb",
    "keras_metadata.pb",
    "assets",
    "assets.extra",
    "variables",
    "debug",
}
#: Not taken over: the model file is written anew, and the fingerprint holds hashes of the old one.
_LEFT = {*MODEL_FILES, CHUNKED_FILE, "fingerprint.pb"}
_LARGEST = (1 << 31) - 1


def check_destination(source: Path, destination: Path, overwrite: bool) -> None:
    """Refuses a destination before any work is done.

    Raises:
        InvalidParameterError: it is the source, lies in it or around it, is a file, holds something and `overwrite` is
            False, or holds what is no part of a SavedModel; or no folder can be made there.
        SourceError: the system cannot look at it.
    """
    with _system_errors(f"cannot write the rescued model {destination}"):
        _check_apart(source, destination)
        _check_place(destination, overwrite)


def _check_apart(source: Path, destination: Path) -> None:
    """The destination is not the source, nor in it, nor around it."""
    where = destination.resolve()
    origin = source.resolve()
    if where == origin or origin in where.parents or where in origin.parents:
        raise InvalidParameterError(
            f"the destination {destination} is, lies in or holds the source {source}: choose a directory apart from it"
        )


def _check_place(destination: Path, overwrite: bool) -> None:
    """There is room for a folder at the destination."""
    where = destination.resolve()
    if not where.exists():
        parent = next(parent for parent in where.parents if parent.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise InvalidParameterError(f"cannot write {destination}: {parent} is no directory that can be written")
        return
    if not where.is_dir():
        raise InvalidParameterError(f"the destination {destination} is a file: choose another directory")
    names = sorted(path.name for path in where.iterdir())
    if not names:
        return
    if not overwrite:
        raise InvalidParameterError(
            f"the destination {destination} exists and is not empty: choose another directory, or allow to overwrite "
            "it (overwrite=True, --overwrite)"
        )
    others = [name for name in names if name not in _OWN]
    if others or not set(names) & {*MODEL_FILES, CHUNKED_FILE}:
        raise InvalidParameterError(
            f"the destination {destination} is not overwritten, for it is no SavedModel and nothing else "
            f"({', '.join((others or names)[:3])}): choose another directory, or empty it first"
        )


def serialize(message: Any, source: str) -> bytes:
    """The bytes of a SavedModel message.

    Raises:
        SourceError: it is too large for one.
    """
    from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

    try:
        content: bytes = message.SerializeToString(deterministic=True)
    except (ValueError, EncodeError) as error:
        raise SourceError(f"{source} is too large to be written as one message (2 GB): {error}") from error
    if len(content) > _LARGEST:
        raise SourceError(f"{source} is too large to be written as one message (2 GB): {len(content)} bytes")
    return content


def write(content: bytes, source: Path, destination: Path, left_out: Set[str]) -> None:
    """Writes the rescued model: into a sibling folder first, then renamed into place.

    Whatever goes wrong, `destination` is afterwards what it was before, and nothing is left beside it.

    Args:
        content: the model file.
        source: the old folder, of which variables, assets and all else are copied.
        destination: where to; missing parents are made.
        left_out: names of assets that are not copied.

    Raises:
        SourceError: a file of the source cannot be read, or the system refuses to write.
    """
    target = destination.resolve()
    with _system_errors(f"cannot write the rescued model {destination}"), made_parents(target.parent):
        scratch = sibling(target, "new")
        try:
            fill(content, source, scratch, left_out, shutil.copytree, shutil.copy2)
            install(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def fill(
    content: bytes,
    source: Path,
    folder: Path,
    left_out: Set[str],
    place_folder: Callable[[Path, Path], Any],
    place_file: Callable[[Path, Path], Any],
) -> None:
    """Puts the parts of a rescued model into an empty folder.

    Args:
        content: the model file.
        source: the old folder.
        folder: the empty one.
        left_out: names of assets that stay behind.
        place_folder: called with a folder of the source (variables, debug ...) and its new place.
        place_file: called with a file of the source and its new place.
    """
    (folder / MODEL_FILES[0]).write_bytes(content)
    for path in sorted(source.iterdir()):
        if path.name in _LEFT:
            continue
        if not path.is_dir():
            place_file(path, folder / path.name)
        elif path.name != "assets" or not left_out:
            place_folder(path, folder / path.name)
        else:
            _assets(path, folder / path.name, left_out, place_file)


def _assets(source: Path, folder: Path, left_out: Set[str], place_file: Callable[[Path, Path], Any]) -> None:
    """The assets that stay; the folder is there even where none does, as TensorFlow writes it."""
    folder.mkdir()
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and name not in left_out:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            place_file(path, folder / name)


@contextlib.contextmanager
def _system_errors(what: str) -> Iterator[None]:
    """Turns what the system says into one clear line."""
    try:
        yield
    except shutil.Error as error:
        raise SourceError(f"{what}: {'; '.join(str(item[-1]) for item in error.args[0])}") from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise SourceError(f"{what}: {error.strerror or error}{where}") from error
