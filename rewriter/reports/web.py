"""Blocks of HTML pages that are one file: no network, readable on a phone, light and dark.

Rules:
1. What is shown is escaped: every function takes plain values and escapes them, unless they are `Html` already.
2. What is put together is not: the `body` of `document` and the `parts` of `section` are markup.
3. A page asks nothing of the network: its Content-Security-Policy forbids it, and forbids every script but its own.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

#: What HTML cannot hold: control characters, and halves of surrogate pairs (UTF-8 cannot hold them either).
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
#: What would end a script element, or change how its end is found.
_SCRIPT_END = re.compile(r"</script|<!--|<script", re.IGNORECASE)


class Html(str):
    """Markup: it is not escaped again."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as text of a page, escaped for content and for quoted attributes; `Html` stays as it is.

    True and False are written yes and no, None as a hyphen, and characters that HTML cannot hold as U+FFFD.
    """
    if isinstance(value, Html):
        return value
    if value is None or isinstance(value, bool):
        return Html({None: "-", True: "yes", False: "no"}[value])
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", str(value)), quote=True))


def document(title: str, body: Iterable[str], *, script: str = "", style: str = "") -> Html:
    """A whole page.

    Args:
        title: of the window, and the page's heading.
        body: markup, in order.
        script: JavaScript to run when the page is there.
        style: CSS beside that of these blocks.

    Raises:
        ValueError: the script or the style holds what would end its element.
    """
    if _SCRIPT_END.search(script):
        raise ValueError("the script of a page holds '</script', '<script' or '<!--': split that text")
    if "</style" in style.lower():
        raise ValueError("the style of a page holds '</style'")
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'"
    return Html(
        "\n".join(
            [
                '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                '<meta name="generator" content="trt-rewriter">',
                # An empty icon, so that nobody asks a server for one.
                '<link rel="icon" href="data:,">',
                f"<title>{text(title)}</title>",
                f"<style>{_style()}{style}</style>\n</head>\n<body>\n<main>",
                f"<h1>{text(title)}</h1>",
                *body,
                "</main>",
                *([f"<script>{script}</script>"] if script else []),
                "</body>\n</html>\n",
            ]
        )
    )


def section(title: str, *parts: str, anchor: str = "") -> Html:
    """A card with a heading.

    Args:
        title: its heading; "" for none.
        parts: markup.
        anchor: its id, for links; "" for none.
    """
    name = f' id="{text(anchor)}"' if anchor else ""
    heading = f"<h2>{text(title)}</h2>" if title else ""
    return Html(f"<section{name}>{heading}{''.join(parts)}</section>")


def paragraph(value: object, *, kind: str = "") -> Html:
    """One paragraph.

    Args:
        value: its text.
        kind: "soft", "good", "bad" or "warn"; "" for plain text.
    """
    return Html(f"<p{_class(kind)}>{text(value)}</p>")


def table(
    headers: Sequence[object], rows: Iterable[Sequence[object]], *, numeric: Collection[int] = (), caption: str = ""
) -> Html:
    """A table, which scrolls sideways in itself where the screen is narrow.

    Args:
        headers: one a column.
        rows: a cell a column.
        numeric: numbers of the columns (from 0) that are aligned to the right.
        caption: what it shows; "" for nothing.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """
    # It can have the focus, so that keys scroll it.
    lines = [f'<div class="scroll" tabindex="0" role="group" aria-label="{text(caption or "Table")}"><table>']
    if caption:
        lines.append(f"<caption>{text(caption)}</caption>")
    kinds = [' class="number"' if number in numeric else "" for number in range(len(headers))]
    cells = "".join(f'<th scope="col"{kind}>{text(head)}</th>' for head, kind in zip(headers, kinds, strict=True))
    lines.append(f"<thead><tr>{cells}</tr></thead><tbody>")
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells where the table has {len(headers)} columns: {row!r}")
        cells = "".join(f"<td{kind}>{text(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    lines.append("</tbody></table></div>")
    return Html("\n".join(lines))


def facts(mapping: Mapping[str, object]) -> Html:
    """Names and values, a line each."""
    # A long name may break behind an underscore.
    names = (text(name).replace("_", "_<wbr>") for name in mapping)
    lines = (f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in zip(names, mapping.values(), strict=True))
    return Html(f'<dl class="facts">{"".join(lines)}</dl>')


def png(data: bytes, alt: str, caption: str = "") -> Html:
    """A picture inside the page.

    Args:
        data: of a PNG file.
        alt: what it shows, for those who do not see it.
        caption: the line below it; "" for none.

    Raises:
        ValueError: the data are no PNG file.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("a picture of a page must be a PNG file")
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return Html(f'<figure><img alt="{text(alt)}" src="{source}">{below}</figure>')


def bars(rows: Iterable[tuple[object, float, object]]) -> Html:
    """Horizontal bars, the longest as wide as there is room.

    Args:
        rows: (label, value, the value in words); values are not negative.
    """
    found = list(rows)
    largest = max((value for _, value, _ in found), default=0.0)
    lines = []
    for label, value, words in found:
        share = 100 * value / largest if largest else 0.0
        lines.append(
            f'<span class="label">{text(label)}</span><span class="track"><span class="bar" '
            f'style="width:{share:.2f}%"></span></span><span class="number">{text(words)}</span>'
        )
    return Html(f'<div class="bars">{"".join(lines)}</div>')


def data(identifier: str, value: Any) -> Html:
    """JSON values for a script: `JSON.parse(document.getElementById(identifier).textContent)`.

    Raises:
        ValueError: the value holds NaN or infinity, which JSON has no word for.
    """
    words = json.dumps(value, separators=(",", ":"), allow_nan=False)
    # With these escaped no text inside can end the element; JSON reads them back as they were.
    words = words.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Html(f'<script type="application/json" id="{text(identifier)}">{words}</script>')


def _class(kind: str) -> str:
    return f' class="{text(kind)}"' if kind else ""


@functools.cache
def _style() -> str:
    return resources.files("rewriter.reports").joinpath("web.css").read_text(encoding="utf-8")
