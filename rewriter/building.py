"""From a plan to engines: build every segment, deny what the builder names, plan again, a bounded number of times."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from passes.extract import Extractor
from passes.model import Model
from passes.partition import PartitionOptions
from passes.segments import SegmentModel
from passes.support import Verdict
from rewriter.backends.base import Backend, BuildFailure, BuildOptions, BuiltEngine, Profile, Progress
from rewriter.compile import blame, compile_segment
from rewriter.manifest import profile_to_json
from rewriter.planning import MAX_REFINEMENTS, Plan, SegmentChecker, make_plan, whole
from rewriter.report import Failure

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
    """

    key: str
    profiles: tuple[Profile, ...]
    outcome: BuiltEngine | BuildFailure


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """The plan that was finally built (denials may have changed it) and one `SegmentBuild` a segment name."""

    plan: Plan
    builds: Mapping[str, SegmentBuild]
    failures: tuple[Failure, ...]


@dataclasses.dataclass
class EngineBuilder:
    """Builds plans; what an earlier round or call built, or failed to build, is not tried again (by key).

    Attributes:
        backend: where TensorRT runs.
        checker: re-parses segments after a denial.
        options: workspace, targets and level, the same for every segment.
        partition: how to cut after a denial.
        scratch: folder that holds the engine files; the caller owns it.
    """

    backend: Backend
    checker: SegmentChecker
    options: BuildOptions
    partition: PartitionOptions
    scratch: Path
    _outcomes: dict[str, BuiltEngine | BuildFailure] = dataclasses.field(default_factory=dict)

    def build(
        self,
        model: Model,
        plan: Plan,
        observe: Callable[[Plan], Profiles],
        progress: BuildProgress | None = None,
    ) -> BuildResult:
        """Builds every segment of `plan`.

        Args:
            model: the cleaned model that the plan cuts.
            plan: from `make_plan`.
            observe: gives each segment its profiles; called again when a denial changed the plan.
            progress: reports steps; returning False cancels the engine in work.
        """
        failures: dict[Failure, None] = {}
        extractor = Extractor(model)
        refinements = 0
        while True:
            profiles = observe(plan)
            builds: dict[str, SegmentBuild] = {}
            denials: list[Verdict] = []
            for index, segment in enumerate(plan.segments):
                build = self._build_one(segment, profiles[segment.segment.name], _bind(progress, plan, index))
                builds[segment.segment.name] = build
                if isinstance(build.outcome, BuildFailure):
                    failures[_failure(segment, build.outcome)] = None
                    denials += self._blame(segment, build, refinements)
            if not denials:
                return BuildResult(plan, builds, tuple(failures))
            refinements += 1
            plan = make_plan(model, plan.support.deny(denials), self.checker, self.partition, extractor)

    def key(self, segment: SegmentModel, profiles: tuple[Profile, ...]) -> str:
        """Hash of everything that reaches the builder: segment, profiles, options, TensorRT's flavour and version."""
        parts = {
            "segment": segment.content_hash,
            # The hash ignores names, but an engine's bindings have them.
            "bindings": [spec.tensor for spec in (*segment.inputs, *segment.outputs)],
            "profiles": [profile_to_json(profile) for profile in profiles],
            "precision": "FP32",
            "backend": self.backend.flavour,
            "version": self.backend.version,
            "options": {
                **dataclasses.asdict(self.options),
                "targets": self.options.targets or self.backend.default_targets,
            },
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def _build_one(
        self, segment: SegmentModel, profiles: tuple[Profile, ...] | str, progress: Progress | None
    ) -> SegmentBuild:
        if isinstance(profiles, str):
            return SegmentBuild("", (), BuildFailure("profile", profiles))
        key = self.key(segment, profiles)
        if key in self._outcomes:
            return SegmentBuild(key, profiles, self._outcomes[key])
        output = self.scratch / f"{key}.engine"
        outcome = compile_segment(self.backend, segment, profiles, self.options, output, progress)
        if isinstance(outcome, BuiltEngine) or outcome.kind != "cancelled":
            self._outcomes[key] = outcome
        return SegmentBuild(key, profiles, outcome)

    def _blame(self, segment: SegmentModel, build: SegmentBuild, refinements: int) -> list[Verdict]:
        """Denials after a failed build; none when the failure says nothing about support."""
        failure = build.outcome
        assert isinstance(failure, BuildFailure)  # noqa: S101 - narrows the type
        found = blame(self.backend, segment, build.profiles, self.options, failure, self.scratch)
        if found and refinements >= MAX_REFINEMENTS:
            return whole(segment, found)
        return list(found)


def _bind(progress: BuildProgress | None, plan: Plan, index: int) -> Progress | None:
    if progress is None:
        return None
    name, total = plan.segments[index].segment.name, len(plan.segments)
    return lambda phase, done, steps: progress(name, index, total, phase, done, steps)


def _failure(segment: SegmentModel, failure: BuildFailure) -> Failure:
    logger.warning("%s stays native (%s): %s", segment.segment.name, failure.kind, failure.reason)
    return Failure("build", segment.segment.name, failure.kind, failure.reason)
