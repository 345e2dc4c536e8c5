"""Translations of TensorFlow ops that add up, or otherwise join, what goes to the same place."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from rewriter.frontend.maker import Maker

_I64, _BOOL = TensorProto.INT64, TensorProto.BOOL
_REDUCTIONS = {"Sum": "add", "Mean": "add", "SqrtN": "add", "Prod": "mul", "Max": "max", "Min": "min"}
#: TensorFlow ops that this file has handlers for.
SEGMENTS = tuple(
    [f"Segment{kind}" for kind in ("Sum", "Mean", "Prod", "Max", "Min")]
    + [f"UnsortedSegment{kind}" for kind in ("Sum", "Prod", "Max", "Min")]
    + [f"SparseSegment{kind}{tail}" for kind in ("Sum", "Mean", "SqrtN") for tail in ("", "WithNumSegments")]
)


def scatter_nd(graph: Any, node: Any, *_: Any) -> None:
    """`tf.scatter_nd` adds updates of the same place; tf2onnx writes a ScatterND that keeps one of them.

    Constant indices without a repetition, and values that cannot be added, need no addition, which TensorRT does not
    take.
    """
    make = Maker(graph, node)
    indices, updates, shape = node.input
    kind = graph.get_dtype(updates)
    indices = make("Cast", indices, kind=_I64, to=_I64)
    zero = np.zeros(1, _numpy(kind))
    zeros = make("Expand", make.tensor(zero), make("Cast", shape, kind=_I64, to=_I64), kind=kind)
    distinct = kind in (_BOOL, TensorProto.STRING) or _distinct(node.inputs[0])
    make.finish("ScatterND", [zeros, indices, updates], reduction="none" if distinct else "add")


def segments(graph: Any, node: Any, *_: Any) -> None:
    """The results of each segment, gathered by one ScatterND with a reduction.

    data of [A..., B...], ids of [A...], result of [N, B...]:

    1. The sparse ones take their rows of data first.
    2. N is given, or one more than the largest id.
    3. Rows start with what the reduction leaves alone. Negative ids, which TensorFlow drops, go to row N, which is cut
       off.
    4. A mean divides by the number of rows (SqrtN: by its root), an empty segment by 1.
    5. An empty segment between others is 0, of Prod 1; of UnsortedSegmentMax and -Min it is the lowest and the highest
       finite number.
    """
    make = Maker(graph, node)
    op, inputs, kind = node.type, list(node.input), make.dtype
    given = inputs.pop() if op.startswith("Unsorted") or op.endswith("WithNumSegments") else None
    ids = make("Cast", inputs[-1], kind=_I64, to=_I64)
    data = make("Gather", *inputs[:2], axis=0) if op.startswith("Sparse") else inputs[0]
    join = op.removesuffix("WithNumSegments").rpartition("Segment")[2]
    count = _scalar(make, given) if given else _largest(make, ids)
    places = make("Unsqueeze", _dropped(make, ids, count), make.tensor(np.array([-1], np.int64)), kind=_I64)
    rows = make("Add", count, make.tensor(np.ones(1, np.int64)), kind=_I64)
    sizes = [make("Shape", name, kind=_I64) for name in (ids, data)]
    rank = make("Shape", sizes[0], kind=_I64)
    inner = make("Slice", sizes[1], rank, make.tensor(np.array([np.iinfo(np.int64).max])), kind=_I64)
    shape = make("Concat", rows, inner, kind=_I64, axis=0)
    start = make("Expand", make.tensor(_neutral(join, kind)), shape)
    sums = make("ScatterND", start, places, data, reduction=_REDUCTIONS[join])
    if join in ("Sum", "Prod") or op.startswith("Unsorted"):
        _finish_rows(make, sums, count)
        return
    numbers = _numbers(make, ids, places, rows, inner)
    if join in ("Max", "Min"):
        empty = make("Equal", numbers, make.tensor(np.zeros(1, np.int64)), kind=_BOOL)
        result = make("Where", empty, make.const(0), sums)
    else:
        least = make("Max", numbers, make.tensor(np.ones(1, np.int64)), kind=_I64)
        divisor = make("Cast", least, to=kind)
        result = make("Div", sums, make("Sqrt", divisor) if join == "SqrtN" else divisor)
    _finish_rows(make, result, count)


def _scalar(make: Maker, name: str) -> str:
    """A number as [1], INT64."""
    wide = make("Cast", name, kind=_I64, to=_I64)
    return make("Reshape", wide, make.tensor(np.ones(1, np.int64)), kind=_I64)


def _largest(make: Maker, ids: str) -> str:
    """One more than the largest id, [1]; 0 where there is none."""
    some = make("Concat", ids, make.tensor(np.array([-1], np.int64)), kind=_I64, axis=0)
    largest = make("ReduceMax", some, make.tensor(np.zeros(1, np.int64)), kind=_I64, keepdims=1)
    return make("Add", largest, make.tensor(np.ones(1, np.int64)), kind=_I64)


def _dropped(make: Maker, ids: str, count: str) -> str:
    """The ids, negative ones replaced by the row that is cut off."""
    negative = make("Less", ids, make.tensor(np.zeros((), np.int64)), kind=_BOOL)
    return make("Where", negative, make("Squeeze", count, kind=_I64), ids, kind=_I64)


def _numbers(make: Maker, ids: str, places: str, rows: str, inner: str) -> str:
    """How many rows of data each segment has, in a shape that broadcasts over it."""
    one = make.tensor(np.ones(1, np.int64))
    ones = make("Expand", one, make("Shape", ids, kind=_I64), kind=_I64)
    start = make("Expand", make.tensor(np.zeros(1, np.int64)), rows, kind=_I64)
    numbers = make("ScatterND", start, places, ones, kind=_I64, reduction="add")
    flat = make("Expand", one, make("Shape", inner, kind=_I64), kind=_I64)
    return make("Reshape", numbers, make("Concat", rows, flat, kind=_I64, axis=0), kind=_I64)


def _finish_rows(make: Maker, result: str, count: str) -> None:
    """Cuts off the last row."""
    zero = make.tensor(np.zeros(1, np.int64))
    make.finish("Slice", [result, zero, count, zero])


def _neutral(join: str, kind: int) -> np.ndarray:
    """What a reduction leaves alone, [1]."""
    number = np.dtype(_numpy(kind))
    limits = np.finfo(number) if number.kind == "f" else np.iinfo(number) if number.kind in "iu" else None
    if join in ("Max", "Min"):
        if limits is None:
            raise ValueError(f"segments of {number} have no lowest and highest number")
        return np.array([limits.min if join == "Max" else limits.max], number)
    return np.array([1 if join == "Prod" else 0], number)


def _numpy(kind: int) -> Any:
    from tf2onnx import utils

    return utils.map_onnx_to_numpy_type(kind)


def _distinct(source: Any) -> bool:
    """True for constant indices, [..., K], without a repetition."""
    if not source.is_const():
        return False
    rows = source.get_tensor_value(as_list=False)
    rows = rows.reshape(-1, rows.shape[-1])
    return len(np.unique(rows, axis=0)) == len(rows)
