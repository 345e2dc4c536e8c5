"""Which nodes lie in which island.

1. Every node with a reason (`rules`) stays in TensorFlow, with all of its unit (`units`). So does what passes strings
   to or from such a node: strings are moved within TensorFlow, where they are bytes.
2. Cheap nodes between two of those may stay as well. Both kinds are clustered convexly, into as few clusters as can be;
   a cluster keeps only what lies on a way between two nodes that must stay. One that would pull in more than
   `LIGHT_MAX` nodes of floating-point arithmetic is split instead.
3. What reads nothing but an island and measures what is in its values (`DATA_DEPENDENT`) moves into it: TensorFlow does
   in one node what takes ONNX dozens, none of them for an engine. So does what follows an island and is cheap up to the
   outputs. What leads to an island and is cheap throughout is copied into it, so that it begins with the model's own
   inputs; at the least the shape arithmetic is copied. All this only where work remains for ONNX.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from passes.graph.clustering import Dag, cluster
from rewriter.frontend.islands.costs import HEAVY, costs
from rewriter.frontend.islands.graph import Graph, data_inputs
from rewriter.frontend.islands.rules import Limits, Scope, Shapes
from rewriter.frontend.islands.units import Units, find_units
from rewriter.frontend.islands.vocabulary import DATA_DEPENDENT, MEASURES

#: Nodes of floating-point arithmetic that an island may take in where that saves a boundary.
LIGHT_MAX = 8
_STRING = 7
_PASSES_STRINGS = "it passes strings to or from an operator that stays"


@dataclasses.dataclass(frozen=True)
class Island:
    """A piece that TensorFlow runs.

    Attributes:
        members: nodes that are computed here and nowhere else.
        copies: nodes that are computed here, and outside once more where something outside reads them.
        reasons: of the members that must stay: node -> why.
    """

    members: tuple[str, ...]
    copies: tuple[str, ...]
    reasons: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The islands of a graph, in topological order, and what is left.

    Attributes:
        islands: none for a model that ONNX has words for.
        remaining: nodes outside islands that do more than move elements.
    """

    islands: tuple[Island, ...]
    remaining: int


def find_reasons(graph: Graph, limits: Limits, shape_of: Shapes) -> dict[str, str]:
    """Node -> why it stays in TensorFlow, of the nodes that compute something that is not constant."""
    scope = Scope(graph.nodes, graph.library, limits, shape_of)
    fixed = {name for name in graph.nodes if graph.is_source(name) and graph.nodes[name].op == "Const"}
    found = {}
    for name, node in graph.nodes.items():
        if name in graph.inputs or graph.is_source(name):
            continue
        sources = list(data_inputs(node))
        if sources and all(source in fixed for source, _ in sources) and node.op not in limits.keep:
            fixed.add(name)  # the exporter folds it; where it cannot, the export says so
            continue
        reason = scope.reason(node)
        if reason:
            found[name] = reason
    return found


def make_plan(graph: Graph, reasons: Mapping[str, str]) -> Plan:
    """The islands for the nodes that must stay."""
    if not reasons:
        return Plan((), len(graph.nodes))
    units = find_units(graph)
    why: dict[int, dict[str, str]] = {}
    for name, reason in reasons.items():
        why.setdefault(units.of[name], {})[name] = reason
    price = costs(graph, units)
    _spread_strings(graph, units, price, why)
    hulls = _clusters(units, price, why)
    plan = _finish(graph, units, price, why, hulls, absorb=True)
    return plan if plan.remaining else _finish(graph, units, price, why, hulls, absorb=False)


def _spread_strings(graph: Graph, units: Units, price: Sequence[int], why: dict[int, dict[str, str]]) -> None:
    """Step 1: neighbours along edges that carry strings, unless they are heavy."""
    neighbours: dict[int, dict[int, str]] = {}
    for reader, unit in units.of.items():
        for source in data_inputs(graph.nodes[reader]):
            other = units.of.get(source[0])
            if other is not None and other != unit and graph.dtype(source) == _STRING:
                neighbours.setdefault(unit, {})[other] = source[0]
                neighbours.setdefault(other, {})[unit] = reader
    waiting = sorted(why)
    while waiting:
        unit = waiting.pop()
        for other, node in neighbours.get(unit, {}).items():
            if other not in why and price[other] < HEAVY:
                why[other] = {node: _PASSES_STRINGS}
                waiting.append(other)


def _clusters(units: Units, price: Sequence[int], why: Mapping[int, object]) -> list[set[int]]:
    """Step 2: units of each cluster, in topological order of the contracted graph."""
    count = len(units.members)
    before = reach(why, units.succs)
    behind = reach(why, units.preds)
    useful = [u in before and u in behind and price[u] < HEAVY for u in range(count)]
    while True:
        supported = [u in why or useful[u] for u in range(count)]
        dag = Dag(units.preds, units.succs, supported, [int(u in why) for u in range(count)])
        # No cluster reaches this minimum, so those that no edge joins are joined as well: fewer calls of TensorFlow.
        found = [_hull(units, set(members), why) for members in cluster(dag, minimum=count + 1)]
        hulls = [hull for hull in found if hull]
        excess = [u for hull in hulls if _light(price, hull - why.keys()) > LIGHT_MAX for u in hull - why.keys()]
        excess = [u for u in excess if price[u]]
        if not excess:
            return hulls
        for unit in excess:
            useful[unit] = False


