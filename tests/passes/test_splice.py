"""passes.splice: valid models that ONNX Runtime runs bit-equal, and the way back."""

import dataclasses

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from passes import model as models
from passes.base import PassError, verify
from passes.canonicalize import Canonicalize
from passes.engine_node import engine_nodes, read_attributes
from passes.extract import Extractor
from passes.graph_index import iter_scopes
from passes.model import Model, from_proto, stubs_as_inputs
from passes.partition import PartitionOptions, propose
from passes.segments import ENGINE_DOMAIN, Segment, Segmentation
from passes.splice import EngineAttributes, read_engines, splice, unsplice
from passes.support import SupportMap, Verdict
from rewriter.runtime.native import NativeSession


def parse(text, ir_version=8):
    return from_proto(onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : 17]>\n{text}'))


def cut(model, minimum=1, bad_ops=("Sin",), bad_nodes=()):
    verdicts = (
        Verdict(n.name, n.op_type, n.op_type not in bad_ops and n.name not in bad_nodes, reason="no")
        for _, graph in iter_scopes(model.proto)
        for n in graph.node
    )
    return propose(model, SupportMap.of(verdicts), PartitionOptions(minimum))


def attributes(model, segmentation):
    extractor = Extractor(model)
    return {s.name: EngineAttributes(extractor.extract(s).content_hash, len(s.inputs)) for s in segmentation.segments}


def spliced(model, *args, **options):
    segmentation = cut(model, *args, **options)
    assert segmentation.segments
    return splice(model, segmentation, attributes(model, segmentation))


def assert_same_results(model, other, feeds):
    for optimize in (True, False):
        expected = NativeSession(model, optimize=optimize, threads=1).run(feeds)
        actual = NativeSession(other, optimize=optimize, threads=1).run(feeds)
        assert list(expected) == list(actual)
        for name, array in expected.items():
            np.testing.assert_array_equal(actual[name], array, strict=True)


def assert_good(model, feeds, *args, **options):
    """Valid, the same results, back to the model it was; returns the spliced model."""
    before = model.proto.SerializeToString(deterministic=True)
    result = spliced(model, *args, **options)
    assert model.proto.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(stubs_as_inputs(result), full_check=True)
    verify(result, "splice")
    assert_same_results(model, result, feeds)
    back = unsplice(result)
    assert_same_results(model, back, feeds)
    assert nodes_by_name(back) == nodes_by_name(model)
    assert not back.proto.functions
    assert [o.domain for o in back.proto.opset_import] == [o.domain for o in model.proto.opset_import]
    assert {v.name for v in back.proto.graph.value_info} == {v.name for v in model.proto.graph.value_info}
    return result


def nodes_by_name(model):
    """Scope and name -> node without its bodies, whose nodes are listed on their own."""
    found = {}
    for scope, graph in iter_scopes(model.proto):
        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            plain = [a for a in copy.attribute if a.type != AttributeProto.GRAPH]
            del copy.attribute[:]
            copy.attribute.extend(plain)
            found[scope, node.name] = copy
    return found


FLAT = """g (float[N, 2] x, float[N, 2] u) => (float[N, 2] y, float[N, 2] b1)
  <float[2] w = {1, 2}, float lo = {-1}, float[N, 2] a1, float[N, 2] s1> {
  [a] a1 = Mul(u, w) [b] b1 = Sub(a1, x) [c] c1 = Clip(b1, lo) [s] s1 = Sin(c1) [d] d1 = Add(c1, w) [e] y = Add(s1, d1)
}"""
FEEDS = {"x": np.linspace(-3, 3, 6, dtype=np.float32).reshape(3, 2), "u": np.ones((3, 2), np.float32)}


def test_the_node_and_its_function():
    result = assert_good(parse(FLAT), FEEDS, 3)
    (scope, node), *rest = engine_nodes(result.proto)
    assert (scope, rest) == ((), [])
    assert (node.op_type, node.name, node.domain) == ("TRTEngineOp_000", "TRTEngineOp_000", ENGINE_DOMAIN)
    assert list(node.input) == ["u", "x", "w", "lo"]
    assert list(node.output) == ["b1", "c1", "d1"]
    (function,) = result.proto.functions
    assert list(function.input) == list(node.input)
    assert list(function.output) == list(node.output)
    assert [n.name for n in function.node] == ["a", "b", "c", "d"]
    assert {v.name for v in function.value_info} >= {"a1", "b1", "x", "u", "w"}
    assert [(o.domain, o.version) for o in function.opset_import] == [("", 17)]
    assert [v.name for v in result.proto.graph.value_info] == ["s1"]
    assert result.proto.ir_version == 10
    assert {o.domain: o.version for o in result.proto.opset_import} == {"": 17, ENGINE_DOMAIN: 1}


