"""Looking at a SavedModel without loading it."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from rewriter.errors import SourceError
from rewriter.frontend.callee import import_quietly
from rewriter.frontend.noise import quiet
from rewriter.frontend.samples import one_line
from rewriter.rescuing.spellings import MARKS, TRT_OPS, every_node

#: The file of a SavedModel, as bytes or as text.
MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
#: How TensorFlow 2.15 and later may cut what does not fit in one message.
CHUNKED_FILE = "saved_model.cpb"


def import_protos() -> None:
    """Imports TensorFlow, whose message types are all that is needed of it.

    Raises:
        MissingDependencyError: it is not installed, or cannot be loaded.
    """
    import_quietly("tensorflow", "TensorFlow", "reading a SavedModel of TF-TRT")


def mentions_engines(directory: Path) -> bool:
    """Whether the file mentions an op of TF-TRT at all: a look at its bytes, without TensorFlow.

    False where there is no such file, or where it cannot be read.
    """
    for name in MODEL_FILES:
        path = directory / name
        try:
            if not path.stat().st_size:
                continue
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return any(content.find(mark.encode()) >= 0 for mark in MARKS)
        except OSError:
            continue
    return False


def parse(directory: Path) -> Any:
    """The SavedModel message of a directory.

    Raises:
        SourceError: there is none, or it is damaged.
    """
    import_protos()
    from tensorflow.python.saved_model.loader_impl import parse_saved_model

    if not directory.is_dir():
        raise SourceError(f"no such directory: {directory}" if not directory.exists() else f"{directory} is a file")
    if not any((directory / name).is_file() for name in MODEL_FILES):
        if (directory / CHUNKED_FILE).is_file():
            raise SourceError(
                f"the SavedModel in {directory} is cut into chunks ({CHUNKED_FILE}), which TensorFlow as it is "
                f"published cannot read: save it without experimental_image_format"
            )
        raise SourceError(f"{directory} is no SavedModel: it holds no saved_model.pb")
    try:
        with quiet():
            message = parse_saved_model(str(directory))
    except Exception as error:
        raise SourceError(
            f"the SavedModel in {directory} is damaged ({one_line(error)}): copy or export it again"
        ) from error
    if not message.meta_graphs:
        raise SourceError(f"the SavedModel in {directory} is damaged (it holds no graph): copy or export it again")
    return message


def holds_engines(message: Any) -> bool:
    """Whether a SavedModel message has a node of TF-TRT, in whatever graph or function."""
    return any(node.op in TRT_OPS for meta_graph in message.meta_graphs for node in every_node(meta_graph.graph_def))
