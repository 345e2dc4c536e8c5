"""The page of a comparison: what it says, and how a browser shows it."""

import re

import pytest

from rewriter.comparing.comparison import Pair
from rewriter.comparing.findings import Finding
from rewriter.comparing.page import MOST_PICTURED, comparison_page, write_page
from rewriter.errors import InvalidParameterError
from tests.chromium import DESKTOP, PHONE
from tests.rewriter.comparing.cases import comparison

FINDING = Finding(Pair("native", "emulated"), "first node: <Conv> 'n_1'\n  to exclude it: --keep-nodes '^n_1$'")


@pytest.fixture(scope="module")
def page():
    pairs = [
        Pair("source", "native", 1e-4),
        Pair("native", "emulated", 5e-3, {"scores": 1e-5}),
        Pair("source", "emulated"),
    ]
    found = comparison(pairs=pairs, notes=("tensorrt is left out: no GPU",))
    return comparison_page(found, title="out compared with model", findings=[FINDING], facts={"converted": "today"})


def test_it_says_who_was_compared_how_far_off_and_where_it_begins(page):
    for words in (
        "out compared with model", "FAILED", "Where it begins", "--keep-nodes &#x27;^n_1$&#x27;", "&lt;Conv&gt;",
        "2 sample(s): items scalar", "Note: tensorrt is left out: no GPU", "only reported", "top-5",
        "has NaN or infinity in 4 other place(s), first at [0, 1] of sample 0: nan instead of 2",
        "has shape [1, 3] instead of [1, 2]", "&#x27;c&#x27; instead of &#x27;&lt;b&gt;&#x27;",
        "2 output(s) are equal, or of another shape or type, and have no pictures.", "1x12x10x4", "converted",
    ):  # fmt: skip
        assert words in page


def test_it_is_one_file_that_asks_nothing_of_the_network(page):
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*", page)
    assert page.count("data:image/png;base64,") == 2 * 4 * 2  # two pairs differ, in four outputs, two pictures each


def test_many_outputs_have_figures_but_the_worst_ones_pictures(monkeypatch):
    from rewriter.comparing import page as module

    monkeypatch.setattr(module, "MOST_PICTURED", 2)
    found = comparison_page(comparison(), title="many")
    assert found.count("data:image/png") == 4
    assert "The 2 outputs with smaller differences have none here: --pictures draws all." in found
    assert MOST_PICTURED == 12


def test_a_page_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(InvalidParameterError, match="cannot write the page"):
        write_page(tmp_path, "page")


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_browser_shows_it_without_complaint(page, screen, browser, tmp_path):
    path = tmp_path / "page.html"
    write_page(path, page)
    with browser.page(screen) as shown:
        shown.open(path)
        assert not shown.problems
        # Nothing is wider than the screen: tables scroll in themselves, pictures shrink.
        assert shown.evaluate("document.documentElement.scrollWidth") <= screen.width
        widths = "[...document.querySelectorAll('details[open] img')].map(i => [i.naturalWidth, i.clientWidth])"
        sizes = shown.evaluate(widths)
        assert sizes
        assert all(natural >= 800 and 300 <= drawn <= screen.width for natural, drawn in sizes)
        assert shown.evaluate("document.querySelectorAll('details').length") == 8
        shown.click("details:not([open]) summary")
        assert shown.evaluate("document.querySelectorAll('details[open]').length") == 7
        assert len(shown.screenshot(whole=True)) > 50_000
