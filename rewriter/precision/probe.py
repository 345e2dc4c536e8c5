"""Values of the native model by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, TensorProto, helper

from passes.graph.value_types import value_types
from passes.graph.walk import iter_nodes
from passes.model import Model, stubs_as_inputs
from rewriter.errors import ConversionError, SourceError
from rewriter.runtime.inputs import first_line
from rewriter.runtime.native import open_native

#: Element types whose values are calibrated.
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def fetchable(model: Model) -> frozenset[str]:
    """Names of the values that calibration can observe.

    These are the inputs of the model and the outputs of its main graph's nodes that are declared (`InferShapes`) as
    floating-point tensors. Values inside the bodies of If, Loop and Scan are out of reach, constants never change.
    """
    types = value_types(model)
    graph = model.proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in constants]
    names += [name for node in graph.node if node.op_type != "Constant" for name in node.output if name]
    return frozenset(name for name in names if name in types and types[name].dtype in FLOATS)


class Probe:
    """Runs the native model once a sample and hands out values.

    Their minimum and maximum could be computed in the graph instead. Measured (ResNet50, batch 8, 70 tensors), that
    takes 1.5 s and 1.2 GB a sample; fetching all 0.5 GB of values and reducing them here 0.5 s and 0.8 GB, for ONNX
    Runtime keeps every value until its reduction has run. Besides, its reductions pass NaN over.

    Args:
        model: the cleaned model.
        values: names of the values; all of them `fetchable`.
        threads: threads of ONNX Runtime; 0 for its default.

    Raises:
        SourceError: ONNX Runtime refuses the model.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def __init__(self, model: Model, values: Sequence[str], *, threads: int = 0) -> None:
        fed = {value.name for value in model.proto.graph.input}
        self._inputs = [name for name in values if name in fed]
        self._outputs: dict[str, str] = {}
        extended = self._extend(model, [name for name in values if name not in fed])
        self._weights = model.weights
        try:
            # As inputs the weights are read where they lie; of initializers ONNX Runtime would make a copy.
            self._session = open_native(
                Model(stubs_as_inputs(extended)), list(self._outputs.values()) or None, threads=threads
            )
        except ConversionError:
            raise
        except Exception as error:
            raise SourceError(f"ONNX Runtime refuses the model: {first_line(error)}") from error

    def run(self, number: int, feeds: Mapping[str, np.ndarray], where: str = "") -> Iterator[tuple[str, np.ndarray]]:
        """One sample: value names with their elements, float32 in one dimension; each is freed after its turn.

        Args:
            number: which sample it is, for messages.
            feeds: by ONNX input name.
            where: further words on its place, for messages: " (rows 8 to 15)".

        Raises:
            ConversionError: the model fails; the message names the sample.
        """
        try:
            results = self._session.run({**self._weights, **feeds})
            given = {name: np.asarray(feeds[name]) for name in self._inputs}
        except Exception as error:
            shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in feeds.items())
            raise ConversionError(
                f"calibration sample {number}{where}: the native model fails on the inputs {shapes}: "
                f"{first_line(error)}"
            ) from error
        for name, array in given.items():
            yield name, _flat(array)
        for name, output in self._outputs.items():
            yield name, _flat(results.pop(output))

    def _extend(self, model: Model, values: Sequence[str]) -> Model:
        """The model with the values as further outputs: float32 ones themselves, others behind a Cast."""
        proto = model.copy_proto()
        graph = proto.graph
        types = value_types(model)
        names = _Names(graph)
        present = {value.name for value in graph.output}
        for name in values:
            output = name
            if types[name].dtype != TensorProto.FLOAT:
                output = names.node(graph, "Cast", name, to=TensorProto.FLOAT)
            self._outputs[name] = output
            if output not in present:
                graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
        return model.with_proto(proto)


def _flat(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is treated as such
        return array.reshape(-1).astype(np.float32, copy=False)


class _Names:
    """Makes nodes under names that nothing in the graph has."""

    def __init__(self, graph: GraphProto) -> None:
        self._taken = {name for node in iter_nodes(graph) for name in (node.name, *node.input, *node.output)}
        self._taken.update(value.name for value in graph.input)
        self._taken.update(tensor.name for tensor in graph.initializer)

    def node(self, graph: GraphProto, op_type: str, value: str, **attributes: Any) -> str:
        """Appends a node that reads `value`; returns its output."""
        number = len(graph.node)
        while (name := f"trt_rewriter_{op_type}_{number}") in self._taken:
            number += 1
        self._taken.add(name)
        graph.node.append(helper.make_node(op_type, [value], [name], name=name, **attributes))
        return name


def listed(names: Iterable[str], most: int = 5) -> str:
    """Some names for a message, and how many more there are."""
    every = list(names)
    text = ", ".join(repr(name) for name in every[:most])
    return f"{text} and {len(every) - most} more" if len(every) > most else text
