"""Adds engines to an artifact that is there: for more GPUs, and of the TensorRT that is installed here."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewriter import params as parameters
from rewriter.artifact.engines import save_engines
from rewriter.artifact.manifest import EngineEntry, profile_to_json
from rewriter.artifact.manifest_json import manifest_from_json
from rewriter.artifact.paths import checked_path
from rewriter.artifact.reading import read_manifest
from rewriter.backends import as_backend
from rewriter.backends.base import Backend, BuildFailure
from rewriter.building.cache import open_cache
from rewriter.building.entries import engine_entry
from rewriter.building.jobs import jobs_note
from rewriter.building.parallel import check_jobs, run_builds
from rewriter.building.segment_builder import SegmentBuild
from rewriter.by_signature import InputFns, by_signature, naming
from rewriter.errors import ArtifactError, ConversionError, InvalidParameterError
from rewriter.extending.planning import Builders, Planned, Source, Work, not_built, plan, read_source
from rewriter.extending.profiles import UNKNOWN
from rewriter.extending.results import AddedEngine, Extended
from rewriter.extending.targets import Grouped, asked_targets, check_known, group
from rewriter.progress import ProgressCallback, Stages, resolve
from rewriter.runtime.slot_values import StoredEngine
from rewriter.shapes.sampling import profile_input_fn, shapes_by_signature
from rewriter.source import Signature
from rewriter.temporary import TemporaryFolder

__all__ = ["build_engines"]


def build_engines(
    artifact: str | Path,
    *,
    targets: Iterable[str] = (),
    backends: Iterable[str | Backend] = ("auto",),
    together: bool = False,
    shapes: Mapping[str, Any] | None = None,
    input_fn: InputFns = None,
    signatures: Iterable[str] | None = None,
    jobs: int | None = None,
    engine_cache_dir: str | Path | None = None,
    engine_cache_max_bytes: int | None = None,
    progress: ProgressCallback | bool | None = None,
) -> Extended:
    """Builds engines for an artifact and adds them to it.

    The engines compute what those of the conversion compute: the artifact's own segments, recipe, calibrated ranges and
    workspace. TensorRT is the one that is installed here; engines run with the version that built them only, so for
    another one call this in an environment that has it, on the same artifact.

    Rules:
        1. Every engine node of every signature gets an engine for each target and package, or with `together` one for
           all targets of a package. Without targets it gets one, for those that the artifact names.
        2. They take the shapes of the engines that are there (`rewriter.extending.profiles.built_profiles`), so that
           all GPUs take the same; those of `shapes` or `input_fn`, where given; and where all shapes are fixed, those.
        3. What the artifact has already (an engine for the target, of the same package, version, segment and profiles)
           is not built again.
        4. A target or a segment that fails is told in `failures`, and the others go on.
        5. Engines are added when all are built, the manifest last and in one step for each signature
           (`rewriter.artifact.engines.save_engines`). Functions that have loaded the artifact go on as they are; the
           next load() sees the new engines. An artifact that was replaced meanwhile is left as it is.

    Args:
        artifact: the folder; it must be writable.
        targets: GPU architectures, as "sm80", "SM89" or "12.0"; TensorRT-RTX only. () for those of the artifact.
        backends: TensorRT packages, "tensorrt_rtx", "tensorrt" or "auto", or open ones of the caller.
        together: True builds one engine for all targets.
        shapes: input name -> the shapes that engines must cover, as `Converter.sample_input_fn` takes them; each
            signature takes those of its own inputs.
        input_fn: yields such inputs, as `Converter.build` takes it.
        signatures: whose engines to build; default: all.
        jobs: engines built at the same time, at most; default: what cores and memory allow, up to 8.
        engine_cache_dir: folder of the engine cache; None for none.
        engine_cache_max_bytes: its cap; None for 8 GiB.
        progress: as for `Converter`.

    Raises:
        InvalidParameterError: an argument is not allowed, a target is none that the installed TensorRT knows, or no
            shapes are known.
        MissingDependencyError: a package is not installed.
        ArtifactError: no artifact, a damaged one, one that cannot be written, or one that has no engine nodes.
        InputError: a sample does not fit the signature.
        BackendError: TensorRT cannot be run.
        ConversionError: no engine was built, and none is there.
    """
    root = checked_path(artifact).resolve()
    asked = asked_targets(targets)
    parameters.check_switch("together", together)
    check_jobs(jobs)
    inputs = _inputs(_signatures(root, signatures), shapes, input_fn)
    _check_writable(root)
    cache = open_cache(engine_cache_dir, engine_cache_max_bytes)
    stages = Stages(resolve(progress))
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(TemporaryFolder("trt-rewriter-"))
        opened = _opened(backends, jobs, stack)
        for backend in opened:
            check_known(backend, asked)
        with stages.stage("read"):
            sources = [_source(root, name, given, inputs) for name, given in inputs.items()]
            work = _plan(sources, opened, asked, Builders(scratch, cache), together=together)
            work.notes += [note for note in (jobs_note(backend, jobs) for backend in opened) if note]
        started = time.perf_counter()
        with stages.stage("build"):
            builds = run_builds([planned.task for planned in work.planned], jobs, stages.emit)
        seconds = time.perf_counter() - started
        work.failures += [
            not_built(planned, build.outcome)
            for planned, build in zip(work.planned, builds, strict=True)
            if isinstance(build.outcome, BuildFailure)
        ]
        with stages.stage("add"):
            added = [item for source in sources for item in _save(root, source, work, builds)]
    return _told(root, sources, added, work, seconds)


def _signatures(root: Path, wanted: Iterable[str] | None) -> dict[str, Signature]:
    """The signatures that are to get engines, in the artifact's order.

    Raises:
        InvalidParameterError: the artifact has no such signature, or none is asked for.
    """
    content = manifest_from_json(read_manifest(root), str(root))
    names = parameters.check_optional_names("signatures", wanted)
    if names is not None and not names:
        raise InvalidParameterError("signatures names none: leave it out for all of them")
    chosen = {content.part(name, str(root)).signature.name for name in names or ()}
    return {
        part.signature.name: part.signature for part in content.parts if names is None or part.signature.name in chosen
    }


def _inputs(
    signatures: Mapping[str, Signature], shapes: Mapping[str, Any] | None, input_fn: InputFns
) -> dict[str, Callable[[], Iterable[Any]] | None]:
    """Signature -> what yields inputs that its engines must take; None where nothing was given.

    Raises:
        InvalidParameterError: both are given, or one does not fit the signatures.
    """
    if shapes and input_fn is not None:
        raise InvalidParameterError("shapes and input_fn both say what engines must cover: give one of them")
    given: dict[str, Any] = by_signature("input_fn", input_fn, tuple(signatures))
    for function in given.values():
        parameters.check_input_fn("input_fn", function)
    for name, own in shapes_by_signature(signatures, shapes or {}).items():
        if own:
            with naming(name, signatures):
                given[name] = profile_input_fn(signatures[name], own)
    return {name: given.get(name) for name in signatures}


def _check_writable(root: Path) -> None:
    """Tells before any work what would only come out when all is built."""
    if not os.access(root, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write the artifact {root}: permission denied (or it is read-only)")


def _opened(backends: Iterable[str | Backend], jobs: int | None, stack: contextlib.ExitStack) -> list[Backend]:
    """The packages, each once; those that are opened here are closed with `stack`.

    Raises:
        InvalidParameterError: none, or none that is known.
        MissingDependencyError: one is not installed.
    """
    if isinstance(backends, str) or not isinstance(backends, Iterable):
        raise InvalidParameterError(f"backends must be a list, not {backends!r}: backends=['tensorrt_rtx']")
    opened: dict[str, Backend] = {}
    for given in backends:
        backend = as_backend(given, jobs=jobs) if isinstance(given, str) else as_backend(given)
        if isinstance(given, str):
            stack.callback(backend.close)
        opened.setdefault(backend.flavour, backend)
    if not opened:
        raise InvalidParameterError("backends names none: leave it out for the one that is installed")
    return list(opened.values())


def _source(root: Path, name: str, given: Any, signatures: Mapping[str, Any]) -> Source:
    with naming(name, signatures):
        return read_source(root, name, given)


def _plan(
    sources: Sequence[Source],
    backends: Sequence[Backend],
    asked: tuple[str, ...],
    builders: Builders,
    *,
    together: bool,
) -> Work:
    """What is to be built.

    Raises:
        InvalidParameterError: no shapes are known for any engine node.
        ArtifactError: there is no engine node that may have an engine.
    """
    if not any(source.nodes or source.failed for source in sources):
        root, notes = sources[0].artifact.path, "".join(f"; {note}" for source in sources for note in source.notes)
        if any(source.shapeless for source in sources):
            raise InvalidParameterError(f"{root}: {UNKNOWN}")
        raise ArtifactError(f"{root} has no engine node that may have an engine: there is nothing to build{notes}")
    work = Work()
    for source in sources:
        for backend in backends:
            own = source.artifact.params.get("targets") or ()
            grouped = group(backend, source.lowering.recipe.mode, asked, own, together=together)
            work.notes += [] if asked else _left_out(backend, own, grouped)
            plan(source, backend, grouped, builders, work, named=len(sources) > 1)
    return work


def _left_out(backend: Backend, own: Iterable[str], grouped: Grouped) -> Iterable[str]:
    """Says for which of the artifact's targets this TensorRT builds nothing, where it builds for some."""
    served = {target for targets in grouped.groups for target in targets}
    left = [target for target in own if target not in served]
    if served and left:
        yield f"{' '.join(left)}: left out, as {backend.flavour} {backend.version} builds no such engine for it"


