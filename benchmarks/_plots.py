"""Charts of RESULTS.md: what to draw as plain data (`Bars`, `Lines`, `Points`), and how (`draw`, with matplotlib)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


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
        places: digits after the point written at the end of each bar; None: no figures.
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
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = False
    log_y: bool = False


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
