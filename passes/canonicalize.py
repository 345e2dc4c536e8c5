"""The canonical form that every later pass relies on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, helper

from passes.base import Change, PassError, PassResult
from passes.graph.editing import finish, label
from passes.graph.walk import bodies_of, iter_nodes, iter_scopes, plain_domain
from passes.model import Model, Weights
from passes.steps.cleanup import drop_stale_value_info, remove_dead, remove_noops
from passes.steps.constants import lift_constants
from passes.steps.naming import unique_nodes, unique_values
from passes.steps.ordering import sort_nodes

#: IR version of canonical models: new enough for typed model-local functions, old enough for ONNX Runtime 1.23.
IR_VERSION = 10
#: Opset given to a model that names none because it has no default-domain node; what tf2onnx exports.
FALLBACK_OPSET = 18


@dataclasses.dataclass(frozen=True)
class Canonicalize:
    """Brings a model into canonical form.

    Afterwards: no functions, no attribute references; one import a domain, the default one among them; node names
    are not empty and unique, value names are unique, both in the whole model; nodes are sorted topologically;
    Constant nodes and initializers of bodies are main-graph initializers, large ones as stubs; no node without use,
    no Identity, same-type Cast or inference Dropout except where a graph output needs it.

    Inputs and outputs of the main graph keep their names; an input that has an initializer is no input any more.
    Running it twice changes nothing the second time.
    """

    name: str = "canonicalize"

    def run(self, model: Model) -> PassResult:
        """Canonicalises `model`.

        Raises:
            PassError: the model is not valid ONNX (cycle, undefined or twice-defined value, recursive function, ...).
        """
        weights: Weights = dict(model.weights)
        proto = model.copy_proto()
        changes: list[Change] = []
        if proto.functions:
            proto = _inline_functions(proto, changes)
        steps: tuple[Callable[[ModelProto], list[Change]], ...] = (
            _reject_references,
            _name_graphs,
            _set_versions,
            _drop_initialized_inputs,
            lambda m: unique_nodes(m.graph),
            lambda m: unique_values(m.graph),
            _spell_out_axes,
            lambda m: sort_nodes(m.graph),
            lambda m: lift_constants(m.graph, weights),
            remove_noops,
            remove_dead,
            lambda m: drop_stale_value_info(m.graph),
        )
        for step in steps:
            changes.extend(step(proto))
        return finish(model, proto, weights, changes)


def _inline_functions(proto: ModelProto, changes: list[Change]) -> ModelProto:
    """Replaces every call of a model-local function by its body.

    Raises:
        PassError: recursion, or a function whose opsets cannot be brought to the model's.
    """
    names = [f"{f.domain}.{f.name}" for f in proto.functions]
    _spell_out_defaults(proto)
    try:
        inlined = onnx.inliner.inline_local_functions(proto)
        if inlined.functions:
            # Functions written for another opset than the model's are left over: adapt these, too.
            inlined = onnx.inliner.inline_local_functions(inlined, convert_version=True)
    except (onnx.checker.ValidationError, RuntimeError) as error:
        raise PassError(f"the model-local functions cannot be inlined: {error}") from error
    called = {(node.domain, node.op_type) for node in iter_nodes(inlined.graph)}
    left = [f"{f.domain}.{f.name}" for f in inlined.functions if (f.domain, f.name) in called]
    if left:
        raise PassError(
            f"the model-local functions {', '.join(sorted(left))} use other opset versions than the model and cannot "
            "be adapted: convert the model with onnx.version_converter first"
        )
    del inlined.functions[:]
    changes.extend(Change("inline-function", name, "model-local function") for name in names)
    return inlined


def _spell_out_defaults(proto: ModelProto) -> None:
    """Writes default attribute values of functions into the calls that rely on them: ONNX's inliner forgets these."""
    defaults = {(f.domain, f.name, f.overload): f.attribute_proto for f in proto.functions if f.attribute_proto}
    if not defaults:
        return
    calls = list(iter_nodes(proto.graph))
    for function in proto.functions:
        for node in function.node:
            calls.append(node)
            calls.extend(inner for _, body in bodies_of(node) for inner in iter_nodes(body))
    for node in calls:
        given = {attribute.name for attribute in node.attribute}
        for default in defaults.get((node.domain, node.op_type, node.overload), ()):
            if default.name not in given:
                node.attribute.append(default)