def _save(root: Path, source: Source, work: Work, builds: Sequence[SegmentBuild]) -> list[AddedEngine]:
    """Adds the engines of one signature; those that another process has added meanwhile are noted as present."""
    seconds: dict[str, float] = {}
    engines = []
    for planned, build in zip(work.planned, builds, strict=True):
        if planned.source is source and not isinstance(build.outcome, BuildFailure):
            entry = _entry(planned, build)
            seconds[entry.file] = build.outcome.seconds
            engines.append(StoredEngine(entry, build.outcome.path))
    saved = {s.entry.file: s.entry for s in save_engines(root, engines, source.name, built_from=source.artifact)}
    for stored in engines:
        entry = stored.entry
        if entry.file not in saved:
            work.present.setdefault((source.name, entry.file), AddedEngine(source.name, entry))
    return [AddedEngine(source.name, entry, seconds[file]) for file, entry in saved.items()]


def _entry(planned: Planned, build: SegmentBuild) -> EngineEntry:
    outcome = build.outcome
    assert not isinstance(outcome, BuildFailure)  # noqa: S101 - narrows the type
    label, segment = planned.source.lowering.recipe.label, planned.node.segment
    return engine_entry(
        planned.node.op, build.key, outcome, build.profiles, planned.task.builder, label, segment.content_hash
    )


