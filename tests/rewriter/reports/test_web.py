"""Blocks of HTML pages."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.reports import web

PNG = b"\x89PNG\r\n\x1a\nrest"


class Reader(HTMLParser):
    """Collects texts and elements."""

    def __init__(self):
        super().__init__()
        self.words, self.tags = [], []

    def handle_data(self, data):
        self.words.append(data)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def read(markup):
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


@given(st.text())
def test_text_is_escaped_once_and_reads_as_it_was(value):
    markup = web.text(value)
    assert web.text(markup) is markup
    reader = read(f'<p title="{markup}">{markup}</p>')
    shown = web._UNPRINTABLE.sub("\ufffd", value)
    assert "".join(reader.words) == shown
    assert reader.tags == [("p", {"title": shown})]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "-"),
        (True, "yes"),
        (False, "no"),
        (3, "3"),
        ("a\x00b", "a\ufffdb"),
        ("\ud800", "\ufffd"),
        ("\t\n", "\t\n"),
    ],
)
def test_values_have_words(value, words):
    assert web.text(value) == words


def test_a_document_asks_for_nothing_and_runs_its_own_script_only():
    script = "document.title = 'x'"
    page = web.document(
        "A <b>", [web.section("S", web.paragraph("p", kind="soft"), anchor="s")], script=script, style="p{}"
    )
    assert page.startswith("<!DOCTYPE html>")
    assert "<title>A &lt;b&gt;</title>" in page
    assert "<h1>A &lt;b&gt;</h1>" in page
    assert '<section id="s"><h2>S</h2><p class="soft">p</p></section>' in page
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in page
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "script-src 'none'" in web.document("A", [])


@pytest.mark.parametrize("script", ["'</script>'", "'<!--'", "'</SCRIPT '", "'<script>'"])
def test_a_script_cannot_end_its_element(script):
    with pytest.raises(ValueError, match="the script of a page holds"):
        web.document("A", [], script=script)
    with pytest.raises(ValueError, match="the style of a page holds"):
        web.document("A", [], style="</style>")


def test_tables_have_a_cell_a_column_and_escape_them():
    markup = web.table(["a", "<b>"], [[1, "<i>"], [web.Html("<em>x</em>"), None]], numeric=(0,), caption="c & d")
    assert "<caption>c &amp; d</caption>" in markup
    assert '<th scope="col" class="number">a</th><th scope="col">&lt;b&gt;</th>' in markup
    assert '<td class="number">1</td><td>&lt;i&gt;</td>' in markup
    assert '<td class="number"><em>x</em></td><td>-</td>' in markup
    with pytest.raises(ValueError, match="a row has 1 cells where the table has 2 columns"):
        web.table(["a", "b"], [[1]])


def test_facts_bars_and_pictures():
    markup = web.facts({"some_name": True, "<b>": web.Html("<i>x</i>")})
    assert "<dt>some_<wbr>name</dt><dd>yes</dd>" in markup
    assert "<dt>&lt;b&gt;</dt><dd><i>x</i></dd>" in markup
    bars = web.bars([("a", 1, "1 s"), ("b", 4.0, "4 s")])
    assert "width:25.00%" in bars
    assert "width:100.00%" in bars
    assert web.bars([]) == '<div class="bars"></div>'
    assert "width:0.00%" in web.bars([("a", 0, "none")])
    picture = web.png(PNG, 'say "x"', "below")
    assert f'<img alt="say &quot;x&quot;" src="data:image/png;base64,{base64.b64encode(PNG).decode()}">' in picture
    assert "<figcaption>below</figcaption>" in picture
    with pytest.raises(ValueError, match="PNG"):
        web.png(b"GIF89a", "x")


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_data_come_back_and_end_no_element(value):
    markup = web.data("d", value)
    content = markup.removeprefix('<script type="application/json" id="d">').removesuffix("</script>")
    assert not set("<>&") & set(content)
    assert json.loads(content) == value


def test_data_are_json():
    with pytest.raises(ValueError, match="JSON"):
        web.data("d", float("nan"))
