"""Takes sets of nodes out of a model as stand-alone models, without copying weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

from passes.base import PassError
from passes.graph.boundary import Boundary, boundary, constant_names
from passes.graph.content_hash import WeightDigests, content_hash, opset_versions, tensor_digest
from passes.graph.value_types import collect_infos, spec_of, value_info_of
from passes.graph.walk import Scope, iter_scopes
from passes.graph_index import GraphIndex
from passes.model import Model, is_stub
from passes.segments import Segment, SegmentModel, TensorSpec


class Extractor:
    """Cuts many segments out of one model; what they share is looked up once.

    The stand-alone models have the opsets and the IR version of the model, typed graph inputs (a value of unknown
    rank keeps no shape, a value of unknown type no type: the caller decides), the known types of inner values, small
    initializers inline and large ones as stubs over the very arrays of `model.weights`.

    Args:
        model: the model; its value names are unique in the whole model (canonicalize sees to that).
        types: value name -> dtype and shape; default: what the proto says in its inputs, outputs, value_info and
            initializers. A name that is missing here is looked up in the proto.
        digests: hashes of weights; hand the same object to the next extractor of the same weights to hash them once.
    """

    def __init__(
        self, model: Model, types: Mapping[str, TensorSpec] | None = None, digests: WeightDigests | None = None
    ) -> None:
        self._model = model
        self._types = dict(types or {})
        self._digests = digests or WeightDigests()
        self._inline_digests: dict[str, bytes] = {}
        self._indexes: dict[Scope, GraphIndex] = {}
        self._graphs: dict[Scope, GraphProto] = dict(iter_scopes(model.proto))
        self._infos: dict[str, ValueInfoProto] = collect_infos(model.proto)
        self._constants = constant_names(model.proto)
        self._tensors: dict[str, TensorProto] = {
            t.name: t for graph in self._graphs.values() for t in graph.initializer if t.name in self._constants
        }
        self._opsets = opset_versions(model.proto)

    def index(self, scope: Sequence[str]) -> GraphIndex:
        """The index of the graph at `scope`.

        Raises:
            PassError: there is no such graph.
        """
        key = tuple(scope)
        if key not in self._graphs:
            raise PassError(f"the model has no graph at scope {'/'.join(key)!r}: was it cut from another model?")
        if key not in self._indexes:
            self._indexes[key] = GraphIndex.of(self._graphs[key])
        return self._indexes[key]

    def spec(self, name: str) -> TensorSpec:
        """The dtype and shape of a value; dtype UNDEFINED (0) where nothing is known or it is no tensor."""
        known = self._types.get(name)
        if known is not None:
            return known if known.name == name == known.tensor else TensorSpec(name, known.dtype, known.shape)
        info = self._infos.get(name)
        return TensorSpec(name, TensorProto.UNDEFINED, None) if info is None else spec_of(info)

    def boundary(self, scope: Sequence[str], node_names: Iterable[str]) -> Boundary:
        """(inputs, weights, outputs) of the named nodes, as `Segment` describes them.

        Raises:
            PassError: no such graph, or no such node in it.
        """
        index = self.index(scope)
        return boundary(index, index.positions(node_names), self._constants)

    def extract(self, segment: Segment) -> SegmentModel:
        """The stand-alone model of a segment.

        Raises:
            PassError: the segment does not belong to this model; the message names what is missing.
        """
        return self._cut(segment)

    def extract_nodes(
        self, scope: Sequence[str], node_names: Iterable[str], name: str = "", *, hashed: bool = True
    ) -> SegmentModel:
        """The stand-alone model of any nodes of one graph; they need be neither connected nor convex.

        Nodes whose results nobody uses would give a model without outputs: then every value that no node of the set
        reads is an output.

        Args:
            scope: the way to their graph.
            node_names: the nodes, in any order.
            name: the name of the segment (and of its graph).
            hashed: False leaves `content_hash` empty and reads no weights.

        Raises:
            PassError: no such graph, or no such node in it.
        """
        index = self.index(scope)
        members = index.positions(node_names)
        inputs, weights, outputs = boundary(index, members, self._constants)
        if not outputs:
            made = [n for m in members for n in index.nodes[m].output if n]
            outputs = tuple(n for n in made if not index.consumers.get(n))
        names = tuple(index.nodes[m].name for m in members)
        segment = Segment(name, tuple(scope), names, inputs, weights, outputs, len(names))
        return self._cut(segment, hashed=hashed)

    def _cut(self, segment: Segment, *, hashed: bool = True) -> SegmentModel:
        index = self.index(segment.scope)
        members = index.positions(segment.nodes)
        proto = ModelProto(ir_version=self._model.proto.ir_version, producer_name=self._model.proto.producer_name)
        proto.opset_import.extend(self._model.proto.opset_import)
        graph = proto.graph
        graph.name = segment.name or "segment"
        graph.node.extend(index.nodes[m] for m in members)
        weights = self._add_weights(graph, segment)
        graph.input.extend(self._info(name) for name in segment.inputs)
        graph.output.extend(self._info(name) for name in segment.outputs)
        named = set(segment.outputs)
        inner = [n for m in members for n in index.nodes[m].output if n and n not in named]
        graph.value_info.extend(info for info in map(self._info, inner) if info.HasField("type"))
        inputs = tuple(self.spec(name) for name in segment.inputs)
        outputs = tuple(self.spec(name) for name in segment.outputs)
        digest = ""
        if hashed:
            digest = content_hash(
                graph,
                opsets=self._opsets,
                inputs=inputs,
                outputs=outputs,
                weights=weights,
                digests=self._digests,
                inline=self._inline_digests,
            )
        return SegmentModel(segment, Model(proto, weights), inputs, outputs, digest)

    def _add_weights(self, graph: GraphProto, segment: Segment) -> dict[str, np.ndarray]:
        weights: dict[str, np.ndarray] = {}
        for name in segment.weights:
            tensor = self._tensors.get(name)
            if tensor is None:
                raise PassError(f"segment {segment.name!r} needs the initializer {name!r}, which the model lacks")
            graph.initializer.append(tensor)
            if is_stub(tensor):
                weights[name] = self._model.weights[name]
            elif name not in self._inline_digests:
                self._inline_digests[name] = tensor_digest(tensor)
        return weights

    def _info(self, name: str) -> ValueInfoProto:
        """A typed value for the stand-alone graph: from the given types, else from the proto, else untyped."""
        if name in self._types:
            return value_info_of(name, self._types[name])
        return self._infos.get(name) or ValueInfoProto(name=name)


def rehash(segment: SegmentModel) -> SegmentModel:
    """The segment with the content hash of the model that it holds by now (lowering replaces it)."""
    graph = segment.model.proto.graph
    digest = content_hash(
        graph,
        opsets=opset_versions(segment.model.proto),
        inputs=segment.inputs,
        outputs=segment.outputs,
        weights=segment.model.weights,
        digests=WeightDigests(),
        inline={},
    )
    return dataclasses.replace(segment, content_hash=digest)
