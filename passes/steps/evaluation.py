"""Evaluation of constant nodes: many at once, with a bound on what comes out, and at a fault one by one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from passes.graph.editing import label
from passes.graph.value_types import tensor_type
from passes.graph.walk import iter_graphs, iter_nodes
from passes.infer_shapes import infer
from passes.model import is_stub

_log = logging.getLogger(__name__)

#: Runs a small self-contained model: inputs by name -> outputs by name.
Evaluate = Callable[[ModelProto, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
_STRING_BYTES = 32
#: Computed values up to this size are handed on as initializers, so that sizes can be inferred from them.
_INLINE_BYTES = 1024


def reference_evaluate(proto: ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ONNX's own evaluator in numpy: needs nothing more, but is slow and may differ from others in the last bit."""
    from onnx.reference import ReferenceEvaluator  # its operators take a while to import, and seldom is it asked

    names = [o.name for o in proto.graph.output]
    return dict(zip(names, ReferenceEvaluator(proto).run(names, dict(feeds)), strict=True))


class Evaluator:
    """Computes constant nodes of one model.

    Args:
        evaluate: runs a small model.
        frame: the model whose opsets and IR version hold; node names unique, value names unique.
        weights: data of the frame's stubs.
        max_bytes: a result above this is refused unless it is no larger than the constants it is made of.

    Attributes:
        values: what has been computed, by value name; not the intermediate values that only computed nodes read.
        computed: names of the nodes whose outputs are in `values`, or are read by computed nodes alone.
    """

    def __init__(
        self, evaluate: Evaluate, frame: ModelProto, weights: Mapping[str, np.ndarray], max_bytes: int
    ) -> None:
        self.values: dict[str, np.ndarray] = {}
        self.computed: set[str] = set()
        self._evaluate = evaluate
        self._frame = frame
        self._weights = weights
        self._max_bytes = max_bytes
        self._batch: set[str] = set()
        self._tensors = {t.name: t for t in frame.graph.initializer}
        self._exposed = {o.name for graph in iter_graphs(frame.graph) for o in graph.output}
        self._readers: dict[str, set[str]] = {}
        for node in iter_nodes(frame.graph):
            for name in node.input:
                self._readers.setdefault(name, set()).add(node.name)

    def compute(self, nodes: Sequence[NodeProto]) -> None:
        """Computes sorted nodes; what fails or would grow too large is logged and left out, with what depends on it.

        Sizes are inferred before anything runs. Where the size of a result depends on values that are not
        computed yet, the node waits for another round, so the number of rounds is the depth of such dependence.
        """
        self._batch = {node.name for node in nodes}
        waiting = list(nodes)
        while waiting:
            now, later = self._select(waiting)
            if now:
                self._run(now)
            waiting = later if len(later) < len(waiting) else []

    def _has(self, name: str) -> bool:
        return not name or name in self._tensors or name in self.values

    def _select(self, nodes: Sequence[NodeProto]) -> tuple[list[NodeProto], list[NodeProto]]:
        """Splits nodes into those to compute now and those that wait; drops those that are refused."""
        sizes = self._sizes(nodes)
        now: list[NodeProto] = []
        later: list[NodeProto] = []
        planned: set[str] = set()
        waiting: set[str] = set()
        for node in nodes:
            if any(name in waiting for name in node.input):
                later.append(node)
                waiting.update(node.output)
                waiting.discard("")
            elif all(self._has(name) or name in planned for name in node.input):
                if all(name in sizes for name in node.output if name):
                    fits = self._fits(node, sizes)
                elif all(self._has(name) for name in node.input):
                    fits = True  # what depends on the data alone (NonZero, Unique) is bounded by them
                else:
                    later.append(node)
                    waiting.update(name for name in node.output if name)
                    continue
                if fits:
                    now.append(node)
                    planned.update(node.output)
        return now, later

    def _fits(self, node: NodeProto, sizes: Mapping[str, int]) -> bool:
        result = sum(sizes[name] for name in node.output if name)
        # A constant that others read as well stays in the model, so a result made of it is growth.
        made_of = sum(self._bytes(name, sizes) for name in set(node.input) if self._readers[name] <= self._batch)
        if result <= max(self._max_bytes, made_of):
            return True
        _log.info("node %s is not folded: its result would take %d B", label(node), result)
        return False

    def _bytes(self, name: str, sizes: Mapping[str, int]) -> int:
        if not name:
            return 0
        if name in self.values:
            return self.values[name].nbytes
        if name in self._tensors:
            tensor = self._tensors[name]
            return _nbytes(tensor.data_type, tensor.dims)
        return sizes.get(name, 0)

    def _sizes(self, nodes: Sequence[NodeProto]) -> dict[str, int]:
        """Inferred bytes of the values that `nodes` produce, where all dimensions are known."""
        proto, _ = self._model(nodes, [])
        inferred = infer(proto)
        sizes = {}
        for value in inferred.graph.value_info if inferred is not None else ():
            dtype, shape = tensor_type(value.type)
            if dtype and shape is not None and all(isinstance(d, int) for d in shape):
                sizes[value.name] = _nbytes(dtype, [d for d in shape if isinstance(d, int)])
        return sizes

    def _run(self, nodes: Sequence[NodeProto]) -> None:
        """Computes all nodes in one model; when that fails, each half on its own."""
        ready = self._computable(nodes)
        batch = {node.name for node in ready}
        outputs = [
            name
            for node in ready
            for name in node.output
            if name and (name in self._exposed or not self._readers.get(name, batch) <= batch)
        ]
        if not outputs:
            return
        try:
            self._run_once(ready, outputs)
            self.computed |= batch
        except Exception as error:  # noqa: BLE001 - `evaluate` is injected and may raise anything; that costs one node
            if len(ready) == 1:
                _log.warning("node %s is not folded, its evaluation failed: %s", label(ready[0]), error)
                return
            middle = len(ready) // 2
            self._run(ready[:middle])
            self._run(ready[middle:])

    def _computable(self, nodes: Sequence[NodeProto]) -> list[NodeProto]:
        ready = []
        produced: set[str] = set()
        for node in nodes:
            if all(self._has(name) or name in produced for name in node.input):
                ready.append(node)
                produced.update(node.output)
        return ready

    def _run_once(self, nodes: Sequence[NodeProto], outputs: Sequence[str]) -> None:
        proto, feeds = self._model(nodes, outputs)
        inferred = infer(proto)
        if inferred is None:
            raise ValueError("types cannot be inferred")
        results = self._evaluate(inferred, feeds)
        found = {}
        for value in inferred.graph.output:
            array = results[value.name]
            expected = value.type.tensor_type.elem_type
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{value.name!r} is no tensor")
            if expected and _dtype(expected) != array.dtype:
                raise TypeError(f"{value.name!r} came out as {array.dtype}, not {_dtype(expected)}")
            found[value.name] = array
        self.values.update(found)

    def _model(self, nodes: Sequence[NodeProto], outputs: Iterable[str]) -> tuple[ModelProto, dict[str, np.ndarray]]:
        """A stand-alone model of `nodes`, and what to feed it: small constants inside, large ones as inputs."""
        proto = ModelProto(ir_version=self._frame.ir_version)
        proto.opset_import.extend(self._frame.opset_import)
        graph = proto.graph
        graph.name = "constants"
        graph.node.extend(nodes)
        feeds: dict[str, np.ndarray] = {}
        produced = {name for node in nodes for name in node.output}
        for name in dict.fromkeys(name for node in nodes for name in node.input):
            if not name or name in produced or not self._has(name):
                continue
            tensor = self._tensors.get(name)
            if tensor is not None and not is_stub(tensor):
                graph.initializer.append(tensor)
            elif tensor is not None:
                feeds[name] = self._weights[name]
                graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
            elif self.values[name].nbytes <= _INLINE_BYTES:
                graph.initializer.append(numpy_helper.from_array(self.values[name], name))
            else:
                array = feeds[name] = self.values[name]
                dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
                graph.input.append(helper.make_tensor_value_info(name, dtype, array.shape))
        graph.output.extend(ValueInfoProto(name=name) for name in outputs)
        return proto, feeds


def _dtype(data_type: int) -> np.dtype[Any]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(data_type))


def _nbytes(data_type: int, dims: Iterable[int]) -> int:
    """Bytes of a tensor (a guess for strings)."""
    return math.prod(dims) * (_STRING_BYTES if data_type == TensorProto.STRING else _dtype(data_type).itemsize)
