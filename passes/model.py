"""The value that flows through the passes: a small ONNX proto with its large weights held beside it.

A `ModelProto` cannot be serialised beyond 2 GB and copying 100 MB of weights for every pass is waste, so large
initializers are taken out: the proto keeps a *stub* (name, dtype, dims, `data_location = EXTERNAL`, location
`STUB_LOCATION`), and `Model.weights` maps the name to a read-only numpy array, which may be a memory map.
"""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from passes.graph.walk import bodies_of, iter_graphs, iter_nodes, iter_scopes

STUB_LOCATION = "<weights>"
#: Smaller tensors stay inline: shape arithmetic is read from them, and ONNX Runtime cannot read small external ones.
DETACH_MIN_BYTES = 1024
#: Integer tensors feed shape arithmetic more often than not, so only large ones (tables) are taken out.
DETACH_MIN_INTEGER_BYTES = 65536
#: Written data begin on this boundary (bytes), so that they can be memory mapped by page.
ALIGNMENT = 4096

_Key = TypeVar("_Key")

#: Arrays of stubs by name, while a pass collects them.
Weights = dict[str, np.ndarray]

_NEVER_DETACHED = {
    TensorProto.STRING,
    TensorProto.UINT4,
    TensorProto.INT4,
    TensorProto.FLOAT4E2M1,
    TensorProto.BOOL,
}
_NEVER_DETACHED |= {getattr(TensorProto, name) for name in ("UINT2", "INT2") if hasattr(TensorProto, name)}
_INTEGERS = {
    TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
}  # fmt: skip


class Digest(Protocol):
    """A hash of the standard library."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Takes in more bytes."""


@dataclasses.dataclass(frozen=True)
class Model:
    """An ONNX model whose large initializers are stubs.

    Attributes:
        proto: the graph; treat it as immutable (passes work on `copy_proto()`).
        weights: name of a main-graph stub -> its array, read-only, in the stub's dtype and shape.
    """

    proto: onnx.ModelProto
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def copy_proto(self) -> onnx.ModelProto:
        """A deep copy of the proto, without weights: cheap whatever the size of the model."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.proto)
        return copy

    def with_proto(self, proto: onnx.ModelProto) -> Model:
        """The same weights under another graph; weights that the graph no longer names are dropped."""
        names = {t.name for t in proto.graph.initializer if is_stub(t)}
        return Model(proto, {n: w for n, w in self.weights.items() if n in names})


def is_stub(tensor: TensorProto) -> bool:
    """True for an initializer whose data live in `Model.weights`."""
    return tensor.data_location == TensorProto.EXTERNAL and any(
        e.key == "location" and e.value == STUB_LOCATION for e in tensor.external_data
    )


def make_stub(name: str, data_type: int, dims: Iterable[int]) -> TensorProto:
    """An initializer without data, to go with an entry of `Model.weights`."""
    stub = TensorProto(name=name, data_type=data_type, dims=list(dims), data_location=TensorProto.EXTERNAL)
    stub.external_data.add(key="location", value=STUB_LOCATION)
    return stub


def from_proto(proto: onnx.ModelProto, base_dir: str | Path | None = None) -> Model:
    """Takes the large main-graph initializers out of `proto` (which is not changed).

    External tensors are memory mapped from `base_dir`, so a model beyond 2 GB costs no memory here. Those in
    attributes, in bodies of control flow and in functions are read into the proto.

    Raises:
        ValueError: an external tensor, but no `base_dir`; or a location that leaves `base_dir`.
        FileNotFoundError: the external data file does not exist.
    """
    light = _without_initializers(proto)
    weights: dict[str, np.ndarray] = {}
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and not is_stub(tensor):
            array: np.ndarray | None = _map_external(tensor, base_dir)
        elif _detachable(tensor):
            array = numpy_helper.to_array(tensor)
        else:
            array = None
        if array is None:
            light.graph.initializer.append(tensor)
        elif _worth_detaching(tensor.data_type, array.nbytes):
            array.flags.writeable = False
            weights[tensor.name] = array
            light.graph.initializer.append(make_stub(tensor.name, tensor.data_type, tensor.dims))
        else:
            light.graph.initializer.append(numpy_helper.from_array(array, tensor.name))
    _inline_nested(light, base_dir)
    return Model(light, weights)


def stow(tensor: TensorProto, weights: dict[str, np.ndarray]) -> TensorProto:
    """What to store as main-graph initializer for `tensor`: itself, or a stub when it is large.

    The data of a large tensor go into `weights` under the tensor's name.
    """
    if is_stub(tensor) or not _detachable(tensor):
        return tensor
    array = numpy_helper.to_array(tensor)
    array.flags.writeable = False
    weights[tensor.name] = array
    return make_stub(tensor.name, tensor.data_type, tensor.dims)


def load(path: str | Path) -> Model:
    """Reads an .onnx file; external data are memory mapped, not read.

    Raises:
        FileNotFoundError, google.protobuf.message.DecodeError, ValueError: as `onnx.load` and `from_proto` do.
    """
    path = Path(path)
    return from_proto(onnx.load(path, load_external_data=False), path.parent)


def to_proto(model: Model) -> onnx.ModelProto:
    """A self-contained proto with all weights inline; only for models below 2 GB."""
    proto = model.copy_proto()
    for tensor in proto.graph.initializer:
        if is_stub(tensor):
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(model.weights[tensor.name]), tensor.name))
    return proto


def save(model: Model, path: str | Path, data_name: str | None = None) -> None:
    """Writes `path` and, when there are weights, one data file beside it (default `<name>.data`).

    The weights are streamed array by array: no second copy of them is made in memory.
    """
    path = Path(path)
    save_all({path.name: model}, path.parent, data_name or f"{path.name}.data")


def save_all(models: Mapping[str, Model], folder: Path, data_name: str) -> dict[str, str]:
    """Writes models that share one data file, in which equal weights lie once.

    Args:
        models: file name -> model.
        folder: where to.
        data_name: name of the data file; not written when no model has large weights.

    Returns:
        The data file's name -> its sha256 (hex); empty where none was written.
    """
    several = len(models) > 1
    stored: dict[object, np.ndarray] = {}
    keys: dict[tuple[str, str], object] = {}
    for file, model in models.items():
        for name, array in model.weights.items():
            key = keys[file, name] = _content(array) if several else name
            stored.setdefault(key, array)
    digest = hashlib.sha256()
    places = write_weights(stored, folder / data_name, digest) if stored else {}
    for file, model in models.items():
        proto = model.copy_proto()
        for tensor in proto.graph.initializer:
            if is_stub(tensor):
                offset, length = places[keys[file, tensor.name]]
                del tensor.external_data[:]
                for key, value in (("location", data_name), ("offset", str(offset)), ("length", str(length))):
                    tensor.external_data.add(key=key, value=value)
        (folder / file).write_bytes(proto.SerializeToString())
    return {data_name: digest.hexdigest()} if stored else {}


def _content(array: np.ndarray) -> tuple[int, bytes]:
    """What tells the bytes of one array from those of another."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return len(data), hashlib.sha256(data).digest()


