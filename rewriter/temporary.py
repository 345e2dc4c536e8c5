"""Temporary files that only the process that made them removes: a forked child shares its parent's."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

_P = ParamSpec("_P")


def in_this_process(function: Callable[_P, object]) -> Callable[_P, None]:
    """The same function, which does nothing in forked children of the process that calls this.

    A child inherits every object, and its finalizers with it: what it lets go of is still in its parent's use.
    """
    owner = os.getpid()

    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
        if os.getpid() == owner:
            function(*args, **kwargs)

    return guarded


def finalize_here(
    owner: object, function: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs
) -> weakref.finalize[..., object]:
    """`weakref.finalize`, whose function is not called in forked children; there it only ceases to be alive."""
    return weakref.finalize(owner, in_this_process(function), *args, **kwargs)


class TemporaryFolder:
    """A new folder that goes when it is removed, when nobody has this object any more, or with the process.

    Also a context manager, which gives the path. In a forked child nothing of this removes the parent's folder.

    Args:
        prefix: how its name begins.
        parent: an existing folder to make it in; default: the system's temporary folder.

    Attributes:
        path: the folder, empty at first; absolute unless `parent` is not.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._removal = finalize_here(self, shutil.rmtree, self.path, ignore_errors=True)

    def remove(self) -> None:
        """Removes it with all that is in it; harmless when repeated, and when it is gone."""
        self._removal()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *exception: object) -> None:
        self.remove()
