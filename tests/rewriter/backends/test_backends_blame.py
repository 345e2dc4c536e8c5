from __future__ import annotations

import pytest
from onnx import helper

from rewriter.backends.blame import nodes_named

CASES = [
    (["nms"], "Assertion !layerImpls.empty() failed. nms_0 has no runners that implement it In f", {"nms"}),
    (["scope/nms:1", "scope/nms", "nms"], "failed. scope/nms:1_0 has no runners", {"scope/nms:1"}),
    (["topk_node", "topk"], "(ITopKLayer topk_node: topk_node: K exceeds the maximum value allowed", {"topk_node"}),
    (["topk_node"], "(ITopKLayer topk_node_0: topk_node_0: K exceeds", {"topk_node"}),
    (["mm", "m"], "Cannot compile operation 'mm' for Turing (SM75)", {"mm"}),
    (["if"], "IConditionalOutputLayer if_OutputLayer: Must have inputs with equal ranks", {"if"}),
    (["a_1", "a_10"], "layer a_10: bad", {"a_10"}),
    (["x/y", "x/y/z"], "node x/y/z failed", {"x/y/z"}),
    (["n1", "n2"], "Could not find any implementation for node n1 + n2.", {"n1", "n2"}),
    (["operation", "compile", "for"], "Cannot compile operation 'mm' for Turing", set()),
    (["n1", "n2"], "no implementation for node {ForeignNode[n1...n2]}", set()),
    (["n1"], "Depth input of IOneHotLayer must be a build time constant", set()),
    (["n1"], "[checkMacros.cpp::catchCudaError::250] n1", set()),
]


@pytest.mark.parametrize(("names", "line", "expected"), CASES)
def test_names_are_found_where_tensorrt_puts_them(names, line, expected):
    nodes = [helper.make_node("Relu", ["x"], [f"y{i}"], name=n) for i, n in enumerate(names)]
    assert nodes_named([line], nodes) == expected


def test_a_node_in_a_body_stands_for_the_node_around_it():
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="in_1")], "b", [], [])
    outer = helper.make_node("If", ["c"], ["z"], name="if_1", then_branch=body, else_branch=body)
    assert nodes_named(["layer in_1: bad"], [outer]) == {"if_1"}
