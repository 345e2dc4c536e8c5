"""Names, order, dtypes and dimension symbols are those of the TensorFlow signature."""

import numpy as np
import pytest

from rewriter.errors import InvalidParameterError
from rewriter.frontend import load_source

pytestmark = pytest.mark.tensorflow


def test_order_of_writing_not_of_the_alphabet(tf):
    specs = [tf.TensorSpec([None, 2], tf.float32, name=n) for n in ("zeta", "alpha")]
    function = tf.function(lambda z, a: {"second": z + a, "first": z - a, "mm": z * a}, input_signature=specs)
    signature = load_source(function).signature
    assert [s.name for s in signature.inputs] == ["zeta", "alpha"]
    assert [s.name for s in signature.outputs] == ["second", "first", "mm"]


def test_dictionary_inputs_and_outputs_of_keras(keras, run):
    query, key = keras.Input((3,), name="q"), keras.Input((3,), name="k")
    model = keras.Model({"q": query, "k": key}, {"mm:0": query * key, "d": query - key})
    source = load_source(model)
    assert [s.name for s in source.signature.inputs] == ["q", "k"]
    assert [s.name for s in source.signature.outputs] == ["mm:0", "d"]
    q, k = np.ones((2, 3), np.float32) * 3, np.ones((2, 3), np.float32) * 2
    found = run(source, q=q, k=k)
    assert found["mm:0"][0, 0] == 6.0
    assert found["d"][0, 0] == 1.0


def test_passthrough_duplicate_constant_and_unused(tf, run):
    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.float32, name="x"), tf.TensorSpec([2], tf.int32, name="unused")]
    )
    def function(x, unused):
        doubled = x * 2.0
        return {"x": x, "twice": doubled, "again": doubled, "fixed": tf.constant([1, 2], tf.int64)}

    source = load_source(function)
    assert [s.name for s in source.signature.inputs] == ["x", "unused"]
    assert [s.name for s in source.signature.outputs] == ["x", "twice", "again", "fixed"]
    assert source.signature.outputs[0].tensor == "x_out"
    assert [i.name for i in source.model.proto.graph.input] == ["x", "unused"]
    found = run(source, x=np.array([4.0], np.float32), unused=np.zeros(2, np.int32))
    assert found["x"].tolist() == [4.0]
    assert found["again"].tolist() == found["twice"].tolist() == [8.0]
    assert found["fixed"].tolist() == [1, 2]


def test_a_function_without_inputs(tf):
    function = tf.function(lambda: tf.range(3) * 2, input_signature=[])
    source = load_source(function)
    assert source.signature.inputs == ()
    assert source.verification.worst == 0.0


def test_sequence_outputs_are_numbered_and_none_is_left_out(tf):
    function = tf.function(lambda x: (x, None, [x + 1, x + 2]), input_signature=[tf.TensorSpec([3], tf.float32)])
    assert [s.name for s in load_source(function).signature.outputs] == ["output_0", "output_2_0", "output_2_1"]


def test_dtypes_are_kept(tf):
    kinds = ["float64", "int64", "uint8", "bool", "float16", "int32", "int8"]
    specs = [tf.TensorSpec([2], kind, name=kind) for kind in kinds]
    function = tf.function(lambda *values: list(values), input_signature=specs)
    signature = load_source(function).signature
    wanted = [11, 7, 2, 9, 10, 6, 3]
    assert [s.dtype for s in signature.inputs] == wanted
    assert [s.dtype for s in signature.outputs] == wanted


def test_bfloat16_at_the_boundary_is_float32(tf, run):
    specs = [tf.TensorSpec([None, 2], tf.bfloat16, name="x")]
    source = load_source(tf.function(lambda x: {"y": x * 2, "z": tf.cast(x, tf.float32)}, input_signature=specs))
    assert [s.dtype for s in (*source.signature.inputs, *source.signature.outputs)] == [1, 1, 1]
    assert {sample["x"].dtype for sample in source.samples} == {np.dtype("float32")}
    assert run(source, x=np.ones((1, 2), np.float32))["y"].tolist() == [[2.0, 2.0]]
    given = load_source(tf.function(lambda x: x + 1, input_signature=specs), samples=[np.ones((3, 2), np.float32)])
    assert given.verification.worst == 0.0


