"""A converted function inside TensorFlow: graphs, input pipelines, strings, errors, threads."""

import concurrent.futures
import sys

import numpy as np
import pytest
from onnx import TensorProto, parser

from passes import model as models
from passes.segments import TensorSpec
from rewriter.errors import InputError, InvalidParameterError, MissingDependencyError
from rewriter.runtime.loading import Runnable, make_function
from rewriter.runtime.tf_function import _parameter_names, as_tf_function
from rewriter.source import Signature


def function_of(text, inputs, outputs):
    """A function of a model without engine nodes."""
    return make_function(Runnable(models.Model(parser.parse_model(text)), Signature(inputs, outputs)))


@pytest.fixture
def function(spliced, no_gpu):
    with make_function(Runnable(*spliced)) as made:
        yield made


@pytest.mark.parametrize(
    ("names", "parameters"),
    [
        (["x", "y"], ["x", "y"]),
        (["a:0", "a/0", "0", "in"], ["a_0", "a_0_", "_0", "_in"]),
        (["größe"], ["größe"]),
    ],
)
def test_names_that_python_can_spell(names, parameters):
    assert _parameter_names(names) == parameters


def test_without_tensorflow_it_says_what_to_install(function, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingDependencyError, match="as_tf_function needs TensorFlow"):
        function.as_tf_function()


@pytest.mark.tensorflow
def test_signature_positions_and_names(function, pair):
    import tensorflow as tf

    x, y = pair()
    called = function.as_tf_function()
    expected = function(x, y)
    for outputs in (called(x, y), called(tf.constant(x), y=y), called(y=y, x=x)):
        assert list(outputs) == ["product", "y"]
        for name, tensor in outputs.items():
            np.testing.assert_array_equal(tensor.numpy(), expected[name])
    args, kwargs = called.get_concrete_function().structured_input_signature
    assert [(spec.name, spec.shape.as_list(), spec.dtype) for spec in args] == [
        ("x", [None, 4], tf.float32),
        ("y", [None, 4], tf.float32),
    ]
    assert kwargs == {}
    outputs = called.get_concrete_function().structured_outputs
    assert outputs["product"].shape.as_list() == [None, 300]
    assert function.stats()["calls"] == 4
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        called(y=y)
    with pytest.raises(TypeError):
        called(x[:, :2], y)


@pytest.mark.tensorflow
def test_in_an_input_pipeline_with_parallel_calls(function, pair):
    import tensorflow as tf

    called = function.as_tf_function()
    x, y = pair(12)
    data = tf.data.Dataset.from_tensor_slices({"x": x, "y": y}).batch(3)
    mapped = data.map(lambda item: called(**item), num_parallel_calls=4)
    assert mapped.element_spec["product"].shape.as_list() == [None, 300]
    found = np.concatenate([outputs["product"].numpy() for outputs in mapped])
    np.testing.assert_allclose(found, function(x, y)["product"], rtol=1e-5, atol=1e-5)
    pairs = tf.data.Dataset.from_tensors((x, y)).map(called)
    assert next(iter(pairs))["y"].shape == (12, 4)


@pytest.mark.tensorflow
def test_in_another_function_and_from_many_threads(function, pair):
    import tensorflow as tf

    called = function.as_tf_function()

    @tf.function(autograph=False)
    def outer(x):
        return called(x * 2, tf.zeros_like(x))["product"] + 1

    x, _ = pair(5)
    expected = function(x * 2, np.zeros_like(x))["product"] + 1
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for result in pool.map(outer, [tf.constant(x)] * 64):
            np.testing.assert_array_equal(result.numpy(), expected)
    assert function.stats()["calls"] == 65


@pytest.mark.tensorflow
def test_a_gradient_is_an_error_that_says_the_way_out(function, pair):
    import tensorflow as tf

    called = function.as_tf_function()
    x, y = map(tf.constant, pair())

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(x)
            return tape.gradient(called(x, y)["product"], x)

    with pytest.raises(LookupError, match=r"a converted model has no gradient: .*tf\.stop_gradient"):
        gradient()
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(x) + tf.reduce_sum(called(tf.stop_gradient(x), y)["product"])
    np.testing.assert_array_equal(tape.gradient(total, x).numpy(), np.ones(x.shape))


@pytest.mark.tensorflow
def test_strings_integers_and_scalars():
    import tensorflow as tf

    text = """
    <ir_version: 10, opset_import: ["": 20]>
    g (string[n] s, int64 k) => (string[n] t, int64 j, bool b)
    {
        t = Identity(s)
        j = Neg(k)
        b = Equal(k, j)
    }
    """
    ends = (
        TensorSpec("s", TensorProto.STRING, ("n",)),
        TensorSpec("k", TensorProto.INT64, ()),
    )
    outputs = (
        TensorSpec("t", TensorProto.STRING, ("n",)),
        TensorSpec("j", TensorProto.INT64, ()),
        TensorSpec("b", TensorProto.BOOL, ()),
    )
    with function_of(text, ends, outputs) as function:
        found = function.as_tf_function()(tf.constant(["a", "é"]), 3)
    assert found["t"].numpy().tolist() == [b"a", "é".encode()]
    assert (int(found["j"]), bool(found["b"])) == (-3, False)
    assert found["t"].dtype == tf.string


