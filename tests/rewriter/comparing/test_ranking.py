"""Classes on top of two outputs."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rewriter.comparing.ranking import shared_top, top

SCORES = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(3, 9)), elements=st.floats(width=16))


def test_of_equal_scores_the_first_ones_are_on_top():
    assert top(np.float64([[1, 3, 3, 3], [2, 2, 2, 2]]), 2).tolist() == [
        [False, True, True, False],
        [True, True, False, False],
    ]


def test_the_order_on_top_does_not_matter():
    reference, result = np.float64([[9, 8, 1, 0]]), np.float64([[8, 9, 0, 7]])
    assert shared_top(reference, result, 1) == (0, 1)
    assert shared_top(reference, result, 2) == (2, 2)
    assert shared_top(reference, result, 3) == (2, 3)


def test_every_row_of_every_rank_counts():
    scores = np.arange(24.0).reshape(2, 3, 4)
    assert shared_top(scores, scores, 2) == (12, 12)
    assert shared_top(scores, -scores, 2) == (0, 12)


def test_nan_is_on_top_as_for_argmax():
    assert shared_top(np.float64([[1, 5, 2]]), np.float64([[np.nan, 5, 2]]), 1) == (0, 1)


@settings(deadline=None)
@given(SCORES, st.integers(1, 2))
def test_so_many_are_marked_and_none_of_the_others_is_larger(scores, k):
    marked = top(scores, k)
    assert (marked.sum(axis=-1) == k).all()
    values = np.where(np.isnan(scores), np.inf, scores)
    for row, chosen in zip(values, marked, strict=True):
        assert row[chosen].min() >= row[~chosen].max()
    assert (top(scores, 1).argmax(-1) == scores.argmax(-1)).all()
