"""Charts of RESULTS.md: what to draw as plain data (`Bars`, `Lines`, `Points`), and how (`draw`, with matplotlib).

Pictures are SVG on a white ground of their own, so that they read the same in light and in dark viewers; colours are
told apart by colour-blind eyes too. The same chart gives the same bytes (with one version of matplotlib), and
carries its digest, so that a test can tell without drawing whether a picture is of the present figures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

#: Raised when the look changes, so that kept pictures count as old.
LOOK = 7
#: Colours of series in order: Okabe and Ito's palette without black and yellow, greys, dark ones.
COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F", "#404040", "#B0B0B0", "#882255",
    "#999933", "#332288",
)  # fmt: skip
MARKERS = "osD^vPX*<>hp"
TEXT, GRID = "#24292F", "#D0D7DE"
#: Inches.
WIDTH, BAR, MARGIN = 8.6, 0.21, 1.15


@dataclasses.dataclass(frozen=True)
class Bars:
    """Horizontal bars in groups, one colour a series; or one bar a group, stacked of the series.

    Attributes:
        title: what is shown, in a few words.
        unit: label of the value axis, with its unit ("milliseconds", "times the fastest").
        groups: names of the groups, from the top.
        series: name -> one value a group; None: not measured, no bar.
        stacked: pile the series up instead of putting them side by side.
        log: logarithmic axis.
        line: a value at which a line is drawn (a limit, or 1 for "as fast"), or None.
        places: digits after the point written at the end of each bar (stacked: of the sum); None: no figures.
    """

    title: str
    unit: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    stacked: bool = False
    log: bool = False
    line: float | None = None
    places: int | None = None


@dataclasses.dataclass(frozen=True)
class Lines:
    """Curves through measured points.

    Attributes:
        title: what is shown.
        x_label, y_label: labels of the axes, with units.
        series: name -> points (x, y).
        log_x, log_y: logarithmic axes.
        dashed: names of series that are drawn as dashed lines (what is only compared with).
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = False
    log_y: bool = False
    dashed: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Points:
    """Single points with a text at each.

    Attributes:
        title: what is shown.
        x_label, y_label: labels of the axes, with units.
        series: name -> points (x, y, text; "" for no text).
        log_x, log_y: logarithmic axes.
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float, float, str]]]
    log_x: bool = False
    log_y: bool = False


Chart = Bars | Lines | Points


def digest(chart: Chart) -> str:
    """What a picture is of: a hash of the chart's data and of the look."""
    told = [LOOK, type(chart).__name__, dataclasses.asdict(chart)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def digest_in(picture: str) -> str | None:
    """The digest that `draw` wrote into an SVG, None for a picture without one."""
    found = re.search(r"chart ([0-9a-f]{32})", picture)
    return found and found[1]


def draw(chart: Chart) -> str:
    """The chart as SVG text.

    Raises:
        ImportError: matplotlib is not installed (`pip install 'trt-rewriter[compare]'`).
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    look = {
        "svg.hashsalt": "trt-rewriter", "svg.fonttype": "path", "path.simplify": False, "font.family": "DejaVu Sans",
        "font.size": 9, "text.color": TEXT, "axes.labelcolor": TEXT, "xtick.color": TEXT, "ytick.color": TEXT,
        "axes.edgecolor": GRID, "axes.spines.top": False, "axes.spines.right": False, "grid.color": GRID,
        "legend.frameon": False,
    }  # fmt: skip
    with mpl.rc_context({**mpl.rcParamsDefault, **look}):
        rows = _rows(chart) if isinstance(chart, Bars) else 0
        figure = Figure((WIDTH, MARGIN + BAR * rows if rows else 4.4), facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        (_bars if isinstance(chart, Bars) else _curves)(axes, chart)
        title = textwrap.fill(chart.title, 95)
        figure.suptitle(title, x=0.012, ha="left", fontsize=10.5, fontweight="bold")
        if len(chart.series) > 1:
            columns = max(1, 105 // (max(map(len, chart.series)) + 8))
            figure.legend(loc="outside lower left", ncols=min(columns, len(chart.series)), fontsize=8.5)
        buffer = io.StringIO()
        about = {"Date": None, "Creator": None, "Title": chart.title, "Description": f"chart {digest(chart)}"}
        FigureCanvasSVG(figure).print_svg(buffer, metadata=about)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _of(choices: Sequence[str], number: int) -> str:
    """The look of a series; after the last one they begin again."""
    return choices[number % len(choices)]


def _rows(chart: Bars) -> float:
    """Bars and gaps from top to bottom."""
    return len(chart.groups) * (1.45 if chart.stacked or len(chart.series) == 1 else len(chart.series) + 0.9)


def _bars(axes: Any, chart: Bars) -> None:
    stacked = chart.stacked or len(chart.series) == 1
    thick = 0.72 if stacked else 0.84 / len(chart.series)
    ends = [0.0] * len(chart.groups)
    for number, (name, values) in enumerate(chart.series.items()):
        known = [0.0 if value is None else value for value in values]
        offset = 0.0 if stacked else (number - (len(chart.series) - 1) / 2) * thick
        places = [index + offset for index in range(len(chart.groups))]
        left = ends if chart.stacked else None
        axes.barh(places, known, thick * (1 if stacked else 0.92), left, color=_of(COLOURS, number), label=name)
        ends = [a + b for a, b in zip(ends, known, strict=True)] if chart.stacked else ends
        if not chart.stacked and chart.places is not None:
            told = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
            _figures(axes, told, chart.places)
    if chart.stacked and chart.places is not None:
        _figures(axes, list(enumerate(ends)), chart.places)
    axes.set_yticks(range(len(chart.groups)), chart.groups)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(chart.groups) - 0.45, -0.55)
    if chart.log:
        _logarithmic(axes.xaxis)
        axes.set_xlim(axes.xaxis.get_minpos() / 2.5, axes.xaxis.get_data_interval()[1] * 1.7)
    axes.margins(x=0.09 if chart.places is not None else 0.0)
    axes.set_xlabel(chart.unit)
    axes.grid(axis="x", linewidth=0.7)
    axes.set_axisbelow(True)
    if chart.line is not None:
        axes.axvline(chart.line, color=TEXT, linewidth=1, linestyle=(0, (4, 3)))


def _logarithmic(axis: Any) -> None:
    """A logarithmic axis whose ticks say 0.01, 10 or 10 000 as people write it; 1e-05 and the like outside of that."""
    from matplotlib.ticker import LogLocator, NullFormatter

    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")

    def told(value: float, _: object) -> str:
        return f"{value:,.0f}".replace(",", " ") if 10 <= value < 1e7 else f"{value:g}"

    largest, least = axis.get_data_interval()[1], axis.get_minpos()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if largest < 60 * least else (1.0,)))
    axis.set_major_formatter(told)
    axis.set_minor_formatter(NullFormatter())


def _figures(axes: Any, ends: Sequence[tuple[float, float]], places: int) -> None:
    """Writes values behind the ends of bars."""
    for place, value in ends:
        text = f"{value:.{places}f}"
        side = {"xytext": (3, 0), "ha": "left"} if value >= 0 else {"xytext": (-3, 0), "ha": "right"}
        where = {**side, "textcoords": "offset points", "va": "center", "fontsize": 7.5}
        axes.annotate(text, (value, place), **where)


def _curves(axes: Any, chart: Lines | Points) -> None:
    for number, (name, points) in enumerate(chart.series.items()):
        colour, marker = _of(COLOURS, number), _of(MARKERS, number)
        x, y = [point[0] for point in points], [point[1] for point in points]
        if isinstance(chart, Lines):
            style = "--" if name in chart.dashed else "-"
            axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.5, linestyle=style, label=name)
            continue
        axes.plot(x, y, color=colour, marker=marker, markersize=6, linestyle="none", label=name)
        for point in points:
            where = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 7.5}
            axes.annotate(point[2], point[:2], **where)
    if chart.log_x:
        _logarithmic(axes.xaxis)
    if chart.log_y:
        _logarithmic(axes.yaxis)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(linewidth=0.7)
    axes.set_axisbelow(True)
