"""passes.graph_index on small literal graphs."""

import onnx
import pytest
from onnx import helper

from passes.base import PassError
from passes.graph_index import GraphIndex, bodies_of, find_graph, free_names, has_bodies, iter_graphs, iter_scopes

NESTED = """
<ir_version: 9, opset_import: ["" : 17]>
g (float[N] x, bool c) => (float[N] y) {
  [a] a1 = Relu(x)
  [b] b1 = Abs(x)
  [if] y = If (c) <
    then_branch = t () => (float[N] t1) {
      [inner] t1 = If (c) <
        then_branch = tt () => (float[N] u1) { [deep] u1 = Add(a1, x) },
        else_branch = te () => (float[N] u2) { [deep2] u2 = Neg(b1) }
      >
    },
    else_branch = e () => (float[N] e1) { [e1] e0 = Neg(a1) [e2] e1 = Neg(e0) }
  >
}
"""


def nested():
    return onnx.parser.parse_model(NESTED)


def test_edges_of_a_diamond():
    graph = onnx.parser.parse_graph(
        "g (float[N] x) => (float[N] y) { [a] a1 = Relu(x) [b] b1 = Neg(a1) [c] c1 = Abs(a1) [d] y = Add(b1, c1) }"
    )
    index = GraphIndex.of(graph)
    assert index.preds == ((), (0,), (0,), (1, 2))
    assert index.succs == ((1, 2), (3,), (3,), ())
    assert index.producer == {"a1": 0, "b1": 1, "c1": 2, "y": 3}
    assert {name: list(users) for name, users in index.consumers.items()} == {
        "x": [0], "a1": [1, 2], "b1": [3], "c1": [3],
    }  # fmt: skip
    assert index.outputs == ("y",)
    assert index.output_names == {"y"}
    assert index.captures == {}


def test_optional_and_repeated_inputs_count_once():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="a"),
        helper.make_node("Clip", ["a", "", "a"], ["b"], name="b"),
        helper.make_node("Mul", ["b", "b"], ["c", ""], name="c"),
    ]
    index = GraphIndex.of(helper.make_graph(nodes, "g", [], []))
    assert index.reads == (("x",), ("a",), ("b",))
    assert index.preds == ((), (0,), (1,))
    assert "" not in index.producer


def test_captures_are_reads_of_the_node_with_the_body():
    index = GraphIndex.of(nested().graph)
    assert index.reads[2][0] == "c"  # inputs first
    assert set(index.reads[2]) == {"c", "a1", "b1", "x"}
    assert set(index.captures[2]) == {"a1", "b1", "x"}
    assert index.preds[2] == (0, 1)


def test_a_body_that_returns_an_outer_value_captures_it():
    body = helper.make_graph([], "b", [], [helper.make_tensor_value_info("outer", 1, [1])])
    assert free_names([body]) == ("outer",)


def test_names_that_a_body_defines_are_no_captures():
    graph = onnx.parser.parse_graph("g (float[N] x) => (float[N] y) <float[1] w = {1}> { y = Add(x, w) }")
    assert free_names([graph]) == ()


def test_an_unsorted_graph_is_sorted_stably():
    nodes = [
        helper.make_node("Relu", ["b"], ["c"], name="c"),
        helper.make_node("Relu", ["x"], ["a"], name="a"),
        helper.make_node("Relu", ["a"], ["b"], name="b"),
        helper.make_node("Relu", ["x"], ["d"], name="d"),
    ]
    index = GraphIndex.of(helper.make_graph(nodes, "g", [], []))
    assert [n.name for n in index.nodes] == ["a", "b", "c", "d"]
    assert index.preds == ((), (0,), (1,), ())
    assert index.producer == {"a": 0, "b": 1, "c": 2, "d": 3}


def test_sorting_keeps_captures_with_their_node():
    proto = nested()
    nodes = list(reversed(proto.graph.node))
    shuffled = helper.make_graph(nodes, "g", list(proto.graph.input), list(proto.graph.output))
    index = GraphIndex.of(shuffled)
    (number,) = index.captures
    assert index.nodes[number].name == "if"
    assert number == 2


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("Relu", "b", "a", "n"), ("Relu", "a", "b", "m")], "has a cycle: node 'n'"),
        ([("Relu", "x", "a", "n"), ("Neg", "x", "a", "m")], "made by two nodes: 'n' and 'm'"),
    ],
)
def test_broken_graphs_are_named(nodes, message):
    graph = helper.make_graph([helper.make_node(o, [i], [r], name=n) for o, i, r, n in nodes], "g", [], [])
    with pytest.raises(PassError, match=message):
        GraphIndex.of(graph)


@pytest.mark.parametrize(
    ("names", "message"), [(("n", "n"), "'n' is used twice"), (("n", ""), "Relu node has no name")]
)
def test_positions_need_unique_names(names, message):
    nodes = [helper.make_node("Relu", ["x"], [f"v{i}"], name=name) for i, name in enumerate(names)]
    index = GraphIndex.of(helper.make_graph(nodes, "g", [], []))
    with pytest.raises(PassError, match=message):
        _ = index.position


def test_positions_ascend_and_unknown_names_are_told():
    index = GraphIndex.of(nested().graph)
    assert index.positions(["if", "a"]) == (0, 2)
    with pytest.raises(PassError, match="no node 'nope' in graph 'g'"):
        index.positions(["nope"])


def test_scopes_come_depth_first_with_their_path():
    proto = nested()
    scopes = [scope for scope, _ in iter_scopes(proto)]
    assert scopes == [
        (),
        ("if/else_branch",),
        ("if/then_branch",),
        ("if/then_branch", "inner/else_branch"),
        ("if/then_branch", "inner/then_branch"),
    ]
    for scope, graph in iter_scopes(proto):
        assert find_graph(proto, scope) == graph
    assert [g.name for g in iter_graphs(proto.graph)] == ["g", "e", "t", "te", "tt"]


def test_a_scope_that_leads_nowhere_is_named():
    with pytest.raises(PassError, match=r"'if/body' leads nowhere"):
        find_graph(nested(), ("if/body",))


def test_lists_of_graphs_are_bodies_too():
    node = helper.make_node("X", [], ["y"], name="n")
    bodies = [helper.make_graph([], f"b{i}", [], []) for i in range(2)]
    node.attribute.append(helper.make_attribute("gs", bodies))
    assert [(label, g.name) for label, g in bodies_of(node)] == [("n/gs[0]", "b0"), ("n/gs[1]", "b1")]
    assert has_bodies(node)
    assert not has_bodies(helper.make_node("Relu", ["x"], ["y"]))


def test_a_deep_chain_needs_no_recursion():
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name=f"n{i}") for i in reversed(range(20_000))]
    index = GraphIndex.of(helper.make_graph(nodes, "g", [], []))
    assert index.nodes[0].name == "n0"
    assert index.preds[-1] == (19_998,)
