"""Who shares a DequantizeLinear with whom."""

import onnx.parser
import pytest

from passes.base import verify
from passes.graph.walk import iter_nodes
from passes.model import from_proto
from passes.precision.quantization.split_pairs import SplitPairs

HEAD = '<ir_version: 10, opset_import: ["": 18]>'


def run(body):
    """The graph on a quantised x [1, 4, 8, 8] with int8 weight w, split; names follow the first outputs."""
    proto = onnx.parser.parse_model(
        f"""{HEAD} g (float[1,4,8,8] x, int8[4,4,1,1] w, float[1,4,8,8] r) => (float[1,4,8,8] y)
        <float s = {{0.1}}, int8 z = {{0}}> {{
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, s, z) {body} }}"""
    )
    for node in proto.graph.node:
        node.name = node.output[0]
    result = SplitPairs().run(from_proto(proto))
    verify(result.model, "split_pairs", canonical=True)
    return result, {node.name: list(node.input) for node in result.model.proto.graph.node}


def test_a_residual_add_gets_its_own():
    result, nodes = run("c = Conv(d, v) y = Add(c, d)")
    assert nodes["c"] == ["d", "v"]
    assert nodes["y"] == ["c", "d//beside"]
    assert nodes["d//beside"] == nodes["d"]
    assert [(c.rule, c.target) for c in result.changes] == [("split-pair", "d")]


def test_all_other_readers_share_one():
    _, nodes = run("c = Conv(d, v) t = Relu(d) u = Add(t, d) y = Add(c, u)")
    assert nodes["t"] == ["d//beside"]
    assert nodes["u"] == ["t", "d//beside"]


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(d, v) e = Conv(d, v) y = Add(c, e)",  # products only
        "t = Relu(d) y = Add(t, d)",  # no product
        "y = Conv(r, v)",  # a product with one operand in floating point
    ],
)
def test_readers_of_one_kind_share_what_is_there(body):
    result, _ = run(body)
    assert not result.modified


def test_a_body_is_split_although_the_graph_around_it_is_too():
    """Both graphs have a product and a residual Add of their own."""
    branch = """ic = Conv(id, iv) ir = Add(ic, id)"""
    proto = onnx.parser.parse_model(
        f"""{HEAD} g (float[1,4,8,8] x, int8[4,4,1,1] w, bool c) => (float[1,4,8,8] y)
        <float s = {{0.1}}, int8 z = {{0}}> {{
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, s, z)
            p = Conv(d, v) r = Add(p, d)
            y = If(c) <
                then_branch = t () => (float[1,4,8,8] ir) {{
                    iq = QuantizeLinear(r, s, z) id = DequantizeLinear(iq, s, z) iv = DequantizeLinear(w, s, z)
                    {branch} }},
                else_branch = e () => (float[1,4,8,8] er) {{ er = Identity(r) }}
            > }}"""
    )
    for node in iter_nodes(proto.graph):
        node.name = node.output[0]
    result = SplitPairs().run(from_proto(proto))
    verify(result.model, "split_pairs", canonical=True)
    inputs = {node.name: list(node.input) for node in iter_nodes(result.model.proto.graph)}
    assert inputs["r"] == ["p", "d//beside"]
    assert inputs["ir"] == ["ic", "id//beside"]
    assert inputs["id//beside"] == inputs["id"]
    assert {change.target for change in result.changes} == {"d", "id"}
