"""A GraphDef as a function that TensorFlow can call and save, with its lookup tables filled."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rewriter.errors import ExportError
from rewriter.frontend.callee import import_tensorflow
from rewriter.frontend.control_flow import CONTROL_FLOW, in_traced_graph
from rewriter.frontend.islands.graph import TABLES, data_inputs, functions_of, reached_functions
from rewriter.frontend.samples import one_line
from rewriter.frontend.structure import unique

#: Everything that stays in TensorFlow runs on the host: the accelerator belongs to the engines.
DEVICE = "/device:CPU:0"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A GraphDef as a ConcreteFunction.

    Attributes:
        module: owns the tables; to be saved with the function as its signature.
        function: takes its inputs in order and returns {"output_0": ...}.
    """

    module: Any
    function: Any


def load_graph(
    graph_def: Any,
    inputs: Sequence[tuple[str, Any]],
    outputs: Sequence[str],
    tables: Mapping[bytes, tuple[np.ndarray, np.ndarray]],
    origin: str,
) -> Loaded:
    """Makes a function of a GraphDef.

    Args:
        graph_def: changed: functions get names of their own, devices and table nodes are replaced.
        inputs: names of its Placeholders, each with the TensorSpec of the argument.
        outputs: tensor names ("node:0").
        tables: shared name of a table -> keys and values.
        origin: one line for messages.

    Raises:
        ExportError: a table whose contents are not known, or that TensorFlow cannot rebuild.
    """
    tf = import_tensorflow()
    module = tf.Module(name="island")
    module.tables = []
    handles = {}
    for node in graph_def.node:
        if node.op in TABLES:
            table = _table(node, tables, origin)
            module.tables.append(table)
            handles[f"{node.name}:0"] = table
    _to_host(graph_def)
    _rename_functions(graph_def)
    _drop(graph_def, {name for name, _ in inputs} | {name.partition(":")[0] for name in handles})

    read = {source for node in graph_def.node for source in data_inputs(node)}
    lowered = any(node.op in CONTROL_FLOW for node in graph_def.node)

    def island(*arguments: Any) -> dict[str, Any]:
        fed = {f"{name}:0": value for (name, _), value in zip(inputs, arguments, strict=True)}
        # A handle of this process is no tensor of the graph before something in it reads it.
        given = fed | {name: tf.identity(table.resource_handle) for name, table in handles.items()}
        given = {name: value for name, value in given.items() if (name.partition(":")[0], 0) in read}
        computed = [name for name in outputs if name not in fed]

        def imported() -> Sequence[Any]:
            return tf.import_graph_def(graph_def, input_map=given, return_elements=computed, name="") or ()

        with tf.device(DEVICE):
            results = in_traced_graph(imported) if lowered else imported()
            found = fed | dict(zip(computed, results, strict=True))
            return {f"output_{index}": tf.identity(found[name]) for index, name in enumerate(outputs)}

    specs = [tf.TensorSpec(s.shape, s.dtype, name=f"input_{index}") for index, (_, s) in enumerate(inputs)]
    try:
        with tf.device(DEVICE):
            function = tf.function(island, autograph=False).get_concrete_function(*specs)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise ExportError(f"TensorFlow cannot import its part of {origin}: {one_line(error)}") from error
    return Loaded(module, function)


@contextlib.contextmanager
def callable_functions(graph_def: Any) -> Iterator[None]:
    """Lets a function that `load_graph` made of `graph_def` be called in this process for the time of the block.

    Importing a graph leaves its functions in the graph; called eagerly, TensorFlow looks for them in its context.
    """
    from tensorflow.python.eager import context

    eager = context.context()
    added = [f for f in graph_def.library.function if not eager.has_function(f.signature.name)]
    for function in added:
        eager.add_function_def(function)
    try:
        yield
    finally:
        for function in added:
            eager.remove_function(function.signature.name)


