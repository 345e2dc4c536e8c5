"""TF-TRT's summary table: the columns, counts and last lines that its users know, made from the report."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console

from passes.segments import TensorSpec
from rewriter.reports.report import EngineReport, Report, dtype_name

#: TF-TRT's headers, the share of a line that each column gets there, and its least width in characters.
COLUMNS = (
    ("TRTEngineOP Name", 20, 15),
    ("Device", 9, 6),
    ("# Nodes", 5, 7),
    ("# Inputs", 9, 8),
    ("# Outputs", 9, 9),
    ("Input DTypes", 12, 7),
    ("Output Dtypes", 12, 7),
    ("Input Shapes", 12, 6),
    ("Output Shapes", 12, 6),
)


def print_tftrt_table(console: Console, report: Report, *, detailed: bool = True) -> None:
    """Prints the table and TF-TRT's two last lines.

    1. One row an engine, sorted by name, with TF-TRT's nine columns; an unknown dimension is -1, as TF-TRT wrote it.
    2. With `detailed`, under each row how often each operator occurs in it, sorted by name.
    3. The number of engines, and how many of all nodes lie in them.

    Operators are ONNX's, and nodes are counted in the cleaned ONNX graph, bodies of control flow included. What is too
    long for its column goes on below, where TF-TRT cut it off.
    """
    widths = _widths(console.width)
    for line in _row([name for name, *_ in COLUMNS], widths):
        console.print(line)
    console.print("=" * console.width)
    for engine in sorted(report.engines, key=lambda engine: engine.name):
        for line in (*_row(_fields(engine), widths), *(_counts(engine) if detailed else ())):
            console.print(line)
    console.print()
    for line in totals(report):
        console.print(line)


def _widths(line_length: int) -> list[int]:
    """Characters of each column, without the blank behind it; on short lines dtypes and shapes give way."""
    widths = [max(line_length * share // 100 - 1, least) for _, share, least in COLUMNS]
    over = sum(widths) + len(widths) - 1 - line_length
    for column in range(len(widths) - 1, -1, -1):
        if over > 0:
            cut = min(over, widths[column] - COLUMNS[column][2])
            widths[column] -= cut
            over -= cut
    return widths


def _row(fields: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """The lines of one row."""
    cells = [textwrap.wrap(field, width) or [""] for field, width in zip(fields, widths, strict=True)]
    for parts in itertools.zip_longest(*cells, fillvalue=""):
        yield " ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()


def totals(report: Report) -> Iterator[str]:
    """The two lines under the table."""
    converted = converted_nodes(report)
    share = converted / report.total_nodes * 100 if report.total_nodes else 0.0
    yield f"[*] Total number of TensorRT engines: {len(report.engines)}"
    yield f"[*] % of OPs Converted: {share:.2f}% [{converted}/{report.total_nodes}]"


def converted_nodes(report: Report) -> int:
    """Nodes that lie in engines, bodies included: all but those with a reason to be native."""
    return report.total_nodes - len(report.native)


def _fields(engine: EngineReport) -> tuple[str, ...]:
    return (
        engine.name,
        "GPU" if engine.built else "not built",
        str(engine.nodes),
        str(len(engine.inputs)),
        str(len(engine.outputs)),
        _dtypes(engine.inputs),
        _dtypes(engine.outputs),
        _shapes(engine.inputs),
        _shapes(engine.outputs),
    )


def _counts(engine: EngineReport) -> Iterator[str]:
    for op, count in sorted(engine.op_counts.items()):
        yield f"  - {op}: {count}x"


def _dtypes(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(dtype_name(spec.dtype) for spec in specs)


def _shapes(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(_shape(spec) for spec in specs)


def _shape(spec: TensorSpec) -> str:
    if spec.shape is None:
        return "of any rank"
    return f"[{', '.join(str(dim) if isinstance(dim, int) else '-1' for dim in spec.shape)}]"
