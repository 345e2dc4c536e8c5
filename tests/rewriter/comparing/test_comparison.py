"""Differences of outputs, as values."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rewriter.comparing.comparison import Pair, compare, difference, spread


def diff(reference, result):
    return difference("y", [np.asarray(reference)], [np.asarray(result)])


def test_figures_of_floats():
    found = diff(np.float32([1, -4, 0]), np.float32([1, -3, 1]))
    assert (found.max_abs, found.max_rel, found.elements, found.fault) == (1.0, 0.25, 3, "")
    assert found.mean_abs == pytest.approx(2 / 3)
    assert found.cosine == pytest.approx(13 / math.sqrt(17 * 11))
    assert found.agreement is None


def test_relative_to_the_largest_value_of_all_samples():
    found = difference("y", [np.float32([1]), np.float32([100])], [np.float32([2]), np.float32([100])])
    assert found.max_rel == pytest.approx(0.01)


def test_agreement_of_classes_and_of_equal_values():
    a, b = np.float32([[0, 1, 2], [5, 1, 2]]), np.float32([[0, 1, 2], [1, 5, 2]])
    assert diff(a, b).agreement == 0.5
    assert difference("y", [a, a], [a, b]).agreement == 0.75
    assert diff(a[:, :1], b[:, :1]).agreement is None
    assert diff(a.astype(np.int64), b.astype(np.int64)).agreement == pytest.approx(4 / 6)
    assert diff(np.array([True, False]), np.array([True, True])).agreement == 0.5
    assert diff(np.array(["a", "b"], object), np.array([b"a", b"c"], object)).agreement == 0.5


@pytest.mark.parametrize(
    ("reference", "result", "fault"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), "has shape [3, 2] instead of [2, 3]"),
        (np.float32([1, np.nan]), np.float32([1, 2]), "has NaN or infinity in 1 other place(s)"),
        (np.float32([1, np.inf]), np.float32([1, -np.inf]), "has NaN or infinity in 1 other place(s)"),
        (np.array(["a", "b"], object), np.array([b"a", b"c"], object), "has 1 other texts"),
        (np.array(["a"], object), np.float32([1]), "holds float32 values instead of object"),
    ],
)
def test_faults_are_infinitely_far(reference, result, fault):
    found = diff(reference, result)
    assert found.fault == fault
    assert found.max_rel == math.inf


@pytest.mark.parametrize(
    ("reference", "result", "relative"),
    [
        (np.float32([np.nan, np.inf, 2]), np.float32([np.nan, np.inf, 1]), 0.5),
        (np.float32([0, 0]), np.float32([0, 0]), 0.0),
        (np.float32([0, 0]), np.float32([0, 1e-9]), math.inf),
        (np.float32([]), np.float32([]), 0.0),
        (np.array([True, False]), np.array([True, True]), 1.0),
        (np.int64([4, 2]), np.int64([3, 2]), 0.25),
        (np.array(["a"], object), np.array([b"a"], object), 0.0),
        (np.array([1, 2], ml_dtypes.bfloat16), np.array([1, 3], ml_dtypes.bfloat16), 0.5),
        (np.complex64([3 + 4j]), np.complex64([3 + 3j]), 0.2),
        (np.float32([3e38]), np.float32([-3e38]), 2.0),
        (np.float32(2), np.float32(1), 0.5),
    ],
)
def test_relative_difference(reference, result, relative):
    found = diff(reference, result)
    assert found.max_rel == pytest.approx(relative)
    assert not found.fault


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4)), st.floats(0.25, 4))
def test_nothing_differs_from_itself_and_scale_does_not_matter(array, factor):
    assert diff(array, array).max_rel == 0.0
    finite = np.nan_to_num(array, posinf=1, neginf=-1).astype(np.float64) + 0.0
    other = finite[..., ::-1]
    assert diff(finite * factor, other * factor).max_rel == pytest.approx(diff(finite, other).max_rel)


def test_spread_counts_what_is_not_finite():
    found = spread("native", "y", [np.float32([[1, np.nan]]), np.float32([[np.inf, 4]])])
    assert (found.minimum, found.maximum, found.mean) == (1.0, 4.0, 2.5)
    assert (found.nans, found.infinities, found.shape, found.dtype) == (1, 1, (1, 2), "float32")
    assert spread("native", "y", [np.float32([np.nan])]).mean is None
    assert spread("native", "y", [np.array(["a"], object)]).dtype == "string"


def test_compare_runs_every_sample_through_every_runner():
    runners = {"source": lambda x: {"y": x["x"] * 2}, "native": lambda x: {"y": x["x"] * 2.002}}
    samples = [{"x": np.float32([1, 2])}, {"x": np.float32([[4]])}]
    found = compare(
        runners, samples, [Pair("source", "native", 1e-4), Pair("source", "source")], words={"source": "a.onnx"}
    )
    assert not found.passed
    assert [pair.passed for pair in found.pairs] == [False, True]
    assert found.pairs[0].worst == pytest.approx(1e-3, rel=1e-3)
    assert found.runners == {"source": "a.onnx", "native": "native"}
    assert found.samples == ({"x": (2,)}, {"x": (1, 1)})
    assert [(s.runner, s.maximum) for s in found.spreads] == [("source", 8.0), ("native", pytest.approx(8.008))]


def test_what_the_figures_do_not_show_is_noted():
    runners = {
        "a": lambda x: {"full": x["x"], "empty": x["x"][:0]},
        "b": lambda x: {"full": x["x"], "empty": x["x"][:0]},
    }
    found = compare(runners, [{"x": np.zeros((2, 4), np.float32)}], [Pair("a", "b", 1e-3)], top_k=(1, 5), notes=["n"])
    assert found.notes == (
        "n",
        "no value was compared of empty: empty in every sample",
        "top-5: no output has rows of more scores (floating point, rank 2 or more) than that",
    )


def test_json_has_no_number_that_json_lacks():
    runners = {"a": lambda x: {"y": np.float32([1])}, "b": lambda x: {"y": np.float32([np.nan])}}
    data = compare(runners, [{}], [Pair("a", "b", 1.0)]).to_dict()
    again = json.loads(json.dumps(data, allow_nan=False))
    assert again["passed"] is False
    assert again["pairs"][0]["worst"] == "inf"
    assert again["pairs"][0]["differences"][0]["max_rel"] == "inf"
    assert again["spreads"][1]["nans"] == 1


def test_nothing_to_compare():
    with pytest.raises(ValueError, match="0 samples"):
        compare({"a": dict}, [], [])
    with pytest.raises(ValueError, match="unknown runners"):
        compare({"a": dict}, [{}], [Pair("a", "b")])
