"""passes.extract and the content hash, on literal models."""

import gc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.base import PassError, verify
from passes.extract import Extractor
from passes.graph.content_hash import WeightDigests
from passes.model import Model, from_proto, is_stub, make_stub
from passes.segments import Segment, TensorSpec

HEAD = '<ir_version: 9, opset_import: ["" : 17, "my.ops" : 2]>\n'
CONTROL = """g (float[N, 2] x, bool c) => (float[N, 2] y) <float[2] w = {1, 2}, float[N, 2] a1> {
  [a] a1 = Relu(x)
  [if] i1 = If (c) <
    then_branch = t () => (float[N, 2] t2) <float[2] k = {5, 6}> { [t1] t1 = Mul(a1, w) [t2] t2 = Add(t1, k) },
    else_branch = e () => (float[N, 2] e1) { [e1] e1 = Neg(x) }
  >
  [b] y = Add(i1, w)
}"""


def parse(text):
    return from_proto(onnx.parser.parse_model(HEAD + text))


def big_model(rows=64):
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.random((rows, rows), np.float32), f"w{i}") for i in range(2)]
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="m0"),
        helper.make_node("MatMul", ["a", "w1"], ["b"], name="m1"),
        helper.make_node("Relu", ["b"], ["y"], name="r"),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, ["N", rows])], [value("y", 1, ["N", rows])], weights,
        value_info=[value("a", 1, ["N", rows])],
    )  # fmt: skip
    return from_proto(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]))


def digest(text, nodes, scope=(), **options):
    return Extractor(parse(text), **options).extract_nodes(scope, nodes).content_hash


def test_boundary_types_and_opsets():
    found = Extractor(parse(CONTROL)).extract_nodes((), ["b", "if"], "S")
    assert (found.segment.name, found.segment.scope, found.segment.nodes) == ("S", (), ("if", "b"))
    assert set(found.segment.inputs) == {"c", "a1", "x"}
    assert found.segment.weights == ("w",)
    assert found.outputs == (TensorSpec("y", TensorProto.FLOAT, ("N", 2)),)
    assert {s.name: s.shape for s in found.inputs} == {"c": (), "a1": ("N", 2), "x": ("N", 2)}
    proto = found.model.proto
    assert proto.ir_version == 9
    assert {o.domain: o.version for o in proto.opset_import} == {"": 17, "my.ops": 2}
    assert [t.name for t in proto.graph.initializer] == ["w"]
    verify(found.model, "extract")


def test_a_body_can_be_taken_out_with_its_own_initializers():
    extractor = Extractor(parse(CONTROL))
    assert extractor.boundary(("if/then_branch",), ["t1", "t2"]) == (("a1",), ("w", "k"), ("t2",))
    found = extractor.extract_nodes(("if/then_branch",), ["t2", "t1"])
    assert found.segment.nodes == ("t1", "t2")
    np.testing.assert_array_equal(numpy_helper.to_array(found.model.proto.graph.initializer[1]), [5, 6])
    verify(found.model, "extract")


def test_inner_types_are_kept():
    found = Extractor(parse(CONTROL)).extract_nodes((), ["a", "if", "b"])
    assert [v.name for v in found.model.proto.graph.value_info] == ["a1"]


def test_weights_are_shared_and_only_those_that_are_read():
    model = big_model()
    found = Extractor(model).extract_nodes((), ["m1"])
    assert list(found.model.weights) == ["w1"]
    assert found.model.weights["w1"] is model.weights["w1"]
    assert all(is_stub(t) for t in found.model.proto.graph.initializer)


def test_huge_weights_are_never_made_real():
    """A stub of 4 TB over one broadcast element: whoever copied it would fail."""
    rows = 1 << 20
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], "g",
        [value("x", 1, ["N", rows])], [value("y", 1, ["N", rows])], [make_stub("w", 1, [rows, rows])],
    )  # fmt: skip
    model = Model(helper.make_model(graph), {"w": np.broadcast_to(np.float32(1), (rows, rows))})
    found = Extractor(model).extract_nodes((), ["m"], hashed=False)
    assert found.model.weights["w"] is model.weights["w"]
    assert found.content_hash == ""


def test_given_types_win_and_the_rest_comes_from_the_proto():
    types = {"x": TensorSpec("public", TensorProto.FLOAT, (4, 2), tensor="x")}
    found = Extractor(parse(CONTROL), types).extract_nodes((), ["a"])
    assert found.inputs == (TensorSpec("x", TensorProto.FLOAT, (4, 2)),)
    assert found.outputs == (TensorSpec("a1", TensorProto.FLOAT, ("N", 2)),)
    assert found.model.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


