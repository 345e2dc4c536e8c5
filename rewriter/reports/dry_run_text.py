"""A dry run as tables for a terminal."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from passes.segments import TensorSpec
from rewriter.reports.dry_run import DryEngine, DryNative, DryRun, SizeRow
from rewriter.reports.report import dtype_name, flops_text, shape_text
from rewriter.reports.summary import MAXIMUM_NAMES, MINIMUM_LINE_LENGTH, plain_console


def render_dry_run(dry: DryRun, line_length: int = 120, *, detailed: bool = True) -> str:
    """The dry run as text.

    Args:
        dry: what to show.
        line_length: characters a line, at least `MINIMUM_LINE_LENGTH`.
        detailed: with inputs, outputs and operators of each engine, and names of native nodes.
    """
    file = io.StringIO()
    print_dry_run(
        plain_console(file=file, width=max(line_length, MINIMUM_LINE_LENGTH), color_system=None), dry, detailed=detailed
    )
    return file.getvalue().rstrip("\n")


def print_dry_run(console: Console, dry: DryRun, *, detailed: bool = True) -> None:
    """Prints the same to a console (with colours where it has them)."""
    console.print(f"Dry run of {dry.source}: nothing is built")
    console.print(coverage_text(dry))
    console.print()
    console.print(_engines(dry), soft_wrap=False)
    for engine in dry.engines:
        if engine.not_runnable:
            console.print(f"  {engine.name} is what-if only and would never be built: {engine.not_runnable}")
    if detailed:
        for engine in dry.engines:
            console.print(_details(engine), soft_wrap=False)
    console.print(_natives(dry, detailed), soft_wrap=False)
    console.print(_sizes(dry), soft_wrap=False)
    console.print(f"Recommended minimum_segment_size: {'none' if dry.recommended is None else dry.recommended}")
    console.print(f"  {dry.rule}", soft_wrap=False)
    for line in dry.assumptions:
        console.print(f"Note: {line}", soft_wrap=False)


def coverage_text(dry: DryRun) -> str:
    """One line: what share of nodes and operations engines would get."""
    nodes = f"{dry.coverage:.1%} of {dry.effective_nodes} effective nodes"
    flops = "" if dry.flops_coverage is None else f" and {dry.flops_coverage:.1%} of {flops_text(dry.flops)}"
    fakes = sum(bool(engine.not_runnable) for engine in dry.engines)
    doubt = f", {fakes} of them not runnable (fake list)" if fakes else ""
    return f"{nodes}{flops} in {len(dry.engines)} engine(s) of at least {dry.minimum_segment_size} nodes{doubt}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _table(title: str, columns: Mapping[str, bool]) -> Table:
    """A table with these columns; True for numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name, number in columns.items():
        table.add_column(name, justify="right" if number else "left", no_wrap=number or name == "engine")
    return table


def _engines(dry: DryRun) -> Table:
    numbers = dict.fromkeys(("nodes", "effective", "operations", "of all", "in/out"), True)
    table = _table("Engines that would be built", {"engine": False, **numbers})
    for engine in dry.engines:
        table.add_row(
            engine.name,
            str(engine.nodes),
            str(engine.effective_nodes),
            flops_text(engine.flops),
            _share(engine.flops, dry.flops),
            f"{len(engine.inputs)}/{len(engine.outputs)}",
        )
    if not dry.engines:
        table.add_row("none", *[""] * 5)
    return table


def _details(engine: DryEngine) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(f"  {engine.name}", _ops(engine.op_counts))
    if engine.scope:
        table.add_row("    inside", "/".join(engine.scope))
    for words, specs in (("inputs", engine.inputs), ("outputs", engine.outputs)):
        table.add_row(f"    {words}", "\n".join(map(_spec, specs)))
    table.add_row("", "")
    return table


def _natives(dry: DryRun, detailed: bool) -> Table:
    table = _table(
        "Nodes that would stay native, by reason",
        {"nodes": True, "ops": False, "operations": True, "rule": False, "reason": False},
    )
    if detailed:
        table.add_column("names", overflow="fold")
    for group in dry.native:
        names = [_names(group)] if detailed else []
        table.add_row(
            str(len(group.nodes)), _ops(group.op_counts), flops_text(group.flops), group.rule, group.reason, *names
        )
    if not dry.native:
        table.add_row("0", "", "", "", "no node would be native")
    return table


def _sizes(dry: DryRun) -> Table:
    """One line for all neighbouring sizes that give the same."""
    numbers = ("minimum", "engines", "nodes", "of all", "operations", "of all ")
    table = _table("What other values of minimum_segment_size would give", {**dict.fromkeys(numbers, True), "": False})
    for _, group in itertools.groupby(dry.sizes, lambda row: (row.engines, row.nodes, row.flops)):
        rows = list(group)
        row = rows[0]
        table.add_row(
            str(row.size) if len(rows) == 1 else f"{row.size} to {rows[-1].size}",
            str(row.engines),
            str(row.nodes),
            f"{row.coverage:.1%}",
            flops_text(row.flops),
            "-" if row.flops_coverage is None else f"{row.flops_coverage:.1%}",
            _mark(rows, dry),
        )
    return table


def _mark(rows: Sequence[SizeRow], dry: DryRun) -> str:
    marks: dict[int, list[str]] = {}
    for word, size in (("in force", dry.minimum_segment_size), ("recommended", dry.recommended)):
        if size is not None and any(row.size == size for row in rows):
            marks.setdefault(size, []).append(word)
    words = {size: " and ".join(found) for size, found in marks.items()}
    return ", ".join(word if len(rows) == 1 else f"{size}: {word}" for size, word in words.items())


def _ops(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{op} x{count}" if count > 1 else op for op, count in counts.items())


def _spec(spec: TensorSpec) -> str:
    return f"{spec.name}: {dtype_name(spec.dtype)} {shape_text(spec)}"


def _names(group: DryNative) -> str:
    shown = "\n".join(group.nodes[:MAXIMUM_NAMES])
    return shown if len(group.nodes) <= MAXIMUM_NAMES else f"{shown}\nand {len(group.nodes) - MAXIMUM_NAMES} more"
