"""What is denied before TensorRT is asked: by dtype, rank, domain, and the user's lists."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable

from onnx import NodeProto, TensorProto

from passes.graph_index import bodies_of, iter_graphs
from passes.island_node import is_island, read_island
from passes.segments import TensorSpec
from passes.support import Verdict
from rewriter.errors import InvalidParameterError
from rewriter.node_patterns import told_match

#: Looks up dtype and shape of a value by name.
SpecOf = Callable[[str], TensorSpec]

LARGEST_RANK = 8
_DEFAULT_DOMAINS = ("", "ai.onnx")
#: TensorRT has no such type; the parser fails on them without naming a node.
_NO_TYPE = frozenset(
    getattr(TensorProto, name)
    for name in (
        "STRING", "INT16", "UINT16", "UINT32", "UINT64", "COMPLEX64", "COMPLEX128", "UINT4", "INT2", "UINT2",
        "FLOAT8E5M2", "FLOAT8E4M3FNUZ", "FLOAT8E5M2FNUZ",
    )
    if hasattr(TensorProto, name)
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rules:
    """The static rules, first match wins: denylist, tensorflow, domain, dtype, rank.

    A node is denied as well when a node inside its bodies is.

    Attributes:
        op_denylist: op_types, with the domain in front ("my.domain::Op") or without; case matters.
        node_denylist: regular expressions, searched in node names.
        allow_double: True leaves DOUBLE to TensorRT, which computes it in FLOAT.
    """

    op_denylist: frozenset[str] = frozenset()
    node_denylist: tuple[re.Pattern[str], ...] = ()
    allow_double: bool = False

    @classmethod
    def of(cls, op_denylist: Iterable[str], node_denylist: Iterable[str], allow_double: bool) -> Rules:
        """Compiles the user's lists.

        Raises:
            InvalidParameterError: a list is one string, or holds something else than strings, or a bad expression.
        """
        operators, patterns = strings("op_denylist", op_denylist), strings("node_denylist", node_denylist)
        compiled = []
        for pattern in patterns:
            try:
                compiled.append(re.compile(pattern))
            except re.error as error:
                raise InvalidParameterError(
                    f"node_denylist: {pattern!r} is not a regular expression: {error}"
                ) from error
        return cls(frozenset(operators), tuple(compiled), allow_double)

    def denial(self, node: NodeProto, spec: SpecOf) -> Verdict | None:
        """The denial of a node, or None when TensorRT is to be asked."""
        found = self._own(node, spec)
        if found is not None:
            return Verdict(node.name, label(node), False, *found)
        for _, body in bodies_of(node):
            for graph in iter_graphs(body):
                for inner in graph.node:
                    found = self._own(inner, spec)
                    if found is not None:
                        rule, reason = found
                        return Verdict(node.name, label(node), False, rule, f"inside it, {inner.name!r}: {reason}")
        return None

    def _own(self, node: NodeProto, spec: SpecOf) -> tuple[str, str] | None:
        """(rule, reason) for a node, its bodies aside."""
        if in_list(node, self.op_denylist):
            return "denylist", f"op_denylist holds {node.op_type}"
        for pattern in self.node_denylist:
            if pattern.search(node.name):
                return "denylist", told_match(pattern.pattern)
        if is_island(node):
            return "tensorflow", _kept_in_tensorflow(node)
        if node.domain not in _DEFAULT_DOMAINS:
            return "domain", f"TensorRT does not know the operator domain {node.domain!r}"
        for name in (*node.input, *node.output):
            found = self._value(spec(name)) if name else None
            if found is not None:
                return found
        return _quantizes_unsigned(node, spec) or self._cast(node)

    def _value(self, value: TensorSpec) -> tuple[str, str] | None:
        if value.dtype in _NO_TYPE:
            return "dtype", f"TensorRT has no type {_name(value.dtype)} ({value.name!r})"
        if value.dtype == TensorProto.DOUBLE and not self.allow_double:
            return (
                "dtype",
                f"TensorRT would compute DOUBLE in FLOAT without saying so ({value.name!r}); allow_double=True lets it",
            )
        if value.shape is not None and len(value.shape) > LARGEST_RANK:
            return "rank", f"{value.name!r} has rank {len(value.shape)}; TensorRT takes up to {LARGEST_RANK}"
        return None

    def _cast(self, node: NodeProto) -> tuple[str, str] | None:
        """A target type in an attribute counts even where the output's type was never inferred."""
        for attribute in node.attribute:
            if (node.op_type, attribute.name) == ("Cast", "to") or attribute.name == "dtype":
                found = self._value(TensorSpec(node.output[0], attribute.i, None))
                if found is not None:
                    return found
        return None


def label(node: NodeProto) -> str:
    """The operator with its domain in front, unless that is the default one."""
    return node.op_type if node.domain in _DEFAULT_DOMAINS else f"{node.domain}::{node.op_type}"


def in_list(node: NodeProto, operators: Collection[str]) -> bool:
    """Whether a list of operators names a node, with its domain or without."""
    return node.op_type in operators or label(node) in operators


def _kept_in_tensorflow(node: NodeProto) -> str:
    """What an island holds and why, in one line."""
    island = read_island(node)
    operators = f" ({', '.join(island.ops)})" if island.ops else ""
    reasons = f": {'; '.join(island.reasons)}" if island.reasons else ""
    return f"TensorFlow runs it{operators}{reasons}"


def _quantizes_unsigned(node: NodeProto, spec: SpecOf) -> tuple[str, str] | None:
    """TensorRT takes UINT8 quantisation with zero point 0, and silently saturates it at 127."""
    if node.op_type == "QuantizeLinear":
        explicit = spec(node.input[2]).dtype if len(node.input) > 2 and node.input[2] else 0
        dtype = explicit or next((a.i for a in node.attribute if a.name == "output_dtype" and a.i), TensorProto.UINT8)
    elif node.op_type == "DequantizeLinear":
        dtype = spec(node.input[0]).dtype
    else:
        return None
    if dtype == TensorProto.UINT8:
        return "dtype", "TensorRT would saturate UINT8 quantisation at 127 without saying so; use INT8"
    return None


def _name(dtype: int) -> str:
    return str(TensorProto.DataType.Name(dtype))


def strings(parameter: str, values: Iterable[str]) -> tuple[str, ...]:
    """The values as a tuple.

    Raises:
        InvalidParameterError: it is one string, or holds something else than strings.
    """
    items = (values,) if isinstance(values, str) else tuple(values)
    if isinstance(values, str) or not all(isinstance(item, str) for item in items):
        raise InvalidParameterError(f"{parameter} must be a list of strings, not {values!r}")
    return items
