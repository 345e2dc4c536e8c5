"""Where artifacts lie: paths that can be one, and folders that may be written or replaced."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from rewriter.artifact import manifest as manifests
from rewriter.errors import ArtifactError

#: Files of every artifact, whatever its manifest lists.
_OWN_FILES = (manifests.MANIFEST_FILE, manifests.MODEL_FILE, manifests.WEIGHTS_FILE, manifests.REPORT_FILE)
#: Folder in which TensorRT-RTX keeps what it compiled for the GPUs at hand; not listed, for runs make it.
RUNTIME_CACHE_DIR = "runtime_cache"
_RUNTIME_CACHE_FILE = re.compile(rf"{RUNTIME_CACHE_DIR}/[0-9a-f]{{32}}\.(cache|json)")
#: Unlisted files that a message names, and characters of a path in a message about the path itself.
_NAMED, _SHOWN = 3, 100


def checked_path(path: object) -> Path:
    """`path` as a Path that the system can look at, whether something lies there or not.

    Raises:
        ArtifactError: no path, an empty one, or one that the system refuses (a null byte, too long, a loop of links).
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise ArtifactError(f"the path of an artifact must be a str or a pathlib.Path, not {type(path).__name__}")
    text = os.fspath(path)
    if not text:
        raise ArtifactError("the path of an artifact is empty: name its folder")
    try:
        Path(text).stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            reason += " (choose a shorter one)"
        raise ArtifactError(f"{shown!r} cannot be the path of an artifact: {reason}") from error
    return Path(text)


def is_artifact(path: str | Path) -> bool:
    """True for a directory with the manifest of an artifact, of whatever schema version."""
    return _raw_manifest(Path(path)) is not None


def check_output(directory: str | Path, overwrite: bool = False) -> None:
    """Refuses an output that `save_artifact` would refuse, before any work is done.

    An artifact is overwritten only when its folder holds nothing else: whatever its manifest does not list is
    somebody's, and would be lost.

    Raises:
        ArtifactError: it is a file, not empty and `overwrite` is False, not an artifact, an artifact with other files
            in its folder, or inside of an artifact; or no directory can be made there.
    """
    target = checked_path(directory).resolve()
    outer = next((parent for parent in target.parents if is_artifact(parent)), None)
    if outer is not None:
        raise ArtifactError(f"the output {target} lies inside the artifact {outer}: choose a directory outside of it")
    if not target.exists():
        parent = next(parent for parent in target.parents if parent.exists())
        if not parent.is_dir():
            raise ArtifactError(f"cannot write the artifact {target}: {parent} is a file")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ArtifactError(f"cannot write the artifact {target}: {parent} is not writable")
        return
    if not target.is_dir():
        raise ArtifactError(f"the output {target} is a file: choose another directory")
    with output_errors(target):
        if any(target.iterdir()):
            _check_replaceable(target, overwrite)


@contextlib.contextmanager
def output_errors(target: Path) -> Iterator[None]:
    """Turns what the system or protobuf says while writing into one clear line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        where = f" ({error.filename})" if error.filename else ""
        raise ArtifactError(f"cannot write the artifact {target}: {reason}{where}") from error
    except (ValueError, EncodeError) as error:
        raise ArtifactError(f"cannot write the artifact {target}: {error}") from error


def _check_replaceable(target: Path, overwrite: bool) -> None:
    """Refuses a directory with content, unless it is an artifact and nothing else, and `overwrite` is True."""
    if not overwrite:
        raise ArtifactError(
            f"the output {target} exists and is not empty: choose another directory, or allow to overwrite it "
            "(overwrite=True, --overwrite)"
        )
    raw = _raw_manifest(target)
    if raw is None:
        raise ArtifactError(
            f"the output {target} is not an artifact of trt-rewriter, so it is not overwritten: choose another "
            "directory, or empty it first"
        )
    others = _unlisted(target, raw)
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        raise ArtifactError(
            f"the artifact {target} is not overwritten, for its folder holds what is no part of it: "
            f"{', '.join(others[:_NAMED])}{more}; move that away, or choose another directory"
        )


def _unlisted(root: Path, raw: Mapping[str, Any]) -> list[str]:
    """Files and folders below `root` that the manifest does not account for, sorted; a folder stands for its content.

    Only names are asked of the manifest, so one that is damaged or of a newer schema lists what it lists.
    """
    files = raw.get("files")
    listed = {*_OWN_FILES, *(files if isinstance(files, Mapping) else ())}
    listed |= {manifests.sidecar_file(name) for name in listed if name.endswith(".engine")}
    folders = {RUNTIME_CACHE_DIR, *(str(parent) for name in listed for parent in PurePosixPath(name).parents)}

    def fail(error: OSError) -> None:
        raise error

    found = []
    for place, inner, names in os.walk(root, onerror=fail):
        base = Path(place).relative_to(root)
        # A link to a folder counts as a folder here, though nothing below it is looked at.
        strange = [name for name in inner if (base / name).as_posix() not in folders | listed]
        found += [f"{(base / name).as_posix()}/" for name in strange]
        inner[:] = [name for name in inner if name not in strange]
        paths = [(base / name).as_posix() for name in names]
        found += [path for path in paths if path not in listed and not _RUNTIME_CACHE_FILE.fullmatch(path)]
    return sorted(name if name.isprintable() else ascii(name) for name in found)


def _raw_manifest(root: Path) -> dict[str, Any] | None:
    """The parsed manifest of an artifact, not checked further; None where there is none."""
    try:
        data = json.loads((root / manifests.MANIFEST_FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) and data.get("format") == manifests.FORMAT else None
