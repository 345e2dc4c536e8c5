"""Every kind of source gives the same signature and the same numbers; the source stays whole."""

import warnings

import numpy as np
import pytest

from rewriter.errors import InvalidParameterError, SourceError
from rewriter.frontend import load_source
from tests.rewriter.frontend import graph_defs

pytestmark = pytest.mark.tensorflow
IMAGE = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)


def names(source):
    return [s.name for s in source.signature.inputs], [s.name for s in source.signature.outputs]


def test_keras_object(cnn, run):
    before = cnn(IMAGE, training=False)
    source = load_source(cnn)
    assert names(source) == (["image"], ["logits", "emb"])
    assert source.signature.inputs[0].shape == ("batch", 8, 8, 3)
    assert source.signature.outputs[0].shape == ("batch", 5)
    assert source.verification.worst < 1e-5
    assert set(source.timings) == {"load", "reference", "freeze", "export", "verify"}
    after = cnn(IMAGE, training=False)
    for name in ("logits", "emb"):
        np.testing.assert_array_equal(before[name], after[name])
        np.testing.assert_allclose(run(source, image=IMAGE)[name], after[name], rtol=1e-4, atol=1e-6)


def test_saved_model_of_keras_3(cnn_saved, cnn, run):
    source = load_source(cnn_saved)
    assert names(source) == (["image"], ["emb", "logits"])  # a SavedModel keeps no order; TensorFlow's is this
    assert "tags serve, signature serving_default" in source.origin
    np.testing.assert_allclose(run(source, image=IMAGE)["emb"], cnn(IMAGE, training=False)["emb"], rtol=1e-4, atol=1e-6)


def test_two_exports_are_equal_byte_by_byte(cnn_saved):
    first, second = (load_source(str(cnn_saved)).model.proto.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_keras_files(cnn, tmp_path, suffix):
    path = tmp_path / f"cnn{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cnn.save(path)
    source = load_source(path)
    assert names(source) == (["image"], ["logits", "emb"])
    assert str(path) in source.origin


def test_tf_keras_h5_that_keras_3_refuses(tf_keras, tmp_path):
    image = tf_keras.Input((8, 8, 3), name="image")
    x = tf_keras.layers.DepthwiseConv2D(3, name="depthwise")(image)
    model = tf_keras.Model(image, tf_keras.layers.Flatten(name="flat")(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "old.h5")
        model.save(tmp_path / "old_saved")
    source = load_source(tmp_path / "old.h5")
    assert names(source) == (["image"], ["flat"])
    assert source.origin.startswith("tf-keras file")
    assert names(load_source(tmp_path / "old_saved")) == names(source)
    assert names(load_source(model)) == names(source)


def test_sequential_and_subclassed_keras_models(keras):
    sequential = keras.Sequential([keras.Input((4,), name="row"), keras.layers.Dense(2)])
    assert names(load_source(sequential)) == (["row"], ["output_0"])

    class Sub(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, row):
            return self.dense(row)

    called = Sub()
    called(np.zeros((1, 4), np.float32))
    source = load_source(called)
    assert source.signature.inputs[0].shape == ("batch", 4)
    fresh = load_source(Sub(), samples=[np.ones((3, 6), np.float32)])
    assert fresh.signature.inputs[0].shape == ("batch", 6)


def test_module_with_two_signatures(tf, tmp_path):
    class Two(tf.Module):
        def __init__(self):
            super().__init__()
            self.weight = tf.Variable(3.0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def triple(self, x):
            return {"tripled": x * self.weight}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def square(self, x):
            return x * x

    module = Two()
    tf.saved_model.save(module, str(tmp_path), signatures={"triple": module.triple, "square": module.square})
    assert names(load_source(tmp_path, signature_key="triple")) == (["x"], ["tripled"])
    source = load_source(tmp_path, signature_key="square")
    assert names(source) == (["x"], ["output_0"])
    assert source.signature.name == "square"
    assert names(load_source(tf.saved_model.load(str(tmp_path)), signature_key="triple"))[1] == ["tripled"]


def tf1_saved_model(tf, path, table):
    """A TF1 SavedModel with a reference variable and, on request, a table initializer."""
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 3], name="x")
        weight = v1.get_variable("w", initializer=np.arange(6, dtype=np.float32).reshape(3, 2), use_resource=False)
        outputs = {"y": tf.matmul(x, weight)}
        inputs = {"x": x}
        if table:
            words = v1.placeholder(tf.string, [None], name="words")
            initializer = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64))
            outputs["code"] = tf.lookup.StaticHashTable(initializer, -1).lookup(words)
            inputs["words"] = words
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        builder = v1.saved_model.Builder(str(path))
        signature = v1.saved_model.predict_signature_def(inputs, outputs)
        builder.add_meta_graph_and_variables(
            session, ["serve", "gpu"], {"predict": signature}, main_op=v1.tables_initializer()
        )
        builder.save()