def test_a_newer_ir_version_stays():
    assert assert_good(parse(FLAT, ir_version=11), FEEDS, 3).proto.ir_version == 11


def test_attributes_are_typed_and_come_back():
    model = parse(FLAT)
    segmentation = cut(model, 3)
    built = EngineAttributes(
        "ab" * 32, 2, "FP16", ("engines/é.engine", "b"), ("00", "11"), '[{"x": 1}]', "tensorrt_rtx", "1.7", ("SM89",),
        not_runnable="only what if",
    )  # fmt: skip
    result = splice(model, segmentation, {"TRTEngineOp_000": built})
    assert read_engines(result.proto) == (((), built, "TRTEngineOp_000"),)
    (_, node), *_ = engine_nodes(result.proto)
    kinds = {a.name: a.type for a in node.attribute}
    assert kinds["data_inputs"] == AttributeProto.INT
    assert kinds["segment_hash"] == kinds["profiles"] == kinds["backend_version"] == AttributeProto.STRING
    assert kinds["engine_files"] == kinds["engine_sha256"] == kinds["targets"] == AttributeProto.STRINGS
    assert set(kinds) == {f.name for f in dataclasses.fields(EngineAttributes)}
    assert not node.metadata_props


def test_unbuilt_engines_have_empty_lists():
    (engine,) = read_engines(spliced(parse(FLAT), 3).proto)
    assert engine[1].engine_files == engine[1].targets == ()
    assert engine[1].not_runnable == ""


def test_files_and_digests_go_together():
    with pytest.raises(ValueError, match="1 engine files, but 0 digests"):
        EngineAttributes("h", 1, engine_files=("a",))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda n: n.attribute.pop(0), "'TRTEngineOp_000' lacks the attribute 'data_inputs'"),
        (lambda n: setattr(n.attribute[1], "type", AttributeProto.INT), "wrong type of the attribute 'segment_hash'"),
        (lambda n: setattr(n.attribute[1], "s", b"\xff"), "damaged attributes .*utf-8"),
        (lambda n: n.attribute.add(name="engine_files", type=AttributeProto.STRINGS, strings=[b"a"]), "but 0 digests"),
    ],
)
def test_damaged_nodes_are_named(damage, message):
    (_, node), *_ = engine_nodes(spliced(parse(FLAT), 3).proto)
    damage(node)
    with pytest.raises(PassError, match=message):
        read_attributes(node)


def test_a_file_survives_checker_and_runtime(tmp_path):
    rng = np.random.default_rng(1)
    weight = numpy_helper.from_array(rng.random((32, 32), np.float32), "w")
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="m"),
        helper.make_node("Sin", ["a"], ["b"], name="s"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="n"),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", 1, ["N", 32])], [value("y", 1, ["N", 32])], [weight])
    model = from_proto(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]))
    result = assert_good(model, {"x": rng.random((3, 32), np.float32)})
    assert len(result.proto.functions) == 2
    assert result.weights["w"] is model.weights["w"]
    path = tmp_path / "model.onnx"
    models.save(result, path)
    onnx.checker.check_model(path, full_check=True)
    loaded = models.load(path)
    assert read_engines(loaded.proto) == read_engines(result.proto)
    assert_same_results(model, loaded, {"x": rng.random((2, 32), np.float32)})


def test_huge_weights_are_never_made_real():
    rows = 1 << 20
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], "g",
        [value("x", 1, ["N", rows])], [value("y", 1, ["N", rows])], [models.make_stub("w", 1, [rows, rows])],
    )  # fmt: skip
    model = Model(
        helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]),
        {"w": np.broadcast_to(np.float32(1), (rows, rows))},
    )
    segmentation = cut(model)
    result = splice(model, segmentation, {"TRTEngineOp_000": EngineAttributes("h", 1)})
    assert result.weights["w"] is model.weights["w"]
    assert result.proto.ByteSize() < 2000
    onnx.checker.check_model(stubs_as_inputs(result), full_check=True)


