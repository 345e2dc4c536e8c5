"""Removal of what computes nothing: no-op nodes, dead nodes, unused initializers, stale value_info."""

from __future__ import annotations

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from passes.base import Change
from passes.graph.editing import filter_initializers, label, place, replace_nodes, substitute
from passes.graph.walk import bodies_of, iter_graphs, iter_scopes
from passes.model import is_stub


def remove_noops(model: ModelProto) -> list[Change]:
    """Removes Identity, Cast to the same type and Dropout in inference; needs sorted nodes and unique names.

    Names of graph outputs stay: where a no-op produces one, the node before it takes the name over. A no-op
    between an input (or an initializer, or a value of an outer graph) and an output stays, since a graph cannot
    return such a value under another name without a node.
    """
    changes: list[Change] = []
    sweep = _NoopSweep(model)
    sweep.run(model.graph, changes)
    substitute(model.graph, sweep.alias, outputs=True)
    return changes


def remove_dead(model: ModelProto) -> list[Change]:
    """Removes nodes none of whose outputs is used, and initializers nobody reads; needs sorted nodes."""
    changes: list[Change] = []
    graph = model.graph
    live = {
        name
        for inner in iter_graphs(graph)
        for annotation in inner.quantization_annotation
        for name in (entry.value for entry in annotation.quant_parameter_tensor_names)
    }
    _sweep_dead(graph, live, changes)
    unused = filter_initializers(graph, lambda t: t.name in live)
    changes.extend(Change("remove-initializer", name, "nothing reads it") for name in unused)
    return changes


def drop_stale_value_info(graph: GraphProto) -> list[Change]:
    """Keeps the value_info that names an output of a node of the same graph, each name once."""
    changes = []
    for scope, inner in iter_scopes(graph):
        wanted = {name for node in inner.node for name in node.output if name} - {o.name for o in inner.output}
        kept = []
        for value in inner.value_info:
            if value.name in wanted:
                wanted.discard(value.name)
                kept.append(value)
            else:
                changes.append(Change("drop-value-info", value.name, f"no inner value of {place(scope)}"))
        if len(kept) != len(inner.value_info):
            del inner.value_info[:]
            inner.value_info.extend(kept)
    return changes


class _NoopSweep:
    """One walk in topological order that collects replacements; bodies are walked where their node stands.

    Attributes:
        alias: value -> the value that replaces it, everywhere, its producer included.
    """

    def __init__(self, model: ModelProto) -> None:
        self.alias: dict[str, str] = {}
        self._opset = next((o.version for o in model.opset_import if not o.domain), 0)
        self._types = _element_types(model.graph)
        self._false = {t.name for t in model.graph.initializer if _is_false(t)}
        self._annotated = {a.tensor_name for graph in iter_graphs(model.graph) for a in graph.quantization_annotation}

    def run(self, graph: GraphProto, changes: list[Change]) -> None:
        """Walks one graph and the bodies below it."""
        outputs = {o.name for o in graph.output}
        produced: set[str] = set()
        used = _UseCount(graph)
        kept = []
        for node in graph.node:
            reason = self._noop(node, used)
            if reason and self._redirect(node, outputs, produced):
                changes.append(Change("remove-noop", node.name, reason))
                continue
            for _, body in bodies_of(node):
                self.run(body, changes)
            produced.update(name for name in node.output if name)
            kept.append(node)
        if len(kept) != len(graph.node):
            replace_nodes(graph, kept)

    def _redirect(self, node: NodeProto, outputs: set[str], produced: set[str]) -> bool:
        """Plans to replace the node's output by its input; False where the node has to stay."""
        source, result = self._resolve(node.input[0]), node.output[0]
        if result in self._annotated:
            return False
        if result not in outputs:
            self.alias[result] = source
            return True
        if source in produced and source not in outputs and source not in self._annotated:
            self.alias[source] = result
            produced.add(result)
            return True
        return False

    def _resolve(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def _noop(self, node: NodeProto, used: _UseCount) -> str:
        """Why the node computes nothing; empty when it does."""
        if node.domain or not node.input or not node.input[0] or not node.output or not node.output[0]:
            return ""
        if node.op_type in ("Identity", "Dropout"):
            source = self._types.get(self._resolve(node.input[0]), 0)
            self._types.setdefault(node.output[0], source)
        if node.op_type == "Identity":
            return "Identity"
        if node.op_type == "Cast":
            return self._noop_cast(node)
        if node.op_type == "Dropout" and self._inference(node) and not used.any(node.output[1:]):
            return "Dropout in inference"
        return ""

    def _noop_cast(self, node: NodeProto) -> str:
        to = next((a.i for a in node.attribute if a.name == "to"), 0)
        source = self._types.get(self._resolve(node.input[0]), 0)
        self._types[node.output[0]] = to
        return "Cast to the type it already has" if to and to == source else ""

    def _inference(self, node: NodeProto) -> bool:
        if self._opset >= 12:
            training = node.input[2] if len(node.input) > 2 else ""
            return not training or self._resolve(training) in self._false
        return self._opset >= 7


class _UseCount:
    """Which values are used by a graph, its outputs and its bodies (looked up only for the rare Dropout masks)."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._names: set[str] | None = None

    def any(self, names: object) -> bool:
        """True when one of `names` is read somewhere."""
        if self._names is None:
            self._names = {n for g in iter_graphs(self._graph) for node in g.node for n in node.input}
            self._names.update(o.name for g in iter_graphs(self._graph) for o in g.output)
            self._names.discard("")
        return any(name in self._names for name in names)  # type: ignore[attr-defined]


def _element_types(main: GraphProto) -> dict[str, int]:
    """Element types of the values that say so themselves."""
    types: dict[str, int] = {}
    for graph in iter_graphs(main):
        for values in (graph.value_info, graph.input, graph.output):
            for value in values:
                if value.type.HasField("tensor_type"):
                    types[value.name] = value.type.tensor_type.elem_type
        for tensor in graph.initializer:
            types[tensor.name] = tensor.data_type
    # An Identity that hands a typed output over will leave its type on the value before it: know that now.
    for graph in iter_graphs(main):
        for node in reversed(graph.node):
            if node.op_type in ("Identity", "Dropout") and node.input and node.output[0] in types:
                types.setdefault(node.input[0], types[node.output[0]])
    return types


def _is_false(tensor: TensorProto) -> bool:
    if tensor.data_type != TensorProto.BOOL or is_stub(tensor):
        return False
    return not numpy_helper.to_array(tensor).any()


def _sweep_dead(graph: GraphProto, live: set[str], changes: list[Change]) -> None:
    """Removes dead nodes of one graph, last node first; adds all that the rest reads to `live`."""
    live.update(o.name for o in graph.output)
    kept = []
    for node in reversed(graph.node):
        if not any(name in live for name in node.output if name):
            changes.append(Change("remove-dead", node.name, f"nothing uses the outputs of {label(node)}"))
            continue
        for _, body in bodies_of(node):
            _sweep_dead(body, live, changes)
        live.update(node.input)
        kept.append(node)
    if len(kept) != len(graph.node):
        replace_nodes(graph, kept[::-1])
