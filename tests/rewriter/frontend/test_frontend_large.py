"""Models whose weights take the way through files; here small ones, with the thresholds lowered."""

import gc
import warnings
import weakref

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from passes.model import is_file_map, is_stub
from passes.pipeline import default_pipeline
from rewriter.errors import ExportError
from rewriter.frontend import large_weights, load_source
from rewriter.frontend.graph_names import settle_names
from rewriter.frontend.large_weights import LargeWeights, attached, is_large, number_of, with_weights
from rewriter.runtime.mapped_weights import has_files, with_places
from rewriter.runtime.native import NativeSession, evaluate, session_options

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def forced(monkeypatch):
    """The way through files, for every weight of 256 bytes and more."""
    monkeypatch.setattr(large_weights, "THRESHOLD", 0)
    monkeypatch.setattr(large_weights, "LARGE", 256)


@pytest.fixture
def both(monkeypatch, ops):
    """Converts on both ways; checks that graphs and results are alike and returns the models (ordinary, large)."""

    def convert(source, **options):
        models = []
        for threshold in (1 << 60, 0):
            monkeypatch.setattr(large_weights, "THRESHOLD", threshold)
            monkeypatch.setattr(large_weights, "LARGE", 256)
            models.append(load_source(source, **options))
        ordinary, large = models
        assert ops(ordinary) == ops(large)
        assert not any(is_file_map(array) for array in ordinary.model.weights.values())
        assert any(is_file_map(array) for array in large.model.weights.values())
        assert sizes(ordinary) == sizes(large)
        cleaned = [default_pipeline(evaluate).run(model.model)[0] for model in models]
        assert len(cleaned[0].proto.graph.node) == len(cleaned[1].proto.graph.node)
        return ordinary, large

    return convert


def sizes(source):
    """Types and numbers of elements of all constants."""
    return sorted((t.data_type, int(np.prod(t.dims))) for t in source.model.proto.graph.initializer)


def names_of_stubs(source):
    return [t.name for t in source.model.proto.graph.initializer if is_stub(t)]


def test_kernels_are_transposed_and_scales_folded_in_files(both, cnn, run):
    ordinary, large = both(cnn)
    x = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    for name, value in run(ordinary, image=x).items():
        np.testing.assert_allclose(run(large, image=x)[name], value, rtol=1e-5)
    assert large.verification.max_rel_diff["logits"] < 1e-5