def reach(starts: Iterable[int], edges: Sequence[Sequence[int]]) -> set[int]:
    """What the edges lead to, with the starts."""
    found = set(starts)
    stack = list(found)
    while stack:
        for follower in edges[stack.pop()]:
            if follower not in found:
                found.add(follower)
                stack.append(follower)
    return found


def _hull(units: Units, members: set[int], why: Mapping[int, object]) -> set[int]:
    """The units of a cluster that lie on a way between two that must stay, those included."""
    kept = members & why.keys()
    inside = [[p for p in preds if p in members] if u in members else [] for u, preds in enumerate(units.preds)]
    onward = [[s for s in succs if s in members] if u in members else [] for u, succs in enumerate(units.succs)]
    return reach(kept, inside) & reach(kept, onward)


def _light(price: Sequence[int], members: Iterable[int]) -> int:
    return sum(price[u] for u in members)


def _finish(
    graph: Graph,
    units: Units,
    price: Sequence[int],
    why: Mapping[int, Mapping[str, str]],
    hulls: Sequence[set[int]],
    absorb: bool,
) -> Plan:
    """Step 3, and names instead of numbers."""
    taken: set[int] = set().union(*hulls)
    islands = []
    for hull in hulls:
        inside = set(hull)
        if absorb:
            inside |= _following(graph, units, price, inside, taken)
            inside |= _ending(units, price, inside, taken)
            taken |= inside
        copies = _beginning(units, price, inside, taken) if absorb else set()
        copies |= _measures(graph, units, inside | copies)
        islands.append((inside, copies - inside))
    order = {name: index for index, name in enumerate(graph.nodes)}

    def names(chosen: set[int]) -> tuple[str, ...]:
        return tuple(sorted((n for u in chosen for n in units.members[u]), key=order.__getitem__))

    made = tuple(
        Island(names(hull), names(copies), {n: r for u in sorted(hull & why.keys()) for n, r in why[u].items()})
        for hull, copies in islands
    )
    return Plan(made, _light(price, _outside(graph, units, islands)))


def _outside(graph: Graph, units: Units, islands: Sequence[tuple[set[int], set[int]]]) -> set[int]:
    """Units that are computed outside of islands: what outputs and islands read, and what that reads."""
    owned: set[int] = set().union(*(hull for hull, _ in islands))
    wanted = {units.of[node] for node, _ in graph.outputs if node in units.of}
    for hull, copies in islands:
        wanted |= {p for u in hull | copies for p in units.preds[u]} - hull - copies
    edges = [() if u in owned else preds for u, preds in enumerate(units.preds)]
    return reach(wanted - owned, edges) - owned


def _beginning(units: Units, price: Sequence[int], hull: set[int], taken: set[int]) -> set[int]:
    """Everything that leads to an island, if it is cheap and of no other island."""
    leading = reach(hull, units.preds) - hull
    cheap = not leading & taken and all(price[u] < HEAVY for u in leading)
    return leading if cheap and _light(price, leading) <= LIGHT_MAX else set()


def _fed(units: Units, price: Sequence[int], hull: set[int], taken: set[int]) -> set[int]:
    """Units that are not heavy and read nothing but an island, constants and inputs of the model, directly or not."""
    found: set[int] = set()
    for unit, preds in enumerate(units.preds):
        if preds and unit not in taken and price[unit] < HEAVY and all(p in hull or p in found for p in preds):
            found.add(unit)
    return found


def _following(graph: Graph, units: Units, price: Sequence[int], hull: set[int], taken: set[int]) -> set[int]:
    """What measures the values of an island, and the free units on the way to it."""
    fed = {u for u in _fed(units, price, hull, taken) if not price[u]}
    ends = {u for u in fed if any(graph.nodes[name].op in DATA_DEPENDENT for name in units.members[u])}
    return reach(ends, [[p for p in preds if p in fed] for preds in units.preds])


def _ending(units: Units, price: Sequence[int], hull: set[int], taken: set[int]) -> set[int]:
    """What follows an island, reads nothing that is computed elsewhere and ends in outputs of the model."""
    found = _fed(units, price, hull, taken)
    loose = found
    while loose:
        loose = {
            u
            for u in found
            if any(s not in found for s in units.succs[u]) or any(p not in hull | found for p in units.preds[u])
        }
        found -= loose
    return found if _light(price, found) <= LIGHT_MAX else set()


def _measures(graph: Graph, units: Units, inside: set[int]) -> set[int]:
    """Shape arithmetic on the model's inputs and on what the island reads or computes, if the island reads it."""
    read = {s for unit in inside for name in units.members[unit] for s, _ in data_inputs(graph.nodes[name])}
    found: set[int] = set()
    for unit in sorted(reach(inside, units.preds) - inside):
        nodes = [graph.nodes[name] for name in units.members[unit]]
        ops = {node.op for node in nodes}
        sources = [s for node in nodes for s, _ in data_inputs(node) if not graph.is_source(s)]
        if ops <= MEASURES:
            known = all(s in read or s in graph.inputs or units.of[s] in inside for s in sources)
        else:
            known = bool(sources) and all(s not in graph.inputs and units.of[s] in found for s in sources)
        if known:
            found.add(unit)
    edges = [[p for p in preds if p in found] for preds in units.preds]
    return reach(inside, edges) - inside


def ops_of(graph: Graph, names: Iterable[str]) -> tuple[str, ...]:
    """The operators of some nodes, most frequent first, as "Add x3" or "StringSplitV2"; constants left out."""
    counts = Counter(graph.nodes[name].op for name in names if graph.nodes[name].op != "Const")
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(f"{op} x{count}" if count > 1 else op for op, count in ordered)
