"""A finished folder takes its place: what saves artifacts and rescued models writes beside it, then renames."""

from __future__ import annotations

import contextlib
import logging
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)


def sibling(target: Path, purpose: str) -> Path:
    """A new folder beside `target`, with the permissions that `mkdir` would give; the caller owns it."""
    path = Path(tempfile.mkdtemp(prefix=f".{target.name}.{purpose}-", dir=target.parent))
    probe = path / "mode"
    probe.mkdir()
    path.chmod(stat.S_IMODE(probe.stat().st_mode))
    probe.rmdir()
    return path


def install(scratch: Path, target: Path) -> None:
    """Renames `scratch` to `target`.

    A folder already there is put aside first; whatever ends this in between, an interrupt too, brings it back. Only
    what has been replaced is ever deleted.

    Raises:
        OSError: the system refuses. Where it refuses to bring the old folder back as well, that one stays beside
            `target`, and the log says where.
    """
    if not target.exists():
        scratch.rename(target)
        return
    aside = sibling(target, "old")
    old = aside / target.name
    try:
        target.rename(old)
        scratch.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        if old.exists() and scratch.exists():
            _log.error("%s could neither be replaced nor brought back: it lies in %s now", target, old)
        else:
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def made_parents(parent: Path) -> Iterator[None]:
    """Makes missing parent folders; takes them away again on failure."""
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