def test_saved_model_and_keras_files(both, cnn, cnn_saved, tmp_path):
    both(str(cnn_saved))
    for suffix in (".keras", ".h5"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cnn.save(str(tmp_path / f"cnn{suffix}"))
        both(str(tmp_path / f"cnn{suffix}"))


def test_recurrent_and_attention_layers(both, keras):
    keras.utils.set_random_seed(3)
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(50, 16)(ids)
    x = x + keras.layers.MultiHeadAttention(2, 8)(x, x)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Bidirectional(keras.layers.LSTM(8, return_sequences=True))(x)
    both(keras.Model(ids, keras.layers.GRU(8)(x)))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_reduced_precision(both, keras, policy):
    keras.utils.set_random_seed(3)
    image = keras.Input((6, 6, 3))
    layers = [keras.layers.Conv2D(8, 3, dtype=policy), keras.layers.Flatten(), keras.layers.Dense(20, dtype=policy)]
    x = image
    for layer in layers:
        x = layer(x)
    both(keras.Model(image, x))


def test_bfloat16_variables_become_float32(tf, forced):
    w = tf.Variable(tf.random.normal([16, 32], seed=1, dtype=tf.float32))
    w = tf.Variable(tf.cast(w, tf.bfloat16))
    function = tf.function(
        lambda x: tf.matmul(tf.cast(x, tf.bfloat16), w), input_signature=[tf.TensorSpec([None, 16], tf.float32)]
    )
    source = load_source(function)
    assert {array.dtype.name for array in source.model.weights.values()} == {"float32"}


def test_a_table_of_embeddings_is_one_initializer_for_all_its_readers(tf, forced):
    table = tf.Variable(tf.random.normal([40, 8]))
    function = tf.function(
        lambda ids: tf.gather(table, ids) + tf.gather(table, ids + 1), input_signature=[tf.TensorSpec([None], tf.int32)]
    )
    source = load_source(function)
    (name,) = names_of_stubs(source)
    assert source.model.weights[name].shape == (40, 8)


def test_equal_weights_become_one(tf, both):
    values = np.random.default_rng(0).random((16, 16), np.float32)
    one, two = tf.Variable(values), tf.Variable(values)
    function = tf.function(lambda x: (x @ one) @ two, input_signature=[tf.TensorSpec([None, 16])])
    _, large = both(function)
    assert len(names_of_stubs(large)) == 1


def test_captured_constants_go_to_files(tf, forced):
    constant = tf.constant(np.random.default_rng(0).random((16, 16), np.float32))
    source = load_source(tf.function(lambda x: x @ constant, input_signature=[tf.TensorSpec([None, 16])]))
    assert has_files(source.model)


def test_constants_of_the_graph_go_to_files(tf, forced):
    values = np.random.default_rng(0).random((16, 16), np.float32)
    source = load_source(tf.function(lambda x: x @ tf.constant(values), input_signature=[tf.TensorSpec([None, 16])]))
    assert has_files(source.model)


def test_weights_in_loops_and_branches(tf, both):
    w = tf.Variable(np.random.default_rng(0).random((16, 16), np.float32) / 16)
    v = tf.Variable(np.random.default_rng(1).random((16, 16), np.float32))

    def body(x, n):
        x = tf.while_loop(lambda i, _: i < n, lambda i, y: (i + 1, y @ w), [tf.constant(0), x])[1]
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x @ v, lambda: x - tf.reduce_sum(v))

    signature = [tf.TensorSpec([None, 16]), tf.TensorSpec([], tf.int32)]
    _, large = both(tf.function(body, input_signature=signature))
    inner = [
        tensor
        for node in large.model.proto.graph.node
        for attribute in node.attribute
        for tensor in attribute.g.initializer
    ]
    assert not any(is_stub(tensor) for tensor in inner)


def test_reference_variables_of_tf1(tf, tmp_path, forced):
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 16], name="x")
        w = v1.get_variable("w", initializer=np.eye(16, dtype=np.float32) * 3, use_resource=False)
        y = tf.matmul(x, w)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "old"), {"x": x}, {"y": y})
    source = load_source(str(tmp_path / "old"))
    assert has_files(source.model)
    x = np.ones((2, 16), np.float32)
    np.testing.assert_array_equal(NativeSession(source.model).run({"x": x})["y"], x * 3)


def test_a_weight_that_is_an_output(tf, forced, run):
    w = tf.Variable(np.arange(256, dtype=np.float32).reshape(16, 16))
    function = tf.function(lambda x: {"y": x @ w, "w": w}, input_signature=[tf.TensorSpec([None, 16], name="x")])
    source = load_source(function)
    np.testing.assert_array_equal(run(source, x=np.zeros((1, 16), np.float32))["w"], w.numpy())


def test_what_stays_in_tensorflow_keeps_its_weights(tf, forced):
    w = tf.Variable(np.random.default_rng(0).random((16, 16), np.float32))
    function = tf.function(
        lambda x: tf.math.lgamma(tf.abs(x @ w) + 1) @ w, input_signature=[tf.TensorSpec([None, 16], name="x")]
    )
    source = load_source(function)
    assert source.notes
    assert max(source.verification.max_rel_diff.values()) < 1e-4


def test_two_exports_are_equal_byte_by_byte(cnn_saved, forced):
    first, second = (load_source(str(cnn_saved)) for _ in range(2))
    assert first.model.proto.SerializeToString(deterministic=True) == second.model.proto.SerializeToString(
        deterministic=True
    )


