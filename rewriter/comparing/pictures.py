"""Differences as pictures: how many values differ by how much, and where in the output they lie (matplotlib)."""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rewriter.comparing.heat_maps import HeatMap
from rewriter.comparing.histograms import BINS_PER_DECADE, Histogram
from rewriter.comparing.values import Comparison, Difference, Pair
from rewriter.errors import InvalidParameterError

#: Dots an inch, and inches.
_DPI, _WIDTH, _HEIGHT = 150, 5.4, 3.3
_BAR, _BEYOND, _EQUAL, _ODD, _GRID = "#4c78a8", "#d64550", "#a9b4c2", "#7b2fbf", "#e3e6ea"
#: How many times smaller than the largest difference a difference may be to have a colour of its own.
_COLOURED = 1e5


def import_matplotlib() -> Any:
    """The matplotlib module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    from rewriter.runtime.other_errors import import_failure

    try:
        import matplotlib
    except ImportError as error:
        raise import_failure(error, "matplotlib", "matplotlib", "compare", "drawing pictures of differences") from error
    return matplotlib


def has_picture(found: Difference) -> bool:
    """True for an output with differences to draw; equal outputs have no picture."""
    histogram = found.histogram
    return histogram is not None and bool(histogram.counts or histogram.odd)


def histogram_png(pair: Pair, found: Difference) -> bytes:
    """How many values differ by how much, as a PNG file.

    1. Both axes are logarithmic. Values that do not differ have a bar of their own at the left, values whose
       difference is no number (NaN, infinity, another text) one at the right.
    2. The dashed line is the limit; what lies beyond it is red. The upper axis is relative to max|reference|.

    Raises:
        ValueError: the difference has no histogram.
        MissingDependencyError: matplotlib is not installed.
    """
    if found.histogram is None:
        raise ValueError(f"the difference of {found.output!r} was measured without a histogram")
    figure = _figure(_HEIGHT)
    axes = figure.add_subplot()
    limit = _absolute_limit(pair, found)
    ticks = _draw_bars(axes, found.histogram, limit)
    axes.set_yscale("log")
    axes.set_ylim(0.6, 2.5 * max(1, found.histogram.zeros, found.histogram.odd, *found.histogram.counts))
    axes.set_ylabel("values")
    axes.set_xlabel(f"|{pair.result} - {pair.reference}|")
    axes.set_xticks([place for place, _ in ticks], [words for _, words in ticks])
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if limit:
        axes.axvline(math.log10(limit), color=_BEYOND, linestyle="--", linewidth=1.2)
    if found.scale:
        _draw_relative_axis(axes, found.scale)
    relative = "" if found.fault else f", max {found.max_abs:.1e} ({found.max_rel:.1e} relative)"
    _title(figure, f"{found.output}: {found.elements:,} values{relative}")
    return _png(figure)


def heat_map_png(pair: Pair, found: Difference) -> bytes | None:
    """Where in the output the differences are, as a PNG file; None where there is nothing to draw.

    1. A cell is the largest difference there (see `rewriter.comparing.heat_maps`), on a logarithmic scale.
    2. White does not differ, violet is no number (NaN, infinity, another text), grey has no value.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    heat_map = found.heat_map
    if heat_map is None or not has_picture(found):
        return None
    import_matplotlib()
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    values = heat_map.values
    finite = values[np.isfinite(values) & (values > 0)]
    largest = float(finite.max()) if finite.size else 1.0
    smallest = max(min(float(finite.min()), largest / 10), largest / _COLOURED) if finite.size else 0.1
    colours = colormaps["YlOrRd"].with_extremes(under="white", over=_ODD, bad="#c9ced6")
    figure = _figure(_heat_map_height(heat_map), "compressed")
    axes = figure.add_subplot()
    shown = np.ma.masked_invalid(np.where(np.isposinf(values), np.float32(3.4e38), np.maximum(values, 1e-45)))
    rows, columns = heat_map.extent
    picture = axes.imshow(
        shown,
        cmap=colours,
        norm=LogNorm(smallest, largest),
        aspect="equal" if heat_map.rows.startswith("axis") else "auto",
        interpolation="nearest",
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
    )
    if finite.size:
        ticks = np.geomspace(smallest, largest, 5 if len(values) > 1 else 3)
        bar = figure.colorbar(picture, ax=axes)
        bar.set_label(f"|{pair.result} - {pair.reference}|", fontsize=8 if len(values) > 8 else 6)
        bar.set_ticks(ticks, labels=[f"{tick:.1e}" for tick in ticks])
        bar.minorticks_off()
    _label_sides(axes, heat_map)
    odd = "; violet: NaN, inf or text" if np.isposinf(values).any() else ""
    _title(figure, f"{found.output}: differences{_meaning(heat_map)}{odd}")
    return _png(figure)


def pictures(comparison: Comparison) -> Iterator[tuple[str, bytes]]:
    """All pictures, one after the other: (name of a file, PNG).

    The names are "REFERENCE-RESULT.OUTPUT.histogram.png" and ".heatmap.png"; characters that files or shells
    take amiss are "_" in them, and a number tells names apart that would be equal.
    """
    taken: set[str] = set()
    for pair in comparison.pairs:
        for found in pair.differences:
            if not has_picture(found):
                continue
            stem = _unused(f"{pair.pair.reference}-{pair.pair.result}.{_file_name(found.output)}", taken)
            yield f"{stem}.histogram.png", histogram_png(pair.pair, found)
            heat_map = heat_map_png(pair.pair, found)
            if heat_map is not None:
                yield f"{stem}.heatmap.png", heat_map


