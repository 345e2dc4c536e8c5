"""Corrections to tf2onnx 1.17, in force only while a model is exported.

Each one names the fault. They replace attributes of tf2onnx's classes for the time of a `with` block, under the lock
of `noise`, and are left out for other versions of tf2onnx, whose exports are then checked by verification alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from rewriter.frontend.islands.graph import functions_of, postorder

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
    6. `add_padding` writes auto_pad for "SAME" where sizes are unknown, which ONNX Runtime refuses with dilations; with
       strides of 1 the padding does not depend on the sizes.
    7. `extract_sub_graph_nodes`, which every optimizer ends with, hands out nodes in the order of their addresses: each
       run would meet them in another order, merge others and name them otherwise.
    8. `find_output_consumers` hands out nodes in the order of a set of names, which is another one in each process, and
       so does `resolve_functions` with functions that do not call each other.
    """
    import tf2onnx
    from tf2onnx import graph, shape_inference, tf_loader, tfonnx, utils
    from tf2onnx.onnx_opset import nn
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
        replaced(nn, "add_padding", _same_padding(nn.add_padding)),
        replaced(graph.Graph, "extract_sub_graph_nodes", _in_order(graph.Graph.extract_sub_graph_nodes)),
        replaced(graph.Graph, "find_output_consumers", _by_name(graph.Graph.find_output_consumers)),
        replaced(tfonnx, "resolve_functions", _callees_first(tfonnx.resolve_functions)),
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


def _same_padding(original: Callable[..., None]) -> Callable[..., None]:
    """Padding in numbers for "SAME" with strides of 1: the smaller half comes first."""

    def add_padding(
        graph: Any, node: Any, kernel: list[int], strides: list[int], dilations: Any = None, spatial: int = 2
    ) -> None:
        original(graph, node, kernel, strides, dilations, spatial)
        if node.get_attr("auto_pad") is None or any(stride != 1 for stride in strides) or min(kernel[:spatial]) < 1:
            return
        rates = dilations or [1] * spatial
        totals = [rate * (size - 1) for rate, size in zip(rates[:spatial], kernel[:spatial], strict=True)]
        del node.attr["auto_pad"]
        node.set_attr("pads", [total // 2 for total in totals] + [total - total // 2 for total in totals])

    return add_padding


def _in_order(original: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """The nodes in the order in which the graph has them."""

    def extract_sub_graph_nodes(self: Any, *args: Any, **kwargs: Any) -> list[Any]:
        places = {id(node): place for place, node in enumerate(self.get_nodes())}
        return sorted(original(self, *args, **kwargs), key=lambda node: places.get(id(node), len(places)))

    return extract_sub_graph_nodes


def _by_name(original: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """The nodes in the order of their names."""

    def find_output_consumers(self: Any, output_name: str) -> list[Any]:
        return sorted(original(self, output_name), key=lambda node: str(node.name))

    return find_output_consumers


def _callees_first(original: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    """Functions behind those that they call, and else by name."""

    def resolve_functions(tf_graph: Any) -> list[Any]:
        found = {function.name: function for function in original(tf_graph)}
        calls = {
            name: [other for node in function.as_graph_def().node for other in functions_of(node) if other in found]
            for name, function in found.items()
        }
        return [found[name] for name in postorder(sorted(found), calls.__getitem__, set())]

    return resolve_functions
