"""How TF-TRT 1.13 to 2.17 spelled what it left in a graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: Nodes that stand for a segment; TRTCalibOp was the one that collected ranges before TensorFlow 1.13.
ENGINE_OPS = frozenset({"TRTEngineOp", "TRTCalibOp"})
#: Nodes that keep serialized engines and calibration tables alive; none of them computes anything of the model.
RESOURCE_OPS = frozenset(
    {
        "CreateTRTResourceHandle",
        "InitializeTRTResource",
        "SerializeTRTResource",
        # TensorFlow 1.14 to 2.0
        "CreateTRTEngineCacheHandle",
        "CreateTRTEngineCache",
        "InitializeTRTEngineOp",
        "PopulateTRTEngineCache",
        "SerializeTRTEngineOp",
        "DumpTRTEngineCache",
        "GetCalibrationDataOp",
        "GetSerializedResourceOp",
    }
)
TRT_OPS = ENGINE_OPS | RESOURCE_OPS
#: One of these is in the name of every such op: few words, for a file may have two billion bytes to look through.
MARKS = ("TRTEngine", "TRTResource", "TRTCalibOp", "GetCalibrationDataOp", "GetSerializedResourceOp")
#: What the functions with native segments are called: `<engine>_native_segment`.
SEGMENT_SUFFIX = "_native_segment"
#: Attribute of the root object that keeps the engines.
RESOURCES_CHILD = "trt_engine_resources"
#: What the files with serialized engines are called: `trt-serialized-engine.<engine>`.
ENGINE_FILE_PREFIX = "trt-serialized-engine."
#: Names of the inputs and outputs of a segment's own graph, before and since TensorFlow 1.12.
INPUT_PREFIXES = ("TensorRTInputPH_", "InputPH_")
OUTPUT_PREFIXES = ("TensorRTOutputPH_", "OutputPH_")


def canonical(name: str) -> str:
    """The name of an engine without the scopes around it; TF-TRT keyed its caches and files by it."""
    return name.rsplit("/", maxsplit=1)[-1]


def text(attributes: Any, name: str) -> str:
    """A string attribute; "" where it is not there."""
    return bytes(attributes[name].s).decode("utf-8", "replace") if name in attributes else ""


def called_functions(node: Any) -> list[str]:
    """Names of the functions that a node calls, by its attributes of whatever name."""
    names = []
    for value in node.attr.values():
        if value.HasField("func"):
            names.append(value.func.name)
        elif value.HasField("list"):
            names += [function.name for function in value.list.func]
    return names


def every_node(graph_def: Any) -> Iterator[Any]:
    """The nodes of a GraphDef and of its functions."""
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def
