"""Operators that are exported rightly in some cases only: operator -> why a node of it stays, "" where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.frontend.islands.vocabulary import MOVES

if TYPE_CHECKING:
    from rewriter.frontend.islands.rules import Scope

_INT64 = 9
#: What makes indices of which none is repeated.
_DISTINCT = frozenset({"DynamicPartition", "Range", "Where"})


def crop(_scope: Scope, node: Any) -> str:
    """CropAndResize is exported as a bilinear one, whatever its method."""
    nearest = "method" in node.attr and node.attr["method"].s == b"nearest"
    return "its export interpolates where the nearest pixel is wanted" if nearest else ""


def patches(scope: Scope, node: Any) -> str:
    """ExtractImagePatches is exported with a fixed batch."""
    shape = scope.shape_of(node.name) if scope.shape_of else None
    return "" if shape is not None and shape[0] is not None else "its export needs a fixed batch size"


def soft_nms(scope: Scope, node: Any) -> str:
    """NonMaxSuppressionV5 is exported without the decay of the scores that its last input asks for."""
    sigma = constant(scope, node.input[5])
    return "" if sigma is not None and not sigma.any() else "ONNX's NonMaxSuppression does not lower scores"


def stitch(scope: Scope, node: Any) -> str:
    """DynamicStitch is exported as a permutation; TensorFlow keeps the last of those that have one index."""
    sources = [_origin(scope, name) for name in node.input[: node.attr["N"].i]]
    known = [constant(scope, source.name) for source in sources if source is not None and source.op == "Const"]
    values = np.concatenate([value.reshape(-1) for value in known if value is not None] or [np.zeros(0)])
    distinct = all(source is not None and (source.op == "Const" or source.op in _DISTINCT) for source in sources)
    return "" if distinct and len(set(values.tolist())) == values.size else "its indices may be repeated"


def sparse_to_dense(_scope: Scope, node: Any) -> str:
    """SparseToDense is exported for int64 indices only."""
    return "" if node.attr["Tindices"].type == _INT64 else "its export takes int64 indices only"


def cross_entropy(scope: Scope, node: Any) -> str:
    """The losses are exported, their gradients are not."""
    read = (name for reader in scope.readers.get(node.name, ()) for name in reader.input)
    gradient = any(name == f"{node.name}:1" or name.startswith(f"{node.name}:backprop") for name in read)
    return "its gradient has no equal in ONNX" if gradient else ""


#: Operator -> its check.
CASES: Mapping[str, Callable[[Any, Any], str]] = {
    "CropAndResize": crop,
    "DynamicStitch": stitch,
    "ExtractImagePatches": patches,
    "NonMaxSuppressionV5": soft_nms,
    "ParallelDynamicStitch": stitch,
    "SoftmaxCrossEntropyWithLogits": cross_entropy,
    "SparseSoftmaxCrossEntropyWithLogits": cross_entropy,
    "SparseToDense": sparse_to_dense,
}


def constant(scope: Scope, name: str) -> np.ndarray | None:
    """The value of an input that is a constant, else None."""
    import tensorflow as tf

    source = scope.producer(name)
    if source is None or source.op != "Const":
        return None
    value: np.ndarray = tf.make_ndarray(source.attr["value"].tensor)
    return value


def _origin(scope: Scope, name: str) -> Any:
    """The node behind those that only move elements, as far as their first inputs lead to it."""
    return next((node for node in _behind(scope, name) if node is None or node.op not in MOVES - _DISTINCT), None)


def _behind(scope: Scope, name: str) -> Iterator[Any]:
    for _ in range(len(scope.nodes)):
        node = scope.producer(name)
        yield node
        if node is None or not node.input:
            return
        name = node.input[0]
