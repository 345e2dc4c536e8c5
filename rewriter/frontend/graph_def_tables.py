"""Lookup tables of a GraphDef: filled once, by the initialisers that the graph still has."""

from __future__ import annotations

import itertools
from typing import Any

from rewriter.errors import SourceError
from rewriter.frontend.callee import import_tensorflow
from rewriter.frontend.graph_def_ports import between
from rewriter.frontend.noise import quiet
from rewriter.frontend.samples import one_line

_TABLES = frozenset({"HashTableV2", "MutableHashTableV2"})
_INITIALISERS = frozenset({"InitializeTableV2", "InitializeTableFromTextFileV2", "LookupTableImportV2"})
_NUMBERS = itertools.count()


def initialise_tables(cut: Any, graph_def: Any, origin: str) -> None:
    """Gives the tables of `cut` names of their own in this process, and fills them.

    TensorFlow shares tables by name across all graphs of a process, so those of two models must not be called alike.

    Args:
        cut: the part of the graph that is converted; changed in place.
        graph_def: the whole graph, which may hold the initialisers (those of a frozen graph survive only if they were
            named when it was frozen).
        origin: one line for people.

    Raises:
        SourceError: a table has no initialiser, or it fails (its vocabulary file is gone).
    """
    names = {}
    for node in cut.node:
        if node.op in _TABLES:
            names[node.name] = f"trt_rewriter_table_{next(_NUMBERS)}".encode()
            node.attr["shared_name"].s = names[node.name]
    if not names:
        return
    nodes = {node.name: node for node in graph_def.node}
    fills = {_table_of(node, nodes): node.name for node in graph_def.node if node.op in _INITIALISERS}
    missing = sorted(names.keys() - fills.keys())
    if missing:
        raise SourceError(
            f"{origin}: the lookup table {missing[0]!r} has no initialiser in the graph: name the initialiser's node "
            "(init_all_tables) among the outputs when freezing, or pass the SavedModel"
        )
    wanted = [fills[name] for name in names]
    kept = between(nodes, set(), wanted)
    part = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
    for node in graph_def.node:
        if node.name in kept:
            copy = part.node.add()
            copy.CopyFrom(node)
            copy.device = ""
            copy.attr.pop("_class", None)
            copy.input[:] = kept[node.name]
            if node.name in names:
                copy.attr["shared_name"].s = names[node.name]
    _run(part, wanted, origin)


def _run(part: Any, wanted: list[str], origin: str) -> None:
    tf = import_tensorflow()

    def body() -> Any:
        done = tf.compat.v1.import_graph_def(part, return_elements=wanted, name="")
        with tf.control_dependencies(done):
            return tf.constant(True)

    try:
        with quiet():
            tf.compat.v1.wrap_function(body, [])()
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise SourceError(f"{origin}: its lookup tables cannot be filled: {one_line(error)}") from error


def _table_of(initialiser: Any, nodes: Any) -> str:
    """The node of the table that an initialiser fills."""
    name = str(initialiser.input[0]).split(":")[0]
    while name in nodes and nodes[name].op == "Identity":
        name = nodes[name].input[0].split(":")[0]
    return name
