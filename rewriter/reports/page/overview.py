"""What a page says first: coverage, what a user must know, inputs and outputs, and the place of the map."""

from __future__ import annotations

from collections.abc import Iterable

from passes.segments import TensorSpec
from rewriter.reports import web
from rewriter.reports.page.shown import Shown
from rewriter.reports.report import Report, dtype_name, flops_text, shape_text
from rewriter.reports.summary import cache_line, coverage_line, human_size

#: The rule of nodes that TensorFlow runs.
_ISLAND_RULE = "tensorflow"


def overview(shown: Shown) -> web.Html:
    """The figures that matter, and the nodes as one bar."""
    report = shown.report
    built = sum(engine.built for engine in report.engines)
    tiles: list[tuple[str, str]] = [
        (f"{report.coverage:.1%}", f"of the nodes that do work lie in {_where(report, report.built_coverage)}"),
        (f"{built} of {len(report.engines)}", "engines are built"),
        (str(len(report.native)), f"of {report.total_nodes} nodes stay native"),
        (report.precision.label, "is what engines compute in"),
    ]
    if report.flops_coverage is not None and report.flops:
        share = sum(engine.flops or 0 for engine in report.engines if engine.built) / report.flops
        words = f"of {flops_text(report.flops)} a call lie in {_where(report, share)}"
        tiles.insert(1, (f"{report.flops_coverage:.1%}", words))
    if report.verification:
        worst = max(report.verification.values())
        tiles.append((f"{worst:.1e}", "largest relative difference of the export from its source"))
    size = sum(engine.size for engine in report.engines)
    if size:
        tiles.append((human_size(size), "of engines"))
    if report.timings:
        tiles.append((f"{sum(report.timings.values()):.1f} s", "for the conversion"))
    cells = "".join(f'<div class="tile"><b>{web.text(n)}</b><span>{web.text(words)}</span></div>' for n, words in tiles)
    return web.section(
        "At a glance",
        web.Html(f'<div class="tiles">{cells}</div>'),
        _bar(report),
        web.paragraph(coverage_line(report), kind="soft"),
    )


def _where(report: Report, built: float) -> str:
    """What a share of the model lies in: engines, or segments that not all have one.

    Args:
        report: of the conversion.
        built: the share that lies in engines that are there.
    """
    if all(engine.built for engine in report.engines):
        return "engines"
    return f"segments, {built:.1%} in engines that are built"


def _bar(report: Report) -> web.Html:
    """All nodes of the model: in engines, in segments without one, in TensorFlow, native."""
    islands = sum(verdict.rule == _ISLAND_RULE for verdict in report.native)
    built = sum(engine.nodes for engine in report.engines if engine.built)
    waiting = sum(engine.nodes for engine in report.engines if not engine.built)
    parts = [
        ("built", built, "in engines"),
        ("unbuilt", waiting, "in segments without an engine"),
        ("tensorflow", islands, "in TensorFlow"),
        ("outside", len(report.native) - islands, "native"),
    ]
    found = [part for part in parts if part[1]]
    total = sum(count for _, count, _ in found)
    if not total:
        return web.Html("")
    spans = "".join(f'<span class="{kind}" style="flex:{count}"></span>' for kind, count, _ in found)
    words = "".join(
        f'<li><span class="swatch {kind}" style="border-color:transparent"></span>{count} node{"s" * (count != 1)} '
        f"{web.text(text)}</li>"
        for kind, count, text in found
    )
    return web.Html(f'<div class="stack" aria-hidden="true">{spans}</div><ul class="key">{words}</ul>')


def notes(shown: Shown) -> web.Html:
    """What went wrong and was survived, and what a user should know; nothing where there is neither."""
    report = shown.report
    parts: list[str] = []
    if report.failures:
        rows = [(failure.stage, failure.target, failure.kind, failure.reason) for failure in report.failures]
        parts.append(web.table(("stage", "what", "kind", "reason"), rows, caption="Survived"))
    broken = (entry for entry in shown.files if not entry.usable)
    parts += [web.paragraph(f"{entry.file} cannot be used: {entry.problem}", kind="bad") for entry in broken]
    parts += [web.paragraph(note) for note in report.precision.notes]
    if report.cache is not None:
        parts.append(web.paragraph(cache_line(report.cache), kind="soft"))
    return web.section("Good to know", *parts) if parts else web.Html("")


def interface(shown: Shown) -> web.Html:
    """What the model takes and gives."""
    report = shown.report
    differences = bool(report.verification)
    rows: list[tuple[object, ...]] = []
    for side, specs in (("input", shown.signature.inputs), ("output", shown.signature.outputs)):
        for spec in specs:
            known = report.verification.get(spec.name) if side == "output" else None
            row: tuple[object, ...] = (side, spec.name, dtype_name(spec.dtype), shape_text(spec))
            rows.append((*row, "" if known is None else f"{known:.1e}") if differences else row)
    heads = ("", "name", "type", "shape", *(("difference from the source",) if differences else ()))
    return web.section("Inputs and outputs", web.table(heads, rows, numeric=(4,)))


def graph(number: int) -> web.Html:
    """The place of the map; the script fills it.

    Args:
        number: of the signature; its data have the id `graph-NUMBER-data`.
    """
    tools = "".join(
        f'<button type="button" data-act="{act}" aria-label="{web.text(label)}" title="{web.text(label)}"'
        f"{more}>{sign}</button>"
        for act, label, sign, more in (
            ("in", "Zoom in", "+", ""),
            ("out", "Zoom out", "\u2212", ""),
            ("fit", "Show all", "Fit", ""),
            ("full", "Fill the screen", "Full screen", ' aria-pressed="false"'),
        )
    )
    return web.section(
        "Graph",
        web.Html(
            f'<div class="map" data-map="graph-{number}-data"><div class="tools">'
            '<input type="search" placeholder="Find a node, an operator or a value" aria-label="Find in the graph" '
            'autocomplete="off" spellcheck="false">'
            f'<label><select aria-label="What is drawn"></select></label>{tools}</div>'
            '<div class="found" role="status" hidden></div>'
            '<div class="legend" role="group" aria-label="Show only"></div>'
            '<div class="view"><canvas tabindex="0" role="application" aria-label="Map of the graph: '
            'arrow keys move it, plus and minus zoom, 0 shows all; the field above finds nodes"></canvas>'
            '<div class="tip" hidden></div><div class="about" aria-live="polite"></div></div>'
            '<p class="hint soft">Drag to move. Pinch to zoom, or click the map and turn the wheel. '
            "Tap a box for what it is and why it runs there.</p>"
            "<noscript><p>The map needs JavaScript.</p></noscript></div>"
        ),
    )


def specs(found: Iterable[TensorSpec]) -> list[str]:
    """Names, dtypes and shapes."""
    return [f"{spec.name}: {dtype_name(spec.dtype)} {shape_text(spec)}" for spec in found]
