"""The lookup tables of a graph: their contents, and nodes with names of their own."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from rewriter.errors import ExportError
from rewriter.frontend.no_text import mark_tables
from rewriter.frontend.samples import one_line
from rewriter.frontend.table_rows import check_tables, dense_entries, number_rows

#: Operators on tables -> the attributes that say from what to what the table leads.
_DTYPES = {
    "LookupTableFindV2": ("Tin", "Tout"),
    "LookupTableInsertV2": ("Tin", "Tout"),
    "LookupTableImportV2": ("Tin", "Tout"),
    "LookupTableExportV2": ("Tkeys", "Tvalues"),
}
#: Operators whose first input is none of the arguments of their functions.
_SELECTING = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})


def name_tables(function: Any, graph_def: Any) -> dict[bytes, tuple[Any, Any]]:
    """Exports the lookup tables that the graph reads: shared name -> (keys, values).

    Captured tables (resource placeholders, seen through the Identity nodes that inlining leaves and through the
    arguments of loops and branches) become HashTableV2 nodes with a name of their own in `graph_def`, which is what the
    converter reads. Where the values of a table are vectors, it becomes one of row numbers (`table_rows`).

    Raises:
        ExportError: a table cannot be read, or not be rebuilt.
    """
    import tensorflow as tf
    from tensorflow.python.ops import lookup_ops
    from tf2onnx.tf_utils import HashTableInfo, get_hash_table_info, replace_placeholders_with_tables

    check_tables(graph_def)
    captured = {
        inner.name.split(":")[0]: outer for outer, inner in function.graph.captures if outer.dtype == tf.resource
    }
    handles: dict[bytes, tuple[Any, Any]] = {}
    for info in get_hash_table_info(graph_def):
        if info.shared_name is not None:
            handle = lookup_ops.hash_table_v2(info.key_dtype, info.val_dtype, shared_name=info.shared_name)
            handles[info.shared_name] = (handle, info)
    tables = {name: _table(name, handle, info) for name, (handle, info) in handles.items()}
    placeholders: dict[str, Any] = {}
    for source, (readers, key, value) in _read(graph_def, captured).items():
        info = HashTableInfo(f"table_{source}".encode(), key, value, source)
        contents = _table(info.shared_name, captured[source], info)
        tables[info.shared_name] = numbered = number_rows(graph_def, readers, contents)
        is_numbered = numbered is not contents
        kind = tf.int64.as_datatype_enum if is_numbered else value
        placeholders[source] = HashTableInfo(info.shared_name, key, kind, source)
    replace_placeholders_with_tables(graph_def, placeholders)
    mark_tables(graph_def, tables)
    return tables


def _read(graph_def: Any, captured: Container[str]) -> dict[str, tuple[list[Any], int, int]]:
    """Captured table -> the nodes that read it, and DataType numbers of its keys and values; lookups read it directly.

    Tables of which nobody tells the types are left out.
    """
    nodes = {node.name: node for node in graph_def.node}
    library = {item.signature.name: item for item in graph_def.library.function}
    readers: dict[str, list[Any]] = {}
    types: dict[str, tuple[int, int]] = {}
    for node in graph_def.node:
        for index, name in enumerate(node.input):
            source = _through_identities(name, nodes)
            if source not in captured or node.op == "Identity":
                continue
            if node.op.startswith("LookupTable"):
                node.input[index] = source
            readers.setdefault(source, []).append(node)
            for pair in _pairs(node, index, library):
                types[source] = pair
    return {source: (readers[source], *pair) for source, pair in types.items()}


def _pairs(node: Any, index: int, library: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """DataType numbers of keys and values of the table that a node reads as input `index`, where it tells."""
    if node.op in _DTYPES and index == 0:
        key, value = _DTYPES[node.op]
        yield node.attr[key].type, node.attr[value].type
    argument = index - 1 if node.op in _SELECTING else index
    names = [node.op, *(value.func.name for value in node.attr.values() if value.HasField("func"))]
    names += [item.name for value in node.attr.values() for item in value.list.func]
    for name in names:
        if name in library and 0 <= argument < len(library[name].signature.input_arg):
            yield from _pairs_inside(library[name], library[name].signature.input_arg[argument].name, library)


def _pairs_inside(function: Any, argument: str, library: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """The same within a function, of the table that it gets as `argument`."""
    nodes = {node.name: node for node in function.node_def}
    for node in function.node_def:
        for index, name in enumerate(node.input):
            if _through_identities(name, nodes) == argument:
                yield from _pairs(node, index, library)


def _through_identities(name: str, nodes: Mapping[str, Any]) -> str:
    """The node (or argument of a function) behind a chain of Identity nodes."""
    name = name.partition(":")[0]
    while name in nodes and nodes[name].op == "Identity":
        name = nodes[name].input[0].partition(":")[0]
    return name


def _table(name: bytes, handle: Any, info: Any) -> tuple[Any, Any]:
    """Keys and values of a lookup table, by ascending keys: TensorFlow tells them in another order each time."""
    import numpy as np
    import tensorflow as tf
    from tensorflow.python.ops import lookup_ops

    try:
        keys, values = lookup_ops.lookup_table_export_v2(handle, info.key_dtype, info.val_dtype)
    except tf.errors.OpError as error:
        raise ExportError(f"the lookup table {name.decode()} cannot be read: {one_line(error)}") from error
    found, given = keys.numpy(), values.numpy()
    if found.ndim != 1:
        found, given = dense_entries(handle, found, given)
    if found.ndim != 1:
        return found, given  # keys that are vectors, which are refused later on
    order = np.argsort(found, kind="stable")
    return found[order], given[order]
