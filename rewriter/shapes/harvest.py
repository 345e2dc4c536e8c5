"""Shapes at segment boundaries, seen by running the native model on sample inputs.

Rules:
    1. Inputs of the model are read off the samples; nothing runs for them.
    2. Any other value of the main graph gets a `Shape` node, whose result is fetched (with the values themselves where
       they are few integers, for they may be shapes).
    3. Values inside the bodies of If, Loop and Scan cannot be fetched; their shapes are read from ONNX Runtime's own
       record of the nodes that it ran. Their elements are not in it.
    4. Only the nodes that lead to what is fetched or recorded run: for a model that is one segment, none. What is
       lost is that a sample on which a *later* node fails is not told here (the call of the converted function tells
       it); samples are always checked against the signature, and a sample on which a needed node fails is an error
       that names it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from passes.graph.value_types import collect_infos, spec_of
from passes.graph_index import GraphIndex, find_graph
from passes.model import Model, stubs_as_inputs
from passes.segments import Segment, Segmentation, TensorSpec
from rewriter.errors import ConversionError, InputError, SourceError
from rewriter.runtime.inputs import first_line
from rewriter.runtime.native import Session, open_native
from rewriter.temporary import TemporaryFolder

logger = logging.getLogger(__name__)

#: Integer tensors of rank 0 or 1 with at most so many elements are kept with their values.
MAX_VALUES = 64
_VALUE_DTYPES = (TensorProto.INT32, TensorProto.INT64)


@dataclasses.dataclass(frozen=True)
class Observed:
    """One tensor as it was seen.

    Attributes:
        shape: its dims.
        values: its elements, flattened, for small integer tensors of rank 0 or 1 in the main graph; else None.
    """

    shape: tuple[int, ...]
    values: tuple[int, ...] | None = None


#: One run in ONNX Runtime's record: node name -> per execution the shapes of the node's inputs.
_Trace = Mapping[str, list[list[tuple[int, ...]]]]
#: What one execution of a segment read: ONNX input name -> tensor.
InputSet = Mapping[str, Observed]


@dataclasses.dataclass(frozen=True)
class SegmentObservations:
    """What the executions of one segment read.

    Attributes:
        sets: the different input sets, in order of first appearance.
        counts: how often each was seen.
        reason: why nothing was seen ("" when something was).
        optimum: which set was seen with the sample that the engines are to be tuned for; None where none was named.
    """

    sets: tuple[InputSet, ...] = ()
    counts: tuple[int, ...] = ()
    reason: str = ""
    optimum: int | None = None


@dataclasses.dataclass(frozen=True)
class Observations:
    """Segment name -> observations, over `samples` runs of the model."""

    segments: Mapping[str, SegmentObservations]
    samples: int


def harvest(
    model: Model,
    segmentation: Segmentation,
    inputs: Iterable[Mapping[str, np.ndarray]],
    optima: Container[int] = (),
) -> Observations:
    """Notes what every segment reads on each sample; runs the part of the native model that is needed for that.

    Args:
        model: the cleaned model that `segmentation` cuts, not yet spliced.
        segmentation: the segments.
        inputs: feeds by ONNX input name, one mapping a sample.
        optima: numbers of the samples that engines are to be tuned for, of which the last counts; asked for a sample
            after `inputs` has given it.

    Raises:
        InputError: there is no sample.
        ConversionError: a node that is needed fails on a sample; the message says on which.
        SourceError: ONNX Runtime refuses the model.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    probe = _Probe(model, segmentation.segments)
    found: dict[str, _Tally] = {s.name: _Tally() for s in segmentation.segments}
    samples = 0
    for sets in probe.run(inputs):
        named: set[str] = set()
        for name, seen in sets:
            # Of a segment that ran several times in the optimal sample, the first execution counts.
            found[name].add(seen, optimum=samples in optima and name not in named)
            named.add(name)
        samples += 1
    if not samples:
        raise InputError("input_fn yielded nothing: shapes are learnt from at least one sample input")
    return Observations({s.name: found[s.name].summary(probe.blind.get(s.name, "")) for s in probe.segments}, samples)


class _Tally:
    """The different input sets of one segment, with how often each was seen."""

    def __init__(self) -> None:
        self._sets: dict[tuple[Any, ...], InputSet] = {}
        self._counts: Counter[tuple[Any, ...]] = Counter()
        self._optimum: tuple[Any, ...] | None = None

    def add(self, seen: InputSet, *, optimum: bool) -> None:
        key = tuple(sorted((tensor, item.shape, item.values) for tensor, item in seen.items()))
        self._sets.setdefault(key, seen)
        self._counts[key] += 1
        if optimum:
            self._optimum = key

    def summary(self, blind: str) -> SegmentObservations:
        if blind or not self._sets:
            return SegmentObservations(reason=blind or "its branch or loop body was not entered by any sample input")
        keys = list(self._sets)
        return SegmentObservations(
            tuple(self._sets.values()),
            tuple(self._counts[key] for key in keys),
            optimum=None if self._optimum is None else keys.index(self._optimum),
        )