def test_weights_are_called_by_how_they_are_read(cnn_saved, forced):
    assert not any(name.split(":")[0].isdigit() for name in names_of_stubs(load_source(str(cnn_saved))))


def test_the_model_is_let_go_before_it_is_verified(tf, monkeypatch, forced, tmp_path):
    module = tf.Module()
    module.w = tf.Variable(np.ones((16, 16), np.float32))
    module.call = tf.function(lambda x: x @ module.w, input_signature=[tf.TensorSpec([None, 16])])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.call)
    from rewriter.frontend import saved_model, tensorflow

    loaded, alive = [], []
    load, verify = saved_model.load, tensorflow.verify

    def watched_load(*args, **kwargs):
        callee = load(*args, **kwargs)
        loaded.extend(weakref.ref(variable) for variable in callee.owner[1].graph.variables)
        return callee

    def watched_verify(*args, **kwargs):
        alive.extend(reference() is not None for reference in loaded)
        return verify(*args, **kwargs)

    monkeypatch.setattr(saved_model, "load", watched_load)
    monkeypatch.setattr(tensorflow, "verify", watched_verify)
    load_source(str(tmp_path / "m"))
    assert alive
    assert not any(alive)


def test_files_live_as_long_as_their_weights(tf, forced):
    w = tf.Variable(np.random.default_rng(0).random((16, 16), np.float32))
    source = load_source(tf.function(lambda x: x @ w, input_signature=[tf.TensorSpec([None, 16])]))
    (array,) = (a for a in source.model.weights.values() if is_file_map(a))
    path, view = array.filename, array[1:]
    assert path.is_file()
    del source, array
    gc.collect()
    assert path.is_file()
    assert view.sum() > 0
    del view
    gc.collect()
    assert not path.exists()
    assert not path.parent.exists()


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    dtype=st.sampled_from(["float32", "float16", "float64", "int8", "int64", "uint16", "bfloat16"]),
    data=st.data(),
)
def test_any_array_comes_back(shape, dtype, data):
    import ml_dtypes  # noqa: F401 - gives numpy the name bfloat16

    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    array = array.transpose(data.draw(st.permutations(range(len(shape)))))
    weights = LargeWeights()
    number = weights.put(array)
    got = weights[number]
    assert is_file_map(got)
    assert got.dtype.name == ("float32" if dtype == "bfloat16" else dtype)
    np.testing.assert_array_equal(got, array.astype(got.dtype))
    tensor = weights.stub(number, "w")
    assert list(tensor.dims) == list(array.shape)
    np.testing.assert_array_equal(weights.to_array(tensor), got)


def test_pieces_and_files(monkeypatch, tmp_path):
    monkeypatch.setattr(large_weights, "_PIECE", 64)
    monkeypatch.setattr(large_weights, "_FILE", 3 * 4096)
    weights = LargeWeights(tmp_path)
    arrays = [np.random.default_rng(i).random((i + 1, 300), np.float32).T for i in range(8)]
    for array in arrays:
        weights.put(array)
    for number, array in enumerate(arrays):
        np.testing.assert_array_equal(weights[number], array)
        assert weights[number].offset % 4096 == 0
    assert len({weights[number].filename for number in range(8)}) > 1
    weights.drop_pages()
    np.testing.assert_array_equal(weights[7], arrays[7])


def test_a_folder_that_cannot_be_written(tmp_path):
    weights = LargeWeights(tmp_path / "missing")
    with pytest.raises(ExportError, match=r"weights cannot be written to .*TMPDIR"):
        weights.put(np.zeros(10, np.float32))


def test_small_and_strange_tensors_stay(tf):
    assert not is_large(np.dtype(np.float32), 10)
    assert not is_large(np.dtype(np.complex64), 1 << 20)
    assert not is_large(tf.string, 1 << 20)
    assert not is_large(tf.float32, None)
    assert is_large(tf.float32, 1 << 20)


