"""The engine node: its typed attributes, written and read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from onnx import AttributeProto, ModelProto, NodeProto

from passes.base import PassError
from passes.graph.walk import Scope, iter_scopes
from passes.segments import ENGINE_DOMAIN


@dataclasses.dataclass(frozen=True)
class EngineAttributes:
    """What an engine node says of its engines.

    In the node they are INT, STRING and STRINGS attributes of these names, UTF-8, never raw bytes; an empty list is
    left out, for some tools cannot write an attribute that is an empty list.

    Attributes:
        segment_hash: `SegmentModel.content_hash`.
        data_inputs: the first so many inputs of the node are data, the rest are weights.
        precision: label of the recipe, "FP32" for the segment as it is.
        engine_files: paths of the engines relative to the model file; () for a segment that is not built.
        engine_sha256: hex digests of these files, in the same order.
        profiles: JSON text: the optimization profiles.
        backend: the TensorRT package, "" when not built.
        backend_version: its version.
        targets: compute capabilities the engines run on, as "SM89".
        not_runnable: why no engine must ever be built for it ("what if" segments); "" for every other node. Written
            only where it is not empty.
    """

    segment_hash: str
    data_inputs: int
    precision: str = "FP32"
    engine_files: tuple[str, ...] = ()
    engine_sha256: tuple[str, ...] = ()
    profiles: str = "[]"
    backend: str = ""
    backend_version: str = ""
    targets: tuple[str, ...] = ()
    not_runnable: str = ""

    def __post_init__(self) -> None:
        if len(self.engine_files) != len(self.engine_sha256):
            raise ValueError(f"{len(self.engine_files)} engine files, but {len(self.engine_sha256)} digests")


_TEXTS = ("segment_hash", "precision", "profiles", "backend", "backend_version")
_RARE_TEXTS = ("not_runnable",)
_LISTS = ("engine_files", "engine_sha256", "targets")


def write_attributes(node: NodeProto, attributes: EngineAttributes) -> None:
    """Replaces the attributes of `node` by these."""
    del node.attribute[:]
    node.attribute.add(name="data_inputs", type=AttributeProto.INT, i=attributes.data_inputs)
    for name in _TEXTS:
        node.attribute.add(name=name, type=AttributeProto.STRING, s=getattr(attributes, name).encode())
    for name in _LISTS:
        values = [text.encode() for text in getattr(attributes, name)]
        if values:
            node.attribute.add(name=name, type=AttributeProto.STRINGS, strings=values)
    for name in _RARE_TEXTS:
        if text := getattr(attributes, name):
            node.attribute.add(name=name, type=AttributeProto.STRING, s=text.encode())


def read_attributes(node: NodeProto) -> EngineAttributes:
    """The attributes of an engine node; unknown ones are ignored, lists and `not_runnable` default to empty.

    Raises:
        PassError: one is missing, has another type or is not UTF-8; the message names node and attribute.
    """
    found = {a.name: a for a in node.attribute}
    kinds = dict.fromkeys(_TEXTS, AttributeProto.STRING) | {"data_inputs": AttributeProto.INT}
    kinds |= {name: AttributeProto.STRINGS for name in _LISTS if name in found}
    kinds |= {name: AttributeProto.STRING for name in _RARE_TEXTS if name in found}
    for name, kind in kinds.items():
        if name not in found or found[name].type != kind:
            problem = "has a wrong type of" if name in found else "lacks"
            raise PassError(f"engine node {node.name!r} {problem} the attribute {name!r}: convert the model again")
    values: dict[str, Any] = {"data_inputs": found["data_inputs"].i}
    try:
        values.update((name, found[name].s.decode()) for name in (*_TEXTS, *_RARE_TEXTS) if name in found)
        values.update((name, tuple(s.decode() for s in found[name].strings)) for name in _LISTS if name in found)
        return EngineAttributes(**values)
    except ValueError as error:
        raise PassError(
            f"engine node {node.name!r} has damaged attributes ({error}): convert the model again"
        ) from error


def engine_nodes(proto: ModelProto) -> Iterator[tuple[Scope, NodeProto]]:
    """All engine nodes with the way to the graph they lie in, main graph first, in graph order."""
    for scope, graph in iter_scopes(proto):
        for node in graph.node:
            if node.domain == ENGINE_DOMAIN:
                yield scope, node


def read_engines(proto: ModelProto) -> tuple[tuple[Scope, EngineAttributes, str], ...]:
    """(scope, attributes, operator) of every engine node; the operator is its segment's name and its function's.

    Raises:
        PassError: an engine node has lost attributes.
    """
    return tuple((scope, read_attributes(node), node.op_type) for scope, node in engine_nodes(proto))


def what_if_nodes(proto: ModelProto) -> dict[str, str]:
    """Operator -> why it never gets an engine, for engine nodes that rest on a fake list."""
    return {
        node.op_type: f"not runnable: {attribute.s.decode('utf-8', 'replace')}"
        for _, node in engine_nodes(proto)
        for attribute in node.attribute
        if attribute.name == "not_runnable" and attribute.s
    }
