"""Shapes of a warm-up: from the user, from the signature, from the engines' profiles."""

import dataclasses
import re

import numpy as np
import pytest
from onnx import TensorProto

from passes.segments import TensorSpec
from rewriter.artifact.manifest import EngineEntry
from rewriter.backends.base import InputProfile
from rewriter.errors import InputError, InvalidParameterError
from rewriter.runtime.warmup import warmup_feeds, warmup_samples
from rewriter.source import Signature


def signature(**shapes):
    return Signature(tuple(TensorSpec(n, TensorProto.FLOAT, s, f"{n}_tensor") for n, s in shapes.items()), ())


def engine(op, *profiles):
    """An engine whose i-th profile has the i-th optimum of each tensor."""
    made = tuple({f"{n}_tensor": InputProfile((1, 1), s, (99, 99)) for n, s in p.items()} for p in profiles)
    return EngineEntry(op, "k", 4, "0" * 64, "tensorrt_rtx", "1", profiles=made)


def shapes_of(samples):
    return [{name: array.shape for name, array in sample.items()} for sample in samples]


X = signature(x=("batch", 4))


@pytest.mark.parametrize("given", [(2, 4), [2, 4], np.array([2, 4]), [(2, 4)], [[2, 4]]])
def test_one_shape_in_any_spelling(given):
    assert shapes_of(warmup_samples(X, (), {"x": given})) == [{"x": (2, 4)}]


def test_several_shapes_and_symbols_that_inputs_share():
    both = signature(x=("batch", 4), y=("batch",), z=(3,))
    samples = warmup_samples(both, (), {"x": [(2, 4), (5, 4)]})
    assert shapes_of(samples) == [{"x": (2, 4), "y": (2,), "z": (3,)}, {"x": (5, 4), "y": (5,), "z": (3,)}]


def test_fixed_shapes_need_no_words():
    assert shapes_of(warmup_samples(signature(x=(2, 3), s=()), (), None)) == [{"x": (2, 3), "s": ()}]
    assert warmup_samples(Signature((), ()), (), None) == [{}]


def test_optima_of_the_profiles():
    engines = [engine("TRTEngineOp_000", {"x": (1, 4)}, {"x": (8, 4)}), engine("TRTEngineOp_001", {"inner": (7, 7)})]
    assert shapes_of(warmup_samples(X, engines, None)) == [{"x": (1, 4)}, {"x": (8, 4)}]
    # A second engine of the node has profiles of its own.
    engines = [engine("TRTEngineOp_000", {"x": (1, 4)}), engine("TRTEngineOp_000", {"x": (9, 4)})]
    assert shapes_of(warmup_samples(X, engines, None)) == [{"x": (1, 4)}, {"x": (9, 4)}]


def test_only_engines_that_run_here_say_what_is_warmed_up():
    here, old = (
        dataclasses.replace(engine("TRTEngineOp_000", {"x": (rows, 4)}), key=key) for rows, key in ((2, "a"), (9, "b"))
    )
    node = {"engines": {"a": "built for this GPU"}, "others": {"b": "it was built by another version"}}
    feeds = warmup_feeds(X, [old, here], None, None, {"TRTEngineOp_000": node})
    assert [array["x_tensor"].shape for array in feeds] == [(2, 4)]
    assert [array["x_tensor"].shape for array in warmup_feeds(X, [old, here], None, None)] == [(9, 4), (2, 4)]


def test_engines_that_read_different_inputs_add_up():
    engines = [engine("TRTEngineOp_000", {"x": (2, 4)}), engine("TRTEngineOp_001", {"y": (5, 6)})]
    two = signature(x=("a", 4), y=("b", 6))
    assert shapes_of(warmup_samples(two, engines, None)) == [{"x": (2, 4), "y": (5, 6)}]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            None,
            "warmup needs the shape of input 'x' [batch, 4], for dimension 0 is not fixed: give it, for example sha",
        ),
        ({}, "for example shapes={'x': (1, 4)}"),
        ({"y": (2, 4)}, "shapes name the input 'y', the signature has x"),
        ({"x": (2, 5)}, "shape 2x5 does not fit input 'x' (batchx4)"),
        ({"x": (2,)}, "shape 2 does not fit input 'x'"),
        ({"x": "2x4"}, "the shapes of input 'x' must be one shape or some, not '2x4'"),
        ({"x": 2}, "the shapes of input 'x' must be one shape or some, not 2"),
        ({"x": []}, "the shapes of input 'x' must be one shape or some, not []"),
        ({"x": (-1, 4)}, "the shapes of input 'x' must be one shape or some, not (-1, 4)"),
        ([(2, 4)], "shapes must be a dict of input name to shape, not list"),
    ],
)
def test_what_is_refused(shapes, message):
    with pytest.raises(InvalidParameterError, match=re.escape(message)):
        warmup_samples(X, (), shapes)


def test_an_unknown_rank_is_named():
    with pytest.raises(InvalidParameterError, match=r"input 'x' of any shape, for its rank is not fixed"):
        warmup_samples(signature(x=None), (), None)
    assert shapes_of(warmup_samples(signature(x=None), (), {"x": (2, 3)})) == [{"x": (2, 3)}]


def test_samples_of_the_caller_are_run_instead():
    given = [np.zeros((2, 4), np.float32), {"x": np.ones((3, 4), np.float32)}]
    feeds = warmup_feeds(X, (), None, given)
    assert [feed["x_tensor"].shape for feed in feeds] == [(2, 4), (3, 4)]
    with pytest.raises(InvalidParameterError, match="shapes or samples, not both"):
        warmup_feeds(X, (), {"x": (2, 4)}, given)
    with pytest.raises(InvalidParameterError, match="samples hold nothing"):
        warmup_feeds(X, (), None, [])
    with pytest.raises(InputError, match="sample 1: "):
        warmup_feeds(X, (), None, [given[0], np.zeros(3, np.int32)])