@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16", "DOUBLE", "UINT8"])
def test_other_dtypes(dtype):
    import tensorflow as tf

    number = TensorProto.DataType.Value(dtype)
    name = dtype.lower()
    text = f'<ir_version: 10, opset_import: ["": 20]> g ({name}[n] x) => ({name}[n] y) {{ y = Identity(x) }}'
    with function_of(text, (TensorSpec("x", number, ("n",)),), (TensorSpec("y", number, ("n",)),)) as function:
        called = function.as_tf_function()
        kind = called.input_signature[0].dtype
        found = called(tf.cast(tf.constant([1, 2]), kind))["y"]
    assert found.dtype == kind
    np.testing.assert_array_equal(tf.cast(found, tf.float32).numpy(), [1, 2])


@pytest.mark.tensorflow
def test_no_inputs_one_output_and_names_of_graphs():
    text = '<ir_version: 10, opset_import: ["": 20]> g () => (float[2] y) { y = Constant<value_floats = [1.0, 2.0]>() }'
    with function_of(text, (), (TensorSpec("scope/y:0", TensorProto.FLOAT, (2,), "y"),)) as function:
        found = function.as_tf_function()()
    assert found["scope/y:0"].numpy().tolist() == [1, 2]


@pytest.mark.tensorflow
def test_errors_keep_their_words(function, pair):
    import tensorflow as tf

    called = function.as_tf_function()
    x, y = pair()
    with pytest.raises(tf.errors.OpError, match=r"the model failed on the inputs x \[2, 4\], y \[3, 4\]"):
        called(x, np.ones((3, 4), np.float32))
    function.close()
    with pytest.raises(tf.errors.OpError, match="this function is closed"):
        called(x, y)


@pytest.mark.tensorflow
def test_a_dtype_that_tensorflow_lacks(function):
    import dataclasses
    import types

    strange = dataclasses.replace(
        function.signature, inputs=(TensorSpec("x", TensorProto.FLOAT8E8M0, (2,)), function.signature.inputs[1])
    )
    with pytest.raises(InvalidParameterError, match="'x' has the dtype float8_e8m0fnu, which TensorFlow has not"):
        as_tf_function(types.SimpleNamespace(signature=strange))


@pytest.mark.tensorflow
def test_all_inputs_in_one_value(function, pair):
    import tensorflow as tf

    called = function.as_tf_function()
    x, y = pair(6)
    expected = function(x, y)["product"]
    inside = tf.function(lambda item: called(item)["product"])
    for item in ({"y": y, "x": x}, (x, y), [x, y]):
        np.testing.assert_array_equal(called(item)["product"].numpy(), expected)
        np.testing.assert_array_equal(inside(item).numpy(), expected)
    data = tf.data.Dataset.from_tensor_slices(({"x": x, "y": y}, np.arange(6))).batch(2)
    pipelines = [
        data.map(lambda inputs, label: inputs).map(called),  # dicts
        data.map(lambda inputs, label: (inputs["x"], inputs["y"])).map(called),  # tuples
        data.map(lambda inputs, label: called(inputs)),
    ]
    for mapped in pipelines:
        rows = [item["product"].numpy() for item in mapped]
        np.testing.assert_allclose(np.concatenate(rows), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="unknown input 'z'"):
        called({"x": x, "z": y})


@pytest.mark.tensorflow
def test_names_in_a_dict_are_the_signatures_or_pythons(no_gpu):
    import tensorflow as tf

    spec = TensorSpec("image:0", TensorProto.FLOAT, (None, 2), "x")
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 2] x) => (float[n, 2] z) { z = Neg(x) }'
    called = function_of(text, (spec,), (TensorSpec("z", TensorProto.FLOAT, (None, 2)),)).as_tf_function()
    x = np.ones((4, 2), np.float32)
    for item in ({"image:0": x}, {"image_0": x}):
        np.testing.assert_array_equal(called(item)["z"].numpy(), -x)
    data = tf.data.Dataset.from_tensor_slices((x, np.arange(4))).batch(2)
    found = [(out["z"].numpy(), label.numpy()) for out, label in data.map(lambda image, label: (called(image), label))]
    np.testing.assert_array_equal(np.concatenate([label for _, label in found]), np.arange(4))


@pytest.mark.tensorflow
def test_a_saved_model_of_it_runs_in_this_process(function, pair, tmp_path):
    import tensorflow as tf

    module = tf.Module()
    module.call = function.as_tf_function()
    tf.saved_model.save(module, str(tmp_path / "saved"))
    x, y = pair()
    again = tf.saved_model.load(str(tmp_path / "saved")).call(x, y)
    np.testing.assert_array_equal(again["product"].numpy(), function(x, y)["product"])
