"""Which engines an artifact lacks, and how each of them is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from passes.base import PassError
from passes.engine_node import read_engines, what_if_nodes
from passes.model import Model
from passes.precision.ranges import RangeTable
from passes.segments import SegmentModel
from passes.splice import unsplice
from rewriter.artifact import Artifact, EngineEntry, load_artifact
from rewriter.backends.base import Backend, BuildFailure, BuildOptions, Profile
from rewriter.building.cache import EngineCache
from rewriter.building.parallel import BuildTask
from rewriter.building.segment_builder import SegmentBuilder
from rewriter.errors import ArtifactError, ConversionError
from rewriter.extending.profiles import UNKNOWN, Choice, built_profiles, observed_profiles
from rewriter.extending.results import AddedEngine, MissingEngine
from rewriter.extending.targets import Grouped
from rewriter.precision.emulation import engine_segments
from rewriter.precision.lowering import Lowered, Lowering
from rewriter.precision.workarounds import why_faulty
from rewriter.runtime.runtime_builder import build_options
from rewriter.shapes.sampling import InputFn, batch_input_fn

__all__ = ["Builders", "Node", "Planned", "Source", "Work", "not_built", "plan", "read_source"]


@dataclasses.dataclass(frozen=True)
class Node:
    """One engine node that is to get engines.

    Attributes:
        segment: its native segment.
        lowered: the segment as TensorRT gets it.
        choice: the profiles of each of its engines.
    """

    segment: SegmentModel
    lowered: Lowered
    choice: tuple[tuple[Profile, ...], ...]

    @property
    def op(self) -> str:
        """Its operator."""
        return self.segment.segment.name


@dataclasses.dataclass(frozen=True)
class Source:
    """One signature of the artifact, ready to be built for.

    Attributes:
        artifact: as it was read.
        lowering: the arithmetic of its engines.
        nodes: those of its engine nodes that are to get engines.
        failed: operator of a node that can have none here -> why.
        shapeless: operators of nodes for which no shapes are known.
        notes: which nodes are not to get engines, and why.
    """

    artifact: Artifact
    lowering: Lowering
    nodes: tuple[Node, ...]
    failed: Mapping[str, BuildFailure]
    shapeless: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The signature's name."""
        return self.artifact.signature.name


@dataclasses.dataclass(frozen=True)
class Planned:
    """One engine that is to be built.

    Attributes:
        source: the signature whose engine it is.
        node: its engine node.
        task: how it is built.
    """

    source: Source
    node: Node
    task: BuildTask


@dataclasses.dataclass
class Work:
    """What is to be built, and what is not; grows while it is planned."""

    planned: list[Planned] = dataclasses.field(default_factory=list)
    present: dict[tuple[str, str], AddedEngine] = dataclasses.field(default_factory=dict)
    failures: list[MissingEngine] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Builders:
    """One builder for each TensorRT package and set of options, shared by signatures: equal engines are built once.

    Attributes:
        scratch: folder that holds the engine files; the caller owns it.
        cache: engine cache on disk; None for none.
    """

    scratch: Path
    cache: EngineCache | None
    _known: dict[tuple[int, BuildOptions], SegmentBuilder] = dataclasses.field(default_factory=dict)

    def of(self, backend: Backend, options: BuildOptions) -> SegmentBuilder:
        """The builder for these options."""
        key = id(backend), options
        if key not in self._known:
            self._known[key] = SegmentBuilder(backend, options, self.scratch, self.cache)
        return self._known[key]


def read_source(root: Path, name: str, input_fn: InputFn | None) -> Source:
    """Reads one signature, and finds what its engines are built for.

    Args:
        root: the artifact.
        name: the signature.
        input_fn: yields inputs whose shapes the engines must cover; None: those of the engines that are there, or for
            fixed shapes none are needed.

    Raises:
        InputError, ConversionError: an input does not fit, or the native model fails on it.
        ArtifactError: the artifact, or its model, is damaged, or it was made by another version of this program.
    """
    artifact = load_artifact(root, signature=name)
    recipe = artifact.recipe("extended")
    native, segments, notes = _segments(artifact)
    if input_fn is None and not artifact.engines and not artifact.params.get("is_dynamic_op", True):
        input_fn = batch_input_fn(artifact.signature, int(artifact.params.get("max_batch_size", 1)))
    if input_fn is None:
        choices: Mapping[str, Choice] = {s.segment.name: built_profiles(s, artifact.engines) for s in segments}
    else:
        choices = observed_profiles(native, segments, artifact.signature, input_fn, artifact.params)
    shapeless = tuple(op for op, choice in choices.items() if choice == UNKNOWN)
    lowering = Lowering(recipe, artifact.ranges or RangeTable())
    nodes: list[Node] = []
    failed: dict[str, BuildFailure] = {}
    for segment in segments:
        op = segment.segment.name
        if op not in shapeless:
            node = _node(segment, lowering, choices[op])
            if isinstance(node, Node):
                nodes.append(node)
            else:
                failed[op] = node
    notes = (*notes, *(f"{op} was left out: {UNKNOWN}" for op in shapeless))
    return Source(artifact, lowering, tuple(nodes), failed, shapeless, notes)


def _node(segment: SegmentModel, lowering: Lowering, choice: Choice) -> Node | BuildFailure:
    """One engine node; or why it can have no engine."""
    if isinstance(choice, str):
        return BuildFailure("profile", choice)
    try:
        return Node(segment, lowering.apply(segment), choice)
    except ConversionError as error:
        return BuildFailure("lowering", str(error))


