"""The support oracle: which nodes of a model TensorRT's own parser takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import NodeProto

from passes.extract import Extractor
from passes.graph_index import Scope, bodies_of, iter_graphs, iter_scopes
from passes.model import Model
from passes.segments import SegmentModel
from passes.support import SupportMap, Verdict
from rewriter.backends.base import Backend
from rewriter.backends.examiner import GraphExaminer
from rewriter.backends.isolation import Isolation
from rewriter.backends.prefilter import Rules, label


class ParserOracle:
    """Asks the parser of `backend`; implements `passes.support.SupportOracle`.

    Answers about single nodes are remembered for the life of the oracle, and hold for this backend only.

    Args:
        backend: where TensorRT runs; the caller closes it.
        op_denylist: op_types that stay native; case matters, unknown names are fine.
        node_denylist: regular expressions; nodes whose name one of them is found in stay native.
        allow_double: True hands DOUBLE to TensorRT, which computes it in FLOAT; default: such nodes stay native.

    Raises:
        InvalidParameterError: a list is not a list of strings, or an expression is not valid.
    """

    def __init__(
        self,
        backend: Backend,
        op_denylist: Iterable[str] = (),
        node_denylist: Iterable[str] = (),
        allow_double: bool = False,
    ) -> None:
        self._backend = backend
        self._rules = Rules.of(op_denylist, node_denylist, allow_double)
        self._isolation = Isolation(backend)

    def examine(self, model: Model) -> SupportMap:
        """One verdict for every node of a canonical model, bodies of If/Loop/Scan included, in graph order.

        Nodes in the bodies of a supported node are supported with it; the bodies of a denied one are examined as
        graphs of their own.

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
        """Parses a segment exactly as it will be built; the denials of its nodes, () when the parser takes it all."""
        denied: dict[str, Verdict] = {}
        GraphExaminer(self._backend, Extractor(segment.model), self._isolation, (), denied).run()
        return tuple(denied.values())

    def _examine_graph(self, extractor: Extractor, scope: Scope) -> Iterator[tuple[NodeProto, Verdict]]:
        index = extractor.index(scope)
        denied: dict[str, Verdict] = {}
        for node in index.nodes:
            verdict = self._rules.denial(node, extractor.spec)
            if verdict is not None:
                denied[node.name] = verdict
        GraphExaminer(self._backend, extractor, self._isolation, scope, denied).run()
        for node in index.nodes:
            yield node, denied.get(node.name) or Verdict(node.name, label(node), True)
