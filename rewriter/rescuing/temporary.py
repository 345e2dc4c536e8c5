"""A rescued model in a temporary folder, for as long as something needs it."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from rewriter.errors import SourceError
from rewriter.rescuing.reading import parse
from rewriter.rescuing.report import RescueReport
from rewriter.rescuing.rewriting import rewrite
from rewriter.rescuing.writing import fill, serialize
from rewriter.temporary import TemporaryFolder


class TemporaryRescue:
    """A rescued model whose folder is removed with this object, or when the process ends.

    Variables and assets are links to the old model's, which is not copied; where the system has no links, copies.

    Attributes:
        path: the folder.
        report: what was found and done; its destination is "".
    """

    def __init__(self, source: Path) -> None:
        """Rescues the SavedModel in `source`.

        Raises:
            SourceError: a native segment is not there, or the file is damaged.
        """
        message = parse(source)
        described = f"the SavedModel in {source}"
        rewritten = rewrite(message, described)
        content = serialize(message, described)
        try:
            self._folder = TemporaryFolder("rescued-")
            self.path = self._folder.path
            try:
                fill(content, source.resolve(), self.path, set(rewritten.removed.assets), _link_folder, _link_file)
            except OSError:
                self._folder.remove()
                raise
        except OSError as error:
            raise SourceError(
                f"{described} was made by TF-TRT, and its rescue needs a temporary folder, which cannot be written "
                f"({error}): free some space, or name another place in TMPDIR"
            ) from error
        version = message.meta_graphs[0].meta_info_def.tensorflow_version
        self.report = RescueReport(
            described, "", rewritten.engines.engines, rewritten.removed, rewritten.engines.rebuilt, version
        )


def _link_folder(source: Path, place: Path) -> None:
    with contextlib.suppress(OSError, NotImplementedError):
        place.symlink_to(source, target_is_directory=True)
        return
    shutil.copytree(source, place)


def _link_file(source: Path, place: Path) -> None:
    with contextlib.suppress(OSError, NotImplementedError):
        place.symlink_to(source)
        return
    shutil.copy2(source, place)
