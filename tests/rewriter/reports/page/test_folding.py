"""Folding drawings into columns."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.reports.graph_picture.layout import layout
from rewriter.reports.page.folding import ASPECT, fold


def folded(count, edges, size=(80.0, 40.0), aspect=ASPECT):
    sizes = [size] * count
    return fold(layout(sizes, edges), sizes, edges, aspect), sizes


def chain(count):
    return [(i, i + 1) for i in range(count - 1)]


def check(found, sizes, edges):
    """Boxes lie inside, and on no other; every edge leads from the side of one to the side of the other."""
    for (x, y), (width, height) in zip(found.boxes, sizes, strict=True):
        assert 0 <= x <= x + width <= found.width + 1e-6
        assert 0 <= y <= y + height <= found.height + 1e-6
    order = sorted(range(len(sizes)), key=lambda i: found.boxes[i])
    for number, i in enumerate(order):
        for j in order[number + 1 :]:
            (ax, ay), (bx, by) = found.boxes[i], found.boxes[j]
            if bx >= ax + sizes[i][0] - 1e-6:
                break
            assert by >= ay + sizes[i][1] - 1e-6 or ay >= by + sizes[j][1] - 1e-6
    for (source, target), route in zip(edges, found.routes, strict=True):
        (ax, ay), (bx, by) = found.boxes[source], found.boxes[target]
        assert route[0] == pytest.approx((ax + sizes[source][0] / 2, ay + sizes[source][1]))
        assert route[-1] == pytest.approx((bx + sizes[target][0] / 2, by))


def test_a_deep_chain_becomes_columns_of_about_one_height():
    edges = chain(400)
    found, sizes = folded(400, edges)
    check(found, sizes, edges)
    assert found.columns > 5
    assert 0.8 < found.width / found.height < 2.5
    # One edge goes from each column to the next.
    assert sum(found.angular) == found.columns - 1


def test_low_and_wide_drawings_stay_as_they_are():
    for count, edges in ((5, chain(5)), (61, [(0, i) for i in range(1, 61)]), (0, [])):
        found, sizes = folded(count, edges)
        drawing = layout(sizes, edges)
        assert (found.boxes, found.routes, found.columns) == (drawing.boxes, drawing.routes, 1)


def test_it_is_cut_where_few_edges_are():
    # Two ladders of 60 rungs, and one edge between them.
    edges = [
        e for start in (0, 120) for i in range(start, start + 118, 2) for e in ((i, i + 2), (i + 1, i + 3), (i, i + 3))
    ]
    edges.append((119, 120))
    found, sizes = folded(240, edges, aspect=0.2)
    check(found, sizes, edges)
    assert found.columns == 2
    assert sum(found.angular) == 1


def test_edges_to_columns_further_on_go_above_all_between():
    edges = [*chain(300), (2, 290), (5, 100), (250, 299)]
    found, sizes = folded(300, edges)
    check(found, sizes, edges)
    long = found.routes[299]
    assert found.angular[299]
    assert min(y for _, y in long) < min(y for _, y in found.boxes)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_graph_can_be_folded(data):
    count = data.draw(st.integers(1, 120))
    deep = chain(count) if data.draw(st.booleans()) else []
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    more = [(min(p), max(p)) for p in data.draw(st.lists(pairs, max_size=60)) if p[0] != p[1]]
    edges = list(dict.fromkeys([*deep, *more]))
    found, sizes = folded(count, edges)
    check(found, sizes, edges)
    again, _ = folded(count, edges)
    assert again == found
