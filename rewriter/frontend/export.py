"""From a frozen GraphDef to ONNX, through tf2onnx with our handlers, patches and naming."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import GraphProto, ModelProto

from rewriter.errors import ExportError
from rewriter.frontend import patches
from rewriter.frontend.callee import import_tensorflow
from rewriter.frontend.freeze import Frozen
from rewriter.frontend.handlers import handlers
from rewriter.frontend.islands.vocabulary import MADE_OF
from rewriter.frontend.naming import bodies
from rewriter.frontend.no_text import const_without_text
from rewriter.frontend.noise import quiet
from rewriter.frontend.quantization import left_to_us
from rewriter.frontend.samples import one_line

_LOG = logging.getLogger(__name__)
OPSET = 18


class UnknownOpsError(ExportError):
    """The export holds ops that ONNX has no word for.

    Attributes:
        nodes: (op, node name) of each; the name is "" for an operator of TensorFlow that may be what was not written.
    """

    def __init__(self, message: str, nodes: tuple[tuple[str, str], ...]) -> None:
        super().__init__(message)
        self.nodes = nodes


def export(frozen: Frozen, origin: str) -> tuple[ModelProto, tuple[str, ...]]:
    """The ONNX model, and notes: what the user should know of it, a line each.

    Its inputs and outputs carry the frozen graph's tensor names, in order. Where the frozen graph has its large weights
    in files, the proto has stubs of them, which `large_weights.attached` turns into weights of a `Model`.

    The converter's optimizers work in place (its own way is to copy the graph, weights included, before each of
    about 50 runs); if one raises, the export is repeated in the slow, copying way.

    Raises:
        UnknownOpsError: an op that ONNX has no word for.
        ExportError: the converter failed, or an output is a constant of bytes that are no text.
    """
    _check_text(frozen, origin)
    with quiet():
        try:
            proto, notes = _convert(frozen, copy=False)
        except Exception as first:  # noqa: BLE001 - a converter raises anything; the second try decides
            _LOG.debug("export in place failed (%s), again with copies", one_line(first), exc_info=True)
            try:
                proto, notes = _convert(frozen, copy=True)
            except Exception as error:
                raise ExportError(f"the converter to ONNX failed on {origin}: {one_line(error)}") from error
    unknown = list(unknown_nodes(proto))
    if unknown:
        makers = [(maker, "") for op in sorted({op for op, _ in unknown}) for maker in MADE_OF.get(op, ())]
        raise UnknownOpsError(_no_word_for(unknown, origin), (*unknown, *makers))
    for note in notes:
        _LOG.warning("%s", note)
    return proto, notes


def _check_text(frozen: Frozen, origin: str) -> None:
    """Raises where constants hold bytes that are no UTF-8 text.

    Raises:
        ExportError: there is such a constant; nodes that read one have been sent to TensorFlow before.
    """
    for node in frozen.graph_def.node:
        if const_without_text(node):
            raise ExportError(
                f"{origin} holds the constant {node.name} of bytes that are no UTF-8 text, which ONNX cannot hold: "
                "leave it out of the outputs, or write it as base64"
            )


def _convert(frozen: Frozen, copy: bool) -> tuple[ModelProto, tuple[str, ...]]:
    """What tf2onnx's command does after freezing."""
    tf = import_tensorflow()
    from tf2onnx import optimizer, tfonnx

    notes: list[str] = []
    lent = frozen.weights.lent() if frozen.weights is not None else contextlib.nullcontext()
    with tf.Graph().as_default() as graph, patches.applied(), left_to_us(), lent:
        tf.import_graph_def(frozen.graph_def, name="")
        converted = tfonnx.process_tf_graph(
            graph,
            continue_on_error=True,
            opset=OPSET,
            custom_op_handlers=handlers(notes),
            input_names=list(frozen.inputs),
            output_names=list(frozen.outputs),
            initialized_tables=dict(frozen.tables),
        )
        converted = optimizer.optimize_graph(converted, catch_errors=copy)
        proto: ModelProto = converted.make_model("trt-rewriter")
    return proto, tuple(dict.fromkeys(notes))


def unknown_nodes(proto: ModelProto) -> Iterator[tuple[str, str]]:
    """(op, node name) of every node, in bodies and functions too, whose op no schema of its opset describes.

    ONNX Runtime's own operators are among them: the passes and TensorRT know nothing of them.
    """
    versions = {o.domain: o.version for o in proto.opset_import}
    local = {(f.domain, f.name) for f in proto.functions}
    for node in _nodes(proto.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (node.domain, node.op_type) in local:
            continue
        if not onnx.defs.has(node.op_type, versions.get(domain, 1), domain):
            yield (f"{domain}::{node.op_type}" if domain else node.op_type), node.name


def _nodes(graph: GraphProto) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from _nodes(body)


def _no_word_for(unknown: list[tuple[str, str]], origin: str) -> str:
    """One line that names the ops and, for each, up to three nodes."""
    names: dict[str, list[str]] = {}
    for op, name in unknown:
        names.setdefault(op, []).append(name)
    told = ", ".join(
        f"{op} ({', '.join(n[:3])}{' and ' + str(len(n) - 3) + ' more' if len(n) > 3 else ''})"
        for op, n in names.items()
    )
    return (
        f"{origin} uses ops that ONNX has no word for: {told}. Convert the part of the model without them "
        "(preprocessing usually stays in TensorFlow) or replace them"
    )
