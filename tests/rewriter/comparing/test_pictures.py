"""Differences as PNG files: there, not empty, in the right colours, under names that files can have."""

import io
import sys

import numpy as np
import pytest

from rewriter.comparing.comparison import Pair, compare, difference
from rewriter.comparing.meters import DifferenceMeter
from rewriter.comparing.pictures import has_picture, heat_map_png, histogram_png, pictures, write_pictures
from rewriter.errors import InvalidParameterError, MissingDependencyError
from tests.rewriter.comparing.cases import comparison

PAIR = Pair("native", "emulated", 1e-2)
RED, BLUE, GREY, VIOLET = "#d64550", "#4c78a8", "#a9b4c2", "#7b2fbf"


def measured(reference, result, output="y"):
    meter = DifferenceMeter(output, histogram=True, heat_map=True)
    meter.add(np.asarray(reference), np.asarray(result))
    return meter.difference()


def colours(png):
    """Colour -> number of dots of it."""
    from matplotlib import image

    dots = (image.imread(io.BytesIO(png))[..., :3] * 255).round().astype(np.int64) @ [1 << 16, 1 << 8, 1]
    values, counts = np.unique(dots, return_counts=True)
    return {f"#{value:06x}": count for value, count in zip(values.tolist(), counts.tolist(), strict=True)}


def test_a_histogram_has_red_bars_beyond_the_limit_only():
    within = colours(histogram_png(PAIR, measured(np.float32([100, 1]), np.float32([100.01, 1.2]))))
    assert within[BLUE] > 1000
    assert within.get(RED, 0) < 1500  # the line of the limit
    beyond = colours(histogram_png(PAIR, measured(np.float32([100, 1]), np.float32([100.01, 9]))))
    assert beyond[RED] > 5000


def test_a_histogram_shows_equal_values_and_what_is_no_number():
    found = colours(histogram_png(PAIR, measured(np.float32([1, 2, 3]), np.float32([1, np.nan, 3.1]))))
    assert min(found[GREY], found[VIOLET]) > 1000
    text = measured(np.array(["a", "b"], object), np.array(["a", "c"], object))
    assert min(colours(histogram_png(PAIR, text))[colour] for colour in (GREY, VIOLET)) > 1000


@pytest.mark.parametrize("tolerance", [1e-9, 1.0, 1e9])
def test_the_line_of_the_limit_is_drawn_wherever_it_is(tolerance):
    found = measured(np.float32([100, 1, 1, 2]), np.float32([100.01, 1.2, np.inf, 2]))
    dots = colours(histogram_png(Pair("a", "b", tolerance), found))
    assert dots[RED] > 100
    assert min(dots[GREY], dots[VIOLET]) > 1000


@pytest.mark.parametrize("gap", [5e-324, 1e-300, 1.0, 1.7e308])
def test_histograms_of_any_size_of_difference(gap):
    assert histogram_png(Pair("a", "b"), measured(np.float64([0, 0]), np.float64([0, gap]))).startswith(b"\x89PNG")


def test_a_heat_map_is_white_where_nothing_differs_and_violet_where_there_is_no_number():
    reference = np.zeros((1, 8, 8, 2), np.float32)
    result = reference.copy()
    result[0, 1, 2, 0], result[0, 5, 5, 1] = 0.5, np.nan
    found = colours(heat_map_png(PAIR, measured(reference, result)))
    cell = found[VIOLET]
    assert found["#ffffff"] > 60 * cell
    assert found["#800026"] > 0.9 * cell  # the darkest of YlOrRd: the largest difference


@pytest.mark.parametrize(
    "shape", [(), (3,), (2, 3), (1, 1), (300, 2), (2, 1000), (1, 4, 5), (2, 200, 300, 3), (1, 1, 1, 9)]
)
def test_heat_maps_of_every_rank(shape):
    found = measured(np.zeros(shape), np.random.default_rng(0).random(shape) + 1e-9)
    assert heat_map_png(PAIR, found).startswith(b"\x89PNG")


def test_outputs_that_are_equal_or_of_another_shape_have_no_picture():
    assert not has_picture(measured([1.0], [1.0]))
    assert not has_picture(measured([1.0], [1.0, 2.0]))
    assert heat_map_png(PAIR, measured([1.0], [1.0])) is None
    plain = difference("y", [np.float32([1])], [np.float32([2])])
    assert not has_picture(plain)
    with pytest.raises(ValueError, match="'y' was measured without a histogram"):
        histogram_png(PAIR, plain)


def test_pictures_are_the_same_whenever_they_are_drawn():
    found = measured([1.0, 2.0], [1.0, 2.5])
    assert histogram_png(PAIR, found) == histogram_png(PAIR, found)


def test_names_of_files_are_safe_and_differ(tmp_path):
    names = ["a/b", "A:b", "../../$x", "日本", " ", "long" * 100]
    runners = {side: lambda _, add=add: {n: np.float32([1 + add]) for n in names} for side, add in (("r", 0), ("s", 1))}
    found = compare(runners, [{}], [Pair("r", "s")], histograms=True, heat_maps=True)
    written = write_pictures(found, tmp_path / "new" / "folder")
    assert sorted((tmp_path / "new" / "folder").iterdir()) == sorted(written)
    assert len({path.name.lower() for path in written}) == 2 * len(names)
    assert written[0].name == "r-s.a_b.histogram.png"
    assert [path.name for path in written[2:4]] == ["r-s.A_b_2.histogram.png", "r-s.A_b_2.heatmap.png"]


def test_every_output_that_differs_has_two_pictures():
    names = [name for name, _ in pictures(comparison())]
    kinds = ("feature_map_0", "scores", "odd_x", "text")
    assert names == [f"native-emulated.{kind}.{which}.png" for kind in kinds for which in ("histogram", "heatmap")]


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidParameterError, match="cannot write pictures into"):
        write_pictures(comparison(["scores"]), tmp_path / "file")


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"trt-rewriter\[compare\]"):
        histogram_png(PAIR, measured([1.0], [2.0]))


def test_no_global_state_of_matplotlib_is_touched():
    sys.modules.pop("matplotlib.pyplot", None)
    list(pictures(comparison(["scores"])))
    assert "matplotlib.pyplot" not in sys.modules
