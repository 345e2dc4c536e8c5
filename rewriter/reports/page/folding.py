"""Folds a tall drawing into columns, as a newspaper does: a deep model then fills a screen instead of a thin line."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Sequence

from rewriter.reports.graph_picture.layout import Edge, Layout, Point

#: Width over height that a drawing shall have.
ASPECT = 1.5
#: A column may be so much shorter or longer than the mean, where fewer edges are cut there.
_SLACK = 0.12
_MARGIN = 20.0
#: Drawings that are not higher stay as they are: they fit a screen.
_HIGH = 900.0
#: A deep drawing may lean: layers are moved back in steps of this size, by the mean of so many neighbours either side.
_STEP, _NEIGHBOURS = 120.0, 30
#: Room between columns: beside the lines, and for each of them, as far as it goes.
_GAP, _LANE, _WIDEST = 40.0, 6.0, 160.0


@dataclasses.dataclass(frozen=True)
class Folded:
    """A drawing in columns, in pixels.

    Attributes:
        width, height: of the whole.
        boxes: (left, top) of every box.
        routes: the points of every edge.
        angular: whether an edge runs in straight lines, not in curves.
        columns: how many there are.
    """

    width: float
    height: float
    boxes: tuple[Point, ...]
    routes: tuple[tuple[Point, ...], ...]
    angular: tuple[bool, ...]
    columns: int


@dataclasses.dataclass(frozen=True)
class _Column:
    """What of the drawing lies in a column, and where it goes.

    Attributes:
        top, bottom: the part of the drawing.
        left, right: how wide that part is.
        x: where `left` goes; `top` goes to the margin.
    """

    top: float
    bottom: float
    left: float
    right: float
    x: float = 0.0

    def moved(self, point: Point) -> Point:
        return point[0] - self.left + self.x, point[1] - self.top + _MARGIN

    @property
    def end(self) -> float:
        """Where its last line goes."""
        return self.bottom - self.top + _MARGIN

    @property
    def side(self) -> float:
        """Where its right side goes."""
        return self.x + self.right - self.left


def fold(found: Layout, sizes: Sequence[Point], edges: Sequence[Edge], aspect: float = ASPECT) -> Folded:
    """Cuts a drawing between layers and sets the parts side by side, from left to right.

    1. There are as many columns as bring the drawing nearest to `aspect`; one that is wide or low stays as it is.
    2. It is cut where the fewest edges are, near the places that make columns of one height.
    3. An edge that leaves its column goes around it, through the room between the columns; so does one that ran beside
       the drawing.

    Args:
        found: the drawing.
        sizes: (width, height) of every box.
        edges: as they were laid out.
        aspect: width over height.
    """
    flat = Folded(found.width, found.height, found.boxes, found.routes, found.detours, 1)
    if found.height <= _HIGH or not found.boxes:
        return flat
    straight = _straightened(found, sizes)
    count = round(math.sqrt(aspect * straight.height / max(straight.width, 1.0)))
    cuts = _cuts(straight, edges, count) if count > 1 else []
    if not cuts:
        return flat
    of_layer = [bisect.bisect_right(cuts, layer) for layer in range(max(found.layers) + 1)]
    of_box = [of_layer[layer] for layer in found.layers]
    leaves = [
        detour or of_box[source] != of_box[target]
        for detour, (source, target) in zip(found.detours, edges, strict=True)
    ]
    columns = _columns(straight, sizes, edges, of_box, leaves)
    lanes = [0] * len(columns)
    routes: list[tuple[Point, ...]] = []
    for route, leaving, (source, target) in zip(straight.routes, leaves, edges, strict=True):
        if leaving:
            routes.append(_around(columns, lanes, of_box[source], of_box[target], route))
        else:
            routes.append(tuple(columns[of_box[source]].moved(point) for point in route))
    return Folded(
        width=max(x for route in [*routes, ((columns[-1].side, 0.0),)] for x, _ in route) + _MARGIN,
        height=max(column.end for column in columns) + _MARGIN,
        boxes=tuple(columns[c].moved(point) for c, point in zip(of_box, straight.boxes, strict=True)),
        routes=tuple(routes),
        angular=tuple(leaves),
        columns=len(columns),
    )


def _straightened(found: Layout, sizes: Sequence[Point]) -> Layout:
    """The drawing without its lean; its width is that of the boxes."""
    count = max(found.layers) + 1
    sums, numbers, tops = [0.0] * count, [0] * count, [math.inf] * count
    for layer, (x, y), (width, _) in zip(found.layers, found.boxes, sizes, strict=True):
        sums[layer] += x + width / 2
        numbers[layer] += 1
        tops[layer] = min(tops[layer], y)
    total = [0.0, *itertools.accumulate(a / b for a, b in zip(sums, numbers, strict=True))]
    shifts: list[float] = []
    now = total[1]
    for layer in range(count):
        reach = min(layer, count - 1 - layer, _NEIGHBOURS)
        mean = (total[layer + reach + 1] - total[layer - reach]) / (2 * reach + 1)
        if abs(mean - now) > _STEP:
            now = mean
        shifts.append(now)

    def moved(point: Point) -> Point:
        return point[0] - shifts[max(bisect.bisect_right(tops, point[1] + 0.5) - 1, 0)], point[1]

    boxes = tuple((x - shifts[layer], y) for layer, (x, y) in zip(found.layers, found.boxes, strict=True))
    routes = tuple(tuple(moved(point) for point in route) for route in found.routes)
    width = max(x + size[0] for (x, _), size in zip(boxes, sizes, strict=True)) - min(x for x, _ in boxes)
    return dataclasses.replace(found, width=width, boxes=boxes, routes=routes)


def _cuts(found: Layout, edges: Sequence[Edge], count: int) -> list[int]:
    """The layers that columns begin with, but the first."""
    layers = max(found.layers, default=0) + 1
    tops = [found.height] * layers
    for layer, (_, y) in zip(found.layers, found.boxes, strict=True):
        tops[layer] = min(tops[layer], y)
    change = [0] * (layers + 1)
    for source, target in edges:
        change[found.layers[source] + 1] += 1
        change[found.layers[target] + 1] -= 1
    crossing, now = [], 0  # crossing[layer]: edges that come from above it to it or below
    for step in change[:layers]:
        now += step
        crossing.append(now)
    cuts: list[int] = []
    height = found.height / count
    for number in range(1, count):
        ideal = number * height
        after = cuts[-1] if cuts else 0
        near = [i for i in range(after + 1, layers) if abs(tops[i] - ideal) <= _SLACK * height]
        if near:
            cuts.append(min(near, key=lambda i: (crossing[i], abs(tops[i] - ideal), i)))
    return cuts


def _columns(
    found: Layout, sizes: Sequence[Point], edges: Sequence[Edge], of_box: Sequence[int], leaves: Sequence[bool]
) -> list[_Column]:
    """How large the columns are, and where they go; edges that leave them do not count."""
    sides = [[math.inf, -math.inf, math.inf, -math.inf] for _ in range(max(of_box) + 1)]  # left, right, top, bottom

    def widen(number: int, x: float, y: float) -> None:
        side = sides[number]
        side[:] = min(side[0], x), max(side[1], x), min(side[2], y), max(side[3], y)

    for number, (x, y), (width, height) in zip(of_box, found.boxes, sizes, strict=True):
        widen(number, x, y)
        widen(number, x + width, y + height)
    leaving = [0] * len(sides)
    for (source, _), route, leaves_it in zip(edges, found.routes, leaves, strict=True):
        leaving[of_box[source]] += leaves_it
        for x, y in () if leaves_it else route:
            widen(of_box[source], x, y)
    columns: list[_Column] = []
    x = _MARGIN
    for (left, right, top, bottom), number in zip(sides, leaving, strict=True):
        columns.append(_Column(top, bottom, left, right, x))
        x = columns[-1].side + min(_GAP + number * _LANE, _WIDEST)
    return columns


def _around(
    columns: Sequence[_Column], lanes: list[int], first: int, last: int, route: Sequence[Point]
) -> tuple[Point, ...]:
    """Out at the side of the first column; where the last is not the same or the next, above all between."""
    start, end = columns[first].moved(route[0]), columns[last].moved(route[-1])
    lane = lanes[first]
    lanes[first] += 1
    step = _LANE * (lane % int((_WIDEST - _GAP) / _LANE))
    out = columns[first].side + _GAP / 2 + step
    # Just below the box, and just above the other: there is room for lines between layers.
    below, above = start[1] + 10 + step % 18, end[1] - 10 - step % 18
    if last <= first + 1:
        return start, (start[0], below), (out, below), (out, above), (end[0], above), end
    before = columns[last].x - _GAP / 2
    roof = _MARGIN / 2 - step % 8
    return (
        start, (start[0], below), (out, below), (out, roof), (before, roof), (before, above), (end[0], above), end,
    )  # fmt: skip
