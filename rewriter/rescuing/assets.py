"""The files with serialized engines, and every place that lists them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rewriter.rescuing.spellings import ENGINE_FILE_PREFIX

#: Collection of AssetFileDefs, as TF1's SavedModels keep it beside the field.
_COLLECTION = "saved_model_assets"
#: The child under which an engine resource keeps its file.
_FILE_CHILD = "_serialized_trt_resource_filename"


@dataclasses.dataclass(frozen=True)
class EngineAssets:
    """The assets of a MetaGraphDef that are serialized engines.

    Attributes:
        indices: their places in `asset_file_def`.
        files: names within the assets folder.
        tensors: names of the tensors that hold their paths.
    """

    indices: tuple[int, ...]
    files: tuple[str, ...]
    tensors: tuple[str, ...]


def engine_assets(meta_graph: Any) -> EngineAssets:
    """The assets that are serialized engines: by their file name, or because an engine resource keeps them."""
    objects = meta_graph.object_graph_def.nodes
    kept_by_engines = {
        objects[child.node_id].asset.asset_file_def_index
        for owner in objects
        for child in owner.children
        if child.local_name == _FILE_CHILD
        and child.node_id < len(objects)
        and objects[child.node_id].WhichOneof("kind") == "asset"
    }
    found = [
        (index, asset)
        for index, asset in enumerate(meta_graph.asset_file_def)
        if index in kept_by_engines or asset.filename.rpartition("/")[2].startswith(ENGINE_FILE_PREFIX)
    ]
    return EngineAssets(
        tuple(index for index, _ in found),
        tuple(asset.filename for _, asset in found),
        tuple(asset.tensor_info.name for _, asset in found),
    )


def strip_assets(meta_graph: Any, engines: EngineAssets) -> Mapping[int, int]:
    """Takes the engine files out of a MetaGraphDef, in place.

    Returns:
        Old index of every asset that stays -> its new one.
    """
    if not engines.indices:
        return {index: index for index in range(len(meta_graph.asset_file_def))}
    stay = [index for index in range(len(meta_graph.asset_file_def)) if index not in engines.indices]
    for index in reversed(engines.indices):
        del meta_graph.asset_file_def[index]
    if _COLLECTION in meta_graph.collection_def:
        _strip_collection(meta_graph, set(engines.files))
    return {old: new for new, old in enumerate(stay)}


def _strip_collection(meta_graph: Any, files: set[str]) -> None:
    from tensorflow.core.protobuf import meta_graph_pb2

    values = meta_graph.collection_def[_COLLECTION].any_list.value
    for index in reversed(range(len(values))):
        asset = meta_graph_pb2.AssetFileDef()
        if values[index].Unpack(asset) and asset.filename in files:
            del values[index]
    if not values:
        del meta_graph.collection_def[_COLLECTION]
