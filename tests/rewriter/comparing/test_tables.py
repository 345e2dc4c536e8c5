"""A comparison on the terminal."""

import io

import numpy as np
import pytest

from rewriter.comparing.comparison import Comparison, Pair, compare
from rewriter.comparing.tables import MOST_OUTPUTS, print_comparison, print_verdict
from rewriter.reports.summary import plain_console
from tests.rewriter.comparing.cases import SAMPLES, comparison, runner


def printed(found: Comparison, width: int = 100) -> str:
    file = io.StringIO()
    console = plain_console(width=width, file=file)
    print_comparison(console, found)
    print_verdict(console, found)
    return file.getvalue()


def test_100_columns_are_enough_and_nothing_is_cut():
    text = printed(comparison())
    tables = [line for line in text.splitlines() if line.startswith(" ")]
    assert max(map(len, tables)) <= 100
    assert "…" not in text
    for words in ("feature/map:0", "float32 1x12x10x4", "top-5", "5.0e-03", "1.0e-05", "FAILED", "ok", "NaN"):
        assert words in text
    assert "Left out for lack of width: mean abs" in text


def test_a_wide_terminal_shows_every_column():
    text = printed(comparison(), 140)
    assert "mean abs" in text
    assert "Left out" not in text


@pytest.mark.parametrize("width", [20, 40, 60])
def test_figures_are_never_cut(width):
    text = printed(comparison(), width)
    assert "…" not in text
    assert "Left out for lack of width: mean abs, mean rel, agree, cosine" in text
    wide = printed(comparison(), 200)
    for words in ("FAILED", "top-5", "5.0e-03", "14400"):
        assert (words in text) == (words in wide)


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_shows_what_matters(width):
    text = printed(comparison(top_k=()), width)
    assert "max rel" in text
    assert all(len(line) <= width for line in text.splitlines() if line.startswith(" "))


def test_what_is_wrong_is_told_with_its_place():
    text = printed(comparison())
    for words in (
        "native -> emulated: output 'odd$x$' has NaN or infinity in 4 other place(s), first at [0, 1] of sample 0: nan",
        "native -> emulated: output 'grown' has shape [1, 3] instead of [1, 2]",
        "native -> emulated: output 'text' has 2 other texts, first at [1] of sample 0: 'c' instead of '<b>'",
        "native -> emulated: output 'feature/map:0' differs most at [2, 5, 4, 3] of sample 1",
        "from native: output 'odd$x$' has NaN or infinity in 4 other place(s), and in 4 other output(s) by more",
    ):
        assert words in text


def test_columns_and_rows_without_a_meaning_are_left_out():
    text = printed(comparison(["digit"], top_k=()))
    for heading in ("cosine", "top-", "NaN", "inf", " limit "):
        assert heading not in text.replace("native, limit ", "")
    assert "PASSED: emulated differs from native by 0 (limit 5.0e-03)" in text


def test_of_many_outputs_those_that_are_furthest_off_are_shown():
    names = [f"out_{number:03}" for number in range(60)]
    runners = {
        "a": lambda _: {name: np.float32([1]) for name in names},
        "b": lambda _: {name: np.float32([1 + (n % 7 == 6) * n]) for n, name in enumerate(names)},
    }
    text = printed(compare(runners, [{}], [Pair("a", "b", 1.0)]))
    assert f"Shown are the {MOST_OUTPUTS} of 60 outputs that are furthest off." in text
    assert all(f"out_{number:03}" in text for number in range(6, 60, 7))
    assert "out_059" not in text


def test_the_limit_of_the_only_output_is_the_one_in_the_heading():
    runners = {"a": lambda _: {"y": np.float32([1])}, "b": lambda _: {"y": np.float32([1.5])}}
    text = printed(compare(runners, [{}], [Pair("a", "b", 1e-3, {"y": 1.0})]))
    assert "Differences of b from a, limit 1.0e+00" in text
    assert "1.0e-03" not in text


def test_another_type_of_one_runner_shows():
    runners = {"a": lambda _: {"y": np.float32([1])}, "b": lambda _: {"y": np.float64([1])}}
    assert "b (float64 1)" in printed(compare(runners, [{}], [Pair("a", "b", 1.0)]))


def test_a_model_without_outputs():
    text = printed(compare({"a": lambda _: {}, "b": lambda _: {}}, [{}], [Pair("a", "b", 1.0)]))
    assert "no inputs" in text
    assert "PASSED: b differs from a in nothing: there are no outputs" in text


def test_an_output_within_the_absolute_bound_alone_says_so():
    text = " ".join(
        printed(comparison(("scores", "digit"), pairs=[Pair("native", "emulated", 1e-9, absolute=1e-2)])).split()
    )
    assert "limit 1.0e-09 or within the absolute bound 1.0e-02 (ok abs)" in text
    assert text.count("ok abs") == 2  # the title and one row
    assert "(limit 1.0e-09; 'scores' within the absolute bound 1.0e-02)" in text
    assert "absolute bound" not in printed(
        comparison(("scores",), pairs=[Pair("native", "emulated", 1.0, absolute=1.0)])
    )


def test_text_has_no_figures_and_nothing_differs_by_inf():
    equal = {"source": runner(0, ("text",)), "native": runner(0, ("text",))}
    text = printed(compare(equal, SAMPLES, [Pair("source", "native", 1e-4)]))
    assert "max abs" not in text
    assert "PASSED: native differs from source in no text" in text
    assert "by inf" not in printed(comparison(("text",))) + printed(comparison(("grown",)))


def test_a_reference_of_zeros_is_told_in_words():
    runners = {"source": lambda _: {"y": np.zeros(3)}, "native": lambda _: {"y": np.full(3, 0.5)}}
    text = printed(compare(runners, SAMPLES, [Pair("source", "native", 1e-4)]))
    assert "native differs from source by 5.0e-01 where all of it is 0" in text
