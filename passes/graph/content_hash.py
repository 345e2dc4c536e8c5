"""A name for what a segment computes: equal for equal content, whatever the nodes are called and how they are sorted.

Exporters number their nodes and constants anew in every process, sort independent nodes differently and share equal
constants or not. So every value gets a digest of what it is computed from, down to the inputs and weights, and the
segment is the digests of its outputs: names of nodes and inner values, doc strings, metadata, inner value types, the
order of nodes and the order of inputs and outputs are left out. Inputs are told apart by their place among the sorted
names of all inputs, and outputs likewise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper

from passes.graph.value_types import spec_of
from passes.graph.walk import iter_graphs, plain_domain
from passes.model import is_stub
from passes.segments import TensorSpec

#: Changes whenever the canonical form does, so that old hashes never match new ones.
FORMAT = b"trt-rewriter segment 2"

#: Bytes from which an array is hashed in a thread, and threads.
_LARGE, _THREADS = 1 << 18, 4

#: What these give differs from node to node, also for equal inputs.
_RANDOM = (
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)


class WeightDigests:
    """sha256 of weights, each array hashed once in the life of this object (arrays must not change)."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[npt.NDArray[np.generic], bytes | Future[bytes]]] = {}

    def of_array(self, array: npt.NDArray[np.generic]) -> bytes:
        """The digest of an array's bytes in C order (dtype and shape are the caller's to add)."""
        known = self._known.get(id(array))
        if known is None:
            # The array is kept with its digest: as long as it lives nothing else can get its id.
            known = (array, _digest(array))
            self._known[id(array)] = known
        digest = known[1]
        return digest if isinstance(digest, bytes) else digest.result()

    def begin(self, arrays: Iterable[npt.NDArray[np.generic]]) -> None:
        """Begins to hash large arrays that are not known yet, in threads; `of_array` waits for the one it is asked for.

        Hashing lets other threads run.
        """
        new = {id(a): a for a in arrays if a.nbytes >= _LARGE and id(a) not in self._known}
        if new:
            pool = ThreadPoolExecutor(_THREADS)
            self._known.update((key, (array, pool.submit(_digest, array))) for key, array in new.items())
            pool.shutdown(wait=False)  # what was handed in is still done


def _digest(array: npt.NDArray[np.generic]) -> bytes:
    flat = np.ascontiguousarray(array).reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data if flat.size else b"").digest()


def tensor_digest(tensor: TensorProto) -> bytes:
    """The digest of an inline tensor's elements, however they are stored (raw or typed field)."""
    if tensor.data_type == TensorProto.STRING:
        return hashlib.sha256(b"".join(len(s).to_bytes(8, "little") + s for s in tensor.string_data)).digest()
    return _digest(np.asarray(numpy_helper.to_array(tensor)))


def _token(*parts: object) -> bytes:
    """The digest of length-prefixed parts."""
    form = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        form.update(len(data).to_bytes(8, "little"))
        form.update(data)
    return form.digest()


class _Digester:
    """Digests of values, each of what it is computed from.

    Attributes:
        random: digests of the nodes that draw random numbers: two equal ones are not one.
    """

    def __init__(self) -> None:
        self.random: list[bytes] = []
        self._depth = 0

    def values(self, nodes: Iterable[NodeProto], known: dict[str, bytes], symbols: dict[str, int]) -> None:
        """Adds the results of `nodes`, in topological order, to the digests of what they read."""
        for node in nodes:
            made = self._node(node, known, symbols)
            if node.op_type in _RANDOM:
                self.random.append(made)
            known.update((name, _token(made, place)) for place, name in enumerate(node.output) if name)

    def _node(self, node: NodeProto, known: dict[str, bytes], symbols: dict[str, int]) -> bytes:
        attributes = [self._attribute(a, known, symbols) for a in sorted(node.attribute, key=lambda a: a.name)]
        operator = (node.op_type, plain_domain(node.domain), node.overload)
        read = [_read(name, known) for name in node.input]
        return _token("node", *operator, len(read), *read, [bool(name) for name in node.output], *attributes)

    def _attribute(self, attribute: AttributeProto, known: dict[str, bytes], symbols: dict[str, int]) -> bytes:
        head = ("attribute", attribute.name, attribute.type, attribute.ref_attr_name)
        if attribute.type == AttributeProto.GRAPH:
            return _token(*head, self._body(attribute.g, known, symbols))
        if attribute.type == AttributeProto.GRAPHS:
            return _token(*head, *(self._body(graph, known, symbols) for graph in attribute.graphs))
        if attribute.type == AttributeProto.TENSOR:
            return _token(*head, _tensor(attribute.t))
        if attribute.type == AttributeProto.TENSORS:
            return _token(*head, *map(_tensor, attribute.tensors))
        plain = AttributeProto()
        plain.CopyFrom(attribute)
        plain.ClearField("doc_string")
        plain.ClearField("name")
        return _token(*head, plain.SerializeToString(deterministic=True))

    def _body(self, graph: GraphProto, outer: Mapping[str, bytes], symbols: Mapping[str, int]) -> bytes:
        """A body: what it captures comes with the digests of the graph around it, and what it defines ends with it."""
        self._depth += 1
        known, own = dict(outer), dict(symbols)
        specs = [_spec(spec_of(value), own) for value in graph.input]
        known.update((value.name, _token("formal", self._depth, place)) for place, value in enumerate(graph.input))
        known.update((tensor.name, _tensor(tensor)) for tensor in graph.initializer)
        for sparse in graph.sparse_initializer:
            parts = (list(sparse.dims), _tensor(sparse.values), _tensor(sparse.indices))
            known[sparse.values.name] = _token("sparse", *parts)
        self.values(graph.node, known, own)
        self._depth -= 1
        results = [_token(_read(value.name, known), _spec(spec_of(value), own)) for value in graph.output]
        return _token("body", len(specs), *specs, *results)