def test_constants_that_fit_nowhere(tf, monkeypatch):
    monkeypatch.setattr(large_weights, "LIMIT", 100)
    monkeypatch.setattr(large_weights, "THRESHOLD", 1 << 60)
    w = tf.Variable(np.ones((16, 16), np.float32))
    with pytest.raises(ExportError, match=r"small constants .* convert it in parts"):
        load_source(tf.function(lambda x: x @ w, input_signature=[tf.TensorSpec([None, 16])]))


def test_a_tensorflow_part_beyond_its_limit(tf, monkeypatch):
    weights = LargeWeights()
    graph_def = tf.Graph().as_graph_def()
    node = graph_def.node.add(name="w")
    large_weights.place(node, weights.put(np.ones(100, np.float32)), np.ones(100, np.float32))
    assert with_weights(graph_def, weights, "m").node[0].op == "Const"
    monkeypatch.setattr(large_weights, "LIMIT", 100)
    with pytest.raises(ExportError, match="a part of m that stays in TensorFlow"):
        with_weights(graph_def, weights, "m")


def test_stubs_in_bodies_move_to_the_main_graph():
    weights = LargeWeights()
    number = weights.put(np.full(64, 2, np.float32))
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [64])

    def branch(name):
        add = helper.make_node("Add", ["x", "w"], [name])
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, [64])
        return helper.make_graph([add], name, [], [output], [weights.stub(number, "w")])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [64]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    proto = helper.make_model(
        helper.make_graph([node], "g", inputs, [value]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    model = attached(proto, weights)
    assert sorted(model.weights) == sorted(t.name for t in model.proto.graph.initializer)
    assert len(model.weights) == 2
    feeds = {"x": np.ones(64, np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(NativeSession(model).run(feeds)["y"], np.full(64, 3, np.float32))
    assert not any(number_of(tensor) for tensor in model.proto.graph.initializer)


def test_a_lean_session_computes_from_the_files():
    weights = LargeWeights()
    array = np.random.default_rng(0).random((64, 64), np.float32)
    stub = weights.stub(weights.put(array), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 64]) for name in "xy")
    other = onnx.numpy_helper.from_array(array + 1, "v")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("MatMul", ["m", "v"], ["y"])]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [stub, other]), opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )  # fmt: skip
    model = attached(proto, weights)
    assert with_places(model, session_options())[1] == ["v"]
    feeds = {"x": np.ones((2, 64), np.float32)}
    lean, plain = (NativeSession(model, lean=lean).run(feeds)["y"] for lean in (True, False))
    np.testing.assert_allclose(lean, plain, rtol=1e-5)


def test_names(tf):
    weights = LargeWeights()
    array = np.ones((16, 16), np.float32)
    graph_def = tf.Graph().as_graph_def()
    large_weights.place(graph_def.node.add(name="17"), weights.put(array), array)
    large_weights.place(graph_def.node.add(name="18"), weights.put(array), array)
    graph_def.node.add(name="read", op="Identity", input=["17", "^x"])
    graph_def.node.add(name="again", op="Identity", input=["read:0"])
    graph_def.node.add(name="x", op="Placeholder")
    graph_def.node.add(name="mul", op="MatMul", input=["x", "read"])
    graph_def.node.add(name="mul2", op="MatMul", input=["mul:0", "18", "^read"])
    graph_def.node.add(name="out", op="Identity", input=["17:0"])
    settle_names(graph_def, {"x", "out"})
    nodes = {node.name: list(node.input) for node in graph_def.node}
    assert nodes == {
        "again": [],
        "mul2/value": [],
        "x": [],
        "read": ["again", "^x"],
        "mul": ["x", "again"],
        "mul2": ["mul:0", "mul2/value", "^again"],
        "out": ["again"],
    }
