"""The report as tables for a terminal."""

from __future__ import annotations

import io
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from passes.segments import TensorSpec
from rewriter.errors import InvalidParameterError
from rewriter.reports.report import (
    CacheStats,
    EngineReport,
    Report,
    dtype_name,
    flops_text,
    group_by_reason,
    shape_text,
)
from rewriter.reports.tftrt_summary import print_tftrt_table

#: Narrower lines than this break the tables (TF-TRT wanted 160).
MINIMUM_LINE_LENGTH = 80
#: Reasons shown for what an engine computes in higher precision.
MAXIMUM_REASONS = 8
#: Names of native nodes shown for one reason.
MAXIMUM_NAMES = 3


def check_line_length(value: object) -> int:
    """The value as a line length in characters.

    Raises:
        InvalidParameterError: no integer of at least `MINIMUM_LINE_LENGTH`.
    """
    try:
        length = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        length = 0
    if length < MINIMUM_LINE_LENGTH:
        raise InvalidParameterError(f"line_length must be at least {MINIMUM_LINE_LENGTH}, not {value!r}")
    return length


def render_summary(report: Report, line_length: int = 160, detailed: bool = True) -> str:
    """TF-TRT's table, then ours: engines, native nodes by reason and coverage, as text.

    Args:
        report: what to show.
        line_length: characters a line, at least `MINIMUM_LINE_LENGTH`.
        detailed: with op counts and shapes of every engine; False prints the engine tables in short.
    """
    console = plain_console(file=io.StringIO(), width=max(line_length, MINIMUM_LINE_LENGTH), color_system=None)
    print_tftrt_table(console, report, detailed=detailed)
    console.print()
    print_report(console, report, detailed=detailed)
    file = console.file
    assert isinstance(file, io.StringIO)  # noqa: S101 - narrows the type
    return file.getvalue().rstrip("\n")


def plain_console(**options: Any) -> Console:
    """A console that prints text as it is: brackets and colons are no markup, lines are not broken (tables are)."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)


def print_report(console: Console, report: Report, *, detailed: bool = True) -> None:
    """Prints our tables to a console (with colours where it has them)."""
    console.print(_engine_table(report), soft_wrap=False)
    for engine in report.engines:
        if not engine.built:
            console.print(f"  {engine.name} has no engine: {engine.reason}")
    if any(not engine.built for engine in report.engines):
        console.print()
    if detailed:
        for engine in report.engines:
            console.print(_engine_details(engine), soft_wrap=False)
    console.print(_native_table(report, detailed), soft_wrap=False)
    for failure in report.failures:
        if failure.kind == "idle":
            console.print(f"Note: {failure.target}: {failure.reason}")
    for line in precision_lines(report, detailed=detailed):
        console.print(line)
    if report.cache is not None:
        console.print(cache_line(report.cache))
    console.print(coverage_line(report))


def precision_lines(report: Report, *, detailed: bool = True) -> list[str]:
    """What the engines compute in, where the ranges come from, and what was kept out, with reasons."""
    precision = report.precision
    lines = []
    if precision.calibration:
        found = precision.calibration
        inputs = "1 input batch" if found["samples"] == 1 else f"{found['samples']} input batches"
        lines.append(f"Calibration: {found['tensors']} ranges by {found['method']} from {inputs}")
    if precision.accuracy:
        lines.append(f"Accuracy: {precision.accuracy['text']}")
    groups: dict[str, list[str]] = {}
    for node, reason in precision.kept.items():
        groups.setdefault(reason.replace(repr(node), "'*'"), []).append(node)
    for reason, nodes in groups.items():
        names = ", ".join(nodes[:MAXIMUM_NAMES]) + (", ..." if len(nodes) > MAXIMUM_NAMES else "")
        lines.append(f"Kept in higher precision: {len(nodes)} node(s) ({names}): {reason}")
    return lines + ([f"Note: {note}" for note in precision.notes] if detailed else [])


def cache_line(cache: CacheStats) -> str:
    """One line: what the engine cache on disk did; what did not happen is left out, but for hits and misses."""
    hits = f"{cache.hits} hit{'s' * (cache.hits != 1)}"
    saved = f" ({cache.seconds_saved:.1f} s of building saved)" if cache.hits else ""
    parts = [hits + saved, f"{cache.misses} miss{'es' * (cache.misses != 1)}"]
    for count, words in (
        (cache.stored, "stored"),
        (cache.removed, "removed to make room"),
        (cache.known_failures, "known to fail"),
    ):
        if count:
            parts.append(f"{count} {words}")
    for word, reasons in (("damaged", cache.damaged), ("refused", cache.refused)):
        parts += [f"{count} {word} ({reason})" for reason, count in sorted(reasons.items())]
    return f"Engine cache: {', '.join(parts)}"


def print_with(print_fn: Callable[[str], object], text: str) -> None:
    """Hands text to `print_fn` line by line, as TF-TRT's summary() does."""
    for line in text.split("\n"):
        print_fn(line)


