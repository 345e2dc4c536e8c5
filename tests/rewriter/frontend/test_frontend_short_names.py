import onnx
from onnx import TensorProto as T
from onnx import helper as h

from rewriter.frontend.short_names import shorten


def value(name):
    return h.make_tensor_value_info(name, T.FLOAT, [2])


def test_calls_are_stripped_everywhere_but_at_the_boundary():
    call = "StatefulPartitionedCall/PartitionedCall_1/"
    body = h.make_graph(
        [h.make_node("Neg", [f"{call}a:0"], [f"{call}n:0"], f"{call}n")], "b", [], [value(f"{call}n:0")]
    )
    nodes = [
        h.make_node("Relu", ["x"], [f"{call}a:0"], f"{call}a"),
        h.make_node("Abs", [f"{call}a:0"], ["a:0"], "a"),
        h.make_node("If", ["c"], [f"{call}i:0"], f"{call}i", then_branch=body, else_branch=body),
        h.make_node("Add", [f"{call}i:0", f"{call}w"], ["PartitionedCall/out"], "PartitionedCall:0"),
        h.make_node("Add", ["a:0", "StatefulPartitionedCall"], ["y"], "StatefulPartitionedCall"),
    ]
    weights = [h.make_tensor(name, T.FLOAT, [2], [1, 2]) for name in (f"{call}w", "StatefulPartitionedCall")]
    inputs = [value("x"), h.make_tensor_value_info("c", T.BOOL, [])]
    graph = h.make_graph(nodes, "g", inputs, [value("PartitionedCall/out"), value("y")], weights)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)])
    shorten(model)
    onnx.checker.check_model(model, full_check=True)
    assert [n.name for n in model.graph.node] == ["a_1", "a", "i", "PartitionedCall:0", "StatefulPartitionedCall"]
    assert list(model.graph.node[1].input) == ["a:0_1"]
    assert list(model.graph.node[3].input) == ["i:0", "w"]
    branch = model.graph.node[2].attribute[0].g
    assert (branch.node[0].name, branch.node[0].input[0], branch.output[0].name) == ("n", "a:0_1", "n:0")
    assert [o.name for o in model.graph.output] == ["PartitionedCall/out", "y"]
