"""A segment's own graph, which dynamic engines of TensorFlow 1.13 and 1.14 carry, as a function."""

from __future__ import annotations

from typing import Any

from rewriter.errors import SourceError
from rewriter.rescuing.recorded import dtype_names, text_bytes
from rewriter.rescuing.spellings import INPUT_PREFIXES, OUTPUT_PREFIXES


def segment_graph(node: Any) -> Any | None:
    """The GraphDef in `serialized_segment`; None where that is empty or a serialized engine."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.framework import graph_pb2

    content = text_bytes(node.attr, "serialized_segment")
    if not content:
        return None
    try:
        graph = graph_pb2.GraphDef.FromString(content)
    except DecodeError:
        return None
    return graph if any(_index(n.name, OUTPUT_PREFIXES) is not None for n in graph.node) else None


def graph_to_function(graph: Any, name: str, engine: str) -> Any:
    """The FunctionDef of a segment's graph.

    Rules: 1. Placeholder or _Arg nodes called TensorRTInputPH_i are the arguments, in the order of i. 2. Identity or
    _Retval nodes called TensorRTOutputPH_i are the results. 3. References to results, "node:2", become "node:output:2":
    the name out of the definition of the op. 4. Nodes keep their names.

    Args:
        graph: the GraphDef.
        name: what the function is to be called.
        engine: the engine node, for messages.

    Raises:
        SourceError: the numbers of inputs or outputs have gaps, or an op is not registered.
    """
    from tensorflow.core.framework import function_pb2

    function = function_pb2.FunctionDef()
    function.signature.name = name
    inputs = _ports(graph, INPUT_PREFIXES, engine)
    outputs = _ports(graph, OUTPUT_PREFIXES, engine)
    taken = {node.name for node in graph.node}
    arguments = {}
    for number, node in enumerate(inputs):
        argument = _unique(f"input_{number}", taken)
        function.signature.input_arg.add(name=argument, type=_dtype(node))
        arguments[node.name] = argument
    results = _result_names(graph, arguments, engine)
    for node in graph.node:
        if node.name in arguments or node.op == "_Retval":
            continue
        body = function.node_def.add()
        body.CopyFrom(node)
        del body.input[:]
        for reference in node.input:
            if reference.startswith("^"):
                body.input.extend([reference] if reference[1:] not in arguments else [])
            else:
                body.input.append(_resolve(results, reference, engine))
    for number, node in enumerate(outputs):
        function.signature.output_arg.add(name=f"output_{number}", type=_dtype(node))
        value = node.input[0] if node.op == "_Retval" else node.name
        function.ret[f"output_{number}"] = _resolve(results, value, engine)
    return function


def _ports(graph: Any, prefixes: tuple[str, ...], engine: str) -> list[Any]:
    """The nodes that stand for inputs or outputs, by their number."""
    found = {index: node for node in graph.node if (index := _index(node.name, prefixes)) is not None}
    if sorted(found) != list(range(len(found))):
        raise SourceError(
            f"the segment that engine {engine} holds is damaged: its {prefixes[0]}N have the numbers {sorted(found)}"
        )
    return [found[index] for index in sorted(found)]


def _index(name: str, prefixes: tuple[str, ...]) -> int | None:
    for prefix in prefixes:
        digits = name.removeprefix(prefix)
        if digits != name and digits.isdigit():
            return int(digits)
    return None


def _dtype(node: Any) -> int:
    return int(node.attr["dtype" if "dtype" in node.attr else "T"].type)


def _unique(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def _result_names(graph: Any, arguments: dict[str, str], engine: str) -> dict[str, list[str]]:
    """Node name -> how a function body calls each of its results."""
    from tensorflow.python.framework import op_def_registry

    results: dict[str, list[str]] = {}
    for node in graph.node:
        if node.name in arguments:
            results[node.name] = [arguments[node.name]]
            continue
        definition = op_def_registry.get(node.op)
        if definition is None:
            raise SourceError(f"the segment that engine {engine} holds uses the unknown op {node.op} ({node.name})")
        names = []
        for output in definition.output_arg:
            names += [f"{node.name}:{output.name}:{i}" for i in range(_count(node, output))]
        results[node.name] = names
    return results


def _count(node: Any, output: Any) -> int:
    """How many tensors an output of an op's definition stands for at this node."""
    if output.number_attr:
        return int(node.attr[output.number_attr].i)
    if output.type_list_attr:
        return len(node.attr[output.type_list_attr].list.type)
    return 1


def _resolve(results: dict[str, list[str]], reference: str, engine: str) -> str:
    name, _, index = reference.partition(":")
    try:
        return results[name][int(index or 0)]
    except (KeyError, IndexError, ValueError) as error:
        raise SourceError(
            f"the segment that engine {engine} holds is damaged: nothing in it is called {reference}"
        ) from error


def check_signature(function: Any, node: Any, where: str) -> None:
    """Refuses a segment that takes or gives something else than its engine.

    Raises:
        SourceError: dtypes or their number differ.
    """
    for side, arguments, attribute in (
        ("takes", function.signature.input_arg, "InT"),
        ("gives", function.signature.output_arg, "OutT"),
    ):
        if attribute not in node.attr:
            raise SourceError(f"{where} is damaged: it has no attribute {attribute}")
        wanted = dtype_names(node.attr[attribute].list.type)
        has = dtype_names([argument.type for argument in arguments])
        if has != wanted:
            raise SourceError(
                f"{where} {side} ({', '.join(wanted)}) and its native segment {function.signature.name} "
                f"({', '.join(has)}): the file is damaged, get the model that TF-TRT converted"
            )
    data = [reference for reference in node.input if not reference.startswith("^")]
    if len(data) != len(function.signature.input_arg):
        raise SourceError(f"{where} has {len(data)} inputs and {len(function.signature.input_arg)} dtypes for them")
