"""What may be passed as inputs, and what is said about the rest."""

import re
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.errors import InputError
from rewriter.runtime.inputs import (
    bind,
    check_dtype,
    check_shape,
    describe,
    disagreement,
    is_on_device,
    is_tensorflow,
    iterate_samples,
    sample_feeds,
    to_array,
    to_device_feeds,
    to_feeds,
)
from rewriter.source import Signature

IMAGE = TensorSpec("image", TensorProto.FLOAT, ("batch", 3), "image_1")
COUNT = TensorSpec("count", TensorProto.INT64, ())
ONE = Signature((IMAGE,), ())
TWO = Signature((IMAGE, COUNT), ())


def image(rows=2):
    return np.ones((rows, 3), np.float32)


class Foreign:
    """A tensor of another library, known by a protocol only."""

    def __init__(self, array, protocol):
        if protocol == "array":
            self.__class__ = type("ArrayTensor", (), {"__array__": lambda self, dtype=None, copy=None: array})
        else:
            self.__class__ = type(
                "DlpackTensor",
                (),
                {
                    "__dlpack__": lambda self, **options: array.__dlpack__(**options),
                    "__dlpack_device__": lambda self: array.__dlpack_device__(),
                },
            )


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((image(), 1), {}),
        (((image(), 1),), {}),
        (([image(), 1],), {}),
        (({"count": 1, "image": image()},), {}),
        ((), {"count": 1, "image": image()}),
        ((image(),), {"count": 1}),
        (({"image": image()},), {"count": 1}),
    ],
)
def test_all_ways_to_give_two_inputs(args, kwargs):
    bound = bind(TWO, args, kwargs)
    assert list(bound) == ["image", "count"]
    feeds = to_feeds(TWO, bound)
    assert list(feeds) == ["image_1", "count"]
    np.testing.assert_array_equal(feeds["image_1"], image())
    assert feeds["count"].shape == ()


@pytest.mark.parametrize(
    "args", [(image(1),), ((image(1),),), ([image(1)],), ({"image": image(1)},), ([[1.0, 1.0, 1.0]],), ([(1, 1, 1)],)]
)
def test_all_ways_to_give_one_input(args):
    np.testing.assert_array_equal(to_feeds(ONE, bind(ONE, args, {}))["image_1"], image(1))


def test_any_mapping_is_one():
    inputs = types.MappingProxyType({"image": image(1)})
    np.testing.assert_array_equal(bind(ONE, (inputs,), {})["image"], image(1))


def test_a_list_of_arrays_is_no_data_for_one_input():
    with pytest.raises(InputError, match="2 inputs were given, the signature has 'image'"):
        bind(ONE, ([image(), image()],), {})