def write_weights(
    weights: Mapping[_Key, np.ndarray], path: Path, digest: Digest | None = None
) -> dict[_Key, tuple[int, int]]:
    """Streams arrays to one file; returns name -> (offset, length) in bytes, offsets on `ALIGNMENT`.

    Args:
        weights: the arrays.
        path: the file.
        digest: is fed all that is written, in a thread of its own (hashing and writing let other threads run).
    """
    places: dict[_Key, tuple[int, int]] = {}
    with path.open("wb") as file, ThreadPoolExecutor(1) as pool:

        def put(data: bytes | memoryview) -> None:
            hashing = pool.submit(digest.update, data) if digest is not None else None
            file.write(data)
            if hashing is not None:
                hashing.result()

        for name, array in weights.items():
            put(b"\0" * (-file.tell() % ALIGNMENT))
            start = file.tell()
            put(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            places[name] = (start, file.tell() - start)
    return places


def spool(model: Model, path: Path) -> Model:
    """Moves the weights into one file and maps them from there, so that other processes can share the pages.

    Weights that are read-only maps of a file already stay where they are.
    """
    loose = {name: array for name, array in model.weights.items() if not is_file_map(array)}
    if not loose:
        return model
    places = write_weights(loose, path)
    mapped = {
        name: np.memmap(path, dtype=array.dtype, mode="r", offset=places[name][0], shape=array.shape)
        for name, array in loose.items()
    }
    return Model(model.proto, {name: mapped.get(name, array) for name, array in model.weights.items()})


def is_file_map(array: np.ndarray) -> bool:
    """True for an array that is itself a read-only map of a file, from its first element to its last.

    A view of a map is none: numpy keeps the offset of the whole in it.
    """
    if not isinstance(array, np.memmap) or not isinstance(array.base, mmap.mmap):
        return False
    return array.mode == "r" and array.filename is not None and bool(array.flags.c_contiguous)


def stubs_as_inputs(model: Model) -> onnx.ModelProto:
    """The graph with its large weights turned into inputs: what checker and shape inference can read.

    Large weights never carry shape values, so inference loses nothing.
    """
    return _as_inputs(model.proto, is_stub)


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What `stubs_as_inputs` makes of `from_proto(proto)`, without looking at the data of the weights."""
    return _as_inputs(proto, lambda tensor: is_stub(tensor) or _detachable(tensor))


def _as_inputs(proto: onnx.ModelProto, chosen: Callable[[TensorProto], bool]) -> onnx.ModelProto:
    """A copy with the chosen main-graph initializers turned into inputs."""
    light = _without_initializers(proto)
    inputs = {i.name for i in light.graph.input}
    for tensor in proto.graph.initializer:
        if not chosen(tensor):
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            light.graph.input.append(value)
    return light


def _without_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the initializers of the main graph."""
    light = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name != "graph":
            _assign(light, field, value)
    for field, value in proto.graph.ListFields():
        if field.name != "initializer":
            _assign(light.graph, field, value)
    return light


def _assign(target: object, field: object, value: object) -> None:
    """Copies one protobuf field, whatever its kind."""
    name = field.name  # type: ignore[attr-defined]
    current = getattr(target, name)
    if hasattr(current, "extend"):
        current.extend(value)
    elif hasattr(current, "CopyFrom"):
        current.CopyFrom(value)
    else:
        setattr(target, name, value)


def _inline_nested(proto: onnx.ModelProto, base_dir: str | Path | None) -> None:
    """Reads external tensors that are no main-graph initializers into the proto."""
    for tensor in _nested_external(proto):
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(_map_external(tensor, base_dir)), tensor.name))