def test_graphsurgeon_keeps_what_we_need():
    model = parse(FLAT)
    segmentation = cut(model, 3)
    built = EngineAttributes("h", 2, "FP32", ("f",), ("s",), "[]", "tensorrt_rtx", "1.7", ("SM80", "SM89"))
    for given_attributes in (built, EngineAttributes("h", 2)):
        result = splice(model, segmentation, {"TRTEngineOp_000": given_attributes})
        tripped = from_proto(gs.export_onnx(gs.import_onnx(result.proto).cleanup().toposort()))
        assert read_engines(tripped.proto) == read_engines(result.proto)
        assert_same_results(model, tripped, FEEDS)
        assert_same_results(model, unsplice(tripped), FEEDS)


CONTROL = """g (float[2] x, bool c) => (float[2] y, float[2] a1) <float[2] w = {1, 2}> {
  [a] a1 = Relu(x) [s] s1 = Sin(a1) [b] b1 = Mul(s1, w)
  [if] i1 = If (c) <
    then_branch = t () => (float[2] t3) <float[2] k = {5, 6}, float[2] t1>
      { [t1] t1 = Mul(b1, w) [t2] t2 = Add(t1, k) [t3] t3 = Sub(t2, a1) },
    else_branch = e () => (float[2] e2) { [e1] e1 = Sin(a1) [e2] e2 = Add(e1, x) }
  >
  [o] y = Add(i1, a1)
}"""


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize(
    ("minimum", "options", "scopes"),
    [
        (1, {"bad_ops": ()}, {()}),
        (1, {"bad_nodes": ("if",)}, {(), ("if/then_branch",), ("if/else_branch",)}),
        (3, {"bad_nodes": ("if",)}, {("if/then_branch",)}),
        (-1, {}, {("if/then_branch",)}),
    ],
)
def test_control_flow(condition, minimum, options, scopes):
    feeds = {"x": np.float32([-1.5, 2]), "c": np.array(condition)}
    result = assert_good(parse(CONTROL), feeds, minimum, **options)
    assert {scope for scope, _ in engine_nodes(result.proto)} == scopes