def _spell_out_axes(proto: ModelProto) -> list[Change]:
    """Writes the default axes of MeanVarianceNormalization: inside a function ONNX Runtime does not find them."""
    changes = []
    for node in iter_nodes(proto.graph):
        if node.op_type == "MeanVarianceNormalization" and not plain_domain(node.domain) and not node.attribute:
            node.attribute.append(onnx.helper.make_attribute("axes", [0, 2, 3]))
            changes.append(Change("explicit-axes", node.name, "ONNX Runtime does not find the default in a function"))
    return changes


def _reject_references(proto: ModelProto) -> list[Change]:
    """Raises on attributes that refer to an attribute of a function: outside one they have no value."""
    for node in iter_nodes(proto.graph):
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                raise PassError(
                    f"attribute {attribute.name!r} of node {label(node)} refers to {attribute.ref_attr_name!r} of a "
                    "function, but stands outside of one: the model is not valid ONNX"
                )
    return []


def _name_graphs(proto: ModelProto) -> list[Change]:
    """Names nameless graphs, as the checker demands."""
    changes = []
    for scope, graph in iter_scopes(proto.graph):
        if not graph.name:
            graph.name = scope[-1].rpartition("/")[2] if scope else "main"
            changes.append(Change("name-graph", graph.name, "the graph had no name"))
    return changes


def _set_versions(proto: ModelProto) -> list[Change]:
    """One import a used domain, the default domain under its empty name, and the IR version."""
    changes = []
    used = {""}
    for node in iter_nodes(proto.graph):
        if node.domain == "ai.onnx":
            node.domain = ""
            changes.append(Change("default-domain", node.name, "'ai.onnx' is the default domain"))
        used.add(node.domain)
    found: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if found.setdefault(domain, entry.version) != entry.version:
            raise PassError(
                f"the model imports domain {domain!r} in versions {found[domain]} and {entry.version}: keep one of them"
            )
    wanted = {domain: version for domain, version in found.items() if domain in used}
    if "" not in wanted:
        _require_no_default_nodes(proto.graph)
        wanted[""] = FALLBACK_OPSET
    if [(o.domain, o.version) for o in proto.opset_import] != list(wanted.items()):
        del proto.opset_import[:]
        proto.opset_import.extend(helper.make_opsetid(d, v) for d, v in wanted.items())
        changes.append(Change("opset-import", "model", f"imports are now {wanted}"))
    # Types that need a newer IR came with the opsets of the same release.
    needed = max(IR_VERSION, helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True))
    if proto.ir_version != needed:
        changes.append(Change("ir-version", "model", f"{proto.ir_version} -> {needed}"))
        proto.ir_version = needed
    return changes


def _require_no_default_nodes(graph: GraphProto) -> None:
    for node in iter_nodes(graph):
        if not node.domain:
            raise PassError(
                f"node {label(node)} is of the default domain, but the model does not say which opset version of it"
            )


def _drop_initialized_inputs(proto: ModelProto) -> list[Change]:
    """Makes inputs that have an initializer plain constants (the style of IR versions below 4)."""
    graph = proto.graph
    constants = {t.name for t in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    kept = [value for value in graph.input if value.name not in constants]
    if len(kept) == len(graph.input):
        return []
    changes = [
        Change("drop-input", value.name, "it has an initializer, so it is a constant")
        for value in graph.input
        if value.name in constants
    ]
    del graph.input[:]
    graph.input.extend(kept)
    return changes
