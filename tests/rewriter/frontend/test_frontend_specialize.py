"""Specialised dimensions: names, errors, and the shape arithmetic that is gone (counted against the plain export)."""

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from passes.pipeline import default_pipeline
from passes.segments import TensorSpec
from rewriter.errors import InputError, InvalidParameterError, SourceError
from rewriter.frontend import load_source
from rewriter.frontend.specialize import check_specialize, parse_specialize, resolve


def cleaned(source):
    """Op types of the main graph after the default passes."""
    model, _ = default_pipeline().run(source.model)
    return [node.op_type for node in model.proto.graph.node]


def shapes(source):
    return [s.shape for s in source.signature.inputs], [s.shape for s in source.signature.outputs]


# --- the text form ---------------------------------------------------------------------------------------------------


def test_parse():
    assert parse_specialize("batch=8, seq=128,image:1=224,") == {"batch": 8, "seq": 128, "image:1": 224}
    assert parse_specialize("") == {}
    assert parse_specialize("a=2,a=2") == {"a": 2}
    assert check_specialize(None) == {}
    assert check_specialize("a:0=2") == check_specialize({"a:0": 2}) == {"a:0": 2}


@pytest.mark.parametrize("text", ["batch", "batch=", "=8", "batch=x", "batch=-1", "batch=1.5", "batch=0", "a=1,a=2"])
def test_parse_refuses(text):
    with pytest.raises(InvalidParameterError, match="specialize"):
        parse_specialize(text)


@pytest.mark.parametrize("sizes", [3, ["batch"], {"batch": "8"}, {"batch": 0}, {"batch": True}, {1: 8}, {"a": 1.0}])
def test_check_refuses(sizes):
    with pytest.raises(InvalidParameterError, match="specialize"):
        check_specialize(sizes)


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), st.integers(1, 10**9), max_size=5
    )
)
def test_parse_reads_what_is_written(sizes):
    assert parse_specialize(",".join(f"{name}={size}" for name, size in sizes.items())) == sizes


# --- what a name means -----------------------------------------------------------------------------------------------

INPUTS = (
    TensorSpec("x", 1, ("batch", None, 3)),
    TensorSpec("y:1", 1, ("batch", "seq")),
    TensorSpec("z", 1, None),
)


def test_resolve():
    assert resolve({"batch": 2}, INPUTS, "m") == {("x", 0): 2, ("y:1", 0): 2}
    assert resolve({"y:1:0": 2}, INPUTS, "m") == {("x", 0): 2, ("y:1", 0): 2}
    assert resolve({"x:1": 5, "seq": 5}, INPUTS, "m") == {("x", 1): 5, ("y:1", 1): 5}
    assert resolve({"x:2": 3}, INPUTS, "m") == {}
    assert resolve({"batch": 2, "x:0": 2}, INPUTS, "m") == {("x", 0): 2, ("y:1", 0): 2}


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"rows": 2}, r"names 'rows', which m has not; its open dimensions are: batch \(x:0, y:1:0\), x:1, seq"),
        ({"x:3": 2}, "names 'x:3', which m has not"),
        ({"q:0": 2}, "names 'q:0', which m has not"),
        ({"x:-1": 2}, "names 'x:-1', which m has not"),
        ({"x:2": 4}, "sets 'x:2' to 4, but m has it fixed at 3"),
        ({"z:0": 4}, "nothing is known of the shape of 'z'"),
        ({"x:0": 4, "batch": 5}, "sets 'x:0' to 4 and 'batch' to 5, which m wants equal"),
    ],
)
def test_resolve_refuses(sizes, match):
    with pytest.raises(InvalidParameterError, match=match):
        resolve(sizes, INPUTS, "m")


def test_nothing_open():
    with pytest.raises(InvalidParameterError, match="it has no open dimensions"):
        resolve({"batch": 2}, (TensorSpec("x", 1, (2,)),), "m")


# --- ONNX sources ----------------------------------------------------------------------------------------------------


def flattened(rows=None):
    """x [batch, seq, 4] -> reshaped to [batch, seq * 4] by its own shape; w [rows, 4] is added where it is given."""
    shape = [
        helper.make_node("Shape", ["x"], ["dims"]),
        helper.make_node("Gather", ["dims", "zero"], ["first"]),
        helper.make_node("Concat", ["first", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["added" if rows else "x", "target"], ["y"]),
    ]
    weights = [numpy_helper.from_array(np.array([0]), "zero"), numpy_helper.from_array(np.array([-1]), "rest")]
    if rows:
        shape.insert(0, helper.make_node("Add", ["x", "w"], ["added"]))
        weights.append(numpy_helper.from_array(np.ones((rows, 4), np.float32), "w"))
    graph = helper.make_graph(
        shape,
        "flat",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "4*seq"])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_onnx(tmp_path):
    proto = flattened()
    before = proto.SerializeToString(deterministic=True)
    plain = load_source(proto)
    fixed = load_source(proto, specialize="batch=2,seq=3")
    assert proto.SerializeToString(deterministic=True) == before
    assert shapes(fixed) == ([(2, 3, 4)], [(2, 12)])
    assert shapes(load_source(proto, specialize={"x:1": 3})) == ([("batch", 3, 4)], [("batch", "4*seq")])
    assert len(cleaned(plain)) == 4
    assert cleaned(fixed) == ["Reshape"]
    onnx.save(proto, tmp_path / "flat.onnx")
    assert shapes(load_source(tmp_path / "flat.onnx", specialize={"batch": 2, "seq": 3})) == shapes(fixed)
    onnx.checker.check_model(fixed.model.proto)


