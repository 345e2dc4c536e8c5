"""What a reader of a bisection must know of the place that was found."""

from __future__ import annotations

from onnx import TensorProto

from passes.graph.value_types import value_types
from passes.graph.walk import has_bodies
from rewriter.comparing.bisection.subject import Subject
from rewriter.comparing.bisection.walk import Place

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_SHOWN = 5


def place_notes(subject: Subject, place: Place, *, accumulated: bool, engines: bool = True) -> tuple[str, ...]:
    """Bodies, results that could not be compared, whole numbers, and nodes that no engine computes.

    Args:
        subject: what is bisected.
        place: what was found, in its index.
        accumulated: the node's own difference is within the tolerance.
        engines: the result was computed by engines, or emulates them.
    """
    index = subject.index
    node, name = index.nodes[place.node], index.names[place.node]
    notes = []
    if engines and name in subject.holders:
        inner = ", ".join(subject.holders[name])
        notes.append(f"{inner} lie(s) in a body of {name!r} ({node.op_type}), and bodies cannot be looked into")
    elif has_bodies(node):
        notes.append(f"{name!r} is a whole {node.op_type}: its bodies cannot be looked into")
    elif engines and name not in subject.homes:
        notes.append(f"{name!r} is in no engine: it magnifies what the engines before it bring")
    others = [index.names[number] for number in place.between if number != place.node]
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        notes.append(f"it may also be one of {', '.join(map(repr, others[:_SHOWN]))}{more}: no values to compare there")
    types = value_types(subject.native)
    if accumulated and place.value in types and types[place.value].dtype not in _FLOATS:
        notes.append(f"{place.value!r} holds no floating-point numbers: a small difference before it decides otherwise")
    return tuple(notes)
