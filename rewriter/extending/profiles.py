"""Which input shapes an engine node's new engines are built for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from passes.model import Model
from passes.segments import Segmentation, SegmentModel
from passes.support import SupportMap
from rewriter.artifact.manifest import EngineEntry
from rewriter.backends.base import InputProfile, Profile
from rewriter.building.planning import Plan
from rewriter.params import PROFILE_STRATEGY_RANGE
from rewriter.shapes.observer import Observer
from rewriter.shapes.profiles import static_profiles
from rewriter.shapes.sampling import InputFn
from rewriter.source import Signature

__all__ = ["Choice", "built_profiles", "observed_profiles"]

#: The profiles of each engine that a node is to get; or, in one line, why it can have none.
Choice = tuple[tuple[Profile, ...], ...] | str
UNKNOWN = "no engine is there to take the shapes from: give those that engines must cover (shapes, --shapes)"


def built_profiles(segment: SegmentModel, entries: Iterable[EngineEntry]) -> Choice:
    """The profiles of the engines that a node has already: all GPUs then take the same shapes.

    Rules:
        1. Those of the first engine, which the conversion built, are taken as they are.
        2. Of the other engines (built at run time, merged) those are taken that allow something which no other does;
           each gets an engine of its own, so that the new GPU takes all that the old one does.
        3. A node without engines whose inputs have fixed shapes needs none.

    Args:
        segment: the node's segment, with its content hash.
        entries: the engines of the artifact; those of other nodes and other segments are left out. Damaged ones count:
            what they were built for is known.
    """
    name = segment.segment.name
    own = [e.profiles for e in entries if e.op == name and e.segment_hash == segment.content_hash and e.profiles]
    if not own:
        fixed = static_profiles(segment)
        return UNKNOWN if fixed is None else (fixed,)
    kept = [own[0]]
    for number, profiles in enumerate(own[1:], 1):
        later = (other for other in own[number + 1 :] if not _covers([profiles], other))
        if not _covers([*kept, *later], profiles):
            kept.append(profiles)
    return tuple(kept)


def observed_profiles(
    model: Model,
    segments: Sequence[SegmentModel],
    signature: Signature,
    input_fn: InputFn,
    params: Mapping[str, Any],
) -> dict[str, Choice]:
    """Operator -> the profiles that the artifact's strategy makes of sample inputs, as the conversion does.

    Args:
        model: the native model, unspliced.
        segments: segments of it.
        signature: what samples are bound to.
        input_fn: takes nothing and yields inputs.
        params: the artifact's parameters.

    Raises:
        InputError: a sample does not fit the signature.
        ConversionError: the native model fails on a sample.
    """
    strategy = params.get("dynamic_shape_profile_strategy") or PROFILE_STRATEGY_RANGE
    if not params.get("is_dynamic_op", True):
        strategy = PROFILE_STRATEGY_RANGE
    cut = Segmentation(tuple(segment.segment for segment in segments), (), 0)
    found = Observer(model, signature, (input_fn,), strategy)(Plan(SupportMap.of(()), cut, tuple(segments)))
    return {name: profiles if isinstance(profiles, str) else (profiles,) for name, profiles in found.items()}


def _covers(engines: Iterable[Sequence[Profile]], profiles: Sequence[Profile]) -> bool:
    """True when each of `profiles` lies within one profile of the engines."""
    outer = [profile for engine in engines for profile in engine]
    return all(any(_within(profile, other) for other in outer) for profile in profiles)


def _within(inner: Profile, outer: Profile) -> bool:
    return inner.keys() == outer.keys() and all(_in_range(item, outer[name]) for name, item in inner.items())


def _in_range(inner: InputProfile, outer: InputProfile) -> bool:
    if inner.is_values != outer.is_values or len(inner.minimum) != len(outer.minimum):
        return False
    lower = all(low <= own for low, own in zip(outer.minimum, inner.minimum, strict=True))
    return lower and all(high >= own for high, own in zip(outer.maximum, inner.maximum, strict=True))
