"""From a plan to engines: build every segment, deny what the builder names, plan again, a bounded number of times."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from passes.extract import Extractor
from passes.model import Model
from passes.partition import PartitionOptions
from passes.segments import SegmentModel
from passes.support import Verdict
from rewriter.backends.base import Backend, BuildFailure, BuildOptions, BuiltEngine, Profile, Progress
from rewriter.building.cache import EngineCache
from rewriter.building.compile import blame, compile_segment
from rewriter.building.planning import MAX_REFINEMENTS, Plan, SegmentChecker, make_plan, whole
from rewriter.manifest import profile_to_json
from rewriter.precision.lowering import Lowered, Lowering
from rewriter.report import Failure
from rewriter.runtime.device import installed_gpu_names

logger = logging.getLogger(__name__)

#: segment name -> its profiles, or the reason (one line) why it can have none.
Profiles = Mapping[str, tuple[Profile, ...] | str]
#: Called with (segment name, index, number of segments, phase, steps done, steps in all); False cancels.
BuildProgress = Callable[[str, int, int, str, int, int], bool]


@dataclasses.dataclass(frozen=True)
class SegmentBuild:
    """What became of one segment.

    Attributes:
        key: content key of the engine: everything that reached the builder, hashed; also its file name.
        profiles: the optimization profiles it was built for.
        outcome: the engine, or why there is none.
        lowered: the segment as TensorRT got it.
    """

    key: str
    profiles: tuple[Profile, ...]
    outcome: BuiltEngine | BuildFailure
    lowered: Lowered


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """What was finally built; failed builds may have changed plan and lowering.

    Attributes:
        plan: the segments.
        builds: segment name -> what became of it; empty before the first build.
        failures: what was survived on the way.
        lowering: the arithmetic of the engines, with what had to be kept out of it.
    """

    plan: Plan
    builds: Mapping[str, SegmentBuild]
    failures: tuple[Failure, ...]
    lowering: Lowering = dataclasses.field(default_factory=Lowering)


@dataclasses.dataclass
class EngineBuilder:
    """Builds plans; what an earlier round or call built, or failed to build, is not tried again (by key).

    Attributes:
        backend: where TensorRT runs.
        checker: re-parses segments after a denial.
        options: workspace, targets and level, the same for every segment.
        partition: how to cut after a denial.
        scratch: folder that holds the engine files; the caller owns it.
        cache: engines of earlier conversions on disk; None for none.
    """

    backend: Backend
    checker: SegmentChecker
    options: BuildOptions
    partition: PartitionOptions
    scratch: Path
    cache: EngineCache | None = None
    _outcomes: dict[str, BuiltEngine | BuildFailure] = dataclasses.field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """The GPU architectures that engines are built for."""
        return self.options.targets or self.backend.default_targets

    def build(
        self,
        model: Model,
        plan: Plan,
        observe: Callable[[Plan], Profiles],
        progress: BuildProgress | None = None,
        lowering: Lowering | None = None,
    ) -> BuildResult:
        """Builds every segment of `plan`.

        A node that is to blame for a failed build is lowered less and less (see `Lowering.absorb`); only if it fails in
        the source's own arithmetic, too, it is denied and the graph is cut again.

        Args:
            model: the cleaned model that the plan cuts.
            plan: from `make_plan`.
            observe: gives each segment its profiles; called again when a denial changed the plan.
            progress: reports steps; returning False cancels the engine in work.
            lowering: the arithmetic of the engines; default: that of the source.
        """
        lowering = lowering or Lowering()
        failures: dict[Failure, None] = {}
        extractor = Extractor(model)
        refinements = 0
        profiles = observe(plan)
        while True:
            builds: dict[str, SegmentBuild] = {}
            blamed: list[Verdict] = []
            for index, segment in enumerate(plan.segments):
                lowered = lowering.apply(segment)
                build = self._build_one(lowered, profiles[segment.segment.name], _bind(progress, plan, index))
                builds[segment.segment.name] = build
                if isinstance(build.outcome, BuildFailure):
                    failures[_failure(segment, build.outcome, lowering)] = None
                    blamed += self._blame(segment, build, refinements)
            if not blamed:
                return BuildResult(plan, builds, tuple(failures), lowering)
            refinements += 1
            lowering, denials = lowering.absorb(blamed)
            if denials:
                plan = make_plan(model, plan.support.deny(denials), self.checker, self.partition, extractor)
                profiles = observe(plan)
            lowering = lowering.completed(plan.segments)

    def key(self, lowered: Lowered, profiles: tuple[Profile, ...]) -> str:
        """Hash of everything that reaches the builder: segment, profiles, options, TensorRT's flavour and version.

        The precision is in the segment: what TensorRT gets is the lowered model, and its hash is taken.
        """
        return _hash(self._facts(lowered, profiles))

    def _facts(self, lowered: Lowered, profiles: tuple[Profile, ...]) -> dict[str, Any]:
        """What the key is made of, as plain values."""
        segment = lowered.segment
        facts = {
            "segment": segment.content_hash,
            # The hash ignores names, but an engine's bindings have them.
            "bindings": [spec.tensor for spec in (*segment.inputs, *segment.outputs)],
            "profiles": [profile_to_json(profile) for profile in profiles],
            "backend": self.backend.flavour,
            "version": self.backend.version,
            "builder": _builder_code(),
            "options": {
                **dataclasses.asdict(self.options),
                "targets": self.targets,
            },
        }
        # Without targets TensorRT builds for the GPU of this machine, so that is what the engine depends on.
        if self.targets:
            return facts
        chosen = [os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")]
        return {**facts, "gpus": [*installed_gpu_names(), *chosen]}

    def _build_one(
        self, lowered: Lowered, profiles: tuple[Profile, ...] | str, progress: Progress | None
    ) -> SegmentBuild:
        if isinstance(profiles, str):
            return SegmentBuild("", (), BuildFailure("profile", profiles), lowered)
        key = self.key(lowered, profiles)
        if key in self._outcomes:
            return SegmentBuild(key, profiles, self._outcomes[key], lowered)
        outcome = self._outcome(key, lowered, profiles, progress)
        if isinstance(outcome, BuiltEngine) or outcome.kind != "cancelled":
            self._outcomes[key] = outcome
        return SegmentBuild(key, profiles, outcome, lowered)

    def _outcome(
        self, key: str, lowered: Lowered, profiles: tuple[Profile, ...], progress: Progress | None
    ) -> BuiltEngine | BuildFailure:
        """The engine, or the failure, out of the cache on disk; else built, and put there."""
        output, segment = self.scratch / f"{key}.engine", lowered.segment
        cache, context = self.cache, ""
        if cache is not None:
            # A failure names nodes, which the key leaves out, and may come of a missing GPU.
            names = [node.name for node in segment.model.proto.graph.node]
            context = _hash({"nodes": names, "gpus": installed_gpu_names()})
            known = cache.get(key, output) or cache.known_failure(key, context)
            if known is not None:
                return known
        outcome = compile_segment(self.backend, segment, profiles, self.options, output, progress)
        if cache is not None:
            if isinstance(outcome, BuiltEngine):
                cache.put(key, outcome, self._facts(lowered, profiles))
            else:
                cache.remember_failure(key, context, outcome)
        return outcome

    def _blame(self, segment: SegmentModel, build: SegmentBuild, refinements: int) -> list[Verdict]:
        """The nodes to blame for a failed build; none when the failure says nothing about nodes."""
        failure = build.outcome
        assert isinstance(failure, BuildFailure)  # noqa: S101 - narrows the type
        found = blame(self.backend, build.lowered.segment, build.profiles, self.options, failure, self.scratch)
        if found and refinements >= MAX_REFINEMENTS:
            return whole(segment, found)
        return list(found)


def _hash(parts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@functools.lru_cache(maxsize=1)
def _builder_code() -> str:
    """Hash of the code that turns a model into calls of TensorRT's builder: engines of other code are other engines."""
    folder = Path(__file__).parents[1] / "backends"
    digest = hashlib.sha256()
    for name in ("trt_api.py", "worker.py", "text.py"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def _bind(progress: BuildProgress | None, plan: Plan, index: int) -> Progress | None:
    if progress is None:
        return None
    name, total = plan.segments[index].segment.name, len(plan.segments)
    return lambda phase, done, steps: progress(name, index, total, phase, done, steps)


def _failure(segment: SegmentModel, failure: BuildFailure, lowering: Lowering) -> Failure:
    name, label = segment.segment.name, lowering.recipe.label
    logger.warning("%s: no %s engine (%s): %s", name, label, failure.kind, failure.reason)
    return Failure("build", name, failure.kind, failure.reason)
