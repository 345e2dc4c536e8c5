"""Frozen GraphDefs: objects and files, inputs and outputs by name or inferred, and clear words about the rest."""

import numpy as np
import pytest

from rewriter.errors import InvalidParameterError, SourceError
from rewriter.frontend import load_source
from tests.rewriter.frontend import graph_defs

pytestmark = pytest.mark.tensorflow
ROWS = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)


def names(source):
    return [s.name for s in source.signature.inputs], [s.name for s in source.signature.outputs]


def refuse(source, match, error=SourceError, **options):
    with pytest.raises(error, match=match) as caught:
        load_source(source, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inputs", [["x"], ["x:0"], "x:0", None])
@pytest.mark.parametrize("outputs", [["probabilities"], ("probabilities:0",), None])
def test_names_with_and_without_index_or_inferred(tf, inputs, outputs, run):
    source = load_source(graph_defs.dense(tf), inputs=inputs, outputs=outputs)
    assert names(source) == (["x"], ["probabilities"])
    assert source.signature.inputs[0].shape == ("batch", 4)
    assert source.signature.outputs[0].shape == ("batch", 3)
    assert source.verification.worst < 1e-6
    told = [f"{kind} were not named" for kind, given in (("inputs", inputs), ("outputs", outputs)) if given is None]
    assert [note.split(";")[0] for note in source.notes] == told
    assert run(source, x=ROWS)["probabilities"].sum() == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("name", ["graph.pb", "graph.pbtxt", "text_in.pb", "binary_in.pbtxt"])
def test_files_in_binary_and_text(tf, tmp_path, name):
    definition = graph_defs.dense(tf)
    text = name in ("graph.pbtxt", "text_in.pb")
    tf.io.write_graph(definition, str(tmp_path), name, as_text=text)
    source = load_source(tmp_path / name, outputs=["probabilities"])
    assert names(source) == (["x"], ["probabilities"])
    assert source.origin == f"GraphDef file {tmp_path / name}"


def test_the_graph_given_is_not_changed(tf):
    definition = graph_defs.dense(tf)
    for node in definition.node:
        node.device = "/device:GPU:7"
        node.attr["_class"].list.s.append(b"loc:@gone")
    before = definition.SerializeToString(deterministic=True)
    assert names(load_source(definition)) == (["x"], ["probabilities"])
    assert definition.SerializeToString(deterministic=True) == before


def test_a_graph_object(tf):
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_defs.dense(tf), name="")
    assert names(load_source(graph)) == (["x"], ["probabilities"])


def test_an_inner_tensor_as_input_and_an_inner_result_as_output(tf, run):
    definition = graph_defs.dense(tf)
    source = load_source(definition, inputs=["mul"], outputs=["Relu", "probabilities"])
    assert names(source) == (["mul"], ["Relu", "probabilities"])
    assert source.signature.inputs[0].shape == ("batch", 3)
    np.testing.assert_array_equal(run(source, mul=-np.ones((1, 3), np.float32))["Relu"], np.zeros((1, 3)))


def test_further_results_of_a_node_keep_their_index(tf):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [2, 4], name="x")
        tf.split(x, 2, axis=1, name="parts")
    source = load_source(graph.as_graph_def())
    assert names(source) == (["x"], ["parts", "parts:1"])
    assert names(load_source(graph.as_graph_def(), outputs=["parts:1"]))[1] == ["parts:1"]


def test_order_of_inputs_and_outputs_is_the_users(tf):
    with tf.Graph().as_default() as graph:
        a, b = (tf.compat.v1.placeholder(tf.float32, [2], name=n) for n in "ab")
        tf.add(a, b, name="sum")
        tf.subtract(a, b, name="difference")
    definition = graph.as_graph_def()
    assert names(load_source(definition, inputs="b,a", outputs="difference,sum")) == (["b", "a"], ["difference", "sum"])
    assert names(load_source(definition)) == (["a", "b"], ["sum", "difference"])