@pytest.mark.parametrize("whole", [True, False])
def test_loops(whole):
    body = onnx.parser.parse_graph(
        "body (int64 i, bool cond_in, float[2] v_in) => (bool cond_out, float[2] v_out, float[2] scan) {"
        "[keep] cond_out = Identity(cond_in) [m] v1 = Mul(v_in, w) [n] v_out = Tanh(v1) [q] scan = Sub(v_out, a1) }"
    )
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Relu", ["x"], ["a1"], name="a"),
        helper.make_node("Loop", ["trips", "", "a1"], ["l1", "scans"], name="loop", body=body),
        helper.make_node("Neg", ["l1"], ["y"], name="b"),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT, [2]), value("scans", TensorProto.FLOAT, [3, 2])],
        [numpy_helper.from_array(np.array(3), "trips"), numpy_helper.from_array(np.float32([1.5, 2]), "w")],
    )  # fmt: skip
    model = from_proto(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    bad = () if whole else ("loop",)
    result = assert_good(model, {"x": np.float32([0.5, 1])}, 3, bad_nodes=bad)
    assert [scope for scope, _ in engine_nodes(result.proto)] == ([()] if whole else [("loop/body",)])


def test_optional_inputs_that_are_left_out():
    text = """g (float[2] x, float hi) => (float[2] y) { [a] a1 = Relu(x) [b] b1 = Clip(a1, , hi) [c] y = Neg(b1) }"""
    assert_good(parse(text), {"x": np.float32([1, 9]), "hi": np.array(3, np.float32)}, 3)


def test_the_same_segment_twice_and_names_that_are_taken():
    text = """g (float[2] x) => (float[2] y) <float[2] b1, float[2] c1> {
      [a] a1 = Relu(x) [b] b1 = Neg(a1) [TRTEngineOp_000] c1 = Sin(b1) [d] d1 = Relu(c1) [e] y = Neg(d1) }"""
    result = assert_good(parse(text), {"x": np.float32([1, -2])}, 2)
    nodes = [n for _, n in engine_nodes(result.proto)]
    assert [(n.name, n.op_type) for n in nodes] == [
        ("TRTEngineOp_000__1", "TRTEngineOp_000"), ("TRTEngineOp_001", "TRTEngineOp_001"),
    ]  # fmt: skip
    first, second = (read_attributes(n).segment_hash for n in nodes)
    assert first == second


def test_nothing_to_splice_changes_nothing():
    model = parse(FLAT)
    result = splice(model, Segmentation((), (), 6), {})
    assert result.proto == model.proto


def test_a_model_can_be_spliced_again_after_unsplicing():
    model = parse(FLAT)
    once = spliced(model, 3)
    segmentation = cut(model, 3)
    with pytest.raises(PassError, match="holds engine nodes already"):
        splice(once, segmentation, attributes(model, segmentation))
    again = unsplice(once)
    assert spliced(again, 3).proto.functions == once.proto.functions


@pytest.mark.parametrize(
    ("segments", "engines", "message"),
    [
        (("S",), {}, "every segment needs engine attributes, and nothing else does: S"),
        (("S",), {"S": 1, "T": 1}, "nothing else does: T"),
        (("S",), {"S": 3}, "'S' has 1 data inputs, but its attributes say 3"),
        (("S", "T"), {"S": 1, "T": 1}, "'a' lies in 'S' and in 'T'"),
    ],
)
def test_wrong_plans_are_refused(segments, engines, message):
    found = tuple(Segment(n, (), ("a",), ("u",), ("w",), ("a1",), 1) for n in segments)
    with pytest.raises(PassError, match=message):
        splice(parse(FLAT), Segmentation(found, (), 6), {n: EngineAttributes("h", k) for n, k in engines.items()})


def test_a_scope_of_another_model_is_refused():
    segment = Segment("S", ("if/body",), ("a",), ("u",), (), ("a1",), 1)
    with pytest.raises(PassError, match="'S' lies at 'if/body', where there is no graph"):
        splice(parse(FLAT), Segmentation((segment,), (), 6), {"S": EngineAttributes("h", 1)})


def test_a_segment_that_is_not_convex_is_refused():
    segment = Segment("S", (), ("c", "e"), ("b1", "s1", "d1"), ("lo",), ("c1", "y"), 2)
    with pytest.raises(PassError, match="cycle"):
        splice(parse(FLAT), Segmentation((segment,), (), 6), {"S": EngineAttributes("h", 3)})


def test_unsplice_follows_tools_that_renamed_values():
    """Other tools may rename what the node reads and makes, drop unused outputs, or use an inner name elsewhere."""
    model = parse(FLAT)
    proto = spliced(model, 3).copy_proto()
    renames = {"x": "x2", "c1": "c2", "y": "a1"}
    for values in (proto.graph.input, proto.graph.output):
        for value in values:
            value.name = renames.get(value.name, value.name)
    for node in proto.graph.node:
        for field in (node.input, node.output):
            changed = [renames.get(n, n) for n in field]
            del field[:]
            field.extend(changed)
    del proto.graph.value_info[:]
    renamed = unsplice(Model(proto))
    onnx.checker.check_model(renamed.proto, full_check=True)
    expected = NativeSession(model).run(FEEDS)
    actual = NativeSession(renamed).run({"x2": FEEDS["x"], "u": FEEDS["u"]})
    np.testing.assert_array_equal(actual["a1"], expected["y"])
    np.testing.assert_array_equal(actual["b1"], expected["b1"])


def test_unsplice_renames_captures_and_dropped_outputs():
    model = parse(CONTROL)
    proto = spliced(model, 1, bad_ops=()).copy_proto()
    (node,) = proto.graph.node
    node.output[list(node.output).index("a1")] = ""
    del proto.graph.output[1]
    node.input[list(node.input).index("x")] = "x2"
    next(i for i in proto.graph.input if i.name == "x").name = "x2"
    renamed = unsplice(Model(proto))
    onnx.checker.check_model(renamed.proto, full_check=True)
    x = np.float32([-1, 2])
    for condition in (True, False):
        expected = NativeSession(model).run({"x": x, "c": np.array(condition)})["y"]
        actual = NativeSession(renamed).run({"x2": x, "c": np.array(condition)})["y"]
        np.testing.assert_array_equal(actual, expected)


def test_a_lost_function_is_told():
    proto = spliced(parse(FLAT), 3).copy_proto()
    del proto.functions[:]
    with pytest.raises(PassError, match="'TRTEngineOp_000' has lost its function"):
        unsplice(Model(proto))


OPERATORS = {"Relu": 1, "Sin": 1, "Identity": 1, "Neg": 1, "Add": 2, "Mul": 2, "Sum": 3, "Sub": 2}


@st.composite
def random_models(draw):
    """Up to 14 nodes on float[2]; If nodes whose branches capture values and weights."""
    count = draw(st.integers(2, 14))
    value = helper.make_tensor_value_info
    names, nodes = ["x", "u", "w"], []

    def operator(name, result, known):
        op = draw(st.sampled_from(sorted(OPERATORS)))
        inputs = [known[draw(st.integers(max(0, len(known) - 6), len(known) - 1))] for _ in range(OPERATORS[op])]
        return helper.make_node(op, inputs, [result], name=name)

    for i in range(count):
        if draw(st.integers(0, 4)) == 0:
            branches = {}
            for branch in ("then_branch", "else_branch"):
                known = [*names, f"n{i}{branch}0"]
                inner = [
                    operator(f"i{i}{branch}0", known[-1], names),
                    operator(f"i{i}{branch}1", f"n{i}{branch}1", known),
                ]
                branches[branch] = helper.make_graph(inner, branch, [], [value(f"n{i}{branch}1", 1, [2])])
            nodes.append(helper.make_node("If", ["c"], [f"v{i}"], name=f"n{i}", **branches))
        else:
            nodes.append(operator(f"n{i}", f"v{i}", names))
        names.append(f"v{i}")
    outputs = sorted({count - 1, *draw(st.sets(st.integers(0, count - 1), max_size=3))})
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, [2]), value("u", 1, [2]), value("c", TensorProto.BOOL, [])],
        [value(f"v{o}", 1, [2]) for o in outputs], [numpy_helper.from_array(np.float32([0.5, -2]), "w")],
    )  # fmt: skip
    return from_proto(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]))