def test_signatures_of_a_saved_model_come_in_a_stable_order(tf):
    """A SavedModel keeps them in protobuf maps, which come in any order."""
    from rewriter.frontend.saved_model import from_loaded

    class Signature:
        structured_input_signature = ((), {n: tf.TensorSpec([2], tf.float32, name=n) for n in ("b", "c", "a")})
        graph = tf.Graph()
        _arg_keywords = ("c", "a", "b")

        def __call__(self, **inputs):
            return {"z": inputs["c"], "x": inputs["a"] * 2.0, "y": inputs["b"] * 3.0}

    class Loaded:
        signatures = {"serving_default": Signature()}  # noqa: RUF012

    callee = from_loaded(Loaded(), "model", None)
    assert [argument.name for argument in callee.inputs] == ["c", "a", "b"]
    outputs = callee.call([tf.fill([2], v) for v in (1.0, 10.0, 100.0)])
    assert {name: float(value[0]) for name, value in outputs.items()} == {"x": 20.0, "y": 300.0, "z": 1.0}
    assert list(outputs) == ["x", "y", "z"]


@pytest.mark.parametrize("table", [False, True])
def test_tf1_saved_model(tf, tmp_path, table):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf1_saved_model(tf, tmp_path / "m", table)
    source = load_source(tmp_path / "m", tags="serve,gpu")
    assert source.signature.name == "predict"
    assert {s.name for s in source.signature.outputs} == ({"y", "code"} if table else {"y"})
    assert source.verification.worst < 1e-6


@pytest.fixture(scope="session")
def many_signatures(tf, tmp_path_factory):
    """A TF1 SavedModel with a reference variable in a TF1 loop, a TF1 branch behind it and a table."""
    v1 = tf.compat.v1
    path = tmp_path_factory.mktemp("tf1") / "m"
    with v1.Graph().as_default(), v1.Session() as session, graph_defs.tf1_control_flow(tf), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = v1.placeholder(tf.float32, [None, 3], name="x")
        weight = v1.get_variable("w", initializer=np.eye(3, dtype=np.float32), use_resource=False)
        _, y = v1.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.matmul(y, weight) * 2.0), [0, x])
        z = v1.cond(tf.reduce_sum(y) > 0, lambda: y + 1.0, lambda: y - 1.0)
        words = v1.placeholder(tf.string, [None], name="words")
        pairs = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64))
        code = tf.lookup.StaticHashTable(pairs, -1).lookup(words)
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        of = v1.saved_model.predict_signature_def
        signatures = {
            "loop": of({"x": x}, {"y": y}),
            "both": of({"x": x}, {"y": y, "z": z}),
            "codes": of({"words": words, "x": x}, {"code": code, "y": y}),
        }
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures, main_op=v1.tables_initializer())
        builder.save()
    return path


@pytest.mark.parametrize(("key", "outputs"), [("loop", ["y"]), ("both", ["y", "z"]), ("codes", ["code", "y"])])
def test_tf1_saved_model_with_loops_and_several_signatures(many_signatures, key, outputs, run):
    source = load_source(many_signatures, signature_key=key)
    assert names(source)[1] == outputs
    assert source.verification.worst < 1e-6
    inputs = {"x": np.ones((1, 3), np.float32)} | ({"words": np.array(["b"], object)} if key == "codes" else {})
    assert run(source, **inputs)["y"].tolist() == [[8.0, 8.0, 8.0]]


def test_tf1_saved_model_with_several_signatures_wants_one(many_signatures):
    with pytest.raises(SourceError, match=r"name one: both\(x -> y, z\); codes\(words, x -> code, y\); loop\(x -> y\)"):
        load_source(many_signatures)


def test_a_pruned_function_with_a_tf1_loop(tf):
    definition = graph_defs.loops_and_branches(tf)
    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(definition, name=""), [])
    assert load_source(wrapped.prune("x:0", "while/Exit_1:0")).verification.worst < 1e-6


