"""Requests that are computed together, and what each gets back."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rewriter.errors import InputError
from rewriter.export.triton.batches import answer, groups


def rows(*values, width=2):
    return {"x": np.repeat(np.array(values, np.float32)[:, None], width, axis=1)}


def double(feeds):
    if (feeds["x"] < 0).any():
        raise InputError("negative")
    return {"y": feeds["x"] * 2}


def test_requests_alike_are_computed_at_once():
    calls = []

    def run(feeds):
        calls.append(len(feeds["x"]))
        return double(feeds)

    answers = answer([rows(1), rows(2, 3), rows(4, width=3), rows(5)], run, 4)
    assert calls == [4, 1]
    assert [a["y"][:, 0].tolist() for a in answers] == [[2], [4, 6], [8], [10]]


def test_an_error_is_the_answer_to_its_own_request():
    first, second, third = answer([rows(1), rows(-1), rows(3)], double, 8)
    assert first["y"][0, 0] == 2
    assert isinstance(second, InputError)
    assert third["y"][0, 0] == 6


def test_outputs_without_a_row_for_each_row_are_computed_apart():
    answers = answer([rows(1), rows(2, 3)], lambda feeds: {"y": feeds["x"].sum(axis=0)}, 8)
    assert [a["y"].tolist() for a in answers] == [[1, 1], [5, 5]]


def test_without_a_batch_every_request_stands_alone():
    assert groups([rows(1), rows(1)], 0) == [[0], [1]]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 2)), max_size=12), st.integers(1, 8))
def test_every_request_is_in_one_group_and_gets_its_own_rows(sizes, limit):
    requests = [rows(*range(100 * i, 100 * i + n), width=w) for i, (n, w) in enumerate(sizes)]
    found = groups(requests, limit)
    assert sorted(i for group in found for i in group) == list(range(len(requests)))
    assert all(len(group) == 1 or sum(sizes[i][0] for i in group) <= limit for group in found)
    for request, result in zip(requests, answer(requests, double, limit), strict=True):
        np.testing.assert_array_equal(result["y"], request["x"] * 2)