def test_onnx_sizes_that_the_graph_contradicts():
    assert shapes(load_source(flattened(5), specialize="seq=5,batch=2"))[1] == [(2, 20)]
    with pytest.raises(SourceError, match=r"ONNX model flat cannot have the sizes of specialize: .*"):
        load_source(flattened(5), specialize="seq=3")


def test_onnx_symbols_in_bodies_and_inner_shapes():
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"])],
        "body",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, ["n", 2])],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["s"])],
        "other",
        [],
        [helper.make_tensor_value_info("s", TensorProto.FLOAT, ["n", 2])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("If", ["c"], ["i"], then_branch=body, else_branch=other),
            helper.make_node("Abs", ["i"], ["y"]),
        ],
        "branches",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        value_info=[helper.make_tensor_value_info("i", TensorProto.FLOAT, ["n", 2])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    found = load_source(proto, specialize="n=7").model.proto
    assert '"n"' not in str(found)
    assert str(found).count("dim_value: 7") == 5


# --- TensorFlow sources ----------------------------------------------------------------------------------------------

pytest_tf = pytest.mark.tensorflow


def dilated(tf, keras):
    keras.utils.set_random_seed(1)
    x = keras.Input((None, 4), name="x")
    y = x
    for rate in (1, 4, 16):
        y = keras.layers.Conv1D(8, 5, dilation_rate=rate, padding="same")(y)
    return keras.Model(x, y)


def unet(tf, keras):
    keras.utils.set_random_seed(1)
    conv = lambda n, x: keras.layers.Conv2D(n, 3, padding="same", activation="relu")(x)  # noqa: E731
    x = keras.Input((None, None, 3), name="x")
    fine = conv(4, x)
    coarse = conv(8, keras.layers.MaxPooling2D()(fine))
    up = keras.layers.Conv2DTranspose(4, 2, strides=2)(coarse)
    return keras.Model(x, keras.layers.Conv2D(2, 1)(keras.layers.Concatenate()([up, fine])))


def attention(tf, keras):
    keras.utils.set_random_seed(1)
    x = keras.Input((None, 16), name="x")
    return keras.Model(x, keras.layers.LayerNormalization()(keras.layers.MultiHeadAttention(2, 8)(x, x) + x))


@pytest_tf
@pytest.mark.parametrize(
    ("build", "sizes", "most", "share", "forbidden"),
    [
        # Trap 11: SpaceToBatch and BatchToSpace around every dilated convolution, which TensorRT's Pad refuses.
        (dilated, "x_dim1=64", 8, 0.1, {"Shape", "Pad", "Slice"}),
        # The output sizes of Conv2DTranspose, computed from the input's.
        (unet, "x_dim1=16,x_dim2=16", 12, 0.25, {"Shape", "Slice", "Max"}),
        # The reshapes around the heads.
        (attention, "batch=2,x_dim1=16", 50, 0.6, {"Shape", "Gather"}),
    ],
)
def test_shape_arithmetic_is_gone(tf, keras, build, sizes, most, share, forbidden):
    model = build(tf, keras)
    plain, fixed = load_source(model), load_source(model, specialize=sizes)
    before, after = cleaned(plain), cleaned(fixed)
    assert "Shape" in before
    assert not forbidden & set(after)
    assert len(after) <= most
    assert len(after) < share * len(before)
    assert fixed.verification.worst < 1e-5


@pytest_tf
def test_a_saved_model_is_specialised_though_it_was_traced_with_open_dimensions(tf, keras, tmp_path):
    dilated(tf, keras).export(str(tmp_path / "m"), verbose=False)
    fixed = load_source(tmp_path / "m", specialize="x:1=64")
    assert shapes(fixed) == ([("batch", 64, 4)], [("batch", 64, 8)])
    assert len(cleaned(fixed)) <= 8
    assert {sample["x"].shape[1] for sample in fixed.samples} == {64}


@pytest_tf
def test_eye_like_of_combined_nms_is_a_constant_with_a_fixed_batch(tf, ops):
    """Trap 12: TensorRT has no EyeLike whose size is computed."""

    @tf.function(input_signature=[tf.TensorSpec([None, 20, 1, 4]), tf.TensorSpec([None, 20, 3])])
    def detect(boxes, scores):
        return tf.image.combined_non_max_suppression(boxes, scores, 5, 5)._asdict()

    plain, fixed = load_source(detect), load_source(detect, specialize="batch=2")
    assert ops(plain)["EyeLike"] == 1
    assert "EyeLike" not in cleaned(fixed)
    assert len(cleaned(fixed)) < len(cleaned(plain))
    assert shapes(fixed)[0] == [(2, 20, 1, 4), (2, 20, 3)]
    assert fixed.verification.worst == 0.0


@pytest_tf
def test_graph_defs_are_imported_anew(tf):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, None, 3], name="x")
        tf.nn.convolution(x, tf.ones([5, 3, 2]), dilations=[4], padding="SAME", name="y")
    definition = graph.as_graph_def()
    plain, fixed = load_source(definition), load_source(definition, specialize="x:0=2,x:1=50")
    assert shapes(fixed) == ([(2, 50, 3)], [(2, 50, 2)])
    assert "Shape" in cleaned(plain)
    assert len(cleaned(fixed)) <= 5 < len(cleaned(plain)) / 4


