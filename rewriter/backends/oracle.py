"""The support oracle: which nodes of a model TensorRT's own parser takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import NodeProto

from passes.extract import Extractor
from passes.graph_index import Scope, bodies_of, iter_graphs, iter_scopes
from passes.model import Model
from passes.segments import SegmentModel
from passes.support import FAKELIST, SupportMap, Verdict
from rewriter.backends.base import Backend
from rewriter.backends.examiner import GraphExaminer
from rewriter.backends.isolation import Isolation
from rewriter.backends.prefilter import Rules, in_list, label, strings

#: Denials that the fake list does not lift: the user's own, and what cannot be handed to TensorRT at all.
_FINAL_RULES = ("denylist", "tensorflow")


class ParserOracle:
    """Asks the parser of `backend`; implements `passes.support.SupportOracle`.

    Answers about single nodes are remembered for the life of the oracle, and hold for this backend only.

    Args:
        backend: where TensorRT runs; the caller closes it.
        op_denylist: op_types that stay native; case matters, unknown names are fine.
        node_denylist: regular expressions; nodes whose name one of them is found in stay native.
        allow_double: True hands DOUBLE to TensorRT, which computes it in FLOAT; default: such nodes stay native.
        op_fakelist: op_types that are cut as if TensorRT took them, where it does not ("what if"); with the domain in
            front or without. What the denylists name, and what TensorFlow runs, stays native all the same.

    Raises:
        InvalidParameterError: a list is not a list of strings, or an expression is not valid.
    """

    def __init__(
        self,
        backend: Backend,
        op_denylist: Iterable[str] = (),
        node_denylist: Iterable[str] = (),
        allow_double: bool = False,
        op_fakelist: Iterable[str] = (),
    ) -> None:
        self._backend = backend
        self._fakelist = frozenset(strings("op_fakelist", op_fakelist))
        self._rules = Rules.of(op_denylist, node_denylist, allow_double)
        self._isolation = Isolation(backend)

    def examine(self, model: Model) -> SupportMap:
        """One verdict for every node of a canonical model, bodies of If/Loop/Scan included, in graph order.

        Nodes in the bodies of a supported node are supported with it; the bodies of a denied one are examined as
        graphs of their own. Nodes of the fake list that would be denied are supported with the rule "fakelist"; the
        parser does not see them, so that it judges the rest.

        Raises:
            PassError: node names are missing or not unique.
            BackendError, MissingDependencyError: TensorRT cannot be run.
        """
        extractor = Extractor(model)
        verdicts: dict[str, Verdict] = {}
        waiting: list[Scope] = [()]
        while waiting:
            scope = waiting.pop()
            for node, verdict in self._examine_graph(extractor, scope):
                verdicts[node.name] = verdict
                for entry, body in bodies_of(node):
                    if not verdict.supported:
                        waiting.append((*scope, entry))
                        continue
                    for inner in (n for graph in iter_graphs(body) for n in graph.node):
                        verdicts[inner.name] = Verdict(inner.name, label(inner), True)
        return SupportMap({n.name: verdicts[n.name] for _, graph in iter_scopes(model.proto) for n in graph.node})

    def check_segment(self, segment: SegmentModel) -> tuple[Verdict, ...]:
        """Parses a segment exactly as it will be built; the denials of its nodes, () when the parser takes it all.

        What is denied and on the fake list comes back as a pretence (a positive verdict); the rest is parsed without
        it.
        """
        extractor = Extractor(segment.model)
        denied: dict[str, Verdict] = {}
        if self._fakelist:  # some of them would make the parser fail without a name
            suspects = [node for node in extractor.index(()).nodes if in_list(node, self._fakelist)]
            denied = self._by_rules(suspects, extractor)
        GraphExaminer(self._backend, extractor, self._isolation, (), denied).run()
        nodes = {node.name: node for node in extractor.index(()).nodes}
        return tuple(self._pretended(nodes[name], verdict) for name, verdict in denied.items())

    def _examine_graph(self, extractor: Extractor, scope: Scope) -> Iterator[tuple[NodeProto, Verdict]]:
        index = extractor.index(scope)
        denied = self._by_rules(index.nodes, extractor)
        GraphExaminer(self._backend, extractor, self._isolation, scope, denied).run()
        for node in index.nodes:
            verdict = denied.get(node.name)
            yield node, Verdict(node.name, label(node), True) if verdict is None else self._pretended(node, verdict)

    def _by_rules(self, nodes: Iterable[NodeProto], extractor: Extractor) -> dict[str, Verdict]:
        """What is denied before the parser is asked."""
        found = ((node.name, self._rules.denial(node, extractor.spec)) for node in nodes)
        return {name: verdict for name, verdict in found if verdict is not None}

    def _pretended(self, node: NodeProto, denial: Verdict) -> Verdict:
        """The denial, or for a node of the fake list a pretence that tells its reason."""
        if denial.rule in _FINAL_RULES or not in_list(node, self._fakelist):
            return denial
        return Verdict(node.name, denial.op_type, True, FAKELIST, denial.reason)
