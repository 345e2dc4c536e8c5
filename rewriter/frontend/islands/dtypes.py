"""Which dtypes a NodeDef reads and writes: asked of its operator's definition, without importing the graph."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

#: A reference type (TF1 variables) is numbered so much above the plain one.
_REFERENCE = 100


def node_dtypes(node: Any, library: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """DataType numbers of the inputs and of the outputs of a NodeDef.

    Args:
        node: a NodeDef, of a graph or of a function body.
        library: function name -> FunctionDef, for nodes that call a function by its name.

    Returns:
        Reference types count as plain ones; ((), ()) for an operator that TensorFlow does not know.
    """
    definition = library[node.op].signature if node.op in library else _definition(node.op)
    if definition is None:
        return (), ()
    return _types(node, definition, definition.input_arg), _types(node, definition, definition.output_arg)


@functools.cache
def _definition(op: str) -> Any:
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(op)


def _types(node: Any, definition: Any, arguments: Any) -> tuple[int, ...]:
    found: list[int] = []
    for argument in arguments:
        if argument.type_list_attr:
            found += _attribute(node, definition, argument.type_list_attr).list.type
            continue
        kind = argument.type or _attribute(node, definition, argument.type_attr).type
        count = _attribute(node, definition, argument.number_attr).i if argument.number_attr else 1
        found += [kind] * count
    return tuple(kind - _REFERENCE if kind > _REFERENCE else kind for kind in found)


def _attribute(node: Any, definition: Any, name: str) -> Any:
    """An attribute of the node, else the operator's default: SavedModels leave defaults out."""
    if name in node.attr:
        return node.attr[name]
    return next(a.default_value for a in definition.attr if a.name == name)
