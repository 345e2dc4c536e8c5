from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from passes.island_node import IslandAttributes, make_island
from passes.segments import TensorSpec
from rewriter.backends.prefilter import Rules, label
from rewriter.errors import InvalidParameterError

NOTHING = Rules()


def rule_of(node, types, rules=NOTHING):
    """The rule that denies `node`, or None; types: value -> dtype or (dtype, rank)."""

    def spec(name):
        kind = types.get(name, 0)
        dtype, rank = kind if isinstance(kind, tuple) else (kind, 2)
        return TensorSpec(name, dtype, None if rank is None else (1,) * rank)

    denial = rules.denial(node, spec)
    if denial is None:
        return None
    assert denial.node == node.name
    assert not denial.supported
    return denial.rule


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        *[(t, "dtype") for t in ("STRING", "INT16", "UINT16", "UINT32", "UINT64", "COMPLEX64", "COMPLEX128", "DOUBLE")],
        *[(t, None) for t in ("FLOAT", "FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT32", "INT64", "BOOL", "UNDEFINED")],
    ],
)
@pytest.mark.parametrize("place", ["x", "y"])
def test_types_that_tensorrt_lacks_are_denied_wherever_they_appear(dtype, expected, place):
    node = helper.make_node("Op", ["x", ""], ["y"], name="n")
    assert rule_of(node, {place: TensorProto.DataType.Value(dtype)}) == expected


def test_double_is_left_to_tensorrt_only_when_asked_for():
    node = helper.make_node("Add", ["x", "x"], ["y"], name="n")
    assert rule_of(node, {"x": TensorProto.DOUBLE}, Rules.of((), (), True)) is None


def test_the_type_in_an_attribute_counts_where_none_was_inferred():
    cast = helper.make_node("Cast", ["x"], ["y"], name="n", to=TensorProto.DOUBLE)
    assert rule_of(cast, {"x": TensorProto.FLOAT}) == "dtype"
    random = helper.make_node("RandomNormal", [], ["y"], name="n", shape=[2], dtype=TensorProto.DOUBLE)
    assert rule_of(random, {}) == "dtype"
    assert rule_of(helper.make_node("Cast", ["x"], ["y"], name="n", to=TensorProto.INT32), {}) is None


@pytest.mark.parametrize(("rank", "expected"), [(8, None), (9, "rank"), (None, None)])
def test_rank_is_limited(rank, expected):
    assert rule_of(helper.make_node("Relu", ["x"], ["y"], name="n"), {"x": (1, rank)}) == expected


@pytest.mark.parametrize(
    ("node", "types", "expected"),
    [
        (helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="n"), {}, "dtype"),
        (helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="n"), {"z": TensorProto.UINT8}, "dtype"),
        (helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="n"), {"z": TensorProto.INT8}, None),
        (helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="n", output_dtype=TensorProto.INT8), {}, None),
        (helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"], name="n"), {"q": TensorProto.UINT8}, "dtype"),
        (helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"], name="n"), {"q": TensorProto.INT8}, None),
    ],
)
def test_unsigned_quantisation_is_denied_for_tensorrt_would_saturate_it(node, types, expected):
    assert rule_of(node, types) == expected


def test_foreign_domains_are_denied():
    assert rule_of(helper.make_node("Gelu", ["x"], ["y"], name="n", domain="com.microsoft"), {}) == "domain"
    assert rule_of(helper.make_node("Gelu", ["x"], ["y"], name="n", domain="ai.onnx"), {}) is None
    assert label(helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")) == "com.microsoft::Gelu"


def test_denylists_match_types_exactly_and_names_by_search():
    rules = Rules.of(["Conv", "my::Foo", "NoSuchOp"], [r"block_\d+/", "^head$"], False)
    assert rule_of(helper.make_node("Conv", [], ["y"], name="a"), {}, rules) == "denylist"
    assert rule_of(helper.make_node("conv", [], ["y"], name="a"), {}, rules) is None
    assert rule_of(helper.make_node("Foo", [], ["y"], name="a", domain="my"), {}, rules) == "denylist"
    assert rule_of(helper.make_node("Foo", [], ["y"], name="a"), {}, rules) is None
    assert rule_of(helper.make_node("Relu", [], ["y"], name="net/block_12/relu"), {}, rules) == "denylist"
    assert rule_of(helper.make_node("Relu", [], ["y"], name="heads"), {}, rules) is None


def test_a_node_with_a_denied_node_inside_is_denied_and_says_which():
    inner = helper.make_graph([helper.make_node("Conv", [], ["z"], name="deep")], "b", [], [])
    middle = helper.make_node("If", ["c"], ["w"], name="middle", then_branch=inner, else_branch=inner)
    outer = helper.make_node("Loop", ["m"], ["y"], name="outer", body=helper.make_graph([middle], "m", [], []))
    rules = Rules.of(["Conv"], (), False)
    denial = rules.denial(outer, lambda name: TensorSpec(name, 1, (1,)))
    assert (denial.node, denial.op_type, denial.rule) == ("outer", "Loop", "denylist")
    assert "'deep'" in denial.reason


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"op_denylist": "Conv"}, "op_denylist must be a list"),
        ({"op_denylist": [1]}, "op_denylist must be a list"),
        ({"node_denylist": "conv.*"}, "node_denylist must be a list"),
        ({"node_denylist": ["ok", "(broken"]}, r"'\(broken' is not a regular expression"),
    ],
)
def test_bad_lists_are_refused(lists, words):
    with pytest.raises(InvalidParameterError, match=words):
        Rules.of(**{"op_denylist": (), "node_denylist": (), "allow_double": False, **lists})


def test_islands_stay_in_tensorflow_with_their_reasons():
    attributes = IslandAttributes("/f", ("x",), ("y",), ("StringSplitV2", "Add x3"), ("no word for StringSplitV2", "b"))
    denial = NOTHING.denial(
        make_island("TFIsland_000", ("x",), ("y",), attributes), lambda name: TensorSpec(name, 0, None)
    )
    assert (denial.rule, denial.op_type) == ("tensorflow", "trt_rewriter.tensorflow::TFIsland_000")
    assert denial.reason == "TensorFlow runs it (StringSplitV2, Add x3): no word for StringSplitV2; b"
