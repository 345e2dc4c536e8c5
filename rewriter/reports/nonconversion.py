"""The non-conversion report: which operators TensorRT does not run, why, and how many of each."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from pathlib import Path

from rewriter.errors import ArtifactError
from rewriter.reports.making import NOT_BUILT
from rewriter.reports.report import EngineReport, Report, group_by_reason

#: The first line of the CSV file, as TF-TRT wrote it.
COLUMNS = ("OP Name", "Reason", "Count")
_DELIMITER = "|"
_RULE = "-" * 80


@dataclasses.dataclass(frozen=True)
class NonConversion:
    """Nodes of one operator that do not run on TensorRT for one reason.

    Attributes:
        op: ONNX operator, with the domain in front unless it is the default one.
        reason: one line, with the rule that decided in front ("parser: TensorRT does not support Xyz").
        count: number of nodes.
    """

    op: str
    reason: str
    count: int


def nonconversion_table(report: Report) -> tuple[NonConversion, ...]:
    """Every native node counted once, by operator and reason.

    1. Nodes outside segments have the reason of their verdict.
    2. Nodes of a segment that has no engine although it was tried, or that never gets one (fake list), have the
       segment's reason. Before `build()` segments count as converted.
    3. Reasons that differ only in the node's own name are one (see `group_by_reason`).
    4. Operators with most nodes come first, then by name; within one, reasons likewise.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for group in group_by_reason(report.native):
        for op, count in group.ops.items():
            counts[op, f"{group.rule}: {_line(group.reason)}"] += count
    for engine in report.engines:
        if not engine.built and engine.reason != NOT_BUILT:
            for op, count in engine.op_counts.items():
                counts[op, f"{engine.name} has no engine: {_line(engine.reason)}"] += count
    totals: Counter[str] = Counter()
    for (op, _), count in counts.items():
        totals[op] += count
    rows = [NonConversion(op, reason, count) for (op, reason), count in counts.items()]
    return tuple(sorted(rows, key=lambda row: (-totals[row.op], row.op, -row.count, row.reason)))


def to_text(rows: tuple[NonConversion, ...], total: int | None = None) -> str:
    """The table for people: operators with their reasons, and totals.

    Args:
        rows: from `nonconversion_table`.
        total: nodes of the model; None leaves the share out.
    """
    native = sum(row.count for row in rows)
    by_op: dict[str, list[NonConversion]] = {}
    for row in rows:
        by_op.setdefault(row.op, []).append(row)
    lines = [_RULE, "Operators that TensorRT does not run", _RULE]
    if not rows:
        lines.append("none: every node lies in an engine")
    for op, reasons in by_op.items():
        lines.append(f"{op}: {_nodes(sum(row.count for row in reasons))}")
        lines += [f"    {row.count:>5}x  {row.reason}" for row in reasons]
    share = f" of {total} ({native / total:.1%})" if total else ""
    lines += [_RULE, f"Total: {_nodes(native)}{share}, {len(by_op)} operator type{'s' * (len(by_op) != 1)}", _RULE]
    return "\n".join(lines)


def to_csv(rows: tuple[NonConversion, ...]) -> str:
    """The table as TF-TRT wrote it: a line of titles, columns separated by "|"; such texts with a "|" are quoted."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=_DELIMITER, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((row.op, row.reason, row.count) for row in rows)
    return file.getvalue()


def write_csv(rows: tuple[NonConversion, ...], path: str | Path) -> None:
    """Writes `to_csv` to a file, in UTF-8; an existing file is replaced.

    Raises:
        ArtifactError: it cannot be written; the message names it.
    """
    try:
        Path(path).write_text(to_csv(rows), "utf-8")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"the non-conversion report cannot be written to {path}: {error}") from error


def has_engine(engine: EngineReport) -> bool:
    """False for a segment that was tried in vain, or is never built; True also for one that is not built yet."""
    return engine.built or engine.reason == NOT_BUILT


def _line(text: str) -> str:
    return " ".join(text.split())


def _nodes(count: int) -> str:
    return f"{count} node{'s' * (count != 1)}"
