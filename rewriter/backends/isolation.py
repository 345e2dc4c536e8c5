"""Asks the parser about one node at a time, each kind of node once."""

from __future__ import annotations

import hashlib

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from passes.extract import Extractor
from passes.graph_index import Scope
from passes.model import is_stub
from rewriter.backends.base import Backend, ParserError


class Isolation:
    """Parses single nodes; nodes of equal signature share one answer.

    The answer holds for the node alone: whether one of its inputs can be computed at build time, from constants
    upstream, cannot be seen in isolation.

    Args:
        backend: where the parser runs; the answers hold for this backend only.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._answers: dict[bytes, tuple[ParserError, ...]] = {}

    def check(self, extractor: Extractor, scope: Scope, node: str) -> tuple[ParserError, ...]:
        """The parser's errors for the node named `node` of the graph at `scope`, cut out alone."""
        model = extractor.extract_nodes(scope, [node], hashed=False).model
        key = signature(model.proto)
        if key not in self._answers:
            self._answers[key] = self._backend.parse(model)
        return self._answers[key]


def signature(proto: ModelProto) -> bytes:
    """A hash of a one-node model that does not depend on names of nodes and values.

    It covers operator, attributes (bodies literally), opsets, and of every input its dtype, its dims with all symbols
    alike, and whether it is a constant; small constants count with their values, large ones without.
    """
    digest = hashlib.sha256()
    graph = proto.graph
    inputs = {value.name: _type_of(value) for value in graph.input}
    constants = {
        t.name: repr((t.data_type, tuple(t.dims))).encode() + (b"" if is_stub(t) else _without_name(t))
        for t in graph.initializer
    }
    for opset in sorted(proto.opset_import, key=lambda o: o.domain):
        digest.update(f"{opset.domain}={opset.version};".encode())
    for node in graph.node:
        digest.update(f"{node.domain}::{node.op_type}/{[bool(o) for o in node.output]};".encode())
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            digest.update(attribute.SerializeToString(deterministic=True) + b";")
        for name in (*node.input, *_captured(node, {*inputs, *constants})):
            part = inputs[name].encode() if name in inputs else b"const " + constants.get(name, b"none")
            digest.update(hashlib.sha256(part).digest())
    return digest.digest()


def _captured(node: NodeProto, outside: set[str]) -> list[str]:
    """What only the bodies read: all that the model has and the node does not read itself."""
    return sorted(outside - set(node.input))


def _type_of(value: ValueInfoProto) -> str:
    if not value.type.HasField("tensor_type"):
        return "untyped"
    tensor = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else "?" for d in tensor.shape.dim]
    return f"{tensor.elem_type}{dims if tensor.HasField('shape') else 'no rank'}"


def _without_name(tensor: TensorProto) -> bytes:
    anonymous = TensorProto()
    anonymous.CopyFrom(tensor)
    anonymous.ClearField("name")
    return bytes(anonymous.SerializeToString(deterministic=True))
