"""What computes the inner values of a model, and two of them side by side, a few values at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from onnx import ValueInfoProto, helper

from passes.base import PassError
from passes.graph.editing import filter_initializers, replace_nodes
from passes.graph.value_types import collect_infos, value_types
from passes.graph_index import GraphIndex
from passes.model import Model
from rewriter.comparing.bisection.gaps import Gap, gap
from rewriter.comparing.bisection.walk import ancestors
from rewriter.errors import ConversionError
from rewriter.runtime.other_errors import first_line
from rewriter.source import Signature

#: Bytes of the values that are looked at in one run, on each side; a single larger value is looked at alone.
CHUNK_BYTES = 256 << 20
#: What a value of unknown size counts for.
_UNKNOWN = 1 << 20

#: ONNX input name -> array.
Feeds = Mapping[str, np.ndarray]
#: Runs once; returns value name -> array.
Run = Callable[[Feeds], Mapping[str, np.ndarray]]


class Side(Protocol):
    """One way of computing a model, whose inner values can be asked for."""

    def open(self, names: Sequence[str]) -> Run:
        """What computes these values (and maybe others); it lives as long as it is needed."""
        ...


@dataclasses.dataclass(frozen=True)
class ModelSide:
    """A model in ONNX Runtime on the CPU.

    Attributes:
        model: its main graph makes the values.
        what: what it is called in messages.
        honest: see `NativeSession`; for emulated models.
    """

    model: Model
    what: str
    honest: bool = False

    def open(self, names: Sequence[str]) -> Run:
        """A session with these values as its outputs.

        Raises:
            ConversionError: ONNX Runtime refuses the model.
        """
        from rewriter.runtime.mapped_weights import has_files
        from rewriter.runtime.native import open_native

        wanted = list(dict.fromkeys(names))
        try:
            session = open_native(
                with_outputs(self.model, wanted), wanted, honest=self.honest, lean=has_files(self.model)
            )
        except (ConversionError, PassError):
            raise
        except Exception as error:  # ONNX Runtime's errors share no narrower base class
            raise ConversionError(f"ONNX Runtime refuses the {self.what} model: {first_line(error)}") from error

        def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
            try:
                return session.run(feeds)
            except ConversionError:
                raise
            except Exception as error:
                raise ConversionError(f"the {self.what} model fails on a sample: {first_line(error)}") from error

        return run


def with_outputs(model: Model, names: Sequence[str]) -> Model:
    """The model with these values of its main graph as its only outputs, and without what none of them needs."""
    index = GraphIndex.of(model.proto.graph)
    needed = ancestors(index, names)
    proto = model.copy_proto()
    infos = collect_infos(proto)
    graph = proto.graph
    outputs = [infos.get(name) or ValueInfoProto(name=name) for name in names]
    del graph.output[:]
    graph.output.extend(outputs)
    if len(needed) < len(graph.node):
        replace_nodes(graph, [index.nodes[number] for number in sorted(needed)])
        fed = {value.name for value in graph.input}
        used = fed.union(names, *(index.reads[number] for number in needed))
        filter_initializers(graph, lambda tensor: tensor.name in used)
    return model.with_proto(proto)


def comparable(model: Model) -> tuple[str, ...]:
    """Names of the values that nodes of the main graph make and that are tensors, in topological order."""
    types = value_types(model)
    index = GraphIndex.of(model.proto.graph)
    return tuple(name for made in index.makes for name in made if name and name in types)


def made(model: Model) -> frozenset[str]:
    """Names of all values that nodes of the main graph make."""
    return frozenset(name for node in model.proto.graph.node for name in node.output if name)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """About how many bytes values take: declared shapes, whose symbols are those of the largest sample.

    Attributes:
        bytes: value name -> bytes.
    """

    bytes: Mapping[str, int]

    @classmethod
    def of(cls, model: Model, signature: Signature, feeds: Iterable[Feeds]) -> Sizes:
        """For a model whose inputs the signature names."""
        symbols: dict[str, int] = {}
        for feed in feeds:
            for spec in signature.inputs:
                shape = np.shape(feed[spec.tensor])
                for dim, size in zip(spec.shape or (), shape, strict=False):
                    if isinstance(dim, str):
                        symbols[dim] = max(size, symbols.get(dim, 0))
        found = {}
        for name, spec in value_types(model).items():
            sizes = [symbols.get(dim) if isinstance(dim, str) else dim for dim in spec.shape or (None,)]
            if spec.shape is not None and all(size is not None for size in sizes):
                item = np.dtype(helper.tensor_dtype_to_np_dtype(spec.dtype)).itemsize
                found[name] = int(np.prod([int(size or 0) for size in sizes], dtype=np.int64)) * max(item, 1)
        return cls(found)

    def chunks(self, names: Iterable[str], most: int = CHUNK_BYTES) -> Iterator[list[str]]:
        """The names in order, as many at a time as take at most `most` bytes together, and at least one."""
        chunk: list[str] = []
        total = 0
        for name in dict.fromkeys(names):
            size = self.bytes.get(name, _UNKNOWN)
            if chunk and total + size > most:
                yield chunk
                chunk, total = [], 0
            chunk.append(name)
            total += size
        if chunk:
            yield chunk


def measure(
    reference: Side,
    result: Side,
    names: Iterable[str],
    feeds: Sequence[Feeds],
    sizes: Sizes,
    *,
    most: int = CHUNK_BYTES,
    compare: Callable[[Any, Any], Gap] = gap,
) -> dict[str, Gap]:
    """The gap of every named value over all samples; every chunk of values is one run a sample on each side.

    Raises:
        ConversionError: a side cannot be opened, or fails on a sample.
    """
    found: dict[str, Gap] = {}
    for chunk in sizes.chunks(names, most):
        left, right = reference.open(chunk), result.open(chunk)
        for feed in feeds:
            ours, theirs = left(feed), right(feed)
            for name in chunk:
                found[name] = found.get(name, Gap()) | compare(ours[name], theirs[name])
    return found
