"""The object graph of a TF2 SavedModel without the objects that keep engines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from rewriter.errors import SourceError
from rewriter.rescuing.spellings import RESOURCES_CHILD


def strip_objects(meta_graph: Any, functions: Iterable[str], assets: Mapping[int, int], source: str) -> tuple[str, ...]:
    """Takes the objects of engines out of a MetaGraphDef's object graph, in place.

    Rules: 1. An object goes when it is a function of which nothing is left, an engine file, a resource with a function
    that goes, or the child `trt_engine_resources` of another. 2. Other objects are known by their place, so one that
    goes becomes an empty object without children, and no edge leads there. 3. Concrete functions that are gone are
    listed no more. 4. Assets that stay have new places.

    Args:
        meta_graph: changed in place.
        functions: names of the functions that are gone from the library.
        assets: old place of every asset that stays -> its new one.
        source: the model, for messages.

    Returns:
        What went, by path from the root, of each the shortest, sorted.

    Raises:
        SourceError: a place is named that is not there (a damaged file), or a function that stays captures what goes.
    """
    graph = meta_graph.object_graph_def
    if not graph.nodes:
        return ()
    _check_places(graph, source)
    paths = _paths(graph)
    gone_functions = set(functions)
    gone = _doomed(graph, gone_functions, assets)
    for name in [name for name in graph.concrete_functions if name in gone_functions]:
        del graph.concrete_functions[name]
    for name, function in graph.concrete_functions.items():
        if captured := [place for place in function.bound_inputs if place in gone]:
            raise SourceError(
                f"function {name} of {source} captures {paths.get(captured[0], captured[0])}, which belongs to "
                "TF-TRT's engine resources: TF-TRT wrote no such file, take the model from before the conversion"
            )
    for place, item in enumerate(graph.nodes):
        if place in gone:
            _blank(item)
        else:
            _forget(item, gone, assets)
    return tuple(sorted(paths.get(place, f"object {place}") for place in gone))


def _doomed(graph: Any, functions: Set[str], assets: Mapping[int, int]) -> set[int]:
    """Rule 1."""
    gone: set[int] = set()
    for place, item in enumerate(graph.nodes):
        kind = item.WhichOneof("kind")
        if kind == "function":
            names = list(item.function.concrete_functions)
            kept = [name for name in names if name not in functions]
            if len(kept) < len(names):
                item.function.concrete_functions[:] = kept
                gone.update([place] if not kept else [])
        elif (
            (kind == "bare_concrete_function" and item.bare_concrete_function.concrete_function_name in functions)
            or (kind == "captured_tensor" and item.captured_tensor.concrete_function in functions)
            or (kind == "asset" and item.asset.asset_file_def_index not in assets)
        ):
            gone.add(place)
    for place, item in enumerate(graph.nodes):
        if item.WhichOneof("kind") == "resource" and any(child.node_id in gone for child in item.children):
            gone.add(place)
        gone.update(child.node_id for child in item.children if child.local_name == RESOURCES_CHILD)
    return gone


def _blank(item: Any) -> None:
    """An object that holds nothing, as TensorFlow writes one."""
    item.Clear()
    item.user_object.identifier = "_generic_user_object"
    item.user_object.version.producer = 1
    item.user_object.version.min_consumer = 1


def _forget(item: Any, gone: Set[int], assets: Mapping[int, int]) -> None:
    """Rules 2 and 4 for an object that stays."""
    for edges in (item.children, item.dependencies):
        for index in reversed([i for i, edge in enumerate(edges) if edge.node_id in gone]):
            del edges[index]
    for name in [n for n, s in item.saveable_objects.items() if {s.save_function, s.restore_function} & gone]:
        del item.saveable_objects[name]
    if item.WhichOneof("kind") == "asset":
        item.asset.asset_file_def_index = assets[item.asset.asset_file_def_index]


def _check_places(graph: Any, source: str) -> None:
    """Refuses edges to objects that are not there."""
    number = len(graph.nodes)
    for place, item in enumerate(graph.nodes):
        for edge in [*item.children, *item.dependencies]:
            if not 0 <= edge.node_id < number:
                raise SourceError(
                    f"{source} is damaged: object {place} has a child {edge.local_name!r} at place {edge.node_id}, and "
                    f"there are {number} objects: copy or export it again"
                )


def _paths(graph: Any) -> dict[int, str]:
    """Place -> the shortest path from the root, over names of children."""
    paths = {0: ""}
    queue = [0]
    for place in queue:
        for child in graph.nodes[place].children:
            if child.node_id not in paths:
                paths[child.node_id] = f"{paths[place]}/{child.local_name}".lstrip("/")
                queue.append(child.node_id)
    return paths
