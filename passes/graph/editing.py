"""Guarded edits: the few operations through which passes change a graph, so that nothing is left half-changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from passes.base import Change, PassError, PassResult
from passes.graph.walk import Scope, definitions, iter_graphs
from passes.model import Model


class Namer:
    """Hands out names that are not taken yet: `base`, `base__1`, `base__2` ... in constant time each."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._next: dict[str, int] = {}

    def fresh(self, base: str) -> str:
        """A name made from `base` that nobody has, taken from now on."""
        name = base
        while not name or name in self._taken:
            number = self._next.get(base, 0) + 1
            self._next[base] = number
            name = f"{base}__{number}"
        self._taken.add(name)
        return name


def value_namer(graph: GraphProto) -> Namer:
    """A namer that avoids every value name of the whole model."""
    return Namer(name for inner in iter_graphs(graph) for name in definitions(inner))


def node_namer(graph: GraphProto) -> Namer:
    """A namer that avoids every node name of the whole model."""
    return Namer(node.name for inner in iter_graphs(graph) for node in inner.node)


def finish(before: Model, proto: ModelProto, weights: Mapping[str, object], changes: Sequence[Change]) -> PassResult:
    """The result of a pass: the old model itself when nothing differs, else the new proto with the weights it names.

    Raises:
        PassError: the proto differs although no change was recorded (a fault of the pass).
    """
    # Compared as bytes: two NaN attributes are equal bytes but unequal values.
    if proto.SerializeToString(deterministic=True) == before.proto.SerializeToString(deterministic=True):
        return PassResult(before)
    if not changes:
        raise PassError("a pass changed the graph without recording it; please report this with the model")
    merged = Model(before.proto, {**before.weights, **weights})  # type: ignore[dict-item]
    return PassResult(merged.with_proto(proto), tuple(changes))


def substitute(graph: GraphProto, names: Mapping[str, str], *, outputs: bool = False) -> None:
    """Replaces all uses of values in `graph` and the bodies below it; value names must be unique in the model.

    Args:
        graph: edited in place.
        names: old name -> new name; chains (a -> b -> c) are followed.
        outputs: rename at the producing nodes as well; else only the uses are turned to another value.
    """
    if not names:
        return
    final = {old: _last(old, names) for old in names}
    for inner in iter_graphs(graph):
        for node in inner.node:
            replace_names(node.input, final)
            if outputs:
                replace_names(node.output, final)
        for annotation in inner.quantization_annotation:
            rename_annotation(annotation, final)


def replace_names(field: object, names: Mapping[str, str]) -> None:
    """Maps the entries of a repeated string field in place; names that are not in the map stay."""
    for i, name in enumerate(field):  # type: ignore[var-annotated,arg-type]
        new = names.get(name)
        if new is not None:
            field[i] = new  # type: ignore[index]


def rename_annotation(annotation: object, names: Mapping[str, str]) -> None:
    """Maps the tensor names within one quantisation annotation."""
    name = annotation.tensor_name  # type: ignore[attr-defined]
    if name in names:
        annotation.tensor_name = names[name]  # type: ignore[attr-defined]
    for entry in annotation.quant_parameter_tensor_names:  # type: ignore[attr-defined]
        entry.value = names.get(entry.value, entry.value)


def replace_nodes(graph: GraphProto, kept: Sequence[NodeProto]) -> None:
    """Makes `kept` (nodes of `graph`, or new ones) the nodes of `graph`, in that order."""
    kept = list(kept)
    del graph.node[:]
    graph.node.extend(kept)


def filter_initializers(graph: GraphProto, keep: Callable[[TensorProto], bool]) -> list[str]:
    """Removes the initializers that `keep` refuses; returns their names."""
    removed = [t.name for t in graph.initializer if not keep(t)]
    if removed:
        kept = [t for t in graph.initializer if keep(t)]
        del graph.initializer[:]
        graph.initializer.extend(kept)
    return removed


def place(scope: Scope) -> str:
    """A graph's scope for people: "the main graph" or "body loop_1/body"."""
    return f"body {' > '.join(scope)}" if scope else "the main graph"


def label(node: NodeProto) -> str:
    """A node for people: its name and operator, or its first output where it has no name."""
    name = node.name or next((o for o in node.output if o), "")
    return f"{name!r} ({node.op_type})"


def _last(name: str, names: Mapping[str, str]) -> str:
    """The end of a chain of replacements."""
    while name in names:
        name = names[name]
    return name
