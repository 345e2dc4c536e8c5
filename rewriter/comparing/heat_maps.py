"""Where in an output the differences are: the output folded to two dimensions, summed up sample by sample.

Rules:
1. An output of rank 0 or 1 is one row; its columns are the items of all samples, one after the other.
2. Of rank 2 it is one row an item, over all samples.
3. Of a higher rank the first axis is taken for the batch. The two neighbouring axes behind it whose sizes are nearest
   to each other make the picture (height and width, in either layout); a cell is the largest difference over all other
   axes and all samples.
4. No side has more than `MAX_CELLS` cells: several positions share a cell, which holds the largest of them.
5. The first sample says how many cells there are. Positions of others are relative to their own size.
"""

from __future__ import annotations

import dataclasses

import numpy as np

#: Most cells a side.
MAX_CELLS = 128
#: What a cell holds that no difference was counted in.
_EMPTY = -1.0


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """The largest differences, cell by cell.

    Attributes:
        values: [rows, columns], float32: infinite where a difference is no number, NaN where there was no value.
        rows, columns: what lies along the sides, in words ("axis 1", "item").
        extent: how many positions the rows, and the columns, stand for.
        over: what a cell is the largest of, in words; "" where it is one value.
        resized: samples of different sizes were laid over each other.
    """

    values: np.ndarray
    rows: str
    columns: str
    extent: tuple[int, int]
    over: str = ""
    resized: bool = False


class HeatMapMeter:
    """Collects the largest differences as they come; see the rules of this module."""

    def __init__(self) -> None:
        self._rank: int | None = None
        self._axes = (0, 0)
        self._grid = np.zeros((0, 0), np.float32)
        self._extent = (0, 0)
        self._items = 0
        self._items_per_row = 1
        self._resized = False

    def add(self, gaps: np.ndarray) -> None:
        """Counts the differences of one sample in the shape of the output; NaN counts as infinite."""
        gaps = np.where(np.isnan(gaps), np.inf, gaps)
        if self._rank is None:
            self._rank = gaps.ndim
            self._axes = nearest_axes(gaps.shape) if gaps.ndim > 2 else (0, 1)
        if gaps.ndim != self._rank:
            self._resized = True
            return
        if not gaps.size:
            return
        with np.errstate(over="ignore"):
            if gaps.ndim > 2:
                others = tuple(axis for axis in range(gaps.ndim) if axis not in self._axes)
                self._add_picture(gaps.max(axis=others).astype(np.float32))
            else:
                self._add_items(gaps.reshape(gaps.shape if gaps.ndim == 2 else (-1, 1)).astype(np.float32))

    def heat_map(self) -> HeatMap | None:
        """What was collected so far; None where there was no value."""
        if not self._grid.size:
            return None
        values = np.where(self._grid == _EMPTY, np.float32(np.nan), self._grid)
        if self._rank is not None and self._rank > 2:
            first, second = self._axes
            others = [str(axis) for axis in range(1, self._rank) if axis not in self._axes]
            over = ["all items", *(f"axis {axis}" for axis in others), *self._neighbours((0, 1))]
            return HeatMap(values, f"axis {first}", f"axis {second}", self._extent, _listed(over), self._resized)
        over = [f"{self._items_per_row} items"] if self._items_per_row > 1 else []
        if self._rank == 2:
            over += self._neighbours((1,))
            extent = self._items, self._extent[1]
            return HeatMap(values, "item", "axis 1", extent, _listed(over), self._resized)
        return HeatMap(values.T, "", "item", (1, self._items), _listed(over), self._resized)

    def _neighbours(self, sides: tuple[int, ...]) -> list[str]:
        """Words for cells that hold several positions along a side that is no row of items."""
        return ["neighbours"] if any(self._grid.shape[side] < self._extent[side] for side in sides) else []

    def _add_picture(self, picture: np.ndarray) -> None:
        """Lays one picture over the others."""
        if not self._grid.size:
            self._extent = (picture.shape[0], picture.shape[1])
            self._grid = np.full([min(size, MAX_CELLS) for size in picture.shape], _EMPTY, np.float32)
        self._resized |= picture.shape != self._extent
        rows, columns = self._grid.shape
        self._grid = np.maximum(self._grid, _resize(_resize(picture, rows).T, columns).T)

    def _add_items(self, block: np.ndarray) -> None:
        """Appends rows; when there are too many, every two become one."""
        if not self._grid.size:
            self._extent = (0, block.shape[1])
            self._grid = np.full((0, min(block.shape[1], MAX_CELLS)), _EMPTY, np.float32)
        self._resized |= block.shape[1] != self._extent[1]
        block = _resize(block.T, self._grid.shape[1]).T
        total = self._items + len(block)
        while (total - 1) // self._items_per_row >= MAX_CELLS:
            self._items_per_row *= 2
            odd = np.full((len(self._grid) % 2, self._grid.shape[1]), _EMPTY, np.float32)
            self._grid = np.concatenate([self._grid, odd]).reshape(-1, 2, self._grid.shape[1]).max(axis=1)
        rows = np.arange(self._items, total) // self._items_per_row
        missing = np.full((rows[-1] + 1 - len(self._grid), self._grid.shape[1]), _EMPTY, np.float32)
        self._grid = np.concatenate([self._grid, missing])
        np.maximum.at(self._grid, rows, block)
        self._items = total


def nearest_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """The two neighbouring axes behind the first whose sizes differ least, by their ratio; the first of equals.

    Axes of size 1 are no side of a picture where there is another choice.
    """
    pairs = [(axis, axis + 1) for axis in range(1, len(shape) - 1)]

    def ratio(pair: tuple[int, int]) -> tuple[bool, float]:
        sizes = sorted((max(shape[pair[0]], 1), max(shape[pair[1]], 1)))
        return sizes[0] == 1, sizes[1] / sizes[0]

    return min(pairs, key=ratio)


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _resize(array: np.ndarray, cells: int) -> np.ndarray:
    """The array with `cells` rows: the largest of those that share one, empty where there are fewer."""
    size = len(array)
    if size == cells:
        return array
    places = np.arange(size) * cells // size
    if size > cells:
        return np.maximum.reduceat(array, np.searchsorted(places, np.arange(cells)), axis=0)
    spread = np.full((cells, *array.shape[1:]), _EMPTY, np.float32)
    spread[places] = array
    return spread
