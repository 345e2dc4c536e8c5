"""A picture as SVG: one self-contained file without scripts; tooltips are <title> elements."""

from __future__ import annotations

import itertools
import re
from xml.sax.saxutils import escape

from rewriter.reports.graph_picture import colours
from rewriter.reports.graph_picture.contents import ENGINE, INPUT, ISLAND, NATIVE, OUTPUT, Box, Content, Line, Panel
from rewriter.reports.graph_picture.layout import Layout, Point, layout

_MARGIN = 24
#: Engines that the legend lists; the others are counted.
_LISTED = 24
_LEGEND_WIDTH = 720.0
#: Of a wider drawing the legend is still seen without scrolling.
_WIDEST_LEGEND = 1400.0
_CONTROL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_STYLE = """
text{font-family:"Segoe UI",Helvetica,Arial,sans-serif;fill:#111827;text-anchor:middle}
.l{font-size:12px;font-weight:600}.d{font-size:10px;fill:#4b5563}.k{font-size:11px;text-anchor:start}
.h{font-size:17px;font-weight:600;text-anchor:start}.s{font-size:12px;fill:#4b5563;text-anchor:start}
.b{stroke-width:1.2}.n{stroke-dasharray:5 3}.E{stroke-width:2}
path{fill:none;stroke-width:1.4;opacity:.8}path:hover{stroke-width:4;opacity:1}g:hover>.b{stroke-width:3}
"""


def to_svg(content: Content) -> str:
    """Draws the panels one below the other, under title and legend."""
    drawn = [(panel, layout([_size(box) for box in panel.boxes], _edges(panel))) for panel in content.panels]
    width = max([_LEGEND_WIDTH, *(found.width for _, found in drawn)]) + 2 * _MARGIN
    body, top = _legend(content, min(width, _WIDEST_LEGEND))
    for panel, found in drawn:
        if panel.title:
            body.append(f'<text class="h" x="{_MARGIN}" y="{top + 20:.0f}">{_text("inside " + panel.title)}</text>')
            top += 28
        left = (width - found.width) / 2
        body.append(f'<g transform="translate({left:.0f},{top:.0f})">')
        body += [
            _path(line, route, detour=detour)
            for line, route, detour in zip(panel.lines, found.routes, found.detours, strict=True)
        ]
        body += _boxes(content, panel, found)
        body.append("</g>")
        top += found.height
    style = _STYLE + "".join(f".t{i}{{stroke:{colour}}}" for i, colour in enumerate(_LINE_COLOURS))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{top + _MARGIN:.0f}" '
            f'viewBox="0 0 {width:.0f} {top + _MARGIN:.0f}">',
            f"<title>{_text(content.title)}</title><style>{style}</style>",
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
            '<path d="M0 0L8 4L0 8z" style="fill:#475569;stroke:none"/></marker></defs>',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *body,
            "</svg>\n",
        ]
    )


_LINE_COLOURS = (*colours.DTYPES.values(), colours.OTHER_DTYPE)


def _edges(panel: Panel) -> list[tuple[int, int]]:
    return [(line.source, line.target) for line in panel.lines]


def _size(box: Box) -> Point:
    """Width and height in pixels, from the number of characters."""
    width = max(len(_label(box)) * 7.3, len(_detail(box)) * 5.7) + 22
    if box.kind == ENGINE:
        return max(width, 150.0), 52.0
    return max(width, 60.0), 38.0 if box.detail else 26.0


def _label(box: Box) -> str:
    return box.label if len(box.label) <= 32 else f"…{box.label[-31:]}"


def _detail(box: Box) -> str:
    return box.detail if len(box.detail) <= 44 else f"{box.detail[:43]}…"


