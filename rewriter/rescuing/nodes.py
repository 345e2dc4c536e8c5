"""Engine nodes become calls of the function that computes the same in TensorFlow."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Container, Iterable, Mapping, Set
from typing import Any

from rewriter.errors import SourceError
from rewriter.rescuing.recorded import EngineRecord, read_engine
from rewriter.rescuing.segments import check_signature, graph_to_function, segment_graph
from rewriter.rescuing.spellings import ENGINE_OPS, SEGMENT_SUFFIX, called_functions, canonical, every_node, text

#: Private attributes of an engine node that hold for the call in its place too.
_KEPT = ("_output_shapes", "_class")


@dataclasses.dataclass(frozen=True)
class Replaced:
    """What became of the engine nodes.

    Attributes:
        engines: one record each, main graph first.
        rebuilt: names of those whose segment came out of the node itself.
    """

    engines: tuple[EngineRecord, ...]
    rebuilt: tuple[str, ...]


def replace_engines(graph_def: Any, source: str) -> Replaced:
    """Replaces every engine node of a GraphDef and of its function library, in place.

    Rules: 1. An engine node becomes a PartitionedCall, or a StatefulPartitionedCall where its segment has state
    (reads variables), with the same name, inputs and dtypes. 2. The segment is the function that `segment_func` or
    `segment_funcdef_name` names; where neither is there, the one called after the engine; where that is not in the
    library, the graph in `serialized_segment`. 3. In function bodies, results are called by the name that the op gives
    them: "engine:out_tensor:0" becomes "engine:output:0". 4. Engines and segments are no longer bound to a GPU. 5. The
    names of segments get a hash of their content: TF-TRT called them alike in every model, and TensorFlow keeps one
    library for all graphs of a process.

    Args:
        graph_def: changed in place.
        source: the model, for messages.

    Raises:
        SourceError: a native segment is not in the file, or does not fit its engine; the message names the engine.
    """
    library = {function.signature.name: function for function in graph_def.library.function}
    work = _Work(graph_def, library, source)
    work.replace(graph_def.node, "")
    for function in list(graph_def.library.function):
        names = work.replace(function.node_def, function.signature.name)
        if names:
            _rename_results(function, names)
    renamed = _rename_segments(graph_def, {engine.segment for engine in work.engines})
    engines = (dataclasses.replace(engine, segment=renamed[engine.segment]) for engine in work.engines)
    return Replaced(tuple(engines), tuple(work.rebuilt))


@dataclasses.dataclass
class _Work:
    """State of one `replace_engines`."""

    graph_def: Any
    library: dict[str, Any]
    source: str
    engines: list[EngineRecord] = dataclasses.field(default_factory=list)
    rebuilt: list[str] = dataclasses.field(default_factory=list)

    def replace(self, nodes: Iterable[Any], place: str) -> set[str]:
        """Replaces the engines among these nodes; returns their names."""
        found = [node for node in nodes if node.op in ENGINE_OPS]
        for node in found:
            function, graph = self.segment(node, place)
            check_signature(function, node, self.where(node, place))
            name = function.signature.name
            self.engines.append(read_engine(node, place, name, len(function.node_def), graph is not None))
            for inner in function.node_def:
                if "GPU" in inner.device.upper():
                    inner.device = ""
            _call(node, function, _has_state(function, self.library))
        return {node.name for node in found}

    def where(self, node: Any, place: str) -> str:
        return f"{node.op} {node.name}" + (f" in function {place}" if place else "") + f" of {self.source}"

    def segment(self, node: Any, place: str) -> tuple[Any, Any | None]:
        """The function that the engine stands for, and the graph in the node where there is one.

        There is neither where TF-TRT's experimental feature remove_native_segments took the functions out, or one of
        TF1's tools that drop the function library.

        Raises:
            SourceError: there is neither.
        """
        graph = segment_graph(node)
        recorded = [node.attr["segment_func"].func.name if "segment_func" in node.attr else ""]
        recorded.append(text(node.attr, "segment_funcdef_name"))
        names = [name for name in recorded if name]
        called = list(dict.fromkeys((node.name + SEGMENT_SUFFIX, canonical(node.name) + SEGMENT_SUFFIX)))
        for name in names or called:
            if name in self.library:
                return self.library[name], graph
        if graph is None:
            raise SourceError(
                f"{self.where(node, place)} has lost its native segment ({(names or called)[0]}), and nothing else "
                "tells what it computes: take the model from before TF-TRT"
            )
        name = _unique((names or called)[0], self.library)
        function = graph_to_function(graph, name, node.name)
        self.graph_def.library.function.append(function)
        self.library[name] = self.graph_def.library.function[-1]
        self.rebuilt.append(node.name)
        return self.library[name], graph


def _call(node: Any, function: Any, has_state: bool) -> None:
    """Turns an engine node into a call of `function`, in place."""
    kept = {name: node.attr[name] for name in _KEPT if name in node.attr}
    inputs, outputs = list(node.attr["InT"].list.type), list(node.attr["OutT"].list.type)
    fresh = type(node)(name=node.name, op="StatefulPartitionedCall" if has_state else "PartitionedCall")
    fresh.input.extend(node.input)
    for name, value in kept.items():
        fresh.attr[name].CopyFrom(value)
    fresh.attr["Tin"].list.type.extend(inputs)
    # A list attribute that is empty must be there all the same.
    fresh.attr["Tin"].list.SetInParent()
    fresh.attr["Tout"].list.type.extend(outputs)
    fresh.attr["f"].func.name = function.signature.name
    for name in ("config", "config_proto", "executor_type"):
        fresh.attr[name].s = b""
    node.CopyFrom(fresh)


def _has_state(function: Any, library: Mapping[str, Any], above: tuple[str, ...] = ()) -> bool:
    """Whether a function says that it has state, or one of its nodes does by the definition of its op."""
    from tensorflow.python.framework import op_def_registry

    if function.signature.is_stateful:
        return True
    above = (*above, function.signature.name)
    for node in function.node_def:
        definition = op_def_registry.get(node.op)
        if definition is not None and definition.is_stateful:
            return True
        for name in {node.op, *called_functions(node)} & set(library) - set(above):
            if _has_state(library[name], library, above):
                return True
    return False


def _rename_results(function: Any, engines: set[str]) -> None:
    """Rule 3, in the inputs of nodes and in what the function returns."""

    def renamed(reference: str) -> str:
        name, _, rest = reference.partition(":")
        if name in engines and rest.startswith("out_tensor:"):
            return f"{name}:output:{rest.removeprefix('out_tensor:')}"
        return reference

    for node in function.node_def:
        node.input[:] = [renamed(reference) for reference in node.input]
    for key, reference in list(function.ret.items()):  # writing reorders protobuf's map
        function.ret[key] = renamed(reference)


def _rename_segments(graph_def: Any, segments: Set[str]) -> dict[str, str]:
    """Rule 5; returns old name -> new name."""
    taken = {function.signature.name for function in graph_def.library.function}
    renamed = {}
    for function in graph_def.library.function:
        name = function.signature.name
        if name in segments:
            digest = hashlib.sha256(function.SerializeToString(deterministic=True)).hexdigest()[:12]
            renamed[name] = _unique(f"{name}_{digest}", taken)
            function.signature.name = renamed[name]
    for node in every_node(graph_def):
        for value in node.attr.values():
            functions = [value.func] if value.HasField("func") else list(value.list.func)
            for function in functions:
                function.name = renamed.get(function.name, function.name)
    return renamed


def _unique(wanted: str, taken: Container[str]) -> str:
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name