@settings(max_examples=60, deadline=None)
@given(random_models(), st.sampled_from([-1, 1, 2, 3]), st.booleans(), st.booleans())
def test_random_models_run_bit_equal(model, minimum, condition, deny_if):
    bad = ("Sin", "If") if deny_if else ("Sin",)
    segmentation = cut(model, minimum, bad_ops=bad)
    result = splice(model, segmentation, attributes(model, segmentation))
    onnx.checker.check_model(result.proto, full_check=True)
    feeds = {"x": np.float32([0.3, -1]), "u": np.float32([2, 5]), "c": np.array(condition)}
    assert_same_results(model, result, feeds)
    assert nodes_by_name(unsplice(result)) == nodes_by_name(model)


def test_default_axes_are_found_inside_a_function():
    text = "g (float[2,3,4,4] x) => (float[2,3,4,4] y) { m = MeanVarianceNormalization(x) y = Relu(m) }"
    source = parse(text)
    model = Canonicalize().run(source).model
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4), np.float32)
    assert_same_results(source, spliced(model), {"x": x})


def test_unsplice_leaves_engine_nodes_that_are_to_be_kept():
    result = spliced(parse(FLAT), 1)
    ops = [node.op_type for _, node in engine_nodes(result.proto)]
    assert len(ops) == 2
    for keep in (ops[:1], ops[1:], ops):
        partly = unsplice(result, keep=keep)
        onnx.checker.check_model(partly.proto, full_check=True)
        assert [node.op_type for _, node in engine_nodes(partly.proto)] == list(keep)
        assert [f.name for f in partly.proto.functions] == list(keep)
        assert [o.domain for o in partly.proto.opset_import] == ["", ENGINE_DOMAIN]
        assert read_engines(partly.proto) == tuple(e for e in read_engines(result.proto) if e[2] in keep)
        assert_same_results(result, partly, FEEDS)
        assert nodes_by_name(unsplice(partly)) == nodes_by_name(parse(FLAT))


def test_keeping_what_is_not_there_keeps_nothing():
    result = spliced(parse(FLAT), 1)
    assert unsplice(result, keep=["TRTEngineOp_009"]).proto == unsplice(result).proto


def test_engine_nodes_of_bodies_can_be_kept():
    result = spliced(parse(CONTROL), 1, bad_ops=("If", "Sin"))
    inner = [node.op_type for scope, node in engine_nodes(result.proto) if scope]
    partly = unsplice(result, keep=inner)
    assert [(bool(s), node.op_type) for s, node in engine_nodes(partly.proto)] == [(True, op) for op in inner]
    for condition in (True, False):
        assert_same_results(result, partly, {"x": np.float32([-1, 2]), "c": np.array(condition)})
