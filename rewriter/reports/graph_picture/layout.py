"""Where the boxes of a directed graph go: layers from top to bottom, few crossings, straight lines. Pure, no ONNX.

The classical way (layers, order inside layers, coordinates), in near-linear time: a fixed number of sweeps, and only as
many bend points as the graph has nodes and edges; the longest edges run beside the drawing instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rewriter.reports.graph_picture.ordering import Chains, make_chains, order_layers
from rewriter.reports.graph_picture.placement import place

#: Boxes without edges in one row.
_LONELY = 10

Point = tuple[float, float]
Edge = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Spacing:
    """Distances in pixels.

    Attributes:
        between: between boxes of one layer.
        layers: between layers; edges bend there.
        edges: between edges, and between an edge and a box.
        margin: around the drawing.
    """

    between: float = 26.0
    layers: float = 44.0
    edges: float = 12.0
    margin: float = 20.0


@dataclasses.dataclass(frozen=True)
class Layout:
    """A drawing, in pixels, y downwards.

    Attributes:
        width, height: of the whole, margins included.
        boxes: (left, top) of every box.
        layers: the layer of every box; an edge leads to a higher one.
        routes: the points of every edge, from the bottom of its first box to the top of its second; y never falls.
        detours: whether an edge runs beside the drawing, in right angles.
    """

    width: float
    height: float
    boxes: tuple[Point, ...]
    layers: tuple[int, ...]
    routes: tuple[tuple[Point, ...], ...]
    detours: tuple[bool, ...]


def layout(sizes: Sequence[Point], edges: Sequence[Edge], spacing: Spacing | None = None) -> Layout:
    """Lays a graph out.

    1. A box lies below all boxes that lead to it, as high as it can; boxes that have more followers than predecessors
       come down to their first follower, so that edges are short.
    2. Boxes do not overlap, and every edge goes downwards.
    3. The same graph gives the same drawing; of equal choices the order of `sizes` decides.

    Args:
        sizes: (width, height) of every box, in pixels.
        edges: (from, to) as numbers of boxes; no cycle. Two edges between the same boxes lie upon each other.
        spacing: default `Spacing()`.

    Raises:
        ValueError: the edges have a cycle, or lead to a box that is not there.
    """
    space = spacing or Spacing()
    layers = assign_layers(len(sizes), edges)
    chains = make_chains(layers, edges)
    rows = order_layers(chains)
    widths = [size[0] for size in sizes] + [0.0] * (chains.count - len(sizes))
    gaps = [space.between / 2] * len(sizes) + [space.edges / 2] * (chains.count - len(sizes))
    centers = place(rows, chains, widths, gaps)
    return _draw(sizes, edges, layers, chains, centers, space)


def assign_layers(count: int, edges: Sequence[Edge]) -> list[int]:
    """The layer of every box: rule 1 of `layout`; boxes without edges fill rows of their own.

    Raises:
        ValueError: a cycle, or an edge to a box that is not there.
    """
    before: list[list[int]] = [[] for _ in range(count)]
    after: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges:
        if not (0 <= source < count and 0 <= target < count):
            raise ValueError(f"the edge {(source, target)} leads to a box that is not among the {count}")
        before[target].append(source)
        after[source].append(target)
    order = _topological(before, after)
    layers = [0] * count
    for node in order:
        layers[node] = max((layers[b] + 1 for b in before[node]), default=0)
    for node in reversed(order):
        if len(after[node]) > len(before[node]):
            layers[node] = min(layers[a] for a in after[node]) - 1
    lonely = [node for node in range(count) if not before[node] and not after[node]]
    rows = -(-len(lonely) // _LONELY)
    layers = [layer + rows for layer in layers]
    for number, node in enumerate(lonely):
        layers[node] = number // _LONELY
    rank = {layer: number for number, layer in enumerate(sorted(set(layers)))}
    return [rank[layer] for layer in layers]


def _topological(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> list[int]:
    waiting = [len(sources) for sources in before]
    order = [node for node, number in enumerate(waiting) if not number]
    for node in order:  # grows while it is walked
        for target in after[node]:
            waiting[target] -= 1
            if not waiting[target]:
                order.append(target)
    if len(order) < len(before):
        stuck = next(node for node, number in enumerate(waiting) if number)
        raise ValueError(f"the graph has a cycle: box {stuck} cannot be placed below all that lead to it")
    return order


def _draw(
    sizes: Sequence[Point],
    edges: Sequence[Edge],
    layers: Sequence[int],
    chains: Chains,
    centers: Sequence[float],
    space: Spacing,
) -> Layout:
    """Layers become heights, chains become routes, long edges get channels at the sides."""
    heights = [0.0] * (max(layers, default=-1) + 1)
    for (_, height), layer in zip(sizes, layers, strict=True):
        heights[layer] = max(heights[layer], height)
    tops = [space.margin]
    for height in heights:
        tops.append(tops[-1] + height + space.layers)
    lefts = [centers[i] - sizes[i][0] / 2 for i in range(len(sizes))]
    left = min([*lefts, *centers[len(sizes) :]], default=0.0)
    right = max([left_ + size[0] for left_, size in zip(lefts, sizes, strict=True)], default=0.0)
    right = max([right, *centers[len(sizes) :]])
    channels = _channels(edges, layers, chains, centers, (left + right) / 2)
    used = [1 + max((c for side, c in channels.values() if side == s), default=-1) for s in (0, 1)]
    gutter = space.edges * 2
    shift = space.margin - left + (used[0] * space.edges + gutter if used[0] else 0.0)
    width = right + shift + (used[1] * space.edges + gutter if used[1] else 0.0) + space.margin
    boxes = tuple(
        (lefts[i] + shift, tops[layers[i]] + (heights[layers[i]] - sizes[i][1]) / 2) for i in range(len(sizes))
    )
    routes: list[tuple[Point, ...]] = []
    for number, (source, target) in enumerate(edges):
        start = (centers[source] + shift, boxes[source][1] + sizes[source][1])
        end = (centers[target] + shift, boxes[target][1])
        if number in channels:
            side, channel = channels[number]
            offset = gutter + channel * space.edges
            x = left + shift - offset if side == 0 else right + shift + offset
            # Each side's channels leave and arrive at heights of their own, so that lines do not lie upon each other.
            above = tops[layers[source]] + heights[layers[source]] + _level(channel, space)
            below = tops[layers[target]] - _level(channel, space)
            routes.append((start, (start[0], above), (x, above), (x, below), (end[0], below), end))
            continue
        route = [start, (start[0], tops[layers[source]] + heights[layers[source]])]
        for bend in chains.bends[number]:
            row = chains.layers[bend]
            route += [(centers[bend] + shift, tops[row]), (centers[bend] + shift, tops[row] + heights[row])]
        routes.append(_plain([*route, (end[0], tops[layers[target]]), end]))
    height = tops[-1] - space.layers + space.margin if heights else 2 * space.margin
    return Layout(width, height, boxes, tuple(layers), tuple(routes), tuple(i in channels for i in range(len(edges))))


def _plain(points: Sequence[Point]) -> tuple[Point, ...]:
    """Without points that repeat the one before."""
    return tuple([p for number, p in enumerate(points) if not number or p != points[number - 1]])


def _level(channel: int, space: Spacing) -> float:
    """How far from a layer an edge turns towards its channel: within the upper, or lower, half of the gap."""
    return space.layers * (0.12 + 0.07 * (channel % 5))


def _channels(
    edges: Sequence[Edge], layers: Sequence[int], chains: Chains, centers: Sequence[float], middle: float
) -> dict[int, tuple[int, int]]:
    """Number of an edge without a chain -> (0 left or 1 right, number of its channel, from the drawing outwards)."""
    free: tuple[list[int], list[int]] = ([], [])  # per side and channel: the layer below which it is free
    found: dict[int, tuple[int, int]] = {}
    for number in sorted(chains.detours, key=lambda i: (layers[edges[i][0]], layers[edges[i][1]], i)):
        source, target = edges[number]
        side = 0 if centers[source] + centers[target] < 2 * middle else 1
        taken = free[side]
        channel = next((c for c, until in enumerate(taken) if until < layers[source]), len(taken))
        if channel == len(taken):
            taken.append(0)
        taken[channel] = layers[target]
        found[number] = (side, channel)
    return found
