import logging

import onnx

from passes.model import from_proto
from rewriter.denylists import ONNX_OPERATORS, idle_entries, translate

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
