"""Rules, units, plans and cuts on small literal GraphDefs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.frontend.islands.planning import LIGHT_MAX, find_reasons, make_plan
from rewriter.frontend.islands.rules import Limits

pytestmark = pytest.mark.tensorflow


def graph_def(tf, *lines):
    """Nodes in a line each: "name Op input input:1 ^control"; floats, unless the operator says otherwise."""
    made = tf.compat.v1.GraphDef()
    for line in lines:
        name, op, *inputs = line.split()
        node = made.node.add(name=name, op=op, input=inputs)
        kind = tf.string if op.startswith("Str") or name.startswith("s") else tf.float32
        for attribute in ("dtype", "T", "SrcT", "DstT"):
            node.attr[attribute].type = kind.as_datatype_enum
    return made


@pytest.fixture
def plan(tf):
    """Plans a literal graph with inputs "x" and "y"; nodes whose names begin with "m" must stay."""
    from rewriter.frontend.islands.graph import Graph

    def make(*lines, outputs):
        made = graph_def(tf, "x Placeholder", "y Placeholder", *lines)
        graph = Graph.of(made, ["x:0", "y:0"], [f"{name}:0" for name in outputs])
        return graph, make_plan(graph, {name: "test" for name in graph.nodes if name.startswith("m")})

    return make


def members(found):
    return [set(island.members) for island in found.islands]


def test_nothing_to_keep_gives_no_island(plan):
    _, found = plan("a Tanh x", outputs=["a"])
    assert found.islands == ()


def test_work_between_two_splits_them(plan):
    _, found = plan("h MatMul x y", "m1 Tanh h", "d MatMul m1 y", "m2 Tanh d", "e MatMul m2 y", outputs=["e"])
    assert members(found) == [{"m1"}, {"m2"}]


def test_cheap_nodes_between_two_join_them(plan):
    _, found = plan("h MatMul x y", "m1 Tanh h", "a Neg m1", "m2 Tanh a", "e MatMul m2 y", outputs=["e"])
    assert members(found) == [{"m1", "a", "m2"}]


def test_too_much_arithmetic_between_two_splits_them(plan):
    chain = [f"a{i} Neg {'m1' if i == 0 else f'a{i - 1}'}" for i in range(LIGHT_MAX + 1)]
    _, found = plan("h MatMul x y", "m1 Tanh h", *chain, f"m2 Tanh a{LIGHT_MAX}", "e MatMul m2 y", outputs=["e"])
    assert members(found) == [{"m1"}, {"m2"}]


def test_elements_may_be_moved_as_often_as_need_be(plan):
    chain = [f"a{i} Identity {'m1' if i == 0 else f'a{i - 1}'}" for i in range(30)]
    _, found = plan("h MatMul x y", "m1 Tanh h", *chain, "m2 Tanh a29", "e MatMul m2 y", outputs=["e"])
    assert len(found.islands) == 1


def test_islands_side_by_side_are_one_call(plan):
    _, found = plan("m1 Tanh x", "m2 Tanh y", "e MatMul m1 m2", outputs=["e"])
    assert members(found) == [{"m1", "m2"}]


def test_a_diamond_with_work_on_one_side_is_not_closed(plan):
    _, found = plan("m1 Tanh x", "d MatMul m1 y", "a Neg m1", "m2 Add d a", "e MatMul m2 y", outputs=["e"])
    assert [{"m1"} <= island for island in members(found)] == [True, False]


def test_what_leads_to_an_island_is_copied_into_it(plan):
    _, found = plan("a Neg x", "m1 Tanh a", "e MatMul m1 a", outputs=["e"])
    assert found.islands[0].copies == ("a",)
    assert members(found) == [{"m1"}]


def test_what_ends_behind_an_island_moves_into_it(plan):
    _, found = plan("h MatMul x y", "m1 Tanh h", "a Neg m1", "o Identity a", outputs=["o"])
    assert members(found) == [{"m1", "a", "o"}]


def test_nothing_is_taken_in_where_nothing_would_remain(plan):
    _, found = plan("a Neg x", "m1 Tanh a", "b Neg m1", outputs=["b"])
    assert members(found) == [{"m1"}]
    assert found.islands[0].copies == ()
    assert found.remaining > 0


def test_handles_are_not_parted(tf):
    from rewriter.frontend.islands.graph import Graph
    from rewriter.frontend.islands.units import find_units

    @tf.function(input_signature=[tf.TensorSpec([3, 4], tf.float32)])
    def function(x):
        return tf.map_fn(tf.nn.tanh, x @ tf.ones([4, 4]))

    concrete = function.get_concrete_function()
    outputs = [t.op.inputs[0].name if t.op.type == "Identity" else t.name for t in concrete.outputs]
    graph = Graph.of(concrete.graph.as_graph_def(), [concrete.inputs[0].name], outputs)
    units = find_units(graph)
    lists = {units.of[name] for name, node in graph.nodes.items() if node.op.startswith("TensorList")}
    loops = {units.of[name] for name, node in graph.nodes.items() if "While" in node.op}
    assert lists == loops
    assert len(loops) == 1
    (matmul,) = [name for name, node in graph.nodes.items() if node.op == "MatMul"]
    assert units.of[matmul] not in loops


def test_a_loop_of_tensorflow_1_stays_whole(tf):
    from rewriter.frontend.islands.graph import Graph
    from rewriter.frontend.islands.units import find_units

    with tf.Graph().as_default() as graph:
        tf.compat.v1.disable_control_flow_v2()
        try:
            x = tf.compat.v1.placeholder(tf.float32, [3], name="x")
            y = tf.compat.v1.while_loop(lambda v: tf.reduce_sum(v) < 10.0, lambda v: v * 2.0 + 1.0, [tf.abs(x)])
            z = tf.tanh(y, name="z")
        finally:
            tf.compat.v1.enable_control_flow_v2()
    found = Graph.of(graph.as_graph_def(), ["x:0"], [z.name])
    units = find_units(found)
    inside = {units.of[n] for n, node in found.nodes.items() if node.op in ("Enter", "Merge", "Switch", "Exit", "Mul")}
    assert len(inside) == 1
    assert units.of["z"] not in inside
    assert units.of["Abs"] not in inside


def unit_members(tf, *lines, outputs):
    from rewriter.frontend.islands.graph import Graph
    from rewriter.frontend.islands.units import find_units

    graph = Graph.of(graph_def(tf, "x Placeholder", "y Placeholder", *lines), ["x:0", "y:0"], [f"{outputs}:0"])
    return {frozenset(members) for members in find_units(graph).members}


def test_every_way_in_belongs_to_its_own_way_out(tf):
    first = ["s1 Switch x y", "a Neg s1", "b Abs s1:1", "m1 Merge a b"]
    nested = ["s2 Switch d y", "s3 Switch s2:1 x", "e Neg s3", "m3 Merge e s3:1", "m2 Merge s2 m3"]
    found = unit_members(tf, *first, "d MatMul m1 y", *nested, "o Tanh m2", outputs="o")
    assert found == {
        frozenset({"s1", "a", "b", "m1"}),
        frozenset({"d"}),
        frozenset({"s2", "s3", "e", "m3", "m2"}),
        frozenset({"o"}),
    }


def test_constants_of_a_branch_lie_in_it(tf):
    branch = ["s Switch y y", "t Identity s:1", "f Identity s", "c Const ^t", "d Const ^f", "m Merge d c"]
    assert unit_members(tf, *branch, "o Tanh m", outputs="o") == {frozenset("stfcdm"), frozenset("o")}


def test_ways_that_do_not_fit_together_are_one(tf):
    lines = ["s Switch x y", "a Neg s", "r Switch x x", "b Neg r:1", "m Merge a b", "d Tanh m", "n Merge d b"]
    assert unit_members(tf, *lines, "o Tanh n", outputs="o") == {frozenset("sarbmdn"), frozenset("o")}


def reasons(tf, *lines, outputs, **limits):
    from rewriter.frontend.islands.graph import Graph

    graph = Graph.of(graph_def(tf, "x Placeholder", *lines), ["x:0"], [f"{name}:0" for name in outputs])
    return find_reasons(graph, Limits(**limits), lambda _: (None, 4))


def test_reasons(tf):
    assert reasons(tf, "a Lgamma x", outputs=["a"]) == {"a": "ONNX has no word for it"}
    assert reasons(tf, "a Tanh x", outputs=["a"]) == {}
    assert reasons(tf, "a Tanh x", outputs=["a"], keep=frozenset({"Tanh"})) == {"a": "named in keep_in_tensorflow"}
    assert "other pixels" in reasons(tf, "a ResizeArea x x", outputs=["a"])["a"]
    assert reasons(tf, "a ResizeBicubic x x", outputs=["a"], tolerance=1e-2) == {}
    assert "fixed batch" in reasons(tf, "a ExtractImagePatches x", outputs=["a"])["a"]


def test_constants_are_left_to_the_exporter(tf):
    made = ["c Const", "a Lgamma c", "b Add a x"]
    assert reasons(tf, *made, outputs=["b"]) == {}


@st.composite
def random_graphs(draw):
    """Lines of a graph whose nodes read earlier ones; some must stay."""
    count = draw(st.integers(1, 14))
    lines, names = [], ["x", "y"]
    for index in range(count):
        first, second = (draw(st.sampled_from(names)) for _ in range(2))
        op = draw(st.sampled_from(["MatMul", "Add", "Neg", "Identity"]))
        name = f"{'m' if draw(st.booleans()) else 'n'}{index}"
        lines.append(f"{name} {op} {first}" + (f" {second}" if op in ("MatMul", "Add") else ""))
        names.append(name)
    outputs = draw(st.lists(st.sampled_from(names[2:]), min_size=1, max_size=3, unique=True))
    return lines, outputs


@given(random_graphs())
@settings(max_examples=150, deadline=None)
def test_any_cut_can_be_run(tf, case):
    """Islands are disjoint, hold all that must stay, and can be run with the rest in some order."""
    from rewriter.frontend.islands.cutting import cut
    from rewriter.frontend.islands.graph import Graph, data_inputs

    lines, ends = case
    graph = Graph.of(graph_def(tf, "x Placeholder", "y Placeholder", *lines), ["x:0", "y:0"], [f"{n}:0" for n in ends])
    must = {name for name in graph.nodes if name.startswith("m")}
    found = make_plan(graph, dict.fromkeys(must, "test"))
    owned = [name for island in found.islands for name in island.members]
    assert len(owned) == len(set(owned))
    assert must <= set(owned)
    if not found.islands:
        return
    parts = cut(graph, found)
    steps = [({name}, set(data_inputs(graph.nodes[name])), {(name, 0)}) for name in parts.exported]
    steps += [(set(piece.nodes), set(piece.inputs), set(piece.outputs)) for piece in parts.pieces]
    ready = {("x", 0), ("y", 0)}
    waiting = steps
    while waiting:
        done = [step for step in waiting if step[1] <= ready]
        assert done, "a cycle between islands and the rest"
        ready |= {tensor for _, _, outputs in done for tensor in outputs}
        waiting = [step for step in waiting if step not in done]
    assert set(graph.outputs) <= ready
    assert {t for _, inputs, _ in steps for t in inputs} <= ready
    # An island reads nothing that only itself computes.
    for piece in parts.pieces:
        assert not {name for name, _ in piece.inputs} & set(piece.nodes)
