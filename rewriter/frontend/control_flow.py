"""TF1's loops and branches (Enter, Merge, Switch, Exit), which cannot stay in a function of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewriter.frontend.callee import import_tensorflow

#: Nodes of TF1's loops and branches.
CONTROL_FLOW = frozenset({"Enter", "RefEnter", "Exit", "Switch", "RefSwitch", "Merge", "NextIteration", "LoopCond"})


def in_traced_graph(make: Callable[[], Sequence[Any]]) -> list[Any]:
    """What `make` builds, in the graph that is being traced, safe from its automatic control dependencies.

    Grappler inlines no function whose results leave a TF1 loop ("dead outputs"), so such a graph is put straight into
    the traced one; and control dependencies of a tf.function would link the frames of loops, which TensorFlow refuses,
    so their watcher is told that these nodes were there before.
    """
    tf = import_tensorflow()
    results = list(make())
    graph = tf.compat.v1.get_default_graph()
    watcher = getattr(graph, "experimental_acd_manager", None)
    if watcher is not None:
        watcher._n_operations = graph.num_operations()
    return results


def in_place(function: Any, references: Mapping[str, Any]) -> Callable[..., Any]:
    """`function`, or where it has loops or branches of TF1 a callable that puts its nodes into the traced graph.

    Args:
        function: a pruned WrappedFunction, as loaded from a TF1 SavedModel.
        references: node name -> value of its reference variables, which become constants.
    """
    tf = import_tensorflow()
    called: Callable[..., Any] = function
    keywords = getattr(function, "_arg_keywords", None)
    if not any(op.type in CONTROL_FLOW for op in function.graph.get_operations()):
        return called
    if keywords is None and function.structured_input_signature is not None:
        return called
    captures = list(function.graph.captures)
    inner = {id(tensor) for _, tensor in captures}
    inputs = [tensor.name for tensor in function.inputs if id(tensor) not in inner]
    graph_def = _prepared(function.graph.as_graph_def(), {*inputs, *(t.name for _, t in captures)}, references)
    fetches = [tensor.name for tensor in function.outputs]

    def call(*args: Any, **kwargs: Any) -> Any:
        if tf.executing_eagerly():
            return called(*args, **kwargs)
        given = [kwargs[key] for key in keywords] if kwargs and keywords else list(args)
        traced = tf.compat.v1.get_default_graph()
        fed = dict(zip(inputs, given, strict=True)) | {t.name: traced.capture(outer) for outer, t in captures}
        found = in_traced_graph(
            lambda: tf.compat.v1.import_graph_def(graph_def, input_map=fed, return_elements=fetches, name="")
        )
        return tf.nest.pack_sequence_as(function.structured_outputs, found)

    return call


def _prepared(graph_def: Any, fed: set[str], references: Mapping[str, Any]) -> Any:
    """Without placeholders that are fed, without colocation, and with constants for reference variables."""
    tf = import_tensorflow()
    ready = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
    for node in graph_def.node:
        if f"{node.name}:0" in fed:
            continue
        copy = ready.node.add()
        copy.CopyFrom(node)
        copy.attr.pop("_class", None)
        if node.op == "VariableV2" and node.name in references:
            tensor = tf.make_tensor_proto(references[node.name])
            copy.op = "Const"
            copy.attr.clear()
            copy.attr["value"].tensor.CopyFrom(tensor)
            copy.attr["dtype"].type = tensor.dtype
    return ready
