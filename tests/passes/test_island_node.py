import pytest
from onnx import TensorProto, helper

from passes.base import PassError, verify
from passes.island_node import (
    ISLAND_DOMAIN,
    ISLAND_DOMAIN_VERSION,
    IslandAttributes,
    is_island,
    island_nodes,
    make_island,
    read_island,
    with_folders,
)
from passes.model import Model

ATTRIBUTES = IslandAttributes("/a/TFIsland_000", ("x",), ("y", "z"), ("StringSplitV2", "Add x3"), ("StringSplitV2: é",))


def model_with(node):
    graph = helper.make_graph(
        [node, helper.make_node("Relu", ["v"], ["out"], name="relu")],
        "g",
        [helper.make_tensor_value_info("text", TensorProto.STRING, [None])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None])],
        value_info=[helper.make_tensor_value_info("v", TensorProto.FLOAT, [None])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ISLAND_DOMAIN, ISLAND_DOMAIN_VERSION)]
    return Model(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def island():
    return make_island("TFIsland_000", ("text",), ("u", "v"), ATTRIBUTES)


def test_attributes_come_back():
    assert read_island(island()) == ATTRIBUTES


def test_the_checker_takes_a_model_with_an_island():
    model = model_with(island())
    verify(model, "a test", canonical=True)
    assert [node.op_type for node in island_nodes(model.proto)] == ["TFIsland_000"]
    assert [is_island(node) for node in model.proto.graph.node] == [True, False]


def test_a_lost_folder_is_told():
    node = island()
    del node.attribute[:]
    with pytest.raises(PassError, match="'TFIsland_000' has lost its SavedModel"):
        read_island(node)


def test_names_that_do_not_fit_are_told():
    node = island()
    node.input.append("more")
    with pytest.raises(PassError, match="lost names"):
        read_island(node)


def test_folders_are_replaced_in_a_copy():
    model = model_with(island())
    moved = with_folders(model, {"TFIsland_000": "tensorflow/TFIsland_000"})
    assert read_island(next(island_nodes(moved.proto))).saved_model == "tensorflow/TFIsland_000"
    assert read_island(next(island_nodes(model.proto))).saved_model == "/a/TFIsland_000"
    assert with_folders(model, {}) is model
