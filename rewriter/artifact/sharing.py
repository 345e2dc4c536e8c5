"""Engines that several signatures of an artifact share: one file for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from passes.engine_node import engine_nodes, read_attributes, write_attributes
from passes.model import Model
from rewriter.artifact.manifest import EngineEntry
from rewriter.artifact.parts import ArtifactPart
from rewriter.errors import ArtifactError


def share_engines(parts: Sequence[ArtifactPart]) -> tuple[ArtifactPart, ...]:
    """The parts with one and the same engine wherever node and key agree.

    Equal segments that were built twice have equal keys, but the bytes of two builds differ. Any of them will do, and
    there is one file for all: the first signature's engine serves the others as well.

    Raises:
        ArtifactError: a signature has two engines of one key, or those of two signatures were built of different
            segments.
    """
    kept: dict[str, tuple[EngineEntry, Path]] = {}
    return tuple(_shared(part, kept) for part in parts)


def _shared(part: ArtifactPart, kept: dict[str, tuple[EngineEntry, Path]]) -> ArtifactPart:
    """The part with engines out of `kept`, which gets those that it lacks."""
    engines: dict[str, tuple[EngineEntry, Path]] = {}
    digests: dict[str, str] = {}
    for entry, source in part.engines:
        if entry.file in engines:
            raise ArtifactError(f"engine {entry.op} is given twice with the key {entry.key}")
        first, _ = engines[entry.file] = kept.setdefault(entry.file, (entry, source))
        if first.segment_hash != entry.segment_hash:
            raise ArtifactError(f"engine {entry.op}: two segments have one key, {entry.key}: convert the model again")
        if first.sha256 != entry.sha256:
            digests[entry.file] = first.sha256
    if not digests:
        return part
    return dataclasses.replace(part, model=_with_digests(part.model, digests), engines=tuple(engines.values()))


def _with_digests(model: Model, digests: Mapping[str, str]) -> Model:
    """The model with other digests (hex) in its engine nodes, by engine file."""
    proto = model.copy_proto()
    for _, node in engine_nodes(proto):
        attributes = read_attributes(node)
        named = zip(attributes.engine_files, attributes.engine_sha256, strict=True)
        changed = tuple(digests.get(file, digest) for file, digest in named)
        write_attributes(node, dataclasses.replace(attributes, engine_sha256=changed))
    return model.with_proto(proto)
