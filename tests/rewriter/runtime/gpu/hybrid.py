"""Spliced models with engine files of the double, and the hybrid executor over them."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx

from passes.canonicalize import Canonicalize
from passes.engine_node import EngineAttributes
from passes.extract import Extractor
from passes.graph_index import iter_scopes
from passes.infer_shapes import InferShapes
from passes.model import from_proto
from passes.partition import PartitionOptions, propose
from passes.splice import splice
from passes.support import SupportMap, Verdict
from rewriter.artifact.manifest import EngineEntry
from rewriter.backends.base import InputProfile
from rewriter.runtime.gpu.island import Island
from rewriter.runtime.gpu.opening import Opener, assemble
from rewriter.runtime.gpu.values import DeviceValue
from rewriter.runtime.native import NativeSession
from rewriter.runtime.options import RuntimeOptions
from rewriter.runtime.slots import StoredEngine

#: Two engines around a native Sin; N is dynamic.
SANDWICH = """
g (float[N, 4] x) => (float[N, 4] y) {
    a = Mul(x, x)
    b = Add(a, x)
    s = Sin(b)
    c = Mul(s, s)
    y = Add(c, x)
}
"""


def parse(text, opset=17):
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    model = Canonicalize().run(from_proto(proto)).model
    return InferShapes().run(model).model


@dataclasses.dataclass
class Case:
    """A spliced model and its engines."""

    model: object
    segments: tuple
    engines: list
    outputs: tuple

    def native(self, feeds):
        """What the whole model gives in one session on the CPU."""
        return NativeSession(self.model, self.outputs).run(feeds)


def make_case(text, folder, fake_trt, native_ops, ranges=None, per_op=None, opset=17, **engine_options):
    """Splices a model; the operators in `native_ops` stay native.

    Args:
        ranges: engine input -> (minimum, optimum, maximum) for every profile: a list of mappings; default: each
            unknown dimension from 1 to 8.
        per_op: engine operator -> options of `write_engine` for it alone.
    """
    model = parse(text, opset)
    verdicts = [
        Verdict(n.name, n.op_type, n.op_type not in native_ops, reason="no")
        for _, graph in iter_scopes(model.proto)
        for n in graph.node
    ]
    segmentation = propose(model, SupportMap.of(verdicts), PartitionOptions(1))
    extractor = Extractor(model)
    segments = tuple(extractor.extract(s) for s in segmentation.segments)
    attributes = {s.segment.name: EngineAttributes(s.content_hash, len(s.inputs)) for s in segments}
    engines = []
    for segment in segments:
        profiles = [profile_of(segment, item) for item in (ranges or [{}])]
        engines.append(
            stored(
                segment, folder, fake_trt, profiles, **engine_options, **(per_op or {}).get(segment.segment.name, {})
            )
        )
    outputs = tuple(value.name for value in model.proto.graph.output)
    return Case(splice(model, segmentation, attributes), segments, engines, outputs)


def stored(segment, folder, fake_trt, profiles, key="00", version=None, **options):
    name, version = segment.segment.name, version or fake_trt.RTX_VERSION
    path = fake_trt.write_engine(folder / name / f"{key}.engine", segment.model, profiles, version=version, **options)
    entry = EngineEntry(name, key, path.stat().st_size, "0" * 64, "tensorrt_rtx", version, profiles=tuple(profiles))
    return StoredEngine(entry, path)


def profile_of(segment, ranges):
    profile = {}
    for spec in segment.inputs:
        if spec.tensor in ranges:
            profile[spec.tensor] = InputProfile(*ranges[spec.tensor])
        else:
            low, best, high = (tuple(d if isinstance(d, int) else n for d in spec.shape) for n in (1, 4, 8))
            profile[spec.tensor] = InputProfile(low, best, high)
    return profile


def open_case(case, cuda, trt, *, params=None, folder=None, **options):
    options = RuntimeOptions(**{"allow_build_at_runtime": False, **options}).filled(params or {})
    opener = Opener(cuda, folder, lambda flavour: trt)
    return assemble(case.model, case.outputs, case.engines, options, params or {}, None, None, opener)


def use_islands_of_the_double(monkeypatch, cuda):
    """Makes native islands work in the double's memory, and in the order of its stream when that is lazy."""
    real_run, real_bind, real_value = Island.run, Island.bind, Island._device_value

    def run(self, values, *rest):
        cuda.runtime.drain()
        return real_run(self, values, *rest)

    def bind(self, inputs, outputs, *, waits):
        for value in (*inputs.values(), *outputs.values()):
            cuda.check(value.pointer, value.nbytes)
        return real_bind(self, inputs, outputs, waits=waits)

    def device_value(self, item, result):
        value = real_value(self, item, result)
        buffer = cuda.allocate(value.nbytes)
        place = cuda.array(buffer.pointer, np.uint8, (value.nbytes,))
        place[...] = np.frombuffer(result.numpy().tobytes(), np.uint8)
        return DeviceValue(buffer.pointer, value.shape, value.dtype, buffer)

    monkeypatch.setattr(Island, "run", run)
    monkeypatch.setattr(Island, "bind", bind)
    monkeypatch.setattr(Island, "_device_value", device_value)


def feeds_of(case, sizes, seed=0):
    """Random inputs; unknown dimensions in the order in which they are met take the sizes in turn."""
    rng = np.random.default_rng(seed)
    graph = case.model.proto.graph
    weights = {t.name for t in graph.initializer}
    known = {}
    feeds = {}
    turn = itertools.cycle(sizes if isinstance(sizes, tuple) else (sizes,))
    for value in graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        shape = []
        for dim in tensor.shape.dim:
            if dim.HasField("dim_value"):
                shape.append(dim.dim_value)
            else:
                shape.append(known.setdefault(dim.dim_param or object(), next(turn)))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype.kind == "f":
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[value.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            feeds[value.name] = rng.integers(0, 4, shape).astype(dtype)
    return feeds
