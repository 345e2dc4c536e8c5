"""The strategy against a parser that is a table: what it refuses, at which stage, and how it says so."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from passes import model as model_module
from rewriter.backends import examiner
from rewriter.backends.base import ParserError
from rewriter.backends.oracle import ParserOracle

GOOD = "Relu"
#: Operator -> (stage, is the node named).
BAD = {
    "Static": ("check", True),
    "Import": ("import", True),
    "Nameless": ("import", False),
    "Crash": ("crash", False),
}


@dataclasses.dataclass
class TableParser:
    """Refuses the operators of BAD as TensorRT does: all static errors at once, else the first import error.

    Attributes:
        hides_in_isolation: operators that are taken in single-node models.
        hint: name the operator in the parser's function.
        flaky: crashes that come before anything else.
        parses: models seen.
    """

    hides_in_isolation: frozenset = frozenset()
    hint: bool = True
    flaky: int = 0
    parses: int = 0

    def parse(self, model):
        self.parses += 1
        nodes = list(model.proto.graph.node)
        if self.flaky:
            self.flaky -= 1
            return (ParserError(-1, "", "", "CRASH", "died", "crash"),)
        bad = [(i, n) for i, n in enumerate(nodes) if n.op_type in BAD]
        if len(nodes) == 1:
            bad = [(i, n) for i, n in bad if n.op_type not in self.hides_in_isolation]
        if any(n.op_type == "Crash" for _, n in bad):
            return (ParserError(-1, "", "", "CRASH", "died", "crash"),)
        static = [self._error(i, n) for i, n in bad if BAD[n.op_type][0] == "check"]
        return tuple(static or [self._error(i, n) for i, n in bad[:1]])

    def _error(self, index, node):
        stage, named = BAD[node.op_type]
        function = f"import{node.op_type}" if self.hint else "helper"
        if named:
            return ParserError(index, node.name, node.op_type, "X", "no", stage, function)
        return ParserError(-1, "", "", "X", "no", stage, function)


def chain(operators, width=4):
    """A chain of nodes with the given operators, all values float[width, width]."""
    nodes = [helper.make_node(op, [f"v{i}"], [f"v{i + 1}"], name=f"n{i}") for i, op in enumerate(operators)]
    infos = [helper.make_tensor_value_info(f"v{i}", TensorProto.FLOAT, [width] * 2) for i in range(len(operators) + 1)]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[-1:], value_info=infos[1:-1])
    return model_module.Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


OPERATORS = st.lists(st.sampled_from([GOOD, GOOD, GOOD, *BAD]), min_size=1, max_size=24)


@settings(deadline=None)
@given(OPERATORS, st.frozensets(st.sampled_from(list(BAD))), st.booleans())
def test_exactly_the_refused_nodes_are_denied_however_they_are_reported(operators, hidden, hint):
    parser = TableParser(hides_in_isolation=hidden, hint=hint)
    operators = [GOOD, *operators, GOOD]  # so that no whole graph, nor a prefix that fails, is a single node
    found = ParserOracle(parser).examine(chain(operators))
    assert [v.node for v in found] == [f"n{i}" for i in range(len(operators))]
    crashes = sum(op == "Crash" for op in operators) * ("Crash" in hidden)
    if crashes <= 12:
        assert {v.node for v in found.denials()} == {f"n{i}" for i, op in enumerate(operators) if op in BAD}
    for verdict in found.denials():
        assert verdict.rule == ("crash" if verdict.op_type == "Crash" else "parser")


def test_import_errors_of_one_operator_cost_three_whole_parses_and_one_alone():
    parser = TableParser()
    ParserOracle(parser).examine(chain([GOOD, "Import"] * 50))
    assert parser.parses == 3  # whole, one Import node alone for all its likes, whole again


def test_static_errors_cost_two_parses():
    parser = TableParser()
    ParserOracle(parser).examine(chain([GOOD, "Static"] * 50))
    assert parser.parses == 2


def test_a_crash_that_does_not_come_back_denies_nothing():
    parser = TableParser(flaky=1)
    assert ParserOracle(parser).examine(chain([GOOD] * 5)).denials() == ()


def test_endless_crashes_end_with_all_denied():
    class Dead:
        def parse(self, model):
            return (ParserError(-1, "", "", "CRASH", "died", "crash"),)

    found = ParserOracle(Dead()).examine(chain([GOOD] * 40))
    assert len(found.denials()) == 40
    assert {v.rule for v in found.denials()} == {"crash"}


def test_a_refusal_of_the_whole_only_denies_the_node_that_completes_it():
    class Pair:
        """Refuses any graph that holds both ends, without naming a node."""

        def parse(self, model):
            names = {n.name for n in model.proto.graph.node}
            return (ParserError(-1, "", "", "X", "pair", "import"),) if {"n0", "n4"} <= names else ()

    assert [v.node for v in ParserOracle(Pair()).examine(chain([GOOD] * 8)).denials()] == ["n4"]


def test_a_refusal_that_comes_and_goes_denies_the_rest_jointly():
    class Moody:
        seen = 0

        def parse(self, model):
            self.seen += 1
            return (ParserError(-1, "", "", "X", "moody", "import"),) if self.seen == 1 else ()

    found = ParserOracle(Moody()).examine(chain([GOOD] * 5)).denials()
    assert len(found) == 5
    assert all("jointly" in v.reason and "moody" in v.reason for v in found)


def test_a_graph_where_every_node_fails_for_its_context_ends(monkeypatch):
    class Jealous:
        """Names the first node of any graph of two or more, and takes single nodes."""

        def parse(self, model):
            nodes = model.proto.graph.node
            if len(nodes) < 2:
                return ()
            return (ParserError(0, nodes[0].name, nodes[0].op_type, "X", "no", "import"),)

    monkeypatch.setattr(examiner, "_MAX_ROUNDS", 40)
    found = ParserOracle(Jealous()).examine(chain([GOOD] * 60))
    reasons = [v.reason for v in found.denials()]
    assert len(found.verdicts) == len(reasons) == 60
    assert sum("jointly with 19 other nodes" in reason for reason in reasons) == 20


def test_a_refused_input_denies_who_reads_it():
    class NoInput:
        def parse(self, model):
            names = [i.name for i in model.proto.graph.input]
            return (ParserError(-1, "", "", "X", "bad", "import", "importInput", "v0"),) if "v0" in names else ()

    found = ParserOracle(NoInput()).examine(chain([GOOD] * 3))
    assert [v.node for v in found.denials()] == ["n0"]


def test_values_of_unknown_rank_are_never_handed_in():
    model = chain(["Static", GOOD, GOOD])
    for info in model.proto.graph.value_info:
        info.type.tensor_type.ClearField("shape")
    seen = []

    class Watch(TableParser):
        def parse(self, model):
            seen.extend(i for i in model.proto.graph.input if not i.type.tensor_type.HasField("shape"))
            return super().parse(model)

    found = ParserOracle(Watch()).examine(model)
    assert {v.node: v.rule for v in found.denials()} == {"n0": "parser", "n1": "rank", "n2": "rank"}
    assert seen == []


def test_a_computed_small_input_makes_isolation_untrusted():
    """Two nodes of one operator, the second fed by a computed vector: only its own round may deny it."""
    values = {"x": [4, 4], "s": [1], "a": [4, 4], "t": [1], "y": [4, 4]}
    nodes = [
        helper.make_node("Import", ["x"], ["a"], name="plain"),
        helper.make_node("Shape", ["x"], ["t"], name="shape"),
        helper.make_node("Import", ["a", "t"], ["y"], name="shaped"),
    ]
    infos = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in values.items()}
    graph = helper.make_graph(nodes, "g", [infos["x"]], [infos["y"]], value_info=[infos["a"], infos["t"]])
    model = model_module.Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))

    class Context:
        """Takes "shaped" wherever "shape" stands before it, and refuses it alone."""

        def parse(self, model):
            names = [n.name for n in model.proto.graph.node]
            bad = [n for n in names if n == "plain" or (n == "shaped" and "shape" not in names)]
            return tuple(ParserError(names.index(b), b, "Import", "X", "no", "import") for b in bad[:1])

    assert [v.node for v in ParserOracle(Context()).examine(model).denials()] == ["plain"]
