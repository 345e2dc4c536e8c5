"""Values of the native model, or their extremes, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, TensorProto, ValueInfoProto, helper

from passes.graph.value_types import value_types
from passes.graph.walk import iter_nodes
from passes.model import Model
from rewriter.errors import ConversionError, SourceError
from rewriter.runtime.inputs import first_line
from rewriter.runtime.native import NativeSession

#: Element types whose values are calibrated.
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceSum")


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
    """Runs the native model once a sample and hands out what it was asked for.

    Args:
        model: the cleaned model.
        values: names whose values are wanted, as float32.
        extremes: names of which (minimum, maximum, sum) are enough: they are computed in the graph.

    Raises:
        SourceError: ONNX Runtime refuses the model.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def __init__(self, model: Model, values: Sequence[str], extremes: Sequence[str] = ()) -> None:
        self._fed = {value.name for value in model.proto.graph.input}
        self._values: dict[str, str] = {}
        self._extremes: dict[str, tuple[str, ...]] = {}
        extended = self._extend(model, values, extremes)
        wanted = [*self._values.values(), *(name for names in self._extremes.values() for name in names)]
        try:
            self._session = NativeSession(extended, wanted or None)
        except ConversionError:
            raise
        except Exception as error:
            raise SourceError(f"ONNX Runtime refuses the model: {first_line(error)}") from error
        self._inputs = [name for name in values if name in self._fed]

    def run(self, number: int, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One sample: value name -> flat float32 values, or the three numbers of `extremes`.

        Raises:
            ConversionError: the model fails; the message names the sample.
        """
        try:
            results = self._session.run(feeds)
            found = {name: np.asarray(feeds[name]) for name in self._inputs}
        except Exception as error:
            shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in feeds.items())
            raise ConversionError(
                f"calibration sample {number}: the native model fails on the inputs {shapes}: {first_line(error)}"
            ) from error
        found.update((name, results.pop(output)) for name, output in self._values.items())
        for name, outputs in self._extremes.items():
            found[name] = np.array([results.pop(output) for output in outputs], np.float32)
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is treated as such
            return {name: array.reshape(-1).astype(np.float32, copy=False) for name, array in found.items()}

    def _extend(self, model: Model, values: Sequence[str], extremes: Sequence[str]) -> Model:
        """The model with what is wanted as further outputs; float32 values are outputs themselves, without a copy."""
        proto = model.copy_proto()
        graph = proto.graph
        types = value_types(model)
        names = _Names(proto.graph)
        outputs = {value.name for value in graph.output}
        for name in values:
            if name in self._fed:
                continue
            source = name
            if types[name].dtype != TensorProto.FLOAT:
                source = names.node(graph, "Cast", name, to=TensorProto.FLOAT)
            self._values[name] = source
            if source not in outputs:
                graph.output.append(_output(source))
        for name in extremes:
            source = name
            if types[name].dtype != TensorProto.FLOAT:
                source = names.node(graph, "Cast", name, to=TensorProto.FLOAT)
            self._extremes[name] = tuple(names.node(graph, kind, source, keepdims=0) for kind in _REDUCTIONS)
            graph.output.extend(_output(reduced) for reduced in self._extremes[name])
        return model.with_proto(proto)


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


def _output(name: str) -> ValueInfoProto:
    """A float32 output of any rank."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def listed(names: Iterable[str], most: int = 5) -> str:
    """Some names for a message, and how many more there are."""
    every = list(names)
    text = ", ".join(repr(name) for name in every[:most])
    return f"{text} and {len(every) - most} more" if len(every) > most else text