def _boxes(content: Content, panel: Panel, found: Layout) -> list[str]:
    lines = []
    for box, (x, y) in zip(panel.boxes, found.boxes, strict=True):
        width, height = _size(box)
        fill, border = colours.box_colours(box)
        dashed = " n" if box.engine >= 0 and not content.engines[box.engine].ready else ""
        strong = " E" if box.kind == ENGINE else ""
        radius = height / 2 if box.kind in (INPUT, OUTPUT) else 10 if box.kind in (ENGINE, ISLAND) else 5
        middle = x + width / 2
        texts = f'<text class="l" x="{middle:.0f}" y="{y + height / 2 + (-2 if box.detail else 4):.0f}">'
        texts += f"{_text(_label(box))}</text>"
        if box.detail:
            texts += f'<text class="d" x="{middle:.0f}" y="{y + height / 2 + 11:.0f}">{_text(_detail(box))}</text>'
        lines.append(
            f'<g><title>{_text(box.tooltip)}</title><rect class="b{dashed}{strong}" x="{x:.0f}" y="{y:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" rx="{radius:.0f}" fill="{fill}" stroke="{border}"/>{texts}</g>'
        )
    return lines


def _path(line: Line, route: tuple[Point, ...], *, detour: bool) -> str:
    """Curves between layers; right angles beside the drawing."""
    words = [f"M{route[0][0]:.0f} {route[0][1]:.0f}"]
    for (ax, ay), (bx, by) in itertools.pairwise(route):
        if detour or abs(ax - bx) < 1:
            words.append(f"L{bx:.0f} {by:.0f}")
        else:
            middle = (ay + by) / 2
            words.append(f"C{ax:.0f} {middle:.0f} {bx:.0f} {middle:.0f} {bx:.0f} {by:.0f}")
    kind = _LINE_COLOURS.index(colours.dtype_colour(line.dtype))
    return (
        f'<path class="t{kind}" marker-end="url(#a)" d="{"".join(words)}"><title>{_text(line.tooltip)}</title></path>'
    )


def _legend(content: Content, width: float) -> tuple[list[str], float]:
    """Title, engines, kinds of boxes and dtypes of lines, and the height that they take."""
    lines = [
        f'<text class="h" x="{_MARGIN}" y="34">{_text(content.title)}</text>',
        f'<text class="s" x="{_MARGIN}" y="54">{_text(content.subtitle)}</text>',
    ]
    kinds = {box.kind for panel in content.panels for box in panel.boxes}
    dtypes = {line.dtype: None for panel in content.panels for line in panel.lines}
    entries: list[tuple[str, str, str]] = []  # (fill, border, text); no fill is a line
    for number, engine in enumerate(content.engines[:_LISTED]):
        fill, border = colours.engine_colours(number)
        entries.append((fill, border, f"{engine.name}: {engine.text}"))
    if len(content.engines) > _LISTED:
        entries.append(("#ffffff", "#ffffff", f"and {len(content.engines) - _LISTED} more engines"))
    names = ((NATIVE, "native, reason in the tooltip"), (ISLAND, "TensorFlow"))
    entries += [(*colours.KINDS[kind], text) for kind, text in names if kind in kinds]
    if any(not engine.ready for engine in content.engines):
        entries.append(("#ffffff", "#374151", "dashed: runs natively, it has no engine"))
    entries += [("", colours.dtype_colour(dtype), dtype or "unknown type") for dtype in sorted(dtypes)]
    x, y = float(_MARGIN), 70.0
    for fill, border, text in entries:
        room = 44 + len(text) * 6.0
        if x > _MARGIN and x + room > width - _MARGIN:
            x, y = float(_MARGIN), y + 22
        if fill:
            dash = " n" if text.startswith("dashed") or text.endswith("no engine") else ""
            lines.append(
                f'<rect class="b{dash}" x="{x:.0f}" y="{y:.0f}" width="18" height="13" rx="3" fill="{fill}" '
                f'stroke="{border}"/>'
            )
        else:
            lines.append(f'<path style="stroke:{border};stroke-width:3" d="M{x:.0f} {y + 7:.0f}h18"/>')
        lines.append(f'<text class="k" x="{x + 24:.0f}" y="{y + 11:.0f}">{_text(text)}</text>')
        x += room
    return lines, y + 30


def _text(text: str) -> str:
    """Text for XML: escaped, without the characters that XML cannot hold."""
    return escape(_CONTROL.sub("\ufffd", text))
