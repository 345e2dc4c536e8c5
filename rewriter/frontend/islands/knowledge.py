"""Dtypes and shapes of the tensors that cross a cut: TensorFlow's inference, and what samples show."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewriter.errors import ExportError
from rewriter.frontend.callee import import_tensorflow, static_shape
from rewriter.frontend.freeze import Frozen
from rewriter.frontend.islands.cutting import Cut, Known, Tensor
from rewriter.frontend.islands.graph import Graph, control_inputs, reached_functions
from rewriter.frontend.islands.loading import callable_functions, load_graph
from rewriter.frontend.large_weights import with_weights
from rewriter.frontend.samples import one_line, tensorflow_errors

_LOG = logging.getLogger(__name__)


class Inference:
    """Shapes of a graph's tensors as TensorFlow infers them; the graph is imported when first asked."""

    def __init__(self, graph_def: Any) -> None:
        self._graph_def = graph_def

    @functools.cached_property
    def _graph(self) -> Any:
        tf = import_tensorflow()
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(self._graph_def, name="")
        return graph

    def shape(self, source: Tensor) -> tuple[int | None, ...] | None:
        """The shape of ("node", port); None for an unknown rank."""
        return static_shape(self._graph.get_tensor_by_name(f"{source[0]}:{source[1]}").shape)

    def dtype(self, source: Tensor) -> int:
        """Its DataType number."""
        return int(self._graph.get_tensor_by_name(f"{source[0]}:{source[1]}").dtype.as_datatype_enum)

    def first_input(self, node: str) -> tuple[int | None, ...] | None:
        """The shape of the first input of a node."""
        return static_shape(self._graph.get_operation_by_name(node).inputs[0].shape)

    def has_ranks(self, node: str) -> bool:
        """Whether the ranks of all inputs of a node are known."""
        return all(tensor.shape.rank is not None for tensor in self._graph.get_operation_by_name(node).inputs)


def of_unknown_rank(graph: Graph, inference: Inference, parts: Cut, known: Known) -> list[str]:
    """Exported nodes that mean the last two dimensions and whose export swaps them all: no rank, no such export."""
    if all(known.shapes[source] is not None for source in parts.entries):
        return []
    nodes = (graph.nodes[name] for name in parts.exported if graph.nodes[name].op.startswith("BatchMatMul"))
    turned = (node.name for node in nodes if node.attr["adj_x"].b or node.attr["adj_y"].b)
    return [name for name in turned if not inference.has_ranks(name)]


def crossing(parts: Cut) -> tuple[Tensor, ...]:
    """Every tensor that enters or leaves an island, each once."""
    return tuple(dict.fromkeys(t for piece in parts.pieces for t in (*piece.inputs, *piece.outputs)))


def observe(
    graph: Graph,
    tensors: Sequence[Tensor],
    frozen: Frozen,
    feeds: Sequence[Sequence[np.ndarray]],
    origin: str,
    taken: int = 0,
) -> list[dict[Tensor, tuple[int, ...]] | None]:
    """Shapes of `tensors` for each feed (arrays in the order of `graph.inputs`); None where TensorFlow refuses it.

    What they are computed from is run in TensorFlow; where that holds more weights than a GraphDef can, nothing is
    observed. The first `taken` feeds are those that the whole model takes: a refusal of one is told.
    """
    tf = import_tensorflow()

    needed = _needed(graph, tensors)
    made = type(graph.graph_def)(versions=graph.graph_def.versions)
    for name in (n for n in graph.nodes if n in needed):
        node = made.node.add()
        node.CopyFrom(graph.nodes[name])
        data = [spelling for spelling in node.input if not spelling.startswith("^")]
        # A fed Placeholder is an argument later on, which nothing can wait for.
        kept = [f"^{c}" for c in control_inputs(node) if c in needed and c not in graph.inputs]
        node.input[:] = data + kept
    for name in reached_functions(made.node, graph.library):
        made.library.function.add().CopyFrom(graph.library[name])
    try:
        made = with_weights(made, frozen.weights, origin)
    except ExportError:
        return [None for _ in feeds]
    specs = [(name, tf.TensorSpec(None, graph.nodes[name].attr["dtype"].type)) for name in graph.inputs]
    loaded = load_graph(made, specs, [f"{node}:{port}" for node, port in tensors], frozen.tables, origin)
    with callable_functions(made):
        dtypes = [s.dtype for _, s in specs]
        levels = [logging.WARNING if index < taken else logging.DEBUG for index in range(len(feeds))]
        return [
            _shapes(loaded.function, dtypes, feed, tensors, level) for feed, level in zip(feeds, levels, strict=True)
        ]


def _shapes(
    function: Any, dtypes: Sequence[Any], feed: Sequence[np.ndarray], tensors: Sequence[Tensor], level: int
) -> dict[Tensor, tuple[int, ...]] | None:
    """One call; None where TensorFlow refuses the values, as it does texts that are no images; `level` is the log's."""
    tf = import_tensorflow()
    try:
        with tf.device("/CPU:0"):
            arguments = [tf.constant(value, dtype=dtype) for value, dtype in zip(feed, dtypes, strict=True)]
            results = function(*arguments)
    except tensorflow_errors() as error:
        _LOG.log(level, "a sample for the shapes between islands was refused: %s", one_line(error))
        return None
    return {t: tuple(results[f"output_{index}"].shape) for index, t in enumerate(tensors)}


def _needed(graph: Graph, tensors: Sequence[Tensor]) -> set[str]:
    found = set(graph.inputs)
    stack = [node for node, _ in tensors]
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack += [source for source, _ in graph.reads(name)]
    return found


def know(inference: Inference, tensors: Sequence[Tensor], seen: Sequence[Mapping[Tensor, Any]]) -> Known:
    """What is known of `tensors`: inferred shapes, and where not even the rank is, that of the samples.

    A fed Placeholder's own dtype and shape are among what inference knows.
    """
    shapes = {}
    for source in tensors:
        shape = inference.shape(source)
        ranks = {len(run[source]) for run in seen if source in run}
        if shape is None and len(ranks) == 1:
            shape = (None,) * ranks.pop()
        shapes[source] = shape
    return Known({t: inference.dtype(t) for t in tensors}, shapes)
