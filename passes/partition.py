"""Proposes segments: which supported nodes become one engine. Pure: no TensorRT, and nothing is changed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from onnx import GraphProto, NodeProto, ValueInfoProto

from passes.graph.boundary import boundary, constant_names
from passes.graph.clustering import Dag, cluster
from passes.graph.effective import effective_weight
from passes.graph.value_types import collect_infos
from passes.graph.walk import Scope, bodies_of, iter_nodes, iter_scopes, plain_domain
from passes.graph_index import GraphIndex
from passes.model import Model
from passes.segments import Segment, Segmentation
from passes.support import SupportMap, Verdict

#: `minimum_segment_size` that leaves the main graph native, and the minimum that bodies get then.
BODIES_ONLY = -1
BODIES_ONLY_MINIMUM = 3
#: Engine nodes are numbered behind this: TRTEngineOp_000, TRTEngineOp_001 ...
ENGINE_PREFIX = "TRTEngineOp_"


@dataclasses.dataclass(frozen=True)
class PartitionOptions:
    """How to cut.

    Attributes:
        minimum_segment_size: effective nodes that a segment needs, at least 1; -1 leaves the main graph native and cuts
            only inside control-flow bodies, with a minimum of 3.
        absorb: clusters that are too small may join one that they are not connected to.
        max_engines: how many segments there may be, in all graphs together; the largest are kept. None, the default,
            for any number.

    Raises:
        ValueError: the size is neither -1 nor at least 1, or the number of engines is negative.
    """

    minimum_segment_size: int = 3
    absorb: bool = True
    max_engines: int | None = None

    def __post_init__(self) -> None:
        if self.minimum_segment_size != BODIES_ONLY and self.minimum_segment_size < 1:
            raise ValueError(f"minimum_segment_size is -1 or at least 1, not {self.minimum_segment_size}")
        if self.max_engines is not None and self.max_engines < 0:
            raise ValueError(f"max_engines is None or at least 0, not {self.max_engines}")

    @property
    def minimum(self) -> int:
        """The effective nodes that a segment needs, wherever it lies."""
        return BODIES_ONLY_MINIMUM if self.minimum_segment_size == BODIES_ONLY else self.minimum_segment_size


def propose(model: Model, support: SupportMap, options: PartitionOptions | None = None) -> Segmentation:
    """Cuts a model into segments and native nodes.

    1. In every graph the supported nodes are clustered (`passes.graph.clustering`); contracting all segments of it at
       once leaves it acyclic. A control-flow node counts as supported when it is and nothing in its bodies is denied;
       what its bodies capture are its inputs.
    2. Pass-through nodes (Identity, Dropout, Cast to the same type) that only carry a value out of a segment to native
       nodes, and those that no effective node is joined to, stay native.
    3. Clusters with fewer effective nodes than the minimum, without a data input, or whose results nobody reads, stay
       native. A node counts 1, a control-flow node 1 and all that is in its bodies, a pass-through node 0.
    4. Bodies of native control-flow nodes are cut in the same way; bodies inside segments belong to these.
    5. Of more segments than `max_engines` those with the most effective nodes stay, of equal ones the first; the nodes
       of the others stay native, those in their bodies included, for no body could hold a larger segment.

    Args:
        model: a canonical model (unique node and value names).
        support: the verdicts; a node without one is native.
        options: default `PartitionOptions()`.

    Returns:
        Segments in topological order, main graph before bodies; one verdict, with its reason, for every native node of
        every graph that lies in no segment.

    Raises:
        PassError: the graph has a cycle or node names are not unique.
    """
    return _Proposer(model, support, options or PartitionOptions()).run()


class _Proposer:
    """One walk over all graphs; collects segments and native verdicts."""

    def __init__(self, model: Model, support: SupportMap, options: PartitionOptions) -> None:
        self._model = model
        self._verdicts = support.verdicts
        self._options = options
        self._constants = constant_names(model.proto)
        self._segments: list[Segment] = []
        self._native: list[Verdict] = []

    @functools.cached_property
    def _infos(self) -> Mapping[str, ValueInfoProto]:
        """Declared types, which only the rare Casts need to be looked up in."""
        return collect_infos(self._model.proto)

    def run(self) -> Segmentation:
        total = 0
        stack: list[tuple[Scope, GraphProto]] = [((), self._model.proto.graph)]
        while stack:
            scope, graph = stack.pop()
            index = GraphIndex.of(graph)
            weights = [effective_weight(node, lambda: self._infos) for node in index.nodes]
            if not scope and self._options.minimum_segment_size == BODIES_ONLY:
                reason = "minimum_segment_size is -1, so the main graph stays native"
                self._native += [self._denial(node, "main_graph_native", reason) for node in index.nodes]
                inside: set[int] = set()
            else:
                inside = self._cut(scope, index, weights)
            total += sum(weights)
            native = [node for node in index.captures if node not in inside]
            # What native control-flow nodes have in their bodies is counted with these bodies, and they count 1.
            total -= sum(max(weights[node] - 1, 0) for node in native)
            inner = [((*scope, entry), body) for node in native for entry, body in bodies_of(index.nodes[node])]
            stack.extend(reversed(inner))
        self._limit()
        return Segmentation(tuple(self._segments), tuple(self._native), total)

    def _limit(self) -> None:
        """Rule 5; what is left is numbered again."""
        limit = self._options.max_engines
        if limit is None or len(self._segments) <= limit:
            return
        ranked = sorted(self._segments, key=lambda segment: -segment.effective_nodes)  # stable: the first of equals
        dropped = {name: segment for segment in ranked[limit:] for name in segment.nodes}
        denials = {verdict.node: verdict for verdict in self._native}
        order: list[str] = []
        for scope, graph in iter_scopes(self._model.proto):
            owners = [entry.rpartition("/")[0] for entry in scope]
            around = next((dropped[owner] for owner in owners if owner in dropped), None)
            for node in graph.node:
                order.append(node.name)
                segment = dropped.get(node.name, around)
                if segment is not None:
                    reason = (
                        f"its segment has {_count(segment.effective_nodes)}, and max_engines keeps the {limit} largest"
                    )
                    denials[node.name] = self._denial(node, "max_engines", reason)
        self._native = [denials[name] for name in order if name in denials]
        kept = [segment for segment in self._segments if segment.nodes[0] not in dropped]
        self._segments = [
            dataclasses.replace(segment, name=f"{ENGINE_PREFIX}{number:03d}") for number, segment in enumerate(kept)
        ]

    def _cut(self, scope: Scope, index: GraphIndex, weights: Sequence[int]) -> set[int]:
        """Proposes the segments of one graph; returns the nodes that lie in them."""
        denials = self._refusals(index)
        supported = [number not in denials for number in range(len(index.nodes))]
        dag = Dag(index.preds, index.succs, supported, weights)
        minimum = self._options.minimum
        clusters = []
        for members in cluster(dag, minimum, absorb=self._options.absorb):
            weight = sum([weights[m] for m in members])
            if weight >= minimum:
                clusters.append(members)
            else:
                rule, reason = "min_segment", f"its group has {_count(weight)}, fewer than the minimum of {minimum}"
                if not weight:
                    rule, reason = (
                        "pass_through",
                        "it only passes a value on, and no node beside it goes into an engine",
                    )
                denials.update((m, self._denial(index.nodes[m], rule, reason)) for m in members)
        inside: set[int] = set().union(*clusters)
        for members in clusters:
            kept = _trim(index, members, weights, inside)
            if len(kept) < len(members):
                reason = "it only carries a value out of an engine to native nodes"
                dropped = sorted(set(members) - set(kept))
                denials.update((m, self._denial(index.nodes[m], "pass_through", reason)) for m in dropped)
                inside.difference_update(dropped)
            self._keep(scope, index, kept, sum([weights[m] for m in kept]), inside, denials)
        self._native += [denials[i] for i in sorted(denials)]
        return inside

    def _keep(
        self,
        scope: Scope,
        index: GraphIndex,
        members: Sequence[int],
        weight: int,
        inside: set[int],
        denials: dict[int, Verdict],
    ) -> None:
        """Adds a segment, or denies its nodes when it could have no inputs or no outputs."""
        inputs, weights, outputs = boundary(index, members, self._constants)
        if not inputs or not outputs:
            rule, reason = ("dead_end", "nothing reads the results of its group")
            if outputs:
                rule, reason = ("constant", "its group reads constants only, and an engine needs a data input")
            denials.update((m, self._denial(index.nodes[m], rule, reason)) for m in members)
            inside.difference_update(members)
            return
        name = f"{ENGINE_PREFIX}{len(self._segments):03d}"
        nodes = tuple([index.names[m] for m in members])
        self._segments.append(Segment(name, scope, nodes, inputs, weights, outputs, weight))

    def _refusals(self, index: GraphIndex) -> dict[int, Verdict]:
        """Why nodes cannot lie in a segment, for those that cannot."""
        denials: dict[int, Verdict] = {}
        for number, name in enumerate(index.names):
            verdict = self._verdicts.get(name)
            if verdict is None:
                denials[number] = self._denial(index.nodes[number], "unexamined", "no verdict was given on it")
            elif not verdict.supported:
                denials[number] = verdict
            elif number in index.captures:
                denial = self._refused_inside(index.nodes[number])
                if denial is not None:
                    denials[number] = denial
        return denials

    def _refused_inside(self, node: NodeProto) -> Verdict | None:
        """Why a control-flow node cannot lie in a segment: because of the first node in its bodies that cannot."""
        for _, body in bodies_of(node):
            for inner in iter_nodes(body):
                found = self._verdicts.get(inner.name)
                if found is not None and not found.supported:
                    reason = f"node {inner.name!r} in its body is not supported: {found.reason}"
                    return self._denial(node, found.rule, reason)
        return None

    def _denial(self, node: NodeProto, rule: str, reason: str) -> Verdict:
        known = self._verdicts.get(node.name)
        domain = plain_domain(node.domain)
        op_type = known.op_type if known else f"{domain}::{node.op_type}" if domain else node.op_type
        return Verdict(node.name, op_type, False, rule, reason)


def _trim(index: GraphIndex, members: Sequence[int], weights: Sequence[int], inside: set[int]) -> tuple[int, ...]:
    """Members without the pass-through nodes at the end whose value is read by native nodes alone.

    What is left is still convex, for only nodes without followers in the segment go. A graph output keeps its Identity
    in the engine, and so does a value that another engine reads: a native node between costs more than it saves.

    Args:
        index: the graph.
        members: the cluster, ascending.
        weights: effective weight by node.
        inside: all nodes in clusters.
    """
    if all(weights[m] for m in members):
        return tuple(members)
    kept = set(members)
    own = frozenset(members)
    for m in reversed(members):
        if weights[m] or any(s in kept or (s in inside and s not in own) for s in index.succs[m]):
            continue
        if not any(name in index.output_names for name in index.makes[m]):
            kept.discard(m)
    return tuple(sorted(kept))


def _count(weight: int) -> str:
    return f"{weight} effective node{'' if weight == 1 else 's'}"
