"""May a native island be recorded in a CUDA graph?

A recorded copy between CPU and device memory repeats the *address*, and a recorded computation on the CPU is not
repeated at all: a graph with either gives old results without an error. So an island is recorded only when what ONNX
Runtime computes on the CPU are shapes, and nothing but shapes crosses between the two.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import NodeProto

from passes.graph.shape_sources import SHAPE_PLACES
from passes.graph.walk import has_bodies
from passes.model import Model

#: Operator -> places of inputs, beside those for shapes, that ONNX Runtime's CUDA kernels read in CPU memory.
_CPU_PLACES: Mapping[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "Dropout": (1, 2),
    "OneHot": (2,),
    "Pad": (2,),
    "Resize": (1, 2),
    "Upsample": (1,),
}
#: Operators that give other results each time: a graph would repeat the first ones.
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def capture_hazard(model: Model, host_nodes: Collection[str] | None, constants: Collection[str]) -> str:
    """Why an island must not be recorded; "" when it may.

    Args:
        model: the island.
        host_nodes: names of the nodes that ONNX Runtime put on the CPU; None when it does not tell.
        constants: names of inputs and outputs whose elements the shapes of the model's inputs decide; outputs among
            them are not asked for when the island is recorded.
    """
    if host_nodes is None:
        return "this version of ONNX Runtime does not tell which nodes run on the CPU"
    graph = model.proto.graph
    on_cpu = set(host_nodes)
    unknown = on_cpu - {node.name for node in graph.node}
    if unknown:
        return f"ONNX Runtime runs {min(unknown)!r} on the CPU"
    known = {t.name for t in graph.initializer} | set(constants)
    made_on_cpu = {name for node in graph.node if node.name in on_cpu for name in node.output if name}
    for node in graph.node:
        hazard = _hazard(node, node.name in on_cpu, made_on_cpu, known)
        if hazard:
            return hazard
    for value in graph.output:
        if value.name in made_on_cpu and value.name not in constants:
            return f"the output {value.name!r} is made on the CPU"
    return ""


def _hazard(node: NodeProto, on_cpu: bool, made_on_cpu: Collection[str], known: Collection[str]) -> str:
    if has_bodies(node):
        return f"{node.op_type} {node.name!r} decides while it runs what is computed"
    if node.op_type in _RANDOM:
        return f"{node.op_type} {node.name!r} gives other results each time"
    shapes = SHAPE_PLACES.get(node.op_type, ())
    places = (*shapes, *_CPU_PLACES.get(node.op_type, ()))
    for place, name in enumerate(node.input):
        if not name or name in known:
            continue
        if on_cpu:
            if name not in made_on_cpu and node.op_type not in ("Shape", "Size"):
                return f"{node.op_type} {node.name!r} runs on the CPU on data of the device"
        elif place in places:
            if name not in made_on_cpu:
                return f"{node.op_type} {node.name!r} reads {name!r} in CPU memory"
        elif name in made_on_cpu:
            return f"{node.op_type} {node.name!r} reads {name!r}, which is made on the CPU"
    return ""