def test_public_names_do_not_collide_with_inner_names(tf, run):
    specs = [tf.TensorSpec([2], tf.float32, name="mul:0")]
    function = tf.function(lambda v: {"Identity:0": v * 2.0 + 1.0, "add": v * 3.0 + 2.0}, input_signature=specs)
    found = run(load_source(function), **{"mul:0": np.ones(2, np.float32)})
    assert found["Identity:0"].tolist() == [3.0, 3.0]
    assert found["add"].tolist() == [5.0, 5.0]


def test_first_dimensions_that_must_be_equal_are_the_batch(tf):
    specs = [tf.TensorSpec([None, None], tf.float32, name=n) for n in ("ids", "mask")]
    joint = load_source(tf.function(lambda a, b: a * b, input_signature=specs)).signature
    assert [s.shape for s in joint.inputs] == [("batch", "ids_dim1"), ("batch", "ids_dim1")]
    assert joint.outputs[0].shape == ("batch", "ids_dim1")
    apart = load_source(tf.function(lambda a, b: (a * 2.0, b * 3.0), input_signature=specs)).signature
    assert [s.shape for s in apart.inputs] == [("ids_dim0", "ids_dim1"), ("mask_dim0", "mask_dim1")]
    assert [s.shape for s in apart.outputs] == [("ids_dim0", "ids_dim1"), ("mask_dim0", "mask_dim1")]


def test_output_dimensions_that_no_input_has_get_their_own_symbol(tf):
    specs = [tf.TensorSpec([None], tf.float32, name="x")]
    function = tf.function(lambda x: {"positive": tf.boolean_mask(x, x > 0)}, input_signature=specs)
    sample = np.array([1.0, -1.0, 2.0, -3.0], np.float32)
    signature = load_source(function, samples=[sample]).signature
    assert signature.outputs[0].shape == ("positive_dim0",)


def test_no_symbol_of_the_converter_is_left(tf):
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def function(x):
        return tf.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v + x), (0, x))[1]

    assert b"unk__" not in load_source(function).model.proto.SerializeToString()


def test_unknown_rank(tf):
    function = tf.function(lambda x: x * 2.0, input_signature=[tf.TensorSpec(None, tf.float32, name="x")])
    signature = load_source(function).signature
    assert signature.inputs[0].shape is None
    assert len(signature.outputs[0].shape) == 2


def test_samples_are_reported_by_public_name(tf):
    function = tf.function(lambda x: x * 2.0, input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    source = load_source(function)
    assert [set(sample) for sample in source.samples] == [{"x"}, {"x"}]
    assert len({sample["x"].shape for sample in source.samples}) == 2


def test_the_inputs_can_be_checked_before_any_work(tf):
    specs = [tf.TensorSpec([None, 2], tf.float32, name="x")]
    function = tf.function(lambda x: x + 1, input_signature=specs)
    seen = []
    load_source(function, check=seen.append)
    ((item,),) = (signature.inputs for signature in seen)
    assert (item.name, item.shape) == ("x", (None, 2))

    def refuse(signature):
        raise InvalidParameterError("no")

    with pytest.raises(InvalidParameterError, match="no"):
        load_source(function, samples=[np.ones((3, 5), np.float32)], check=refuse)  # the samples do not fit, either


def test_how_many_different_values_there_are_is_no_batch(tf):
    # Both made-up samples happen to hold no value twice.
    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="code")])
    def distinct(code):
        return {"y": tf.one_hot(tf.unique(code)[0], 8), "all": tf.one_hot(code, 4)}

    shapes = {spec.name: spec.shape for spec in load_source(distinct).signature.outputs}
    assert shapes == {"all": ("batch", 4), "y": ("y_dim0", 8)}
    given = {"code": np.array([1, 2], np.int32)}
    shapes = {spec.name: spec.shape for spec in load_source(distinct, samples=[given]).signature.outputs}
    assert shapes == {"all": ("batch", 4), "y": ("y_dim0", 8)}


def test_what_rows_that_repeat_are_refused_for_is_left_out(tf):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="code")])
    def checked(code):
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(code[1:] > code[:-1]), ["sorted"])]):
            return {"y": tf.one_hot(code, 4)}

    given = {"code": np.array([1, 2], np.int32)}
    (spec,) = load_source(checked, samples=[given]).signature.outputs
    assert spec.shape == ("batch", 4)
