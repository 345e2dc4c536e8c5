"""SavedModels that TF-TRT wrote become plain TensorFlow again.

TensorFlow has been published without TF-TRT since 2.18, and cannot load what TF-TRT saved: the engine nodes, and the
resources that keep engines, are unknown to it. Everything that the model computes is still in the file, as the native
segment of each engine; a rescue puts it back and takes out the rest. It works on TensorFlow's messages alone, on any
machine, and changes nothing of the source.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rewriter.errors import InvalidParameterError, SourceError
from rewriter.params import check_switch
from rewriter.rescuing.recorded import EngineRecord
from rewriter.rescuing.report import Removed, RescueReport

__all__ = ["EngineRecord", "Removed", "RescueReport", "needs_rescue", "rescue", "rescue_graph_def"]


def needs_rescue(directory: str | os.PathLike[str]) -> bool:
    """Whether a SavedModel has nodes of TF-TRT, which today's TensorFlow cannot load.

    Quick for models that have none: their bytes are searched, and TensorFlow is not imported. False also for what is
    no SavedModel, or is damaged.

    Raises:
        InvalidParameterError: it is no path.
        MissingDependencyError: the bytes mention TF-TRT, and TensorFlow is not installed to look closer.
    """
    from rewriter.rescuing import reading

    path = _path("directory", directory)
    if not reading.mentions_engines(path):
        return False
    try:
        return reading.holds_engines(reading.parse(path))
    except SourceError:
        return False


def rescue(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], *, overwrite: bool = False
) -> RescueReport:
    """Writes a SavedModel of TF-TRT anew, so that TensorFlow without TF-TRT can load it.

    Engine nodes become calls of their native segments; functions, nodes, objects and files that only keep engines are
    taken out; variables, other assets and signatures stay as they are. What TF-TRT recorded of the conversion is
    in the report, to be used for the next one.

    Args:
        source: the folder with the old model; nothing in it is changed.
        destination: the folder to write: whole or not at all.
        overwrite: True replaces a SavedModel at the destination; no other folder that is not empty is replaced.

    Raises:
        SourceError: the source is no SavedModel, damaged, none of TF-TRT's, or has lost a native segment (the message
            names the op); or it cannot be copied.
        InvalidParameterError: the destination is no path, cannot be written to, or is not empty; or `overwrite` is
            neither True nor False.
        MissingDependencyError: TensorFlow is not installed.
    """
    from rewriter.rescuing import reading, writing
    from rewriter.rescuing.rewriting import rewrite

    origin, target = _path("source", source), _path("destination", destination)
    overwrite = check_switch("overwrite", overwrite)
    writing.check_destination(origin, target, overwrite)
    message = reading.parse(origin)
    if not reading.holds_engines(message):
        raise SourceError(f"the SavedModel in {origin} holds nothing of TF-TRT, so it needs no rescue: use it as it is")
    described = f"the SavedModel in {origin}"
    rewritten = rewrite(message, described)
    content = writing.serialize(message, described)
    writing.write(content, origin, target, set(rewritten.removed.assets))
    version = message.meta_graphs[0].meta_info_def.tensorflow_version
    engines = rewritten.engines
    return RescueReport(str(origin), str(target), engines.engines, rewritten.removed, engines.rebuilt, version)


def _path(name: str, value: object) -> Path:
    """A path that the system can look at.

    Raises:
        InvalidParameterError: it is none.
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str) or not os.fspath(value):
        raise InvalidParameterError(f"{name} must be the path of a folder, not {value!r}")
    if "\0" in os.fspath(value):
        raise InvalidParameterError(f"{name} cannot be a path: it holds a null byte ({value!r})")
    return Path(value)


def rescue_graph_def(graph_def: Any, source: str = "the GraphDef") -> tuple[Any, RescueReport]:
    """The same for a GraphDef, such as `create_inference_graph` returned; the one given is not changed.

    Args:
        graph_def: a tf.compat.v1.GraphDef.
        source: what it is, for messages.

    Returns:
        The GraphDef without nodes of TF-TRT (the one given, where there are none), and what was done.

    Raises:
        SourceError: a native segment is not there, or the graph is damaged; the message names the op.
        MissingDependencyError: TensorFlow is not installed.
    """
    from rewriter.rescuing.reading import import_protos
    from rewriter.rescuing.rewriting import rewrite
    from rewriter.rescuing.spellings import TRT_OPS, every_node

    if not any(node.op in TRT_OPS for node in every_node(graph_def)):
        return graph_def, RescueReport(source, "", ())
    import_protos()
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    message.meta_graphs.add().graph_def.CopyFrom(graph_def)
    rewritten = rewrite(message, source)
    report = RescueReport(source, "", rewritten.engines.engines, rewritten.removed, rewritten.engines.rebuilt)
    return message.meta_graphs[0].graph_def, report
