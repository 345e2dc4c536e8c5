import dataclasses
import json
import re

import pytest
from onnx import TensorProto as T

from passes.segments import TensorSpec
from passes.support import Verdict
from rewriter.reports.report import (
    CacheStats,
    EngineReport,
    Failure,
    PassSummary,
    Report,
    dtype_name,
    group_by_reason,
    shape_text,
)
from rewriter.reports.summary import cache_line, coverage_line, human_size, profile_texts, render_summary

IMAGE = TensorSpec("image", T.FLOAT, ("batch", 8, None))
ENGINE = EngineReport(
    name="TRTEngineOp_000",
    scope=(),
    nodes=5,
    op_counts={"Conv": 3, "Relu": 2},
    inputs=(IMAGE,),
    outputs=(TensorSpec("y", T.INT64, None),),
    precision="FP32",
    built=True,
    size=1_234_567,
    seconds=1.25,
    layers=7,
    profiles=({"image": {"min": [1, 8, 8], "opt": [4, 8, 8], "max": [8, 8, 8], "values": False}},),
)
UNBUILT = EngineReport("TRTEngineOp_001", ("loop/body",), 3, {"Add": 3}, (), (), "FP32", False, "workspace: too small")
NATIVE = (
    Verdict("a", "NonZero", False, "parser", "the parser refuses 'a': no plugin"),
    Verdict("b", "NonZero", False, "parser", "the parser refuses 'b': no plugin"),
    Verdict("c", "Cast", False, "dtype", "it is a string"),
)
REPORT = Report(
    source="SavedModel x",
    engines=(ENGINE, UNBUILT),
    native=NATIVE,
    coverage=0.8,
    built_coverage=0.5,
    total_nodes=11,
    verification={"y": 1e-7},
    failures=(Failure("build", "TRTEngineOp_001", "workspace", "too small"),),
    timings={"export": 1.0},
    passes=(PassSummary("canonicalize", "Canonicalize()", 0.1, 12, 11, {"dead": 1}),),
    versions={"onnx": "1"},
    params={"precision_mode": "FP32"},
)


def test_json_round_trip():
    assert Report.from_dict(json.loads(REPORT.to_json())) == REPORT


@pytest.mark.parametrize("damage", [{"schema_version": 99}, {"engines": [{"name": "x"}]}, {"native": [{"nod": 1}]}])
def test_foreign_reports_are_refused(damage):
    with pytest.raises(ValueError, match=r"schema 99|field"):
        Report.from_dict({**REPORT.to_dict(), **damage})


def test_missing_field_is_named():
    data = REPORT.to_dict()
    del data["coverage"]
    with pytest.raises(ValueError, match="coverage"):
        Report.from_dict(data)


def test_the_cache_is_optional():
    data = REPORT.to_dict()
    del data["cache"]
    assert Report.from_dict(data).cache is None
    assert "Engine cache" not in render_summary(REPORT)
    report = dataclasses.replace(REPORT, cache=CacheStats(hits=2, stored=1, damaged={"sha256 differs": 1}))
    assert Report.from_dict(json.loads(report.to_json())) == report
    assert "Engine cache: 2 hits" in render_summary(report)
    with pytest.raises(ValueError, match="field"):
        Report.from_dict({**data, "cache": {"hit": 1}})


def test_operations_are_optional_and_shown_when_they_are_known():
    data = REPORT.to_dict()
    del data["flops"]
    for engine in data["engines"]:
        del engine["flops"]
    assert Report.from_dict(data) == REPORT
    assert "operations" not in render_summary(REPORT)
    engines = (dataclasses.replace(ENGINE, flops=7_500_000), UNBUILT)
    counted = dataclasses.replace(REPORT, engines=engines, flops=10_000_000)
    assert Report.from_dict(json.loads(counted.to_json())) == counted
    assert counted.flops_coverage == 0.75
    text = render_summary(counted)
    assert "7.50 MFLOP" in text
    assert "80.0% of the effective ones (75.0% of the operations) in 2 segment(s)" in text


