"""The oracle with real TensorRT-RTX: every class of answer of its parser, on literal graphs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from passes import model as model_module
from passes.extract import Extractor
from rewriter.backends.oracle import ParserOracle

pytestmark = pytest.mark.rtx

FLOAT, INT64, INT32, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL
X = {"x": (FLOAT, [2, 3])}


@pytest.fixture
def examine(rtx, make_model):
    """Denials by node name of a graph of literal parts; checks that every node has exactly one verdict."""

    def run(nodes, inputs, outputs, initializers=(), oracle=None, **options):
        model = make_model(nodes, inputs, outputs, initializers, **options)
        found = (oracle or ParserOracle(rtx)).examine(model)
        assert list(found.verdicts) == list(all_names(model.proto.graph))
        return {v.node: v for v in found.denials()}

    return run


def all_names(graph):
    yield from (node.name for node in graph.node)
    for node in graph.node:
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            if attribute.HasField("g"):
                yield from all_names(attribute.g)


def value(name, dtype, shape):
    return helper.make_tensor_value_info(name, dtype, shape)


def scalar(name, dtype, number):
    return helper.make_tensor(name, dtype, [], [number])


def relu(source, target, name):
    return helper.make_node("Relu", [source], [target], name=name)


def test_static_refusals_are_all_found(examine):
    nodes = [relu("x", "r", "relu"), helper.make_node("Cast", ["r"], ["a0"], name="cast", to=INT32)]
    nodes += [helper.make_node("BitwiseNot", [f"a{i}"], [f"a{i + 1}"], name=f"not{i}") for i in range(4)]
    found = examine(nodes, X, {"a4": (INT32, [2, 3])})
    assert set(found) == {f"not{i}" for i in range(4)}
    assert {v.reason for v in found.values()} == {"TensorRT does not support BitwiseNot"}
    assert {v.rule for v in found.values()} == {"parser"}


def test_import_refusals_are_all_found_and_their_users_keep_their_place(examine):
    nodes = []
    for i in range(4):
        nodes.append(helper.make_node("Add", ["u", "u"], [f"n{i}"], name=f"add{i}"))
        nodes.append(helper.make_node("Cast", [f"n{i}"], [f"y{i}"], name=f"cast{i}", to=FLOAT))
    nodes.append(helper.make_node("Add", ["y0", "y1"], ["z"], name="float_add"))
    outputs = {**{f"y{i}": (FLOAT, [2, 3]) for i in range(4)}, "z": (FLOAT, [2, 3])}
    found = examine(nodes, {"u": (TensorProto.UINT8, [2, 3])}, outputs)
    assert set(found) == {f"add{i}" for i in range(4)}


def test_nonzero_is_refused_wherever_it_needs_a_plugin(examine, rtx):
    """1.4 takes it without one; 1.7 refuses it when it is imported, at the first of the four."""
    nodes = [helper.make_node("NonZero", ["x"], [f"n{i}"], name=f"nz{i}") for i in range(4)]
    nodes += [helper.make_node("Cast", [f"n{i}"], [f"y{i}"], name=f"cast{i}", to=FLOAT) for i in range(4)]
    found = examine(nodes, X, {f"y{i}": (FLOAT, [2, None]) for i in range(4)})
    assert set(found) == (set() if rtx.version.startswith("1.4") else {f"nz{i}" for i in range(4)})


def test_an_error_that_names_no_node_is_pinned_and_its_likes_are_told_apart(examine):
    nodes = [relu("x", "a", "relu")]
    for i, reduction in enumerate(["none", "add", "none", "add"]):
        source = "a" if i == 0 else f"b{i - 1}"
        nodes.append(
            helper.make_node("ScatterElements", [source, "i", "u"], [f"b{i}"], name=f"s{i}", reduction=reduction)
        )
    found = examine(nodes, {**X, "i": (INT64, [1, 3]), "u": (FLOAT, [1, 3])}, {"b3": (FLOAT, [2, 3])})
    assert set(found) == {"s1", "s3"}
    assert found["s1"].reason == "TensorRT's parser refuses ScatterElements: Unsupported reduction type"


CASES = {
    "custom domain": (
        [helper.make_node("Foo", ["x"], ["y"], name="n", domain="my")],
        X,
        {"y": (FLOAT, [2, 3])},
        ("domain", "my::Foo", "'my'"),
    ),
    "string": (
        [helper.make_node("Identity", ["s"], ["y"], name="n")],
        {"s": (TensorProto.STRING, [2])},
        {"y": (TensorProto.STRING, [2])},
        ("dtype", "Identity", "STRING"),
    ),
    "double": (
        [helper.make_node("Add", ["d", "d"], ["y"], name="n")],
        {"d": (TensorProto.DOUBLE, [2])},
        {"y": (TensorProto.DOUBLE, [2])},
        ("dtype", "Add", "FLOAT without saying so"),
    ),
    "uint8 arithmetic": (
        [helper.make_node("Add", ["u", "u"], ["y"], name="n")],
        {"u": (TensorProto.UINT8, [2])},
        {"y": (TensorProto.UINT8, [2])},
        ("parser", "Add", "UInt8"),
    ),
    "range of dynamic floats": (
        [helper.make_node("Range", ["a", "b", "c"], ["y"], name="n")],
        {"a": (FLOAT, []), "b": (FLOAT, []), "c": (FLOAT, [])},
        {"y": (FLOAT, [None])},
        ("parser", "Range", "refuses Range"),
    ),
    "rank 9": (
        [helper.make_node("Relu", ["x"], ["y"], name="n")],
        {"x": (FLOAT, [1] * 9)},
        {"y": (FLOAT, [1] * 9)},
        ("rank", "Relu", "rank 9"),
    ),
    "unknown rank": (
        [helper.make_node("Relu", ["x"], ["y"], name="n")],
        {"x": (FLOAT, None)},
        {"y": (FLOAT, None)},
        ("rank", "Relu", "not known"),
    ),
    "axes that are no constant": (
        [helper.make_node("ReduceSum", ["x", "s"], ["y"], name="n")],
        {**X, "s": (INT64, [1])},
        {"y": (FLOAT, None)},
        ("parser", "ReduceSum", "onstant|nitializer"),
    ),
    "antialias": (
        [helper.make_node("Resize", ["x", "", "s"], ["y"], name="n", antialias=1, mode="linear")],
        {"x": (FLOAT, [1, 1, 4, 4]), "s": (FLOAT, [4])},
        {"y": (FLOAT, [1, 1, None, None])},
        ("parser", "Resize", "Antialiasing"),
    ),
    "quantisation to uint8": (
        [helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"], name="n")],
        X,
        {"y": (TensorProto.UINT8, [2, 3])},
        ("parser", "DynamicQuantizeLinear", "does not support DynamicQuantizeLinear"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refusals_have_rule_operator_and_reason(examine, name):
    import re

    nodes, inputs, outputs, (rule, operator, words) = CASES[name]
    domains = ("my",) if name == "custom domain" else ()
    found = examine(nodes, inputs, outputs, domains=domains)
    assert (found["n"].rule, found["n"].op_type) == (rule, operator)
    assert re.search(words, found["n"].reason)
    assert not re.search(r"\.cpp|\n", found["n"].reason)


def test_the_rank_of_what_a_denied_node_makes_decides_about_its_users(examine):
    nodes = [
        helper.make_node("Compress", ["x", "c"], ["k"], name="compress"),
        relu("k", "r", "after"),
        helper.make_node("ReduceSum", ["x", "axes"], ["s"], name="axes"),
        relu("s", "t", "unknown"),
        relu("t", "u", "further"),
    ]
    inputs = {**X, "c": (BOOL, [6]), "axes": (INT64, ["n"])}
    found = examine(nodes, inputs, {"r": (FLOAT, [None]), "u": (FLOAT, None)}, infer=False)
    assert {n: v.rule for n, v in found.items()} == {
        "compress": "parser",
        "axes": "parser",
        "after": "dtype",
        "unknown": "dtype",
        "further": "dtype",
    }  # fmt: skip -- without inference even the types are unknown
    found = examine(nodes, inputs, {"r": (FLOAT, [None]), "u": (FLOAT, None)})
    assert {n: v.rule for n, v in found.items()} == {
        "compress": "parser", "axes": "parser", "unknown": "rank", "further": "rank"
    }  # fmt: skip


def test_double_is_taken_when_asked_for(examine, rtx):
    nodes, inputs, outputs, _ = CASES["double"]
    assert examine(nodes, inputs, outputs, oracle=ParserOracle(rtx, allow_double=True)) == {}


def test_denylists_leave_the_rest_alone(examine, rtx):
    oracle = ParserOracle(rtx, ["Sigmoid", "NoSuchOp"], ["^head/"])
    nodes = [
        relu("x", "a", "body/relu"),
        helper.make_node("Sigmoid", ["a"], ["b"], name="body/sigmoid"),
        relu("b", "y", "head/relu"),
    ]
    found = examine(nodes, X, {"y": (FLOAT, [2, 3])}, oracle=oracle)
    assert {n: v.rule for n, v in found.items()} == {"body/sigmoid": "denylist", "head/relu": "denylist"}


def loop(body_nodes, name="loop", cond="cond", carried="v", out="vo"):
    body = helper.make_graph(
        [helper.make_node("Identity", [f"{name}_ci"], [f"{name}_co"], name=f"{name}_id"), *body_nodes],
        f"{name}_body",
        [value(f"{name}_i", INT64, []), value(f"{name}_ci", BOOL, []), value(carried, FLOAT, [2, 3])],
        [value(f"{name}_co", BOOL, []), value(out, FLOAT, [2, 3])],
    )
    return helper.make_node("Loop", ["trips", cond, "x"], ["y"], name=name, body=body)


TRIPS = [scalar("trips", INT64, 3), scalar("cond", BOOL, True)]


def test_a_supported_loop_carries_its_body(examine):
    assert examine([loop([relu("v", "vo", "inner")])], X, {"y": (FLOAT, [2, 3])}, TRIPS) == {}


def test_a_loop_without_a_constant_condition_is_refused_but_its_body_is_not(examine):
    found = examine([loop([relu("v", "vo", "inner")], cond="")], X, {"y": (FLOAT, [2, 3])}, TRIPS)
    assert set(found) == {"loop"}
    assert "'loop_id' inside it" in found["loop"].reason


def test_bodies_of_refused_loops_are_examined_on_their_own_to_any_depth(examine):
    inner = [
        relu("v", "w0", "taken"),
        helper.make_node(
            "If", ["flag"], ["w1"], name="branch", then_branch=branch("t", "w0"), else_branch=branch("e", "w0")
        ),
        relu("w1", "vo", "also_taken"),
    ]
    found = examine(
        [relu("x", "x0", "before"), loop(inner)],
        {**X, "flag": (BOOL, [])},
        {"y": (FLOAT, [2, 3]), "x0": (FLOAT, [2, 3])},
        TRIPS,
    )
    assert set(found) == {"loop", "branch", "t_det"}
    assert "'t_det' inside it" in found["branch"].reason


def branch(name, source):
    """A branch of one supported node, and in the branch "t" one that TensorRT does not know."""
    nodes = [relu(source, f"{name}_r", f"{name}_relu")]
    if name == "t":
        nodes.append(helper.make_node("Bernoulli", [f"{name}_r"], [f"{name}_o"], name="t_det"))
    else:
        nodes.append(relu(f"{name}_r", f"{name}_o", "e_more"))
    return helper.make_graph(nodes, name, [], [value(f"{name}_o", FLOAT, [2, 3])])


def test_if_scan_and_lstm_are_taken(examine):
    flat = {
        n: helper.make_graph([relu("x", f"{n}_o", f"{n}_r")], n, [], [value(f"{n}_o", FLOAT, [2, 3])]) for n in "te"
    }
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "xi"], ["so"], name="add"), relu("so", "yo", "scan_relu")],
        "scan_body",
        [value("s", FLOAT, [3]), value("xi", FLOAT, [3])],
        [value("so", FLOAT, [3]), value("yo", FLOAT, [3])],
    )
    nodes = [
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=flat["t"], else_branch=flat["e"]),
        helper.make_node("Scan", ["s0", "x"], ["sf", "ys"], name="scan", body=body, num_scan_inputs=1),
        helper.make_node("LSTM", ["q", "w", "r"], ["h"], name="lstm", hidden_size=2),
    ]
    inputs = {**X, "c": (BOOL, []), "s0": (FLOAT, [3]), "q": (FLOAT, [5, 1, 3])}
    weights = [
        helper.make_tensor("w", FLOAT, [1, 8, 3], [0.1] * 24),
        helper.make_tensor("r", FLOAT, [1, 8, 2], [0.1] * 16),
    ]
    outputs = {"y": (FLOAT, [2, 3]), "ys": (FLOAT, [2, 3]), "sf": (FLOAT, [3]), "h": (FLOAT, [5, 1, 1, 2])}
    assert examine(nodes, inputs, outputs, weights) == {}


def test_axes_computed_from_constants_upstream_are_taken(examine, int64s):
    """Isolation cannot see it: one Squeeze is refused for its axes, another gets them from a constant upstream."""
    nodes = [
        helper.make_node("Identity", ["one"], ["axes"], name="constant"),
        helper.make_node("Squeeze", ["x", "axes"], ["y0"], name="good"),
        helper.make_node("Squeeze", ["x", "given"], ["y1"], name="bad"),
    ]
    inputs = {"x": (FLOAT, [2, 1]), "given": (INT64, [1])}
    found = examine(nodes, inputs, {"y0": (FLOAT, [2]), "y1": (FLOAT, None)}, [int64s("one", [1])])
    assert set(found) == {"bad"}


@pytest.fixture(scope="module")
def crashing():
    """What tf2onnx 1.17 makes of tf.image.crop_and_resize(x[1,8,8,3], boxes[N,4], zeros, [4, 4]), types inferred."""
    return model_module.from_proto(onnx.load(Path(__file__).parent / "data" / "crop_and_resize.onnx"))


def test_a_crash_of_the_parser_costs_one_verdict(rtx, crashing):
    assert rtx.parse(crashing)[0].stage == "crash"
    found = ParserOracle(rtx).examine(crashing)
    by_rule = {v.node: v for v in found.denials() if v.rule == "crash"}
    assert set(by_rule) == {"CropAndResize"}
    assert "SIGSEGV" in by_rule["CropAndResize"].reason
    main = [n.name for n in crashing.proto.graph.node]
    assert [n for n in main if not found.supported(n)] == ["CropAndResize"]
    assert found.supported("Transpose__38")
    assert not found.supported("Resize__69")


def segment(model, names=None):
    names = names or [n.name for n in model.proto.graph.node]
    return Extractor(model).extract_nodes((), names, "seg")


def test_a_segment_is_parsed_as_it_will_be_built(rtx, make_model, int64s):
    """Inside the whole graph the axes are constant; cut off from what computes them, they are not."""
    model = make_model(
        [
            helper.make_node("Identity", ["one"], ["axes"], name="constant"),
            helper.make_node("Squeeze", ["x", "axes"], ["y"], name="squeeze"),
            relu("y", "z", "relu"),
        ],
        {"x": (FLOAT, [2, 1])},
        {"z": (FLOAT, [2])},
        [int64s("one", [1])],
    )
    oracle = ParserOracle(rtx)
    assert oracle.check_segment(segment(model)) == ()
    found = oracle.check_segment(segment(model, ["squeeze", "relu"]))
    assert [(v.node, v.rule) for v in found] == [("squeeze", "parser"), ("relu", "rank")]


def test_a_segment_with_an_input_of_unknown_rank_denies_its_reader(rtx, make_model):
    model = make_model([relu("x", "y", "first"), relu("y", "z", "second")], {"x": (FLOAT, None)}, {"z": (FLOAT, None)})
    found = ParserOracle(rtx).check_segment(segment(model))
    assert {v.node: v.rule for v in found} == {"first": "rank", "second": "rank"}


def test_a_segment_that_crashes_the_parser_denies_the_guilty_node(rtx, crashing):
    found = ParserOracle(rtx).check_segment(segment(crashing))
    assert {v.node: v.rule for v in found} == {"CropAndResize": "crash"}


def fake_chain(middle, domain=""):
    return [
        relu("x", "a", "r1"),
        helper.make_node(middle, ["a"], ["b"], name="fake", domain=domain),
        relu("b", "z", "r2"),
    ]


def examined(rtx, model, **lists):
    oracle = ParserOracle(rtx, **lists)
    return oracle, {v.node: v for v in oracle.examine(model)}


@pytest.mark.parametrize("name", ["Foo", "my::Foo"])
def test_the_fake_list_makes_denied_nodes_pretences(rtx, make_model, name):
    model = make_model(fake_chain("Foo", "my"), X, {"z": (FLOAT, [2, 3])}, domains=["my"])
    model.proto.graph.value_info.append(value("b", FLOAT, [2, 3]))
    oracle, found = examined(rtx, model, op_fakelist=[name])
    assert found["fake"].pretended
    assert "domain 'my'" in found["fake"].reason
    assert not found["r1"].pretended
    assert all(v.supported for v in found.values())
    (mark,) = oracle.check_segment(segment(model))
    assert (mark.node, mark.pretended) == ("fake", True)


def test_the_fake_list_lifts_no_denylist(rtx, make_model):
    model = make_model(fake_chain("BitwiseNot"), {"x": (INT32, [2, 3])}, {"z": (INT32, [2, 3])}, infer=False)
    _, found = examined(rtx, model, op_fakelist=["BitwiseNot"], op_denylist=["BitwiseNot"])
    assert (found["fake"].supported, found["fake"].rule) == (False, "denylist")


def test_what_tensorrt_takes_needs_no_pretence(rtx, make_model):
    model = make_model(fake_chain("Abs"), X, {"z": (FLOAT, [2, 3])})
    oracle, found = examined(rtx, model, op_fakelist=["Abs"])
    assert not any(v.pretended for v in found.values())
    assert oracle.check_segment(segment(model)) == ()


def test_strings_may_be_pretended_and_the_parser_judges_the_rest(rtx, make_model):
    nodes = [
        helper.make_node("StringNormalizer", ["s"], ["t"], name="fake"),
        relu("x", "r", "relu"),
        helper.make_node("Mod", ["x", "r"], ["m"], name="mod", fmod=1),
        helper.make_node("BitwiseNot", ["u"], ["v"], name="not"),
    ]
    strings = (TensorProto.STRING, [2])
    inputs = {"s": strings, **X, "u": (INT32, [2])}
    model = make_model(nodes, inputs, {"t": strings, "m": (FLOAT, [2, 3]), "v": (INT32, [2])})
    oracle, found = examined(rtx, model, op_fakelist=["StringNormalizer"])
    assert found["fake"].pretended
    assert found["relu"].supported
    assert not found["not"].supported
    answers = {v.node: v for v in oracle.check_segment(segment(model))}
    assert answers["fake"].pretended
    assert not answers["not"].supported
    assert "relu" not in answers


def test_pretences_in_bodies(rtx, make_model):
    def body(name, middle):
        domain = "my" if middle == "Foo" else ""
        nodes = [
            relu("x", f"{name}a", f"{name}1"),
            helper.make_node(middle, [f"{name}a"], [f"{name}b"], name=f"{name}2", domain=domain),
            helper.make_node("Abs", [f"{name}b"], [f"{name}c"], name=f"{name}3"),
        ]
        inner = [value(f"{name}{v}", FLOAT, [2, 3]) for v in "ab"]
        return helper.make_graph(nodes, name, [], [value(f"{name}c", FLOAT, [2, 3])], value_info=inner)

    branch = helper.make_node("If", ["c"], ["y"], name="if", then_branch=body("t", "Foo"), else_branch=body("e", "Neg"))
    model = make_model([branch], {**X, "c": (BOOL, [])}, {"y": (FLOAT, [2, 3])}, domains=["my"], infer=False)
    _, found = examined(rtx, model, op_fakelist=["my::Foo"])
    assert not found["if"].supported
    assert found["t2"].pretended
    assert all(found[name].supported for name in ("t1", "t3", "e1", "e2", "e3"))
    _, found = examined(rtx, model, op_fakelist=["If"])
    assert found["if"].pretended
    assert found["t2"].supported
