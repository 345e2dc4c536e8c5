"""Equal models give equal bytes, whatever was converted before, and in every process."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rewriter
from passes.model import to_proto
from rewriter.frontend import load_source, patches
from rewriter.frontend.graph_names import settle_names

pytestmark = pytest.mark.tensorflow

CONVERT = """
import hashlib, sys
from passes.model import to_proto
from rewriter.frontend import load_source

for source in sys.argv[1:]:
    proto = to_proto(load_source(source, verify=False).model)
print(hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest())
"""


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def sources(tf, tmp_path_factory):
    """Two SavedModels: one of branches, a loop and a lookup table, and another."""
    weights = tf.reshape(tf.range(16, dtype=tf.float32), [4, 4]) / 16
    words = tf.lookup.KeyValueTensorInitializer(tf.constant(["a", "b"]), tf.constant([3, 4], tf.int64))
    table = tf.lookup.StaticHashTable(words, -1)

    def computed(x, word):
        y = tf.cond(
            tf.reduce_sum(x) > 0,
            lambda: tf.nn.relu(x @ weights) @ weights + 1.0,
            lambda: tf.cond(tf.reduce_max(x) > -1, lambda: tf.nn.softmax(x @ weights * 2.0), lambda: tf.tanh(x - 3.0)),
        )
        count = tf.cast(tf.reduce_max(x), tf.int32)
        z = tf.while_loop(lambda i, y: i < count, lambda i, y: (i + 1, tf.tanh(y @ weights)), (0, y))[1]
        return {"z": z, "code": table.lookup(word)}

    root = tmp_path_factory.mktemp("names")
    specs = [tf.TensorSpec([None, 4], tf.float32, name="x"), tf.TensorSpec([None], tf.string, name="word")]
    module = tf.Module()
    module.table = table
    module.serve = tf.function(computed, input_signature=specs)
    tf.saved_model.save(module, str(root / "model"), signatures=module.serve)
    other = tf.Module()
    other.serve = tf.function(lambda x: tf.cond(x[0, 0] > 0, lambda: x @ weights, lambda: x * 2.0), specs[:1])
    tf.saved_model.save(other, str(root / "other"), signatures=other.serve)
    return str(root / "model"), str(root / "other")


def digest(source):
    proto = to_proto(load_source(source, verify=False).model)
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def test_a_model_gives_the_same_bytes_behind_another_and_in_another_process(sources):
    model, other = sources
    first = digest(model)
    digest(other)
    assert digest(model) == first
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, other, model],
        capture_output=True,
        text=True,
        cwd=Path(rewriter.__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "7", "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=True,
    )
    assert done.stdout.split()[-1] == first


def test_the_converter_hands_out_consumers_by_name_and_nodes_in_graph_order():
    from onnx import helper
    from tf2onnx.graph import Graph

    def names(nodes):
        return [node.name for node in nodes]

    with patches.applied():
        nodes = [helper.make_node("Neg", ["x"], [f"y{i}"], name=f"n{i:02}") for i in range(20)]
        graph = Graph(nodes[::-1], output_shapes={}, dtypes={}, output_names=[f"y{i}" for i in range(20)])
        assert names(graph.find_output_consumers("x")) == [f"n{i:02}" for i in range(20)]
        inner = [node for node in graph.get_nodes() if node.type == "Neg"]
        found = graph.extract_sub_graph_nodes([f"y{i}" for i in range(20)])
        assert [node for node in found if node.type == "Neg"] == inner


def test_functions_are_numbered_in_order_of_first_use(tf):
    graph_def = tf.Graph().as_graph_def()

    def function(name, calls=()):
        made = graph_def.library.function.add()
        made.signature.name = name
        for index, other in enumerate(calls):
            node = made.node_def.add(name=f"call_{index}", op="PartitionedCall")
            node.attr["f"].func.name = other

    function("unused_1")
    function("__inference_cond_true_7_12", ["__inference_body_3"])
    function("__inference_cond_true_1_13", ["plain", "__inference_body_3"])
    function("__inference_body_3")
    function("plain")
    branch = graph_def.node.add(name="branch", op="StatelessIf")
    branch.attr["then_branch"].func.name = "__inference_cond_true_1_13"
    branch.attr["else_branch"].func.name = "__inference_cond_true_7_12"
    graph_def.node.add(name="direct", op="plain")
    settle_names(graph_def, set())
    assert branch.attr["else_branch"].func.name == "__inference_cond_true_0"
    assert branch.attr["then_branch"].func.name == "__inference_cond_true_1"
    assert graph_def.node[1].op == "plain_2"
    library = {f.signature.name: [n.attr["f"].func.name for n in f.node_def] for f in graph_def.library.function}
    assert library == {
        "__inference_cond_true_0": ["__inference_body_3"],
        "__inference_cond_true_1": ["plain_2", "__inference_body_3"],
        "plain_2": [],
        "__inference_body_3": [],
    }
    again = graph_def.SerializeToString(deterministic=True)
    settle_names(graph_def, set())
    assert graph_def.SerializeToString(deterministic=True) == again


def test_a_table_called_by_a_number_is_named_after_its_reader(tf):
    graph_def = tf.Graph().as_graph_def()
    graph_def.node.add(name="1454", op="HashTableV2")
    graph_def.node.add(name="lookup", op="LookupTableFindV2", input=["1454", "x"])
    settle_names(graph_def, {"x"})
    assert {node.name: list(node.input) for node in graph_def.node} == {
        "lookup/value": [],
        "lookup": ["lookup/value", "x"],
    }
