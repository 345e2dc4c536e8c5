"""Values between an engine slot, what builds engines, and the executor; which profile takes which inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from passes.segments import SegmentModel
from rewriter.artifact.manifest import EngineEntry
from rewriter.backends.base import BuildFailure, Profile
from rewriter.shapes.harvest import InputSet, Observed

#: Tensor name -> dims, or -> elements of an input that holds a shape.
Dims = Mapping[str, tuple[int, ...]]
#: What tells one input set from another.
SetKey = tuple[tuple[str, tuple[int, ...], tuple[int, ...] | None], ...]


@dataclasses.dataclass(frozen=True)
class StoredEngine:
    """An engine in a file.

    Attributes:
        entry: what the manifest says of it.
        path: its file; the artifact or the builder's scratch folder owns it.
    """

    entry: EngineEntry
    path: Path


class OpenEngine(Protocol):
    """A deserialised engine, as far as a slot looks at it."""

    def profile_for(self, shapes: Dims, values: Dims) -> int | None:
        """The engine's profile that takes these shapes and shape values; None when none does."""
        ...

    def close(self) -> None:
        """Frees it; harmless when repeated."""
        ...


@dataclasses.dataclass(frozen=True)
class Found:
    """An engine for a call.

    Attributes:
        engine: open; the slot owns it and closes it when it is evicted.
        profile: the index of the profile that takes the shapes.
        stored: where it came from.
        version: the answer holds as long as the slot's `version` is this.
    """

    engine: OpenEngine
    profile: int
    stored: StoredEngine
    version: int = 0


@dataclasses.dataclass(frozen=True)
class Miss:
    """No engine for a call: its segment runs natively.

    Attributes:
        reason: one line for people, and the key of a counter.
        version: the answer holds as long as the slot's `version` is this.
    """

    reason: str
    version: int = 0


@dataclasses.dataclass(frozen=True)
class BuildOutcome:
    """What came of one build at run time.

    Attributes:
        result: the engine, or why there is none.
        sets: the input sets that the result settles: each is in the engine's profiles, or has no engine for ever. Empty
            for the failure of a build for several sets whose single ones are tried next.
        seconds: wall time.
    """

    result: StoredEngine | BuildFailure
    sets: tuple[InputSet, ...]
    seconds: float


class Builds(Protocol):
    """What a slot asks to build engines; `rewriter.runtime.builds.BackgroundBuilds` is one."""

    @property
    def waits(self) -> bool:
        """True when `request` returns only after the build."""
        ...

    def request(
        self,
        op: str,
        segment: SegmentModel,
        wanted: InputSet,
        *,
        also: Sequence[InputSet] = (),
        done: Callable[[BuildOutcome], None],
    ) -> None:
        """Asks for an engine of `segment` that takes `wanted` and, where that can be, `also`.

        `done` is called for every build that was tried, in another thread.
        """
        ...


def set_key(seen: InputSet) -> SetKey:
    """What tells one input set from another."""
    return tuple(sorted((name, item.shape, item.values) for name, item in seen.items()))


def profile_of(profiles: Sequence[Profile], shapes: Dims, values: Dims) -> int | None:
    """The profile of an engine for these inputs; None when none takes them.

    One for exactly these inputs comes first, for its kernels are the quickest; then one whose optimum they are; then
    the tightest, that allows the fewest different inputs; of equals the first.

    Args:
        profiles: in the engine's order. An input that a profile leaves out is of fixed shape and not judged.
        shapes: input -> dims.
        values: input -> elements, for the inputs that hold shapes.
    """
    fitting = [(_rank(p, shapes, values), index) for index, p in enumerate(profiles) if _takes(p, shapes, values)]
    return min(fitting)[1] if fitting else None


def _takes(profile: Profile, shapes: Dims, values: Dims) -> bool:
    for name, item in profile.items():
        given = (values if item.is_values else shapes).get(name)
        if given is None or len(given) != len(item.minimum):
            return False
        if any(not low <= size <= high for low, size, high in zip(item.minimum, given, item.maximum, strict=True)):
            return False
    return True


def _rank(profile: Profile, shapes: Dims, values: Dims) -> tuple[bool, bool, float]:
    """Lower is better: whether it allows more than these inputs, is tuned for others, and how much it allows."""
    tuned = all(tuple(item.optimum) == (values if item.is_values else shapes)[name] for name, item in profile.items())
    sides = [high - low + 1 for p in profile.values() for low, high in zip(p.minimum, p.maximum, strict=True)]
    return any(side > 1 for side in sides), not tuned, math.fsum(math.log(side) for side in sides)


def corners(profiles: Iterable[Profile], like: InputSet) -> list[InputSet]:
    """The smallest, the best and the largest inputs of every profile; what a profile leaves out is as in `like`."""
    sets: list[InputSet] = []
    for profile in profiles:
        for bound in ("minimum", "optimum", "maximum"):
            seen = dict(like)
            for name, item in profile.items():
                dims = getattr(item, bound)
                if name in like and item.is_values:
                    scalar = like[name].shape == () and len(dims) == 1
                    seen[name] = Observed(() if scalar else (len(dims),), dims)
                elif name in like:
                    seen[name] = Observed(dims, like[name].values)
            sets.append(seen)
    return sets
