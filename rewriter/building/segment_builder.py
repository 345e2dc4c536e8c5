"""One segment to one engine: what is known of it already, from this process or the cache on disk, else a build."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewriter.artifact.manifest import profile_to_json
from rewriter.backends.base import Backend, BuildFailure, BuildOptions, BuiltEngine, Profile, Progress
from rewriter.building.cache import EngineCache
from rewriter.building.compile import compile_segment
from rewriter.precision.lowering import Lowered
from rewriter.runtime.device import installed_gpu_names

#: Why there is no engine when every build is to fail.
ABORTED = "every build fails, because abort_builds (TF_TRT_ABORT_CUDA_ENGINE_BUILD) is set"


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


@dataclasses.dataclass
class SegmentBuilder:
    """Builds engines; what was built, or failed to build, is not tried again (by key).

    Threads may build segments of different keys at the same time (`rewriter.building.parallel`).

    Attributes:
        backend: where TensorRT runs.
        options: workspace, targets and level, the same for every segment.
        scratch: folder that holds the engine files; the caller owns it.
        cache: engines of earlier conversions on disk; None for none.
        abort_builds: True makes every build fail, to see what happens then: nothing is built, read from the cache,
            or remembered.
    """

    backend: Backend
    options: BuildOptions
    scratch: Path
    cache: EngineCache | None = None
    abort_builds: bool = False
    _outcomes: dict[str, BuiltEngine | BuildFailure] = dataclasses.field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """The GPU architectures that engines are built for."""
        return self.options.targets or self.backend.default_targets

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

    def build(
        self, lowered: Lowered, profiles: tuple[Profile, ...] | str, progress: Progress | None = None
    ) -> SegmentBuild:
        """Builds one segment, unless it is known what comes of it.

        Args:
            lowered: the segment as TensorRT is to get it.
            profiles: what it is built for, or why it can have no profiles, which is a failure of kind "profile".
            progress: told of every step; returning False cancels.

        Raises:
            InvalidParameterError: a target or optimization level that TensorRT does not know.
            BackendError, MissingDependencyError: TensorRT cannot be run, or a file cannot be read or written.
        """
        known = self.known(lowered, profiles)
        if known is not None:
            return known
        assert not isinstance(profiles, str)  # noqa: S101 - narrows the type: that is known
        key = self.key(lowered, profiles)
        outcome = self._outcome(key, lowered, profiles, progress)
        if isinstance(outcome, BuiltEngine) or outcome.kind != "cancelled":
            self._outcomes[key] = outcome
        return SegmentBuild(key, profiles, outcome, lowered)

    def known(self, lowered: Lowered, profiles: tuple[Profile, ...] | str) -> SegmentBuild | None:
        """What comes of a segment without asking TensorRT or the cache on disk; None when that is not known.

        Args:
            lowered: as for `build`.
            profiles: as for `build`.

        Raises:
            InvalidParameterError: a target that TensorRT does not know.
            BackendError, MissingDependencyError: TensorRT's version cannot be asked.
        """
        if self.abort_builds:
            made = () if isinstance(profiles, str) else profiles
            return SegmentBuild("", made, BuildFailure("aborted", ABORTED), lowered)
        if isinstance(profiles, str):
            return SegmentBuild("", (), BuildFailure("profile", profiles), lowered)
        key = self.key(lowered, profiles)
        return SegmentBuild(key, profiles, self._outcomes[key], lowered) if key in self._outcomes else None

    def forget(self, key: str) -> None:
        """Has the next build of `key` tried as if there had been none; harmless when there was none."""
        self._outcomes.pop(key, None)

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