@dataclasses.dataclass(frozen=True)
class _Fetch:
    """Extra graph outputs for one main-graph value; `values` is "" where the elements are not wanted."""

    shape: str
    values: str


class _Probe:
    """One session that tells what the segments read.

    Attributes:
        segments: all segments.
        blind: segment name -> why it cannot be watched.
    """

    def __init__(self, model: Model, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.blind: dict[str, str] = {}
        self._infos = collect_infos(model.proto)
        self._main = {i.name for i in model.proto.graph.input}
        self._main.update(name for node in model.proto.graph.node for name in node.output)
        self._witnesses: dict[str, dict[str, tuple[str, int, int]]] = {}
        for segment in segments:
            if segment.scope:
                self._find_witnesses(model, segment)
        free = {i.name for i in model.proto.graph.input} - {t.name for t in model.proto.graph.initializer}
        wanted = {name for s in segments for name in s.inputs if name in self._main and s.name not in self.blind}
        #: What the samples themselves tell: no node needs to run for it.
        self._given = sorted(wanted & free)
        self._traced = {s.scope[0].rpartition("/")[0] for s in segments if s.scope and s.name not in self.blind}
        self._fetches: dict[str, _Fetch] = {}
        self._model = self._extend(model, sorted(wanted - free))

    def run(self, inputs: Iterable[Mapping[str, np.ndarray]]) -> Iterator[list[tuple[str, InputSet]]]:
        """Per sample the (segment name, input set) of every execution of a segment."""
        if not self._fetches and not self._traced:
            for feeds in inputs:
                yield self._found(self._read(feeds), {})
            return
        names = [name for fetch in self._fetches.values() for name in (fetch.shape, fetch.values) if name]
        with TemporaryFolder("trt-rewriter-") as folder:
            # As inputs the weights are read where they lie; of initializers ONNX Runtime would make a copy.
            session = self._session(names, folder / "trace" if self._traced else None)
            seen = [
                {**self._read(feeds), **self._decode(_run(session, number, feeds, self._model.weights))}
                for number, feeds in enumerate(inputs)
            ]
            traces: list[_Trace] | None = [{} for _ in seen]
            if self._traced:
                traces = _read_trace(session.end_profiling(), len(seen))
        if traces is None:
            reason = "its loop ran too long for ONNX Runtime's record of shapes: give fewer or shorter sample inputs"
            self.blind.update((s.name, reason) for s in self.segments if s.scope)
        for values, trace in zip(seen, traces or [{} for _ in seen], strict=True):
            yield self._found(values, trace)

    def _found(self, values: Mapping[str, Observed], trace: _Trace) -> list[tuple[str, InputSet]]:
        return [(segment.name, seen) for segment in self.segments for seen in self._sets(segment, values, trace)]

    def _session(self, outputs: Sequence[str], trace: Path | None) -> Session:
        try:
            return open_native(
                Model(stubs_as_inputs(self._model)),
                outputs or None,
                optimize=trace is None,  # fused nodes would be missing in the record
                profile=trace,
            )
        except ConversionError:
            raise
        except Exception as error:
            raise SourceError(f"ONNX Runtime refuses the model: {first_line(error)}") from error

    def _sets(self, segment: Segment, values: Mapping[str, Observed], trace: _Trace) -> Iterator[InputSet]:
        """The input sets of one segment in one run of the model."""
        if segment.name in self.blind:
            return
        if not segment.scope:
            yield {name: values[name] for name in segment.inputs}
            return
        witnesses = self._witnesses[segment.name]
        # Each node of a segment runs once per execution of the segment, so the n-th records belong together.
        for number in range(len(trace.get(segment.nodes[0], ()))):
            seen = {}
            for name in segment.inputs:
                if name in self._main:
                    seen[name] = values[name]
                    continue
                node, index, arity = witnesses[name]
                shapes = trace[node][number]
                if len(shapes) != arity:
                    self.blind[segment.name] = f"ONNX Runtime's record of {node!r} does not show all of its inputs"
                    return
                seen[name] = Observed(shapes[index])
            yield seen

    def _find_witnesses(self, model: Model, segment: Segment) -> None:
        """For each value that cannot be fetched: a node of the segment that reads it, and at which place."""
        inside = set(segment.nodes)
        nodes = [node for node in find_graph(model.proto, segment.scope).node if node.name in inside]
        places: dict[str, tuple[str, int, int]] = {}
        for node in nodes:
            read = [name for name in node.input if name]
            for index, name in enumerate(read):
                places.setdefault(name, (node.name, index, len(read)))
        hidden = [name for name in segment.inputs if name not in self._main and name not in places]
        if hidden:
            self.blind[segment.name] = f"the shape of {hidden[0]!r} inside {segment.scope[-1]!r} cannot be observed"
        # A segment that reads main-graph values only still needs its number of executions.
        self._witnesses[segment.name] = places

    def _extend(self, model: Model, wanted: Sequence[str]) -> Model:
        """The part of the model that leads to the wanted values and traced nodes, with fetches as its outputs."""
        proto, weights = self._needed(model, wanted)
        graph = proto.graph
        taken = {name for node in model.proto.graph.node for name in (node.name, *node.output)} | set(self._infos)
        for value in wanted:
            fetch = _Fetch(_fresh("shape", taken), _fresh("values", taken) if self._may_be_shape(value) else "")
            self._fetches[value] = fetch
            graph.node.append(_node("Shape", value, fetch.shape))
            graph.output.append(helper.make_tensor_value_info(fetch.shape, TensorProto.INT64, [None]))
            if fetch.values:
                graph.node.append(_node("Identity", value, fetch.values))
                output = ValueInfoProto()
                output.CopyFrom(self._infos[value])
                output.name = fetch.values
                graph.output.append(output)
        return Model(proto, weights)

    def _needed(self, model: Model, wanted: Sequence[str]) -> tuple[ModelProto, dict[str, np.ndarray]]:
        """A copy of the model without the nodes, weights and outputs that nothing wanted depends on."""
        proto = model.copy_proto()
        graph = proto.graph
        index = GraphIndex.of(model.proto.graph)
        stack = [index.producer[value] for value in wanted if value in index.producer]
        stack += index.positions(self._traced)
        kept: set[int] = set()
        while stack:
            number = stack.pop()
            if number not in kept:
                kept.add(number)
                stack.extend(index.preds[number])
        read = {name for number in kept for name in index.reads[number]} | set(wanted)
        made = {name for number in kept for name in index.makes[number] if name}
        del graph.node[:]
        graph.node.extend(index.nodes[number] for number in sorted(kept))
        tensors = [t for t in graph.initializer if t.name in read]
        del graph.initializer[:]
        graph.initializer.extend(tensors)
        # Of what was an output of the model the type is still needed where an island makes it.
        infos = [info for info in (*graph.value_info, *graph.output) if info.name in made]
        del graph.value_info[:]
        graph.value_info.extend(infos)
        del graph.output[:]
        # A graph needs an output, also when all that is wanted is the record of a loop.
        ends = [name for number in index.positions(self._traced) for name in index.makes[number] if name in self._infos]
        graph.output.extend(self._infos[name] for name in ends)
        return proto, {name: array for name, array in model.weights.items() if name in read}

    def _read(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Observed]:
        """The model's inputs that segments read, as one sample gives them."""
        return {
            name: _observed(np.shape(feeds[name]), feeds[name] if self._may_be_shape(name) else None)
            for name in self._given
        }

    def _may_be_shape(self, value: str) -> bool:
        info = self._infos.get(value)
        spec = spec_of(info) if info is not None else TensorSpec(value, 0, None)
        return spec.dtype in _VALUE_DTYPES and (spec.shape is None or len(spec.shape) <= 1)

    def _decode(self, results: Mapping[str, np.ndarray]) -> dict[str, Observed]:
        seen = {}
        for value, fetch in self._fetches.items():
            shape = tuple(int(size) for size in results[fetch.shape])
            seen[value] = _observed(shape, results[fetch.values] if fetch.values else None)
        return seen


def _observed(shape: Sequence[int], values: np.ndarray | None) -> Observed:
    """A tensor's shape, with its elements where they are wanted and few."""
    few = values is not None and values.ndim <= 1 and values.size <= MAX_VALUES
    return Observed(tuple(shape), tuple(int(v) for v in values.reshape(-1)) if few and values is not None else None)


def _fresh(purpose: str, taken: set[str]) -> str:
    """A name that nothing in the model has."""
    number = len(taken)
    while (name := f"trt_rewriter_{purpose}_{number}") in taken:
        number += 1
    taken.add(name)
    return name


def _node(op_type: str, value: str, output: str) -> NodeProto:
    return helper.make_node(op_type, [value], [output], name=output)


def _run(
    session: Session, number: int, feeds: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    try:
        return session.run({**weights, **feeds})
    except Exception as error:
        shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in feeds.items())
        raise ConversionError(
            f"sample {number}: the native model fails on the inputs {shapes}: {first_line(error)}"
        ) from error


def _read_trace(path: Path, runs: int) -> list[_Trace] | None:
    """The traces of so many runs, from ONNX Runtime's record; None when it does not hold them all.

    The record ends after a million events, that is nodes run.
    """
    traces: list[_Trace] = []
    current: dict[str, list[list[tuple[int, ...]]]] = {}
    suffix = "_kernel_time"
    for event in json.loads(path.read_text("utf-8")):
        name, args = event.get("name", ""), event.get("args", {})
        if event.get("cat") == "Session" and name == "model_run":
            traces.append(current)
            current = {}
        elif name.endswith(suffix) and "input_type_shape" in args:
            shapes = [tuple(int(d) for d in dims) for item in args["input_type_shape"] for dims in item.values()]
            current.setdefault(name.removesuffix(suffix), []).append(shapes)
    return traces if len(traces) == runs else None
