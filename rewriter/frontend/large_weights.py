"""Weights that stand beside every proto: a proto ends at 2 GB, and each stage between TensorFlow and ONNX copies it.

Numbered steps: 1. Freezing writes the large variables of a model to files and maps them (`LargeWeights.put`);
the GraphDef gets a Placeholder with the mark `MARK` in place of each, so nothing can mistake a made-up value for them.
2. While tf2onnx works (`LargeWeights.lent`), such a placeholder is a constant whose tensor is a *stub*: name, dtype and
dims, and the number of the weight. tf2onnx reads and writes values of constants through two functions, which are given
the map where they see a stub, and which write what was folded to a new file: it folds, merges and transposes large
weights as it does with others. 3. `attached` turns the stubs of the finished model into weights of a `Model`.
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from passes.model import ALIGNMENT, Model, from_proto, make_stub
from rewriter.errors import ExportError
from rewriter.frontend.naming import bodies, rename, value_names
from rewriter.frontend.patches import replaced
from rewriter.frontend.structure import unique
from rewriter.temporary import finalize_here

#: Weights take the way through files where the large ones among them have so many bytes together. Beyond 2 GB there is
#: no other; below, room is left for what else the GraphDef holds.
THRESHOLD = 1_500_000_000
#: What a GraphDef or any other proto holds at most, less what goes with the weights.
LIMIT = 2_000_000_000
#: A weight of at least so many bytes is large; smaller ones may be shapes or scales, which TensorFlow folds.
LARGE = 1 << 16
#: The attribute of a GraphDef's Placeholder that stands for a large weight: its number.
MARK = "_trt_rewriter_weight"
_KEY = "weight"
#: Bytes written at a time: what is cast or transposed on the way costs no more memory than this.
_PIECE = 1 << 24
#: Bytes of a file that several weights share; a larger weight has a file of its own.
_FILE = 1 << 28
#: What both TensorFlow and a memory map have a word for.
_KINDS = frozenset(("float16", "float32", "float64", "bfloat16"))
_KINDS |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def is_large(dtype: Any, elements: int | None) -> bool:
    """True for a tensor that is worth a file.

    Args:
        dtype: its tf.DType or numpy dtype.
        elements: how many it has; None where that is not known.
    """
    return dtype.name in _KINDS and elements is not None and elements * _item_size(dtype) >= LARGE


def _item_size(dtype: Any) -> int:
    return int(dtype.itemsize if isinstance(dtype, np.dtype) else dtype.size)


class LargeWeights:
    """Arrays in files, read-only and memory mapped, by number.

    Several arrays share a file (a map takes a file descriptor, of which a process has few). A file is deleted as soon
    as none of its arrays is in use any more, and the folder with the last of them; so an array taken from here needs no
    owner but itself.

    Args:
        parent: where the folder is made; None for the system's temporary folder.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
        self._folder: Path | None = None
        self._map: mmap.mmap | None = None
        self._path = Path()
        self._used = 0
        self._files = 0
        self._arrays: list[np.ndarray] = []
        self._checksums: list[int] = []

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, number: int) -> np.ndarray:
        """The array of that number, a read-only memory map."""
        return self._arrays[number]

    def put(self, array: np.ndarray) -> int:
        """Writes an array to a file and returns its number; bfloat16 becomes float32. `array` is not kept.

        Raises:
            ExportError: the file cannot be written.
        """
        dtype = np.dtype(np.float32) if array.dtype.name == "bfloat16" else array.dtype
        size = array.size * dtype.itemsize
        try:
            mapped = self._room_for(size)
            with self._path.open("r+b") as file:
                file.seek(self._used)
                checksum = _write(array, dtype, file)
        except OSError as error:
            raise ExportError(
                f"{size / 1e6:.0f} MB of weights cannot be written to {self._path.parent} "
                f"({error.strerror or error}): set TMPDIR to a folder with room for three times the model"
            ) from error
        self._checksums.append(checksum)
        self._arrays.append(_view(mapped, self._path, dtype, self._used, array.shape))
        self._used += size + -size % ALIGNMENT
        return len(self._arrays) - 1

    def drop_pages(self) -> None:
        """Gives back the memory of what was read; the files keep the data."""
        advice = getattr(mmap, "MADV_DONTNEED", None)
        for mapped in {id(array.base): array.base for array in self._arrays}.values():
            if advice is not None and isinstance(mapped, mmap.mmap):
                mapped.madvise(advice)

    def stub(self, number: int, name: str) -> TensorProto:
        """A tensor without data that stands for the array of that number.

        Its raw_data are no values but a checksum, by which tf2onnx finds equal constants.
        """
        array = self._arrays[number]
        tensor = make_stub(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        tensor.external_data.add(key=_KEY, value=str(number))
        tensor.raw_data = self._checksums[number].to_bytes(4, "little")
        return tensor

    def from_array(self, array: np.ndarray, name: str | None = None) -> TensorProto:
        """A tensor with the values of `array`; a stub when it is large."""
        if not is_large(array.dtype, array.size):
            return numpy_helper.from_array(array, name)
        return self.stub(self.put(array), name or "")

    def to_array(self, tensor: TensorProto, base_dir: str = "") -> np.ndarray:
        """The values of a tensor, those of a stub as a memory map."""
        number = number_of(tensor)
        return numpy_helper.to_array(tensor, base_dir) if number is None else self._arrays[number].view(np.ndarray)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Lets tf2onnx see the marked placeholders as constants, for the time of the block."""
        from tf2onnx import graph, tf_utils

        with (
            replaced(graph, "numpy_helper", _Values(self)),
            replaced(graph.Graph, "make_const", self._make_const(graph.Graph.make_const)),
            replaced(tf_utils, "tflist_to_onnx", self._tflist_to_onnx(tf_utils.tflist_to_onnx)),
        ):
            yield

    def _make_const(self, original: Any) -> Any:
        """`Graph.make_const` without the copy that it makes of every array."""

        def make_const(graph: Any, name: str, np_val: Any, skip_conversion: bool = False, raw: bool = True) -> Any:
            if not is_large(np_val.dtype, np_val.size):
                return original(graph, name, np_val, skip_conversion, raw)
            tensor = self.from_array(np_val, name)
            node = graph.make_node(
                "Const", [], outputs=[name], name=name, attr={"value": tensor}, skip_conversion=skip_conversion,
                dtypes=[tensor.data_type], infer_shape_dtype=False,
            )  # fmt: skip
            graph.set_shape(name, np_val.shape)
            graph.set_dtype(name, tensor.data_type)
            return node

        return make_const

    def _tflist_to_onnx(self, original: Any) -> Any:
        """`tflist_to_onnx`, which reads the nodes of a TensorFlow graph, with constants for marked placeholders."""

        def tflist_to_onnx(graph: Any, *args: Any, **kwargs: Any) -> Any:
            nodes, *rest = original(graph, *args, **kwargs)
            marked = {op.name: op.get_attr(MARK) for op in graph.get_operations() if MARK in op.node_def.attr}
            for node in nodes:
                if node.name in marked:
                    node.op_type = "Const"
                    del node.attribute[:]
                    node.attribute.append(helper.make_attribute("value", self.stub(marked[node.name], node.output[0])))
            return nodes, *rest

        return tflist_to_onnx

    def _room_for(self, size: int) -> mmap.mmap:
        """A map of a file that has `size` bytes left at `_used`; the file is sparse until it is written."""
        if self._map is None or self._used + size > len(self._map):
            if self._folder is None or not self._folder.is_dir():
                self._folder = Path(tempfile.mkdtemp(prefix="trt-rewriter-weights-", dir=self._parent))
            self._path = self._folder / f"{self._files}.weights"
            self._files += 1
            with self._path.open("w+b") as file:
                file.truncate(max(size, _FILE))
                self._map, self._used = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), 0
            finalize_here(self._map, _remove, self._path)
        return self._map


class _Values:
    """What tf2onnx's graph takes for `onnx.numpy_helper`."""

    def __init__(self, weights: LargeWeights) -> None:
        self.from_array = weights.from_array
        self.to_array = weights.to_array


def number_of(tensor: TensorProto) -> int | None:
    """The number of the weight that a stub stands for; None for any other tensor."""
    return next((int(entry.value) for entry in tensor.external_data if entry.key == _KEY), None)


def place(node: Any, number: int, array: np.ndarray) -> None:
    """Makes a GraphDef node the marked Placeholder of a weight.

    Args:
        node: a NodeDef, changed in place; its name stays.
        number: of the weight.
        array: the weight as TensorFlow has it (bfloat16 still being bfloat16).
    """
    import tensorflow as tf

    name = node.name
    node.Clear()
    node.name, node.op = name, "Placeholder"
    node.attr["dtype"].type = tf.as_dtype(array.dtype).as_datatype_enum
    node.attr["shape"].shape.CopyFrom(tf.TensorShape(array.shape).as_proto())
    node.attr[MARK].i = number


def shield(graph_def: Any) -> None:
    """Makes the marked placeholders of a GraphDef nodes of another kind, in place, until `unshield`.

    TensorFlow's graph optimiser makes up a value, in full size, for every placeholder.
    """
    for node in graph_def.node:
        if MARK in node.attr:
            node.op = "ImmutableConst"
            node.attr["memory_region_name"].s = b"none"


def unshield(graph_def: Any) -> None:
    """Undoes `shield`, on that GraphDef or on what was made of it."""
    for node in graph_def.node:
        if MARK in node.attr:
            node.op = "Placeholder"
            del node.attr["memory_region_name"]


def with_weights(graph_def: Any, weights: LargeWeights | None, origin: str) -> Any:
    """A copy of a (partial) GraphDef in which marked placeholders are constants again: what TensorFlow can run.

    Raises:
        ExportError: the weights in it exceed what a GraphDef holds.
    """
    import tensorflow as tf

    found = [node for node in graph_def.node if MARK in node.attr]
    size = sum(weights[node.attr[MARK].i].nbytes for node in found) if weights is not None else 0
    if size >= LIMIT:
        raise ExportError(
            f"a part of {origin} that stays in TensorFlow has {size / 1e9:.1f} GB of weights, and TensorFlow's "
            "GraphDef ends at 2.1 GB: convert the model in parts"
        )
    copy = type(graph_def)()
    copy.CopyFrom(graph_def)
    for node in copy.node:
        if weights is not None and MARK in node.attr:
            tensor = tf.make_tensor_proto(weights[node.attr[MARK].i])
            name = node.name
            node.Clear()
            node.name, node.op = name, "Const"
            node.attr["dtype"].type = tensor.dtype
            node.attr["value"].tensor.CopyFrom(tensor)
    return copy


def attached(proto: ModelProto, weights: LargeWeights | None) -> Model:
    """The exported model with its weights beside it; `proto` is changed.

    Stubs in bodies of control flow become initializers of the main graph, for only these can have their data outside.

    Args:
        proto: what tf2onnx made, with names as they are to stay.
        weights: None where no weight was taken out; then this is `from_proto`.
    """
    if weights is None:
        return from_proto(proto)
    taken = value_names(proto.graph)
    for node in proto.graph.node:
        for body in bodies(node):
            proto.graph.initializer.extend(_lifted(body, taken))
    arrays: dict[str, np.ndarray] = {}
    for tensor in proto.graph.initializer:
        number = number_of(tensor)
        if number is not None:
            arrays[tensor.name] = weights[number]
            tensor.CopyFrom(make_stub(tensor.name, tensor.data_type, tensor.dims))
    model = from_proto(proto)
    weights.drop_pages()
    return Model(model.proto, {**model.weights, **arrays})


def _lifted(graph: GraphProto, taken: set[str]) -> list[TensorProto]:
    """Takes the stubs out of a body and the bodies in it, and gives them names that the main graph can have."""
    found, kept, names = [], [], {}
    for tensor in graph.initializer:
        if number_of(tensor) is None:
            kept.append(tensor)
            continue
        names[tensor.name] = unique(tensor.name, taken)
        found.append(tensor)
    if found:
        found = [_copy(tensor, names[tensor.name]) for tensor in found]
        kept = [_copy(tensor, tensor.name) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        rename(graph, names)
    for node in graph.node:
        for body in bodies(node):
            found += _lifted(body, taken)
    return found


def _copy(tensor: TensorProto, name: str) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _view(mapped: mmap.mmap, path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """A memmap of a part of a file that is mapped already; `np.memmap` itself would map it once more."""
    array: Any = np.ndarray.__new__(np.memmap, shape, dtype=dtype, buffer=mapped, offset=offset)
    array._mmap, array.offset, array.mode, array.filename = mapped, offset, "r", path
    return array  # type: ignore[no-any-return]


def _write(array: np.ndarray, dtype: np.dtype[Any], file: BinaryIO) -> int:
    """Streams an array, in C order; returns a checksum of the bytes."""
    rows = array.reshape(-1) if array.flags.c_contiguous else array
    step = max(1, _PIECE // max(1, rows[:1].size * dtype.itemsize))
    checksum = 0
    for start in range(0, len(rows), step):
        piece = np.ascontiguousarray(rows[start : start + step], dtype=dtype).reshape(-1).view(np.uint8)
        file.write(piece.data)
        checksum = zlib.crc32(piece.data, checksum)
    return checksum


def _remove(path: Path) -> None:
    """Deletes a weight's file, and its folder once that is empty."""
    with contextlib.suppress(OSError):  # the folder may be gone, with all of the system's temporary files
        path.unlink()
        path.parent.rmdir()
