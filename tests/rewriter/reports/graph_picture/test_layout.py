"""Layout as geometry: properties on random graphs, and a few literal ones."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.reports.graph_picture.layout import Spacing, assign_layers, layout
from rewriter.reports.graph_picture.ordering import crossings, make_chains, order_layers

BOX = (80.0, 36.0)


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 40))
    random_ = draw(st.randoms(use_true_random=False))
    edges = [
        (random_.randrange(max(0, i - draw(st.sampled_from([3, 60]))), i), i)
        for i in range(1, count)
        for _ in range(random_.choice([0, 1, 1, 2, 3]))
    ]
    sizes = [(float(random_.randrange(20, 200)), float(random_.randrange(10, 60))) for _ in range(count)]
    return sizes, edges


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_boxes_never_overlap_and_edges_run_downwards(graph):
    sizes, edges = graph
    space = Spacing()
    found = layout(sizes, edges, space)
    rectangles = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(found.boxes, sizes, strict=True)]
    for a, b in itertools.combinations(rectangles, 2):
        apart = a[2] + space.between <= b[0] + 0.01 or b[2] + space.between <= a[0] + 0.01
        assert apart or a[3] + space.layers <= b[1] + 0.01 or b[3] + space.layers <= a[1] + 0.01
    for box in rectangles:
        assert box[0] >= space.margin - 0.01
        assert box[1] >= space.margin - 0.01
        assert box[2] <= found.width - space.margin + 0.01
        assert box[3] <= found.height - space.margin + 0.01
    for (source, target), route in zip(edges, found.routes, strict=True):
        assert found.layers[source] < found.layers[target]
        assert route[0] == pytest.approx(((rectangles[source][0] + rectangles[source][2]) / 2, rectangles[source][3]))
        assert route[-1] == pytest.approx(((rectangles[target][0] + rectangles[target][2]) / 2, rectangles[target][1]))
        heights = [y for _, y in route]
        assert heights == sorted(heights)
        assert all(0 <= x <= found.width for x, _ in route)
    assert layout(sizes, edges, space) == found


@settings(max_examples=80, deadline=None)
@given(graphs())
def test_edges_cross_no_box_but_their_own(graph):
    sizes, edges = graph
    found = layout(sizes, edges)
    for edge, route in zip(edges, found.routes, strict=True):
        for number, ((x, y), (w, h)) in enumerate(zip(found.boxes, sizes, strict=True)):
            if number in edge:
                continue
            for (ax, ay), (bx, by) in itertools.pairwise(route):
                # Segments are vertical inside layers, so the part of one at a box's height tells.
                low, high = max(ay, y), min(by, y + h)
                if low < high and by > ay:
                    at = [ax + (bx - ax) * (t - ay) / (by - ay) for t in (low, high)]
                    assert max(at) <= x + 0.01 or min(at) >= x + w - 0.01


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_sweeps_make_no_more_crossings_than_the_first_order(graph):
    sizes, edges = graph
    chains = make_chains(assign_layers(len(sizes), edges), edges)
    rows = order_layers(chains)
    assert sorted(item for row in rows for item in row) == list(range(chains.count))
    assert all(chains.layers[item] == number for number, row in enumerate(rows) for item in row)
    slow = 0
    for upper, lower in itertools.pairwise(rows):
        place = {item: number for number, item in enumerate(lower)}
        links = [(number, place[a]) for number, item in enumerate(upper) for a in chains.after[item]]
        slow += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in itertools.combinations(links, 2))
    assert crossings(rows, chains) == slow


def test_a_chain_is_a_straight_line():
    found = layout([BOX] * 5, [(i, i + 1) for i in range(4)])
    assert len({x for x, _ in found.boxes}) == 1
    assert found.layers == (0, 1, 2, 3, 4)
    assert all(len(route) == 2 for route in found.routes)


def test_a_diamond_has_its_sides_beside_each_other():
    found = layout([BOX] * 4, [(0, 1), (0, 2), (1, 3), (2, 3)])
    (left, middle), (right, same) = found.boxes[1:3]
    assert middle == same
    assert right - left == pytest.approx(80 + Spacing().between)
    assert found.boxes[0][0] == found.boxes[3][0] == pytest.approx((left + right) / 2)


def test_two_strands_that_cross_in_order_of_numbers_are_untangled():
    rows = [(0, 3), (1, 2), (2, 4), (3, 5)]
    chains = make_chains(assign_layers(6, rows), rows)
    assert crossings(order_layers(chains), chains) == 0


def test_sources_come_down_to_their_readers():
    assert assign_layers(5, [(0, 1), (1, 2), (2, 3), (4, 3)]) == [0, 1, 2, 3, 2]


def test_boxes_without_edges_fill_rows():
    found = layout([BOX] * 25, [])
    assert max(found.layers) == 2
    assert found.width < 12 * 110


def test_very_long_edges_run_beside_the_drawing():
    count = 60
    chain = [(i, i + 1) for i in range(count - 1)]
    found = layout([BOX] * count, [*chain, (0, count - 1), (1, count - 2)])
    assert found.detours == (*[False] * len(chain), True, True)
    box = found.boxes[0]
    for route in found.routes[-2:]:
        assert all(not box[0] - 1 < x < box[0] + BOX[0] + 1 for x, _ in route[2:4])
    assert found.routes[-1][2][0] != found.routes[-2][2][0]


def test_nothing_is_a_small_empty_drawing():
    found = layout([], [])
    assert (found.boxes, found.routes) == ((), ())
    assert found.width > 0


def test_a_cycle_and_a_missing_box_are_refused():
    with pytest.raises(ValueError, match="has a cycle: box 1"):
        layout([BOX] * 3, [(0, 1), (1, 2), (2, 1)])
    with pytest.raises(ValueError, match=r"\(0, 3\) leads to a box that is not among the 3"):
        layout([BOX] * 3, [(0, 3)])


def test_work_grows_with_the_graph_and_not_with_its_square():
    """Bends, which all loops run over, are bounded by boxes and edges."""
    count = 2000
    edges = [(i * 7919 % i if i % 3 else i // 2, i) for i in range(1, count)] + [(i, i + 1) for i in range(count - 1)]
    chains = make_chains(assign_layers(count, edges), edges)
    assert chains.count <= 4 * (count + len(edges))
