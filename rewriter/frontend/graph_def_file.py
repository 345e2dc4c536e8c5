"""GraphDef files, binary and text; what else ends in .pb is told by its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rewriter.errors import SourceError
from rewriter.frontend.samples import one_line

_OP = re.compile(r"[A-Za-z_][\w>./]*")
#: So many first bytes decide whether a file is text.
_HEAD = 4096


def parse(path: Path) -> Any:
    """The GraphDef in a file.

    Text or binary is told from the content, not from the suffix.

    Raises:
        SourceError: damaged, empty, cannot be read; or a SavedModel's or MetaGraph's proto.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.framework import graph_pb2

    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise SourceError(f"{path} is empty: a GraphDef file has at least one node")
    if _is_text(data):
        return _parse_text(data.decode("utf-8"), path)
    graph_def = graph_pb2.GraphDef()
    try:
        graph_def.ParseFromString(data)
        cause: Exception | None = None
    except DecodeError as error:
        cause = error
    if cause is None and _plausible(graph_def):
        return graph_def
    other = _other_kind(data)
    if other:
        raise SourceError(f"{path} {other}")
    told = f" ({one_line(cause)})" if cause else ""
    raise SourceError(f"{path} is no GraphDef, or is damaged{told}: copy or freeze it again") from cause


def _is_text(data: bytes) -> bool:
    """True for what can be protobuf text: no control characters but white space."""
    head = data[:_HEAD]
    return not any(byte < 32 and byte not in b"\t\n\r" for byte in head)


def _parse_text(text: str, path: Path) -> Any:
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from tensorflow.core.framework import graph_pb2
    from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

    told: text_format.ParseError | None = None
    for message, advice in (
        (graph_pb2.GraphDef(), ""),
        (saved_model_pb2.SavedModel(), _SAVED_MODEL),
        (meta_graph_pb2.MetaGraphDef(), _META_GRAPH),
    ):
        try:
            text_format.Parse(text, message)
        except text_format.ParseError as error:
            told = told or error
            continue
        if advice:
            raise SourceError(f"{path} {advice}")
        if not _plausible(message):
            raise SourceError(f"{path} is no GraphDef: it has no nodes")
        return message
    raise SourceError(f"{path} is no GraphDef in text form, or is damaged: {one_line(told)}") from told


def _plausible(graph_def: Any) -> bool:
    """True when every node has a name and an op; other messages, read as a GraphDef, have no or garbled nodes."""
    return bool(graph_def.node) and all(node.name and _OP.fullmatch(node.op) for node in graph_def.node)


_SAVED_MODEL = "is the proto of a SavedModel: pass the directory that holds it (as saved_model.pb) and its variables/"
_META_GRAPH = (
    "is a MetaGraph (a TF1 checkpoint's .meta), which holds no weights: restore it with "
    "tf.compat.v1.train.import_meta_graph, freeze it with tf.compat.v1.graph_util.convert_variables_to_constants, and "
    "pass that GraphDef"
)


def _other_kind(data: bytes) -> str:
    """What else the bytes are, with advice; empty for nothing known."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

    saved_model, meta_graph = saved_model_pb2.SavedModel(), meta_graph_pb2.MetaGraphDef()
    try:
        saved_model.ParseFromString(data)
        if saved_model.saved_model_schema_version and saved_model.meta_graphs:
            return _SAVED_MODEL
    except DecodeError:
        pass
    try:
        meta_graph.ParseFromString(data)
    except DecodeError:
        return ""
    return _META_GRAPH if _plausible(meta_graph.graph_def) else ""