def coverage_line(report: Report) -> str:
    """One line: nodes, coverage, engines built."""
    if not report.total_nodes:
        return "No engine: the model has no nodes left to compute."
    if not report.engines:
        return f"No engine: all {report.total_nodes} nodes run natively (reasons above)."
    built = sum(e.built for e in report.engines)
    native = len(report.native)
    share = report.flops_coverage
    work = "" if share is None else f" ({share:.1%} of the operations)"
    return (
        f"{report.total_nodes} nodes: {report.coverage:.1%} of the effective ones{work} in "
        f"{len(report.engines)} segment(s), "
        f"{built} with an engine ({report.built_coverage:.1%}); {native} node(s) native."
    )


def human_size(size: int) -> str:
    """Bytes with a unit, for example 1.2 MB (decimal units)."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def profile_texts(engine: EngineReport) -> list[str]:
    """One line a profile and input: "image: 1x8x8 .. 4x8x8 .. 32x8x8"."""
    lines = []
    for profile in engine.profiles:
        for name, ranges in profile.items():
            parts = ["x".join(map(str, ranges[key])) or "scalar" for key in ("min", "opt", "max")]
            lines.append(f"{name}: {parts[0] if len(set(parts)) == 1 else ' .. '.join(parts)}")
    return lines


def _engine_table(report: Report) -> Table:
    table = Table(title="Engines", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("engine", "nodes", "layers", "precision", "size", "build s", "state"):
        table.add_column(column, justify="right" if column in ("nodes", "layers", "size", "build s") else "left")
    for engine in report.engines:
        table.add_row(
            engine.name,
            str(engine.nodes),
            str(engine.layers or "-"),
            engine.precision,
            human_size(engine.size) if engine.built else "-",
            f"{engine.seconds:.1f}" if engine.built else "-",
            "built" if engine.built else "native",
        )
    if not report.engines:
        table.add_row("none", *[""] * 6)
    return table


def _engine_details(engine: EngineReport) -> Table:
    """Where it lies, its ops, boundary tensors and the shapes it was built for."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(f"  {engine.name}", _ops(engine.op_counts.items()))
    if engine.scope:
        table.add_row("    inside", "/".join(engine.scope))
    if engine.flops:
        table.add_row("    operations", flops_text(engine.flops))
    if engine.arithmetic:
        table.add_row("    computes in", ", ".join(f"{name} x{count}" for name, count in engine.arithmetic.items()))
    reasons = _by_reason(engine)
    for reason, rules in list(reasons.items())[:MAXIMUM_REASONS]:
        table.add_row("    left alone", f"{_ops(Counter(rules).items())}: {reason}")
    if len(reasons) > MAXIMUM_REASONS:
        table.add_row("", f"and {len(reasons) - MAXIMUM_REASONS} more reasons: trt-rewriter inspect OUT --json")
    for words, lines in (
        ("inputs", _specs(engine.inputs)),
        ("outputs", _specs(engine.outputs)),
        ("built for", profile_texts(engine)),
    ):
        if lines:
            table.add_row(f"    {words}", "\n".join(lines))
    table.add_row("", "")
    return table


def _by_reason(engine: EngineReport) -> dict[str, list[str]]:
    """Why nodes were not lowered or not quantised -> the rules, one a node."""
    reasons: dict[str, list[str]] = {}
    for rule, node, reason in engine.decisions:
        reasons.setdefault(reason.replace(repr(node), "'*'"), []).append(rule)
    return reasons


def _native_table(report: Report, detailed: bool) -> Table:
    table = Table(title="Native nodes, by reason", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("nodes", "ops", "rule", "reason"):
        table.add_column(column, justify="right" if column == "nodes" else "left")
    if detailed:
        table.add_column("names", overflow="fold")
    for group in group_by_reason(report.native):
        names = [_names(group.nodes)] if detailed else []
        table.add_row(str(len(group.nodes)), _ops(group.ops.items()), group.rule, group.reason, *names)
    if not report.native:
        table.add_row("0", "", "", "no node is native")
    return table


def _names(nodes: tuple[str, ...]) -> str:
    """The first names; `inspect --json` has them all."""
    shown = "\n".join(nodes[:MAXIMUM_NAMES])
    return shown if len(nodes) <= MAXIMUM_NAMES else f"{shown}\nand {len(nodes) - MAXIMUM_NAMES} more"


def _ops(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{op} x{count}" if count > 1 else op for op, count in counts)


def _specs(specs: tuple[TensorSpec, ...]) -> list[str]:
    return [f"{s.name}: {dtype_name(s.dtype)} {shape_text(s)}" for s in specs]
