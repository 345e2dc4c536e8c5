"""Canonical form on literal graphs, one hazard each."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.base import PassError, verify
from passes.canonicalize import Canonicalize
from passes.graph.walk import definitions, iter_graphs, iter_nodes
from passes.model import Model, from_proto, is_stub, make_stub
from rewriter.runtime.native import NativeSession

X = np.array([1.0, -2.0], np.float32)


def parsed(text, opset=18, functions="", imports=""):
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{imports}]>\n{text}\n{functions}')


def clean(proto, weights=None):
    """Canonicalises, and checks what holds for every model."""
    model = from_proto(proto) if weights is None else Model(proto, weights)
    before = model.proto.SerializeToString(deterministic=True)
    result = Canonicalize().run(model)
    assert model.proto.SerializeToString(deterministic=True) == before
    assert result.modified == (result.model.proto.SerializeToString(deterministic=True) != before)
    verify(result.model, "canonicalize", canonical=True)
    again = Canonicalize().run(result.model)
    assert again.model is result.model
    return result


def rules(result):
    return {change.rule for change in result.changes}


def ops(graph):
    return [node.op_type for node in graph.node]


def same(result, proto, **feeds):
    ours = NativeSession(result.model, optimize=False).run(feeds)
    theirs = NativeSession(Model(proto), optimize=False).run(feeds)
    assert list(ours) == list(theirs)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_shadowed_names_of_nested_bodies_are_renamed_consistently():
    # "t" is a value of the main graph, and hidden in the branch, whose inner branch reads the hiding one.
    text = """g (float[2] x, bool b) => (float[2] y) {
        t = Neg(x)
        z = If(b) <then_branch = a () => (float[2] r) {
                       t = Add(x, x)
                       r = If(b) <then_branch = c () => (float[2] q) { q = Mul(t, t) },
                                  else_branch = d () => (float[2] q) { q = Identity(t) }> },
                   else_branch = e () => (float[2] r) { r = Identity(t) }>
        y = Add(z, t) }"""
    proto = parsed(text)
    result = clean(proto)
    inner = result.model.proto.graph.node[1].attribute[0].g
    assert inner.node[0].output == ["t__1"]
    assert inner.node[1].attribute[0].g.node[0].input == ["t__1", "t__1"]
    assert result.model.proto.graph.node[1].attribute[1].g.node[0].input == ["t"]
    for flag, want in ((True, 4 * X * X - X), (False, -2 * X)):
        got = NativeSession(result.model).run({"x": X, "b": np.array(flag)})
        np.testing.assert_array_equal(got["y"], want)


def test_loop_body_names_that_hide_main_names():
    text = """g (float[2] x) => (float[2] y) <int64 n={3}, bool c={1}> {
        y = Loop(n, c, x) <body = b (int64 n, bool c, float[2] x) => (bool k, float[2] y) {
            k = Identity(c) m = Cast<to=1>(n) y = Add(x, m) }> }"""
    result = clean(parsed(text))
    np.testing.assert_array_equal(NativeSession(result.model).run({"x": X})["y"], X + 3)


def test_node_names_become_unique_and_the_first_owner_keeps_its_name():
    text = """g (float[2] x, bool b) => (float[2] y) {
        [n] p = Neg(x) [n] q = Abs(p) r = Relu(q) [Relu_r] s = Exp(r)
        y = If(b) <then_branch = a () => (float[2] u) { [n] u = Neg(s) },
                   else_branch = e () => (float[2] v) { v = Abs(s) }> }"""
    result = clean(parsed(text))
    names = [node.name for node in iter_nodes(result.model.proto.graph)]
    assert names == ["n", "n__1", "Relu_r__1", "Relu_r", "If_y", "Abs_v", "n__2"]


def test_nested_functions_with_attributes_and_weight_stubs():
    proto = parsed(
        "g (float[2] x) => (float[2] y, float[2] z) { y = f.outer<slope=0.5>(x, w) z = f.outer(x, x) }",
        imports=', "f" : 1',
        functions="""<domain: "f", opset_import: ["" : 18, "f" : 1]> outer <slope: float = 0.25>(a, b) => (o) {
            t = f.inner(a, b) w = LeakyRelu<alpha: float = @slope>(t) o = Identity(w) }
        <domain: "f", opset_import: ["" : 18]> inner (a, b) => (o) { c = Constant<value_floats=[1.0, 2.0]>()
            d = Add(a, b) o = Mul(c, d) }""",
    )
    stubbed = onnx.ModelProto()
    stubbed.CopyFrom(proto)
    stubbed.graph.initializer.append(make_stub("w", TensorProto.FLOAT, [2]))
    weight = np.array([3.0, -4.0], np.float32)
    result = clean(stubbed, {"w": weight})
    assert not result.model.proto.functions
    assert [o.domain for o in result.model.proto.opset_import] == [""]
    assert result.model.weights["w"] is weight
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    same(result, proto, x=X)


def test_functions_of_another_opset_are_adapted():
    proto = parsed(
        "g (float[2] x) => (float[2] y) { y = f.twice(x) }",
        imports=', "f" : 1',
        functions='<domain: "f", opset_import: ["" : 17]> twice (a) => (o) { o = Add(a, a) }',
    )
    assert ops(clean(proto).model.proto.graph) == ["Add"]


def test_recursive_function_is_an_error():
    proto = parsed(
        "g (float[2] x) => (float[2] y) { y = f.me(x) }",
        imports=', "f" : 1',
        functions='<domain: "f", opset_import: ["" : 18, "f" : 1]> me (a) => (o) { o = f.me(a) }',
    )
    with pytest.raises(PassError, match=r"cannot be inlined.*recursive"):
        Canonicalize().run(Model(proto))


def test_attribute_reference_outside_a_function_is_an_error():
    proto = parsed("g (float[2] x) => (float[2] y) { [leak] y = LeakyRelu(x) }")
    proto.graph.node[0].attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    with pytest.raises(PassError, match=r"'alpha' of node 'leak' \(LeakyRelu\) refers to 'slope'"):
        Canonicalize().run(Model(proto))


def test_sorting_is_stable_and_counts_captures():
    text = """g (float[2] x, bool b) => (float[2] y) {
        y = If(b) <then_branch = a () => (float[2] u) { u = Neg(p) v = Abs(u) },
                   else_branch = e () => (float[2] r) { r = Exp(q) q = Abs(x) }>
        p = Neg(x) }"""
    result = clean(parsed(text))
    assert "sort" in rules(result)
    assert ops(result.model.proto.graph) == ["Neg", "If"]
    assert ops(result.model.proto.graph.node[1].attribute[1].g) == ["Abs", "Exp"]


def test_a_cycle_is_named():
    proto = parsed("g (float[2] x) => (float[2] y) { [a] p = Add(x, r) [b] q = Neg(p) [c] r = Abs(q) [d] y = Neg(r) }")
    with pytest.raises(PassError, match=r"cycle: 'b' \(Neg\) -> 'c' \(Abs\) -> 'a' \(Add\) -> 'b'"):
        Canonicalize().run(Model(proto))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[2] x) => (float[2] y) { [n] y = Add(x, gone) }", "'n' .Add. in the main graph reads 'gone'"),
        ("g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x) }", "output 'z' of the main graph"),
        ("g (float[2] x) => (float[2] y) { y = Neg(x) y = Abs(x) }", "'y' is defined more than once"),
        ("g (float[2] x) => (float[2] y) { x = Neg(x) y = Abs(x) }", "produces 'x', which is also an input"),
    ],
)
def test_invalid_graphs_are_named(text, message):
    with pytest.raises(PassError, match=message):
        Canonicalize().run(Model(parsed(text)))


def test_a_value_of_a_sibling_body_is_not_visible():
    text = """g (float[2] x, bool b) => (float[2] y) {
        y = If(b) <then_branch = a () => (float[2] u) { t = Neg(x) u = Abs(t) },
                   else_branch = e () => (float[2] r) { [bad] r = Exp(t) }> }"""
    with pytest.raises(PassError, match=r"'bad'.*body If_y/else_branch reads 't'"):
        Canonicalize().run(Model(parsed(text)))


def test_every_kind_of_constant_becomes_an_initializer():
    text = """g (float[2] x) => (float[2] y, int64[3] i, int64 j, string s, string[2] t, float[2] u) {
        a = Constant<value=float[2] {1, 2}>() b = Constant<value_float=3.0>() c = Constant<value_floats=[4.0, 5.0]>()
        i = Constant<value_ints=[1, 2, 3]>() j = Constant<value_int=7>()
        s = Constant<value_string="word">() t = Constant<value_strings=["p", "q"]>()
        y = Sum(x, a, b, c) u = Identity(c) }"""
    proto = parsed(text)
    result = clean(proto)
    graph = result.model.proto.graph
    assert ops(graph) == ["Sum", "Identity"]
    assert {t.name: list(t.dims) for t in graph.initializer} == {
        "a": [2], "b": [], "c": [2], "i": [3], "j": [], "s": [], "t": [2],
    }  # fmt: skip
    same(result, proto, x=X)


def test_sparse_constants_stay():
    values = numpy_helper.from_array(np.array([5.0], np.float32), "")
    indices = numpy_helper.from_array(np.array([1], np.int64), "")
    sparse = helper.make_sparse_tensor(values, indices, [2])
    proto = parsed("g (float[2] x) => (float[2] y) { y = Add(x, c) }")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["c"], sparse_value=sparse))
    result = clean(proto)
    assert ops(result.model.proto.graph) == ["Constant", "Add"]
    same(result, proto, x=X)


@pytest.mark.parametrize("attributes", [{}, {"value_float": 1.0, "value_int": 1}, {"values": 1.0}])
def test_bad_constants_are_errors(attributes):
    proto = parsed("g (float[2] x) => (float[2] y) { y = Add(x, c) }")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["c"], "const", **attributes))
    with pytest.raises(PassError, match="Constant node 'const'"):
        Canonicalize().run(Model(proto))


def test_constants_of_bodies_move_to_the_main_graph_unless_bound():
    text = """g (float[2] x, bool b) => (float[2] y) {
        y = If(b) <then_branch = a () => (float[2] u) <float[2] w = {1, 2}> {
                       c = Constant<value_floats=[3.0, 4.0]>() d = Add(w, c) u = Add(d, x) },
                   else_branch = e () => (float[2] v) { v = Constant<value_floats=[5.0, 6.0]>() }> }"""
    proto = parsed(text)
    result = clean(proto)
    graph = result.model.proto.graph
    assert sorted(t.name for t in graph.initializer) == ["c", "w"]
    then_branch, else_branch = (a.g for a in graph.node[0].attribute)
    assert not then_branch.initializer
    assert [t.name for t in else_branch.initializer] == ["v"]
    for flag in (True, False):
        same(result, proto, x=X, b=np.array(flag))


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN])
def test_large_constants_become_weights(dtype):
    array = np.arange(2048).astype(helper.tensor_dtype_to_np_dtype(dtype))
    proto = parsed("g (float[2048] x) => (float[2048] y) { w = Cast<to=1>(c) y = Add(x, w) }", opset=19)
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(array)))
    result = clean(proto)
    stub = result.model.proto.graph.initializer[0]
    assert is_stub(stub)
    assert stub.name == "c"
    assert result.model.weights["c"].dtype == array.dtype
    assert result.model.weights["c"].tobytes() == array.tobytes()
    assert not result.model.weights["c"].flags.writeable


def test_large_initializers_that_are_inline_are_taken_out():
    proto = parsed("g (float[2048] x) => (float[2048] y) { y = Add(x, c) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2048, np.float32), "c"))
    result = clean(proto, {})
    assert rules(result) >= {"detach-weight"}
    assert list(result.model.weights) == ["c"]


def test_external_data_in_a_body_is_an_error():
    text = """g (float[2] x, bool b) => (float[2] y) {
        y = If(b) <then_branch = a () => (float[2] u) <float[2] w = {1, 2}> { u = Add(w, x) },
                   else_branch = e () => (float[2] v) { v = Neg(x) }> }"""
    proto = parsed(text)
    tensor = proto.graph.node[0].attribute[0].g.initializer[0]
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data.bin")
    with pytest.raises(PassError, match="constant 'w' lie in a file"):
        Canonicalize().run(Model(proto))


def test_identities_around_outputs():
    # p: an output takes over the producer's name. in, out_c: nothing to take over. twice: only one can.
    text = """g (float[2] x) => (float[2] p, float[2] in, float[2] out_c, float[2] one, float[2] two, float[2] end)
        <float[2] c = {1, 2}> {
        a = Neg(x) b = Identity(a) p = Identity(b) in = Identity(x) out_c = Identity(c)
        t = Abs(x) one = Identity(t) two = Identity(t) u = Identity(t) end = Add(u, a) }"""
    proto = parsed(text)
    result = clean(proto)
    graph = result.model.proto.graph
    assert [(n.op_type, list(n.input), list(n.output)) for n in graph.node] == [
        ("Neg", ["x"], ["p"]),
        ("Identity", ["x"], ["in"]),
        ("Identity", ["c"], ["out_c"]),
        ("Abs", ["x"], ["one"]),
        ("Identity", ["one"], ["two"]),
        ("Add", ["one", "p"], ["end"]),
    ]
    same(result, proto, x=X)


def test_identities_in_bodies_keep_what_a_body_must_return():
    text = """g (float[2] x) => (float[2] y) <int64 n={2}> {
        z = Neg(x)
        y = Loop(n, "", x) <body = b (int64 i, bool c, float[2] a) => (bool k, float[2] o) {
            k = Identity(c) s = Identity(z) r = Add(a, s) q = Identity(r) o = Identity(q) }> }"""
    proto = parsed(text)
    result = clean(proto)
    body = result.model.proto.graph.node[1].attribute[0].g
    assert [(n.op_type, list(n.input), list(n.output)) for n in body.node] == [
        ("Identity", ["c"], ["k"]),
        ("Add", ["a", "z"], ["o"]),
    ]
    same(result, proto, x=X)


def test_noop_casts_and_dropouts():
    text = """g (float[2] x) => (float[2] y, int32[2] i, bool[2] mask) <bool no={0}, float ratio={0.5}> {
        a = Cast<to=1>(x) i = Cast<to=6>(a) d = Dropout(a, ratio, no) e, mask = Dropout(d)
        f = Identity(e) g = Cast<to=1>(f) y = Neg(g) }"""
    proto = parsed(text)
    result = clean(proto)
    assert ops(result.model.proto.graph) == ["Cast", "Dropout", "Neg"]
    same(result, proto, x=X)


def test_dropout_in_training_stays():
    text = """g (float[2] x, bool t) => (float[2] y, float[2] z) <bool yes={1}, float r={0.5}> {
        y = Dropout(x, r, yes) z = Dropout(x, r, t) }"""
    assert ops(clean(parsed(text)).model.proto.graph) == ["Dropout", "Dropout"]


def test_dropout_before_opset_7_stays():
    proto = parsed("g (float[2] x) => (float[2] y) { d = Dropout<is_test=0>(x) y = Neg(d) }", opset=6)
    assert ops(clean(proto).model.proto.graph) == ["Dropout", "Neg"]


def test_dead_nodes_and_unused_initializers_go():
    text = """g (float[2] x, bool b) => (float[2] y) <float[2] c={1, 2}, float[2] w={3, 4}> {
        d = Add(x, c) e = Neg(d) k = Abs(x)
        y = If(b) <then_branch = a () => (float[2] u) { q = Exp(x) u = Add(k, w) },
                   else_branch = e () => (float[2] v) { v = Neg(x) }> }"""
    result = clean(parsed(text))
    graph = result.model.proto.graph
    assert ops(graph) == ["Abs", "If"]
    assert [t.name for t in graph.initializer] == ["w"]
    assert ops(graph.node[1].attribute[0].g) == ["Add"]


def test_inputs_with_initializers_are_constants_but_unused_inputs_stay():
    proto = parsed("g (float[2] x, float[2] w, float[2] unused) => (float[2] y) <float[2] w={1, 2}> { y = Add(x, w) }")
    result = clean(proto)
    assert [v.name for v in result.model.proto.graph.input] == ["x", "unused"]
    assert "drop-input" in rules(result)


def test_versions():
    proto = parsed("g (float[2] x) => (float[2] y) { y = Neg(x) }", imports=', "left.over" : 3')
    proto.opset_import[0].domain = "ai.onnx"
    proto.graph.node[0].domain = "ai.onnx"
    proto.graph.name = ""
    result = clean(proto)
    assert [(o.domain, o.version) for o in result.model.proto.opset_import] == [("", 18)]
    assert result.model.proto.ir_version == 10
    assert result.model.proto.graph.node[0].domain == ""
    assert result.model.proto.graph.name == "main"
    assert clean(parsed("g (float[2] x) => (float[2] y) { y = Neg(x) }", opset=23)).model.proto.ir_version == 11


def test_a_model_without_default_nodes_gets_the_default_domain():
    proto = parsed("g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }", imports=', "com.microsoft" : 1')
    del proto.opset_import[0]
    result = clean(proto)
    assert {o.domain for o in result.model.proto.opset_import} == {"", "com.microsoft"}


@pytest.mark.parametrize(("versions", "message"), [([], "does not say which opset"), ([17, 18], "17 and 18")])
def test_unclear_opsets_are_errors(versions, message):
    proto = parsed("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid("", v) for v in versions)
    with pytest.raises(PassError, match=message):
        Canonicalize().run(Model(proto))


def test_stale_value_info_goes_and_the_rest_stays():
    text = """g (float[2] x) => (float[2] y) <float[2] a, float[2] gone, float[2] b> {
        a = Neg(x) b = Identity(a) y = Abs(b) }"""
    result = clean(parsed(text))
    assert [v.name for v in result.model.proto.graph.value_info] == ["a"]


def test_quantization_annotations_follow_and_keep_their_tensors():
    proto = parsed("g (float[2] x) => (float[2] y) <float s={0.5}> { a = Neg(x) y = Abs(a) }")
    annotation = proto.graph.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    result = clean(proto)
    assert [t.name for t in result.model.proto.graph.initializer] == ["s"]
    assert result.model.proto.graph.quantization_annotation[0].tensor_name == "a"


def test_scan_bodies_count_as_bodies():
    text = """g (float[3,2] x) => (float[2] y, float[3,2] z) {
        s = Constant<value_floats=[0.0, 0.0]>()
        y, z = Scan<num_scan_inputs=1, body = b (float[2] s, float[2] v) => (float[2] t, float[2] o) {
            c = Constant<value_floats=[1.0, 1.0]>() w = Add(v, c) t = Add(s, w) o = Identity(t) }>(s, x) }"""
    proto = parsed(text)
    result = clean(proto)
    names = [name for graph in iter_graphs(result.model.proto.graph) for name in definitions(graph)]
    assert len(names) == len(set(names))
    same(result, proto, x=np.ones((3, 2), np.float32))


def test_nan_constants_do_not_look_like_a_change():
    text = "g (float[2] x) => (float[2] y) { [n] y = LeakyRelu(x) }"
    proto = parsed(text)
    proto.ir_version = 10
    proto.graph.node[0].attribute.append(helper.make_attribute("alpha", float("nan")))
    assert not Canonicalize().run(Model(proto)).modified