@pytest_tf
def test_dimensions_that_must_be_equal_are_fixed_together_and_others_keep_their_names(tf):
    @tf.function(input_signature=[tf.TensorSpec([None, None], name="a"), tf.TensorSpec([None, None], name="b")])
    def products(a, b):
        return a @ tf.transpose(b)

    assert shapes(load_source(products)) == ([("a_dim0", "a_dim1"), ("b_dim0", "a_dim1")], [("a_dim0", "b_dim0")])
    for name in ("a_dim1", "a:1", "b:1"):
        assert shapes(load_source(products, specialize={name: 6}))[0] == [("a_dim0", 6), ("b_dim0", 6)]
    assert shapes(load_source(products, specialize={"a_dim0": 4})) == (
        [(4, "a_dim1"), ("b_dim0", "a_dim1")],
        [(4, "b_dim0")],
    )
    with pytest.raises(InvalidParameterError, match=r"a_dim0 \(a:0\), a_dim1 \(a:1, b:1\), b_dim0 \(b:0\)"):
        load_source(products, specialize={"batch": 6})


@pytest_tf
def test_the_batch_of_a_keras_model_is_one(keras):
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    model = keras.Model([a, b], keras.layers.Concatenate()([a, b]))
    for name in ("batch", "a:0", "b:0"):
        assert shapes(load_source(model, specialize={name: 4})) == ([(4, 2), (4, 3)], [(4, 5)])


@pytest_tf
def test_samples_follow_or_contradict(tf):
    double = tf.function(lambda x: x * 2.0, input_signature=[tf.TensorSpec([None, None], name="x")])
    made = load_source(double, specialize={"x:1": 5})
    assert {sample["x"].shape[1] for sample in made.samples} == {5}
    taken = load_source(double, specialize={"x:1": 5}, samples=[np.ones((3, 5), np.float32)])
    assert shapes(taken)[0] == [("batch", 5)]
    with pytest.raises(InputError, match=r"sets dimension 1 of 'x' to 5, but sample 1 has shape \[3, 4\]"):
        load_source(double, specialize="x:1=5", samples=[np.ones((3, 5), np.float32), np.ones((3, 4), np.float32)])


@pytest_tf
def test_sizes_without_which_no_sample_fits(tf):
    """Two inputs, so that TensorFlow would be asked which dimensions are equal; it takes nothing but 48 columns."""
    spec = [tf.TensorSpec([None, None], name=name) for name in "ab"]
    weight = tf.ones([48, 2])
    project = tf.function(lambda a, b: (a @ weight) + (b @ weight), input_signature=spec)
    with pytest.raises(SourceError, match="no made-up sample input fits"):
        load_source(project)
    source = load_source(project, specialize="a:1=48,b:1=48")
    assert [s[1] for s in shapes(source)[0]] == [48, 48]
    assert source.verification.worst < 1e-6


@pytest_tf
def test_the_check_sees_the_fixed_sizes(tf):
    double = tf.function(lambda x: x * 2.0, input_signature=[tf.TensorSpec([None, None], name="x")])
    seen = []
    load_source(double, specialize="batch=3", check=lambda signature: seen.append(signature.inputs[0].shape))
    assert seen == [(3, None)]


@pytest_tf
def test_every_dimension_can_be_fixed_alone_and_with_another(tf):
    double = tf.function(lambda x: x * 2.0, input_signature=[tf.TensorSpec([None, None, None], name="x")])
    names = ("batch", "x_dim1", "x_dim2")
    for count in (1, 2):
        for chosen in itertools.combinations(range(3), count):
            source = load_source(double, specialize={names[axis]: axis + 4 for axis in chosen})
            assert shapes(source)[0] == [tuple(a + 4 if a in chosen else names[a] for a in range(3))]
            assert shapes(source)[1] == shapes(source)[0]
