"""Joining requests and splitting answers changes no value, no order and nobody else's request."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.segments import TensorSpec
from rewriter.artifact import EngineEntry
from rewriter.backends.base import InputProfile
from rewriter.errors import ConversionError, InvalidParameterError
from rewriter.export.batching import (
    DEFAULT_MAXIMUM,
    EngineRows,
    batch_dimension,
    engine_rows,
    groups,
    join,
    largest_batch,
    run,
    split,
    why_no_batch,
)
from rewriter.source import Signature


def signature(inputs, outputs=(("n", 3),)):
    """Inputs x0, x1 ... and outputs y0, y1 ... of these shapes."""
    sides = [
        tuple(TensorSpec(f"{c}{i}", 1, s) for i, s in enumerate(side))
        for c, side in zip("xy", (inputs, outputs), strict=True)
    ]
    return Signature(*sides)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [([("n", 3)], [("n", 3)]), ([("n", 3), ("n",)], [("n", "m")]), ([("n", "m")], [("n", "m", "m")])],
)
def test_the_batch_dimension_is_shared_by_all(inputs, outputs):
    found = signature(inputs, outputs)
    assert (batch_dimension(found), why_no_batch(found)) == ("n", "")


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ([], [("n", 2)], "the model has no input"),
        ([("n", 4), ()], [("n",)], "'x1' has no dimensions"),
        ([("n", 4)], [()], "'y0' has no dimensions"),
        ([None], [("n",)], "'x0' has an unknown number of dimensions"),
        ([(8, 4)], [(8, 4)], "the first dimension of 'x0' is always 8"),
        ([("n", 4)], [(3,)], "the first dimension of 'y0' is always 3"),
        ([(None, 4)], [(None, 4)], "the first dimension of 'x0' has no name"),
        ([("n", 4)], [(None, 4)], "the first dimension of 'y0' has no name"),
        ([("n", 4), ("m", 4)], [("n", 4)], "'x1' begins with dimension 'm', the first input with 'n'"),
        ([("n", 4)], [("n", "n")], "dimension 'n' of 'y0' is more than its first"),  # a matrix of similarities
    ],
)
def test_no_batch_has_a_reason(inputs, outputs, words):
    found = signature(inputs, outputs)
    assert batch_dimension(found) is None
    assert words in why_no_batch(found)
    assert largest_batch(found) == largest_batch(found, wanted=1) == 1
    with pytest.raises(InvalidParameterError, match=r"max_batch_size=4 needs a batch dimension .*but ") as caught:
        largest_batch(found, wanted=4)
    assert words in str(caught.value)


def engine(*maxima, name="x0", values=False, **given):
    profiles = tuple({name: InputProfile((1, 3), (2, 3), (most, 3), values)} for most in maxima)
    fields = {"op": "TRTEngineOp_000", "backend": "tensorrt", "version": "10.9.0", "targets": ("SM89",), **given}
    return EngineEntry(key="k", size=1, sha256="0" * 64, profiles=profiles, **fields)


@pytest.mark.parametrize(
    ("engines", "most"),
    [
        ([], None),
        ([engine(16)], 16),
        ([engine(4, 16), engine(12, op="TRTEngineOp_001")], 12),
        ([engine(4), engine(16)], 16),  # one was built at run time for what the other does not take
        ([engine(4), engine(16, targets=("SM120",))], 4),
        ([engine(4, version="10.8.0"), engine(16)], 4),
        ([engine(16, problem="damaged"), engine(4)], 4),
        ([engine(2, name="inner")], None),
        ([engine(2, values=True)], None),
    ],
)
def test_the_profiles_limit_the_batch(engines, most):
    found = signature([("n", 3)])
    assert engine_rows(found, engines) == EngineRows(most, (2,) if most else ())
    assert largest_batch(found, engines) == (most or DEFAULT_MAXIMUM)
    assert largest_batch(found, engines, 5) == 5


@pytest.mark.parametrize("wanted", [0, -1, True, 2.0, 2**31])
def test_a_limit_is_a_positive_whole_number(wanted):
    with pytest.raises(InvalidParameterError, match="max_batch_size must be a whole number of at least 1"):
        largest_batch(signature([("n", 3)]), wanted=wanted)
    with pytest.raises(InvalidParameterError, match=r"^batch_size must be a whole number of at least 1"):
        largest_batch(signature([("n", 3)]), wanted=wanted, name="batch_size")


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