def write_pictures(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Writes all pictures into a folder, which is made where there is none.

    Raises:
        InvalidParameterError: they cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    folder = Path(folder)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in pictures(comparison):
            (folder / name).write_bytes(data)
            written.append(folder / name)
    except OSError as error:
        raise InvalidParameterError(f"cannot write pictures into {str(folder)!r}: {error}") from error
    return written


def _draw_bars(axes: Any, histogram: Histogram, limit: float) -> list[tuple[float, str]]:
    """Draws the bars over log10 of the difference; the ticks below them."""
    edges = [math.log10(edge) for edge in _finite(histogram.edges)]
    first, last = (math.floor(edges[0]), math.ceil(edges[-1])) if edges else (0, 0)
    width = 1 / BINS_PER_DECADE
    for number, count in enumerate(histogram.counts):
        left = (histogram.first + number) * width
        beyond = bool(limit) and left >= math.log10(limit) - 1e-9
        axes.bar(left, count, width, align="edge", color=_BEYOND if beyond else _BAR, edgecolor="white", linewidth=0.5)
    if limit:  # the axis reaches to the limit, too
        first, last = min(first, math.floor(math.log10(limit))), max(last, math.ceil(math.log10(limit)))
    step = max(1, math.ceil((last - first) / 7))
    # A histogram of one bin has a tick at each side.
    ticks: list[tuple[float, str]] = [(float(n), f"1e{n}") for n in range(first, last + 1, step)] if edges else []
    broad = max(width, (last - first) / 14)
    if histogram.zeros:
        axes.bar(first - 2 * broad, histogram.zeros, broad, color=_EQUAL)
        ticks.insert(0, (first - 2 * broad, "equal"))
    if histogram.odd:
        axes.bar(last + 2 * broad, histogram.odd, broad, color=_ODD)
        ticks.append((last + 2 * broad, "NaN, inf\nor text"))
    return ticks


def _draw_relative_axis(axes: Any, scale: float) -> None:
    shift = math.log10(scale)
    upper = axes.secondary_xaxis("top", functions=(lambda x: x - shift, lambda x: x + shift))
    low, high = (bound - shift for bound in axes.get_xlim())
    step = max(1, math.ceil((high - low) / 7))
    numbers = range(math.ceil(low), math.floor(high) + 1, step)
    upper.set_xticks(list(numbers), [f"1e{n}" for n in numbers])
    upper.set_xlabel("relative to the largest magnitude of the reference", fontsize=8, color="#556")
    upper.tick_params(labelsize=8, colors="#556")


def _absolute_limit(pair: Pair, found: Difference) -> float:
    """The limit as a difference; 0.0 where it is not known, or there is nothing to hold against it."""
    limit = pair.limit(found.output)
    drawn = found.histogram is not None and found.histogram.counts
    return 0.0 if limit is None or not drawn else max(limit * found.scale, pair.absolute or 0.0)


def _heat_map_height(heat_map: HeatMap) -> float:
    """Inches: low for a strip, as high as its shape asks for a picture."""
    rows, columns = heat_map.values.shape
    if heat_map.rows.startswith("axis"):
        return min(max(1.1 + 3.8 * heat_map.extent[0] / heat_map.extent[1], 1.9), 5.4)
    return min(max(1.5 + 0.12 * rows, 1.8), 3.9) if columns else _HEIGHT


def _label_sides(axes: Any, heat_map: HeatMap) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(heat_map.columns)
    axes.set_ylabel(heat_map.rows)
    for axis, extent in zip((axes.yaxis, axes.xaxis), heat_map.extent, strict=True):
        axis.set_major_locator(MaxNLocator(nbins=min(8, max(1, extent)), integer=True))
        if extent == 1:
            axis.set_ticks([0])
    if not heat_map.rows:
        axes.set_yticks([])


def _meaning(heat_map: HeatMap) -> str:
    """What a cell stands for beside one value."""
    words = f", largest over {heat_map.over}" if heat_map.over else ""
    return f"{words}; of several sizes" if heat_map.resized else words


def _figure(height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Any:
    import_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), dpi=_DPI, layout=layout, facecolor="white")


def _title(figure: Any, text: str) -> None:
    """A title whose lines fit the picture; the middle of long names is left out."""
    name, _, rest = text.rpartition(": ")
    short = name if len(name) <= 44 else f"{name[:20]}...{name[-21:]}"
    joint = ":\n" if len(short) + len(rest) > 58 else ": "
    lines = "\n".join(textwrap.wrap(rest, 72))
    figure.suptitle(f"{short}{joint}{lines}", fontsize=10, x=0.02, ha="left", parse_math=False)


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    data = io.BytesIO()
    with warnings.catch_warnings():
        # Names in scripts that the font lacks: boxes stand for their letters, which is told by the look of it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas.print_png(data, metadata={"Software": None})
    return data.getvalue()


def _finite(edges: tuple[float, ...]) -> list[float]:
    """Edges that have a logarithm: the outermost may be 0 or infinite in double precision."""
    return [min(max(edge, 5e-324), 1.7e308) for edge in edges]


def _file_name(output: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", output).strip("._") or "output"


def _unused(stem: str, taken: set[str]) -> str:
    found, number = stem[:150], 1
    while found.lower() in taken:
        number += 1
        found = f"{stem[:150]}_{number}"
    taken.add(found.lower())
    return found
