"""The rescue itself, on TensorFlow's messages: no file is touched here."""

from __future__ import annotations

import dataclasses
from typing import Any

from rewriter.rescuing.assets import engine_assets, strip_assets
from rewriter.rescuing.nodes import Replaced, replace_engines
from rewriter.rescuing.objects import strip_objects
from rewriter.rescuing.report import Removed
from rewriter.rescuing.resources import strip_resources
from rewriter.rescuing.spellings import TRT_OPS


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """What was changed in a SavedModel message.

    Attributes:
        engines: of all its graphs.
        removed: of all its graphs.
    """

    engines: Replaced
    removed: Removed


def rewrite(message: Any, source: str) -> Rewritten:
    """Makes a SavedModel message one that TensorFlow can load without TF-TRT, in place.

    Raises:
        SourceError: a native segment is not there, or the file is damaged; the message names the op.
    """
    engines, removed = Replaced((), ()), Removed()
    for meta_graph in message.meta_graphs:
        replaced = replace_engines(meta_graph.graph_def, source)
        assets = engine_assets(meta_graph)
        gone = strip_resources(meta_graph, assets.tensors, source)
        places = strip_assets(meta_graph, assets)
        objects = strip_objects(meta_graph, gone.functions, places, source)
        _clean_op_list(meta_graph)
        engines = Replaced(engines.engines + replaced.engines, engines.rebuilt + replaced.rebuilt)
        removed += gone + Removed(objects=objects, assets=assets.files)
    return Rewritten(engines, dataclasses.replace(removed, assets=tuple(dict.fromkeys(removed.assets))))


def _clean_op_list(meta_graph: Any) -> None:
    """Puts the ops of calls in the place of TF-TRT's in the list of ops that the graph was written with."""
    from tensorflow.python.framework import op_def_registry

    listed = meta_graph.meta_info_def.stripped_op_list.op
    if not listed:
        return
    for index in reversed([i for i, op in enumerate(listed) if op.name in TRT_OPS]):
        del listed[index]
    names = {op.name for op in listed}
    for name in ("PartitionedCall", "StatefulPartitionedCall"):
        if name not in names:
            listed.add().CopyFrom(op_def_registry.get(name))
