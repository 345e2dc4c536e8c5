"""TensorFlow's names of nodes and tensors, as its users of TensorFlow 1 know them, in ours."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rewriter.errors import InvalidParameterError

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
    def of(cls, entries: Iterable[Any] | None) -> NodeNames:
        """Out of names, tensors and operations.

        Raises:
            InvalidParameterError: it is one string, or an entry is none of these.
        """
        if isinstance(entries, (str, bytes)):
            raise InvalidParameterError(f"node names must be a list, not the text {entries!r}")
        tensors: dict[str, None] = {}
        for entry in entries or ():
            name = getattr(entry, "name", entry)
            name = name.decode() if isinstance(name, bytes) else name
            if not isinstance(name, str) or not name:
                raise InvalidParameterError(f"a node is named by its name, a tensor or an operation, not {entry!r}")
            tensors[name] = None
        nodes = dict.fromkeys(name.rpartition(":")[0] or name for name in tensors)
        return cls(tuple(nodes), tuple(tensors))

    def outputs_of(self, graph_def: Any) -> list[str] | None:
        """These names where they are a GraphDef's outputs: one of them at least is a node that no other node reads.

        None otherwise, and for a file, whose outputs are then found out.
        """
        if not hasattr(graph_def, "node"):
            return None
        present = {node.name for node in graph_def.node}
        read = {name.lstrip("^").partition(":")[0] for node in graph_def.node for name in node.input}
        if not any(name in present and name not in read for name in self.nodes):
            return None
        return [name for name in self.tensors if (name.rpartition(":")[0] or name) in present]


def node_pattern(name: str) -> str:
    """The regular expression for the ONNX nodes that a TensorFlow node has become.

    The export names them after it, with "__12" behind the name where it has become several.
    """
    return rf"^{re.escape(_CALLS.sub('', name))}(?:__\d+)?$"


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
