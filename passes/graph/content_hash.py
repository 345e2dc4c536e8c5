"""A name for what a segment computes: equal for equal content, whatever the nodes and values are called.

The canonical form is a stream of length-prefixed tokens fed to sha256. Values are numbered by first occurrence (so are
symbolic dimensions), node names, doc strings, metadata and inner value types are left out, attributes are
sorted by name, bodies are walked in the same way (a captured value keeps its outer number).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper

from passes.graph.value_types import spec_of
from passes.graph.walk import defined_names, iter_graphs, plain_domain
from passes.model import is_stub
from passes.segments import TensorSpec

#: Changes whenever the canonical form does, so that old hashes never match new ones.
FORMAT = b"trt-rewriter segment 1"


class WeightDigests:
    """sha256 of weights, each array hashed once in the life of this object (arrays must not change)."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[npt.NDArray[np.generic], bytes]] = {}

    def of_array(self, array: npt.NDArray[np.generic]) -> bytes:
        """The digest of an array's bytes in C order (dtype and shape are the caller's to add)."""
        known = self._known.get(id(array))
        if known is None:
            # The array is kept with its digest: as long as it lives nothing else can get its id.
            known = (array, _digest(array))
            self._known[id(array)] = known
        return known[1]


def _digest(array: npt.NDArray[np.generic]) -> bytes:
    flat = np.ascontiguousarray(array).reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data if flat.size else b"").digest()


def tensor_digest(tensor: TensorProto) -> bytes:
    """The digest of an inline tensor's elements, however they are stored (raw or typed field)."""
    if tensor.data_type == TensorProto.STRING:
        return hashlib.sha256(b"".join(len(s).to_bytes(8, "little") + s for s in tensor.string_data)).digest()
    return _digest(np.asarray(numpy_helper.to_array(tensor)))


class _Canonical:
    """Feeds the canonical form to sha256."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._numbers: dict[str, int] = {}
        self._symbols: dict[str, int] = {}
        self._fresh = 0
        self.token(FORMAT)

    def token(self, *parts: object) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else repr(part).encode()
            self._hash.update(len(data).to_bytes(8, "little"))
            self._hash.update(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def define(self, name: str) -> int:
        """A new number for a value that is defined here."""
        if not name:
            return -1
        self._fresh += 1
        self._numbers[name] = self._fresh
        return self._fresh

    def number(self, name: str) -> int:
        """The number of a value that is read: -1 for an optional one left out."""
        if not name:
            return -1
        known = self._numbers.get(name)
        return self.define(name) if known is None else known

    def spec(self, spec: TensorSpec) -> None:
        """A dtype and shape; equal symbols stay equal, their names do not matter."""
        shape = spec.shape
        self.token(
            spec.dtype,
            None if shape is None else [f"s{self._symbol(d)}" if isinstance(d, str) else d for d in shape],
        )

    def _symbol(self, name: str) -> int:
        return self._symbols.setdefault(name, len(self._symbols))

    def nodes(self, nodes: Iterable[NodeProto]) -> None:
        for node in nodes:
            self.token(
                "node", node.op_type, plain_domain(node.domain), node.overload, [self.number(n) for n in node.input]
            )
            for attribute in sorted(node.attribute, key=lambda a: a.name):
                self.attribute(attribute)
            self.token([self.define(n) for n in node.output])

    def attribute(self, attribute: AttributeProto) -> None:
        self.token("attribute", attribute.name, attribute.type, attribute.ref_attr_name)
        if attribute.type == AttributeProto.GRAPH:
            self.body(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            self.token(len(attribute.graphs))
            for graph in attribute.graphs:
                self.body(graph)
        elif attribute.type == AttributeProto.TENSOR:
            self.tensor(attribute.t)
        elif attribute.type == AttributeProto.TENSORS:
            self.token(len(attribute.tensors))
            for tensor in attribute.tensors:
                self.tensor(tensor)
        else:
            plain = AttributeProto()
            plain.CopyFrom(attribute)
            plain.ClearField("doc_string")
            plain.ClearField("name")
            self.token(plain.SerializeToString(deterministic=True))

    def tensor(self, tensor: TensorProto) -> None:
        self.token("tensor", tensor.data_type, list(tensor.dims), tensor_digest(tensor))

    def body(self, graph: GraphProto) -> None:
        outer = {name: self._numbers.get(name) for name in defined_names(graph)}
        self.token("body", len(graph.input), len(graph.initializer), len(graph.node), len(graph.output))
        for value in graph.input:
            self.token(self.define(value.name))
            self.spec(spec_of(value))
        for tensor in graph.initializer:
            self.token(self.define(tensor.name))
            self.tensor(tensor)
        for sparse in graph.sparse_initializer:
            self.token("sparse", self.define(sparse.values.name), list(sparse.dims))
            self.tensor(sparse.values)
            self.tensor(sparse.indices)
        self.nodes(graph.node)
        for value in graph.output:
            self.token(self.number(value.name))
            self.spec(spec_of(value))
        # What the body defined ends with it; captures seen here for the first time keep their numbers.
        for name, known in outer.items():
            if known is None:
                self._numbers.pop(name, None)
            else:
                self._numbers[name] = known


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
    """The sha256 (hex) of a stand-alone graph's canonical form.

    Args:
        graph: the graph; its initializers are the weights, those that are stubs have their data in `weights`.
        opsets: domain -> version of the model; only domains that the nodes use are hashed.
        inputs: dtype and shape of the graph inputs, in order.
        outputs: dtype and shape of the graph outputs, in order.
        weights: stub name -> array.
        digests: the memory of arrays that were hashed before.
        inline: digests of inline initializers that are known already, by name.
    """
    form = _Canonical()
    used = {plain_domain(node.domain) for inner in iter_graphs(graph) for node in inner.node}
    form.token(sorted((d, v) for d, v in ((plain_domain(k), v) for k, v in opsets.items()) if d in used))
    form.token(len(inputs), len(graph.initializer), len(graph.node), len(outputs))
    for spec in inputs:
        form.token(form.define(spec.tensor))
        form.spec(spec)
    for tensor in graph.initializer:
        if is_stub(tensor):
            digest = digests.of_array(weights[tensor.name])
        else:
            digest = inline.get(tensor.name) or tensor_digest(tensor)
        form.token(form.define(tensor.name), tensor.data_type, list(tensor.dims), digest)
    form.nodes(graph.node)
    for spec in outputs:
        form.token(form.number(spec.tensor))
        form.spec(spec)
    return form.hexdigest()


def opset_versions(proto: onnx.ModelProto) -> dict[str, int]:
    """Domain -> version, with "" for the default domain whichever way it is spelt."""
    return {plain_domain(o.domain): o.version for o in proto.opset_import}
