"""Unites the engines of several artifacts of one model in a new artifact."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from passes.base import PassError
from passes.engine_node import EngineAttributes, engine_nodes, read_attributes, write_attributes
from passes.island_node import island_nodes, read_island
from passes.model import Model
from rewriter.artifact import Artifact, ArtifactPart, EngineEntry, check_output, load_artifact, save_artifact
from rewriter.artifact.manifest import entry_summary, hash_file, profile_to_json
from rewriter.artifact.manifest_json import manifest_from_json
from rewriter.artifact.paths import checked_path
from rewriter.artifact.reading import read_manifest
from rewriter.errors import ArtifactError, InvalidParameterError
from rewriter.merging.comparing import difference, free_differences
from rewriter.params import DEFAULT_TRT_CONVERSION_PARAMS, check_switch

__all__ = ["Merged", "MergedEngine", "merge"]

#: The parameter that limits how many engines of one node are in memory.
_ROOM = "maximum_cached_engines"


@dataclasses.dataclass(frozen=True)
class MergedEngine:
    """One engine of a merged artifact.

    Attributes:
        signature: the signature whose engine it is.
        entry: the engine.
        source: the artifact that it was taken from.
    """

    signature: str
    entry: EngineEntry
    source: Path

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `trt-rewriter merge --json` prints it."""
        problem = {"problem": self.entry.problem} if self.entry.problem else {}
        return {"signature": self.signature, **entry_summary(self.entry), "source": str(self.source), **problem}


