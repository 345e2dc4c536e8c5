"""Joining requests and splitting answers changes no value, no order and nobody else's request."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.backends.base import InputProfile
from rewriter.errors import ConversionError, InvalidParameterError
from rewriter.export.ray.batching import DEFAULT_MAXIMUM, batch_dimension, groups, join, largest_batch, run, split


@pytest.mark.parametrize(
    ("inputs", "outputs", "found"),
    [
        ([("batch", 3)], [("batch", 3)], "batch"),
        ([("batch", 3), ("batch",)], [("batch", "n")], "batch"),
        ([("batch", 3), ("other", 3)], [("batch", 3)], None),
        ([("batch", 3)], [("batch", "batch")], None),  # a matrix of similarities
        ([("batch", 3)], [(3,)], None),
        ([("batch", 3)], [()], None),
        ([("batch", 3)], [None], None),
        ([(8, 3)], [(8, 3)], None),
        ([(None, 3)], [(None, 3)], None),
        ([], [("batch",)], None),
    ],
)
def test_the_batch_dimension_is_shared_by_all(ray_models, inputs, outputs, found):
    assert batch_dimension(ray_models.batched_signature(*inputs, outputs=outputs)) == found


def engine(*maxima, name="x0", is_values=False):
    profiles = [{name: InputProfile((1, 3), (1, 3), (most, 3), is_values)} for most in maxima]
    return types.SimpleNamespace(profiles=tuple(profiles))


@pytest.mark.parametrize(
    ("engines", "found"),
    [
        ([], DEFAULT_MAXIMUM),
        ([engine(16)], 16),
        ([engine(4, 16), engine(12)], 12),
        ([engine(2, name="inner")], DEFAULT_MAXIMUM),
        ([engine(2, is_values=True)], DEFAULT_MAXIMUM),
    ],
)
def test_the_profiles_limit_the_batch(ray_models, engines, found):
    assert largest_batch(ray_models.batched_signature(("batch", 3)), engines) == found


def test_what_cannot_be_joined_has_batches_of_one(ray_models):
    signature = ray_models.batched_signature((8, 3))
    assert largest_batch(signature) == largest_batch(signature, wanted=1) == 1
    with pytest.raises(InvalidParameterError, match="max_batch_size=4 cannot be had"):
        largest_batch(signature, wanted=4)


@pytest.mark.parametrize("wanted", [0, -1, True, 2.0])
def test_a_limit_is_a_positive_whole_number(ray_models, wanted):
    with pytest.raises(InvalidParameterError, match="max_batch_size must be a whole number"):
        largest_batch(ray_models.batched_signature(("batch", 3)), wanted=wanted)


@st.composite
def requests(draw):
    """Requests of two inputs, some with other trailing dimensions or dtypes, some whose inputs disagree in rows."""
    found = []
    for number in range(draw(st.integers(0, 8))):
        rows = draw(st.integers(0, 5))
        width = draw(st.sampled_from([1, 2]))
        dtype = draw(st.sampled_from([np.float32, np.int64]))
        odd = draw(st.integers(0, 9)) == 0
        first = np.arange(rows * width, dtype=dtype).reshape(rows, width) + 100 * number
        found.append({"a": first, "b": np.full(rows + odd, number, np.float32)})
    return found


@given(requests(), st.integers(1, 9))
def test_every_request_is_in_one_group_that_keeps_to_the_rules(given_requests, maximum):
    found = groups(given_requests, maximum)
    assert sorted(number for group in found for number in group.members) == list(range(len(given_requests)))
    for group in found:
        assert list(group.members) == sorted(group.members)
        if group.rows:
            assert sum(group.rows) <= maximum
            assert list(group.rows) == [len(given_requests[number]["a"]) for number in group.members]
            assert len({given_requests[number]["a"].dtype for number in group.members}) == 1
        else:
            assert len(group.members) == 1
    assert [group.members[0] for group in found] == sorted(group.members[0] for group in found)


@given(requests(), st.integers(1, 9))
def test_joining_and_splitting_gives_everything_back(given_requests, maximum):
    for group in groups(given_requests, maximum):
        joined = join(given_requests, group)
        if group.rows:
            for number, part in zip(group.members, split(joined, group.rows), strict=True):
                assert part.keys() == given_requests[number].keys()
                for name, array in part.items():
                    np.testing.assert_array_equal(array, given_requests[number][name], strict=True)


def twice(inputs):
    if any((array < 0).any() for array in inputs.values()):
        raise ConversionError("negative")
    return {"y": inputs["a"] * 2}


@given(requests(), st.integers(1, 9), st.sets(st.integers(0, 7)))
def test_every_request_gets_what_it_would_get_alone(given_requests, maximum, bad):
    for number in bad & set(range(len(given_requests))):
        given_requests[number]["b"] = given_requests[number]["b"] - 100
    answers = run(given_requests, maximum, twice)
    assert len(answers) == len(given_requests)
    for request, answer in zip(given_requests, answers, strict=True):
        if (request["b"] < 0).any():
            assert isinstance(answer, ConversionError)
        else:
            np.testing.assert_array_equal(answer["y"], request["a"] * 2, strict=True)


@given(requests(), st.integers(2, 9))
def test_a_model_that_does_not_keep_rows_is_run_one_by_one(given_requests, maximum):
    answers = run(given_requests, maximum, lambda inputs: {"y": inputs["a"].sum(keepdims=True)[:, 0]})
    for request, answer in zip(given_requests, answers, strict=True):
        if request["a"].size:
            assert len(answer["y"]) == 1


def test_requests_share_runs():
    sizes = []

    def model(inputs):
        sizes.append(len(inputs["a"]))
        return {"y": inputs["a"]}

    run([{"a": np.zeros((rows, 2), np.float32)} for rows in (1, 1, 2, 9, 1, 4)], 4, model)
    assert sizes == [4, 9, 1, 4]


def test_an_answer_is_no_view_of_the_batch():
    first, second = split({"y": np.arange(4.0)}, [2, 2])
    first["y"][:] = -1
    assert first["y"].base is None
    assert second["y"].tolist() == [2.0, 3.0]
