"""Equal work is done once: common subexpressions and weights with equal content."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Mapping

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from passes.base import Change, PassResult
from passes.graph.content_hash import WeightDigests, tensor_digest
from passes.graph.editing import filter_initializers, finish, label, replace_nodes, substitute
from passes.graph.value_types import tensor_type
from passes.graph.walk import has_bodies, iter_graphs
from passes.model import Model, is_stub
from passes.steps.cleanup import drop_stale_value_info

#: Two of these are never one: each draws its own numbers (a Dropout that `Canonicalize` left is one in training).
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
)
#: Which value is quantised how is structure that the precision recipes read node by node.
_QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
#: Exact in either order of the two inputs.
_COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal"})


@dataclasses.dataclass(frozen=True)
class CommonSubexpressions:
    """Merges nodes that compute the same and initializers that hold the same.

    1. Initializers of equal dtype, shape and content become one, the first.
    2. Nodes with equal operator, attributes and inputs (in either order where the operator is commutative) become
       one, the first in topological order; this goes on through whatever reads them.
    3. The main graph and each body are looked at on their own: no value moves from one graph to another.
    4. Names of graph outputs stay. The node that is kept takes an output's name over, unless it makes another
       output already: then both nodes stay.
    5. Never merged: random operators, quantisation, nodes with bodies, operators of other domains, and values with a
       quantisation annotation.
    6. Of two known types of a merged value the one that knows more dimensions stays.

    Needs a canonical model (`Canonicalize`).

    Attributes:
        weights: whether initializers are merged (rule 1); all large ones of equal dtype and shape are read for it.
    """

    weights: bool = True
    name: str = "common_subexpressions"

    def run(self, model: Model) -> PassResult:
        """Merges all there is to merge; a second run finds nothing."""
        proto = model.copy_proto()
        changes: list[Change] = []
        fixed = _annotated(proto)
        if self.weights:
            names = _equal_initializers(Model(proto, model.weights), fixed, changes)
            substitute(proto.graph, names)
            filter_initializers(proto.graph, lambda t: t.name not in names)
        _Merge(proto, fixed, changes).run()
        if changes:
            changes.extend(drop_stale_value_info(proto.graph))
        return finish(model, proto, {}, changes)


def _annotated(proto: ModelProto) -> set[str]:
    """Values that a quantisation annotation names."""
    found: set[str] = set()
    for graph in iter_graphs(proto.graph):
        for annotation in graph.quantization_annotation:
            found.add(annotation.tensor_name)
            found.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    return found


def _equal_initializers(model: Model, fixed: set[str], changes: list[Change]) -> dict[str, str]:
    """Main-graph initializers that another one replaces: name -> name of the first with the same content."""
    graph = model.proto.graph
    fixed = fixed | {value.name for inner in iter_graphs(graph) for value in inner.output}
    tensors = [t for t in graph.initializer if t.name not in fixed]
    # Only where dtype and shape agree are the elements read: most large weights have a shape of their own.
    alike = Counter(_form(t) for t in tensors)
    digests = WeightDigests()
    first: dict[Hashable, str] = {}
    names: dict[str, str] = {}
    for tensor in tensors:
        form = _form(tensor)
        if alike[form] < 2:
            continue
        content = digests.of_array(model.weights[tensor.name]) if is_stub(tensor) else tensor_digest(tensor)
        keeper = first.setdefault((form, content), tensor.name)
        if keeper != tensor.name:
            names[tensor.name] = keeper
            changes.append(Change("merge-initializer", tensor.name, f"it holds the same as {keeper!r}"))
    return names


def _form(tensor: TensorProto) -> tuple[int, tuple[int, ...]]:
    return tensor.data_type, tuple(tensor.dims)


class _Merge:
    """One walk over all graphs in topological order; replacements are made at the end, all at once."""

    def __init__(self, proto: ModelProto, fixed: set[str], changes: list[Change]) -> None:
        self._proto = proto
        self._fixed = fixed
        self._changes = changes
        self._opset = next((o.version for o in proto.opset_import if not o.domain), 0)
        #: Value -> the value that stands for it everywhere; a kept value that took an output's name over included.
        self._alias: dict[str, str] = {}
        #: Value -> the first value that is the same. It outlasts changes of names, so nodes are compared by it.
        self._first: dict[str, str] = {}

    def run(self) -> None:
        """Merges nodes in every graph of the model."""
        for graph in iter_graphs(self._proto.graph):
            self._graph(graph)
        substitute(self._proto.graph, self._alias, outputs=True)

    def _graph(self, graph: GraphProto) -> None:
        outputs = {value.name for value in graph.output}
        claims = {value.name: value for value in graph.value_info}
        seen: dict[Hashable, NodeProto] = {}
        kept = []
        for node in graph.node:
            first = seen.setdefault(self._key(node), node) if self._mergeable(node) else node
            if first is node or not self._redirect(first, node, outputs, claims):
                kept.append(node)
                continue
            reason = f"{label(first)} computes the same from the same inputs"
            self._changes.append(Change("merge-node", node.name, reason))
        if len(kept) != len(graph.node):
            replace_nodes(graph, kept)

    def _mergeable(self, node: NodeProto) -> bool:
        if node.domain or node.op_type in _RANDOM or node.op_type in _QUANTIZATION or has_bodies(node):
            return False
        return onnx.defs.has(node.op_type, self._opset, "") and not self._fixed.intersection(node.output)

    def _key(self, node: NodeProto) -> Hashable:
        """Equal for two nodes that compute the same."""
        read = [_end(self._first, name) for name in node.input]
        if node.op_type in _COMMUTATIVE:
            read.sort()
        attributes = sorted((a.name, _attribute_key(a)) for a in node.attribute)
        return node.op_type, tuple(read), tuple(bool(name) for name in node.output), tuple(attributes)

    def _redirect(
        self, first: NodeProto, node: NodeProto, outputs: set[str], claims: dict[str, ValueInfoProto]
    ) -> bool:
        """Plans to let `first` stand for `node`; False where both make an output of the graph."""
        made = [(a, b) for a, b in zip(first.output, node.output, strict=True) if a]
        pairs = [(_end(self._alias, a), b) for a, b in made]
        if any(b in outputs and a in outputs for a, b in pairs):
            return False
        self._first |= {b: _end(self._first, a) for a, b in made}
        for a, b in pairs:
            old, new = (a, b) if b in outputs else (b, a)
            self._alias[old] = new
            if new not in outputs:
                _keep_better_claim(claims, old, new)
        return True


def _end(names: Mapping[str, str], name: str) -> str:
    """The end of a chain of names."""
    while name in names:
        name = names[name]
    return name


def _attribute_key(attribute: AttributeProto) -> bytes:
    """What an attribute says, whatever its tensor is called and however that is stored."""
    plain = AttributeProto()
    plain.CopyFrom(attribute)
    plain.ClearField("doc_string")
    content = b""
    if attribute.type == AttributeProto.TENSOR:
        plain.ClearField("t")
        content = repr(_form(attribute.t)).encode() + tensor_digest(attribute.t)
    return bytes(plain.SerializeToString(deterministic=True)) + content


def _keep_better_claim(claims: dict[str, ValueInfoProto], old: str, new: str) -> None:
    """Gives `new` the type of `old` where that knows more numbers; both name one value from now on."""
    if old not in claims:
        return
    if new not in claims or _knowledge(claims[old]) > _knowledge(claims[new]):
        if new in claims:
            claims[new].type.CopyFrom(claims[old].type)
        else:
            claims[old].name = new
            claims[new] = claims.pop(old)


def _knowledge(value: ValueInfoProto) -> int:
    """How much a type says: the element type, the rank, and every known dimension count one."""
    dtype, shape = tensor_type(value.type)
    return bool(dtype) + (0 if shape is None else 1 + sum(isinstance(d, int) for d in shape))
