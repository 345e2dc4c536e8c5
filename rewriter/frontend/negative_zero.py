"""Keras's test for a negative zero, in words that ONNX has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewriter.frontend.callee import import_tensorflow

_SIGN_BIT = -(1 << 31)


def rewrite_negative_zero(graph_def: Any) -> None:
    """Replaces the sign bit of zeros, which `keras.ops.argmax` of floats looks at, by the sign of 1 / x.

    `equal(x, 0) & ((bitcast(x) & sign bit) < 0)` becomes `equal(x, 0) & (1 / x < 0)`, in place: for zeros 1 / x is
    an infinity of the same sign, and for anything else, NaN included, the first half is False. ONNX has no word for the
    bitcast. Tests of a sign bit that stand alone are left as they are: they tell -NaN from NaN.

    Args:
        graph_def: a frozen GraphDef, changed in place.
    """
    nodes = {node.name: node for node in graph_def.node}
    readers: dict[str, list[Any]] = {}
    for node in graph_def.node:
        for name in node.input:
            readers.setdefault(_plain(name), []).append(node)
    for less in [node for node in graph_def.node if node.op == "Less"]:
        source = _tested(less, nodes)
        if source is not None and all(_asks_for_zero(r, less, source, nodes) for r in readers.get(less.name, [])):
            _use_reciprocal(graph_def, less, source)


def _tested(less: Any, nodes: Mapping[str, Any]) -> str | None:
    """The float32 value whose sign bit a Less asks for; None where it asks for something else."""
    masked = nodes.get(_plain(less.input[0]))
    if masked is None or masked.op != "BitwiseAnd" or _constant(less.input[1], nodes) != 0:
        return None
    cast = nodes.get(_plain(masked.input[0]))
    if cast is None or cast.op != "Bitcast" or _constant(masked.input[1], nodes) != _SIGN_BIT:
        return None
    tf = import_tensorflow()
    kinds = cast.attr["T"].type, cast.attr["type"].type
    return str(cast.input[0]) if kinds == (tf.float32.as_datatype_enum, tf.int32.as_datatype_enum) else None


def _asks_for_zero(reader: Any, less: Any, source: str, nodes: Mapping[str, Any]) -> bool:
    """True for a LogicalAnd of this Less and of `source == 0`."""
    if reader.op != "LogicalAnd":
        return False
    others = [name for name in reader.input if _plain(name) != less.name]
    equal = nodes.get(_plain(others[0])) if len(others) == 1 else None
    if equal is None or equal.op != "Equal" or _port(source) not in map(_port, equal.input):
        return False
    return any(_constant(name, nodes) == 0 for name in equal.input)


def _use_reciprocal(graph_def: Any, less: Any, source: str) -> None:
    tf = import_tensorflow()
    kind = tf.float32.as_datatype_enum
    inverse = graph_def.node.add(name=f"{less.name}/reciprocal", op="Reciprocal", input=[source], device=less.device)
    inverse.attr["T"].type = kind
    zero = graph_def.node.add(name=f"{less.name}/zero", op="Const", device=less.device)
    zero.attr["dtype"].type = kind
    zero.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(0.0, tf.float32))
    control = [name for name in less.input if name.startswith("^")]
    del less.input[:]
    less.input.extend([inverse.name, zero.name, *control])
    less.attr["T"].type = kind


def _constant(name: str, nodes: Mapping[str, Any]) -> Any:
    """The number that a Const holds; None for anything else."""
    node = nodes.get(_plain(name))
    if node is None or node.op != "Const":
        return None
    value = import_tensorflow().make_ndarray(node.attr["value"].tensor)
    return value.item() if value.size == 1 else None


def _plain(name: str) -> str:
    """The node of a tensor name."""
    return name.lstrip("^").split(":")[0]


def _port(name: str) -> str:
    """A tensor name without the ":0" that may be left out."""
    return name.removesuffix(":0")
