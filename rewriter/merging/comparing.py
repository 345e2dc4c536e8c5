"""Whether two artifacts hold the same model, but for their engines: why not, in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from onnx import ModelProto

from passes.engine_node import EngineAttributes, engine_nodes, read_attributes, write_attributes
from passes.island_node import island_nodes
from passes.model import Model
from rewriter.artifact.parts import Artifact

#: Bytes of a weight that are compared at once: weights are mapped from a file and may be larger than the memory.
_CHUNK = 16 << 20
#: Parameters of a conversion that may differ: they say which engines are there, not what they compute.
_FREE_PARAMS = ("targets",)


def difference(first: Artifact, other: Artifact) -> str:
    """Why the engines of two artifacts cannot serve one model; "" when they can.

    Rules, the first that is broken is told:
        1. The signatures are equal: names, order, dtypes and shapes.
        2. Both have the same engine nodes, with equal segments, inputs and precision.
        3. The recipes are equal: engines of one node compute in one arithmetic.
        4. The graphs are equal, byte by byte, but for what engine nodes say of their engines, where SavedModels of
           TensorFlow parts lie, and which program wrote them.
        5. The weights are equal, bit by bit.

    The SavedModels of parts that stay in TensorFlow are not looked at: see `rewriter.merging.merge`.

    Raises:
        PassError: an engine node has lost attributes.
    """
    if first.signature != other.signature:
        return f"their signatures {first.signature.name!r} have other inputs or outputs"
    reason = _engine_difference(_facts(first.model.proto), _facts(other.model.proto))
    if reason:
        return reason
    if first.params.get("recipe") != other.params.get("recipe"):
        return "their recipes differ, so their engines compute in different arithmetic"
    if _bare(first.model) != _bare(other.model):
        return "their graphs differ outside of the engines"
    return _weight_difference(first.model.weights, other.model.weights)


def free_differences(first: Artifact, other: Artifact) -> tuple[str, ...]:
    """What may differ and does, as words: the merged artifact has it from the first one."""
    names = {**first.params, **other.params}
    params = [n for n in names if n not in _FREE_PARAMS and first.params.get(n) != other.params.get(n)]
    words = [f"parameter {name}" for name in params]
    if _ranges(first) != _ranges(other):
        words.append("calibration")
    return tuple(words)


def _ranges(artifact: Artifact) -> str | None:
    return None if artifact.ranges is None else artifact.ranges.to_json()


def _facts(proto: ModelProto) -> dict[str, EngineAttributes]:
    """Operator -> what its node says, without what depends on the engines that were built."""
    return {node.op_type: _without_engines(read_attributes(node)) for _, node in engine_nodes(proto)}


def _without_engines(attributes: EngineAttributes) -> EngineAttributes:
    return dataclasses.replace(
        attributes, engine_files=(), engine_sha256=(), profiles="[]", backend="", backend_version="", targets=()
    )


def _engine_difference(first: Mapping[str, EngineAttributes], other: Mapping[str, EngineAttributes]) -> str:
    if first.keys() != other.keys():
        alone = sorted(first.keys() ^ other.keys())[0]
        return f"one has {len(first)} engine nodes and the other {len(other)}, and only one of them {alone}"
    for op, mine in first.items():
        theirs = other[op]
        if mine.segment_hash != theirs.segment_hash:
            return f"the segment of {op} is not the same"
        if mine.precision != theirs.precision:
            return f"{op} is {mine.precision} in one and {theirs.precision} in the other"
        if mine != theirs:
            return f"{op} has other inputs, or only one of them is ever to have an engine"
    return ""


def _bare(model: Model) -> bytes:
    """The graph as bytes, without what may differ."""
    proto = model.copy_proto()
    proto.ClearField("producer_name")
    proto.ClearField("producer_version")
    for _, node in engine_nodes(proto):
        write_attributes(node, _without_engines(read_attributes(node)))
    for node in island_nodes(proto):
        for attribute in node.attribute:
            if attribute.name == "saved_model":
                attribute.s = b""
    return bytes(proto.SerializeToString(deterministic=True))


def _weight_difference(first: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> str:
    """Names and types are those of the graph, which was compared before."""
    for name, array in first.items():
        if name not in other or not _same_bytes(array, other[name]):
            return f"the weight {name!r} is not the same"
    return ""


def _same_bytes(first: np.ndarray, other: np.ndarray) -> bool:
    """Bit by bit, NaN and -0 included, a piece at a time."""
    if first.nbytes != other.nbytes:
        return False
    mine, theirs = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (first, other))
    return all(
        np.array_equal(mine[start : start + _CHUNK], theirs[start : start + _CHUNK])
        for start in range(0, mine.size, _CHUNK)
    )
