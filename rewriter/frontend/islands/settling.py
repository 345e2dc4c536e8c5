"""SavedModels that are equal for equal contents: TensorFlow counts its functions up, from process start on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewriter.frontend.islands.loading import forget_names, rename_calls, rename_function

_COUNTED = re.compile(r"^(.*)_(\d+)$")
#: Attributes that hold a counter too, or serve gradients only.
_COUNTERS = ("_gradient_op_type", "_forward_func_name", "_backward_function_name")


def settle(folder: Path) -> None:
    """Rewrites the proto of a SavedModel in place.

    1. Functions are counted from 0, in the order in which they were made. 2. What belongs to gradients goes. 3. The
    function library is in the order of names. 4. The fingerprint, which is made of the old bytes, goes; it is optional.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for meta in proto.meta_graphs:
        _settle(meta)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    (folder / "fingerprint.pb").unlink(missing_ok=True)


def _settle(meta: Any) -> None:
    functions = list(meta.graph_def.library.function)
    names = _names([function.signature.name for function in functions])
    for function in functions:
        rename_function(function, names)
        forget_names(function)
    for holder in (*functions, *meta.graph_def.node, *(node for f in functions for node in f.node_def)):
        for key in _COUNTERS:
            if key in holder.attr:
                del holder.attr[key]
    for node in meta.graph_def.node:
        rename_calls(node, names)
    library = type(meta.graph_def.library)(function=sorted(functions, key=lambda function: function.signature.name))
    meta.graph_def.library.CopyFrom(library)
    _settle_objects(meta.object_graph_def, names)


def _names(old: list[str]) -> dict[str, str]:
    """Old -> new names of the counted functions; others, which are named after their contents, stay."""
    counted = [
        (int(found[2]), found[1], name) for name in old if name.startswith("__") and (found := _COUNTED.match(name))
    ]
    return {name: f"{stem}_{index}" for index, (_, stem, name) in enumerate(sorted(counted))}


def _settle_objects(objects: Any, names: Mapping[str, str]) -> None:
    """The same names where Python's objects are described."""
    for node in objects.nodes:
        if node.HasField("function"):
            node.function.concrete_functions[:] = [names.get(name, name) for name in node.function.concrete_functions]
        if node.HasField("bare_concrete_function"):
            bare = node.bare_concrete_function
            bare.concrete_function_name = names.get(bare.concrete_function_name, bare.concrete_function_name)
    described = {names.get(name, name): value for name, value in objects.concrete_functions.items()}
    copies = {name: type(value).FromString(value.SerializeToString()) for name, value in described.items()}
    objects.concrete_functions.clear()
    for name, value in copies.items():
        objects.concrete_functions[name].CopyFrom(value)
