"""The folder of an export: what may be written, and which earlier export may be replaced."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

from rewriter.artifact import is_artifact
from rewriter.errors import ExportError
from rewriter.export.epcontext.graph import context_nodes

#: The model with the EPContext nodes, and what it keeps outside.
MODEL_FILE = "model_ctx.onnx"
DATA_FILE = "model_ctx.onnx.data"
#: Files that a message names.
_NAMED = 3


def checked_folder(folder: object) -> Path:
    """The folder as an absolute path, links followed.

    Raises:
        ExportError: no path, an empty one, or one that the system refuses.
    """
    if not isinstance(folder, (str, os.PathLike)) or not isinstance(os.fspath(folder), str):
        raise ExportError(f"the folder of an export must be a str or a pathlib.Path, not {type(folder).__name__}")
    text = os.fspath(folder)
    if not text:
        raise ExportError("the folder of an export is empty: name one")
    try:
        with contextlib.suppress(FileNotFoundError):
            Path(text).stat()
        return Path(text).resolve()
    except NotADirectoryError as error:
        raise ExportError(f"cannot write {text}: a file is in its way") from error
    except (OSError, ValueError, RuntimeError) as error:
        shown = text if len(text) <= 100 else f"{text[:100]}..."
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            reason += " (choose a shorter one)"
        raise ExportError(f"{shown!r} cannot be the folder of an export: {reason}") from error


def check_folder(target: Path, overwrite: bool) -> None:
    """Refuses a folder that must not be written, before any work is done.

    An earlier export is overwritten only when its folder holds nothing else.

    Raises:
        ExportError: it is a file, an artifact or inside of one, or not empty and either `overwrite` is False or it
            holds what is no part of an earlier export.
    """
    outer = next((place for place in (target, *target.parents) if is_artifact(place)), None)
    if outer is not None:
        raise ExportError(f"the output {target} lies in the artifact {outer}: choose a folder outside of it")
    if target.exists() and not target.is_dir():
        raise ExportError(f"the output {target} is a file: choose another folder")
    with output_errors(target):
        found = sorted(path.name for path in target.iterdir()) if target.exists() else []
    if not found:
        return
    if not overwrite:
        raise ExportError(
            f"the output {target} exists and is not empty: choose another folder, or allow to overwrite it "
            "(overwrite=True, --overwrite)"
        )
    own = _files_of_export(target)
    others = [name if name.isprintable() else ascii(name) for name in found if name not in own]
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        raise ExportError(
            f"the output {target} is not overwritten, for it holds what is no part of an export: "
            f"{', '.join(others[:_NAMED])}{more}; move that away, or choose another folder"
        )


@contextlib.contextmanager
def output_errors(target: Path) -> Iterator[None]:
    """Turns what the system or protobuf says while writing into one clear line."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ExportError(f"cannot write {target}: {error.strerror or error}{where}") from error
    except (ValueError, EncodeError) as error:
        raise ExportError(f"cannot write {target}: {error}") from error


def _files_of_export(root: Path) -> set[str]:
    """Names of the files of an earlier export; none where there is none."""
    try:
        proto = onnx.load(root / MODEL_FILE, load_external_data=False)
    except (OSError, DecodeError, ValueError):
        return set()
    nodes = context_nodes(proto)
    engines = {a.s.decode("utf-8", "replace") for node in nodes for a in node.attribute if a.name == "ep_cache_context"}
    return {MODEL_FILE, DATA_FILE, *engines} if engines else set()
