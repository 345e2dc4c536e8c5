"""Built engines as the spliced model and the artifact describe them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from passes.splice import EngineAttributes
from rewriter.artifact.manifest import EngineEntry, engine_file, profile_to_json
from rewriter.backends.base import BuiltEngine, Profile
from rewriter.building.builder import BuildResult, EngineBuilder
from rewriter.building.segment_builder import SegmentBuild, SegmentBuilder
from rewriter.runtime.device import installed_compute_capabilities


def built_for(builder: EngineBuilder | SegmentBuilder) -> tuple[str, ...]:
    """Compute capabilities that a builder's engines are for, as "SM89".

    A builder without targets builds for the GPU of this machine, which must be told: nobody could choose among engines
    from several machines otherwise. () where there is none, or GPUs differ, so that it is not known which one it was.
    """
    found = set(installed_compute_capabilities())
    if builder.targets or len(found) != 1 or (0, 0) in found:
        return builder.targets
    return tuple(f"SM{major}{minor}" for major, minor in found)


def engine_attributes(
    result: BuildResult, builds: Mapping[str, SegmentBuild], builder: EngineBuilder, precision: str
) -> dict[str, EngineAttributes]:
    """Attributes of every engine node; a segment that is not in `builds` is one without an engine."""
    attributes = {}
    for segment in result.plan.segments:
        name = segment.segment.name
        build = builds.get(name)
        engine = build.outcome if build and isinstance(build.outcome, BuiltEngine) else None
        plain = EngineAttributes(segment_hash=segment.content_hash, data_inputs=len(segment.segment.inputs))
        plain = dataclasses.replace(plain, precision=precision, not_runnable=result.plan.not_runnable.get(name, ""))
        attributes[name] = plain
        if build and engine:
            attributes[name] = dataclasses.replace(
                plain,
                engine_files=(engine_file(name, build.key),),
                engine_sha256=(engine.sha256,),
                profiles=json.dumps([profile_to_json(profile) for profile in build.profiles]),
                backend=builder.backend.flavour,
                backend_version=builder.backend.version,
                targets=built_for(builder),
            )
    return attributes


def engine_entries(
    result: BuildResult, builds: Mapping[str, SegmentBuild], builder: EngineBuilder, precision: str
) -> list[tuple[EngineEntry, Path]]:
    """What the artifact keeps of every built engine, with the file that holds it now."""
    hashes = {s.segment.name: s.content_hash for s in result.plan.segments}
    return [
        (
            engine_entry(name, build.key, build.outcome, build.profiles, builder, precision, hashes[name]),
            build.outcome.path,
        )
        for name, build in builds.items()
        if isinstance(build.outcome, BuiltEngine)
    ]


def engine_entry(
    op: str,
    key: str,
    engine: BuiltEngine,
    profiles: tuple[Profile, ...],
    builder: EngineBuilder | SegmentBuilder,
    precision: str,
    segment_hash: str,
) -> EngineEntry:
    """What the artifact keeps of one engine.

    Args:
        op: operator of its engine node.
        key: its content key.
        engine: the engine.
        profiles: what it was built for.
        builder: what built it.
        precision: label of the recipe.
        segment_hash: content hash of the segment before lowering.
    """
    return EngineEntry(
        op=op,
        key=key,
        size=engine.size,
        sha256=engine.sha256,
        backend=builder.backend.flavour,
        version=builder.backend.version,
        targets=built_for(builder),
        profiles=profiles,
        precision=precision,
        segment_hash=segment_hash,
    )