@dataclasses.dataclass(frozen=True)
class Merged:
    """What `merge` made.

    Attributes:
        path: the new artifact, resolved.
        sources: the artifacts it was made of, in the order given.
        engines: its engines, in the order in which it lists them.
        damaged: engines of the sources that were left out; `entry.problem` says what is wrong. The notes say where a
            whole copy of one was taken from another artifact.
        notes: what differs between the artifacts and was taken from the first one, and what was left out.
    """

    path: Path
    sources: tuple[Path, ...]
    engines: tuple[MergedEngine, ...]
    notes: tuple[str, ...]
    damaged: tuple[MergedEngine, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `trt-rewriter merge --json` prints it."""
        return {
            "path": str(self.path),
            "sources": [str(source) for source in self.sources],
            "engines": [engine.to_json() for engine in self.engines],
            "damaged": [engine.to_json() for engine in self.damaged],
            "notes": list(self.notes),
        }


def merge(artifacts: Iterable[str | Path], output: str | Path, *, overwrite: bool = False) -> Merged:
    """Makes one artifact that has the engines of all of several artifacts of the same model.

    Rules:
        1. The artifacts have equal signatures, graphs, weights, segments and precisions
           (`rewriter.merging.comparing.difference`); the SavedModels of parts that stay in TensorFlow have equal files.
        2. Each engine is there once: of engines with the same node and key the first is taken. Any of them will do,
           for the key is made of all that the builder got.
        3. A damaged or missing engine is left out, and told: another artifact may have it, and nothing could run it.
        4. Engines are listed artifact by artifact, in the order given.
        5. Report, calibration and parameters are those of the first artifact, but for two: "targets" are all targets of
           all of them, so that engines built at run time fit wherever the artifact is used; and
           "maximum_cached_engines" grows where one machine may run engines of one node with different profiles, up to
           what the artifacts allow together: no shape that one of them takes is lost by merging.
        6. The output is written whole or not at all, and may replace one of the artifacts (`overwrite`).

    Args:
        artifacts: at least two folders of artifacts.
        output: the folder to write.
        overwrite: True replaces an artifact there (see `save_artifact`).

    Raises:
        InvalidParameterError: fewer than two artifacts, or one is given twice; or `overwrite` is no True or False.
        ArtifactError: one is missing or damaged; all engines are; two are not of the same model, and the message names
            both and says what differs; or the output cannot be written.
    """
    roots = _roots(artifacts)
    check_output(output, check_switch("overwrite", overwrite))
    names = _signatures(roots)
    parts: list[ArtifactPart] = []
    engines: list[MergedEngine] = []
    left: list[MergedEngine] = []
    notes: dict[str, None] = {}
    for name in names:
        loaded = [load_artifact(root, signature=name) for root in roots]
        try:
            part, united = _merged_part(loaded)
        except PassError as error:
            raise ArtifactError(f"{roots[0]} cannot be merged: {error}") from error
        parts.append(part)
        engines += united
        left += _damaged(loaded)
        notes.update(dict.fromkeys(_notes(loaded, part, united)))
    if left and not engines:
        raise ArtifactError(
            f"{left[0].source} cannot be merged: all {len(left)} engines of these artifacts are damaged, "
            f"{left[0].entry.problem}: copy them, or build them again (trt-rewriter build)"
        )
    path = save_artifact(output, parts[0], *parts[1:], overwrite=overwrite, versions=loaded[0].versions)
    return Merged(path, roots, tuple(engines), tuple(notes), tuple(left))


def _roots(artifacts: Iterable[str | Path]) -> tuple[Path, ...]:
    """The folders, checked to be several different ones."""
    if isinstance(artifacts, (str, Path)):
        raise InvalidParameterError("merge needs a list of artifacts, not one path: merge([A, B], OUT)")
    if not isinstance(artifacts, Iterable):
        raise InvalidParameterError(f"merge needs a list of artifacts, not {artifacts!r}: merge([A, B], OUT)")
    roots = tuple(checked_path(path) for path in artifacts)
    if len(roots) < 2:
        raise InvalidParameterError(f"merge needs at least two artifacts, not {len(roots)}")
    seen: dict[Path, Path] = {}
    for root in roots:
        if root.resolve() in seen:
            raise InvalidParameterError(f"the artifact {root} is given twice: name each once")
        seen[root.resolve()] = root
    return roots


def _signatures(roots: Sequence[Path]) -> tuple[str, ...]:
    """The names of the signatures, which all artifacts have, in the order of the first."""
    contents = [manifest_from_json(read_manifest(root), str(root)) for root in roots]
    first, *others = [tuple(part.signature.name for part in content.parts) for content in contents]
    for root, names in zip(roots[1:], others, strict=True):
        if set(names) != set(first):
            own, theirs = (", ".join(map(repr, items)) for items in (first, names))
            raise _conflict(roots[0], root, f"the first has the signatures {own}, the other {theirs}")
    return first


def _merged_part(loaded: Sequence[Artifact]) -> tuple[ArtifactPart, list[MergedEngine]]:
    """One signature of the merged artifact, with its engines."""
    first, *others = loaded
    for other in others:
        reason = difference(first, other) or _island_difference(first.model, other.model)
        if reason:
            raise _conflict(first.path, other.path, reason)
    united = _united(loaded)
    part = ArtifactPart(
        model=_with_engines(first.model, [engine.entry for engine in united]),
        signature=first.signature,
        params=_params(loaded, united),
        report=first.report,
        engines=[(engine.entry, engine.source / engine.entry.file) for engine in united],
        ranges=first.ranges,
    )
    return part, united


def _conflict(first: Path, other: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{first} and {other} cannot be merged: {reason}: merge artifacts that were converted from one model with the "
        "same options, but for targets and backend"
    )


def _united(loaded: Sequence[Artifact]) -> list[MergedEngine]:
    """The engines of all that are whole, those of the first artifact first, each node and key once."""
    found: dict[str, MergedEngine] = {}
    for artifact in loaded:
        hashes = {node.op_type: read_attributes(node).segment_hash for _, node in engine_nodes(artifact.model.proto)}
        for entry in artifact.engines:
            if hashes.get(entry.op) != entry.segment_hash:
                raise ArtifactError(
                    f"{artifact.path} cannot be merged: its engine {entry.key} was not built of the segment of "
                    f"{entry.op}: convert the model again"
                )
            if entry.usable:
                found.setdefault(entry.file, MergedEngine(artifact.signature.name, entry, artifact.path))
    return list(found.values())


def _damaged(loaded: Sequence[Artifact]) -> list[MergedEngine]:
    """The engines that cannot be taken."""
    return [
        MergedEngine(artifact.signature.name, entry, artifact.path)
        for artifact in loaded
        for entry in artifact.engines
        if not entry.usable
    ]


def _with_engines(model: Model, entries: Sequence[EngineEntry]) -> Model:
    """The model with nodes that name these engines; profiles, packages and targets are those of all, each once."""
    proto = model.copy_proto()
    for _, node in engine_nodes(proto):
        own = [entry for entry in entries if entry.op == node.op_type]
        write_attributes(node, _named(read_attributes(node), own))
    return model.with_proto(proto)


def _named(attributes: EngineAttributes, own: Sequence[EngineEntry]) -> EngineAttributes:
    profiles = [profile_to_json(profile) for entry in own for profile in entry.profiles]
    distinct = list({json.dumps(profile): profile for profile in profiles}.values())
    return dataclasses.replace(
        attributes,
        engine_files=tuple(entry.file for entry in own),
        engine_sha256=tuple(entry.sha256 for entry in own),
        profiles=json.dumps(distinct),
        backend=", ".join(dict.fromkeys(entry.backend for entry in own)),
        backend_version=", ".join(dict.fromkeys(entry.version for entry in own)),
        targets=tuple(dict.fromkeys(target for entry in own for target in entry.targets)),
    )


def _params(loaded: Sequence[Artifact], united: Sequence[MergedEngine]) -> Mapping[str, Any]:
    """Those of the first artifact, with the targets of all, and room for the engines that one machine may need."""
    first = loaded[0].params
    targets = dict.fromkeys(target for artifact in loaded for target in artifact.params.get("targets") or ())
    merged = {**first, "targets": list(targets)} if targets else dict(first)
    allowed = [_room(artifact.params) for artifact in loaded]
    room = max(allowed[0], min(_most_profiles(united), sum(allowed)))
    return {**merged, _ROOM: room} if room != allowed[0] else merged


def _room(params: Mapping[str, Any]) -> int:
    """How many engines of one node may be in memory."""
    return int(params.get(_ROOM, DEFAULT_TRT_CONVERSION_PARAMS.maximum_cached_engines))


def _most_profiles(united: Sequence[MergedEngine]) -> int:
    """The largest number of different sets of profiles among engines of one node that one TensorRT runs."""
    sets: dict[tuple[str, str, str], set[str]] = {}
    for entry in (engine.entry for engine in united):
        profiles = json.dumps([profile_to_json(profile) for profile in entry.profiles])
        sets.setdefault((entry.op, entry.backend, entry.version), set()).add(profiles)
    return max(map(len, sets.values()), default=0)


def _island_difference(first: Model, other: Model) -> str:
    """Why the parts that stay in TensorFlow are not the same; "" when they are."""
    theirs = {node.op_type: Path(read_island(node).saved_model) for node in island_nodes(other.proto)}
    for node in island_nodes(first.proto):
        op, mine = node.op_type, Path(read_island(node).saved_model)
        own, others = _files(mine), _files(theirs[op])
        if own != others:
            name = min(name for name in {**own, **others} if own.get(name) != others.get(name))
            return f"the part {op}, which stays in TensorFlow, has other files ({name})"
    return ""


def _files(folder: Path) -> dict[str, object]:
    """Name -> size and hash of each file: when it was written does not matter."""
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def _notes(loaded: Sequence[Artifact], part: ArtifactPart, united: Sequence[MergedEngine]) -> Iterable[str]:
    """What the artifacts of one signature do not agree in, and what was left out."""
    first, *others = loaded
    yield f"report and calibration are those of {first.path}"
    room = _room(part.params)
    grown = room != _room(first.params)
    if grown:
        yield (
            f"{_ROOM} is {room}, not {_room(first.params)}: engines of one node have different profiles, and so many "
            "of them may be in memory at once"
        )
    for other in others:
        for words in free_differences(first, other):
            if not (grown and words == f"parameter {_ROOM}"):
                yield f"{words} of {other.path} differs: that of {first.path} is kept"
    taken = {engine.entry.file: engine.source for engine in united}
    for artifact in loaded:
        double = sum(entry.usable and taken[entry.file] != artifact.path for entry in artifact.engines)
        if double:
            yield f"equal engines are kept once, which leaves out {double} of {artifact.path}"
    for engine in _damaged(loaded):
        whole = taken.get(engine.entry.file)
        instead = f"that of {whole} is taken" if whole else "it is left out"
        yield f"{engine.source}: {engine.entry.problem}: {instead}"
