"""Types and shapes of all values: what ONNX can infer, joined with what the model already knew."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import onnx
from onnx import GraphProto, ModelProto, TypeProto, ValueInfoProto

from passes.base import Change, PassResult
from passes.graph.editing import finish
from passes.graph.value_types import Shape, set_tensor_type, tensor_type, value_types
from passes.graph.walk import bodies_of, iter_graphs
from passes.model import Model, stubs_as_inputs

_log = logging.getLogger(__name__)

__all__ = ["InferShapes", "infer", "value_types"]


@dataclasses.dataclass(frozen=True)
class InferShapes:
    """Writes the type of every value that can be known into the value_info of its graph, bodies included.

    1. ONNX's own shape inference, with data propagation, runs on the graph without its weights.
    2. What the model already said is kept wherever inference knows less (exporters put the source framework's
       shapes there), and helps inference to go on behind operators it does not know.
    3. Where the two contradict each other inference wins, and a Change says so.
    4. Graph outputs only gain knowledge: symbols and numbers that the model's author gave stay.
    5. Symbols that inference invents are dropped: they carry no meaning and would differ from run to run.

    A model that inference cannot digest keeps what it has; the reason is logged.
    """

    name: str = "infer_shapes"

    def run(self, model: Model) -> PassResult:
        """Adds and corrects value_info."""
        proto = model.copy_proto()
        changes: list[Change] = []
        # First without the model's own claims, so that a wrong one cannot hide what inference finds; then, if one of
        # them knew more than inference, with the claims, so that their knowledge spreads.
        first = infer(_without_claims(model))
        if _claims(proto) if first is None else _merge(proto, first, changes):
            second = infer(stubs_as_inputs(Model(proto, model.weights)))
            if second is not None:
                _merge(proto, second, changes)
        return finish(model, proto, {}, changes)


def infer(proto: ModelProto) -> ModelProto | None:
    """The model with inferred types, or None where ONNX gives up."""
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        _log.warning("shape inference gave up on graph %r, its own types are kept: %s", proto.graph.name, error)
        return None


def _claims(proto: ModelProto) -> bool:
    return any(graph.value_info for graph in iter_graphs(proto.graph))


def _without_claims(model: Model) -> ModelProto:
    proto = stubs_as_inputs(model)
    for graph in iter_graphs(proto.graph):
        del graph.value_info[:]
    return proto


def _pairs(ours: GraphProto, theirs: GraphProto) -> Iterator[tuple[GraphProto, GraphProto]]:
    """The same graph in two copies of a model, main graph first."""
    yield ours, theirs
    for mine, other in zip(ours.node, theirs.node, strict=True):
        for (_, body), (_, inferred) in zip(bodies_of(mine), bodies_of(other), strict=True):
            yield from _pairs(body, inferred)


def _merge(proto: ModelProto, inferred: ModelProto, changes: list[Change]) -> bool:
    """Joins inferred types into `proto`, graph by graph; True when value_info knew more than inference."""
    symbols = _symbols(proto)
    knew_more = False
    for graph, other in _pairs(proto.graph, inferred.graph):
        types = {v.name: v.type for v in other.value_info}
        types.update((o.name, o.type) for o in other.output)
        for output in graph.output:
            if output.name in types:
                _join(output, types[output.name], symbols, changes, trusted=True)
        claims = {v.name: v for v in graph.value_info}
        outputs = {o.name for o in graph.output}
        for name in (name for node in graph.node for name in node.output if name and name not in outputs):
            if name not in types:
                knew_more = knew_more or name in claims
            elif name in claims:
                knew_more = _join(claims[name], types[name], symbols, changes) or knew_more
            else:
                _add(graph, name, types[name], symbols, changes)
    return knew_more


def _add(graph: GraphProto, name: str, inferred: TypeProto, symbols: set[str], changes: list[Change]) -> None:
    value = _cleaned(name, inferred, symbols)
    if value is not None:
        graph.value_info.append(value)
        changes.append(Change("add-type", name, _describe(value.type)))


def _join(
    claim: ValueInfoProto,
    inferred: TypeProto,
    symbols: set[str],
    changes: list[Change],
    *,
    trusted: bool = False,
) -> bool:
    """Joins one inferred type into what the model says; `trusted` claims only gain knowledge.

    Returns:
        True when the claim knew more than inference.
    """
    if claim.type == inferred:
        return False  # the usual case of a second run, and much quicker than what follows
    clean = _cleaned(claim.name, inferred, symbols)
    if clean is None:
        return True
    if not claim.type.HasField("tensor_type") or not inferred.HasField("tensor_type"):
        if claim.type.WhichOneof("value") is None:
            claim.type.CopyFrom(clean.type)
            changes.append(Change("add-type", claim.name, _describe(claim.type)))
        return False
    dtype, shape = tensor_type(claim.type)
    new_dtype, new_shape = tensor_type(clean.type)
    conflict = bool(dtype and dtype != new_dtype) or _contradict(shape, new_shape)
    if conflict and trusted:
        return False
    merged = new_shape if conflict else _joined_shape(shape, new_shape)
    if (new_dtype, merged) != (dtype, shape):
        before = _describe(claim.type)
        set_tensor_type(claim.type, new_dtype, merged)
        rule = "correct-type" if conflict else "refine-type"
        changes.append(Change(rule, claim.name, f"{before} -> {_describe(claim.type)}"))
    return merged != new_shape


def _contradict(claim: Shape | None, inferred: Shape | None) -> bool:
    """True when two shapes cannot both be right: other ranks, or other numbers in one place."""
    if claim is None or inferred is None:
        return False
    if len(claim) != len(inferred):
        return True
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(claim, inferred, strict=True))


def _joined_shape(claim: Shape | None, inferred: Shape | None) -> Shape | None:
    """The more precise one in every place: a number, else the claim's symbol, else inference's."""
    if claim is None or inferred is None:
        return inferred if claim is None else claim
    return tuple(
        next((d for d in (a, b) if isinstance(d, int)), a if a is not None else b)
        for a, b in zip(claim, inferred, strict=True)
    )


def _cleaned(name: str, inferred: TypeProto, symbols: set[str]) -> ValueInfoProto | None:
    """An inferred type without invented symbols; None when it says nothing."""
    if inferred.WhichOneof("value") is None:
        return None
    value = ValueInfoProto(name=name)
    value.type.CopyFrom(inferred)
    if not inferred.HasField("tensor_type"):
        return value
    dtype, shape = tensor_type(inferred)
    if not dtype:
        return None
    if shape is not None:
        shape = tuple(d if isinstance(d, int) or d in symbols else None for d in shape)
    set_tensor_type(value.type, dtype, shape)
    return value


def _symbols(proto: ModelProto) -> set[str]:
    """Every symbol that the model itself uses for a dimension."""
    found: set[str] = set()
    for graph in iter_graphs(proto.graph):
        for values in (graph.input, graph.output, graph.value_info):
            for value in values:
                shape = tensor_type(value.type)[1]
                found.update(d for d in shape or () if isinstance(d, str))
    return found


def _describe(value: TypeProto) -> str:
    """A type for people: "FLOAT[N, 3, ?]"."""
    if not value.HasField("tensor_type"):
        return str(value.WhichOneof("value"))
    dtype, shape = tensor_type(value)
    text = onnx.TensorProto.DataType.Name(dtype)
    return text if shape is None else f"{text}[{', '.join('?' if d is None else str(d) for d in shape)}]"