def test_no_inputs_at_all():
    assert bind(Signature((), ()), (), {}) == {}
    assert bind(Signature((), ()), ({},), {}) == {}
    with pytest.raises(InputError, match="1 input was given, the signature has no inputs"):
        bind(Signature((), ()), (image(),), {})


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing inputs 'image' (float32 [batch, 3]), 'count' (int64 [])"),
        ((image(),), {}, "missing input 'count' (int64 [])"),
        ((image(), 1, 2), {}, "3 inputs were given, the signature has 'image', 'count'"),
        ((), {"imgae": 1}, "unknown input 'imgae' (did you mean 'image'?): the signature has 'image', 'count'"),
        (({"zzz": 1},), {}, "unknown input 'zzz': the signature has 'image', 'count'"),
        (({3: 1},), {}, "unknown input 3: the signature has 'image', 'count'"),
        ((image(),), {"image": image()}, "input 'image' was given twice"),
    ],
)
def test_wrong_names_are_told(args, kwargs, message):
    with pytest.raises(InputError, match=re.escape(message)):
        bind(TWO, args, kwargs)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((2, 3)), "input 'image' has dtype float64, expected float32"),
        (np.ones((2, 3), np.int32), "input 'image' has dtype int32, expected float32"),
        (np.float64(1), "input 'image' has dtype float64, expected float32"),
        (np.ones(3, np.float32), "input 'image' has shape [3], expected rank 2: [batch, 3]"),
        (np.ones((2, 4), np.float32), "has shape [2, 4], expected [batch, 3]: dimension 1 must be 3"),
        ([["a", "b", "c"]], "holds str32 values that do not fit float32"),
        ([[1j, 2, 3]], "holds complex128 values that do not fit float32"),
        ([[1, 2, 3], [4]], "no array can be made of this list"),
        ([[1, 2]], "has shape [1, 2], expected [batch, 3]"),
        (None, "is a NoneType, expected an array or a tensor: float32 [batch, 3]"),
        ({1, 2}, "is a set, expected an array or a tensor"),
        (np.ma.masked_array(np.ones((2, 3), np.float32)), "is a masked array: fill it first"),
    ],
)
def test_wrong_values_are_told(value, message):
    with pytest.raises(InputError, match=re.escape(message)):
        to_array(value, IMAGE)


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (1, TensorProto.FLOAT, True),
        (True, TensorProto.INT32, True),
        (True, TensorProto.BOOL, True),
        (1, TensorProto.BOOL, False),
        (1.0, TensorProto.INT64, False),
        (255, TensorProto.UINT8, True),
        (256, TensorProto.UINT8, False),
        (-1, TensorProto.UINT64, False),
        (1 << 40, TensorProto.INT32, False),
        (1.5, TensorProto.FLOAT16, True),
        (1.5, TensorProto.BFLOAT16, True),
        (1.5, TensorProto.DOUBLE, True),
        ("a", TensorProto.STRING, True),
        (b"a", TensorProto.STRING, True),
        (1, TensorProto.STRING, False),
    ],
)
def test_python_values_keep_their_kind(value, dtype, fits):
    spec = TensorSpec("v", dtype, ())
    if fits:
        array = to_array(value, spec)
        assert array.shape == ()
        assert array.tolist() == (value.decode() if isinstance(value, bytes) else value)
    else:
        with pytest.raises(InputError, match="input 'v'"):
            to_array(value, spec)


def test_an_empty_list_is_an_empty_array():
    array = to_array([], TensorSpec("v", TensorProto.INT64, (None,)))
    assert (array.shape, array.dtype) == ((0,), np.int64)


def test_unknown_rank_takes_any():
    spec = TensorSpec("v", TensorProto.FLOAT, None)
    for shape in ((), (1,), (2, 0, 3)):
        assert to_array(np.zeros(shape, np.float32), spec).shape == shape


def test_numpy_arrays_are_not_copied():
    value = image()
    assert to_array(value, IMAGE) is value
    assert np.shares_memory(to_array(value[::-1], IMAGE), value)


def test_foreign_byte_order_is_put_right():
    array = to_array(image().astype(">f4"), IMAGE)
    assert array.dtype.isnative
    np.testing.assert_array_equal(array, image())


@pytest.mark.parametrize("protocol", ["array", "dlpack"])
def test_foreign_tensors_are_read_in_place(protocol):
    value = image()
    array = to_array(Foreign(value, protocol), IMAGE)
    np.testing.assert_array_equal(array, value)
    assert np.shares_memory(array, value)
    with pytest.raises(InputError, match="has dtype float64"):
        to_array(Foreign(np.ones((2, 3)), protocol), IMAGE)


def test_a_tensor_on_a_device_is_told():
    class Cuda:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("can't convert cuda:0 device type tensor to numpy.\nUse Tensor.cpu()")

    with pytest.raises(InputError, match="this Cuda cannot be read as an array: can't convert cuda:0") as caught:
        to_array(Cuda(), IMAGE)
    assert "\n" not in str(caught.value)


def with_device(kind, **more):
    """A tensor whose DLPack device has this number."""
    return types.SimpleNamespace(__dlpack_device__=lambda: (kind, 0), __dlpack__=None, **more)


class GradientTensor:
    """PyTorch's, on the CPU: the look at its CUDA array interface raises."""

    def __dlpack_device__(self):
        return 1, 0

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad")


def raising(error):
    def ask():
        raise error

    return types.SimpleNamespace(__dlpack_device__=ask)


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (with_device(2), True),
        (with_device(1), False),
        (with_device(3), False),  # page-locked memory of the host
        (with_device(10), False),
        (types.SimpleNamespace(__cuda_array_interface__={}), True),
        (GradientTensor(), False),
        (raising(BufferError("sparse")), False),
        (image(), False),
        (np.float32(1), False),
        ([1.0], False),
        (None, False),
        ("text", False),
    ],
)
def test_what_lies_on_a_device(value, answer):
    assert is_on_device(value) is answer


