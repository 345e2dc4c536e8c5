"""How an engine is built at run time: as the conversion of the artifact would have built it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from passes.extract import rehash
from passes.precision.ranges import RangeTable
from passes.precision.recipe import Recipe
from passes.segments import SegmentModel
from rewriter import params as parameters
from rewriter.backends import as_backend
from rewriter.backends.base import Backend, BuildFailure, BuildOptions, BuiltEngine, Profile, Progress
from rewriter.building.cache import open_cache
from rewriter.building.entries import engine_entry
from rewriter.building.segment_builder import SegmentBuilder
from rewriter.errors import ConverterStateError
from rewriter.precision.lowering import Lowering
from rewriter.precision.workarounds import why_faulty
from rewriter.runtime.slot_values import StoredEngine
from rewriter.shapes.harvest import InputSet, Observations, SegmentObservations
from rewriter.shapes.profiles import make_profiles, static_profiles
from rewriter.temporary import TemporaryFolder, finalize_here

#: Exact profiles of one engine, at most: a profile costs build time and memory. Older shapes keep their older engines.
MAX_EXACT = 16
_EXACT = parameters.PROFILE_STRATEGY_OPTIMAL
_RANGE = parameters.PROFILE_STRATEGY_RANGE
_BOTH = parameters.PROFILE_STRATEGY_RANGE_OPTIMAL


class RuntimeBuilder:
    """Builds engines as the artifact's conversion did: same recipe, ranges, workspace, strategy and kind of key.

    A node of a segment that cannot be built is not searched for: the failure is the answer. The engines are bound to
    the TensorRT that is installed now, which may be another version than that of the conversion; what that version is
    known to compute wrongly is not built. Not thread-safe
    (`BackgroundBuilds` calls it from one thread), except for `close`.

    Args:
        recipe: the arithmetic of the engines.
        ranges: calibrated ranges; None for a recipe that needs none.
        params: the conversion parameters as the artifact keeps them; those that are missing have their defaults.
        backend: a name, opened with the first build and closed with this object, or an open backend of the caller.
            The name is best that of the artifact's engines ("tensorrt_rtx"); "auto" chooses.
        engine_cache_dir: folder of the engine cache; None for none.
        engine_cache_max_bytes: its cap; None for 8 GiB.
        abort_builds: True makes every build fail.

    Raises:
        InvalidParameterError: a parameter, or the folder, is not allowed.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        ranges: RangeTable | None,
        params: Mapping[str, Any],
        backend: str | Backend = "auto",
        engine_cache_dir: str | Path | None = None,
        engine_cache_max_bytes: int | None = None,
        abort_builds: bool = False,
    ) -> None:
        self._lowering = Lowering(recipe, ranges or RangeTable())
        self._params = dict(params)
        self._strategy = parameters.check_choice(
            "dynamic_shape_profile_strategy",
            params.get("dynamic_shape_profile_strategy") or _RANGE,
            parameters.supported_profile_strategies(),
        )
        self._backend = backend
        self._cache = open_cache(engine_cache_dir, engine_cache_max_bytes)
        self._abort = abort_builds
        self._builder: SegmentBuilder | None = None
        self._scratch = TemporaryFolder("trt-rewriter-")
        self._owned: list[Backend] = []
        self._finalizer = finalize_here(self, _release, self._scratch, self._owned)

    @property
    def most_sets(self) -> int | None:
        """How many input sets one build can be for; None for any number."""
        return MAX_EXACT if self._strategy == _EXACT else None

    def build(
        self,
        segment: SegmentModel,
        sets: Sequence[InputSet],
        counts: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> StoredEngine | BuildFailure:
        """Builds one engine.

        Args:
            segment: the native segment; its inputs are what `sets` speak of.
            sets: what the engine must take, oldest first; at most `most_sets`.
            counts: how often each was seen: the most frequent one is tuned for. Default: once each.
            progress: told of every step; returning False cancels.

        Returns:
            The engine, in a file that lives until `close()`; or the failure.

        Raises:
            ConverterStateError: the builder is closed.
            ConversionError: the segment cannot be lowered, or TensorRT is not installed or cannot be run.
        """
        if not self._finalizer.alive:
            raise ConverterStateError("the builder of engines is closed: load the artifact again")
        builder = self._ready()
        if not segment.content_hash:  # left out when the model was loaded, for it reads all weights
            segment = rehash(segment)
        lowered = self._lowering.apply(segment)
        if self._lowering.recipe.quantizes:
            backend = builder.backend
            fault = why_faulty(self._lowering, segment, lowered, backend.flavour, backend.version)
            if fault:
                return BuildFailure("fault", fault)
        profiles = self._profiles(segment, sets, counts or [1] * len(sets))
        build = builder.build(lowered, profiles, progress)
        if not isinstance(build.outcome, BuiltEngine):
            return build.outcome
        name, label = segment.segment.name, self._lowering.recipe.label
        entry = engine_entry(name, build.key, build.outcome, build.profiles, builder, label, segment.content_hash)
        return StoredEngine(entry, build.outcome.path)

    def close(self) -> None:
        """Ends an own backend and removes the engine files; harmless when repeated."""
        self._finalizer()

    def __enter__(self) -> RuntimeBuilder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ready(self) -> SegmentBuilder:
        if self._builder is None:
            backend = as_backend(self._backend)
            if isinstance(self._backend, str):
                self._owned.append(backend)
            targets = usable_targets(self._params.get("targets", ()), backend)
            options = build_options(self._params, self._lowering.recipe, targets)
            self._builder = SegmentBuilder(backend, options, self._scratch.path, self._cache, self._abort)
        return self._builder

    def _profiles(
        self, segment: SegmentModel, sets: Sequence[InputSet], counts: Sequence[int]
    ) -> tuple[Profile, ...] | str:
        """The profiles that the artifact's strategy makes of the sets; why there can be none."""
        fixed = static_profiles(segment)
        if fixed is not None:
            return fixed

        def made(strategy: str, first: int = 0) -> tuple[Profile, ...] | str:
            seen = SegmentObservations(tuple(sets[first:]), tuple(counts[first:]))
            return make_profiles(segment, Observations({segment.segment.name: seen}, len(sets)), strategy)

        if self._strategy != _BOTH or len(sets) <= MAX_EXACT:
            return made(self._strategy)
        ranges, exact = made(_RANGE), made(_EXACT, len(sets) - MAX_EXACT)
        if isinstance(ranges, str) or isinstance(exact, str):
            return ranges if isinstance(ranges, str) else exact
        return (*ranges, *(profile for profile in exact if profile not in ranges))


def build_options(params: Mapping[str, Any], recipe: Recipe, targets: tuple[str, ...]) -> BuildOptions:
    """What reaches the builder beside segments and profiles, as at the conversion of an artifact.

    Args:
        params: its conversion parameters; those that are missing have their defaults.
        recipe: the arithmetic of its engines.
        targets: compute capabilities, as "SM89"; () for the backend's default.
    """
    workspace = params.get("max_workspace_size_bytes", parameters.DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES)
    return BuildOptions(workspace_bytes=int(workspace), targets=targets, tf32=recipe.mode == "TF32")


def usable_targets(wanted: Iterable[str], backend: Backend) -> tuple[str, ...]:
    """The artifact's targets, without those that this TensorRT does not know; () for the backend's default."""
    known = getattr(backend, "known_targets", None)
    return tuple(target for target in wanted if known is None or target in known)


def _release(scratch: TemporaryFolder, owned: list[Backend]) -> None:
    for backend in owned:
        backend.close()
    scratch.remove()
