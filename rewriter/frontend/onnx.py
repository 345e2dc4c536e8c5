"""ONNX files and protos: checked, with the signature that their graph states; weights stay on disk."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from passes import model as models
from passes.segments import TensorSpec
from rewriter.errors import SourceError
from rewriter.frontend.samples import one_line
from rewriter.frontend.tensorflow import Clock
from rewriter.source import Signature, SourceModel


def load(path: Path) -> SourceModel:
    """An .onnx file; external data are memory mapped.

    Raises:
        SourceError: damaged, invalid, or its external data are missing.
    """
    clock = Clock()
    with clock.stage("load"):
        try:
            model = models.load(path)
        except DecodeError as error:
            raise SourceError(f"{path} is no ONNX model or is damaged: {one_line(error)}") from error
        except FileNotFoundError as error:
            raise SourceError(f"{path} is incomplete: {error}; copy the data file beside it") from error
        except ValueError as error:
            raise SourceError(f"{path} cannot be read: {one_line(error)}") from error
    return _source(model, f"ONNX file {path}", clock)


def from_proto(proto: ModelProto) -> SourceModel:
    """A ModelProto in memory.

    Raises:
        SourceError: invalid, or it has external data, whose folder a proto does not know.
    """
    clock = Clock()
    with clock.stage("load"):
        try:
            model = models.from_proto(proto)
        except ValueError as error:
            raise SourceError(f"the ONNX model cannot be taken: {one_line(error)}; pass its path") from error
    return _source(model, f"ONNX model {proto.graph.name or '(unnamed)'}", clock)


def _source(model: models.Model, origin: str, clock: Clock) -> SourceModel:
    if not model.proto.graph.node and not model.proto.graph.output:
        raise SourceError(f"{origin} is empty or no ONNX model: it has no nodes and no outputs")
    with clock.stage("load"):
        try:
            onnx.checker.check_model(models.stubs_as_inputs(model))
        except onnx.checker.ValidationError as error:
            raise SourceError(f"{origin} is not valid: {one_line(error)}") from error
    return SourceModel(model, signature_of(model.proto), origin, timings=dict(clock.seconds))


def signature_of(proto: ModelProto) -> Signature:
    """Graph inputs (without initializers) and outputs, in graph order.

    Raises:
        SourceError: an input or output is no tensor.
    """
    weights = {t.name for t in proto.graph.initializer}
    inputs = [_spec(v) for v in proto.graph.input if v.name not in weights]
    return Signature(tuple(inputs), tuple(_spec(v) for v in proto.graph.output), proto.graph.name or "main")


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    if value.type.WhichOneof("value") != "tensor_type":
        kind = (value.type.WhichOneof("value") or "untyped").removesuffix("_type")
        raise SourceError(
            f"the ONNX graph has {value.name!r} of kind {kind}: only dense tensors can cross its boundary"
        )
    tensor = value.type.tensor_type
    shape: tuple[int | str | None, ...] | None = None
    if tensor.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim)
    return TensorSpec(value.name, tensor.elem_type, shape)