@pytest.mark.parametrize("value", [with_device(2), types.SimpleNamespace(__cuda_array_interface__={})])
def test_a_device_tensor_is_refused_where_arrays_are_read(value):
    words = "input 'image' lies on the GPU, but is read on the CPU here: pass a host array (float32 [batch, 3])"
    with pytest.raises(InputError, match=re.escape(words)):
        to_array(value, IMAGE)
    with pytest.raises(InputError, match=re.escape(f"sample 0: {words}")):
        next(sample_feeds(ONE, [value]))


def test_device_feeds_keep_what_lies_on_the_device():
    value = with_device(2)
    feeds = to_device_feeds(TWO, {"image": value, "count": 3})
    assert feeds["image_1"] is value
    assert feeds["count"].dtype == np.int64
    assert bind(TWO, ([value, 3],), {})["image"] is value
    with pytest.raises(InputError, match="input 'image' has dtype float64"):
        to_device_feeds(TWO, {"image": np.ones((1, 3)), "count": value})


def test_dtype_and_shape_are_checked_without_an_array():
    check_dtype(np.dtype(np.float32), IMAGE)
    check_shape((7, 3), IMAGE)
    check_shape((1, 2, 3), TensorSpec("v", TensorProto.FLOAT, None))
    with pytest.raises(InputError, match="input 'image' has dtype float16, expected float32: convert it first"):
        check_dtype(np.dtype(np.float16), IMAGE)
    with pytest.raises(InputError, match=re.escape("has shape [7, 4], expected [batch, 3]: dimension 1 must be 3")):
        check_shape((7, 4), IMAGE)
    with pytest.raises(InputError, match=re.escape("has shape [3], expected rank 2: [batch, 3]")):
        check_shape((3,), IMAGE)


def test_strings_are_called_strings():
    spec = TensorSpec("s", TensorProto.STRING, ("n",))
    assert describe(spec) == "string [n]"
    with pytest.raises(InputError, match="input 's' has dtype float32, expected string"):
        to_array(np.ones(1, np.float32), spec)
    with pytest.raises(InputError, match=re.escape("missing input 's' (string [n])")):
        bind(Signature((spec,), ()), (), {})


def test_strings_of_any_spelling():
    spec = TensorSpec("s", TensorProto.STRING, (None,))
    assert to_array(np.array(["a", "b"]), spec).tolist() == ["a", "b"]
    assert to_array(np.array([b"a"]), spec).tolist() == ["a"]
    mixed = to_array(np.array(["a", "\u00e9".encode()], object), spec)
    assert (mixed.dtype, mixed.tolist()) == (object, ["a", "\u00e9"])
    assert to_array(np.array([b"a\xff"], object), spec).tolist() == ["a\udcff"]  # an island gets the very bytes again
    with pytest.raises(InputError, match="has dtype float32, expected"):
        to_array(np.ones(1, np.float32), spec)


@pytest.mark.parametrize("value", ["\ud800", ["a", "b\ud800c"], np.array(["\ud800"]), np.array(["\ud800"], object)])
def test_half_a_surrogate_pair_is_refused(value):
    spec = TensorSpec("s", TensorProto.STRING, None)
    with pytest.raises(InputError, match=r"input 's' holds '.*\\ud800.*, with half of a surrogate pair"):
        to_array(value, spec)


def test_is_tensorflow_asks_only_a_loaded_module(monkeypatch):
    class Tensor:
        pass

    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(Tensor=Tensor))
    assert is_tensorflow(Tensor())
    assert not is_tensorflow(image())
    monkeypatch.delitem(sys.modules, "tensorflow")
    assert not is_tensorflow(Tensor())
    assert "tensorflow" not in sys.modules


def test_samples_are_bound_one_by_one():
    samples = [(image(1), 1), {"count": 2, "image": image(2)}, [image(3), 3]]
    feeds = list(sample_feeds(TWO, samples))
    assert [f["image_1"].shape[0] for f in feeds] == [1, 2, 3]
    assert [int(f["count"]) for f in feeds] == [1, 2, 3]
    assert [f["image_1"].shape for f in sample_feeds(ONE, [image(5), (image(1),)])] == [(5, 3), (1, 3)]


