import numpy as np
import pytest
from onnx import TensorProto as T

from passes.segments import TensorSpec
from rewriter.errors import InvalidParameterError
from rewriter.shapes.sampling import batch_input_fn, profile_input_fn, shaped_input_fn, unknown_dimensions
from rewriter.source import Signature

TOKENS = TensorSpec("tokens", T.INT32, ("batch", "length"))
IMAGE = TensorSpec("image", T.FLOAT, ("batch", 4, 4, 3))
SIGNATURE = Signature((TOKENS, IMAGE), ())
BASE = ({"tokens": np.arange(10, dtype=np.int32).reshape(2, 5), "image": np.ones((2, 4, 4, 3), np.float32)},)


def shapes_of(input_fn):
    return [{name: value.shape for name, value in sample.items()} for sample in input_fn()]


def test_default_is_batches_one_and_eight_with_the_known_length():
    found = shapes_of(shaped_input_fn(SIGNATURE, {}, BASE))
    assert found == [
        {"tokens": (1, 5), "image": (1, 4, 4, 3)},
        {"tokens": (8, 5), "image": (8, 4, 4, 3)},
    ]


def test_a_symbol_has_one_size_in_a_sample():
    found = shapes_of(shaped_input_fn(SIGNATURE, {"tokens": [(3, 7), (6, 9)]}, ()))
    assert found == [{"tokens": (3, 7), "image": (3, 4, 4, 3)}, {"tokens": (6, 9), "image": (6, 4, 4, 3)}]
    with pytest.raises(InvalidParameterError, match="'batch' is 3 in input 'tokens', but 2 in input 'image'"):
        shaped_input_fn(SIGNATURE, {"tokens": [(3, 7)], "image": [(2, 4, 4, 3)]})


def test_values_come_from_the_known_sample():
    (sample,) = shaped_input_fn(SIGNATURE, {"tokens": [(4, 5)]}, BASE)()
    assert sample["tokens"].dtype == np.int32
    assert sample["tokens"].max() == 9
    np.testing.assert_array_equal(sample["tokens"][:2], BASE[0]["tokens"])


def test_made_up_values_have_the_right_dtype():
    signature = Signature(tuple(TensorSpec(f"i{t}", t, (2,)) for t in (T.BOOL, T.UINT8, T.FLOAT16, T.STRING)), ())
    (sample,) = shaped_input_fn(signature, {})()
    assert [v.dtype.name for v in sample.values()] == ["bool", "uint8", "float16", "object"]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"images": [(1, 4, 4, 3)]}, "names? the input 'images', the signature has tokens, image"),
        ({"image": [(1, 4, 4, 1)]}, r"shape 1x4x4x1 does not fit input 'image' \(batchx4x4x3\)"),
        ({"image": [(1, 4)]}, "does not fit"),
        ({"tokens": [(1, 2), (2, 2)], "image": [(1, 4, 4, 3)] * 3}, "same number of shapes"),
        ({"image": [(1, 4, 4, 3)]}, r"dimension 1 \(length\) of input 'tokens' is not fixed"),
    ],
)
def test_wrong_shapes_are_named(shapes, message):
    with pytest.raises(InvalidParameterError, match=message):
        shaped_input_fn(SIGNATURE, shapes)


def test_static_batches():
    signature = Signature((IMAGE,), ())
    assert shapes_of(batch_input_fn(signature, 4)) == [{"image": (1, 4, 4, 3)}, {"image": (4, 4, 4, 3)}]
    assert shapes_of(batch_input_fn(signature, 1)) == [{"image": (1, 4, 4, 3)}]
    with pytest.raises(InvalidParameterError, match=r"dimension 1 \(length\) of input 'tokens'"):
        batch_input_fn(SIGNATURE, 4)


def test_unknown_dimensions_are_told_in_order():
    assert unknown_dimensions(SIGNATURE) == [
        "dimension 0 (batch) of input 'tokens'",
        "dimension 1 (length) of input 'tokens'",
        "dimension 0 (batch) of input 'image'",
    ]


def test_three_shapes_are_a_profile():
    made = profile_input_fn(SIGNATURE, {"tokens": [(1, 2), (4, 8), (16, 64)]})
    assert made.optimum == 1
    assert [s["image"] for s in shapes_of(made)] == [(1, 4, 4, 3), (4, 4, 4, 3), (16, 4, 4, 3)]


