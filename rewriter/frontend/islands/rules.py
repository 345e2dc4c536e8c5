"""Which nodes have to stay in TensorFlow, and why: a reason for each, in words."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from rewriter.frontend.bfloat16 import BFLOAT16
from rewriter.frontend.islands.cases import CASES
from rewriter.frontend.islands.dtypes import node_dtypes
from rewriter.frontend.islands.graph import TABLES, functions_of
from rewriter.frontend.islands.vocabulary import STRING_MOVES, WRONG, handled
from rewriter.frontend.no_text import const_without_text, why_not

_STRING, _INT64 = 7, 9
_COMPLEX = frozenset({8, 18})
_INTEGERS = frozenset({3, 4, 5, 6, 9, 17, 22, 23})
#: Transforms that are exported as a product with a constant matrix, if only the absolute value is wanted of them.
_SPECTRA = frozenset({"RFFT", "RFFT2D"})

Shapes = Callable[[str], "tuple[int | None, ...] | None"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a caller lets the export do.

    Attributes:
        keep: operators that stay in TensorFlow because the user says so.
        tolerance: the relative error that the user accepts; operators known to be that wrong are exported.
    """

    keep: frozenset[str] = frozenset()
    tolerance: float = 1e-4


@dataclasses.dataclass(frozen=True)
class Scope:
    """A graph or a function body, as far as the rules look at it.

    Attributes:
        nodes: by name.
        library: functions by name.
        limits: what the caller lets the export do.
        shape_of: shape of the first input of a node, by the node's name; None as a whole: not known here.
    """

    nodes: Mapping[str, Any]
    library: Mapping[str, Any]
    limits: Limits
    shape_of: Shapes | None = None

    def producer(self, name: str) -> Any:
        """The node behind an input ("node", "node:1" or "node:output:1"); None for an argument of a function."""
        return self.nodes.get(name.partition(":")[0])

    @functools.cached_property
    def readers(self) -> dict[str, list[Any]]:
        """Node name -> nodes that read it."""
        found: dict[str, list[Any]] = {}
        for node in self.nodes.values():
            for name in node.input:
                found.setdefault(name.partition(":")[0], []).append(node)
        return found

    def reason(self, node: Any) -> str:
        """Why `node` stays in TensorFlow, without its operator's name; "" for a node that is exported."""
        inputs, outputs = node_dtypes(node, self.library)
        if node.op in self.limits.keep:
            return "named in keep_in_tensorflow"
        if node.op in TABLES:
            return ""  # every reader gets its own copy
        for rule in (_bfloat16, _table, _complex, _no_text, _strings, _wrong, _case):
            found = rule(self, node, (*inputs, *outputs))
            if found:
                return found
        if node.op not in handled():
            return "ONNX has no word for it"
        return self._of_bodies(node)

    def _of_bodies(self, node: Any) -> str:
        """The first reason within the functions that a node calls."""
        for name in functions_of(node):
            found = _body_reason(name, self)
            if found:
                return found
        return ""


def _body_reason(name: str, outer: Scope) -> str:
    """Why a function cannot be exported; "" when it can, or is not there."""
    function = outer.library.get(name)
    if function is None:
        return ""
    scope = Scope({node.name: node for node in function.node_def}, outer.library, outer.limits)
    for node in function.node_def:
        reason = scope.reason(node)
        if reason and node.op != "Assert":
            return reason if reason.startswith("its body ") else f"its body holds {node.op}: {reason}"
    return ""


def _bfloat16(_scope: Scope, _node: Any, kinds: Collection[int]) -> str:
    """What has kept bfloat16 when the graph was frozen, and the casts around it."""
    return "it reads or writes the bytes of bfloat16" if BFLOAT16 in kinds else ""


def _table(scope: Scope, node: Any, _kinds: Collection[int]) -> str:
    """ONNX's LabelEncoder, as it is exported, maps strings to int64 and back."""
    if not node.op.startswith("LookupTable"):
        return ""
    table = scope.producer(node.input[0])
    if table is None or table.op not in TABLES:
        return "the table comes from outside the loop or branch"
    pair = {table.attr["key_dtype"].type, table.attr["value_dtype"].type}
    return why_not(table) if pair == {_STRING, _INT64} else "ONNX has tables from string to int64 and back only"


def _complex(scope: Scope, node: Any, kinds: Collection[int]) -> str:
    """Only |rfft(x)| has a translation."""
    if _COMPLEX.isdisjoint(kinds):
        return ""
    if node.op in _SPECTRA and all(reader.op == "ComplexAbs" for reader in scope.readers.get(node.name, ())):
        return ""
    if node.op == "ComplexAbs":
        source = scope.producer(node.input[0])
        if source is not None and source.op in _SPECTRA and not _complex(scope, source, kinds):
            return ""
    return "ONNX Runtime has no complex numbers"


def _no_text(scope: Scope, node: Any, kinds: Collection[int]) -> str:
    """Constants of bytes stay with what reads them."""
    if _STRING not in kinds:
        return ""
    sources = (scope.producer(name) for name in node.input if not name.startswith("^"))
    bad = any(source is not None and const_without_text(source) for source in (node, *sources))
    return "a constant of it holds bytes that are no UTF-8 text" if bad else ""


def _strings(_scope: Scope, node: Any, kinds: Collection[int]) -> str:
    """Strings may be moved; what looks at their letters stays."""
    if "element_dtype" in node.attr and node.attr["element_dtype"].type == _STRING:
        return "lists of strings have no equal in ONNX"
    if _STRING not in kinds or node.op in STRING_MOVES or node.op.startswith("LookupTable"):
        return ""
    if node.op == "AsString" and node.attr["T"].type in _INTEGERS and not _formats(node):
        return ""
    if node.op in ("Assert", "While", "StatelessWhile", "NoOp"):
        return ""
    return "it works on strings"


def _formats(node: Any) -> bool:
    """True for an AsString that does more than write the number."""
    numbers = (node.attr[name].i for name in ("precision", "width") if name in node.attr)
    others = (node.attr[name] for name in ("scientific", "shortest", "fill") if name in node.attr)
    return any(number != -1 for number in numbers) or any(value.b or value.s for value in others)


def _wrong(scope: Scope, node: Any, _kinds: Collection[int]) -> str:
    """Operators whose export computes something else, unless the user accepts that much."""
    what, error = WRONG.get(node.op, ("", 0.0))
    return what if error > scope.limits.tolerance else ""


def _case(scope: Scope, node: Any, _kinds: Collection[int]) -> str:
    """Operators that are exported rightly in some cases only."""
    case = CASES.get(node.op)
    return case(scope, node) if case else ""