def test_tf_trts_table_comes_first():
    lines = render_summary(REPORT, 160).splitlines()
    headers = "TRTEngineOP Name|Device|# Nodes|# Inputs|# Outputs|Input DTypes|Output Dtypes|Input Shapes|Output Shapes"
    assert re.fullmatch(headers.replace("|", r"\s+"), lines[0])
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines if line.startswith("TRTEngineOp_0")]
    assert rows[0] == ["TRTEngineOp_000", "GPU", "5", "1", "1", "float32", "int64", "[-1, 8, -1]", "of any rank"]
    assert rows[1] == ["TRTEngineOp_001", "not built", "3", "0", "0"]
    for line in ("  - Conv: 3x", "  - Relu: 2x", "  - Add: 3x"):
        assert line in [text.rstrip() for text in lines]
    assert "[*] Total number of TensorRT engines: 2" in lines
    assert "[*] % of OPs Converted: 72.73% [8/11]" in lines
    assert not any(line.startswith("  - ") for line in render_summary(REPORT, 160, detailed=False).splitlines())
    assert max(map(len, render_summary(REPORT, 80).splitlines()[:10])) <= 80


def test_what_the_cache_did_in_one_line():
    stats = CacheStats(2, 1, 1, 1, 3, 4.25, {"sha256 differs": 1}, {"cannot store: No space left on device": 2})
    assert cache_line(stats) == (
        "Engine cache: 2 hits (4.2 s of building saved), 1 miss, 1 stored, 3 removed to make room, 1 known to fail, "
        "1 damaged (sha256 differs), 2 refused (cannot store: No space left on device)"
    )


def test_native_nodes_are_grouped_across_names():
    first, second = group_by_reason(NATIVE)
    assert (first.rule, first.reason) == ("parser", "the parser refuses '*': no plugin")
    assert (first.ops, first.nodes) == ({"NonZero": 2}, ("a", "b"))
    assert (second.reason, second.ops, second.nodes) == ("it is a string", {"Cast": 1}, ("c",))
    denied = Verdict("Gather", "Gather", False, "denylist", "node_denylist: 'Gather' matches its name")
    assert group_by_reason((denied,))[0].reason == denied.reason


def test_words_for_types_shapes_and_sizes():
    assert [dtype_name(t) for t in (T.FLOAT, T.DOUBLE, T.BFLOAT16, T.BOOL)] == [
        "float32",
        "float64",
        "bfloat16",
        "bool",
    ]
    assert shape_text(IMAGE) == "[batch, 8, ?]"
    assert shape_text(TensorSpec("s", T.FLOAT, ())) == "[]"
    assert shape_text(TensorSpec("s", T.FLOAT, None)) == "of any rank"
    assert [human_size(n) for n in (0, 999, 1500, 2_500_000, 3_000_000_000)] == [
        "0 B", "999 B", "1.5 kB", "2.5 MB", "3.00 GB",
    ]  # fmt: skip


def test_profiles_in_words():
    assert profile_texts(ENGINE) == ["image: 1x8x8 .. 4x8x8 .. 8x8x8"]


def test_summary_says_everything_once():
    text = render_summary(REPORT, line_length=160)
    for words in (
        "Conv x3, Relu x2", "image: float32 [batch, 8, ?]", "1.2 MB", "image: 1x8x8 .. 4x8x8 .. 8x8x8",
        "loop/body", "workspace: too small", "NonZero x2", "it is a string",
        "11 nodes: 80.0% of the effective ones in 2 segment(s), 1 with an engine (50.0%); 3 node(s) native.",
    ):  # fmt: skip
        assert text.count(words) == 1, words
    assert max(len(line) for line in text.splitlines() if "effective" not in line) <= 160


def test_summary_without_engines_says_so():
    bare = Report(**{**vars(REPORT), "engines": ()})
    assert coverage_line(bare) == "No engine: all 11 nodes run natively (reasons above)."
    assert "none" in render_summary(bare)


def test_brackets_and_colons_are_text_not_markup():
    odd = Verdict("a", "Odd", False, "parser", "no [tf] or [bold] here :smile: [0]")
    text = render_summary(Report(**{**vars(REPORT), "native": (odd,)}))
    assert "no [tf] or [bold] here :smile: [0]" in text
