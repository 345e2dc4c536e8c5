"""The tables of a page that tell of nodes: engines, and what stays native."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from rewriter.artifact.manifest import EngineEntry
from rewriter.reports import web
from rewriter.reports.graph_picture import colours
from rewriter.reports.page.overview import specs
from rewriter.reports.page.shown import Shown
from rewriter.reports.report import EngineReport, flops_text, group_by_reason
from rewriter.reports.summary import human_size, profile_texts

#: Names shown for one reason; the map and its search have them all.
MOST_NAMES = 20
#: Reasons shown for what an engine leaves alone.
MOST_REASONS = 20
#: Engines that are told of in full.
MOST_DETAILS = 100


def engines(shown: Shown) -> web.Html:
    """The table of engines, and what each is made of."""
    report = shown.report
    if not report.engines:
        return web.section("Engines", web.paragraph("There is no engine."))
    rows = [
        (
            _link(engine.name, "engine", str(number), colours.engine_colours(number)),
            engine.nodes,
            engine.layers or "-",
            engine.precision,
            human_size(engine.size) if engine.built else "-",
            f"{engine.seconds:.1f}" if engine.built else "-",
            flops_text(engine.flops) if engine.flops else "-",
            web.Html('<span class="good">built</span>') if engine.built else f"native: {engine.reason}",
        )
        for number, engine in enumerate(report.engines)
    ]
    heads = ("engine", "nodes", "layers", "precision", "size", "build s", "operations", "state")
    files: dict[str, list[EngineEntry]] = {}
    for entry in shown.files:
        files.setdefault(entry.op, []).append(entry)
    told = [_engine(engine, files.get(engine.name, [])) for engine in report.engines[:MOST_DETAILS]]
    more = len(report.engines) - len(told)
    if more > 0:
        told.append(web.paragraph(f"and {more} more: trt-rewriter inspect OUT --json tells of all", kind="soft"))
    return web.section(
        "Engines", web.table(heads, rows, numeric=(1, 2, 4, 5, 6)), details("What each is made of", *told)
    )


def _engine(engine: EngineReport, files: Iterable[EngineEntry]) -> web.Html:
    facts: dict[str, object] = {"operators": counts(engine.op_counts)}
    if engine.scope:
        facts["inside"] = "/".join(engine.scope)
    if engine.arithmetic:
        facts["computes in"] = counts(engine.arithmetic)
    if engine.lowering:
        facts["changed for its precision"] = counts(engine.lowering)
    for name, lines in (
        ("inputs", specs(engine.inputs)),
        ("outputs", specs(engine.outputs)),
        ("built for", profile_texts(engine)),
        ("left alone", _decisions(engine)),
        ("files", [_file(entry) for entry in files]),
    ):
        if lines:
            facts[name] = lines_of(lines)
    return details(engine.name, web.facts(facts))


def _decisions(engine: EngineReport) -> list[str]:
    """Why nodes were not lowered, or not quantised: reasons with their numbers of nodes."""
    reasons: dict[str, dict[str, int]] = {}
    for rule, node, reason in engine.decisions:
        rules = reasons.setdefault(reason.replace(repr(node), "'*'"), {})
        rules[rule] = rules.get(rule, 0) + 1
    lines = [f"{counts(rules)}: {reason}" for reason, rules in itertools.islice(reasons.items(), MOST_REASONS)]
    more = len(reasons) - len(lines)
    return lines + ([f"and {more} more reasons"] if more else [])


def _file(entry: EngineEntry) -> str:
    state = "" if entry.usable else f", UNUSABLE: {entry.problem}"
    built = f"{entry.backend} {entry.version}, {' '.join(entry.targets)}"
    return f"{entry.file}: {human_size(entry.size)}, {built}{state}"


def native(shown: Shown) -> web.Html:
    """What stays native, by reason; names lead to the map."""
    groups = []
    for group in group_by_reason(shown.report.native):
        names = [_link(name, "node", name) for name in group.nodes[:MOST_NAMES]]
        more = len(group.nodes) - len(names)
        count = f"{len(group.nodes)} node{'s' * (len(group.nodes) != 1)}"
        groups.append(
            f"<li><p><b>{count}</b> {web.text(counts(group.ops))} "
            f'<span class="soft">({web.text(group.rule)})</span></p>'
            f"<p>{web.text(group.reason)}</p><p>{' '.join(names)}{f' and {more} more' if more else ''}</p></li>"
        )
    told = web.Html(f'<ul class="groups">{"".join(groups)}</ul>') if groups else web.paragraph("No node is native.")
    return web.section("Native nodes, by reason", told)


def details(title: object, *parts: str) -> web.Html:
    """Parts that open when the title is clicked."""
    return web.Html(f"<details><summary>{web.text(title)}</summary>{''.join(parts)}</details>")


def lines_of(lines: Iterable[object]) -> web.Html:
    """A list."""
    return web.Html(f'<ul class="plainlist">{"".join(f"<li>{web.text(line)}</li>" for line in lines)}</ul>')


def counts(found: Mapping[str, int]) -> str:
    """For example "Conv x4, Softmax"."""
    return ", ".join(f"{name} x{count}" if count > 1 else name for name, count in found.items())


def _link(words: str, kind: str, value: str, colour: tuple[str, str] | None = None) -> web.Html:
    """A button that shows something on the map."""
    swatch = ""
    if colour:
        swatch = f'<span class="swatch" style="background:{colour[0]};border-color:{colour[1]}"></span>'
    return web.Html(
        f'<button type="button" class="find" data-{kind}="{web.text(value)}">{swatch}{web.text(words)}</button>'
    )
