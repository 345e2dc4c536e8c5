"""Frozen TF1 graphs: GraphDef objects and .pb / .pbtxt files, cut to the inputs and outputs that the user names.

Public names: an input or output is called like its tensor without ":0" ("x" for "x" and "x:0"), and like its tensor
where it is a further result of its node ("split:1").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewriter.errors import SourceError
from rewriter.frontend.callee import Argument, Callee, import_tensorflow, static_shape
from rewriter.frontend.control_flow import CONTROL_FLOW, in_traced_graph
from rewriter.frontend.graph_def_file import parse
from rewriter.frontend.graph_def_ports import as_names, choose_inputs, choose_outputs, public_name
from rewriter.frontend.graph_def_tables import initialise_tables
from rewriter.frontend.noise import quiet
from rewriter.frontend.samples import one_line
from rewriter.rescuing import rescue_graph_def

#: Ops that hold a variable, whose value is no part of a GraphDef.
VARIABLES = frozenset({"Variable", "VariableV2", "AutoReloadVariable", "VarHandleOp"})
#: Attributes of nodes that mean nothing outside the graph they come from, or that fix shapes for good.
_FORGOTTEN = ("_class", "_output_shapes")
_SHOWN = 5
#: What is told of inputs and outputs given with another kind of source.
NO_GRAPH_DEF = (
    "inputs (--graph-inputs) and outputs (--graph-outputs) name tensors of a frozen GraphDef, and the source is none"
)


def load(path: Path, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> Callee:
    """A .pb or .pbtxt file; see `from_graph_def`.

    Raises:
        SourceError: it is damaged, or no GraphDef; and what `from_graph_def` raises.
    """
    import_tensorflow()
    return from_graph_def(parse(path), inputs, outputs, f"GraphDef file {path}")


def from_graph_def(
    graph_def: Any, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None, origin: str = "GraphDef"
) -> Callee:
    """A frozen GraphDef as a callee; the object given is not changed.

    Rules: 1. `outputs` as given, else the results that nobody reads (see `choose_outputs`). 2. `inputs` as given, in
    this order (any tensor can be one: what computes it is left out), else the placeholders that the outputs need;
    placeholders with a default keep it unless they are named. 3. What the outputs do not need is dropped, devices and
    colocation with it. 4. Lookup tables are filled by their own initialisers. 5. Engine nodes that the old TF-TRT wrote
    become their native segments again; a note tells what was recorded in them.

    Args:
        graph_def: a tf.compat.v1.GraphDef.
        inputs: tensor or node names; None to infer them.
        outputs: the same.
        origin: one line for people.

    Raises:
        SourceError: a name is not there (the message lists candidates), the graph has variables (is not frozen), an
            op that is not registered, a placeholder that is not among the inputs, or an engine of the old TF-TRT
            without its native segment.
        InvalidParameterError: a name is given twice, or is none.
    """
    tf = import_tensorflow()
    if not graph_def.node:
        raise SourceError(f"{origin} is empty: it has no nodes")
    graph_def, rescued = rescue_graph_def(graph_def, origin)
    nodes = {node.name: node for node in graph_def.node}
    inputs, outputs = as_names(inputs, "inputs"), as_names(outputs, "outputs")
    fetches = choose_outputs(graph_def, inputs, outputs, origin)
    feeds, kept = choose_inputs(nodes, inputs, fetches, origin)
    _check_ops([nodes[name] for name in kept], graph_def, origin)
    cut = _cut(graph_def, kept)
    arguments = _arguments(tf, graph_def, feeds, origin)
    initialise_tables(cut, graph_def, origin)
    notes = (*(rescued.notes if rescued.engines else ()), *_notes(inputs, outputs, feeds, fetches))
    return _callee(cut, arguments, tuple(feeds), tuple(fetches), origin, notes)


def _callee(
    cut: Any, arguments: tuple[Argument, ...], feeds: tuple[str, ...], fetches: tuple[str, ...], origin: str, notes: Any
) -> Callee:
    """The callee of a cut graph, for inputs of these shapes.

    The graph is imported once, by `wrap_function`. Other shapes need another import, so that TensorFlow infers them
    anew.
    """
    tf = import_tensorflow()
    lowered = any(node.op in CONTROL_FLOW for node in cut.node)

    def body(*tensors: Any) -> list[Any]:
        fed = dict(zip(feeds, tensors, strict=True))
        found = tf.compat.v1.import_graph_def(cut, input_map=fed, return_elements=list(fetches), name="")
        # A function's results are called like the nodes that make them, which lose these names for it (a user may have
        # put them on a denylist): so the results are made by nodes of their own.
        return [tf.identity(tensor, f"graph_def_output_{i}") for i, tensor in enumerate(found)]

    specs = [tf.TensorSpec(a.shape, a.dtype, name=f"graph_def_input_{i}") for i, a in enumerate(arguments)]
    with quiet():
        try:
            function = tf.compat.v1.wrap_function(body, specs)
        except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
            raise SourceError(f"TensorFlow cannot import {origin}: {one_line(error)}") from error
    names = [public_name(fetch) for fetch in fetches]

    def call(tensors: Sequence[Any]) -> dict[str, Any]:
        inside = lowered and not tf.executing_eagerly()
        return dict(zip(names, in_traced_graph(lambda: body(*tensors)) if inside else function(*tensors), strict=True))

    def with_inputs(changed: Sequence[Argument]) -> Callee:
        return _callee(cut, tuple(changed), feeds, fetches, origin, notes)

    return Callee(call, arguments, origin, owner=function, notes=notes, with_inputs=with_inputs)


def _notes(given_in: Any, given_out: Any, feeds: Sequence[str], fetches: Sequence[str]) -> tuple[str, ...]:
    """What was inferred."""
    notes = []
    if given_in is None:
        notes.append(f"inputs were not named; taken: {', '.join(map(public_name, feeds)) or 'none'}")
    if given_out is None:
        notes.append(f"outputs were not named; taken: {', '.join(map(public_name, fetches))}")
    return tuple(notes)


def _check_ops(needed: Sequence[Any], graph_def: Any, origin: str) -> None:
    """Refuses variables and ops that this process does not know, in the graph and in its functions."""
    from tensorflow.python.framework import op_def_registry

    functions = {f.signature.name: f for f in graph_def.library.function}
    inner = [node for function in functions.values() for node in function.node_def]
    variables = [node.name for node in needed if node.op in VARIABLES]
    if variables:
        raise SourceError(
            f"{origin} is not frozen: it has {len(variables)} variables, whose values no GraphDef holds "
            f"({_listed(variables)}). Freeze it with tf.compat.v1.graph_util.convert_variables_to_constants("
            "session, graph_def, output_node_names), or pass the SavedModel or the Keras model it came from"
        )
    unknown: dict[str, str] = {}
    for node in [*needed, *inner]:
        if node.op not in functions and op_def_registry.get(node.op) is None:
            unknown.setdefault(node.op, node.name)
    if unknown:
        told = [f"{op} (node {name})" for op, name in sorted(unknown.items())]
        raise SourceError(
            f"{origin} uses ops of a library that is not loaded: {_listed(told)}. Import the package that brings them, "
            "or tf.load_op_library(path), first"
        )


def _cut(graph_def: Any, kept: Mapping[str, Any]) -> Any:
    """The nodes that are needed, in their order, free of devices and colocation.

    `kept` tells for each node the control inputs that stay.
    """
    cut = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
    for node in graph_def.node:
        if node.name not in kept:
            continue
        copy = cut.node.add()
        copy.CopyFrom(node)
        copy.device = ""
        for key in _FORGOTTEN:
            if key in copy.attr:
                del copy.attr[key]
        copy.input[:] = kept[node.name]
        if copy.op == "PlaceholderWithDefault":  # nobody feeds it
            copy.op = "Identity"
            copy.attr["T"].type = copy.attr["dtype"].type
            del copy.attr["dtype"]
            del copy.attr["shape"]
    return cut


def _arguments(tf: Any, graph_def: Any, feeds: Sequence[str], origin: str) -> tuple[Argument, ...]:
    """Dtypes and shapes of the inputs, as TensorFlow infers them; "_output_shapes" counts where it knows no more."""
    nodes = {node.name: node for node in graph_def.node}
    found = []
    inferred = _inferred(tf, graph_def, [f for f in feeds if nodes[f.split(":")[0]].op not in _SIMPLE], origin)
    for feed in feeds:
        name, _, index = feed.partition(":")
        node = nodes[name]
        if feed in inferred:
            dtype, shape = inferred[feed]
        else:
            dtype = tf.as_dtype(node.attr["dtype"].type)
            shape = static_shape(tf.TensorShape(node.attr["shape"].shape)) if "shape" in node.attr else None
            if shape == () and graph_def.versions.producer < _SCALARS_SINCE:
                shape = None
        recorded = node.attr["_output_shapes"].list.shape if "_output_shapes" in node.attr else ()
        if shape is None and int(index) < len(recorded):
            shape = static_shape(tf.TensorShape(recorded[int(index)]))
        found.append(Argument(public_name(feed), dtype, shape))
    return tuple(found)


#: Ops whose attributes tell dtype and shape of their only result.
_SIMPLE = frozenset({"Placeholder", "PlaceholderV2", "PlaceholderWithDefault"})
#: Producers older than this wrote the scalar shape for "unknown".
_SCALARS_SINCE = 24


def _inferred(tf: Any, graph_def: Any, feeds: Sequence[str], origin: str) -> dict[str, Any]:
    """(dtype, shape) of tensors inside the graph, from an import of what leads to them."""
    if not feeds:
        return {}
    with tf.Graph().as_default() as graph:
        part = tf.compat.v1.graph_util.extract_sub_graph(graph_def, [f.split(":")[0] for f in feeds])
        _check_ops(list(part.node), graph_def, origin)
        part = _cut(part, {node.name: list(node.input) for node in part.node})
        try:
            tf.compat.v1.import_graph_def(part, name="")
            tensors = {feed: graph.get_tensor_by_name(feed) for feed in feeds}
        except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
            raise SourceError(f"TensorFlow cannot import {origin}: {one_line(error)}") from error
        return {feed: (tensor.dtype, static_shape(tensor.shape)) for feed, tensor in tensors.items()}


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def is_graph_file(path: Path) -> bool:
    """True for the name of a GraphDef file, there or not; that of a SavedModel's own file is none."""
    return path.suffix.lower() in (".pb", ".pbtxt") and path.name != "saved_model.pb"


def is_graph(source: Any) -> bool:
    """True for a GraphDef and for a tf.Graph; imports nothing."""
    return type(source).__name__ == "GraphDef" or (
        type(source).__module__.startswith("tensorflow.") and hasattr(source, "as_graph_def")
    )


def from_object(source: Any, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> Callee:
    """A GraphDef or a tf.Graph; see `from_graph_def`."""
    graph_def = source.as_graph_def() if hasattr(source, "as_graph_def") else source
    return from_graph_def(graph_def, inputs, outputs)
