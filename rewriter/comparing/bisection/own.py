"""What single nodes add to a difference: each of them fed with the reference's own values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from onnx import GraphProto, TensorProto, helper

from passes.graph.value_types import value_types
from passes.graph_index import GraphIndex
from passes.model import Model
from passes.precision.recipe import MARK
from rewriter.comparing.bisection.gaps import Gap, gap
from rewriter.comparing.bisection.sides import CHUNK_BYTES, Feeds, ModelSide, Side, Sizes

_OWN = f"{MARK}own"


def own_gaps(
    reference: Side,
    result: Model,
    known: Collection[str],
    targets: Iterable[str],
    feeds: Sequence[Feeds],
    sizes: Sizes,
    *,
    honest: bool,
    most: int = CHUNK_BYTES,
) -> dict[str, Gap]:
    """How far every target is off when what it is computed from has the reference's values.

    Args:
        reference: computes the values that the result is fed with, and what it is held against.
        result: the model that differs; its values called as in `known` are cut at these.
        known: values that both have, inputs of the model among them.
        targets: values among them that nodes make.
        feeds: the samples.
        sizes: about how large the values are.
        honest: see `NativeSession`.
        most: bytes of values at a time.

    Raises:
        ConversionError: ONNX Runtime refuses the model or fails on a sample.
    """
    index = GraphIndex.of(result.proto.graph)
    inputs = {value.name for value in result.proto.graph.input}
    known = set(known) | inputs
    found: dict[str, Gap] = {}
    for chunk in sizes.chunks((t for t in targets if t in index.producer), most // 2):
        part, read = _part(result, index, known, chunk)
        left = reference.open(list(dict.fromkeys([*chunk, *(name for name in read if name not in inputs)])))
        right = ModelSide(part, "emulated" if honest else "native", honest).open([f"{n}{_OWN}" for n in chunk])
        types = value_types(part)
        for feed in feeds:
            ours = left(feed)
            given = {name: _as(ours[name] if name in ours else feed[name], types[name].dtype) for name in read}
            theirs = right(given)
            for name in chunk:
                found[name] = found.get(name, Gap()) | gap(ours[name], theirs[f"{name}{_OWN}"])
    return found


def _part(model: Model, index: GraphIndex, known: Collection[str], targets: Sequence[str]) -> tuple[Model, list[str]]:
    """(the nodes that make the targets out of known values, with those as inputs; the known values they read).

    A known value that such a node makes is called otherwise, so that whoever reads it reads the input.
    """
    members, read = _members(index, known, targets)
    proto = model.copy_proto()
    source, graph = model.proto.graph, GraphProto(name="own")
    types = value_types(model)
    for number in members:
        node = graph.node.add()
        node.CopyFrom(index.nodes[number])
        for i, name in enumerate(node.output):
            if name in known:
                node.output[i] = f"{name}{_OWN}"
    used = {name for number in members for name in index.reads[number]}.difference(read)
    graph.initializer.extend(tensor for tensor in source.initializer if tensor.name in used)
    for name in read:
        dtype = types[name].dtype if name in types else TensorProto.FLOAT
        graph.input.append(helper.make_tensor_value_info(name, dtype, None))
    made = {name for number in members for name in index.makes[number] if name not in known}
    graph.value_info.extend(value for value in source.value_info if value.name in made)
    for name in targets:
        output = graph.output.add(name=f"{name}{_OWN}")
        if name in types:  # else ONNX Runtime finds it out
            output.type.tensor_type.elem_type = types[name].dtype
    proto.graph.CopyFrom(graph)
    return model.with_proto(proto), read


def _members(index: GraphIndex, known: Collection[str], targets: Sequence[str]) -> tuple[list[int], list[str]]:
    """(numbers of the nodes between known values and the targets, ascending; the known values they read)."""
    members: set[int] = set()
    read: dict[str, None] = {}
    stack = [index.producer[name] for name in targets]
    while stack:
        number = stack.pop()
        if number in members:
            continue
        members.add(number)
        read.update((name, None) for name in index.reads[number] if name in known)
        stack.extend(index.producer[n] for n in index.reads[number] if n not in known and n in index.producer)
    return sorted(members), list(read)


def _as(array: np.ndarray, dtype: int) -> np.ndarray:
    """The array in the type that the other side holds it in (float32 where that emulates a narrower type)."""
    wanted = np.dtype(helper.tensor_dtype_to_np_dtype(dtype))
    return array if array.dtype.kind in "OSU" or array.dtype == wanted else array.astype(wanted)


def largest(gaps: Mapping[str, Gap]) -> list[str]:
    """The values by their own relative difference, largest first; those without any are left out."""
    ranked = sorted(gaps, key=lambda name: -gaps[name].relative)
    return [name for name in ranked if gaps[name].relative > 0]
