"""The page as people see and use it, in a headless browser."""

import contextlib
import io

import numpy as np
import pytest

from rewriter.reports.page import report_page, write_page
from tests.chromium import DESKTOP, PHONE
from tests.rewriter.reports.page.models import renamed, residual, shown, small, some_ranges

MAP = "[...document.querySelectorAll('.map')].find(e => e.getClientRects().length).graphMap"
HOSTILE = (
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=2>",
    "\"'><svg onload=window.hacked=3>",
    "a&amp;b <b>",
    "</title></style>--><!--",
    "名前/\U0001f600/\u2028é",
    "${window.hacked=4}`\\",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Name -> page: "small" with two signatures, "names" with hostile names, "large" with 5 000 nodes."""
    folder = tmp_path_factory.mktemp("pages")
    parts = {
        "small": [shown(small()), shown(residual(3), name="other", ranges=some_ranges(residual(3)))],
        "names": [shown(renamed(HOSTILE), name=HOSTILE[0], source=HOSTILE[1])],
        "large": [shown(residual(500))],
    }
    for name, content in parts.items():
        title = HOSTILE[4] if name == "names" else f"Conversion of {name}"
        write_page(folder / f"{name}.html", report_page(title, content))
    return {name: folder / f"{name}.html" for name in parts}


@contextlib.contextmanager
def opened(browser, path, screen=DESKTOP, *, dark=False):
    """A tab with a page that must have had no problem when it is left."""
    with browser.page(screen, dark=dark) as page:
        page.open(path)
        yield page
        assert page.problems == []


def colours(png):
    """Distinct colours of a picture, coarse, and how many pixels each has."""
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(png)).convert("RGB")
    red, green, blue = (np.asarray(image).reshape(-1, 3).astype(np.int64) // 32).T
    counts = np.bincount(red * 64 + green * 8 + blue, minlength=512)
    return {(i // 64, i // 8 % 8, i % 8): int(count) for i, count in enumerate(counts) if count}


def place(page, name):
    """Where a node's box is on the screen."""
    return tuple(
        page.evaluate(
            f"(() => {{ const m = {MAP}, d = m.drawing, i = d.name.findIndex(n => m.strings[n] === {name!r});"
            "m.canvas.scrollIntoView({block: 'center'}); const r = m.canvas.getBoundingClientRect();"
            "const [x, y, w, h] = d.box.slice(4 * i, 4 * i + 4);"
            "return [r.x + m.x + (x + w / 2) * m.scale, r.y + m.y + (y + h / 2) * m.scale]; })()"
        )
    )


def state(page):
    """(scale, x, y) of the map as it is drawn."""
    page.settle()
    return tuple(page.evaluate(f"(() => {{ const m = {MAP}; return [m.scale, m.x, m.y]; }})()"))


def text_of(page, selector):
    return page.evaluate(
        f"[...document.querySelectorAll({selector!r})].find(e => e.getClientRects().length)?.innerText ?? ''"
    )


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("screen", [DESKTOP, PHONE])
def test_a_page_is_not_empty_and_fits_the_screen(browser, files, screen, dark):
    with opened(browser, files["small"], screen, dark=dark) as page:
        size = page.evaluate("[innerWidth, document.documentElement.scrollWidth]")
        assert size == [screen.width, screen.width]
        words = page.evaluate("document.body.innerText")
        for wanted in (
            "At a glance",
            "3 of 4",
            "Native nodes",
            "TRTEngineOp_000",
            "canonicalize",
            "18 → 11 (-7)",
            "mock 1.0",
        ):
            assert wanted in words
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(int(part) for part in background[4:-1].split(",")) < 60) == dark
        assert len(colours(page.screenshot())) > 8
        page.evaluate(f"{MAP}.canvas.scrollIntoView({{block: 'center'}})")
        seen = colours(page.screenshot())
        # Green and blue: the boxes of two engines; and the grey of a native one.
        assert all(seen.get(tuple(part // 32 for part in fill), 0) > 100 for fill in ((207, 232, 213), (207, 224, 247)))
        assert seen.get((229 // 32, 231 // 32, 235 // 32), 0) > 100


def test_the_mouse_drags_zooms_and_tells(browser, files):
    with opened(browser, files["small"]) as page:
        x, y = place(page, "sine")
        page.move(x, y)
        page.settle()
        assert "TensorRT does not support Sin" in text_of(page, ".tip")
        scale, left, top = state(page)
        page.wheel(x, y, -120)
        assert state(page)[0] == scale  # not clicked yet: the page scrolls
        x, y = place(page, "sine")
        page.drag((x, y), (x, y))
        page.settle()
        told = text_of(page, ".about")
        assert "sine" in told
        assert 'says "no" <here>' in told
        assert "gives s1: of unknown type" in told
        page.move(x + 60, y + 60)
        page.drag((x + 60, y + 60), (x + 100, y + 30))
        moved = state(page)
        assert moved == pytest.approx((scale, left + 40, top - 30), abs=1)
        page.wheel(x, y, -120)
        zoomed = state(page)
        assert zoomed[0] > scale * 1.2
        # What is under the pointer stays there.
        canvas = page.evaluate(f"(() => {{ const r = {MAP}.canvas.getBoundingClientRect(); return [r.x, r.y]; }})()")
        for axis, at in enumerate((x, y)):
            before = (at - canvas[axis] - moved[1 + axis]) / moved[0]
            assert (at - canvas[axis] - zoomed[1 + axis]) / zoomed[0] == pytest.approx(before, abs=0.5)


def test_keys_move_zoom_and_show_all(browser, files):
    with opened(browser, files["small"]) as page:
        start = state(page)
        page.evaluate(f"{MAP}.canvas.focus()")
        page.key("ArrowRight", 39)
        assert state(page)[1] == pytest.approx(start[1] - 60)
        page.key("+", 187, "+")
        assert state(page)[0] > start[0]
        page.key("0", 48, "0")
        assert state(page) == pytest.approx(start)
        page.click(".map [data-act=full]")
        assert page.evaluate(f"{MAP}.root.getBoundingClientRect().height === innerHeight")
        assert state(page)[0] >= start[0]
        page.key("Escape", 27)
        assert not page.evaluate(f"{MAP}.root.classList.contains('full')")


def test_fingers_pan_pinch_and_tap(browser, files):
    with opened(browser, files["small"], PHONE) as page:
        x, y = place(page, "choice")
        page.touch([(x, y)])
        assert "choice" in text_of(page, ".about")
        x, y = place(page, "sine")
        start = state(page)
        page.touch([(x, y), (x + 10, y + 10), (x + 40, y + 25)])
        assert state(page) == pytest.approx((start[0], start[1] + 40, start[2] + 25), abs=1)
        page.touch([(x - 20, y), (x - 40, y), (x - 60, y)], [(x + 20, y), (x + 40, y), (x + 60, y)])
        assert state(page)[0] == pytest.approx(3 * start[0], rel=0.05)
        assert "choice" in text_of(page, ".about")  # neither was a tap


def test_search_finds_nodes_operators_and_values(browser, files):
    with opened(browser, files["small"]) as page:
        for words, found in (("sin", "2 found"), ("FIRST", "2 found"), ("e1", "2 found"), ("nothing", "none found")):
            page.evaluate(f"{MAP}.find.value = ''; {MAP}.find.focus()")
            page.type(words)
            assert f"“{words}”: {found}" in text_of(page, ".found")
        page.evaluate(f"{MAP}.find.value = ''; {MAP}.find.focus()")
        page.type("second_neg")
        page.key("Enter", 13)
        assert "in TRTEngineOp_001" in text_of(page, ".about")
        x, y = place(page, "second_neg")
        middle = page.center(".view canvas")
        assert (x, y) == pytest.approx(tuple(middle), abs=1)


def test_tables_and_legend_lead_to_the_map(browser, files):
    with opened(browser, files["small"]) as page:
        page.click("[data-node='t2']")
        assert "inside choice/then_branch" in page.evaluate(f"{MAP}.choose.selectedOptions[0].textContent")
        assert "t2" in text_of(page, ".about")
        page.click("[data-engine='1']")
        assert "TRTEngineOp_001: 2 found" in text_of(page, ".found")
        page.click(".legend button")
        assert "native: 3 found" in text_of(page, ".found")
        page.evaluate(f"{MAP}.choose.value = 3; {MAP}.choose.dispatchEvent(new Event('change'))")
        assert page.evaluate(f"{MAP}.choose.selectedOptions[0].textContent") == "engines as one box each"
        page.click(".near button, .legend button")


def test_signatures_are_shown_one_at_a_time(browser, files):
    with opened(browser, files["small"]) as page:
        shown_now = "[...document.querySelectorAll('.signature')].map(e => !e.hidden)"
        assert page.evaluate(shown_now) == [True, False]
        page.click("[data-signature='1']")
        assert page.evaluate(shown_now) == [False, True]
        assert page.evaluate(f"{MAP}.drawing.kind.length") > 25
        page.evaluate(f"{MAP}.jump('model/stage0/block_0/conv_1')")
        assert "from -1 to 1\n" in text_of(page, ".about")


def test_names_are_shown_and_never_run(browser, files):
    with opened(browser, files["names"]) as page:
        assert page.evaluate("[typeof window.hacked, document.title, document.images.length]") == [
            "undefined",
            HOSTILE[4],
            0,
        ]
        names = page.evaluate(f"(() => {{ const m = {MAP}; return m.drawing.name.map(n => m.strings[n]); }})()")
        assert [name for name in names if name in HOSTILE] == list(HOSTILE)
        for name in HOSTILE:
            page.evaluate(f"(name => {MAP}.jump(name))({name!r})".replace("\u2028", "\\u2028"))
            assert page.evaluate(f"{MAP}.about.querySelector('.code').textContent") == name
            page.evaluate(f"{MAP}.search({name[:12]!r})")
        x, y = place(page, HOSTILE[0])
        page.move(x, y)
        page.settle()
        assert page.evaluate("typeof window.hacked") == "undefined"


def test_five_thousand_nodes_are_a_small_page_that_moves(browser, files):
    assert files["large"].stat().st_size < 1_000_000
    with opened(browser, files["large"], PHONE) as page:
        assert page.evaluate(f"{MAP}.drawing.kind.length") == 5002
        x, y = place(page, "model/stage0/block_7/activation")
        page.touch([(x, y), (x + 30, y + 20)])
        page.evaluate(f"{MAP}.zoom(20)")
        page.settle()
        assert len(colours(page.screenshot())) > 8
        page.evaluate(f"{MAP}.search('block_499/add')")
        assert "1 found" in text_of(page, ".found")