def test_placeholders_of_unknown_shape(tf):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, name="x")
        tf.multiply(x, 2.0, name="y")
    source = load_source(graph.as_graph_def())
    assert source.signature.inputs[0].shape is None
    sized = load_source(graph.as_graph_def(), samples=[np.ones((3, 2), np.float32)])
    assert sized.verification.worst == 0.0
    refuse(graph.as_graph_def(), "nothing is known of the shape of 'x'", InvalidParameterError, specialize={"x:0": 2})


def test_a_placeholder_with_default_keeps_it_unless_named(tf, run):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [2], name="x")
        scale = tf.compat.v1.placeholder_with_default(3.0, [], name="scale")
        tf.multiply(x, scale, name="y")
    definition = graph.as_graph_def()
    source = load_source(definition)
    assert names(source) == (["x"], ["y"])
    np.testing.assert_array_equal(run(source, x=np.ones(2, np.float32))["y"], [3, 3])
    assert names(load_source(definition, inputs=["x", "scale"]))[0] == ["x", "scale"]


def test_assertions_and_summaries_are_no_outputs(tf):
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], name="x")
        with tf.control_dependencies([v1.Assert(tf.reduce_all(x > -9), ["too small"])]):
            y = tf.identity(x * 2.0, name="y")
        v1.summary.histogram("values", x)
        definition = graph.as_graph_def()
        v1.summary.histogram("results", y)
    assert names(load_source(definition)) == (["x"], ["y"])
    refuse(graph.as_graph_def(), "cannot be told, for no result is left unread: name them with outputs")


def test_variables(tf, run):
    raw, frozen = graph_defs.frozen_with_variable(tf)
    refuse(
        raw, r"is not frozen: it has 1 variables, .* \(w\)\. Freeze it with tf\.compat\.v1\.graph_util", outputs=["y"]
    )
    source = load_source(frozen)
    np.testing.assert_allclose(run(source, x=ROWS)["y"], ROWS @ np.ones((4, 2)), rtol=1e-5, atol=1e-5)


def test_a_graph_that_trains_has_no_clear_outputs(tf):
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [2], name="x")
        weight = v1.get_variable("w", [2], use_resource=False)
        v1.assign_add(weight, x, name="train")
        tf.identity(x * 2.0, name="y")
    definition = graph.as_graph_def()
    refuse(definition, r"outputs of GraphDef cannot be told, for it trains \(Assign.*candidates: train, y")
    assert names(load_source(definition, outputs=["y"])) == (["x"], ["y"])


@pytest.mark.parametrize("outputs", [None, ["out"], ["out", "while/Exit_1"], ["while/Exit_1"], ["while/Exit"]])
def test_control_flow_of_tf1(tf, outputs, ops):
    source = load_source(graph_defs.loops_and_branches(tf), outputs=outputs)
    assert names(source)[1] == (outputs or ["out"])
    assert source.verification.worst < 1e-6
    assert ops(source)["Loop"] == 1


def test_tables_are_filled_by_their_initialisers(tf, run):
    first = load_source(graph_defs.lookup(tf), outputs=["code"])
    assert run(first, words=np.array(["a", "b"], object))["code"].tolist() == [1, -1]
    assert names(load_source(graph_defs.lookup(tf), outputs=["code"])) == (["words"], ["code"])
    refuse(graph_defs.lookup(tf, keep_initialiser=False), "table 'hash_table' has no initialiser", outputs=["code"])


def test_names_that_are_not_there(tf):
    definition = graph_defs.dense(tf)
    refuse(definition, "'logits' of outputs is not there; candidates: probabilities", outputs=["logits"])
    refuse(definition, "'image' of inputs is not there; candidates: x", inputs=["image"])
    refuse(definition, "'mul:1' of outputs has no such result", outputs=["mul:1"])
    refuse(definition, "the outputs need x, which inputs does not name", inputs=["w"])
    refuse(definition, "names 'x:0' more than once", InvalidParameterError, inputs=["x", "x:0"])
    refuse(definition, "give tensor or node names", InvalidParameterError, outputs=[])
    refuse(definition, "give tensor or node names", InvalidParameterError, inputs=[3])


