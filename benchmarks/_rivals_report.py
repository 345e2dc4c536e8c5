"""The tables, facts and charts of `rivals.py`, from its JSON alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from _common import format_table
from _plots import Bars, Chart

Row = Mapping[str, Any]
#: Systems in the order of the tables.
SYSTEMS = (
    "ours", "torch compile", "torch compile, max-autotune", "torch eager, graph", "torch eager", "JAX",
    "ORT NHWC, graph", "ORT, graph", "ORT NHWC", "ORT",
)  # fmt: skip
PRECISIONS = ("TF32", "FP16", "BF16", "INT8", "FP8")
#: One bar each in the charts: the quickest of these systems, so that no other is shown with less than its best.
CHARTED = {
    "ours": ("ours",),
    "torch compile (best mode)": ("torch compile", "torch compile, max-autotune"),
    "torch eager, graph": ("torch eager, graph",),
    "JAX": ("JAX",),
    "ORT, graph (best layout)": ("ORT, graph", "ORT NHWC, graph"),
    "ORT (best layout)": ("ORT", "ORT NHWC"),
}
#: Whose systems are counted together where it is told in how many cases each was measured.
FAMILIES = {
    "ONNX Runtime": ("ORT", "ORT NHWC", "ORT, graph", "ORT NHWC, graph"),
    "PyTorch": ("torch compile", "torch compile, max-autotune", "torch eager, graph", "torch eager"),
    "XLA (JAX)": ("JAX",),
}
#: Largest difference from the reference that is shown without a reservation.
DIFFERENCE_LIMIT = 0.1
#: What the hybrid of 7 steps may take of one ONNX Runtime session's time.
CHAIN_LIMIT = 0.5


def render(document: Mapping[str, Any]) -> str:
    """All tables as Markdown, with a heading for each."""
    rows = document["rows"]
    parts = [
        *_runs(document),
        *_speed(document),
        *_ratios(rows),
        *_conversions(rows),
        *_transposes(rows),
    ]
    return "\n\n".join([*parts, *_chain(rows), *_smoke(rows), *_failures(rows)])


def _runs(document: Mapping[str, Any]) -> Iterable[str]:
    """That rows of earlier runs are beneath these ones, and from when."""
    dates = [(run.get("environment") or {}).get("date", "an unknown day") for run in document.get("merged", ())]
    if dates:
        parts = ", ".join((document.get("options") or {}).get("parts", ())) or "some parts"
        yield f"The last run measured again: {parts}; rows that it did not make are those of {', '.join(dates)} UTC."


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """Figures for sentences: `fp16_faster`, `fp16_cells`: cells of the ratio table in which ours is the fastest; ..."""
    cells = list(ratios(document["rows"], "FP16"))
    found: dict[str, str] = {}
    if cells:
        values = [cell["ratio"] for cell in cells]
        found = {
            "fp16_cells": str(len(values)),
            "fp16_faster": str(sum(value > 1 for value in values)),
            "fp16_median": f"{statistics.median(values):.2f}",
            "fp16_least": f"{min(values):.2f}",
            "fp16_most": f"{max(values):.2f}",
            "fp16_measured": measured(cells),
        }
    chain = {row["system"]: row["us"] for row in _of(document["rows"], "chain") if "us" in row}
    if {"ours, 7 steps, graph", "ORT, eager"} <= chain.keys():
        found["chain_ratio"] = f"{chain['ours, 7 steps, graph'] / chain['ORT, eager']:.2f}"
    gains = [row["without us"] / row["with us"] for row in _of(document["rows"], "transposes") if "with us" in row]
    if gains:
        found["transposes_median"] = f"{statistics.median(gains):.3f}"
    return found


def plots(document: Mapping[str, Any]) -> dict[str, Chart]:
    """For each batch size a chart of FP16, by key "fp16_batch8": microseconds of one call, a group a model.

    And "relative": ours beside the quickest other system, for each model and batch size, in TF32 and FP16.
    """
    rows = [row for row in _of(document["rows"], "speed") if row["precision"] == "FP16" and _comparable(row)]
    models = list(dict.fromkeys(row["model"] for row in rows))
    charts: dict[str, Chart] = {**_relative(document["rows"])}
    for batch in sorted({row["batch"] for row in rows}):
        times = {(row["model"], row["system"]): row["us"] for row in rows if row["batch"] == batch}
        series = {
            label: [
                min((times[model, name] for name in names if (model, name) in times), default=None) for model in models
            ]
            for label, names in CHARTED.items()
        }
        series = {name: values for name, values in series.items() if any(value is not None for value in values)}
        title = f"One call in FP16 at batch {batch}, device-resident (less is better; no bar: not measured)"
        charts[f"fp16_batch{batch}"] = Bars(title, "microseconds (logarithmic)", models, series, log=True, places=0)
    return charts


def _relative(rows: Sequence[Row]) -> dict[str, Chart]:
    """The chart of ratios to the quickest other system; nothing where no case has both."""
    all_cells = {precision: list(ratios(rows, precision)) for precision in ("TF32", "FP16")}
    found = {
        precision: {(cell["model"], cell["batch"]): cell["ratio"] for cell in cells}
        for precision, cells in all_cells.items()
    }
    models = list(dict.fromkeys(model for cells in found.values() for model, _ in cells))
    known = {case for cells in found.values() for case in cells}
    cases = sorted(known, key=lambda case: (models.index(case[0]), case[1]))
    series = {precision: [cells.get(case) for case in cases] for precision, cells in found.items() if cells}
    told = "; ".join(f"{precision}: {measured(cells)}" for precision, cells in all_cells.items() if cells)
    title = (
        "Speed of ours over the quickest other system that was measured, one call (right of the line: ours is "
        f"quicker). Cases measured, {told}"
    )
    groups = [f"{model}, batch {batch}" for model, batch in cases]
    return {"relative": Bars(title, "times as fast", groups, series, line=1.0, places=2)} if cases else {}


def measured(cells: Sequence[Mapping[str, Any]]) -> str:
    """In how many of the cases each of the others has figures: "ONNX Runtime 15 of 15, ..."; modes that lack some too.

    Args:
        cells: of `ratios`.
    """

    def count(names: Iterable[str]) -> int:
        return sum(any(name in cell["all"] for name in names) for cell in cells)

    told = [f"{family} {count(names)} of {len(cells)}" for family, names in FAMILIES.items()]
    tuned = count(["torch compile, max-autotune"])
    if tuned < len(cells):
        told[1] += f" (its max-autotune {tuned})"
    return ", ".join(told)


def _comparable(row: Row) -> bool:
    """Whether a row has a time of a result that is numbers at all."""
    return "us" in row and math.isfinite(row.get("difference", 0.0))


def ratios(rows: Sequence[Row], precision: str) -> Iterable[dict[str, Any]]:
    """For each model and batch: ours in this precision against the quickest other system in it, one call."""
    times: dict[tuple[str, int], dict[str, float]] = {}
    for row in _of(rows, "speed"):
        if row["precision"] == precision and _comparable(row):
            times.setdefault((row["model"], row["batch"]), {})[row["system"]] = row["us"]
    for (model, batch), found in times.items():
        others = {name: value for name, value in found.items() if name != "ours"}
        if "ours" in found and others:
            best = min(others, key=lambda name: others[name])
            yield {
                "model": model, "batch": batch, "ours us": found["ours"], "quickest other": best,
                "its us": others[best], "ratio": others[best] / found["ours"], "all": found,
            }  # fmt: skip


def _of(rows: Iterable[Row], part: str) -> list[Row]:
    return [row for row in rows if row.get("part") == part]


def _speed(document: Mapping[str, Any]) -> Iterable[str]:
    """A table for each model: a line for each precision and system."""
    rows = _of(document["rows"], "speed")
    cold = _compile_seconds(document["rows"])
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        batches = sorted({row["batch"] for row in own})
        lines = []
        for precision in PRECISIONS:
            for system in SYSTEMS:
                found = {r["batch"]: r for r in own if (r["precision"], r.get("system")) == (precision, system)}
                if any("us" in row for row in found.values()):
                    lines.append(_line(precision, system, found, batches, cold.get((model, precision, system))))
        if lines:
            yield f"### {document['models'].get(model, model)}"
            yield format_table(lines)


def _line(
    precision: str, system: str, found: Mapping[int, Row], batches: Sequence[int], cold: float | None
) -> dict[str, Any]:
    line: dict[str, Any] = {"precision": precision, "system": system}
    for word, key in (("us", "us"), ("in a row", "in a row")):
        for batch in batches:
            value = found.get(batch, {}).get(key)
            line[f"{word}, {batch}"] = None if value is None else round(value)
    last = found.get(batches[-1], {})
    if "us" in last:
        line[f"p10 .. p90, {batches[-1]}"] = f"{last['p10']:.0f} .. {last['p90']:.0f}"
    else:
        line[f"p10 .. p90, {batches[-1]}"] = ""
    line["items/s"] = round(batches[-1] * 1e6 / last["in a row"]) if "in a row" in last else None
    worst = [row["difference"] for row in found.values() if "difference" in row]
    line["difference"] = _told_difference(max(worst, key=_badness)) if worst else ""
    line["compiled s"] = None if cold is None else round(cold, 1)
    return line


def _badness(difference: float) -> float:
    """Sorts differences; NaN is the worst there is."""
    return math.inf if math.isnan(difference) else difference


def _told_difference(difference: float) -> str:
    """The figure, marked where `_failures` has a word about it."""
    return f"{difference:.1e}{'' if difference <= DIFFERENCE_LIMIT else ' (!)'}"


def _compile_seconds(rows: Sequence[Row]) -> dict[tuple[str, str, str], float]:
    """(model, precision, system) -> seconds until every batch size had answered once, without anything kept."""
    seconds: dict[tuple[str, str, str], float] = {}
    for row in rows:
        if row.get("part") == "convert" and "seconds" in row and not row.get("cancel"):
            precision = "TF32" if row["precision"] == "FP32" else row["precision"]
            seconds[row["model"], precision, "ours"] = row["seconds"]
        elif row.get("part") == "compile" and "first call s" in row:
            key = (row["model"], row["precision"], row["system"])
            seconds[key] = seconds.get(key, 0.0) + row["first call s"]
    for row in _of(rows, "speed"):
        key = (row["model"], row["precision"], row.get("system", ""))
        if row.get("system", "").startswith(("ORT", "torch eager")) and "prepare s" in row:
            seconds[key] = seconds.get(key, 0.0) + row["prepare s"] + row.get("first call s", 0.0)
    return seconds


def _ratios(rows: Sequence[Row]) -> Iterable[str]:
    """Ours against each of the others, by precision."""
    for precision in ("TF32", "FP16"):
        lines = []
        cells = list(ratios(rows, precision))
        others = [name for name in SYSTEMS[1:] if any(name in cell["all"] for cell in cells)]
        for cell in cells:
            line = {"model": cell["model"], "batch": cell["batch"], "ours, us": round(cell["ours us"])}
            line |= {
                name: f"{cell['all'][name] / cell['ours us']:.2f}" if name in cell["all"] else "" for name in others
            }
            lines.append({**line, "quickest other": f"{cell['quickest other']}: {cell['ratio']:.2f}"})
        if lines:
            yield f"### The others' time over ours in {precision}, one call"
            yield (
                "Each cell is the time of that system divided by the time of ours: above 1, ours is quicker. "
                f"Empty: not measured. Cases measured: {measured(cells)}."
            )
            yield format_table(lines)


def _conversions(rows: Sequence[Row]) -> Iterable[str]:
    lines = [
        {
            "model": row["model"],
            "precision": row["precision"],
            "cancel_transposes": "on" if row.get("cancel") else "off",
            "seconds": round(row["seconds"], 1),
            "engines": f"{row['engines']} of {row['segments']}",
            "in engines": f"{100 * row['coverage']:.1f} %",
            "nodes in": ", ".join(f"{kind} {count}" for kind, count in row.get("arithmetic", {}).items()),
        }
        for row in _of(rows, "convert")
        if "seconds" in row
    ]
    if lines:
        yield "### Conversions"
        yield format_table(lines)


def _transposes(rows: Sequence[Row]) -> Iterable[str]:
    lines = []
    for row in _of(rows, "transposes"):
        if "transposes with" not in row:
            continue
        line = {key: row[key] for key in ("model", "precision", "batch")}
        line["Transposes"] = f"{row['transposes without']} -> {row['transposes with']}"
        for word, ratio in ((" us", "ratio"), (", in a row", "ratio in a row")):
            pair = [row.get(f"{which}{word}") for which in ("without", "with")]
            known = None not in pair
            line |= {f"{which}{word}": _whole(time) for which, time in zip(("without", "with"), pair, strict=True)}
            line[ratio] = f"{pair[0] / pair[1]:.3f}" if known else "nothing to cancel"
        lines.append(line)
    if lines:
        yield "### Does cancel_transposes pay?"
        yield format_table(lines)


def _chain(rows: Sequence[Row]) -> Iterable[str]:
    lines = [row for row in _of(rows, "chain") if "us" in row]
    if not lines:
        return
    yield "### 48 convolutions in alternating steps, exact profiles"
    shown = [{key: _whole(row[key]) for key in ("system", "us", "p10", "p90", "in a row")} for row in lines]
    yield format_table(shown)
    times = {row["system"]: row["us"] for row in lines}
    seven = times.get("ours, 7 steps, graph")
    verdicts = []
    for other, limit in (("ORT, eager", CHAIN_LIMIT), ("ORT, graph", None), ("ours, 1 step, graph", None)):
        if seven is not None and other in times:
            ratio = seven / times[other]
            word = "told" if limit is None else "PASS" if ratio <= limit else "MISS"
            wanted = "" if limit is None else f" (wanted <= {limit:g})"
            verdicts.append(f"{word}: 7 steps in a graph take {ratio:.3f} of the time of {other}{wanted}")
    if verdicts:
        yield "\n".join(f"- {line}" for line in verdicts)


def _whole(value: Any) -> Any:
    return round(value) if isinstance(value, float) else value


def _smoke(rows: Sequence[Row]) -> Iterable[str]:
    lines = [
        {
            "command": " ".join(["trt-rewriter", *row["command"]]), "exit status": row["status"],
            "seconds": round(row["seconds"], 1), "last line": row["said"],
        }
        for row in _of(rows, "smoke") if "status" in row
    ]  # fmt: skip
    if lines:
        yield "### Commands on the GPU"
        yield format_table(lines)


def _reason(row: Row) -> str:
    """Why a row has no figures or must not be taken as it is; "" for one that may."""
    if row.get("failed"):
        return str(row["failed"])
    told = [f"fell back: {row['note']}"] if row.get("note") else []
    difference = row.get("difference", 0.0)
    if not math.isfinite(difference):
        told.append(f"difference {difference}: the result is no number, its times prove nothing")
    elif difference > DIFFERENCE_LIMIT:
        told.append(f"differs by more than {DIFFERENCE_LIMIT:g} from the reference")
    return "; ".join(told)


def _failures(rows: Sequence[Row]) -> Iterable[str]:
    """What has no figures or a reservation, and why; batch sizes of one case with the same reason in one line."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        reason = _reason(row)
        if reason:
            what = " ".join(str(row[key]) for key in ("model", "precision", "system") if row.get(key))
            batches = reasons.setdefault((row["part"], what, reason), [])
            if row.get("batch") is not None:
                batches.append(str(row["batch"]))
    if reasons:
        lines = [
            {"part": part, "what": what, "batch": ", ".join(batches), "why": reason}
            for (part, what, reason), batches in reasons.items()
        ]
        yield "### Without figures, or with a reservation"
        yield format_table(lines)
