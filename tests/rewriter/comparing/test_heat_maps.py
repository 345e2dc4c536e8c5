"""Where differences are: outputs folded to two dimensions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.comparing.heat_maps import MAX_CELLS, HeatMapMeter, nearest_axes


def heat_map(*arrays):
    meter = HeatMapMeter()
    for array in arrays:
        meter.add(np.asarray(array, np.float64))
    return meter.heat_map()


def test_scalars_and_vectors_are_one_row_of_items():
    found = heat_map(1.0, 2.0)
    assert (found.values.tolist(), found.rows, found.columns, found.extent) == ([[1, 2]], "", "item", (1, 2))
    found = heat_map([1, 2], [3])
    assert (found.values.tolist(), found.extent, found.over) == ([[1, 2, 3]], (1, 3), "")


def test_rank_2_is_one_row_an_item_over_all_samples():
    found = heat_map([[1, 2], [3, 4]], [[5, 6]])
    assert found.values.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert (found.rows, found.columns, found.extent, found.over) == ("item", "axis 1", (3, 2), "")


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((1, 56, 56, 64), (1, 2)),
        ((1, 64, 56, 56), (2, 3)),
        ((2, 224, 224, 3), (1, 2)),
        ((2, 3, 48, 56), (2, 3)),
        ((2, 7, 9), (1, 2)),
        ((1, 1, 1, 1000), (1, 2)),
        ((1, 12, 128, 128), (2, 3)),
        ((1, 4, 4, 4, 2), (1, 2)),
    ],
)
def test_height_and_width_are_found_in_either_layout(shape, axes):
    assert nearest_axes(shape) == axes


def test_a_picture_is_the_largest_over_items_and_channels():
    gaps = np.zeros((2, 4, 5, 3))
    gaps[1, 2, 3, 0], gaps[0, 2, 3, 2], gaps[0, 0, 0, 1] = 7, 5, 1
    found = heat_map(gaps, gaps[:1] * 2)
    expected = np.zeros((4, 5))
    expected[2, 3], expected[0, 0] = 10, 2
    assert found.values.tolist() == expected.tolist()
    assert (found.rows, found.columns, found.over) == ("axis 1", "axis 2", "all items and axis 3")
    assert not found.resized


def test_many_items_share_rows():
    gaps = np.arange(3 * MAX_CELLS, dtype=float)[:, None]
    found = heat_map(gaps[:5], gaps[5:])
    assert found.over == "4 items"
    assert found.extent == (3 * MAX_CELLS, 1)
    assert found.values[:, 0].tolist() == gaps[3::4, 0].tolist()


def test_many_columns_share_cells():
    gaps = np.zeros((1, 10 * MAX_CELLS))
    gaps[0, 15] = 3.0
    found = heat_map(gaps)
    assert found.values.shape == (1, MAX_CELLS)
    assert np.flatnonzero(found.values[0]).tolist() == [1]
    assert (found.over, found.extent) == ("neighbours", (1, 10 * MAX_CELLS))


def test_samples_of_other_sizes_are_laid_over_each_other():
    found = heat_map(np.ones((1, 4, 4)), np.full((1, 2, 2), 5.0), np.full((1, 8, 8), 2.0))
    assert found.resized
    assert found.extent == (4, 4)
    assert found.values.tolist() == [[5, 2, 5, 2], [2, 2, 2, 2], [5, 2, 5, 2], [2, 2, 2, 2]]


def test_other_ranks_and_empty_outputs_are_left_out():
    found = heat_map(np.zeros((0, 3)), np.ones((1, 3)), np.ones(2))
    assert (found.values.shape, found.resized) == ((1, 3), True)
    assert heat_map() is None
    assert heat_map(np.zeros((0, 3))) is None


def test_nan_is_infinite_and_a_narrower_sample_leaves_cells_without_a_value():
    assert heat_map([[np.nan, np.inf]]).values.tolist() == [[np.inf, np.inf]]
    found = heat_map([[1, 1, 1, 1]], [[2, 2]]).values
    assert np.isnan(found[1]).tolist() == [False, True, False, True]


@settings(deadline=None)
@given(st.lists(st.integers(1, 2 * MAX_CELLS + 1), min_size=1, max_size=4), st.integers(1, 300))
def test_the_largest_difference_is_always_there_and_no_side_grows(counts, columns):
    random = np.random.default_rng(sum(counts))
    blocks = [random.random((count, columns)).astype(np.float32) for count in counts]
    found = heat_map(*blocks)
    assert max(found.values.shape) <= MAX_CELLS
    assert found.extent == (sum(counts), columns)
    assert np.nanmax(found.values) == max(block.max() for block in blocks)