def _told(root: Path, sources: Sequence[Source], added: Sequence[AddedEngine], work: Work, seconds: float) -> Extended:
    """The result.

    Raises:
        ConversionError: there is nothing in it but failures.
    """
    if not added and not work.present:
        first = work.failures[0]
        what = " ".join([first.op or "every engine", *(["for", *first.targets] if first.targets else [])])
        more = f" ({len(work.failures)} failures in all)" if len(work.failures) > 1 else ""
        raise ConversionError(f"no engine was built for {root}: {what}: {first.reason}{more}")
    found = (note for source in sources for note in (*source.notes, *_room_notes(source, added)))
    notes = tuple(dict.fromkeys([*work.notes, *found]))
    return Extended(root, tuple(added), tuple(work.present.values()), tuple(work.failures), notes, seconds)


def _room_notes(source: Source, added: Sequence[AddedEngine]) -> Iterable[str]:
    """Says which nodes have more engines with different shapes now than one function keeps in memory."""
    entries = [item.entry for item in added if item.signature == source.name]
    grown = {(entry.op, entry.backend, entry.version) for entry in entries}
    different: dict[tuple[str, str, str], set[str]] = {}
    for entry in (*source.artifact.engines, *entries):
        profiles = json.dumps([profile_to_json(profile) for profile in entry.profiles])
        different.setdefault((entry.op, entry.backend, entry.version), set()).add(profiles)
    room = int(source.artifact.params.get("maximum_cached_engines", 1))
    for key, found in different.items():
        if key in grown and len(found) > room:
            yield (
                f"{key[0]} has engines for {len(found)} different ranges of shapes, and maximum_cached_engines is "
                f"{room}: load with maximum_cached_engines={len(found)} to have all of them in memory"
            )
