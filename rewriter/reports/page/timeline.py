"""When what was done: the stages of a conversion, and its passes with their numbers of nodes."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.reports import web
from rewriter.reports.page.nodes import counts, details, lines_of
from rewriter.reports.page.shown import Shown


def timeline(shown: Shown) -> web.Html:
    """Stages and passes, each as a bar from its start to its end."""
    report = shown.report
    parts: list[str] = []
    if report.timings:
        bars = lanes(list(report.timings.values()))
        lines = "".join(
            f'<span class="label">{web.text(stage)}</span>{bar}<span class="number">{seconds_text(seconds)}</span>'
            for (stage, seconds), bar in zip(report.timings.items(), bars, strict=True)
        )
        parts.append(f'<h3>Stages</h3><div class="timeline">{lines}</div>')
    if report.passes:
        bars = lanes([step.seconds for step in report.passes])
        rows = [
            (
                step.name,
                bar,
                seconds_text(step.seconds),
                _nodes(step.nodes_before, step.nodes_after),
                counts(step.changes),
            )
            for step, bar in zip(report.passes, bars, strict=True)
        ]
        first, last = report.passes[0].nodes_before, report.passes[-1].nodes_after
        heads = ("pass", web.Html('<span class="lane">when</span>'), "time", "nodes", "changes")
        parts.append(
            f"<h3>Passes: {first} nodes became {last}</h3>"
            + web.table(heads, rows, numeric=(2, 3))
            + details("Options of the passes", lines_of(step.options for step in report.passes))
        )
    return web.section("Timeline", *parts) if parts else web.Html("")


def lanes(seconds: Sequence[float]) -> list[web.Html]:
    """A bar for each of these that follow one another, as wide as its share of them all."""
    total = sum(seconds) or 1.0
    bars, start = [], 0.0
    for each in seconds:
        left, width = 100 * start / total, 100 * each / total
        style = f"margin-left:min({left:.2f}%,calc(100% - 2px));width:{width:.2f}%"
        bars.append(web.Html(f'<span class="track"><span class="bar" style="{style}"></span></span>'))
        start += each
    return bars


def seconds_text(seconds: float) -> str:
    """For example "1.20 s", "3.4 ms"."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _nodes(before: int, after: int) -> str:
    return str(after) if before == after else f"{before} \u2192 {after} ({after - before:+d})"
