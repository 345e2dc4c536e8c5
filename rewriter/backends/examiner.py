"""Asks the parser about one graph: the whole of it, minus what is denied so far, until nothing more is denied."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from onnx import NodeProto, TensorProto

from passes.extract import Extractor
from passes.graph_index import Scope, bodies_of, has_bodies, iter_graphs
from passes.support import Verdict
from rewriter.backends.base import Backend, ParserError
from rewriter.backends.isolation import Isolation
from rewriter.backends.prefilter import label
from rewriter.backends.text import clean, refusal

_LOG = logging.getLogger(__name__)

#: After so many rounds that each found import errors only, nodes are judged in isolation alone.
_PATIENT_ROUNDS = 32
#: After so many rounds, or rounds with a crash, the rest of the graph is denied.
_MAX_ROUNDS = 256
_MAX_CRASHES = 12


class GraphExaminer:
    """Finds all nodes of one graph that the parser refuses.

    Rules:
        1. A value of unknown rank or type that would become an input denies its consumers: the parser takes a missing
           shape for a scalar, silently.
        2. Errors of the static check are complete: all of them are denied at once.
        3. An import error stops the parser, so nodes of the same operator are tried in isolation and denied with
           it, unless a small input of theirs is computed in the graph: such an input may be a build-time constant,
           which isolation cannot see. Those wait for a round of their own.
        4. An error without a node: the operator that the parser's function is named after is tried in isolation; else
           the shortest prefix of the topological order that fails ends in the guilty node.
        5. A crash is tried again in a fresh process; then nodes with bodies are tried in isolation; then as 4.

    Args:
        backend: where the parser runs.
        extractor: of the model.
        isolation: remembers isolated checks.
        scope: the way to the graph.
        denied: verdicts by node name; the examiner adds to it.
    """

    def __init__(
        self,
        backend: Backend,
        extractor: Extractor,
        isolation: Isolation,
        scope: Scope,
        denied: dict[str, Verdict],
    ) -> None:
        self._backend = backend
        self._extractor = extractor
        self._isolation = isolation
        self._scope = scope
        self._denied = denied
        self._index = extractor.index(scope)
        self._nodes = {node.name: node for node in self._index.nodes}
        self._owner = {inner: node.name for node in self._index.nodes for inner in _names(node)}
        self._operator = {inner: op for node in self._index.nodes for inner, op in _operators(node)}

    def run(self) -> None:
        """Adds denials until the parser takes the rest of the graph."""
        crashes = 0
        for number in range(_MAX_ROUNDS + 1):
            self._deny_untyped_cuts()
            rest = self._rest()
            errors = self._parse(rest) if rest else ()
            if not errors:
                return
            if errors[0].stage == "crash":
                crashes += 1
                errors = self._parse(rest)  # an earlier request may have spoilt the process that died
                if not errors:
                    return
            if number == _MAX_ROUNDS or crashes > _MAX_CRASHES:
                self._deny_all(rest, errors[0])
                return
            before = len(self._denied)
            self._judge(rest, errors, trusting=number >= _PATIENT_ROUNDS)
            _LOG.debug("round %d denies %d of %d nodes", number, len(self._denied) - before, len(rest))
            if len(self._denied) == before:
                self._deny_all(rest, errors[0])
                return

    def _rest(self) -> list[str]:
        return [node.name for node in self._index.nodes if node.name not in self._denied]

    def _parse(self, names: Sequence[str]) -> tuple[ParserError, ...]:
        return self._backend.parse(self._extractor.extract_nodes(self._scope, names, hashed=False).model)

    def _judge(self, rest: list[str], errors: Sequence[ParserError], *, trusting: bool) -> None:
        for error in errors:
            node = self._pin(rest, error)
            if error.stage == "crash":
                self._judge_crash(rest, error)
            elif error.input:
                for user in self._index.consumers.get(error.input, ()):
                    self._deny(self._index.nodes[user].name, error)
            elif node is not None:
                self._deny(node, error)
                if error.stage == "import":
                    self._generalise(rest, self._nodes[node].op_type, trusting=trusting)
            else:
                self._judge_nameless(rest, error, trusting=trusting)

    def _pin(self, rest: list[str], error: ParserError) -> str | None:
        """The node of this graph that an error belongs to; errors inside bodies belong to the node around them."""
        if error.name in self._owner:
            return self._owner[error.name]
        return rest[error.node] if 0 <= error.node < len(rest) else None

    def _generalise(self, rest: list[str], operator: str, *, trusting: bool) -> None:
        """Denies the other nodes of an operator that fail in isolation."""
        inside = set(rest)
        for name in rest:
            if name in self._denied or self._nodes[name].op_type != operator:
                continue
            if trusting or self._is_context_free(name, inside):
                self._try_alone(name)

    def _judge_nameless(self, rest: list[str], error: ParserError, *, trusting: bool) -> None:
        operator = error.function.removeprefix("import").removeprefix("check")
        before = len(self._denied)
        candidates = {self._owner[i]: None for i, op in self._operator.items() if op == operator}
        inside = set(rest)
        for name in candidates:
            if name in inside and (trusting or self._is_context_free(name, inside)):
                self._try_alone(name)
        if len(self._denied) > before:
            return
        guilty = self._shortest_prefix(rest, bool)
        if guilty is not None:
            self._deny(guilty, error)
            self._generalise(rest, self._nodes[guilty].op_type, trusting=trusting)

    def _judge_crash(self, rest: list[str], error: ParserError) -> None:
        for name in rest:
            if has_bodies(self._nodes[name]) and self._crashes_alone(name):
                self._deny(name, error)
                return
        guilty = self._shortest_prefix(rest, lambda found: any(e.stage == "crash" for e in found))
        if guilty is None:
            return
        self._deny(guilty, error)
        if self._crashes_alone(guilty):
            for name in rest:  # equal nodes share the answer, so this costs no further crash
                if self._nodes[name].op_type == self._nodes[guilty].op_type and self._crashes_alone(name):
                    self._deny(name, error)

    def _crashes_alone(self, name: str) -> bool:
        found = self._isolation.check(self._extractor, self._scope, name)
        return any(e.stage == "crash" for e in found)

    def _try_alone(self, name: str) -> None:
        found = self._isolation.check(self._extractor, self._scope, name)
        if found:
            self._deny(name, found[0], alone=True)

    def _shortest_prefix(self, rest: list[str], fails: Callable[[tuple[ParserError, ...]], bool]) -> str | None:
        """The last node of the shortest prefix that fails; a prefix has all of its upstream, so it parses as in place.

        None when not even the whole fails any more.
        """
        passes, broken = 0, len(rest)
        seen = False
        while broken - passes > 1:
            middle = (passes + broken) // 2
            if fails(self._parse(rest[:middle])):
                broken, seen = middle, True
            else:
                passes = middle
        if not seen and not fails(self._parse(rest[:broken])):
            return None
        return rest[broken - 1]

    def _is_context_free(self, name: str, inside: set[str]) -> bool:
        """True when no input that is computed in the graph could be a shape or another build-time constant."""
        number = self._index.position[name]
        for value in self._index.reads[number]:
            producer = self._index.producer.get(value)
            if producer is None or self._index.nodes[producer].name not in inside:
                continue
            shape = self._extractor.spec(value).shape
            if shape is None or len(shape) <= 1:
                return False
        return True

    def _deny_untyped_cuts(self) -> None:
        """Rule 1, for graph inputs and for outputs of denied nodes; each denial may cut more."""
        waiting = [v for v in self._index.consumers if v not in self._index.producer]
        waiting += [v for name in self._denied for v in self._nodes[name].output]
        for value in waiting:  # grows while it is walked
            users = self._index.consumers.get(value, ())
            finding = self._untyped(value) if users else None
            for user in users if finding is not None else ():
                node = self._index.nodes[user]
                if finding is not None and node.name not in self._denied:
                    self._denied[node.name] = Verdict(node.name, label(node), False, *finding)
                    waiting.extend(node.output)

    def _untyped(self, value: str) -> tuple[str, str] | None:
        spec = self._extractor.spec(value)
        if spec.dtype == TensorProto.UNDEFINED:
            return "dtype", f"the type of its input {value!r} is not known, or it is no tensor"
        if spec.shape is None:
            return "rank", f"the rank of its input {value!r} is not known"
        return None

    def _deny(self, name: str, error: ParserError, *, alone: bool = False) -> None:
        if name in self._denied:
            return
        node = self._nodes[name]
        if error.stage == "crash":
            self._denied[name] = Verdict(name, label(node), False, "crash", error.message)
            return
        # The errors of a shared isolated check name the node that was tried, not this one.
        known = "" if alone and not has_bodies(node) else error.name
        inner = known if known in self._owner and known != name else ""
        operator = self._operator.get(inner, node.op_type) if inner else label(node)
        self._denied[name] = Verdict(name, label(node), False, "parser", refusal(operator, inner, error.message))

    def _deny_all(self, rest: list[str], error: ParserError) -> None:
        rule = "crash" if error.stage == "crash" else "parser"
        words = error.message if rule == "crash" else clean(error.message) or error.code
        reason = f"TensorRT refuses it jointly with {len(rest) - 1} other nodes: {words}"
        for name in rest:
            self._denied[name] = Verdict(name, label(self._nodes[name]), False, rule, reason)


def _operators(node: NodeProto) -> list[tuple[str, str]]:
    """(name, op_type) of a node and of all nodes in its bodies."""
    found = [(node.name, node.op_type)]
    for _, body in bodies_of(node) if node.attribute else ():
        found += [(inner.name, inner.op_type) for graph in iter_graphs(body) for inner in graph.node]
    return found


def _names(node: NodeProto) -> list[str]:
    return [name for name, _ in _operators(node)]
