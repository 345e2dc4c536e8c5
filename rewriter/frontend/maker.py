"""Makes the ONNX nodes that replace one TensorFlow node in tf2onnx's graph."""

from __future__ import annotations

from typing import Any

import numpy as np


class Maker:
    """Makes nodes of one replacement in the dtype of the node's first input."""

    def __init__(self, graph: Any, node: Any) -> None:
        from tf2onnx import utils

        self._graph, self._node, self._unique = graph, node, utils.make_name
        self.dtype: int = graph.get_dtype(node.input[0])
        self._numpy = utils.map_onnx_to_numpy_type(self.dtype)

    def __call__(self, op: str, *inputs: str, kind: int | None = None, **attributes: Any) -> str:
        """Makes a node; returns its output. `kind` is its element type where it is not that of the first input."""
        made = self._graph.make_node(
            op, list(inputs), attr=attributes, op_name_scope=self._node.name, name=self._unique(op)
        )
        self._graph.set_dtype(made.output[0], kind or self.dtype)
        return str(made.output[0])

    def const(self, value: Any) -> str:
        """A constant in the dtype of the node's first input."""
        return self.tensor(np.asarray(value, self._numpy))

    def tensor(self, array: np.ndarray) -> str:
        """A constant as it is."""
        made = self._graph.make_const(self._unique(self._node.name + "_const"), array)
        return str(made.output[0])

    def finish(self, op: str, inputs: list[str], **attributes: Any) -> None:
        """The last node takes over the name and the output of the replaced one."""
        node = self._node
        shapes, dtypes = node.output_shapes, node.output_dtypes
        self._graph.remove_node(node.name)
        self._graph.make_node(
            op, inputs, attr=attributes, name=node.name, outputs=node.output, shapes=shapes, dtypes=dtypes
        )