def _table(node: Any, tables: Mapping[bytes, tuple[np.ndarray, np.ndarray]], origin: str) -> Any:
    """A StaticHashTable with the contents of a table node; misses are told by each lookup, not by the table."""
    tf = import_tensorflow()
    contents = tables.get(node.attr["shared_name"].s)
    if contents is None:
        raise ExportError(f"the lookup table {node.name} of {origin} has no contents that can be read")
    key_dtype, value_dtype = (tf.as_dtype(node.attr[name].type) for name in ("key_dtype", "value_dtype"))
    default: Any = b"" if value_dtype == tf.string else np.zeros((), value_dtype.as_numpy_dtype)
    try:
        with tf.device(DEVICE):
            filling = tf.lookup.KeyValueTensorInitializer(*contents, key_dtype, value_dtype)
            # The counter in its name is against shared tables, which an anonymous one is not.
            filling._name = "table"
            return tf.lookup.StaticHashTable(filling, default, experimental_is_anonymous=True)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise ExportError(
            f"the lookup table {node.name} of {origin} ({key_dtype.name} to {value_dtype.name}) cannot be rebuilt: "
            f"{one_line(error)}"
        ) from error


def _drop(graph_def: Any, names: set[str]) -> None:
    """Takes out nodes whose outputs are given from outside; nothing waits for them any more."""
    kept = [node for node in graph_def.node if node.name not in names]
    for node in kept:
        node.input[:] = [name for name in node.input if not (name.startswith("^") and name[1:] in names)]
    library, versions = graph_def.library, graph_def.versions
    fresh = type(graph_def)(node=kept, library=library, versions=versions)
    graph_def.CopyFrom(fresh)


def _to_host(graph_def: Any) -> None:
    """Puts every node on the CPU; where a node came from is forgotten, for it names functions of this process."""
    for node in [*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)]:
        node.device = DEVICE
        node.ClearField("experimental_debug_info")
    for function in graph_def.library.function:
        forget_names(function)
        _number_arguments(function)


def _number_arguments(function: Any) -> None:
    """Calls the arguments of a FunctionDef "argument_0"...: TensorFlow puts counters into the names of unused ones."""
    taken = {node.name for node in function.node_def}
    names = {}
    for index, argument in enumerate(function.signature.input_arg):
        name = unique(f"argument_{index}", taken)
        names[argument.name], argument.name = name, name
    for node in function.node_def:
        node.input[:] = [names.get(name, name) for name in node.input]
    for key in list(function.ret):
        function.ret[key] = names.get(function.ret[key], function.ret[key])


def forget_names(function: Any) -> None:
    """Takes out what the arguments of a FunctionDef were called in Python; captured ones have numbers there."""
    for attributes in function.arg_attr.values():
        if "_user_specified_name" in attributes.attr:
            del attributes.attr["_user_specified_name"]


def _rename_functions(graph_def: Any) -> None:
    """Names after the contents: TensorFlow refuses a name that it knows already for another body.

    Names that this process counted up ("__inference_body_1234") become the same in every process.
    """
    library = {function.signature.name: function for function in graph_def.library.function}
    order = reached_functions(graph_def.node, library)
    digest = hashlib.sha256()
    for index, name in enumerate(order):
        plain = type(library[name])()
        plain.CopyFrom(library[name])
        rename_function(plain, {other: str(position) for position, other in enumerate(order)})
        digest.update(f"{index}".encode() + plain.SerializeToString(deterministic=True))
    names = {name: f"island_{digest.hexdigest()[:16]}_{index}" for index, name in enumerate(order)}
    for holder in graph_def.library.function:
        rename_function(holder, names)
    for node in graph_def.node:
        rename_calls(node, names)
    kept = [function for function in graph_def.library.function if function.signature.name in names.values()]
    library_def = type(graph_def.library)(function=kept)
    graph_def.library.CopyFrom(library_def)


def rename_function(function: Any, names: Mapping[str, str]) -> None:
    """Renames a FunctionDef and what it calls, in place; names that are not in `names` stay."""
    function.signature.name = names.get(function.signature.name, function.signature.name)
    for node in function.node_def:
        rename_calls(node, names)


def rename_calls(node: Any, names: Mapping[str, str]) -> None:
    """Renames the functions that a NodeDef calls, in place."""
    node.op = names.get(node.op, node.op)
    if not any(functions_of(node)):
        return
    for value in node.attr.values():
        if value.HasField("func"):
            value.func.name = names.get(value.func.name, value.func.name)
        for function in value.list.func:
            function.name = names.get(function.name, function.name)