def test_concrete_function_still_works_afterwards(tf, run):
    weight = tf.Variable([[1.0], [2.0]])
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(["a"]), tf.constant([5], tf.int64)), 0
    )

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32), tf.TensorSpec([None], tf.string)])
    def function(x, words):
        return {"y": x @ weight, "code": table.lookup(words)}

    concrete = function.get_concrete_function()
    arguments = tf.constant([[1.0, 1.0]]), tf.constant(["a"])
    before = concrete(*arguments)
    captures = len(concrete.captured_inputs)
    source = load_source(concrete, samples=[(arguments[0].numpy(), np.array(["a"]))])
    after = concrete(*arguments)
    assert len(concrete.captured_inputs) == captures
    assert [v.numpy().tolist() for v in before.values()] == [v.numpy().tolist() for v in after.values()]
    assert names(source) == (["x", "words"], ["y", "code"])
    weight.assign([[0.0], [0.0]])
    assert concrete(*arguments)["y"].numpy().tolist() == [[0.0]]


def test_pruned_wrapped_graph_without_a_structured_signature(tf):
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 2], name="x")
        tf.identity(x * 2.0, name="y")
    definition = graph.as_graph_def()
    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(definition, name=""), [])
    pruned = wrapped.prune("x:0", "y:0")
    source = load_source(pruned)
    assert names(source) == (["x"], ["output_0"])


def test_function_traced_on_samples(tf):
    function = tf.function(lambda x, *, scale: x * scale)
    samples = [{"x": np.ones((rows, 3), np.float32), "scale": np.float32(rows)} for rows in (2, 5)]
    source = load_source(function, samples=samples)
    assert names(source) == (["x", "scale"], ["output_0"])
    assert source.signature.inputs[0].shape == ("batch", 3)
    assert source.signature.outputs[0].shape == ("batch", 3)
    assert source.verification.samples == 2


def test_function_with_its_only_trace(tf):
    function = tf.function(lambda x: x + 1.0)
    function(tf.zeros([2, 2]))
    assert load_source(function).signature.inputs[0].shape == (2, 2)


def test_verification_can_be_left_out(tf):
    function = tf.function(lambda x: x + 1.0, input_signature=[tf.TensorSpec([2], tf.float32)])
    source = load_source(function, verify=False)
    assert source.verification is None
    assert source.samples


def test_signature_keys_are_for_saved_models(cnn):
    with pytest.raises(InvalidParameterError, match="name a part of a SavedModel"):
        load_source(cnn, signature_key="serving_default")


def test_an_empty_list_of_samples_is_refused(cnn):
    with pytest.raises(InvalidParameterError, match="empty list"):
        load_source(cnn, samples=[])


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_a_keras_file_is_read_by_the_keras_that_wrote_it(package, suffix, request, tmp_path, monkeypatch):
    from rewriter.frontend import keras as keras_files

    module = request.getfixturevalue(package)
    path = tmp_path / f"m{suffix}"
    row = module.Input((4,), name="row")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.Model(row, module.layers.Dense(2, name="head")(row)).save(path)
    other = ({"keras", "tf_keras"} - {package}).pop()
    assert keras_files.loaders(path) == (package, other)
    said = {"keras": "Keras file", "tf_keras": "tf-keras file"}
    assert load_source(path).origin == f"{said[package]} {path}"


def test_files_that_tell_no_version_are_for_keras_3_first(tmp_path):
    from rewriter.frontend import keras as keras_files

    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert keras_files.loaders(tmp_path / "x.h5") == ("keras", "tf_keras")


def test_functions_of_a_module_by_name(tf):
    class Two(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 2], name="x")])
        def double(self, x):
            return {"twice": x * 2.0}

        @tf.function(input_signature=[tf.TensorSpec([None, 2], name="x")])
        def __call__(self, x):
            return x + 1.0

        @property
        def broken(self):
            raise RuntimeError("properties are not run")

    module = Two()
    source = load_source(module)
    assert (source.signature.name, names(source)) == ("__call__", (["x"], ["output_0"]))
    source = load_source(module, signature_key="double")
    assert (source.origin, names(source)) == ("tf.Module Two, function double", (["x"], ["twice"]))
    with pytest.raises(SourceError, match=r"tf.Module Two has no tf.function 'triple'; it has: __call__, double"):
        load_source(module, signature_key="triple")
    with pytest.raises(SourceError, match=r"no tf.function that stands out: decorate .* it has: none"):
        load_source(tf.Module())
    plain = tf.Module()
    plain.one, plain.two = module.double, module.double
    with pytest.raises(SourceError, match=r"stands out: name one with signature_key; it has: one, two"):
        load_source(plain)
    with pytest.raises(InvalidParameterError, match="name a part of a SavedModel"):
        load_source(module, tags="serve")