def test_ops_of_missing_libraries(tf):
    definition = graph_defs.dense(tf)
    for node in definition.node:
        if node.op == "Relu":
            node.op = "FancyRelu"
    refuse(definition, r"ops of a library that is not loaded: FancyRelu \(node Relu\)\. Import the package")


def with_engine(tf, native_segment):
    """x [?, 4] -> an engine node as TF-TRT wrote it, whose segment is a Relu."""
    definition = graph_defs.dense(tf)
    if native_segment:
        relu = tf.function(tf.nn.relu, input_signature=[tf.TensorSpec([None, 3])]).get_concrete_function()
        function = definition.library.function.add()
        function.CopyFrom(relu.function_def)
        function.signature.name = "TRTEngineOp_0_native_segment"
    for node in definition.node:
        if node.op == "Relu":
            node.op = "TRTEngineOp"
            node.attr.clear()
            node.attr["InT"].list.type.append(1)
            node.attr["OutT"].list.type.append(1)
            node.attr["precision_mode"].s = b"FP16"
            node.attr["segment_func"].func.name = "TRTEngineOp_0_native_segment"
    return definition


def test_engines_of_the_old_tftrt_become_native_again(tf, run):
    source = load_source(with_engine(tf, native_segment=True), outputs=["probabilities"])
    plain = load_source(graph_defs.dense(tf))
    np.testing.assert_allclose(
        run(source, x=ROWS)["probabilities"], run(plain, x=ROWS)["probabilities"], rtol=1e-5, atol=1e-6
    )
    assert any("FP16" in note for note in source.notes)
    refuse(with_engine(tf, native_segment=False), "Relu", outputs=["probabilities"])


def test_an_empty_graph(tf):
    refuse(tf.compat.v1.GraphDef(), "is empty: it has no nodes")


def test_inputs_and_outputs_of_what_is_no_graph_def(cnn, cnn_saved):
    for source in (cnn, cnn_saved):
        refuse(source, "name tensors of a frozen GraphDef, and the source is none", InvalidParameterError, inputs=["x"])
        refuse(source, "name tensors of a frozen GraphDef", InvalidParameterError, outputs=["y"])


def test_damaged_files(tf, tmp_path):
    data = graph_defs.dense(tf).SerializeToString()
    for name, content, match in [
        ("cut.pb", data[: len(data) // 2], "is no GraphDef, or is damaged"),
        ("noise.pb", b"\xff\xfe\x00garbage", "is no GraphDef, or is damaged"),
        ("none.pb", b"", "is empty"),
        ("words.pbtxt", b"node { name: ", "is no GraphDef in text form, or is damaged"),
        ("comment.pbtxt", b"# nothing\n", "has no nodes"),
    ]:
        (tmp_path / name).write_bytes(content)
        refuse(tmp_path / name, match)


def test_other_protos_in_a_pb_file(tf, cnn_saved, tmp_path):
    (tmp_path / "renamed.pb").write_bytes((cnn_saved / "saved_model.pb").read_bytes())
    refuse(tmp_path / "renamed.pb", "is the proto of a SavedModel: pass the directory")
    refuse(cnn_saved / "saved_model.pb", "is a part of a SavedModel: pass its directory")
    meta = tf.compat.v1.MetaGraphDef(graph_def=graph_defs.dense(tf))
    meta.meta_info_def.tags.append("serve")
    meta.meta_info_def.stripped_op_list.op.add(name="MatMul")
    (tmp_path / "meta.pb").write_bytes(meta.SerializeToString())
    refuse(tmp_path / "meta.pb", "is a MetaGraph")
    (tmp_path / "meta.pbtxt").write_text(str(meta))
    refuse(tmp_path / "meta.pbtxt", "is a MetaGraph")
