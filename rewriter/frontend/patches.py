"""Corrections to tf2onnx 1.17, in force only while a model is exported.

Each one names the fault. They replace attributes of tf2onnx's classes for the time of a `with` block, under the lock
of `noise`, and are left out for other versions of tf2onnx, whose exports are then checked by verification alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

_LOG = logging.getLogger(__name__)
#: The release line that the patches were written against.
PATCHED = "1.17."


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """Applies all patches for the time of the block.

    1. `TransposeOptimizer._add_handler` calls max(()) for a scalar addend after a Conv (hard-swish) and raises, so
       every transpose of such a model stays.
    2. `GraphOptimizerBase.optimize` writes all attributes, weights included, into the node protos after each of about
       50 optimizer runs, though `make_graph` writes them again at the end.
    3. Made-up names count on from export to export; starting anew makes equal models equal.
    4. `tflist_to_onnx` gives the branches of an If the shapes of all its inputs, the condition first, so every shape is
       one place off: the branch is read without shapes (which leaves a Conv half converted) or with wrong ones.
    5. `infer_shape_for_op` takes an input of unknown rank for a scalar, and handlers write what is right for scalars.
    """
    import tf2onnx
    from tf2onnx import shape_inference, tf_loader, utils
    from tf2onnx.optimizer.optimizer_base import GraphOptimizerBase
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    if not tf2onnx.__version__.startswith(PATCHED):
        _LOG.warning("tf2onnx %s is not %sx: its known faults are not patched", tf2onnx.__version__, PATCHED)
        yield
        return
    with (
        replaced(TransposeOptimizer, "_add_handler", _add_handler(TransposeOptimizer._add_handler)),
        replaced(GraphOptimizerBase, "optimize", _optimize),
        replaced(utils, "INTERNAL_NAME", 1),
        replaced(tf_loader, "tflist_to_onnx", _branch_shapes(tf_loader.tflist_to_onnx)),
        replaced(shape_inference, "infer_shape_for_op", _unknown_rank(shape_inference.infer_shape_for_op)),
    ):
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value for an attribute, for the time of the block."""
    original = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _add_handler(original: Callable[..., Any]) -> Callable[..., Any]:
    """Adds of a constant that is no bias vector go the general way."""

    def handler(self: Any, trans: Any, node: Any) -> Any:
        addend = node.inputs[1]
        if addend.is_const() and addend.get_tensor_value(as_list=False).ndim == 0:
            return self._handle_node_having_branches(trans, node)
        return original(self, trans, node)

    return handler


def _optimize(self: Any, graph: Any, iteration: int) -> Any:
    """One optimizer, without the write-back of every attribute."""
    self.opt_iteration = iteration
    graph = self._optimize(graph)
    graph.delete_unused_nodes(graph.outputs)
    return graph


def _branch_shapes(original: Callable[..., Any]) -> Callable[..., Any]:
    """The shapes of an If's branches without that of its condition."""

    def tflist_to_onnx(graph: Any, *args: Any, **kwargs: Any) -> Any:
        *rest, functions = original(graph, *args, **kwargs)
        for operation in graph.get_operations():
            if operation.type in ("If", "StatelessIf"):
                shapes = [tensor.get_shape() for tensor in operation.inputs[1:]]
                for branch in ("then_branch", "else_branch"):
                    functions[operation.get_attr(branch).name] = shapes
        return *rest, functions

    return tflist_to_onnx


def _unknown_rank(original: Callable[..., bool]) -> Callable[..., bool]:
    """Inputs without a known rank stay so."""

    def infer_shape_for_op(operation: Any) -> bool:
        if operation.type == "Placeholder" and operation.get_attr("shape").unknown_rank:
            return False
        return original(operation)

    return infer_shape_for_op
