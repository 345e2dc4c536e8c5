"""A comparison on the terminal: the values of every runner, the differences of every pair, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rewriter.comparing.values import Comparison, Difference, PairDifference, Spread
from rewriter.comparing.words import (
    Column,
    difference_columns,
    failure,
    furthest_off,
    mark,
    sample_words,
    shape_words,
    spread_cells,
    verdict,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Outputs in a table; of more those are shown that are furthest off.
MOST_OUTPUTS = 24
#: Columns that go first where the screen is narrow.
_LESS_NEEDED = ("mean abs", "mean rel", "agree", "cosine", "max abs")
#: Columns whose text may be broken -> characters that it has at least: the name of an output, and of a runner.
_NAMES = {"output": 12, "of": 8}
#: Characters at the edges of a table.
_EDGES = 4


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Prints everything but the verdict (see `print_verdict`)."""
    for name, meaning in comparison.runners.items():
        console.print(f"{name}: {meaning}")
    console.print(sample_words(comparison))
    outputs = list(dict.fromkeys(entry.output for entry in comparison.spreads))
    shown = set(furthest_off(comparison)[:MOST_OUTPUTS]) if len(outputs) > MOST_OUTPUTS else set(outputs)
    _print(console, _values([entry for entry in comparison.spreads if entry.output in shown]))
    dropped: set[str] = set()
    for pair in comparison.pairs:
        table, left_out = _differences(pair, shown, console.width)
        _print(console, table)
        dropped.update(left_out)
    if dropped:
        told = ", ".join(heading for heading in _LESS_NEEDED if heading in dropped)
        console.print(f"Left out for lack of width: {told} (a wider terminal, --json or --html shows them).")
    if len(outputs) > len(shown):
        console.print(f"Shown are the {len(shown)} of {len(outputs)} outputs that are furthest off.")
    for pair in comparison.pairs:
        for found in pair.differences:
            words = failure(pair.pair, found) if found.output in shown and not pair.pair.passes(found) else ""
            if words:
                console.print(words)
    for note in comparison.notes:
        console.print(f"Note: {note}")


def print_verdict(console: Console, comparison: Comparison) -> None:
    """Prints PASSED, or FAILED with every pair that did."""
    failed = [pair for pair in comparison.pairs if not pair.passed]
    for pair in failed:
        console.print(f"FAILED: {verdict(pair)}", style="bold red")
    if not failed:
        console.print(f"PASSED: {'; '.join(verdict(pair) for pair in comparison.pairs)}", style="bold green")


def _print(console: Console, table: Table) -> None:
    """Prints a table whose figures are never cut: where there is no room at all, the terminal breaks its lines."""
    for column in table.columns:
        if column.no_wrap:
            column.min_width = max(len(str(cell)) for cell in (column.header, *column.cells))
    console.print(table, soft_wrap=False, crop=False)


def _values(spreads: Sequence[Spread]) -> Table:
    """One row a runner; an output's name stands in its first row, its type and shape in the second."""
    headings = ["min", "max", "mean", "NaN", "inf"]
    rows = [spread_cells(entry) for entry in spreads]
    kept = [n for n in range(len(headings)) if n < 3 or any(row[n] != "-" for row in rows)]
    table = _table("Values", "output", "of", *(headings[n] for n in kept))
    previous = None
    place = 0
    for entry, row in zip(spreads, rows, strict=True):
        if previous is None or previous.output != entry.output:
            if previous is not None:
                table.add_section()
            previous, place = entry, 0
        names = [entry.output, f"{entry.dtype} {shape_words(entry.shape)}"]
        other = "" if (entry.dtype, entry.shape) == (previous.dtype, previous.shape) else f" ({names[1]})"
        table.add_row(names[place] if place < 2 else "", f"{entry.runner}{other}", *(row[n] for n in kept))
        place += 1
    return table


def _differences(pair: PairDifference, shown: set[str], width: int) -> tuple[Table, list[str]]:
    """The table, and the headings of columns that there is no room for."""
    limits = {pair.pair.limit(d.output) for d in pair.differences}
    common = limits.pop() if len(limits) == 1 else pair.pair.tolerance  # of several limits a column tells
    limit = "" if common is None else f", limit {common:.1e}"
    if any(pair.pair.by_absolute(d) for d in pair.differences):
        limit += f" or within the absolute bound {pair.pair.absolute:.1e} (ok abs)"
    found = [d for d in pair.differences if d.output in shown]
    columns = difference_columns(pair)
    dropped = []
    for heading in _LESS_NEEDED:
        if _NAMES["output"] + sum(_width(column, found) for column in columns) + len("FAILED") + _EDGES > width:
            dropped += [column.heading for column in columns if column.heading == heading]
            columns = [column for column in columns if column.heading != heading]
    title = f"Differences of {pair.pair.result} from {pair.pair.reference}{limit}"
    table = _table(title, "output", *(column.heading for column in columns), "")
    for difference in found:
        table.add_row(difference.output, *(column.cell(difference) for column in columns), mark(pair.pair, difference))
    return table, dropped


def _width(column: Column, found: Sequence[Difference]) -> int:
    """Characters of a column, with the two that part it from the next one."""
    return max(len(text) for text in (column.heading, *(column.cell(d) for d in found))) + 2


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for column in columns:
        if column in _NAMES:
            table.add_column(column, overflow="fold", min_width=_NAMES[column])
        else:
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table
