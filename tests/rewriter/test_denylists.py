import copy
import logging

import onnx
import pytest

from passes.graph_index import iter_scopes
from passes.island_node import ISLAND_DOMAIN, IslandAttributes, make_island
from passes.model import from_proto
from rewriter.denylists import ONNX_OPERATORS, describe, idle_entries, translate
from rewriter.node_patterns import NodePattern

MODEL = from_proto(
    onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[2] x, bool b) => (float[2] y) {
            s = If(b) <then_branch = t () => (float[2] p) { p = Softmax(x) },
                       else_branch = e () => (float[2] q) { q = Relu(x) }>
            y = Conv(s)
        }"""
    )
)


def test_entries_that_deny_something_are_silent(caplog):
    MODEL.proto.graph.node[1].name = "head/conv"
    assert idle_entries(MODEL, ["Conv", "Softmax"], ["^head"]) == ()
    assert caplog.records == []


def test_idle_entries_are_told_with_the_likely_name(caplog):
    with caplog.at_level(logging.WARNING):
        found = idle_entries(MODEL, ["Conv2D", "SoftMax", "Zebra"], ["tail"])
    assert [f"{failure.target}: {failure.reason}" for failure in found] == [
        "op_denylist: no node of the model is a 'Conv2D' (names are ONNX's); did you mean 'Conv'?",
        "op_denylist: no node of the model is a 'SoftMax' (names are ONNX's); did you mean 'Softmax'?",
        "op_denylist: no node of the model is a 'Zebra' (names are ONNX's)",
        "node_denylist: no node's name contains 'tail'",
    ]
    assert len(caplog.records) == 4


def test_idle_entries_of_precision_options_are_told_by_their_names():
    found = idle_entries(MODEL, keep_ops=["Softmax", "Conv2D"], keep_nodes=["tail"])
    assert [(failure.stage, failure.target, failure.kind) for failure in found] == [
        ("precision", "keep_ops", "idle"),
        ("precision", "keep_nodes", "idle"),
    ]
    assert "did you mean 'Conv'?" in found[0].reason


def test_the_fake_list_is_looked_at_too():
    (found,) = idle_entries(MODEL, op_fakelist=["Conv", "Softmaxx"])
    assert (found.stage, found.target) == ("fakelist", "op_fakelist")
    assert "did you mean 'Softmax'?" in found.reason


def test_of_a_translated_operator_one_onnx_operator_is_enough():
    words = {"TF_TRT_OP_DENYLIST": translate(["Conv2D", "StatelessIf", "BiasAdd", "MatMul", "Zebra"])}
    assert [f"{f.stage} {f.target}: {f.reason}" for f in idle_entries(MODEL, translations=words)] == [
        "denylist TF_TRT_OP_DENYLIST: no node of the model is a 'BiasAdd' (in ONNX Add)",
        "denylist TF_TRT_OP_DENYLIST: no node of the model is a 'MatMul' (in ONNX MatMul or Gemm)",
        "denylist TF_TRT_OP_DENYLIST: no node of the model is a 'Zebra'",
    ]
    assert len(idle_entries(MODEL, ["Gemm", "MatMul", "Zebra", "Add"], translations=words)) == 3
    (found,) = idle_entries(MODEL, translations={"TF_TRT_OP_FAKELIST": translate(["Pack"])})
    assert found.stage == "fakelist"


def test_the_table_names_operators_that_onnx_has():
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert {operator for operators in ONNX_OPERATORS.values() for operator in operators} <= known


def test_how_far_a_translation_reaches_is_told():
    told = describe(translate(["BiasAdd", "Rsqrt", "Softmax"]))
    assert told == "BiasAdd (in ONNX every Add), Rsqrt (in ONNX every Sqrt and every Reciprocal), Softmax"


def test_an_operator_that_tensorflow_runs_is_told_with_its_islands():
    model = from_proto(onnx.ModelProto.FromString(MODEL.proto.SerializeToString()))
    model.proto.opset_import.add(domain=ISLAND_DOMAIN, version=1)
    for number, ops in enumerate([("Log1p x3", "Add"), ("Log1p",)]):
        name = f"TFIsland_{number:03}"
        model.proto.graph.node.append(make_island(name, (), (), IslandAttributes("/x", (), (), ops)))
    words = {"TF_TRT_OP_DENYLIST": translate(["Log1p", "BiasAdd", "Conv2D"])}
    found = idle_entries(model, ["Add", "Log1p"], translations=words)
    assert [f"{failure.target}: {failure.reason}" for failure in found] == [
        "TF_TRT_OP_DENYLIST: 'Log1p' is not given to TensorRT anyway: it stays in TensorFlow "
        "(TFIsland_000, TFIsland_001)",
        "TF_TRT_OP_DENYLIST: no node of the model is a 'BiasAdd' (in ONNX Add)",
    ]
    (found,) = idle_entries(model, ["Log1p"])
    assert found.reason.endswith("it stays in TensorFlow (TFIsland_000, TFIsland_001)")


def test_a_pattern_that_stands_for_a_name_is_told_by_that():
    pattern = copy.deepcopy(NodePattern(r"^nope(?:__\d+)?$", "nodes_denylist", "nope"))
    (found,) = idle_entries(MODEL, node_denylist=[pattern])
    assert found.target == "nodes_denylist"
    assert found.reason.startswith("no node of the ONNX graph comes from 'nope'")


def _exports():
    """TensorFlow operator -> a function of floats [n, 4] in which it is the only one with work."""
    import tensorflow as tf

    raw = tf.raw_ops
    return {
        "All": lambda x: raw.All(input=x > 0, axis=[1]),
        "Any": lambda x: raw.Any(input=x > 0, axis=[1]),
        "Atan2": lambda x: raw.Atan2(y=x, x=x),
        "BiasAdd": lambda x: raw.BiasAdd(value=x, bias=[1.0, 2.0, 3.0, 4.0]),
        "ClipByValue": lambda x: raw.ClipByValue(t=x, clip_value_min=0.0, clip_value_max=1.0),
        "Cumprod": lambda x: raw.Cumprod(x=x, axis=1),
        "DivNoNan": lambda x: raw.DivNoNan(x=x, y=x),
        "Erfc": lambda x: raw.Erfc(x=x),
        "Fill": lambda x: raw.Fill(dims=tf.shape(x), value=2.0),
        "FloorDiv": lambda x: raw.FloorDiv(x=x, y=x),
        "FloorMod": lambda x: raw.FloorMod(x=x, y=x),
        "IsFinite": lambda x: raw.IsFinite(x=x),
        "MatrixDiagPartV3": lambda x: tf.linalg.diag_part(tf.reshape(x, [-1, 2, 2])),
        "NotEqual": lambda x: raw.NotEqual(x=x, y=x),
        "OneHot": lambda x: raw.OneHot(indices=tf.cast(x, tf.int32), depth=3, on_value=2.0, off_value=1.0),
        "OnesLike": lambda x: raw.OnesLike(x=x),
        "RightShift": lambda x: raw.RightShift(x=tf.cast(x, tf.int32), y=1),
        "Roll": lambda x: raw.Roll(input=x, shift=[1], axis=[1]),
        "Rsqrt": lambda x: raw.Rsqrt(x=x),
        "SelectV2": lambda x: raw.SelectV2(condition=x > 0, t=x, e=x + 1),
        "SoftmaxCrossEntropyWithLogits": lambda x: raw.SoftmaxCrossEntropyWithLogits(features=x, labels=x).loss,
        "SquaredDifference": lambda x: raw.SquaredDifference(x=x, y=x),
        "UnsortedSegmentSum": lambda x: raw.UnsortedSegmentSum(data=x[:2], segment_ids=[0, 1], num_segments=2),
        "ZerosLike": lambda x: raw.ZerosLike(x=x),
    }


@pytest.mark.tensorflow
def test_the_table_holds_what_the_export_makes():
    """Each operator, exported on its own, becomes what the table says; of some all of that, whatever the input."""
    import tensorflow as tf

    from rewriter.frontend import load_source

    for name, function in _exports().items():
        traced = tf.function(function, input_signature=[tf.TensorSpec([None, 4], tf.float32)])
        model = load_source(traced.get_concrete_function(), verify=False).model
        made = {node.op_type for _, graph in iter_scopes(model.proto) for node in graph.node}
        assert made & set(ONNX_OPERATORS[name]), (name, made)
        if name in ("SquaredDifference", "Rsqrt", "IsFinite", "NotEqual", "FloorDiv", "OneHot", "DivNoNan"):
            assert set(ONNX_OPERATORS[name]) <= made, (name, made)


@pytest.mark.parametrize("name", ["Inv", "Log1p", "L2Loss", "Xdivy", "ResizeArea", "EuclideanNorm"])
def test_operators_without_an_export_deny_no_other(name):
    assert translate([name]) == {name: (name,)}
