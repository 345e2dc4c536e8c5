"""TensorFlow's names of nodes and tensors, as its users of TensorFlow 1 know them, in ours."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rewriter.errors import InvalidParameterError
from rewriter.frontend.callee import import_tensorflow
from rewriter.frontend.graph_def import is_graph, is_graph_file
from rewriter.frontend.graph_def_file import parse
from rewriter.node_patterns import NodePattern

#: The trail of function calls that the front end takes off names (`rewriter.frontend.short_names`).
_CALLS = re.compile(r"^(?:(?:Stateful)?PartitionedCall(?:_\d+)?/)+(?=[^/:])")


@dataclasses.dataclass(frozen=True)
class NodeNames:
    """What a user named.

    Attributes:
        nodes: names of nodes, each once.
        tensors: the same as given: "x" or "x:1".
    """

    nodes: tuple[str, ...]
    tensors: tuple[str, ...]

    @classmethod
    def of(cls, entries: Iterable[Any] | None, argument: str) -> NodeNames:
        """Out of names, tensors and operations.

        Args:
            entries: what the user gave.
            argument: where; for messages.

        Raises:
            InvalidParameterError: it is no list, or an entry is none of these.
        """
        one = isinstance(entries, (str, bytes, Mapping)) or hasattr(entries, "name")
        if entries is not None and (one or not isinstance(entries, Iterable)):
            raise InvalidParameterError(f"{argument} must be a list of nodes, tensors or their names, not {entries!r}")
        tensors: dict[str, None] = {}
        for entry in entries or ():
            name = getattr(entry, "name", entry)
            name = name.decode() if isinstance(name, bytes) else name
            if not isinstance(name, str) or not name:
                raise InvalidParameterError(
                    f"{argument}: a node is named by its name, a tensor or an operation, not {entry!r}"
                )
            tensors[name] = None
        nodes = dict.fromkeys(name.rpartition(":")[0] or name for name in tensors)
        return cls(tuple(nodes), tuple(tensors))

    def outputs_of(self, graph_def: Any) -> list[str] | None:
        """These names where they are a GraphDef's outputs: one of them at least is a node that no other node reads.

        None otherwise, and for no graph.

        Raises:
            InvalidParameterError: they are, and one of them is no node of the graph.
        """
        if graph_def is None:
            return None
        present = {node.name for node in graph_def.node}
        read = {name.lstrip("^").partition(":")[0] for node in graph_def.node for name in node.input}
        if not any(name in present and name not in read for name in self.nodes):
            return None
        for name in self.nodes:
            if name not in present:
                near = difflib.get_close_matches(name, sorted(present), 1)
                hint = f"did you mean {near[0]!r}?" if near else "take it out of the list"
                raise InvalidParameterError(
                    f"nodes_denylist names the outputs, and {name!r} is no node of the graph: {hint}"
                )
        return list(self.tensors)


def graph_of(source: Any) -> Any | None:
    """The GraphDef in a source: itself, that of a tf.Graph, or that in a .pb or .pbtxt file; None for anything else.

    A file that is not there, or a path that is none, is left to whoever loads it.

    Raises:
        SourceError: the file holds no GraphDef, or cannot be read.
        MissingDependencyError: TensorFlow, which reads it, is not installed.
    """
    if is_graph(source):
        return source.as_graph_def() if hasattr(source, "as_graph_def") else source
    if not isinstance(source, (str, os.PathLike)) or not is_graph_file(Path(source)):
        return None
    try:
        there = Path(source).is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        return None
    import_tensorflow()
    return parse(Path(source))


def node_pattern(name: str) -> NodePattern:
    """The regular expression for the ONNX nodes that a TensorFlow node of `nodes_denylist` has become.

    The export names them after it, with "__12" behind the name where it has become several.
    """
    return NodePattern(rf"^{re.escape(_CALLS.sub('', name))}(?:__\d+)?$", "nodes_denylist", name)


def saved_model_tensors(
    directory: Path, tags: tuple[str, ...] | None, key: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Tensor names of a SavedModel's signature -> its public names: (inputs, outputs).

    Two empty dicts where the folder has no such file or signature; whoever loads it complains.
    """
    path = directory / "saved_model.pb"
    if not path.is_file():
        return {}, {}
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for graph in model.meta_graphs:
        if tags is not None and set(tags) != set(graph.meta_info_def.tags):
            continue
        if key in graph.signature_def:
            signature = graph.signature_def[key]
            return (
                {info.name: public for public, info in signature.inputs.items()},
                {info.name: public for public, info in signature.outputs.items()},
            )
    return {}, {}
