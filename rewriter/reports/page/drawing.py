"""The graph of a converted model as data for the page's map: small, for a model may have thousands of nodes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from passes.model import Model
from passes.precision.ranges import RangeTable
from rewriter.reports.graph_picture import colours
from rewriter.reports.graph_picture.contents import (
    ENGINE,
    INPUT,
    ISLAND,
    MEMBER,
    NATIVE,
    OUTPUT,
    Box,
    Content,
    Panel,
    make_content,
)
from rewriter.reports.graph_picture.layout import Point, layout
from rewriter.reports.page.folding import fold
from rewriter.reports.report import Report

#: Models with more nodes are drawn with one box for each engine only.
EXPANDED_UP_TO = 20_000
#: Pixels that a line may be off where it goes straight down.
_STRAIGHT = 3
#: The number of a kind in the data is its place here.
KINDS = (INPUT, OUTPUT, NATIVE, ISLAND, ENGINE, MEMBER)


class Strings:
    """Collects strings, each once."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def add(self, text: str) -> int:
        """A number for a string; the same string has the same one."""
        return self._seen.setdefault(text, len(self._seen))

    def sorted(self) -> tuple[list[int | str], list[int]]:
        """The strings in order, each as (characters that it shares with the one before, the rest), and where each is.

        Characters are counted as JavaScript does: in UTF-16.

        Returns:
            The flat list, and for every number of `add` the place of its string.
        """
        order = sorted(self._seen)
        flat: list[int | str] = []
        last = ""
        for text in order:
            shared = _shared(last, text)
            flat += [len(text[:shared].encode("utf-16-le", "surrogatepass")) // 2, text[shared:]]
            last = text
        place = {text: number for number, text in enumerate(order)}
        return flat, [place[text] for text in self._seen]


def _shared(one: str, other: str) -> int:
    """How many characters two strings begin with alike."""
    number = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        number += 1
    return number


def map_data(model: Model, report: Report, ranges: RangeTable | None = None) -> dict[str, Any]:
    """What the map of one signature shows.

    Args:
        model: the spliced model.
        report: of the same conversion.
        ranges: of values, told beside them; None for none.

    Returns:
        JSON-ready values: strings, engines (name, text, ready, fill, border), kinds of boxes and dtypes of lines with
        their colours, ranges by the number of the value's string, and the drawings: every node first, then with one
        box for each engine.
    """
    strings = Strings()
    contents = [(make_content(model, report, False), False)]
    if report.engines and report.total_nodes <= EXPANDED_UP_TO:
        contents.insert(0, (make_content(model, report, True), True))
    dtypes = {line.dtype: None for content, _ in contents for panel in content.panels for line in panel.lines}
    drawings = [
        _drawing(panel, strings, list(dtypes), expanded=expanded)
        for content, expanded in contents
        for panel in content.panels
        if panel.boxes and (not panel.title or expanded or len(contents) == 1)
    ]
    known = ranges.ranges if ranges else {}
    values = {name for content, _ in contents for name in _values(content)}
    used = {
        strings.add(name): [float(f"{bound:.4g}") for bound in (found.minimum, found.maximum)]
        for name, found in known.items()
        if name in values
    }
    flat, places = strings.sorted()
    for drawing in drawings:
        _place(drawing, places)
    return {
        "strings": flat,
        "engines": _engines(contents[0][0]),
        "kinds": [list(colours.KINDS.get(kind, ("", ""))) for kind in KINDS],
        "dtypes": [[name or "unknown type", colours.dtype_colour(name)] for name in dtypes],
        "ranges": {str(places[number]): pair for number, pair in used.items()},
        "drawings": drawings,
    }


def _engines(content: Content) -> list[list[Any]]:
    return [[e.name, e.text, int(e.ready), *colours.engine_colours(i)] for i, e in enumerate(content.engines)]


def _values(content: Content) -> Iterator[str]:
    """Names of the values that boxes give."""
    for panel in content.panels:
        for box in panel.boxes:
            for name, _ in box.results:
                yield name


def _drawing(panel: Panel, strings: Strings, dtypes: Sequence[str], *, expanded: bool) -> dict[str, Any]:
    """One graph; columns of numbers, a number a box."""
    sizes = [_size(box) for box in panel.boxes]
    edges = [(line.source, line.target) for line in panel.lines]
    found = fold(layout(sizes, edges), sizes, edges)
    number: Mapping[str, int] = {name: i for i, name in enumerate(dtypes)}
    return {
        "title": panel.title,
        "expanded": int(expanded),
        "size": [round(found.width), round(found.height)],
        "kind": [KINDS.index(box.kind) for box in panel.boxes],
        "engine": [box.engine for box in panel.boxes],
        "label": [strings.add(box.label) for box in panel.boxes],
        "name": [strings.add(box.name) for box in panel.boxes],
        # The page makes the second line of a node out of its name.
        "detail": [strings.add("" if box.kind in (NATIVE, MEMBER) else box.detail) for box in panel.boxes],
        "notes": [[strings.add(note) for note in box.notes] for box in panel.boxes],
        "results": [[strings.add(word) for result in box.results for word in result] for box in panel.boxes],
        "box": [round(v) for p, size in zip(found.boxes, sizes, strict=True) for v in (*p, *size)],
        "lines": [
            # Its ends are the middles of the boxes' sides.
            [line.source, line.target, 2 * number[line.dtype] + angular, *_bends(route)]
            for line, route, angular in zip(panel.lines, found.routes, found.angular, strict=True)
        ],
    }


def _place(drawing: dict[str, Any], places: Sequence[int]) -> None:
    """Numbers of strings become their places."""
    for column in ("label", "name", "detail"):
        drawing[column] = [places[number] for number in drawing[column]]
    for column in ("notes", "results"):
        drawing[column] = [[places[number] for number in row] for row in drawing[column]]


def _bends(route: Sequence[Point]) -> list[int]:
    """The points of a route between its ends, without those (nearly) on the way straight down."""
    points = [(round(x), round(y)) for x, y in route]
    kept = points[:1]
    for point, after in itertools.pairwise(points[1:]):
        straight = max(kept[-1][0], point[0], after[0]) - min(kept[-1][0], point[0], after[0]) <= _STRAIGHT
        if not straight:
            kept.append(point)
    return [number for point in kept[1:] for number in point]


def _size(box: Box) -> Point:
    """Width and height in pixels; the page shortens what is longer than this."""
    second = box.name.rstrip("/").rpartition("/")[2] if box.kind in (NATIVE, MEMBER) else box.detail
    width = max(min(len(box.label), 32) * 7.3, min(len(second), 28) * 5.7) + 22
    if box.kind == ENGINE:
        return max(width, 150.0), 52.0
    return max(width, 60.0), 38.0 if second else 26.0
