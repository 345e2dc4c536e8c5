"""Optimization profiles: from what segments were seen to read to the ranges that TensorRT builds for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

from onnx import ModelProto, NodeProto, TensorProto

from passes.graph.shape_sources import SHAPE_PLACES, SHAPE_READERS
from passes.graph_index import bodies_of, iter_scopes
from passes.segments import SegmentModel, TensorSpec
from rewriter.backends.base import InputProfile, Profile
from rewriter.params import check_choice
from rewriter.runtime.inputs import sample_feeds
from rewriter.shapes.harvest import InputSet, Observations, Observed, SegmentObservations, harvest

__all__ = [
    "InputSet",
    "Observations",
    "Observed",
    "SegmentObservations",
    "harvest",
    "make_profiles",
    "sample_feeds",
    "shape_tensors",
    "static_profiles",
]


def make_profiles(
    segment: SegmentModel, observations: Observations, strategy: str = "Range"
) -> tuple[Profile, ...] | str:
    """The profiles to build a segment for.

    An input that holds a shape (see `shape_tensors`) gets a range of its values when those were seen with one length;
    any other gets a range of its dims. Dims of 0 are kept: TensorRT builds for them.

    Args:
        segment: the segment.
        observations: from `harvest`, of a segmentation that holds the segment.
        strategy: one of `rewriter.params.supported_profile_strategies()`, TF-TRT's own names. "Range": one profile
            from the smallest to the largest dimension seen, tuned for the set of the sample that was named for that
            (`SegmentObservations.optimum`), else for the one seen most often (of equals, the one with most elements).
            "Optimal": one exact profile for each different input set. "Range+Optimal": both.
            "ImplicitBatchModeCompatible": as "Range", but dynamic first dimensions begin at 1, and input sets that
            differ in anything else have profiles of their own, as implicit batch mode had engines of their own.

    Returns:
        At least one profile; or, in one line, why there can be none.

    Raises:
        InvalidParameterError: an unknown strategy.
    """
    check_choice("dynamic_shape_profile_strategy", strategy, tuple(_STRATEGIES))
    seen = observations.segments.get(segment.segment.name)
    if seen is None or not seen.sets:
        return f"no shapes were seen: {seen.reason if seen else 'the segment was not watched'}"
    holders = shape_tensors(segment)
    ranks = {spec.tensor: {len(s[spec.tensor].shape) for s in seen.sets} for spec in segment.inputs}
    for name, found in ranks.items():
        if len(found) > 1:
            return f"the rank of {name!r} changes with the input ({sorted(found)}), which TensorRT cannot express"
    scope = segment.segment.scope
    for name in holders if scope else ():
        if any(s[name].values is None for s in seen.sets):
            return f"the elements of {name!r} decide shapes in it, and inside {scope[-1]!r} they cannot be observed"
    by_values = {name for name in holders if len({_length(s[name]) for s in seen.sets} - {None}) == 1}
    by_values -= {name for name in by_values if any(not s[name].values for s in seen.sets)}
    exact = [_exact(segment.inputs, s, by_values) for s in seen.sets]
    return tuple(_STRATEGIES[strategy](_Candidates(segment.inputs, exact, seen)))


def static_profiles(segment: SegmentModel) -> tuple[Profile, ...] | None:
    """The one exact profile of a segment whose inputs all have fixed shapes; None when sample inputs are needed.

    They are needed for a dynamic dimension, and for an input that holds a shape, since its values are unknown.
    """
    if not all(spec.is_static for spec in segment.inputs) or shape_tensors(segment):
        return None
    shapes = {spec.tensor: tuple(int(str(d)) for d in spec.shape or ()) for spec in segment.inputs}
    return ({name: InputProfile(dims, dims, dims) for name, dims in shapes.items()},)


def shape_tensors(segment: SegmentModel) -> tuple[str, ...]:
    """Inputs whose *elements* decide shapes inside the segment: small integers that flow into a place for shapes.

    TensorRT wants ranges of their values. It is walked backwards from every such place (the second input of Reshape,
    the limits of Slice ...) up to `Shape` nodes, which end the way, for they read no elements.
    """
    candidates = [s.tensor for s in segment.inputs if s.dtype in (TensorProto.INT32, TensorProto.INT64)]
    small = {s.tensor for s in segment.inputs if s.shape is None or len(s.shape) <= 1}
    if not small.intersection(candidates):
        return ()
    makers, stack = _makers_and_seeds(segment.model.proto)
    reached: set[str] = set()
    while stack:
        name = stack.pop()
        if not name or name in reached:
            continue
        reached.add(name)
        for maker in makers.get(name, ()):
            if maker.op_type not in SHAPE_READERS:
                stack.extend(maker.input)
    return tuple(name for name in candidates if name in reached and name in small)


def _makers_and_seeds(proto: ModelProto) -> tuple[dict[str, list[NodeProto]], list[str]]:
    """Value -> the nodes it comes from (for a body's inputs the node around it), and all values in shape places."""
    makers: dict[str, list[NodeProto]] = {}
    seeds: list[str] = []
    for _, graph in iter_scopes(proto):
        for node in graph.node:
            for output in node.output:
                makers.setdefault(output, []).append(node)
            places = SHAPE_PLACES.get(node.op_type, ())
            seeds.extend(node.input[place] for place in places if place < len(node.input))
            for _, body in bodies_of(node):
                for formal in body.input:
                    makers.setdefault(formal.name, []).append(node)
                for output, result in zip(node.output, body.output[-len(node.output) :], strict=False):
                    # A body's results make the outputs of its node: the walk goes on inside.
                    makers.setdefault(output, []).append(NodeProto(op_type="Identity", input=[result.name]))
    return makers, seeds


def _length(item: Observed) -> int | None:
    return None if item.values is None else len(item.values)


def _exact(inputs: Sequence[TensorSpec], seen: InputSet, by_values: set[str]) -> Profile:
    """The profile that fits one input set and nothing else."""
    profile = {}
    for spec in inputs:
        item = seen[spec.tensor]
        as_values = spec.tensor in by_values and item.values is not None
        dims = item.values if as_values and item.values is not None else item.shape
        profile[spec.tensor] = InputProfile(dims, dims, dims, as_values)
    return profile


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """What the strategies choose from: one exact profile for each input set that was seen."""

    inputs: Sequence[TensorSpec]
    exact: Sequence[Profile]
    seen: SegmentObservations

    def only(self, members: Sequence[int]) -> _Candidates:
        """These of the sets, in this order."""
        best = self.seen.optimum
        seen = dataclasses.replace(
            self.seen,
            sets=tuple(self.seen.sets[i] for i in members),
            counts=tuple(self.seen.counts[i] for i in members),
            optimum=members.index(best) if best in members else None,
        )
        return _Candidates(self.inputs, [self.exact[i] for i in members], seen)


def _range(found: _Candidates) -> list[Profile]:
    best = found.seen.optimum
    if best is None:
        best = max(range(len(found.exact)), key=lambda i: (found.seen.counts[i], _elements(found.seen.sets[i]), -i))
    profile = {}
    for spec in found.inputs:
        ranges = [p[spec.tensor].optimum for p in found.exact]
        profile[spec.tensor] = InputProfile(
            tuple(min(sizes) for sizes in zip(*ranges, strict=True)),
            found.exact[best][spec.tensor].optimum,
            tuple(max(sizes) for sizes in zip(*ranges, strict=True)),
            found.exact[best][spec.tensor].is_values,
        )
    return [profile]


def _optimal(found: _Candidates) -> list[Profile]:
    different: list[Profile] = []
    for profile in found.exact:
        if profile not in different:
            different.append(profile)
    return different


def _range_and_optimal(found: _Candidates) -> list[Profile]:
    ranges = _range(found)
    return ranges + [profile for profile in _optimal(found) if profile not in ranges]


def _from_batch_one(found: _Candidates) -> list[Profile]:
    """Engines as implicit batch mode made them: the batch counts from 1, and every other dimension is fixed."""
    batched = {s.tensor for s in found.inputs if not (s.shape and isinstance(s.shape[0], int))}
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, profile in enumerate(found.exact):
        fixed = tuple(
            (name, item.optimum[1:] if name in batched and not item.is_values else item.optimum)
            for name, item in profile.items()
        )
        groups.setdefault(fixed, []).append(number)
    return [_with_batch_one(_range(found.only(members))[0], batched) for members in groups.values()]


def _with_batch_one(profile: Profile, batched: Collection[str]) -> Profile:
    changed = dict(profile)
    for name, item in profile.items():
        if name in batched and item.minimum and not item.is_values:
            changed[name] = dataclasses.replace(item, minimum=(min(1, item.minimum[0]), *item.minimum[1:]))
    return changed


def _elements(seen: InputSet) -> int:
    total = 0
    for item in seen.values():
        size = 1
        for dim in item.shape:
            size *= dim
        total += size
    return total


_STRATEGIES: Mapping[str, Callable[[_Candidates], list[Profile]]] = {
    "Range": _range,
    "Optimal": _optimal,
    "Range+Optimal": _range_and_optimal,
    "ImplicitBatchModeCompatible": _from_batch_one,
}