def _segments(artifact: Artifact) -> tuple[Model, tuple[SegmentModel, ...], tuple[str, ...]]:
    """(the native model, the segments that may have engines, notes about the others)."""
    try:
        native = unsplice(artifact.model)
        segments = engine_segments(artifact.model, native, every=True, hashed=True)
        hashes = {op: attributes.segment_hash for _, attributes, op in read_engines(artifact.model.proto)}
    except PassError as error:
        raise ArtifactError(f"{artifact.path} cannot be extended: {error}") from error
    fakes = what_if_nodes(artifact.model.proto)
    for segment in segments:
        if hashes[segment.segment.name] != segment.content_hash:
            raise ArtifactError(
                f"{artifact.path} cannot be extended: the segment of {segment.segment.name} is not the one that was "
                "converted, or another version of trt-rewriter converted it: convert the model again"
            )
    kept = tuple(segment for segment in segments if segment.segment.name not in fakes)
    return native, kept, tuple(f"{op} was left out: {reason}" for op, reason in fakes.items())


def plan(source: Source, backend: Backend, grouped: Grouped, builders: Builders, work: Work, *, named: bool) -> None:
    """Adds to `work` what one TensorRT package is to build of one signature.

    Rules:
        1. A target for which the artifact has an engine of this package, version, segment and profiles that is in good
           order is served by that one, also where that engine serves other targets, too.
        2. What this version of the package computes wrongly is not built: the engines of one node have one arithmetic.

    Args:
        source: the signature.
        backend: the package.
        grouped: what its engines are built for.
        builders: gives the builders.
        work: grows.
        named: whether the labels of tasks name the signature.
    """
    params, recipe = source.artifact.params, source.lowering.recipe

    def fail(op: str, targets: tuple[str, ...], failure: BuildFailure) -> None:
        work.failures.append(_missing(source, op, backend, targets, failure))

    for target, reason in grouped.refused.items():
        fail("", (target,), BuildFailure("target", reason))
    for targets in grouped.groups:
        for op, failure in source.failed.items():
            fail(op, targets, failure)
    for node in source.nodes:
        fault = _fault(source.lowering, node, backend)
        for targets in grouped.groups:
            if fault is not None:
                fail(node.op, targets, fault)
                continue
            for profiles in node.choice:
                builder = builders.of(backend, build_options(params, recipe, targets))
                left = _unserved(source, node, builder, profiles, work)
                if left is not None:
                    builder = builders.of(backend, build_options(params, recipe, left))
                    label = " ".join([*([source.name] if named else []), node.op, *(["for", *left] if left else [])])
                    work.planned.append(Planned(source, node, BuildTask(label, builder, node.lowered, profiles)))


def _fault(lowering: Lowering, node: Node, backend: Backend) -> BuildFailure | None:
    """What this version of the package gets wrong in the node's arithmetic; None for nothing."""
    if not lowering.recipe.quantizes:  # asking for the version starts TensorRT
        return None
    reason = why_faulty(lowering, node.segment, node.lowered, backend.flavour, backend.version)
    return BuildFailure("fault", reason) if reason else None


def _unserved(
    source: Source, node: Node, builder: SegmentBuilder, profiles: tuple[Profile, ...], work: Work
) -> tuple[str, ...] | None:
    """The targets that no engine of the artifact serves; None when all are served. Notes those that serve."""
    entries = list(_serving(source, node, builder, profiles))
    if not builder.targets:
        key = builder.key(node.lowered, profiles)
        entries = [entry for entry in entries if entry.key == key]
        _note_present(source, entries[:1], work)
        return None if entries else ()
    first = {target: entry for entry in reversed(entries) for target in entry.targets}
    left = tuple(target for target in builder.targets if target not in first)
    _note_present(source, [first[target] for target in builder.targets if target in first], work)
    return left or None


def _serving(
    source: Source, node: Node, builder: SegmentBuilder, profiles: tuple[Profile, ...]
) -> Iterable[EngineEntry]:
    """The artifact's engines in good order that are what the builder would build, but for their targets."""
    backend, label = builder.backend, source.lowering.recipe.label
    wanted = (node.op, node.segment.content_hash, backend.flavour, backend.version, label)
    for entry in source.artifact.engines:
        found = (entry.op, entry.segment_hash, entry.backend, entry.version, entry.precision)
        if entry.usable and found == wanted and _same(entry.profiles, profiles):
            yield entry


def _same(first: Sequence[Profile], other: Sequence[Profile]) -> bool:
    return [dict(profile) for profile in first] == [dict(profile) for profile in other]


def _note_present(source: Source, entries: Iterable[EngineEntry], work: Work) -> None:
    for entry in entries:
        work.present.setdefault((source.name, entry.file), AddedEngine(source.name, entry))


def _missing(
    source: Source, op: str, backend: Backend, targets: tuple[str, ...], failure: BuildFailure
) -> MissingEngine:
    return MissingEngine(source.name, op, backend.flavour, backend.version, targets, failure.kind, failure.reason)


def not_built(planned: Planned, failure: BuildFailure) -> MissingEngine:
    """The failed build of a planned engine."""
    builder = planned.task.builder
    return _missing(planned.source, planned.node.op, builder.backend, builder.options.targets, failure)
