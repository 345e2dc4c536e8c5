"""Constants as main-graph initializers: what Constant nodes and initializers of bodies become."""

from __future__ import annotations

from onnx import GraphProto, NodeProto, TensorProto, helper

from passes.base import Change, PassError
from passes.graph.editing import label, place, replace_nodes
from passes.graph.walk import Scope, iter_scopes
from passes.model import Weights, is_stub, stow


def lift_constants(main: GraphProto, weights: Weights) -> list[Change]:
    """Moves every constant of the model into the initializers of `main`; value names must be unique.

    1. A Constant node (any attribute but `sparse_value`) becomes an initializer.
    2. An initializer of a body moves to the main graph, which every body can read.
    3. What is an output of its own body, or a default of one of its inputs, stays an initializer of that body,
       for a body cannot return a value of the graph around it.
    4. Large tensors become stubs, their data go to `weights`.

    Raises:
        PassError: a Constant without a value, or a tensor in a body whose data lie in a file.
    """
    changes: list[Change] = []
    lifted: list[TensorProto] = []
    for scope, graph in iter_scopes(main):
        constants = _take_constant_nodes(graph, changes)
        if not scope:
            lifted.extend(constants)
            continue
        bound = {o.name for o in graph.output} | {i.name for i in graph.input}
        mine = [*graph.initializer, *constants]
        stay = [t for t in mine if t.name in bound]
        if len(stay) != len(graph.initializer) or constants:
            changes.extend(_hoisted(scope, graph, bound))
            lifted.extend(t for t in mine if t.name not in bound)
            del graph.initializer[:]
            graph.initializer.extend(stay)
    _stow_all(main, lifted, weights, changes)
    return changes


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """The value of a Constant node, named as its output; None when it is sparse.

    Raises:
        PassError: the node has no value, or more than one.
    """
    if len(node.attribute) != 1:
        raise PassError(f"Constant node {label(node)} needs exactly one value attribute, it has {len(node.attribute)}")
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(value)
    elif attribute.name in _SCALARS:
        tensor = helper.make_tensor("", _SCALARS[attribute.name], [], [value])
    elif attribute.name in _LISTS:
        tensor = helper.make_tensor("", _LISTS[attribute.name], [len(value)], list(value))
    elif attribute.name == "sparse_value":
        return None
    else:
        raise PassError(f"Constant node {label(node)} has the unknown attribute {attribute.name!r}")
    tensor.name = node.output[0]
    return tensor


_SCALARS = {"value_float": TensorProto.FLOAT, "value_int": TensorProto.INT64, "value_string": TensorProto.STRING}
_LISTS = {"value_floats": TensorProto.FLOAT, "value_ints": TensorProto.INT64, "value_strings": TensorProto.STRING}


def _take_constant_nodes(graph: GraphProto, changes: list[Change]) -> list[TensorProto]:
    """Removes the Constant nodes of one graph; returns their tensors."""
    kept, tensors = [], []
    for node in graph.node:
        tensor = None
        if node.op_type == "Constant" and not node.domain:
            tensor = constant_tensor(node)
        if tensor is None:
            kept.append(node)
        else:
            tensors.append(tensor)
            changes.append(Change("constant-to-initializer", tensor.name, f"Constant node {node.name!r}"))
    if tensors:
        replace_nodes(graph, kept)
    return tensors


def _hoisted(scope: Scope, graph: GraphProto, bound: set[str]) -> list[Change]:
    return [
        Change("hoist-initializer", tensor.name, f"constant of {place(scope)}")
        for tensor in graph.initializer
        if tensor.name not in bound
    ]


def _stow_all(main: GraphProto, lifted: list[TensorProto], weights: Weights, changes: list[Change]) -> None:
    """Adds `lifted` to the initializers of `main` and takes the data of large ones out."""
    large = [(i, t) for i, t in enumerate(main.initializer) if stow(t, {}) is not t]
    for i, tensor in large:
        changes.append(Change("detach-weight", tensor.name, "large data travel beside the graph"))
        main.initializer[i].CopyFrom(stow(tensor, weights))
    for tensor in lifted:
        if tensor.data_location == TensorProto.EXTERNAL and not is_stub(tensor):
            raise PassError(
                f"the data of constant {tensor.name!r} lie in a file: load the model with passes.model.load"
            )
        main.initializer.append(stow(tensor, weights))