def test_unknown_rank_and_unknown_type_are_left_open():
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["a"], name="a"), helper.make_node("Abs", ["a"], ["y"], name="b")]
    model = Model(helper.make_model(helper.make_graph(nodes, "g", [value("x", 1, None)], [value("y", 1, [None])])))
    found = Extractor(model).extract_nodes((), ["a"])
    assert found.inputs == (TensorSpec("x", 1, None),)
    assert not found.model.proto.graph.input[0].type.tensor_type.HasField("shape")
    assert found.outputs == (TensorSpec("a", TensorProto.UNDEFINED, None),)
    assert not found.model.proto.graph.output[0].HasField("type")
    assert Extractor(model).spec("y") == TensorSpec("y", 1, (None,))


def test_dead_nodes_give_what_nobody_reads():
    model = parse("g (float[2] x) => (float[2] y) { [a] y = Relu(x) [d] d1 = Neg(x) [e] e1 = Abs(d1) }")
    assert Extractor(model).extract_nodes((), ["d", "e"]).segment.outputs == ("e1",)


def test_sparse_and_replaceable_initializers_are_data():
    value = helper.make_tensor_value_info
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("s", 1, [1], [2.0]), helper.make_tensor("s_i", TensorProto.INT64, [1], [0]), [2]
    )
    graph = helper.make_graph(
        [helper.make_node("Sum", ["x", "s", "w"], ["y"], name="n")], "g",
        [value("x", 1, [2]), value("w", 1, [2])], [value("y", 1, [2])],
        [numpy_helper.from_array(np.float32([1, 2]), "w")], sparse_initializer=[sparse],
    )  # fmt: skip
    found = Extractor(Model(helper.make_model(graph))).extract_nodes((), ["n"])
    assert found.segment.inputs == ("x", "s", "w")
    assert found.inputs[1] == TensorSpec("s", 1, (2,))


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (Segment("S", ("if/body",), ("a",), (), (), (), 1), "no graph at scope 'if/body'"),
        (Segment("S", (), ("nope",), (), (), (), 1), "no node 'nope'"),
        (Segment("S", (), ("b",), (), ("lost",), (), 1), "'S' needs the initializer 'lost'"),
    ],
)
def test_a_segment_of_another_model_is_refused(segment, message):
    with pytest.raises(PassError, match=message):
        Extractor(parse(CONTROL)).extract(segment)


RENAMED = """g (float[batch, 2] in, bool flag) => (float[batch, 2] out) <float[2] scale = {1, 2}, float[batch, 2] q> {
  [n1] q = Relu(in)
  [n2] r = If (flag) <
    else_branch = z () => (float[batch, 2] z1) { [n6] z1 = Neg(in) },
    then_branch = s () => (float[batch, 2] s2) <float[2] kk = {5, 6}> { [n4] s1 = Mul(q, scale) [n5] s2 = Add(s1, kk) }
  >
  [n3] out = Add(r, scale)
}"""


def test_names_do_not_matter_to_the_hash():
    assert digest(CONTROL, ["a", "if", "b"]) == digest(RENAMED, ["n1", "n2", "n3"])


def test_doc_strings_and_metadata_do_not_matter():
    model = parse(CONTROL)
    plain = Extractor(model).extract_nodes((), ["a", "b"]).content_hash
    noisy = model.copy_proto()
    noisy.graph.node[0].doc_string = "said"
    noisy.graph.node[0].metadata_props.add(key="k", value="v")
    assert Extractor(model.with_proto(noisy)).extract_nodes((), ["a", "b"]).content_hash == plain


def test_storage_of_small_tensors_does_not_matter():
    text = "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { [n] y = Add(x, w) }"
    model = parse(text)
    other = model.copy_proto()
    del other.graph.initializer[:]
    other.graph.initializer.append(numpy_helper.from_array(np.float32([1, 2]), "w"))
    assert model.proto.graph.initializer[0] != other.graph.initializer[0]
    assert Extractor(Model(other)).extract_nodes((), ["n"]).content_hash == digest(text, ["n"])


