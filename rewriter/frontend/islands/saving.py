"""Islands as SavedModels: one folder each, one signature, nothing of this machine in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewriter.errors import ExportError
from rewriter.frontend.callee import import_tensorflow
from rewriter.frontend.islands.cutting import Known, Piece, input_names, island_graph
from rewriter.frontend.islands.graph import Graph, reached_functions
from rewriter.frontend.islands.loading import load_graph
from rewriter.frontend.islands.settling import settle
from rewriter.frontend.islands.vocabulary import PYTHON, TABLE_WRITES
from rewriter.frontend.large_weights import LargeWeights, with_weights
from rewriter.frontend.samples import one_line
from rewriter.temporary import TemporaryFolder

_RESOURCE = 20
#: The largest GraphDef that protobuf can write; the rest of a SavedModel is small.
SIZE_MAX = (1 << 31) - (1 << 20)


def save_island(
    graph: Graph,
    piece: Piece,
    known: Known,
    tables: Mapping[bytes, Any],
    folder: Path,
    origin: str,
    weights: LargeWeights | None = None,
) -> None:
    """Writes an island as a SavedModel with the signature "serving_default".

    Its inputs are "input_0", "input_1" ..., its outputs "output_0" ..., in the order of `piece`.

    Raises:
        ExportError: it runs Python code, changes a table, is larger than 2 GB, or TensorFlow cannot save it.
    """
    _check(graph, piece, origin)
    tf = import_tensorflow()
    made = with_weights(island_graph(graph, piece, known), weights, origin)
    if made.ByteSize() > SIZE_MAX:
        raise ExportError(
            f"a part of {origin} that stays in TensorFlow ({_told(piece)}) has {made.ByteSize() / 1e9:.1f} GB of "
            "weights, and TensorFlow's GraphDef ends at 2.1 GB: convert the model in parts"
        )
    specs = [
        (name, tf.TensorSpec(known.shapes[t], known.dtypes[t]))
        for name, t in zip(input_names(piece), piece.inputs, strict=True)
    ]
    loaded = load_graph(made, specs, [f"{node}:{port}" for node, port in piece.outputs], tables, origin)
    try:
        tf.saved_model.save(loaded.module, str(folder), signatures={"serving_default": loaded.function})
    except (ValueError, TypeError, AssertionError, tf.errors.OpError) as error:
        raise ExportError(f"TensorFlow cannot save its part of {origin} ({_told(piece)}): {one_line(error)}") from error
    settle(folder)


def _told(piece: Piece) -> str:
    return ", ".join(list(piece.island.reasons)[:3])


def _check(graph: Graph, piece: Piece, origin: str) -> None:
    """Refuses what would not compute the same in another process.

    Raises:
        ExportError: Python code, or a table that changes while the model runs.
    """
    nodes = [graph.all_nodes[name] for name in piece.nodes]
    for node in nodes:
        if node.op == "Placeholder" and node.attr["dtype"].type == _RESOURCE:
            raise ExportError(
                f"a part of {origin} that stays in TensorFlow reads the resource {node.name}, which is no lookup table "
                f"whose contents can be read ({_told(piece)}): convert the part of the model without it"
            )
    inner = [node for name in reached_functions(nodes, graph.library) for node in graph.library[name].node_def]
    for node in [*nodes, *inner]:
        if node.op in PYTHON:
            raise ExportError(
                f"{origin} runs Python code ({node.op} {node.name}), which is saved with no model: replace "
                "tf.py_function or tf.numpy_function by TensorFlow ops, or convert the part of the model without it"
            )
        if node.op in TABLE_WRITES:
            raise ExportError(
                f"{origin} changes a lookup table while it runs ({node.op} {node.name}), and no converted model keeps "
                "that: fill the table before the model is saved"
            )


#: Folders that nobody but this process has asked for; they go with it.
_TEMPORARY: dict[Path, TemporaryFolder] = {}


def new_folder(parent: Path | None) -> Path:
    """An empty folder for the islands of one model.

    Args:
        parent: the caller's folder, who owns what is put there; None for a temporary one, which goes when this
            process ends.
    """
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="islands-", dir=parent)).resolve()
    folder = TemporaryFolder("trt-rewriter-islands-")
    path = folder.path.resolve()
    _TEMPORARY[path] = folder
    return path


def remove_folder(path: Path) -> None:
    """Deletes what `new_folder` made, with all that is in it."""
    _TEMPORARY.pop(path, None)
    shutil.rmtree(path, ignore_errors=True)
