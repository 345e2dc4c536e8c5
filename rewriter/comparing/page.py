"""A comparison as one HTML file: the verdict, every pair's figures and pictures, and what was compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rewriter.comparing.findings import Finding
from rewriter.comparing.pictures import has_picture, heat_map_png, histogram_png
from rewriter.comparing.values import Comparison, Difference, Pair, PairDifference
from rewriter.comparing.words import (
    difference_columns,
    failure,
    mark,
    sample_words,
    shape_words,
    size,
    spread_cells,
    verdict,
)
from rewriter.errors import InvalidParameterError
from rewriter.reports import web

#: Outputs of a pair that have pictures on the page; of more those that are furthest off.
MOST_PICTURED = 12
_LEGEND = (
    "max rel is the largest difference of an output over all samples, relative to the largest magnitude of the "
    "reference; mean rel is the mean difference relative to the mean magnitude. agree is the share of rows with the "
    "same largest score, or of equal values where they are no scores.",
    "A histogram counts values by how much they differ, on logarithmic axes; the dashed line is the limit, what lies "
    "beyond it is red. Equal values, and those that are no numbers, have bars of their own.",
    "A heat map shows where in the output the differences are: white does not differ, violet is NaN, infinity or "
    "another text on one side. An item is one row of the batch, counted over all samples.",
)
_STYLE = """
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:0 1rem;align-items:start}
.pictures figure{margin:.5rem 0}
.verdict{font-size:1.15rem;font-weight:700}
.pair{overflow-wrap:anywhere;min-width:4.5rem}
@media (max-width:40rem){#verdict th,#verdict td{padding-left:.2rem;padding-right:.2rem}#verdict th{white-space:normal}}
.whole{white-space:nowrap}
.name{display:inline-block;min-width:6.5rem}
.cause{white-space:pre-wrap}
details{margin:.5rem 0}
summary{cursor:pointer;padding:.4rem 0}
"""


def comparison_page(
    comparison: Comparison,
    *,
    title: str,
    findings: Sequence[Finding] = (),
    facts: Mapping[str, object] | None = None,
) -> str:
    """The page, with nothing that a browser would have to fetch.

    Args:
        comparison: made with histograms and heat maps.
        title: of the page.
        findings: what the bisections found.
        facts: what else to tell (versions, options), a line each.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    body = [_verdict(comparison)]
    if findings:
        parts = [web.Html(f'<pre class="cause">{web.text(finding.text)}</pre>') for finding in findings]
        body.append(web.section("Where it begins", *parts, anchor="cause"))
    body.append(_compared(comparison))
    body += [_pair(number, pair) for number, pair in enumerate(comparison.pairs)]
    body.append(_values(comparison))
    body.append(web.section("How to read the figures", *map(web.paragraph, _LEGEND), anchor="legend"))
    if facts:
        body.append(web.section("Made with", web.facts(facts), anchor="facts"))
    return str(web.document(title, body, style=_STYLE))


def write_page(path: str | Path, page: str) -> None:
    """Writes a page.

    Raises:
        InvalidParameterError: the file cannot be written.
    """
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise InvalidParameterError(f"cannot write the page {str(path)!r}: {error}") from error


def _verdict(comparison: Comparison) -> web.Html:
    """PASSED or FAILED, and a row a pair."""
    kind, word = ("good", "PASSED") if comparison.passed else ("bad", "FAILED")
    rows = []
    for number, pair in enumerate(comparison.pairs):
        worst = (pair.failed or sorted(pair.differences, key=lambda d: -d.max_rel))[:1]
        names = f"{web.text(pair.pair.reference)} &rarr; {web.text(pair.pair.result)}"
        link = web.Html(f'<a href="#pair{number}">{names}</a>')
        found = worst[0] if worst else None
        limit = None if found is None else pair.pair.limit(found.output)
        far = "-" if found is None or found.text or found.fault else size(found.max_rel)
        said = "" if found is None or not found.max_rel else f'<br><span class="soft">{web.text(found.output)}</span>'
        rows.append([web.Html(f'<div class="pair">{link}{said}</div>'), _state(pair), far, size(limit)])
    return web.section(
        "Verdict",
        web.Html(f'<p class="verdict {kind}">{word}</p>'),
        web.table(["pair, output", "", "max rel", "limit"], rows, numeric=(2, 3)),
        anchor="verdict",
    )


def _state(pair: PairDifference) -> web.Html:
    if all(pair.pair.limit(d.output) is None for d in pair.differences):
        return web.Html('<span class="soft">only reported</span>')
    if pair.passed and any(map(pair.pair.by_absolute, pair.differences)):
        return web.Html(f'<span class="good">ok by the absolute bound {size(pair.pair.absolute)}</span>')
    return web.Html('<span class="good">ok</span>' if pair.passed else '<span class="whole bad">FAILED</span>')


def _compared(comparison: Comparison) -> web.Html:
    """Who was compared, on what, and what is worth knowing."""
    notes = [web.paragraph(f"Note: {note}", kind="warn") for note in comparison.notes]
    runners = {**comparison.runners, "inputs": sample_words(comparison)}
    return web.section("What was compared", web.facts(runners), *notes, anchor="compared")


def _pair(number: int, pair: PairDifference) -> web.Html:
    """Figures of all outputs of a pair, then pictures of those that are furthest off."""
    columns = difference_columns(pair)
    rows = [[_name(d.output), _mark(pair.pair, d), *(column.cell(d) for column in columns)] for d in pair.differences]
    table = web.table(["output", "", *(column.heading for column in columns)], rows, numeric=range(2, len(columns) + 2))
    drawn = sorted(filter(has_picture, pair.differences), key=lambda d: excess(pair.pair, d), reverse=True)
    parts = [web.paragraph(f"{verdict(pair)}."), table]
    parts += [web.paragraph(failure(pair.pair, d), kind="bad") for d in pair.failed if not has_picture(d)]
    for place, found in enumerate(drawn[:MOST_PICTURED]):
        parts.append(_output(pair.pair, found, opened=place < 3))
    others = len(pair.differences) - len(drawn)
    told = [f"{others} output(s) are equal, or of another shape or type, and have no pictures."] if others else []
    if len(drawn) > MOST_PICTURED:
        told.append(
            f"The {len(drawn) - MOST_PICTURED} outputs with smaller differences have none here: --pictures draws all."
        )
    parts += [web.paragraph(words, kind="soft") for words in told]
    return web.section(f"{pair.pair.result} against {pair.pair.reference}", *parts, anchor=f"pair{number}")


def excess(pair: Pair, found: Difference) -> float:
    """How many times its limit an output is off; its relative difference where it has no limit."""
    return found.max_rel / (pair.limit(found.output) or 1.0)


def _mark(pair: Pair, found: Difference) -> web.Html:
    word = mark(pair, found)
    return web.Html(f'<span class="whole {"bad" if word == "FAILED" else "good"}">{word}</span>')


def _output(pair: Pair, found: Difference, *, opened: bool) -> web.Html:
    """The pictures of one output, and where it is furthest off."""
    names = f"{found.output}: {pair.result} against {pair.reference}"
    shown = [web.png(histogram_png(pair, found), f"Histogram of the differences of {names}")]
    heat_map = heat_map_png(pair, found)
    if heat_map is not None:
        shown.append(web.png(heat_map, f"Heat map of the differences of {names}"))
    words = failure(pair, found)
    told = web.paragraph(words, kind="soft") if words else ""
    state = " open" if opened else ""
    return web.Html(
        f"<details{state}><summary>{web.text(found.output)}: {web.text(size(found.max_rel))}</summary>{told}"
        f'<div class="pictures">{"".join(shown)}</div></details>'
    )


def _values(comparison: Comparison) -> web.Html:
    """The values of every runner."""
    rows = [
        [_name(s.output), *map(_whole, (s.runner, s.dtype, shape_words(s.shape))), *spread_cells(s)]
        for s in comparison.spreads
    ]
    headings = ["output", "of", "dtype", "shape", "min", "max", "mean", "NaN", "inf"]
    return web.section("Values", web.table(headings, rows, numeric=range(4, 9)), anchor="values")


def _name(output: str) -> web.Html:
    """The name of an output, in a column that stays wide enough to be read on a phone."""
    return web.Html(f'<span class="name">{web.text(output)}</span>')


def _whole(value: object) -> web.Html:
    """Text that is not broken into lines."""
    return web.Html(f'<span class="whole">{web.text(value)}</span>')
