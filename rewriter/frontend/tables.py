"""The lookup tables of a graph: their contents, and nodes with names of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewriter.errors import ExportError
from rewriter.frontend.samples import one_line


def name_tables(function: Any, graph_def: Any) -> dict[bytes, tuple[Any, Any]]:
    """Exports the lookup tables that the graph reads: shared name -> (keys, values).

    Captured tables (resource placeholders, seen through the Identity nodes that inlining leaves) become HashTableV2
    nodes with a name of their own in `graph_def`, which is what the converter reads.
    """
    import tensorflow as tf
    from tensorflow.python.ops import lookup_ops
    from tf2onnx.tf_utils import HashTableInfo, get_hash_table_info, replace_placeholders_with_tables

    captured = {
        inner.name.split(":")[0]: outer for outer, inner in function.graph.captures if outer.dtype == tf.resource
    }
    nodes = {node.name: node for node in graph_def.node}
    handles: dict[bytes, tuple[Any, Any]] = {}
    placeholders: dict[str, Any] = {}
    for info in get_hash_table_info(graph_def):
        if info.shared_name is not None:
            handle = lookup_ops.hash_table_v2(info.key_dtype, info.val_dtype, shared_name=info.shared_name)
            handles[info.shared_name] = (handle, info)
    for node in graph_def.node:
        if node.op == "LookupTableFindV2":
            source = _through_identities(node.input[0], nodes)
            if source in captured:
                node.input[0] = source
                name = f"table_{source}".encode()
                info = HashTableInfo(name, node.attr["Tin"].type, node.attr["Tout"].type, source)
                handles[name] = (captured[source], info)
                placeholders[source] = info
    replace_placeholders_with_tables(graph_def, placeholders)
    return {name: _table(name, handle, info) for name, (handle, info) in handles.items()}


def _through_identities(name: str, nodes: Mapping[str, Any]) -> str:
    """The node behind a chain of Identity nodes."""
    while name in nodes and nodes[name].op == "Identity":
        name = nodes[name].input[0].split(":")[0]
    return name


def _table(name: bytes, handle: Any, info: Any) -> tuple[Any, Any]:
    """Keys and values of a lookup table."""
    import tensorflow as tf
    from tensorflow.python.ops import lookup_ops

    try:
        keys, values = lookup_ops.lookup_table_export_v2(handle, info.key_dtype, info.val_dtype)
    except tf.errors.OpError as error:
        raise ExportError(f"the lookup table {name.decode()} cannot be read: {one_line(error)}") from error
    return keys.numpy(), values.numpy()