def _nested_external(proto: onnx.ModelProto) -> list[TensorProto]:
    """Tensors with external data that are no main-graph initializers."""
    nodes = list(iter_nodes(proto.graph))
    inner = [graph for scope, graph in iter_scopes(proto.graph) if scope]
    for function in proto.functions:
        for node in function.node:
            nodes.append(node)
            for _, body in bodies_of(node):
                nodes.extend(n for n in iter_nodes(body))
                inner.extend(graph for graph in iter_graphs(body))
    tensors = [t for graph in inner for t in graph.initializer]
    tensors += [t for node in nodes for a in node.attribute for t in (*([a.t] if a.HasField("t") else ()), *a.tensors)]
    return [t for t in tensors if t.data_location == TensorProto.EXTERNAL and not is_stub(t)]


def _detachable(tensor: TensorProto) -> bool:
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type in _NEVER_DETACHED:
        return False
    elements = int(np.prod(tensor.dims, dtype=np.int64))
    return _worth_detaching(tensor.data_type, elements * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _worth_detaching(data_type: int, nbytes: int) -> bool:
    if data_type in _NEVER_DETACHED:
        return False
    return nbytes >= (DETACH_MIN_INTEGER_BYTES if data_type in _INTEGERS else DETACH_MIN_BYTES)


def _map_external(tensor: TensorProto, base_dir: str | Path | None) -> np.ndarray:
    """The data of one external tensor, memory mapped where its dtype allows."""
    if base_dir is None:
        raise ValueError(
            f"initializer {tensor.name!r} has external data, but the model has no folder: load it from its file"
        )
    info = external_data_helper.ExternalDataInfo(tensor)
    base = Path(base_dir).resolve()
    path = (base / info.location).resolve()
    if not path.is_relative_to(base):
        raise ValueError(f"initializer {tensor.name!r} points outside the model's folder: {info.location!r}")
    if not path.is_file():
        raise FileNotFoundError(f"initializer {tensor.name!r} needs the data file {info.location!r}, which is missing")
    if tensor.data_type in _NEVER_DETACHED:
        inline = TensorProto()
        inline.CopyFrom(tensor)
        external_data_helper.load_external_data_for_tensor(inline, str(base))
        return numpy_helper.to_array(inline)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    offset = int(info.offset or 0)
    if path.stat().st_size < offset + wanted:
        raise ValueError(
            f"initializer {tensor.name!r} needs {wanted} bytes at {offset} of {info.location!r}, which is shorter"
        )
    if wanted == 0:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