BASE = """g (float[N, 4] x, float[N, 4] u) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}, float[N, 4] a> {
  [a] a = LeakyRelu<alpha = 0.5>(x) [b] b = Sub(a, u) [c] y = Mul(b, w) }"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Sub(a, u)", "Sub(u, a)"),
        ("Sub(a, u)", "Sub(a, x)"),
        ("Mul(b, w)", "Mul(a, w)"),
        ("0.5", "0.25"),
        ("<alpha = 0.5>", ""),
        ("LeakyRelu", "Elu"),
        ("3, 4}", "3, 5}"),
        ("float[4] w = {1, 2, 3, 4}", "float[1, 4] w = {1, 2, 3, 4}"),
        ("float[N, 4] x", "float[N, 8] x"),
        ("float[N, 4] x", "float[M, 4] x"),
        ("float[N, 4] x", "float16[N, 4] x"),
        ("float[N, 4] y", "float[4] y"),
    ],
)
def test_every_difference_changes_the_hash(old, new):
    assert old in BASE
    assert digest(BASE, ["a", "b", "c"]) != digest(BASE.replace(old, new), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Mul(a1, w)", "Mul(w, a1)"),
        ("k = {5, 6}", "k = {5, 7}"),
        ("Neg(x)", "Neg(a1)"),
        ("Neg(x)", "Abs(x)"),
        ("(float[N, 2] e1)", "(float16[N, 2] e1)"),
        ("Add(t1, k)", "Add(t1, w)"),
    ],
)
def test_differences_in_bodies_change_the_hash(old, new):
    assert old in CONTROL
    assert digest(CONTROL, ["a", "if", "b"]) != digest(CONTROL.replace(old, new), ["a", "if", "b"])


def test_only_opsets_that_are_used_count():
    proto = parse(BASE).copy_proto()
    base = digest(BASE, ["a", "b"])
    proto.opset_import[1].version = 3
    assert Extractor(Model(proto)).extract_nodes((), ["a", "b"]).content_hash == base
    proto.opset_import[0].version = 16
    assert Extractor(Model(proto)).extract_nodes((), ["a", "b"]).content_hash != base


def test_large_weights_count_by_content():
    model, digests = big_model(), WeightDigests()
    nodes = ["m0", "m1", "r"]
    first = Extractor(model, digests=digests).extract_nodes((), nodes).content_hash
    copied = Model(model.proto, {n: w.copy() for n, w in model.weights.items()})
    assert Extractor(copied, digests=digests).extract_nodes((), nodes).content_hash == first
    copied.weights["w1"][3, 3] += 1
    gc.collect()
    assert Extractor(copied).extract_nodes((), nodes).content_hash != first


PAIR = "g (float[N] x, float[N] w) => (float[N] y, float[N] z) "


def test_the_order_of_nodes_and_sharing_do_not_matter_to_the_hash():
    """Two exports of one model: independent nodes sorted anew, equal ones shared or not."""
    nodes = "[n1] a = Relu(x) [n2] b = Neg(w) [n3] c = Add(a, b) [n4] y = Exp(c) [n5] z = Sub(c, a)"
    plain = digest(PAIR + "{" + nodes + "}", ["n1", "n2", "n3", "n4", "n5"])
    other = "[m2] b = Neg(w) [m1] a = Relu(x) [m6] d = Relu(x) [m3] c = Add(d, b) [m5] z = Sub(c, a) [m4] y = Exp(c)"
    assert digest(PAIR + "{" + other + "}", ["m1", "m2", "m3", "m4", "m5", "m6"]) == plain


@pytest.mark.parametrize(
    "nodes",
    [
        "[n1] y = Sub(w, x) [n2] z = Relu(x)",  # the other input
        "[n1] z = Sub(x, w) [n2] y = Relu(x)",  # the other output
        "[n1] y = Sub(x, w) [n2] z = Relu(w)",
    ],
)
def test_inputs_and_outputs_are_told_apart(nodes):
    assert digest(PAIR + "{" + nodes + "}", ["n1", "n2"]) != digest(
        PAIR + "{[n1] y = Sub(x, w) [n2] z = Relu(x)}", ["n1", "n2"]
    )


def test_two_random_nodes_are_not_one():
    one = "[n1] a = RandomNormalLike(x) [n2] y = Sub(a, a) [n3] z = Neg(w)"
    two = "[n1] a = RandomNormalLike(x) [n0] b = RandomNormalLike(x) [n2] y = Sub(a, b) [n3] z = Neg(w)"
    assert digest(PAIR + "{" + one + "}", ["n1", "n2", "n3"]) != digest(
        PAIR + "{" + two + "}", ["n0", "n1", "n2", "n3"]
    )


def test_a_weight_is_hashed_once(monkeypatch):
    from passes.graph import content_hash

    calls = []
    real = content_hash._digest
    monkeypatch.setattr(content_hash, "_digest", lambda array: calls.append(array.nbytes) or real(array))
    extractor = Extractor(big_model())
    for _ in range(3):
        extractor.extract_nodes((), ["m0", "m1"])
    assert len(calls) == 2


def test_attributes_of_every_kind_count():
    def hashed(attribute):
        node = helper.make_node("Foo", ["x"], ["y"], name="n", domain="my.ops")
        node.attribute.append(helper.make_attribute("a", attribute))
        value = helper.make_tensor_value_info
        graph = helper.make_graph([node], "g", [value("x", 1, [1])], [value("y", 1, [1])])
        model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("my.ops", 1)]))
        return Extractor(model).extract_nodes((), ["n"]).content_hash

    tensors = [numpy_helper.from_array(np.float32([i]), name=f"t{i}") for i in range(2)]
    result = [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    bodies = [helper.make_graph([helper.make_node(op, ["x"], ["b"])], "b", [], result) for op in ("Relu", "Neg")]
    texts = [helper.make_tensor("s", TensorProto.STRING, [2], s) for s in ([b"a", b"bc"], [b"ab", b"c"])]
    sparse = [
        helper.make_sparse_tensor(
            helper.make_tensor("v", 1, [1], [v]), helper.make_tensor("i", TensorProto.INT64, [1], [0]), [2]
        )
        for v in (1.0, 2.0)
    ]
    values = [1, 2, 1.0, 2.0, "s", "t", [1, 2], [2, 1], [1.0], ["s"], *tensors, tensors, tensors[:1], *bodies, bodies]
    values += [
        bodies[:1],
        *texts,
        *sparse,
        helper.make_tensor_type_proto(1, [2]),
        helper.make_tensor_type_proto(7, [2]),
    ]
    hashes = [hashed(v) for v in values]
    assert len(set(hashes)) == len(hashes)
    tensors[0].name, tensors[0].doc_string = "other", "doc"
    assert hashed(tensors[0]) == hashes[10]


def test_optional_inputs_that_are_left_out_count():
    text = "g (float[2] x, float l) => (float[2] y) { [n] y = Clip(x, l) }"
    late = text.replace("Clip(x, l)", 'Clip(x, "", l)').replace('""', "")
    assert digest(text, ["n"]) != digest(late, ["n"])


def test_shadowed_names_are_told_apart():
    """Names in bodies that hide outer ones do not occur after canonicalize, but must not mislead the hash either."""
    outer = "g (float[2] x, bool c) => (float[2] y) { [i] v = If (c) <then_branch = t () => (float[2] a) "
    tail = ", else_branch = e () => (float[2] b) { [n2] b = Relu(x) }> [n3] y = Add(v, x) }"
    hiding = outer + "{ [n0] x = Neg(x) [n1] a = Abs(x) }" + tail
    plain = outer + "{ [n0] q = Neg(x) [n1] a = Abs(q) }" + tail
    other = outer + "{ [n0] q = Neg(x) [n1] a = Abs(x) }" + tail
    assert digest(plain, ["i", "n3"]) != digest(other, ["i", "n3"])
    assert digest(hiding, ["i", "n3"]) != digest(other, ["i", "n3"])


def test_the_inputs_of_a_body_and_of_one_inside_it_are_told_apart():
    """`state` is the second input of both bodies: which of the two is read makes a difference."""
    inner = "<body = b (int64 j, bool p, float[2] deep) => (bool r, float[2] e) { [n0] r = Not(p) [n1] e = Neg(%s) }>"
    text = (
        "g (float[2] x, int64 t, bool c) => (float[2] y) { [l] y = Loop (t, c, x) "
        "<body = a (int64 i, bool o, float[2] state) => (bool q, float[2] s) { [n2] q = Not(o) [n3] s = Loop "
        + inner
        + "(t, c, x) }> }"
    )
    assert digest(text % "deep", ["l"]) != digest(text % "state", ["l"])


def test_many_isolated_nodes_of_a_large_model():
    count = 2000
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name=f"n{i}") for i in range(count)]
    value = helper.make_tensor_value_info
    infos = [value(f"v{i}", 1, ["N"]) for i in range(count + 1)]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[-1:], value_info=infos[1:-1])
    extractor = Extractor(Model(helper.make_model(graph)))
    assert len({extractor.extract_nodes((), [f"n{i}"]).content_hash for i in range(count)}) == 1