def test_the_optimum_may_be_an_end():
    for given, number in (([(1, 8), (1, 8), (9, 8)], 0), ([(1, 8), (9, 8), (9, 8)], 1), ([(2, 8)] * 3, 0)):
        made = profile_input_fn(SIGNATURE, {"tokens": given})
        assert made.optimum == number
        assert made.plans[number]["tokens"] == given[1]


def test_inputs_with_one_shape_keep_it():
    made = profile_input_fn(SIGNATURE, {"image": [(2, 4, 4, 3)], "tokens": [(2, 3), (2, 5), (2, 9)]})
    assert (made.optimum, made.plans[1]) == (1, {"tokens": (2, 5), "image": (2, 4, 4, 3)})


def test_other_numbers_of_shapes_are_no_profile():
    for given in ([(3, 8)], [(9, 8), (1, 8)], [(9, 8), (1, 8), (2, 8), (4, 8)]):
        assert profile_input_fn(SIGNATURE, {"tokens": given}).optimum is None
    assert profile_input_fn(SIGNATURE, {}, BASE).optimum is None


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {"tokens": [(1, 8), (32, 8), (8, 8)]},
            "three shapes of an input are its minimum, optimum and maximum, but dimension 0 of input 'tokens' does not "
            "grow: 1x8, 32x8, 8x8",
        ),
        ({"tokens": [(1, 8), (4, 6), (8, 8)]}, "dimension 1 of input 'tokens' does not grow"),
        ({"tokens": [(1, 8), (4, 8, 1), (8, 8)]}, "shape 4x8x1 does not fit input 'tokens'"),
        ({"tokens": [], "image": [(1, 4, 4, 3)]}, "the shapes of input 'tokens' must be one shape or some"),
        ({"tokens": [()]}, r"shape \[\] does not fit input 'tokens'"),
        ({"token": [(1, 8), (4, 8), (8, 8)]}, "shapes name the input 'token', the signature has tokens, image"),
        ({"tokens": [(1, 8), (4, 8), (8, 8)], "image": [(1, 4, 4, 3)] * 2}, "same number of shapes"),
        (
            {"tokens": [(1, 8), (4, 8), (8, 8)], "image": [(2, 4, 4, 3)]},
            "'batch' is 1 in input 'tokens', but 2 in input 'image'",
        ),
    ],
)
def test_wrong_profiles_are_named(shapes, message):
    with pytest.raises(InvalidParameterError, match=message):
        profile_input_fn(SIGNATURE, shapes)


def test_ranks_of_a_profile_agree():
    signature = Signature((TensorSpec("any", T.FLOAT, None),), ())
    with pytest.raises(InvalidParameterError, match="shapes of input 'any' differ in rank: 1, 2x2, 3"):
        profile_input_fn(signature, {"any": [(1,), (2, 2), (3,)]})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"tokens": [8]}, r"shape 8 does not fit input 'tokens' \(batchxlength\)"),
        ({"tokens": [("a", 8)]}, r"the shapes of input 'tokens' must be one shape or some, not \[\('a', 8\)\]"),
        ({"tokens": [(1.5, 8)]}, "must be one shape or some"),
        ({"tokens": [(None, 8)]}, "must be one shape or some"),
        ({"tokens": [(-1, 8)]}, "must be one shape or some"),
        ({"tokens": "1x8"}, "must be one shape or some, not '1x8'"),
        ({"tokens": 8}, "must be one shape or some, not 8"),
        ({"tokens": None}, "must be one shape or some, not None"),
        ([1], "shapes must be a dict of input name to shape, not list"),
        ("tokens", "shapes must be a dict of input name to shape, not str"),
        ({3: [(1, 8)]}, "shapes name the input 3, the signature has tokens, image"),
    ],
)
@pytest.mark.parametrize("make", [profile_input_fn, shaped_input_fn])
def test_what_is_no_shape_is_told(make, shapes, message):
    with pytest.raises(InvalidParameterError, match=message):
        make(SIGNATURE, shapes)


def test_one_shape_needs_no_list():
    wanted = [{"tokens": (2, 3), "image": (2, 4, 4, 3)}]
    for given in ((2, 3), [2, 3], [(2, 3)], [[2, 3]], np.array([2, 3]), (size for size in (2, 3))):
        assert shapes_of(profile_input_fn(SIGNATURE, {"tokens": given})) == wanted