def test_the_wrong_sample_is_named():
    feeds = sample_feeds(ONE, iter([image(), image().astype(np.float64)]))
    next(feeds)
    with pytest.raises(InputError, match="sample 1: input 'image' has dtype float64"):
        next(feeds)


@given(
    hnp.arrays(st.sampled_from([np.float32, np.int64, np.uint8, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=3))
)
def test_nested_lists_give_what_the_array_gives(array):
    kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "u": TensorProto.UINT8, "b": TensorProto.BOOL}
    spec = TensorSpec("v", kinds[array.dtype.kind], None)
    np.testing.assert_array_equal(to_array(array.tolist(), spec), to_array(array, spec))


@pytest.mark.tensorflow
def test_tensorflow_tensors_are_arrays():
    import tensorflow as tf

    np.testing.assert_array_equal(to_array(tf.ones((2, 3)), IMAGE), image())
    np.testing.assert_array_equal(to_array(tf.Variable(tf.ones((2, 3))), IMAGE), image())
    spec = TensorSpec("v", TensorProto.BFLOAT16, (2,))
    assert to_array(tf.ones(2, tf.bfloat16), spec).tolist() == [1, 1]
    with pytest.raises(InputError, match="has dtype float64"):
        to_array(tf.ones((2, 3), tf.float64), IMAGE)
    with pytest.raises(InputError, match=r"cannot be read as an array|expected an array"):
        to_array(tf.ragged.constant([[1.0], [1.0, 2.0]]), IMAGE)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "input_fn returned None: it must yield inputs (is a `yield` missing?)"),
        (3, "input_fn returned a int: it must yield inputs (is a `yield` missing?)"),
        (np.array(1.0), "input_fn returned a ndarray: it must yield inputs (is a `yield` missing?)"),
        ({"image": image()}, "input_fn returned a dict: it must yield inputs, so yield it or return it in a list"),
        ("image", "input_fn returned a str: it must yield inputs, so yield it or return it in a list"),
    ],
)
def test_an_input_fn_that_yields_nothing_to_iterate_over_is_told(value, message):
    with pytest.raises(InputError) as caught:
        iterate_samples(value)
    assert str(caught.value) == message


def test_what_an_input_fn_may_return():
    def generate():
        yield 1
        yield 2

    for value in (generate(), [1, 2], (1, 2), iter([1, 2]), map(int, "12"), {1: None, 2: None}.keys()):
        assert list(iterate_samples(value)) == [1, 2]
    assert list(iterate_samples([])) == []


def test_errors_of_a_generator_come_through_when_it_runs():
    def generate():
        yield 1
        raise TypeError("inner")

    samples = iterate_samples(generate())
    assert next(samples) == 1
    with pytest.raises(TypeError, match="inner"):
        next(samples)


@pytest.mark.parametrize("strange", [1, None, 2.5, ["a"]])
def test_object_arrays_hold_texts_only(strange):
    values = np.empty(2, dtype=object)
    values[:] = ["a", strange]
    with pytest.raises(
        InputError, match=re.escape(f"input 's' holds {strange!r} ({type(strange).__name__}), expected")
    ):
        to_array(values, TensorSpec("s", TensorProto.STRING, ("n",)))


def test_an_error_of_a_foreign_array_names_the_input():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise KeyError("weights")

    spec = TensorSpec("v", TensorProto.FLOAT, ("n",))
    for value in (Broken(), [Broken()]):
        with pytest.raises(InputError, match=r"input 'v': .*'weights'"):
            to_array(value, spec)


def test_a_dimension_with_two_sizes_is_told():
    signature = Signature(
        (TensorSpec("x", TensorProto.FLOAT, ("batch", 8)), TensorSpec("ids", TensorProto.INT64, ("batch", None))), ()
    )
    assert disagreement(signature, {"x": (3, 8), "ids": (2, 1)}) == (
        "dimension 'batch' is 3 in input 'x', but 2 in input 'ids'"
    )
    for fine in ({"x": (3, 8), "ids": (3, 2)}, {"x": (3, 8)}, {"x": (3, 8), "ids": None}, {"x": (3, 8), "ids": (2,)}):
        assert disagreement(signature, fine) == ""
