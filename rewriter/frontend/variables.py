"""Variables and captured tensors of a traced function become constants, or placeholders with their data in files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rewriter.frontend import large_weights
from rewriter.frontend.callee import import_tensorflow
from rewriter.frontend.large_weights import LargeWeights, is_large, place


def to_constants(function: Any, references: Mapping[str, Any], threshold: int) -> tuple[Any, LargeWeights | None]:
    """The GraphDef of `function` without variables; functions are inlined where TensorFlow can.

    The pieces of `convert_variables_to_constants_v2` are called without its last step, which would import the whole
    graph again only for it to be exported again.

    Args:
        function: a ConcreteFunction.
        references: node name -> value of TF1 reference variables.
        threshold: where the large variables have so many bytes together, they are written to files.

    Returns:
        The GraphDef, and the files; None for these where the GraphDef holds everything.

    Raises:
        ExportError: the files cannot be written.
        ValueError, KeyError, StopIteration: TensorFlow cannot freeze the function.
    """
    from tf2onnx import tf_loader

    weights = LargeWeights() if _large_bytes(function, references) >= threshold else None
    graph_def = _frozen(function, weights)
    if any(node.op.startswith("Assign") and node.op.endswith("VariableOp") for node in graph_def.node):
        graph_def = tf_loader.fix_freezing_errors(graph_def)
    _fill_references(graph_def, references, weights)
    if weights is None and constant_bytes(graph_def, threshold) >= threshold:
        weights = LargeWeights()
    if weights is not None:
        _take_out_constants(graph_def, weights)
    return tf_loader.fix_freezing_errors_part2(graph_def), weights


def _large_bytes(function: Any, references: Mapping[str, Any]) -> int:
    """Bytes of all captured variables, tensors and reference variables that are large."""
    tf = import_tensorflow()
    tensors = [t for t in function.captured_inputs if t.dtype != tf.resource]
    captured = [t for t in (*function.graph.variables, *tensors) if _worth(t)]
    known = [value for value in map(np.asarray, references.values()) if is_large(value.dtype, value.size)]
    return sum(int(t.dtype.size * t.shape.num_elements()) for t in captured) + sum(value.nbytes for value in known)


def constant_bytes(graph_def: Any, limit: int) -> int:
    """Bytes of data in the constants of a GraphDef and its functions; where they are below `limit`, at most so many.

    Protobuf copies data to tell their length, so they are looked at only where the shapes leave it open.
    """
    tf = import_tensorflow()
    nodes = [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]
    tensors = [node.attr["value"].tensor for node in nodes if node.op == "Const"]
    sizes = {kind: tf.as_dtype(kind).size or 1 for kind in {tensor.dtype for tensor in tensors}}
    most = sum(sizes[t.dtype] * math.prod(dim.size for dim in t.tensor_shape.dim) for t in tensors)
    return most if most < limit else sum(len(tensor.tensor_content) for tensor in tensors)


def _take_out_constants(graph_def: Any, weights: LargeWeights) -> None:
    """Writes large constants of the main graph to files."""
    tf = import_tensorflow()
    for node in graph_def.node:
        if node.op == "Const" and len(node.attr["value"].tensor.tensor_content) >= large_weights.LARGE:
            array = tf.make_ndarray(node.attr["value"].tensor)
            if is_large(array.dtype, array.size):
                place(node, weights.put(array), array)


def _worth(tensor: Any) -> bool:
    """True for a variable or tensor that goes to a file."""
    return is_large(tensor.dtype, tensor.shape.num_elements())


def _frozen(function: Any, weights: LargeWeights | None) -> Any:
    """Steps 1 to 4 of `convert_variables_to_constants_v2`; large captures become placeholders if `weights` is given."""
    from tensorflow.python.framework import convert_to_constants

    numbers: dict[str, int] = {}

    class Data(convert_to_constants._FunctionConverterDataInEager):  # type: ignore[misc]
        """Leaves reference variables alone: TensorFlow would look for them in the wrong graph."""

        def _should_convert(self, name: str) -> bool:
            return self.node_defs[name].op != "VariableV2" and bool(super()._should_convert(name))

        def _build_tensor_data(self) -> None:
            if weights is None:
                super()._build_tensor_data()
                return
            for index, name, source in _captures(function):
                if self._should_convert(name):
                    array, kind = _taken(source, name, weights, numbers)
                    self._tensor_data[name] = convert_to_constants._TensorData(array, kind, index)

    data = Data(func=function, lower_control_flow=False, aggressive_inlining=True)
    if weights is None:
        return convert_to_constants._replace_variables_by_constants(data)[0]
    graph = convert_to_constants._GraphDef(data.graph_def)
    for name, value in data.tensor_data.items():
        node = graph.nodes[name]
        if name not in numbers:
            node.convert_variable_to_constant(None, value)
            continue
        # What `_VarHandle.convert_variable_to_constant` does, but for the data.
        place(node.converted_self().node, numbers[name], value.numpy)
        for edge in node.outgoing_edges:
            edge.destination.convertible.convert_variable_to_constant(edge, value)
    return graph.converted_self().graph_def


def _captures(function: Any) -> Iterator[tuple[int, str, Any]]:
    """(index, name of its placeholder, variable or tensor) of what the function captures, but for other resources."""
    tf = import_tensorflow()
    variables = {id(variable.handle): variable for variable in function.graph.variables}
    for index, (outer, inner) in enumerate(function.graph.captures):
        source = variables.get(id(outer), outer)
        if source.dtype != tf.resource:
            yield index, inner.name.split(":")[0], source


def _taken(source: Any, name: str, weights: LargeWeights, numbers: dict[str, int]) -> tuple[np.ndarray, int]:
    """The value of a capture and its TensorFlow data type; a large one is written to a file, and its shape returned.

    In `numbers` the number of the file's weight is noted.
    """
    tf = import_tensorflow()
    array = values(source)
    if _worth(source):
        numbers[name] = weights.put(array)
        # Of the right shape and dtype, but without memory; nothing reads its values.
        array = np.broadcast_to(array.dtype.type(0), array.shape)
    return array, int(tf.as_dtype(array.dtype).as_datatype_enum)


def values(source: Any) -> np.ndarray:
    """The value of an eager tensor or a variable, without a copy where it lies in the host's memory.

    The array is valid as long as it lives, whatever becomes of the variable; it must not be written to.
    """
    tensor = source.read_value() if hasattr(source, "read_value") else source
    return np.asarray(tensor)


def _fill_references(graph_def: Any, references: Mapping[str, Any], weights: LargeWeights | None) -> None:
    """Turns TF1 reference variables into constants; inlining has put a prefix before their names."""
    tf = import_tensorflow()
    for node in graph_def.node:
        if node.op == "VariableV2":
            value = np.asarray(references[next(name for name in references if f"/{node.name}".endswith(f"/{name}"))])
            if weights is not None and is_large(value.dtype, value.size):
                place(node, weights.put(value), value)
                continue
            node.op = "Const"
            node.attr.clear()
            tensor = tf.make_tensor_proto(value)
            node.attr["value"].tensor.CopyFrom(tensor)
            node.attr["dtype"].type = tensor.dtype
