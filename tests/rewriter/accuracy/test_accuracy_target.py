"""What a target accepts, how it judges, and what it refuses."""

import math

import numpy as np
import pytest

from rewriter.accuracy.target import AccuracyTarget
from rewriter.errors import InvalidParameterError

X = np.zeros((2, 3), np.float32)


def outputs(*arrays):
    return [{"y": np.asarray(array, np.float32)} for array in arrays]


def share(found):
    return float(np.mean([o["y"].argmax(-1).mean() for o in found]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of max_rel_diff, max_drop, minimum, not none"),
        ({"max_rel_diff": 0.1, "minimum": 0.5, "metric": share}, "not max_rel_diff and minimum"),
        ({"max_rel_diff": -0.1}, "max_rel_diff must be a finite number of at least 0, not -0.1"),
        ({"max_rel_diff": math.nan}, "not nan"),
        ({"max_rel_diff": True}, "not True"),
        ({"max_rel_diff": "1e-3"}, "not '1e-3'"),
        ({"max_rel_diff": 0.1, "metric": share}, "metric does not go with max_rel_diff"),
        ({"max_drop": 0.1}, "metric is needed for max_drop"),
        ({"minimum": 0.1}, "metric is needed for minimum"),
        ({"minimum": math.inf, "metric": share}, "minimum must be a finite number, not inf"),
        ({"minimum": 0.1, "metric": 3}, "metric must be a function, not 3"),
        ({"data": X, "max_rel_diff": 1}, "put the array into a list"),
        ({"data": {"x": X}, "max_rel_diff": 1}, "not a dict"),
        ({"data": 3, "max_rel_diff": 1}, "not a int"),
        ({"data": None, "max_rel_diff": 1}, "not a NoneType"),
        ({"data": lambda a: [a], "max_rel_diff": 1}, "AccuracyTarget: data must take no arguments"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(InvalidParameterError, match=message) as caught:
        AccuracyTarget(**{"data": [X], **arguments})
    assert "\n" not in str(caught.value)


def test_goals_are_keywords_and_the_value_is_frozen():
    with pytest.raises(TypeError):
        AccuracyTarget([X], 0.1)
    target = AccuracyTarget([X], max_rel_diff=1e-3)
    with pytest.raises(AttributeError):
        target.max_rel_diff = 1
    assert target.text == "outputs within a relative difference of 0.001"
    assert repr(
        target
    ) == "AccuracyTarget(max_rel_diff=0.001, metric=None, max_drop=None, minimum=None)" or "data" not in repr(target)


def test_data_is_a_list_a_function_or_an_iterator():
    assert AccuracyTarget([X, (X, X), {"x": X}], max_rel_diff=1).samples()[0] is X
    assert len(AccuracyTarget(lambda: iter([X, X]), max_rel_diff=1).samples()) == 2
    once = AccuracyTarget(iter([X]), max_rel_diff=1)
    assert len(once.samples()) == 1
    with pytest.raises(InvalidParameterError, match="was read already"):
        once.samples()
    with pytest.raises(InvalidParameterError, match="is a `yield` missing"):
        AccuracyTarget(lambda: None, max_rel_diff=1).samples()


def test_relative_difference_of_the_worst_output_over_all_inputs():
    target = AccuracyTarget([X], max_rel_diff=0.1)
    native = [{"y": np.float32([1, 2]), "z": np.float32([10])}, {"y": np.float32([-4, 0]), "z": np.float32([10])}]
    lowered = [{"y": np.float32([1, 2.2]), "z": np.float32([10])}, {"y": np.float32([-4, 0]), "z": np.float32([11.5])}]
    judgement = target.judge(native, lowered)
    assert not judgement.passed
    assert judgement.value == pytest.approx(0.15)
    assert judgement.excess == pytest.approx(0.05)
    assert judgement.text == "output 'z' differs by 0.15, relative to its largest value (limit 0.1)"
    assert target.judge(native, native).passed


def test_overflow_counts_as_infinitely_far():
    target = AccuracyTarget([X], max_rel_diff=0.1)
    judgement = target.judge(outputs([1, 2]), outputs([1, np.nan]))
    assert not judgement.passed
    assert judgement.excess == math.inf
    assert "NaN or infinity in 1 other place" in judgement.text


def test_drop_and_minimum_of_a_metric():
    native, lowered = outputs([[0, 1], [0, 1]]), outputs([[0, 1], [1, 0]])
    drop = AccuracyTarget([X], metric=share, max_drop=0.4).judge(native, lowered)
    assert (drop.passed, drop.value, drop.excess) == (False, 0.5, pytest.approx(0.1))
    assert drop.text == "the metric goes from 1 to 0.5 (a drop of 0.4 is allowed)"
    assert AccuracyTarget([X], metric=share, max_drop=0.5).judge(native, lowered).passed
    assert AccuracyTarget([X], metric=share, max_drop=0).judge(lowered, native).passed, "better is no drop"
    least = AccuracyTarget([X], metric=share, minimum=0.75).judge(native, lowered)
    assert (least.passed, least.value, least.excess) == (False, 0.5, 0.25)
    assert AccuracyTarget([X], metric=share, minimum=0.5).judge(native, lowered).passed
    lost = AccuracyTarget([X], metric=lambda o: o[0]["y"].min(), minimum=0.5).judge(native, outputs([np.nan]))
    assert (lost.passed, lost.excess) == (False, math.inf)


def test_a_target_that_the_native_model_misses_is_an_error():
    native = outputs([[0, 1], [1, 0]])
    with pytest.raises(InvalidParameterError, match=r"native model itself reaches 0.5, less than minimum=0.9"):
        AccuracyTarget([X], metric=share, minimum=0.9).check_native(native)
    with pytest.raises(InvalidParameterError, match="the metric is nan for the native model"):
        AccuracyTarget([X], metric=lambda o: math.nan, max_drop=0.9).check_native(native)
    with pytest.raises(InvalidParameterError, match=r"the metric failed on the outputs: KeyError: 'logits'"):
        AccuracyTarget([X], metric=lambda o: o[0]["logits"].max(), max_drop=0.9).check_native(native)
    AccuracyTarget([X], max_rel_diff=0.1).check_native(native)
