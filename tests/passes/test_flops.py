"""Operation counts against numbers worked out by hand, and ResNet50's against the known figure."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h
from onnx import parser

from passes.graph.flop_rules import rule_names
from passes.graph.flops import estimate
from passes.graph.walk import iter_nodes
from passes.model import from_proto
from passes.pipeline import default_pipeline
from passes.testing import random_model


def parse(text):
    proto = parser.parse_model(text)
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"n{number}"
    return from_proto(proto)


def single(node, inputs, outputs=("y",), opset=18, dtype=T.FLOAT):
    """The count of one node with inputs of these shapes."""
    node.name = "node"
    names = [name for name in node.input if name]
    graph = h.make_graph(
        [node],
        "g",
        [h.make_tensor_value_info(n, dtype, s) for n, s in zip(names, inputs, strict=True)],
        [h.make_tensor_value_info(n, T.FLOAT, None) for n in outputs],
    )
    opsets = [h.make_opsetid("", opset), h.make_opsetid("com.microsoft", 1), h.make_opsetid("odd", 1)]
    return estimate(from_proto(h.make_model(graph, opset_imports=opsets)))["node"]


def op(kind, inputs, outputs=("y",), **attributes):
    return h.make_node(kind, list(inputs), list(outputs), **attributes)


@pytest.mark.parametrize(
    ("node", "inputs", "expected"),
    [
        # 1x4x8x8 results of 3*3*3 multiply-adds, and the bias once each
        (op("Conv", "xw", pads=[1, 1, 1, 1]), [(1, 3, 8, 8), (4, 3, 3, 3)], 2 * 27 * 256),
        (op("Conv", "xwb", pads=[1, 1, 1, 1]), [(1, 3, 8, 8), (4, 3, 3, 3), (4,)], 2 * 27 * 256 + 256),
        (op("Conv", "xw", group=4, strides=[2, 2]), [(2, 4, 9, 9), (4, 1, 3, 3)], 2 * 9 * (2 * 4 * 4 * 4)),
        (op("ConvTranspose", "xw", strides=[2, 2]), [(1, 3, 4, 4), (3, 5, 2, 2)], 2 * (3 * 16) * (5 * 4)),
        (op("ConvTranspose", "xwb", strides=[2, 2]), [(1, 3, 4, 4), (3, 5, 2, 2), (5,)], 1920 + 5 * 64),
        (op("MatMul", "ab"), [(2, 3, 4, 5), (5, 6)], 2 * (2 * 3 * 4 * 6) * 5),
        (op("MatMul", "ab"), [(7,), (7,)], 14),
        (op("Gemm", "abc", transA=1, transB=1), [(5, 2), (3, 5), (3,)], 2 * 2 * 3 * 5 + 6),
        (op("Gemm", "ab"), [(2, 5), (5, 3)], 60),
        (op("Einsum", "ab", equation="bij,bjk->bik"), [(2, 3, 4), (2, 4, 5)], 2 * (2 * 3 * 4 * 5)),
        (op("Einsum", "ab", equation="...ij,jk"), [(7, 3, 4), (4, 5)], 2 * (7 * 3 * 4 * 5)),
        (op("Einsum", "ab", equation="i,j->ij"), [(3,), (4,)], 12),
        (op("Einsum", "a", equation="ij->i"), [(3, 4)], 12),
        (op("Einsum", "a", equation="ij->ji"), [(3, 4)], 0),
        (op("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2]), [(1, 2, 9, 9)], 9 * (2 * 4 * 4)),
        (op("AveragePool", "x", kernel_shape=[2, 2]), [(1, 1, 3, 3)], 4 * 4),
        (op("GlobalAveragePool", "x"), [(2, 3, 4, 4)], 96),
        (op("BatchNormalization", "xsbmv"), [(2, 3, 4), (3,), (3,), (3,), (3,)], 48),
        (op("LayerNormalization", "xs"), [(2, 8), (8,)], 6 * 16),
        (op("LayerNormalization", "xsb"), [(2, 8), (8,), (8,)], 7 * 16),
        (op("InstanceNormalization", "xsb"), [(2, 3, 4), (3,), (3,)], 7 * 24),
        (op("Softmax", "x"), [(3, 10)], 150),
        (op("ReduceSum", "x", keepdims=1), [(4, 5)], 20),
        (op("ReduceMean", "x", keepdims=1), [(4, 5)], 21),
        (op("Add", "ab"), [(4, 1), (1, 6)], 24),
        (op("Sum", "abc"), [(4,), (4,), (4,)], 8),
        (op("Mean", "ab"), [(4,), (4,)], 8),
        (op("Sigmoid", "x"), [(4, 5)], 20),
        (op("Transpose", "x"), [(4, 5)], 0),
        (op("Identity", "x"), [(4, 5)], 0),
    ],
)
def test_single_operators(node, inputs, expected):
    assert single(node, inputs) == expected


def test_recurrent_operators():
    # 7 steps of a batch of 2, 3 features, 4 units: matrices, sum of both products, bias, the rest of a step
    for kind, gates, rest in (("LSTM", 4, 9), ("GRU", 3, 8), ("RNN", 1, 1)):
        shapes = [(7, 2, 3), (1, gates * 4, 3), (1, gates * 4, 4)]
        step = 4 * (2 * gates * (3 + 4) + gates + rest)
        assert single(op(kind, "xwr", hidden_size=4), shapes) == 7 * 2 * step
        biased = [*shapes, (1, 2 * gates * 4)]
        assert single(op(kind, "xwrb", hidden_size=4), biased) == 7 * 2 * (step + 4 * gates)
    both = [(7, 2, 3), (2, 16, 3), (2, 16, 4)]
    assert single(op("LSTM", "xwr", hidden_size=4, direction="bidirectional"), both) == 2 * 14 * 4 * (56 + 4 + 9)


def test_attention_is_two_products_and_a_softmax():
    # 2 heads of width 8, 5 queries, 6 keys
    by_hand = 2 * 5 * 6 * (2 * 8 + 5 + 2 * 8)
    heads = op("Attention", "qkv")
    assert single(heads, [(1, 2, 5, 8), (1, 2, 6, 8), (1, 2, 6, 8)], opset=23) == by_hand
    packed = op("MultiHeadAttention", "qkv", domain="com.microsoft", num_heads=2)
    assert single(packed, [(1, 5, 16), (1, 6, 16), (1, 6, 16)]) == by_hand


def test_what_is_unknown_is_none_and_counted():
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "odd" : 1]>
        g (float[2, 3] x) => (float[2, 3] y) { a = odd.Thing(x)  b = Relu(x)  y = Add(a, b) }"""
    )
    found = estimate(model)
    assert dict(found) == {"n0": None, "n1": 6, "n2": 6}
    assert found.unknown == {"Thing": 1}
    assert found.total == 12
    assert found.of(["n0", "n2", "nowhere"]) == 6


