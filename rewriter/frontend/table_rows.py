"""Lookup tables whose values are vectors: a table of row numbers, and a constant with the rows.

TensorFlow has several kinds of tables with values of any shape, none of which can be made anew out of its contents in
a saved model; a table from keys to numbers can, and ONNX has one from strings to int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter.errors import ExportError
from rewriter.frontend.structure import unique

_FIND, _SIZE = "LookupTableFindV2", "LookupTableSizeV2"
_INT32, _INT64 = 3, 9
#: Nodes that are tables with values (or keys) of any shape.
_OF_TENSORS = frozenset(
    {"MutableHashTableOfTensors", "MutableHashTableOfTensorsV2", "MutableDenseHashTable", "MutableDenseHashTableV2"}
)
_ADVICE = "keep the rows in a tf.Variable and look up their numbers in a tf.lookup.StaticHashTable"


def check_tables(graph_def: Any) -> None:
    """Refuses tables of vectors that the graph itself makes: what they hold is not known to anybody.

    Raises:
        ExportError: there is one.
    """
    for node in graph_def.node:
        if node.op in _OF_TENSORS:
            raise ExportError(f"the lookup table {node.name} ({node.op}) has contents that cannot be read: {_ADVICE}")


def number_rows(
    graph_def: Any, readers: Sequence[Any], contents: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The contents of a table as they can be rebuilt; where the values are vectors, its lookups are rewritten.

    find(table, keys, default) becomes gather(rows and, behind them, the default; find(numbers, keys, count of rows)).

    Args:
        graph_def: changed in place.
        readers: the nodes of `graph_def` that read the table, as their first input where they are lookups.
        contents: its keys and values, in the same order.

    Returns:
        Keys and values, or keys and the int64 numbers of the rows.

    Raises:
        ExportError: the table is empty; the keys are vectors; or the values are, and something but a plain lookup
            reads the table.
    """
    keys, values = contents
    if keys.ndim != 1:
        raise ExportError(
            f"{_told(keys, values)} cannot be rebuilt, since its keys are vectors: join each one into a string, and "
            "use a tf.lookup.StaticHashTable from string to int64"
        )
    if not len(keys) and all(node.op in (_FIND, _SIZE) for node in readers):
        raise ExportError(f"{_told(keys, values)} is empty: fill it before the model is converted")
    if values.ndim == 1:
        return contents
    taken = {node.name for node in graph_def.node}
    rows = ""
    for node in readers:
        if node.op == _SIZE:
            continue
        if node.op != _FIND:
            raise ExportError(
                f"{_told(keys, values)} is used by {node.op} {node.name}, and only lookups outside of loops and "
                f"branches can be rebuilt for values that are vectors: look it up there, or {_ADVICE}"
            )
        rows = rows or _const(graph_def, unique(f"{node.name}/values", taken), values)
        _rewrite(graph_def, node, rows, len(keys), taken)
    return keys, np.arange(len(keys), dtype=np.int64)


def _rewrite(graph_def: Any, find: Any, rows: str, count: int, taken: set[str]) -> None:
    """Turns a lookup into the gathering of rows, under the same name."""
    name, kind = find.name, find.attr["Tout"].type
    table, keys, default, *waits = find.input
    axis = _const(graph_def, unique(f"{name}/axis", taken), np.int32(0))
    missing = _const(graph_def, unique(f"{name}/missing", taken), np.int64(count))
    row = graph_def.node.add(name=unique(f"{name}/row", taken), op=_FIND, input=[table, keys, missing, *waits])
    row.attr["Tin"].CopyFrom(find.attr["Tin"])
    row.attr["Tout"].type = _INT64
    last = graph_def.node.add(name=unique(f"{name}/default", taken), op="ExpandDims", input=[default, axis])
    _types(last, T=kind, Tdim=_INT32)
    joined = graph_def.node.add(name=unique(f"{name}/rows", taken), op="ConcatV2", input=[rows, last.name, axis])
    _types(joined, T=kind, Tidx=_INT32)
    joined.attr["N"].i = 2
    find.op = "GatherV2"
    find.input[:] = [joined.name, row.name, axis]
    find.attr.clear()
    _types(find, Tparams=kind, Tindices=_INT64, Taxis=_INT32)
    find.attr["batch_dims"].i = 0


def _types(node: Any, **types: int) -> None:
    for key, kind in types.items():
        node.attr[key].type = kind


def _const(graph_def: Any, name: str, value: Any) -> str:
    import tensorflow as tf

    node = graph_def.node.add(name=name, op="Const")
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    node.attr["dtype"].type = node.attr["value"].tensor.dtype
    return name


def _told(keys: np.ndarray, values: np.ndarray) -> str:
    """Such as: a lookup table with keys of shape [] and values of shape [16]."""
    return f"a lookup table with keys of shape {list(keys.shape[1:])} and values of shape {list(values.shape[1:])}"


def dense_entries(handle: Any, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The entries of a DenseHashTable, which exports its buckets instead, empty and deleted ones among them.

    Numbered steps: 1. a key that several buckets have is the mark of empty or of deleted ones. 2. Where that leaves
    more than the table says it has, each key is looked up: TensorFlow refuses the marks. 3. Scalar keys and values,
    which come as vectors of one, become scalars again; keys that are vectors are returned as they are.

    Args:
        handle: the table.
        keys: [buckets, 1]; other shapes are those of keys that are vectors.
        values: [buckets, ...].
    """
    import tensorflow as tf
    from tensorflow.python.ops import lookup_ops

    def accepts(key: np.ndarray, shape: tuple[int, ...]) -> bool:
        try:
            lookup_ops.lookup_table_find_v2(handle, key.reshape(1), tf.zeros(shape, values_dtype))
        except tf.errors.InvalidArgumentError:
            return False
        return True

    if keys.shape[1:] != (1,):
        return keys, values
    values_dtype = tf.as_dtype(values.dtype) if values.dtype != object else tf.string
    _, position, counts = np.unique(keys[:, 0], return_index=True, return_counts=True)
    kept = position[counts == 1]
    scalar = values.shape[1:] == (1,) and (not len(kept) or any(accepts(keys[i], ()) for i in kept[:3]))
    shape = () if scalar else values.shape[1:]
    if len(kept) > int(lookup_ops.lookup_table_size_v2(handle)):
        kept = np.array([i for i in kept if accepts(keys[i], shape)], dtype=np.int64)
    return keys[kept, 0], values[kept].reshape(len(kept), *shape)
