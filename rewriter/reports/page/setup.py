"""What a conversion was told and made with: precision and ranges, parameters, versions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from passes.precision.ranges import RangeTable, TensorRange
from rewriter.reports import web
from rewriter.reports.page.nodes import details, lines_of
from rewriter.reports.page.shown import Shown
from rewriter.reports.summary import precision_lines

#: Ranges in the table, the largest first.
MOST_RANGES = 200
#: So many are shown without a click.
_FEW = 20
#: Reasons and nodes in the list of what was kept out of the asked precision.
MOST_KEPT = 200
#: The largest finite value of a float16.
_FLOAT16 = 65504.0
_WIDTH, _HEIGHT, _LEFT, _TOP = 900, 220, 56, 12
#: Dots in the picture of ranges.
_MOST_DOTS = 1200


def precision(shown: Shown) -> web.Html:
    """The arithmetic of the engines, what was kept out of it and why, and the ranges."""
    found = shown.report.precision
    parts: list[str] = [web.facts(plain({"computes in": found.label, **found.recipe}))]
    parts += [web.paragraph(line) for line in precision_lines(shown.report, detailed=False)]
    if found.kept:
        listed = list(found.kept.items())
        rows = listed[:MOST_KEPT]
        more = f" ({MOST_KEPT} of {len(listed)})" if len(listed) > MOST_KEPT else ""
        table = web.table(("node", "reason"), rows)
        parts.append(details(f"{len(listed)} node(s) kept in higher precision{more}", table))
    if found.accuracy:
        parts.append(details("What the accuracy guard measured", code(found.accuracy)))
    if shown.ranges is not None and shown.ranges.ranges:
        parts.append(_ranges(shown.ranges, _order(shown)))
    return web.section("Precision and ranges", *parts)


def _order(shown: Shown) -> list[str]:
    """Names of values as they are computed, bodies of engines in the place of their nodes."""
    graph = shown.model.proto.graph
    bodies = {function.name: function for function in shown.model.proto.functions}
    names = [value.name for value in graph.input]
    for node in graph.node:
        body = bodies.get(node.op_type)
        names += [name for inner in (body.node if body else ()) for name in inner.output]
        names += node.output
    return names


def _ranges(table: RangeTable, order: Sequence[str]) -> web.Html:
    ranges = table.ranges
    ordered = dict.fromkeys([*(name for name in order if name in ranges), *sorted(ranges)])
    by_size = sorted(ranges, key=lambda name: (-ranges[name].amax, name))
    shown = by_size[:MOST_RANGES]
    rows = [(name, f"{ranges[name].minimum:.4g}", f"{ranges[name].maximum:.4g}") for name in shown]
    words = "the largest first" if len(shown) == len(by_size) else f"the {len(shown)} largest of {len(by_size)}"
    listed = web.table(("tensor", "from", "to"), rows, numeric=(1, 2))
    return web.Html(
        f"<h3>{len(ranges)} ranges by {web.text(table.method)}, {table.samples} sample(s)</h3>"
        + _dots([ranges[name] for name in ordered])
        + (details(f"Ranges, {words}", listed) if len(rows) > _FEW else listed)
    )


def _dots(ranges: Sequence[TensorRange]) -> web.Html:
    """Largest magnitudes in the order of computation, as a picture: powers of ten upwards."""
    step = -(-len(ranges) // _MOST_DOTS)  # of so many neighbours the largest is drawn
    sizes = [max(r.amax for r in ranges[i : i + step]) for i in range(0, len(ranges), step)]
    seen = [math.log10(size) for size in sizes if size > 0]
    if not seen:
        return web.paragraph("All of them are zero.", kind="soft")
    low, high = math.floor(max(min(seen), -12.0)), math.ceil(max(seen))
    high += high == low

    def height(power: float) -> float:
        return _TOP + (_HEIGHT - 2 * _TOP) * (high - max(power, low)) / (high - low)

    every = -(-(high - low) // 8)
    lines = [
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{height(p):.1f}" y2="{height(p):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{height(p) + 4:.1f}" text-anchor="end">1e{p}</text>'
        for p in range(low, high + 1, every)
    ]
    limit = math.log10(_FLOAT16)
    if low < limit <= high:
        lines.append(
            f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH}" y1="{height(limit):.1f}" y2="{height(limit):.1f}"/>'
            f'<text x="{_WIDTH - 4}" y="{height(limit) - 5:.1f}" text-anchor="end">largest float16</text>'
        )
    room = (_WIDTH - _LEFT - 12) / len(sizes)
    points = [(_LEFT + 6 + (i + 0.5) * room, height(math.log10(size))) for i, size in enumerate(sizes) if size > 0]
    dots = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in points)
    words = "Largest magnitude of every tensor with a range, in the order of computation"
    return web.Html(
        f'<figure><svg class="dots" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{words}">'
        f'{"".join(lines)}<path class="dot" d="{dots}"/></svg>'
        f"<figcaption>{words}</figcaption></figure>"
    )


def parameters(shown: Shown) -> web.Html:
    """The parameters in force; the recipe stands under precision."""
    values = {name: value for name, value in shown.report.params.items() if name != "recipe"}
    return web.section("Parameters", web.facts(plain(values)) if values else web.paragraph("None are recorded."))


def versions(shown: Shown) -> web.Html:
    """The packages that took part."""
    return web.section("Versions", web.facts(dict(shown.report.versions)))


def plain(values: Mapping[str, Any]) -> dict[str, object]:
    """Values for `web.facts`: lists in one line, mappings as code that opens."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> object:
    if isinstance(value, Mapping):
        return details("show", code(value)) if value else "none"
    if isinstance(value, (list, tuple)):
        return (", ".join(map(str, value)) if len(value) <= 12 else lines_of(value)) if value else "none"
    return value


def code(value: Any) -> web.Html:
    """Plain data as indented JSON."""
    return web.Html(f"<pre>{web.text(json.dumps(value, indent=1, ensure_ascii=False, default=str))}</pre>")