def test_names_get_their_sizes_and_the_rest_the_default():
    text = """<ir_version: 8, opset_import: ["" : 18]>
        g (float[batch, 3, seq] x) => (float[batch, 3, seq] y) { t = Transpose<perm = [0, 2, 1]>(x)
        m = MatMul(x, t)  y = MatMul(m, x) }"""
    found = estimate(parse(text), {"batch": 2, "other": 9})
    assert found.sizes == {"batch": 2, "seq": 1}
    assert found["n1"] == 2 * (2 * 3 * 3)
    assert found.guessed == 0
    longer = estimate(parse(text), default_dim=5)
    assert (longer.sizes, longer.default_dim) == ({"batch": 5, "seq": 5}, 5)
    assert longer["n1"] == longer["n2"] == 2 * (5 * 3 * 3 * 5)
    with pytest.raises(ValueError, match="batch is 0"):
        estimate(parse(text), {"batch": 0})


def test_sizes_that_depend_on_data_are_guessed_and_told():
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[9] x) => (int64[1, k] z, float[1, k] y) { z = NonZero(x)  f = Cast<to = 1>(z)  y = Relu(f) }"""
    )
    found = estimate(model, default_dim=4)
    assert found["n2"] == 4
    assert (found.guessed, found.sizes) == (0, {"k": 4})


def test_bodies_count_once_in_their_node():
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (bool c, float[4] x) => (float[4] y) {
            r = Relu(x)
            y = If (c) <then_branch = a () => (float[4] p) { [pa] p0 = Mul(r, r)  [pb] p = Add(p0, r) },
                        else_branch = b () => (float[4] q) { [qa] q = Neg(r) }>
        }"""
    )
    found = estimate(model)
    assert (found["pa"], found["pb"], found["qa"]) == (4, 4, 4)
    assert found["n1"] == 12
    assert found.total == 16
    assert found.repeated == ("n1",)
    assert list(found) == ["n0", "n1", "qa", "pa", "pb"]  # attributes by name


def test_the_model_is_left_alone():
    model = parse("""<ir_version: 8, opset_import: ["" : 18]> g (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }""")
    before = model.proto.SerializeToString()
    estimate(model, {"n": 3})
    assert model.proto.SerializeToString() == before


def test_every_rule_is_of_an_operator_that_exists():
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    # The newest opsets may not be in this version of onnx; MultiHeadAttention is ONNX Runtime's.
    newest = {"MultiHeadAttention", "BitCast", "CumProd", "TensorScatter", "RMSNormalization", "RotaryEmbedding"}
    assert not set(rule_names()) - known - newest - {"Attention", "Swish", "Scaler", "LabelEncoder", "CategoryMapper"}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_random_models_are_counted_whole(seed):
    model, _ = default_pipeline().run(from_proto(random_model(seed)))
    found = estimate(model)
    names = [node.name for node in iter_nodes(model.proto)]
    assert sorted(found) == sorted(names)
    assert all(flops is None or flops >= 0 for flops in found.values())
    assert found.total == sum(found[node.name] or 0 for node in model.proto.graph.node)
    assert sum(found.unknown.values()) == sum(flops is None for flops in found.values())
    twice = estimate(model, dict.fromkeys(found.sizes, 2))
    assert twice.total >= found.total


@pytest.mark.tensorflow
def test_resnet50_takes_what_the_literature_says():
    """ResNet50 at 224x224 is known as 3.8 to 4.1 billion multiply-adds, by version and what is counted."""
    import keras

    from rewriter.frontend import load_source

    keras.utils.clear_session()
    model = keras.applications.ResNet50(weights=None)
    source = load_source(model, verify=False, samples=[np.zeros((1, 224, 224, 3), np.float32)])
    found = estimate(source.model)
    assert 7.6e9 < found.total < 8.3e9, found.total
    assert not found.unknown
