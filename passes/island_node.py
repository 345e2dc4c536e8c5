"""The island node: a piece of the source graph that ONNX has no word for and that TensorFlow runs.

Such a node stands in the main graph only. Its inputs and outputs are tensors of any dtype, strings included; its
operator is `TFIsland_000`, `TFIsland_001` ... in topological order, in a domain of its own, so no ONNX runtime takes it
for anything else. What it computes is a SavedModel with one signature, in a folder beside the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from onnx import AttributeProto, ModelProto, NodeProto

from passes.base import PassError
from passes.model import Model

ISLAND_DOMAIN = "trt_rewriter.tensorflow"
ISLAND_DOMAIN_VERSION = 1
ISLAND_PREFIX = "TFIsland_"


@dataclasses.dataclass(frozen=True)
class IslandAttributes:
    """What an island node says of itself.

    In the node they are STRING and STRINGS attributes of these names; empty lists are left out.

    Attributes:
        saved_model: folder of the SavedModel. In memory an absolute path; in an artifact one relative to the model
            file, in POSIX spelling.
        input_names: keys of its signature "serving_default", one for each input of the node.
        output_names: keys of the signature's outputs, one for each output of the node.
        ops: TensorFlow operators in it, most frequent first, as "StringSplitV2" or "Add x3".
        reasons: why it stays in TensorFlow, a line each.
    """

    saved_model: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    ops: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


def make_island(
    name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], attributes: IslandAttributes
) -> NodeProto:
    """The node of an island; `name` is its operator and its node name.

    The model that it is put into must import `ISLAND_DOMAIN` in version `ISLAND_DOMAIN_VERSION`.
    """
    node = NodeProto(op_type=name, name=name, domain=ISLAND_DOMAIN, input=inputs, output=outputs)
    node.attribute.add(name="saved_model", type=AttributeProto.STRING, s=attributes.saved_model.encode())
    for field in ("input_names", "output_names", "ops", "reasons"):
        values = [text.encode() for text in getattr(attributes, field)]
        if values:
            node.attribute.add(name=field, type=AttributeProto.STRINGS, strings=values)
    return node


def read_island(node: NodeProto) -> IslandAttributes:
    """The attributes of an island node; unknown ones are ignored.

    Raises:
        PassError: the folder is missing, or the names do not go with the node's inputs and outputs.
    """
    texts = {a.name: a.s.decode("utf-8", "replace") for a in node.attribute if a.type == AttributeProto.STRING}
    lists = {
        a.name: tuple(s.decode("utf-8", "replace") for s in a.strings)
        for a in node.attribute
        if a.type == AttributeProto.STRINGS
    }
    found = IslandAttributes(
        texts.get("saved_model", ""),
        lists.get("input_names", ()),
        lists.get("output_names", ()),
        lists.get("ops", ()),
        lists.get("reasons", ()),
    )
    if not found.saved_model:
        raise PassError(f"island node {node.name!r} has lost its SavedModel: convert the model again")
    if len(found.input_names) != len(node.input) or len(found.output_names) != len(node.output):
        raise PassError(f"island node {node.name!r} has lost names of its inputs or outputs: convert the model again")
    return found


def is_island(node: NodeProto) -> bool:
    """True for an island node."""
    return str(node.domain) == ISLAND_DOMAIN


def island_nodes(proto: ModelProto) -> Iterator[NodeProto]:
    """The island nodes of a model, in graph order; they lie in the main graph only."""
    return (node for node in proto.graph.node if is_island(node))


def with_folders(model: Model, folders: Mapping[str, str]) -> Model:
    """The same model with other SavedModel folders.

    Args:
        model: stays as it is.
        folders: operator of an island node -> its folder; nodes that are not named keep theirs.
    """
    if not any(node.op_type in folders for node in island_nodes(model.proto)):
        return model
    proto = model.copy_proto()
    for node in island_nodes(proto):
        for attribute in node.attribute:
            if attribute.name == "saved_model" and node.op_type in folders:
                attribute.s = folders[node.op_type].encode()
    return Model(proto, model.weights)
