"""Exact rewrites of what TensorRT's parser refuses into what it takes."""

from __future__ import annotations

import dataclasses

from onnx import GraphProto

from passes.base import Change, PassResult
from passes.graph.editing import finish, replace_nodes
from passes.graph.walk import bodies_of
from passes.model import Model
from passes.steps.cast_earlier import cast_earlier
from passes.steps.legalize_rules import RULES, Workshop
from passes.steps.quantization_rules import float_pairs
from passes.steps.quantized_constants import settle_constants


@dataclasses.dataclass(frozen=True)
class Legalize:
    """Rewrites nodes so that TensorRT's ONNX parser takes them; every result is equal to the last bit.

    The rules and the parser's complaint that each one answers stand in `passes.steps.legalize_rules`,
    `passes.steps.cast_earlier`, `passes.steps.quantized_constants` and `passes.steps.quantization_rules`. Needs a
    canonical model with types; no-op Casts and unused constants are left for `Canonicalize`, types of new values for
    `InferShapes`.
    """

    name: str = "legalize"

    def run(self, model: Model) -> PassResult:
        """Applies every rule once to every node, bodies included."""
        proto = model.copy_proto()
        weights = dict(model.weights)
        changes = settle_constants(proto, weights)
        workshop = Workshop.of(Model(proto, weights))
        changes.extend(float_pairs(proto, weights, workshop))
        _rewrite(proto.graph, workshop, changes)
        changes.extend(cast_earlier(proto, workshop))
        proto.graph.initializer.extend(workshop.made)
        return finish(model, proto, weights, changes)


def _rewrite(graph: GraphProto, workshop: Workshop, changes: list[Change]) -> None:
    nodes = []
    replaced = False
    for node in graph.node:
        for _, body in bodies_of(node):
            _rewrite(body, workshop, changes)
        new = [node]
        for rule in RULES:
            made = rule.rewrite(workshop, new[-1]) if not new[-1].domain else None
            if made is not None:
                new[-1:] = made
                replaced = True
                changes.append(Change(rule.name, node.name, rule.reason))
        nodes.extend(new)
    if replaced:
        replace_nodes(graph, nodes)
