"""From a plan to engines: build every segment, deny what the builder names, plan again, a bounded number of times."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from passes.extract import Extractor
from passes.model import Model
from passes.partition import PartitionOptions
from passes.segments import SegmentModel
from passes.support import Verdict
from rewriter.backends.base import Backend, BuildFailure, BuildOptions, Profile
from rewriter.building.cache import EngineCache
from rewriter.building.compile import blame
from rewriter.building.parallel import BuildProgress, BuildTask, run_builds
from rewriter.building.planning import MAX_REFINEMENTS, Plan, SegmentChecker, make_plan, whole
from rewriter.building.segment_builder import SegmentBuild, SegmentBuilder
from rewriter.precision.lowering import Lowered, Lowering
from rewriter.reports.report import Failure

__all__ = ["BuildProgress", "BuildResult", "EngineBuilder", "Profiles", "SegmentBuild"]

logger = logging.getLogger(__name__)

#: Kind of the failure of a segment that holds nodes of the fake list.
NOT_RUNNABLE = "not runnable"
#: segment name -> its profiles, or the reason (one line) why it can have none.
Profiles = Mapping[str, tuple[Profile, ...] | str]


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
        abort_builds: True makes every build fail with the kind "aborted"; nothing is denied for it.
    """

    backend: Backend
    checker: SegmentChecker
    options: BuildOptions
    partition: PartitionOptions
    scratch: Path
    cache: EngineCache | None = None
    abort_builds: bool = False

    def __post_init__(self) -> None:
        self._segments = SegmentBuilder(self.backend, self.options, self.scratch, self.cache, self.abort_builds)

    @property
    def targets(self) -> tuple[str, ...]:
        """The GPU architectures that engines are built for."""
        return self._segments.targets

    def build(
        self,
        model: Model,
        plan: Plan,
        observe: Callable[[Plan], Profiles],
        progress: BuildProgress | None = None,
        lowering: Lowering | None = None,
        jobs: int | None = 1,
    ) -> BuildResult:
        """Builds every segment of `plan`, several at the same time where `jobs` and the backend allow it.

        A node that is to blame for a failed build is lowered less and less (see `Lowering.absorb`); only if it fails in
        the source's own arithmetic, too, it is denied and the graph is cut again. Segments of `plan.not_runnable` are
        neither lowered nor built, nor does `observe` see them: their failures are of the kind "not runnable".

        Args:
            model: the cleaned model that the plan cuts.
            plan: from `make_plan`.
            observe: gives each segment its profiles; called again when a denial changed the plan.
            progress: told of every step; returning False cancels the engine that the event is about.
            lowering: the arithmetic of the engines; default: that of the source.
            jobs: engines at the same time, at most, see `run_builds`; what comes of it does not depend on it.
        """
        lowering = lowering or Lowering()
        failures: dict[Failure, None] = {}
        extractor: Extractor | None = None
        refinements = 0
        profiles = observe(plan.runnable)
        while True:
            builds = self._build_all(plan, profiles, lowering, progress, jobs)
            blamed: list[Verdict] = []
            for segment in plan.segments:
                build = builds[segment.segment.name]
                if isinstance(build.outcome, BuildFailure):
                    failures[_failure(segment, build.outcome, lowering)] = None
                    blamed += self._blame(segment, build, refinements)
            if not blamed:
                return BuildResult(plan, builds, tuple(failures), lowering)
            refinements += 1
            lowering, denials = lowering.absorb(blamed)
            if denials:
                extractor = extractor or Extractor(model)
                plan = make_plan(model, plan.support.deny(denials), self.checker, self.partition, extractor)
                profiles = observe(plan.runnable)
            lowering = lowering.completed(plan.runnable.segments)

    def _build_all(
        self, plan: Plan, profiles: Profiles, lowering: Lowering, progress: BuildProgress | None, jobs: int | None
    ) -> dict[str, SegmentBuild]:
        """What becomes of every segment, in the plan's order."""
        tasks = [
            BuildTask(s.segment.name, self._segments, lowering.apply(s), profiles[s.segment.name])
            for s in plan.runnable.segments
        ]
        built = dict(zip((task.label for task in tasks), run_builds(tasks, jobs, progress), strict=True))
        for segment in plan.segments:
            reason = plan.not_runnable.get(segment.segment.name)
            if reason is not None:
                built[segment.segment.name] = _what_if(segment, reason)
        return {s.segment.name: built[s.segment.name] for s in plan.segments}

    def _blame(self, segment: SegmentModel, build: SegmentBuild, refinements: int) -> list[Verdict]:
        """The nodes to blame for a failed build; none when the failure says nothing about nodes."""
        failure = build.outcome
        assert isinstance(failure, BuildFailure)  # noqa: S101 - narrows the type
        found = blame(self.backend, build.lowered.segment, build.profiles, self.options, failure, self.scratch)
        if found and refinements >= MAX_REFINEMENTS:
            return whole(segment, found)
        return list(found)


def _what_if(segment: SegmentModel, reason: str) -> SegmentBuild:
    """What becomes of a segment that is never built."""
    return SegmentBuild("", (), BuildFailure(NOT_RUNNABLE, reason), Lowered(segment))


def _failure(segment: SegmentModel, failure: BuildFailure, lowering: Lowering) -> Failure:
    name, label = segment.segment.name, lowering.recipe.label
    logger.warning("%s: no %s engine (%s): %s", name, label, failure.kind, failure.reason)
    return Failure("build", name, failure.kind, failure.reason)
