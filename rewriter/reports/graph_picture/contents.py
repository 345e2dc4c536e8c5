"""What is in a picture: boxes and lines, made out of a model and its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto

from passes.engine_node import engine_nodes
from passes.graph.value_types import collect_infos, spec_of
from passes.graph.walk import Scope, iter_scopes, plain_domain
from passes.graph_index import GraphIndex
from passes.island_node import is_island, read_island
from passes.model import Model
from passes.segments import ENGINE_DOMAIN, TensorSpec
from passes.splice import unsplice
from passes.support import Verdict
from rewriter.reports.report import EngineReport, Report, dtype_name, flops_text, shape_text

#: Up to so many nodes a model is drawn node by node.
EXPANDED_UP_TO = 150
#: Operators named for one engine.
_NAMED = 10

INPUT, OUTPUT, NATIVE, ISLAND, ENGINE, MEMBER = "input", "output", "native", "tensorflow", "engine", "member"


@dataclasses.dataclass(frozen=True)
class Box:
    """One box.

    Attributes:
        kind: `INPUT`, `OUTPUT`, `NATIVE`, `ISLAND` (TensorFlow), `ENGINE` (a whole one) or `MEMBER` (a node of one).
        label: the operator, or the name of an input or output.
        detail: the second line; "" for none.
        tooltip: several lines.
        engine: number of the engine in `Content.engines`; -1 for none.
        name: of the node, or of the input or output, in full.
        notes: where it runs and why, a line each; no names and types of values.
        results: (name, dtype and shape) of the values that it gives; ("" where the type is not known).
    """

    kind: str
    label: str
    detail: str
    tooltip: str
    engine: int = -1
    name: str = ""
    notes: tuple[str, ...] = ()
    results: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Line:
    """All values that one box reads from another; `dtype` is that of the first ("" where it is not known)."""

    source: int
    target: int
    dtype: str
    tooltip: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """One graph: the main graph, or the body of a native If, Loop or Scan; its boxes are in topological order."""

    title: str
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]


@dataclasses.dataclass(frozen=True)
class Engine:
    """A line of the legend: `ready` is False for a segment that runs natively (not built, failed, what-if)."""

    name: str
    text: str
    ready: bool


@dataclasses.dataclass(frozen=True)
class Content:
    """A whole picture before its layout."""

    title: str
    subtitle: str
    engines: tuple[Engine, ...]
    panels: tuple[Panel, ...]


def make_content(model: Model, report: Report, expand_engines: bool | None = None) -> Content:
    """Collects boxes and lines; see `graph_picture`."""
    inside = {f.name: frozenset(n.name for n in f.node) for f in model.proto.functions if f.domain == ENGINE_DOMAIN}
    if expand_engines is None:
        expand_engines = report.total_nodes <= EXPANDED_UP_TO
    spliced = any(True for _ in engine_nodes(model.proto))
    drawn = unsplice(model) if spliced and expand_engines else model
    engines = tuple(_engine(engine) for engine in report.engines)
    if report.engines and not spliced:
        engines = (Engine("engines", f"{len(engines)} engine(s); the model does not say which node is in which", True),)
    number = {engine.name: i for i, engine in enumerate(engines)}
    member = {name: number[op] for op, names in inside.items() if op in number for name in names}
    maker = _Maker(drawn, report, engines, number, member if expand_engines else {}, spliced=spliced)
    return Content(
        title=report.source,
        subtitle=f"{report.total_nodes} nodes, {report.coverage:.1%} of the effective ones in {len(report.engines)} "
        f"segment(s), {sum(e.built for e in report.engines)} with an engine",
        engines=engines,
        panels=tuple(maker.panels()),
    )


class _Maker:
    """Makes the panels of one model."""

    def __init__(
        self,
        model: Model,
        report: Report,
        engines: tuple[Engine, ...],
        number: Mapping[str, int],
        member: Mapping[str, int],
        *,
        spliced: bool,
    ) -> None:
        self._proto = model.proto
        self._verdicts = {verdict.node: verdict for verdict in report.native}
        self._reports = {engine.name: engine for engine in report.engines}
        self._engines, self._number, self._member = engines, number, member
        self._spliced = spliced
        self._infos: Mapping[str, ValueInfoProto] = collect_infos(model.proto)
        self._constants = {t.name for _, graph in iter_scopes(model.proto) for t in graph.initializer}

    def panels(self) -> Iterator[Panel]:
        """The main graph, then the bodies that lie in no engine."""
        for scope, graph in iter_scopes(self._proto):
            owners = [entry.rpartition("/")[0] for entry in scope]
            if not any(self._in_engine(owner) for owner in owners):
                yield self._panel(scope, graph)

    def _in_engine(self, node: str) -> bool:
        return node in self._member or (not self._spliced and bool(self._engines) and node not in self._verdicts)

    def _panel(self, scope: Scope, graph: GraphProto) -> Panel:
        index = GraphIndex.of(graph)
        boxes: list[Box] = []
        made: dict[str, int] = {}
        links: dict[tuple[int, int], list[str]] = {}
        inputs = [i.name for i in graph.input if i.name not in self._constants]
        outer = [v for reads in index.reads for v in reads if v not in index.producer and v not in self._constants]
        for name in dict.fromkeys([*inputs, *outer, *(o for o in index.outputs if o not in index.producer)]):
            made[name] = len(boxes)
            origin = "input" if name in inputs else "from outside"
            boxes.append(self._end(INPUT, name, origin))
        first = len(boxes)
        for position, node in enumerate(index.nodes):
            boxes.append(self._box(node))
            made.update((name, first + position) for name in node.output if name)
        for position, reads in enumerate(index.reads):
            for name in reads:
                if name in made:
                    links.setdefault((made[name], first + position), []).append(name)
        for name in index.outputs:
            if name in made:
                links.setdefault((made[name], len(boxes)), []).append(name)
            boxes.append(self._end(OUTPUT, name, "output"))
        lines = tuple(
            Line(source, target, self._dtype(names[0]), "\n".join(self._value(name) for name in names))
            for (source, target), names in links.items()
        )
        return Panel("/".join(scope), tuple(boxes), lines)

    def _end(self, kind: str, name: str, origin: str) -> Box:
        kind_of_value = self._type(name)
        results = ((name, kind_of_value),)
        return Box(kind, name, kind_of_value, f"{origin} {self._value(name)}", -1, name, (origin,), results)

    def _box(self, node: NodeProto) -> Box:
        if node.domain == ENGINE_DOMAIN and node.op_type in self._reports:
            return self._engine_box(node)
        domain = plain_domain(node.domain)
        heading = f"{domain + '::' if domain else ''}{node.op_type} {node.name!r}"
        verdict = self._verdicts.get(node.name)
        if is_island(node):
            island = read_island(node)
            notes = (", ".join(island.ops), *island.reasons)
            return self._node(ISLAND, "TensorFlow", ", ".join(island.ops[:3]), heading, node, notes)
        engine = self._member.get(node.name, -1)
        if engine < 0 and verdict is None and not self._spliced and self._engines:
            engine = 0
        short = _short(node.name)
        if engine >= 0:
            notes = (f"in {self._engines[engine].name}",)
            return self._node(MEMBER, node.op_type, short, heading, node, notes, engine)
        return self._node(NATIVE, node.op_type, short, heading, node, (_reason(verdict),))

    def _engine_box(self, node: NodeProto) -> Box:
        engine = self._reports[node.op_type]
        counts = list(engine.op_counts.items())
        ops = ", ".join(f"{op} x{count}" if count > 1 else op for op, count in counts[:_NAMED])
        more = f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else ""
        text = _engine(engine).text
        detail = f"{engine.nodes} node{'s' * (engine.nodes != 1)}, {engine.precision}"
        notes = (text, ops + more, engine.reason)
        heading = f"{engine.name}: {text}"
        return self._node(ENGINE, engine.name, detail, heading, node, notes, self._number[engine.name])

    def _node(
        self,
        kind: str,
        label: str,
        detail: str,
        heading: str,
        node: NodeProto,
        notes: tuple[str, ...],
        engine: int = -1,
    ) -> Box:
        """A box of a node; the tooltip is the heading, the notes that it does not say, and the results."""
        lines = [heading, *(note for note in notes if note and not heading.endswith(f": {note}")), *self._results(node)]
        results = tuple((name, self._type(name)) for name in node.output if name)
        return Box(kind, label, detail, "\n".join(lines), engine, node.name, tuple(n for n in notes if n), results)

    def _results(self, node: NodeProto) -> list[str]:
        return [f"gives {self._value(name)}" for name in node.output if name]

    def _spec(self, name: str) -> TensorSpec:
        return spec_of(self._infos[name]) if name in self._infos else TensorSpec(name, TensorProto.UNDEFINED, None)

    def _dtype(self, name: str) -> str:
        dtype = self._spec(name).dtype
        return dtype_name(dtype) if dtype else ""

    def _type(self, name: str) -> str:
        spec = self._spec(name)
        return f"{dtype_name(spec.dtype)} {shape_text(spec)}" if spec.dtype else ""

    def _value(self, name: str) -> str:
        return f"{name}: {self._type(name) or 'of unknown type'}"


def _engine(engine: EngineReport) -> Engine:
    count = f"{engine.nodes} node{'s' * (engine.nodes != 1)}, {engine.precision}"
    flops = f", {flops_text(engine.flops)}" if engine.flops else ""
    return Engine(engine.name, f"{count}{flops}{'' if engine.built else ', no engine'}", engine.built)


def _reason(verdict: Verdict | None) -> str:
    return f"native ({verdict.rule}): {verdict.reason}" if verdict else "native"


def _short(name: str) -> str:
    """The last part of a name, at most 28 characters of it."""
    last = name.rstrip("/").rpartition("/")[2] or name
    return last if len(last) <= 28 else f"…{last[-27:]}"
