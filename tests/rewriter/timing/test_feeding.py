"""What an artifact is timed on."""

import numpy as np
import pytest
from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.artifact.manifest import EngineEntry
from rewriter.backends.base import InputProfile
from rewriter.errors import InputError, InvalidParameterError
from rewriter.source import Signature
from rewriter.timing.feeding import items_of, samples_for, shape_words


def signature(**shapes):
    return Signature(tuple(TensorSpec(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()), ())


def engine(tensor, *shapes):
    """An engine with one profile of one input."""
    profile = {tensor: InputProfile(*shapes)}
    return EngineEntry("E", "00", 1, "0" * 64, "tensorrt_rtx", "1", profiles=(profile,))


def shapes_of(samples):
    return [{name: value.shape for name, value in sample.items()} for sample in samples]


def test_fixed_shapes_are_one_sample():
    assert shapes_of(samples_for(signature(x=(2, 3)), ())) == [{"x": (2, 3)}]


def test_an_open_batch_without_engines():
    assert shapes_of(samples_for(signature(x=("N", 3)), ())) == [{"x": (1, 3)}, {"x": (8, 3)}]


def test_engines_say_what_they_are_tuned_for():
    entry = engine("x", (1, 3), (5, 3), (9, 3))
    assert shapes_of(samples_for(signature(x=("N", 3)), (entry,))) == [{"x": (5, 3)}]
    inner = engine("t", (1,), (5,), (9,))
    assert shapes_of(samples_for(signature(x=("N", 3)), (inner,))) == [{"x": (1, 3)}, {"x": (8, 3)}]
    with pytest.raises(InvalidParameterError, match="--shapes x"):
        samples_for(signature(x=("N", "T")), (inner,))


def test_batch_sizes_fill_first_dimensions_only():
    found = samples_for(signature(x=("N", 3), y=("N",), size=(), fixed=(4, 2)), (), batch_sizes=(2, 7))
    assert shapes_of(found) == [
        {"x": (2, 3), "y": (2,), "size": (), "fixed": (4, 2)},
        {"x": (7, 3), "y": (7,), "size": (), "fixed": (4, 2)},
    ]


@pytest.mark.parametrize(
    ("shapes", "sizes", "words"),
    [
        ({"x": ("N", "T")}, (1,), "first dimensions only"),
        ({"x": None}, (1,), "first dimensions only"),
        ({"x": (1, 3)}, (1,), "leave it out"),
        ({"x": ("N", 3)}, (0,), "at least 1"),
    ],
)
def test_batch_sizes_that_cannot_be_obeyed(shapes, sizes, words):
    with pytest.raises(InvalidParameterError, match=words):
        samples_for(signature(**shapes), (), batch_sizes=sizes)


def test_the_users_own_inputs_and_shapes():
    x = np.ones((2, 3), np.float32)
    (sample,) = samples_for(signature(x=("N", 3)), (), given=[{"x": x}])
    np.testing.assert_array_equal(sample["x"], x)
    assert shapes_of(samples_for(signature(x=("N", 3)), (), shapes={"x": ((4, 3), (6, 3))})) == [
        {"x": (4, 3)},
        {"x": (6, 3)},
    ]
    with pytest.raises(InputError, match="unknown input 'z'"):
        samples_for(signature(x=("N", 3)), (), given=[{"z": x}])
    with pytest.raises(InvalidParameterError, match="give one of them"):
        samples_for(signature(x=("N", 3)), (), given=[{"x": x}], batch_sizes=(1,))


@pytest.mark.parametrize(
    ("shapes", "given", "items"),
    [
        ({"x": ("N", 3)}, {"x": (5, 3)}, 5),
        ({"x": ("N", 3), "table": (100, 2)}, {"x": (5, 3), "table": (100, 2)}, 5),
        ({"x": (8, 3)}, {"x": (8, 3)}, 8),
        ({"x": (8, 3), "y": (4, 3)}, {"x": (8, 3), "y": (4, 3)}, 1),
        ({"x": ()}, {"x": ()}, 1),
        ({"x": None}, {"x": (6, 2)}, 6),
        ({}, {}, 1),
    ],
)
def test_items_are_rows_of_the_batch(shapes, given, items):
    sample = {name: np.zeros(shape, np.float32) for name, shape in given.items()}
    assert items_of(signature(**shapes), sample) == items


def test_shapes_in_words():
    assert shape_words({"x": np.zeros((2, 3)), "n": np.float32(1)}) == "x 2x3, n scalar"