def _read(name: str, known: dict[str, bytes]) -> bytes:
    """The digest of a value that is read: b"" for an optional one left out; one that comes from nowhere gets a new."""
    return known.setdefault(name, _token("unknown", len(known))) if name else b""


def _tensor(tensor: TensorProto) -> bytes:
    return _token("tensor", tensor.data_type, list(tensor.dims), tensor_digest(tensor))


def _spec(spec: TensorSpec, symbols: dict[str, int]) -> bytes:
    """A dtype and shape; equal symbols stay equal, their names do not matter."""
    shape = spec.shape
    if shape is None:
        return _token(spec.dtype, None)
    return _token(spec.dtype, [f"s{symbols.setdefault(d, len(symbols))}" if isinstance(d, str) else d for d in shape])


def content_hash(
    graph: GraphProto,
    *,
    opsets: Mapping[str, int],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    weights: Mapping[str, npt.NDArray[np.generic]],
    digests: WeightDigests,
    inline: Mapping[str, bytes],
) -> str:
    """The hash (hex) of what a stand-alone graph computes.

    Args:
        graph: the graph; its initializers are the weights, those that are stubs have their data in `weights`.
        opsets: domain -> version of the model; only domains that the nodes use are hashed.
        inputs: dtype and shape of the graph inputs, in any order.
        outputs: dtype and shape of the graph outputs, in any order.
        weights: stub name -> array.
        digests: the memory of arrays that were hashed before.
        inline: digests of inline initializers that are known already, by name.
    """
    used = {plain_domain(node.domain) for inner in iter_graphs(graph) for node in inner.node}
    versions = sorted((d, v) for d, v in ((plain_domain(k), v) for k, v in opsets.items()) if d in used)
    symbols: dict[str, int] = {}
    known: dict[str, bytes] = {}
    parts: list[object] = [FORMAT, versions, len(inputs), len(outputs)]
    for place, spec in enumerate(sorted(inputs, key=lambda s: s.tensor)):
        known[spec.tensor] = _token("input", place)
        parts.append(_spec(spec, symbols))
    digests.begin(weights[tensor.name] for tensor in graph.initializer if is_stub(tensor))
    for tensor in graph.initializer:
        if is_stub(tensor):
            digest = digests.of_array(weights[tensor.name])
        else:
            digest = inline.get(tensor.name) or tensor_digest(tensor)
        known[tensor.name] = _token("tensor", tensor.data_type, list(tensor.dims), digest)
    digester = _Digester()
    digester.values(graph.node, known, symbols)
    for spec in sorted(outputs, key=lambda s: s.tensor):
        parts += [_read(spec.tensor, known), _spec(spec, symbols)]
    return hashlib.sha256(_token(*parts, *sorted(digester.random))).hexdigest()


def opset_versions(proto: onnx.ModelProto) -> dict[str, int]:
    """Domain -> version, with "" for the default domain whichever way it is spelt."""
    return {plain_domain(o.domain): o.version for o in proto.opset_import}
