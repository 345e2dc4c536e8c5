"""Constant folding that leaves quantisation alone and does not let the model grow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from passes.base import Change, PassResult
from passes.graph.editing import finish, label, replace_nodes
from passes.graph.value_types import value_types
from passes.graph.walk import bodies_of, definitions, iter_graphs, iter_scopes
from passes.model import Model, Weights, stow
from passes.steps.cleanup import drop_stale_value_info, remove_dead
from passes.steps.evaluation import Evaluate, Evaluator, reference_evaluate
from passes.steps.static_shapes import StaticShapes

#: Quantisation is structure, not arithmetic: it says which values are 8 bits wide.
_QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
#: Every run of these gives other values; a Dropout that `Canonicalize` left is one in training.
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
)


@dataclasses.dataclass(frozen=True)
class FoldConstants:
    """Replaces nodes by their values where these are the same in every run.

    1. Shape and Size of values with static dimensions, and index arithmetic on their static entries
       (`passes.steps.static_shapes`), become constants.
    2. Nodes that read constants alone are evaluated, in the main graph and in bodies, and their results become
       main-graph initializers, large ones as stubs. Weights take part.
    3. Never folded: QuantizeLinear and DequantizeLinear and the nodes between a constant and their data input,
       random operators, nodes with bodies, operators of other domains or that give sequences, nodes that produce an
       output of a body, and nodes whose evaluation fails (which is logged).
    4. A result of more than `max_bytes` is kept as a node, unless it is no larger than the constants it is made of.
    5. What nothing reads afterwards is removed.

    Needs a canonical model (`Canonicalize`); finds more with types (`InferShapes`).

    Attributes:
        evaluate: runs a small model; default: ONNX's reference evaluator.
        max_bytes: largest result (bytes) that may make the model grow.
    """

    evaluate: Evaluate | None = dataclasses.field(default=None, repr=False)
    max_bytes: int = 16 << 20
    name: str = "fold_constants"

    def run(self, model: Model) -> PassResult:
        """Folds what can be folded."""
        proto = model.copy_proto()
        weights: Weights = dict(model.weights)
        changes: list[Change] = []
        static = StaticShapes(proto.graph, value_types(model)).constants
        _replace(proto.graph, static, _static_nodes(proto.graph, static), weights, "static-shape", changes)
        evaluator = Evaluator(self.evaluate or reference_evaluate, proto, weights, self.max_bytes)
        evaluator.compute(_candidates(proto))
        _replace(proto.graph, evaluator.values, frozenset(evaluator.computed), weights, "fold", changes)
        if changes:
            changes.extend(remove_dead(proto))
            changes.extend(drop_stale_value_info(proto.graph))
        return finish(model, proto, weights, changes)


def _candidates(proto: ModelProto) -> list[NodeProto]:
    """Nodes of the model and its bodies that read nothing but constants, in topological order."""
    opset = next((o.version for o in proto.opset_import if not o.domain), 0)
    protected: set[str] = set()
    _protect(proto.graph, protected)
    constant = {t.name for t in proto.graph.initializer}
    found: list[NodeProto] = []
    _collect(proto.graph, opset, protected, set(), constant, found)
    return found


def _collect(
    graph: GraphProto, opset: int, protected: set[str], bound: set[str], constant: set[str], found: list[NodeProto]
) -> None:
    """Adds the candidates of one graph and the bodies below it to `found`, their outputs to `constant`."""
    for node in graph.node:
        inner = bodies_of(node)
        for _, body in inner:
            _collect(body, opset, protected, {o.name for o in body.output}, constant, found)
        if inner or not _foldable(node, opset):
            continue
        if all(name in constant for name in node.input if name) and not any(
            name in protected or name in bound for name in node.output
        ):
            found.append(node)
            constant.update(name for name in node.output if name)


def _foldable(node: NodeProto, opset: int) -> bool:
    """True for an operator that gives tensors and the same ones in every run."""
    if node.domain or node.op_type in _QUANTIZATION or node.op_type in _RANDOM or node.op_type == "Constant":
        return False
    if not onnx.defs.has(node.op_type, opset, ""):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset)
    return all(any(t.startswith("tensor(") for t in output.types) for output in schema.outputs)


def _protect(graph: GraphProto, protected: set[str]) -> None:
    """Collects the values on the way into the data input of a quantisation node, last node first."""
    for node in reversed(graph.node):
        for _, body in bodies_of(node):
            _protect(body, protected)
        quantizes = node.op_type in _QUANTIZATION
        if node.input and (quantizes or any(name in protected for name in node.output if name)):
            protected.add(node.input[0])


def _replace(
    main: GraphProto,
    values: Mapping[str, np.ndarray],
    folded: frozenset[str],
    weights: Weights,
    rule: str,
    changes: list[Change],
) -> None:
    """Removes the nodes named in `folded` and makes those of their values that are still read initializers."""
    if not folded:
        return
    for graph in iter_graphs(main):
        kept = [node for node in graph.node if node.name not in folded]
        if len(kept) != len(graph.node):
            changes.extend(
                Change(rule, node.name, f"the result of {label(node)} is constant")
                for node in graph.node
                if node.name in folded
            )
            replace_nodes(graph, kept)
    wanted = _used(main).difference(*(definitions(graph) for graph in iter_graphs(main)))
    for name, array in values.items():
        if name in wanted:
            # Not ascontiguousarray: that makes a scalar one-dimensional.
            main.initializer.append(stow(numpy_helper.from_array(np.asarray(array, order="C"), name), weights))


def _static_nodes(main: GraphProto, values: Mapping[str, np.ndarray]) -> frozenset[str]:
    """Names of the nodes whose only output is known; not those that a body returns."""
    found: set[str] = set()
    for scope, graph in iter_scopes(main):
        bound = {o.name for o in graph.output} if scope else set()
        found.update(n.name for n in graph.node if n.output and n.output[0] in values and n.output[0] not in bound)
    return frozenset(found)


def _used(main: GraphProto) -> set[str]:
    """Names that a node or an output reads, anywhere."""
    used: set[str] = set()
    for graph in iter_graphs(main):
        used.update(o.name for o in graph.output)
        for node in graph.node:
            used.update(node.input)
    used.discard("")
    return used
