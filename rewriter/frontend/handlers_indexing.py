"""Translations of TensorFlow ops that choose and place elements: `tf.where`, `tf.one_hot`, reversing, splitting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from rewriter.frontend.handlers_stock import stock
from rewriter.frontend.maker import Maker

#: ONNX Runtime's Where does not take these; they go through a wider type, or one with the same bits.
_WIDENED: Mapping[int, int] = {
    TensorProto.INT16: TensorProto.INT32,
    TensorProto.UINT16: TensorProto.INT32,
    TensorProto.UINT64: TensorProto.INT64,
}
#: Indices of these types are compared as they are, others as INT32.
_INDICES = (TensorProto.INT32, TensorProto.INT64)


def select(graph: Any, node: Any, *_: Any) -> None:
    """`tf.where(condition, x, y)` is ONNX Where, for every type.

    tf2onnx writes condition * x + (not condition) * y, which is NaN where the value that was not chosen is infinite or
    NaN: just what `tf.where` is there to avoid.

    1. SelectV2 broadcasts its three inputs, as Where does.
    2. Select (`tf.compat.v1.where`) has x and y of one shape, and a condition of this shape, of none, or with one value
       for each row of x: that one gets the missing dimensions at the end.
    3. Booleans: (condition and x) or (not condition and y), since ONNX Runtime has no Where for them.
    """
    make = Maker(graph, node)
    condition, x, y = node.input
    if node.type == "Select":
        condition = _over_rows(make, graph, condition, x)
    _choose(make, graph.get_dtype(node.output[0]), condition, x, y)


def _choose(make: Maker, kind: int, condition: str, x: str, y: str) -> None:
    """Finishes with x where the condition holds, else y; `kind` is their type."""
    if kind == TensorProto.BOOL:
        chosen = make("And", condition, x, kind=kind)
        make.finish("Or", [chosen, make("And", make("Not", condition, kind=kind), y, kind=kind)])
        return
    wide = _WIDENED.get(kind)
    if wide is None:
        make.finish("Where", [condition, x, y])
        return
    casts = [make("Cast", value, kind=wide, to=wide) for value in (x, y)]
    make.finish("Cast", [make("Where", condition, *casts, kind=wide)], to=kind)


def _over_rows(make: Maker, graph: Any, condition: str, x: str) -> str:
    """A condition that broadcasts from the left, with ones at the end of its shape; worked out at run time if need be.

    [N] with x of [N, H, W] becomes [N, 1, 1].
    """
    own, rank = graph.get_rank(condition), graph.get_rank(x)
    if own == 0 or (own is not None and own == rank):
        return condition
    if own is not None and rank is not None:
        axes = make.tensor(np.arange(own, rank, dtype=np.int64))
        return make("Unsqueeze", condition, axes, kind=TensorProto.BOOL)
    sizes = [make("Shape", value, kind=TensorProto.INT64) for value in (condition, x)]
    ranks = [make("Shape", size, kind=TensorProto.INT64) for size in sizes]
    ones = make("Expand", make.tensor(np.ones(1, np.int64)), make("Sub", ranks[1], ranks[0], kind=TensorProto.INT64),
                kind=TensorProto.INT64)  # fmt: skip
    shape = make("Concat", sizes[0], ones, kind=TensorProto.INT64, axis=0)
    return make("Reshape", condition, shape, kind=TensorProto.BOOL)


def one_hot(graph: Any, node: Any, *_: Any) -> None:
    """`tf.one_hot` compares indices with 0, 1, ..., depth - 1, which stand along the new axis.

    ONNX's OneHot counts negative indices from the end; in TensorFlow they, like those beyond the depth, are "off"
    throughout (-1 is a usual label of padding). The comparison is right for indices of any rank, any depth, known or
    not, and any type of values.

    Raises:
        ValueError: the rank of the indices is not known and the new axis is not the last one.
    """
    make = Maker(graph, node)
    indices, depth, on, off = node.input
    axis, rank = node.get_attr_value("axis", -1), graph.get_rank(indices)
    if axis != -1 and rank is None:
        raise ValueError("one_hot along an axis other than the last needs indices of known rank")
    if make.dtype not in _INDICES:
        make.dtype = int(TensorProto.INT32)
        indices = make("Cast", indices, to=make.dtype)
    numbers = _numbers(make, node.inputs[1], depth)
    if axis != -1 and axis < rank:
        numbers = make("Unsqueeze", numbers, make.tensor(np.arange(1, rank - axis + 1, dtype=np.int64)))
    compared = [make("Unsqueeze", indices, make.tensor(np.array([axis], np.int64))), numbers]
    kind = graph.get_dtype(node.output[0])
    if not (_is_const(node.inputs[2], 1) and _is_const(node.inputs[3], 0)):
        _choose(make, kind, make("Equal", *compared, kind=TensorProto.BOOL), on, off)
    elif kind == TensorProto.BOOL:
        make.finish("Equal", compared)
    else:
        make.finish("Cast", [make("Equal", *compared, kind=TensorProto.BOOL)], to=kind)


def _numbers(make: Maker, source: Any, depth: str) -> str:
    """0 ... depth - 1, [depth], in the type of the indices."""
    kind = np.int64 if make.dtype == TensorProto.INT64 else np.int32
    if source.is_const():
        return make.tensor(np.arange(source.get_tensor_value(), dtype=kind))
    first, step = (make.tensor(np.asarray(value, kind)) for value in (0, 1))
    return make("Range", first, make("Cast", depth, to=make.dtype), step)


def _is_const(source: Any, value: int) -> bool:
    """True for a constant of this one value."""
    return bool(source.is_const() and source.get_tensor_value(as_list=False).item() == value)


def reverse(graph: Any, node: Any, *_: Any) -> None:
    """`tf.reverse` is one Slice with steps of -1, which is right for every type; tf2onnx goes through float32."""
    make = Maker(graph, node)
    axes = node.inputs[1]
    if not axes.is_const():
        raise ValueError("tf.reverse needs constant axes")
    axis = np.asarray(axes.get_tensor_value(), np.int64).reshape(-1)
    if not axis.size:
        make.finish("Identity", [node.input[0]])
        return
    starts, ends = np.full_like(axis, -1), np.full_like(axis, -np.iinfo(np.int64).max)
    make.finish("Slice", [node.input[0], *map(make.tensor, (starts, ends, axis, starts))])


def reverse_sequence(graph: Any, node: Any, *_: Any) -> None:
    """ReverseSequence of any two axes; ONNX has it for the first two, so others are moved there and back."""
    make = Maker(graph, node)
    x, lengths = node.input[0], make("Cast", node.input[1], kind=TensorProto.INT64, to=TensorProto.INT64)
    time, batch, rank = node.get_attr_int("seq_dim"), node.get_attr_value("batch_dim", 0), graph.get_rank(x)
    if {time, batch} == {0, 1}:
        make.finish("ReverseSequence", [x, lengths], time_axis=time, batch_axis=batch)
        return
    if rank is None:
        raise ValueError("reverse_sequence along other axes than the first two needs a known rank")
    order = [batch, time, *(axis for axis in range(rank) if axis not in (batch, time))]
    moved = make("Transpose", x, perm=order)
    result = make("ReverseSequence", moved, lengths, time_axis=1, batch_axis=0)
    make.finish("Transpose", [result], perm=np.argsort(order).tolist())


def split(graph: Any, node: Any, *_: Any) -> None:
    """`tf.split` by sizes of which one is -1, "the rest", a word that ONNX does not have; others as tf2onnx does it."""
    sizes, axis = node.inputs[1], node.inputs[2]
    values = np.asarray(sizes.get_tensor_value(), np.int64).reshape(-1) if sizes.is_const() else np.zeros(0, np.int64)
    if -1 not in values or not axis.is_const():
        stock("SplitV", graph, node)
        return
    make = Maker(graph, node)
    along = int(axis.get_tensor_value())
    length = make("Gather", make("Shape", node.input[0], kind=TensorProto.INT64), make.tensor(np.array([along])),
                  kind=TensorProto.INT64)  # fmt: skip
    known = np.where(values == -1, 0, values)
    rest = make("Sub", length, make.tensor(np.array([known.sum()])), kind=TensorProto.INT64)
    shares = make("Mul", rest, make.tensor((values == -1).astype(np.int64)), kind=TensorProto.INT64)
    make.finish("Split", [node.input[0], make("Add", shares, make.tensor(known), kind=TensorProto.INT64)], axis=along)
