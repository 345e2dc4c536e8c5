"""The page as text; how it looks and works is tested in a browser."""

import dataclasses
import re

import pytest

from rewriter.errors import ArtifactError
from rewriter.reports.page import Shown, report_page, write_page
from rewriter.reports.report import Report
from rewriter.source import Signature
from tests.rewriter.reports.page.models import renamed, residual, shown, small, some_ranges


@pytest.fixture(scope="module")
def part():
    return shown(small())


@pytest.fixture(scope="module")
def page(part):
    return report_page("A title", [part], {"artifact": "out", "holds": "3 files"})


def plain(page):
    """Its words, without the data of the map and without markup."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", page[page.index("<body>") :], flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_it_tells_everything_about_a_conversion(page):
    words = plain(page)
    for wanted in (
        "A title", "artifact out", "model &lt;x&gt;",
        "66.7% of the nodes that do work lie in segments, 33.3% in engines that are built",
        "3 of 4 engines are built", "3 of 9 nodes stay native",
        "33.3% of 18.00 kFLOP a call lie in segments, 27.8% in", "3.0e-07 largest relative difference",
        "5 nodes in engines 1 node in segments without an engine 3 nodes native",
        "build TRTEngineOp_002 unsupported it failed", "A &lt;note&gt; to know",
        "2 nodes Sin x2 (parser) TensorRT does not support Sin &amp; says &quot;no&quot; &lt;here&gt; sine t2",
        "TRTEngineOp_000 2 7 FP16 250.0 kB 0.4 2.00 kFLOP built",
        "native: unsupported: it failed", "operators Relu, Abs", "keep-range: its range is too large",
        "load 100.0 ms", "build 2.50 s", "Passes: 18 nodes became 9", "canonicalize", "10.0 ms 18 → 11 (-7) inline x7",
        "FoldConstants(max_bytes=16)", "Kept in higher precision: 1 node(s) (sine): the guard kept it",
        "input x float32 [N, 4]", "output y float32 [N, 4] 3.0e-07",
        "minimum_ segment_ size 1", "op_ denylist none", "backend mock 1.0",
    ):  # fmt: skip
        assert wanted in words


def test_nothing_lies_in_engines_that_are_not_built():
    part = shown(small())
    engines = tuple(dataclasses.replace(engine, built=True) for engine in part.report.engines)
    built = dataclasses.replace(part, report=dataclasses.replace(part.report, engines=engines))
    assert "66.7% of the nodes that do work lie in engines 3" in plain(report_page("t", [built], {}))


def test_it_asks_for_nothing(page):
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert "url(" not in page
    assert "import(" not in page
    assert "fetch(" not in page


def test_links_lead_to_places_that_are_there(page):
    targets = re.findall(r'href="#([^"]+)"', page)
    assert len(targets) == 8
    assert all(page.count(f'id="{target}"') == 1 for target in targets)


def test_ranges_are_told_the_largest_first_and_drawn():
    model = residual(30)
    words = report_page("x", [shown(model, ranges=some_ranges(model))])
    assert "300 ranges by minmax, 4 sample(s)" in words
    assert "Ranges, the 200 largest of 300" in words
    assert "largest float16" in words
    drawn = re.search(r'class="dot" d="([^"]*)"', words)
    assert drawn is not None
    assert drawn[1].count("M") == 300
    first = re.search(r"<th scope=\"col\">tensor</th>.*?<tbody>\s*<tr>(.*?)</tr>", words, re.DOTALL)
    assert first is not None
    assert "1e+05" in first[1]


def test_a_conversion_without_engines_or_nodes_has_a_page():
    model = renamed(["only"])
    nothing = Report("x", (), (), 0.0, 0.0, 0, {}, (), {}, (), {}, {})
    model.proto.graph.ClearField("node")
    model.proto.graph.ClearField("output")
    words = plain(report_page("x", [Shown(model, nothing, Signature((), ()))]))
    assert "There is no engine." in words
    assert "No node is native." in words


def test_many_engines_and_names_are_cut_short(part):
    report = dataclasses.replace(part.report, engines=part.report.engines * 30, native=part.report.native * 50)
    words = plain(report_page("x", [dataclasses.replace(part, report=report)]))
    assert "and 80 more" in words  # of 100 native nodes of one kind
    assert "and 20 more: trt-rewriter inspect OUT --json tells of all" in words


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    write_page(tmp_path / "a.html", "é")
    assert (tmp_path / "a.html").read_bytes() == "é".encode()
    for path in (tmp_path / "none" / "a.html", tmp_path):
        with pytest.raises(ArtifactError, match="the report page cannot be written to"):
            write_page(path, "x")
