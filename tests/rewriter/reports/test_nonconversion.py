"""The non-conversion report: counting, text, CSV."""

import csv

import pytest

from passes.support import Verdict
from rewriter.errors import ArtifactError
from rewriter.reports.making import NOT_BUILT
from rewriter.reports.nonconversion import NonConversion, has_engine, nonconversion_table, to_csv, to_text, write_csv
from rewriter.reports.report import EngineReport, Report


def denial(node, op, rule, reason):
    return Verdict(node, op, False, rule, reason)


def make_report(native=(), engines=()):
    return Report("m", tuple(engines), tuple(native), 0.5, 0.5, 11, {}, (), {}, (), {}, {})


def engine(name, reason, **counts):
    return EngineReport(name, (), sum(counts.values()), counts, (), (), "FP32", not reason, reason)


NATIVE = (
    denial("a", "NonZero", "parser", "the parser refuses 'a': no plugin"),
    denial("b", "Cast", "dtype", "it is a\nstring | list"),
    denial("c", "Cast", "min_segment", "its group has 1 effective node"),
    denial("d", "NonZero", "parser", "the parser refuses 'd': no plugin"),
    denial("e", "Cast", "min_segment", "its group has 1 effective node"),
    denial("f", "Add", "max_engines", "its segment has 3 effective nodes, and max_engines keeps the 1 largest"),
)
ROWS = (
    NonConversion("Cast", "min_segment: its group has 1 effective node", 2),
    NonConversion("Cast", "dtype: it is a string | list", 1),
    NonConversion("NonZero", "parser: the parser refuses '*': no plugin", 2),
    NonConversion("Add", "max_engines: its segment has 3 effective nodes, and max_engines keeps the 1 largest", 1),
)


def test_every_native_node_counts_once_by_operator_and_reason():
    assert nonconversion_table(make_report(NATIVE)) == ROWS


def test_segments_without_an_engine_count_once_that_was_tried():
    engines = (
        engine("TRTEngineOp_000", "", Conv=3),
        engine("TRTEngineOp_001", NOT_BUILT, Conv=2),
        engine("TRTEngineOp_002", "not runnable: 'n' is a fake", TopK=1, Relu=2),
    )
    assert [has_engine(e) for e in engines] == [True, True, False]
    assert nonconversion_table(make_report((), engines)) == (
        NonConversion("Relu", "TRTEngineOp_002 has no engine: not runnable: 'n' is a fake", 2),
        NonConversion("TopK", "TRTEngineOp_002 has no engine: not runnable: 'n' is a fake", 1),
    )


def test_text_has_operators_reasons_and_totals():
    text = to_text(ROWS, 12).splitlines()
    assert text[3] == "Cast: 3 nodes"
    assert text[4] == "        2x  min_segment: its group has 1 effective node"
    assert text[-2] == "Total: 6 nodes of 12 (50.0%), 3 operator types"
    assert "none: every node lies in an engine" in to_text((), 5)


def test_csv_is_readable_with_tf_trts_columns(tmp_path):
    path = tmp_path / "r.csv"
    write_csv(ROWS, path)
    assert path.read_text().startswith("OP Name|Reason|Count\nCast|min_segment: its group has 1 effective node|2\n")
    with path.open(newline="") as file:
        rows = list(csv.reader(file, delimiter="|"))
    assert rows[2] == ["Cast", "dtype: it is a string | list", "1"]
    assert len(rows) == 5
    assert to_csv(()) == "OP Name|Reason|Count\n"


def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path):
    with pytest.raises(
        ArtifactError, match=r"non-conversion report cannot be written to .*none.r\.csv: .*No such file"
    ):
        write_csv(ROWS, tmp_path / "none" / "r.csv")
