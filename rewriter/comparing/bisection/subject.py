"""What is bisected: an artifact's graphs, samples and limits, looked up once."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from passes.base import PassError
from passes.engine_node import engine_nodes
from passes.graph_index import GraphIndex
from passes.model import Model
from passes.segments import ENGINE_DOMAIN
from passes.splice import unsplice
from rewriter.artifact import Artifact
from rewriter.comparing.bisection.gaps import Gap, gap
from rewriter.comparing.bisection.options import names_of
from rewriter.comparing.bisection.sides import CHUNK_BYTES, Feeds, Side, Sizes, comparable, measure
from rewriter.comparing.bisection.walk import Place, ancestors, first_beyond
from rewriter.errors import ConversionError, InvalidParameterError
from rewriter.runtime.inputs import sample_feeds
from rewriter.source import Signature

#: The largest difference that passes: of every output, or by public name (those left out are not judged).
Tolerance = float | Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Subject:
    """An artifact on samples.

    Attributes:
        artifact: what it was read from.
        native: its model with every engine node replaced by its native segment.
        limits: public output name -> largest difference that passes.
        samples: inputs by public name.
        feeds: the same by ONNX name.
        sizes: about how large its values are.
        most: bytes of values that are looked at in one run.
        compare: gives the gap of one inner value of one sample.
    """

    artifact: Artifact
    native: Model
    limits: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]]
    feeds: Sequence[Feeds]
    sizes: Sizes
    most: int = CHUNK_BYTES
    compare: Callable[[Any, Any], Gap] = gap

    @classmethod
    def of(cls, artifact: Artifact, samples: Iterable[Any], tolerance: Tolerance, most: int = CHUNK_BYTES) -> Subject:
        """Checks and looks up everything.

        Raises:
            InvalidParameterError: no samples, or a tolerance that is no number of at least 0 or names no output.
            InputError: a sample does not fit the signature.
            ConversionError: the artifact's model is damaged.
        """
        signature = artifact.signature
        limits = _limits(signature, tolerance)
        given = list(samples)
        feeds = list(sample_feeds(signature, given))
        if not feeds:
            raise InvalidParameterError("a bisection needs at least one sample")
        try:
            native = unsplice(artifact.model)
        except PassError as error:
            raise ConversionError(f"{artifact.path} cannot be bisected: {error}") from error
        named = [{spec.name: feed[spec.tensor] for spec in signature.inputs} for feed in feeds]
        return cls(artifact, native, limits, named, feeds, Sizes.of(native, signature, feeds), most)

    @property
    def signature(self) -> Signature:
        """What the user calls."""
        return self.artifact.signature

    @functools.cached_property
    def index(self) -> GraphIndex:
        """The native main graph."""
        return GraphIndex.of(self.native.proto.graph)

    @functools.cached_property
    def units(self) -> GraphIndex:
        """The spliced main graph: engine nodes, and native nodes between."""
        return GraphIndex.of(self.artifact.model.proto.graph)

    @functools.cached_property
    def values(self) -> tuple[str, ...]:
        """Tensors that the native main graph makes, in topological order."""
        return comparable(self.native)

    @functools.cached_property
    def segments(self) -> Mapping[str, tuple[str, ...]]:
        """Engine node (its operator) -> the names of its native nodes, in order; those in bodies as well."""
        functions = {f.name: f for f in self.artifact.model.proto.functions if f.domain == ENGINE_DOMAIN}
        ops = [node.op_type for _, node in engine_nodes(self.artifact.model.proto)]
        return {op: tuple(node.name for node in functions[op].node) for op in ops}

    @functools.cached_property
    def homes(self) -> Mapping[str, str]:
        """Name of a node of the native main graph -> the engine node that computes it, or one inside its bodies."""
        found: dict[str, str] = {}
        for scope, node in engine_nodes(self.artifact.model.proto):
            if scope:
                found.setdefault(scope[0].rpartition("/")[0], node.op_type)
            else:
                found.update(dict.fromkeys(self.segments[node.op_type], node.op_type))
        return found

    @functools.cached_property
    def holders(self) -> Mapping[str, tuple[str, ...]]:
        """Name of a native If, Loop or Scan of the main graph -> the engine nodes in its bodies."""
        found: dict[str, tuple[str, ...]] = {}
        for scope, node in engine_nodes(self.artifact.model.proto):
            if scope:
                outer = scope[0].rpartition("/")[0]
                found[outer] = (*found.get(outer, ()), node.op_type)
        return found

    def excluded(self, node: int) -> tuple[str, ...]:
        """The names that must be named to take a node out of its engine; of a holder all that its engines compute."""
        name = self.index.names[node]
        if name in self.holders:
            return tuple(inner for op in self.holders[name] for inner in self.segments[op])
        return names_of(self.index.nodes[node])

    def inside(self, place: Place) -> tuple[str, ...]:
        """The names that take all nodes of a place out of their engines; () where it has none in an engine."""
        members = [number for number in place.between if self.index.names[number] in self.homes]
        return tuple(dict.fromkeys(name for number in members for name in self.excluded(number)))

    def outputs(self, reference: Side, result: Side) -> dict[str, Gap]:
        """Public output name -> its gap.

        Raises:
            ConversionError: a side cannot run.
        """
        tensors = [spec.tensor for spec in self.signature.outputs]
        found = self.measure(reference, result, tensors)
        return {spec.name: found[spec.tensor] for spec in self.signature.outputs}

    def measure(self, reference: Side, result: Side, names: Iterable[str]) -> dict[str, Gap]:
        """The gap of every named value over the samples."""
        return measure(reference, result, names, self.feeds, self.sizes, most=self.most, compare=self.compare)

    def beyond(self, outputs: Mapping[str, Gap]) -> dict[str, float]:
        """Public names of the outputs beyond their limits -> difference."""
        return {n: g.relative for n, g in outputs.items() if g.relative > self.limits.get(n, math.inf)}

    def limit(self, failed: Collection[str]) -> float:
        """What inner values are held against: the strictest limit of the outputs that are beyond theirs."""
        return min((self.limits[name] for name in failed), default=min(self.limits.values(), default=0.0))

    def tensors(self, names: Iterable[str]) -> list[str]:
        """The ONNX names of outputs."""
        wanted = set(names)
        return list(dict.fromkeys(spec.tensor for spec in self.signature.outputs if spec.name in wanted))

    def find(
        self, reference: Side, result: Side, available: Collection[str], failed: Collection[str]
    ) -> tuple[Place | None, dict[str, Gap]]:
        """The first place beyond the limit: among the boundaries of segments first, then inside the one found.

        Args:
            reference: computes every value of the native main graph.
            result: computes those of `available`.
            available: names of values that both sides have.
            failed: public names of the outputs beyond their limits.

        Returns:
            The place, in `index`, and all that was measured; None where nothing is beyond.

        Raises:
            ConversionError: a side cannot run.
        """
        limit, starts = self.limit(failed), self.tensors(failed)
        above = ancestors(self.units, starts)
        made = {name for number in above for name in self.units.makes[number]}
        gaps = self.measure(reference, result, [v for v in self.values if v in made and v in available])
        place = first_beyond(self.units, gaps, limit, starts)
        if place is None:
            return None, gaps
        inner = self.segments.get(self.units.nodes[place.node].op_type, ())
        if inner:
            names = {name for number in self.index.positions(inner) for name in self.index.makes[number]}
            wanted = [v for v in self.values if v in names and v in available and v not in gaps]
            gaps |= self.measure(reference, result, wanted)
        starts = [v for v in self.units.makes[place.node] if v in gaps and gaps[v].relative > limit]
        return first_beyond(self.index, gaps, limit, starts), gaps


def _limits(signature: Signature, tolerance: Tolerance) -> dict[str, float]:
    names = [spec.name for spec in signature.outputs]
    given = dict(tolerance) if isinstance(tolerance, Mapping) else dict.fromkeys(names, tolerance)
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise InvalidParameterError(
            f"the tolerance names the output {unknown[0]!r}, the signature has: {', '.join(map(repr, names))}"
        )
    for value in given.values():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise InvalidParameterError(f"the tolerance must be a number of at least 0, not {value!r}")
    if not given:
        raise InvalidParameterError("the tolerance names no output: give one for at least one of them")
    return {name: float(value) for name, value in given.items()}
