"""The judgement of `precision_gpu.py` and its two tables, without a GPU and without the models."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from _common import format_table
from _precision_carry import BATCHES, MODES, RESNET, TIMED

#: Largest |top-1 executed - top-1 emulated|, points.
POINTS = 0.2
#: Largest quotient of root mean squares for ResNet50, which has no top-1. A fused kernel rounds less often than
#: emulation does, one that sums in another order moves a value across a rounding border of 8 bits now and then, and
#: FP32 runs in TF32; where the emulation itself is far from FP32, both go their own ways from there: twice that.
DIFFERENCE = {"FP32": 1e-2, "TF32": 1e-2, "FP16": 1e-2, "BF16": 3e-2, "INT8": 5e-2, "FP8": 0.1}
#: Least part of the calls that must have launched a CUDA graph: the first few at a shape make it.
GRAPHS = 0.9
#: Characters of a reason in the tables; the JSON has all of it.
STATUS_LENGTH = 300
ACCURACY_COLUMNS = (
    "model", "mode", "nodes in", "engine built", "calls (in engines)", "top-1 %", "emulated %", "points", "flips",
    "native FP32 %", "points from native", "rms from emulated", "rms from native", "status",
)  # fmt: skip
LATENCY_COLUMNS = (
    "model", "mode", "nodes in", *(f"us, batch {batch}" for batch in BATCHES),
    *(f"in a row, batch {batch}" for batch in BATCHES), "status",
)  # fmt: skip
TITLE = "## Every precision, executed: top-1 and latency"
INTRODUCTION = """`precision_bundle.py` converted and emulated on the machine with no GPU; `precision_gpu.py` ran the
artifacts with `rewriter.load(provider="cuda")`. Engine built: "there" is that machine, "here" the one with the GPU
(8-bit engines, which TensorRT-RTX 1.4 builds nowhere else, and ResNet50, for it travels without its weights). "nodes
in" counts what the engines' nodes compute in, whatever the mode is called."""
ABOUT_ACCURACY = f"""Top-1 on all 10 000 test images at batch {max(BATCHES)}; "points" is executed minus emulated (at
most {POINTS} allowed), "flips" are images that engines answer otherwise than the emulation said. "calls (in engines)":
those in which engines computed; a row with a fallback says so. rms: quotients of root mean squares, of the first 1000
logits, or of ResNet50's outputs at batch 8 (seeded weights, no top-1)."""
ABOUT_LATENCY = """Microseconds of a call with device-resident inputs and outputs, as one CUDA graph: the median of 200
calls, each with the wait for its end; "in a row": a call among 40 without a wait between them."""


def top1_row(answers: np.ndarray, labels: np.ndarray, native: np.ndarray, emulated: np.ndarray) -> dict[str, Any]:
    """Top-1 in percent of three sets of answers, and how far the first is from the other two.

    Args:
        answers: executed classes, [N]; as the others.
        labels: the right ones.
        native: those of native FP32.
        emulated: those that emulation predicted.

    Returns:
        top1, native top1, emulated top1; points, points from native: the executed top-1 minus the other; flips, flips
        from native: images whose answer is another.
    """
    sides = {"": answers, "native ": native, "emulated ": emulated}
    assert len({len(side) for side in (labels, *sides.values())}) == 1, "answers to other images"
    found: dict[str, Any] = {
        f"{name}top1": float(100 * np.mean(side.astype(np.int64) == labels.astype(np.int64)))
        for name, side in sides.items()
    }
    return {
        **found,
        "points": found["top1"] - found["emulated top1"],
        "points from native": found["top1"] - found["native top1"],
        "flips": int(np.count_nonzero(answers != emulated)),
        "flips from native": int(np.count_nonzero(answers != native)),
        "images": len(labels),
    }


def judge(row: Mapping[str, Any]) -> str:
    """The word "ok", or everything that is not as it must be in a row of the accuracy part."""
    faults = _unused_engines(row)
    facts = row["facts"]
    if facts["built_coverage"] < 1:
        why = (facts["not_built"] or facts["native"] or ["no reason known"])[0]
        faults.append(f"only {100 * facts['built_coverage']:.0f} % of the nodes are in engines ({why})")
    if "points" in row:
        if not abs(row["points"]) <= POINTS + 1e-9:
            faults.append(f"{row['points']:+.2f} points from the emulation (allowed {POINTS})")
    else:
        limit = max(DIFFERENCE[row["mode"]], 2 * row["emulated from native"])
        if not row["rms emulated"] <= limit:
            faults.append(f"differs from the emulation by {row['rms emulated']:.1e} (allowed {limit:.0e})")
    return "; ".join(faults) or "ok"


def judge_latency(row: Mapping[str, Any]) -> str:
    """The word "ok", or why the figure is not one of engines in a CUDA graph."""
    faults = _unused_engines(row)
    if row["provider"] == "cuda" and row["launches"] < GRAPHS * row["calls"]:
        reasons = "; ".join({**row["no_graph"], **row["no_plan"]}) or "no reason known"
        faults.append(f"{row['calls'] - row['launches']} of {row['calls']} calls without a CUDA graph: {reasons}")
    return "; ".join(faults) or "ok"


def _unused_engines(row: Mapping[str, Any]) -> list[str]:
    """How often engines were not used, and why; nothing is asked of the CPU."""
    if row["provider"] != "cuda":
        return []
    found = []
    if row["engine calls"] != row["calls"]:
        found.append(f"{row['calls'] - row['engine calls']} of {row['calls']} calls without an engine")
    found += [f"{count} fallbacks: {reason}" for reason, count in row["fallbacks"].items()]
    return found


def render(
    results: Sequence[Mapping[str, Any]],
    device: str,
    wanted: Sequence[tuple[str, str]],
    parts: Collection[str] = ("accuracy", "latency"),
) -> tuple[str, bool]:
    """The section of RESULTS.md, and whether everything in it is ok and nothing is missing.

    Args:
        results: of `_runtime_bench.run_experiments`.
        device: its name.
        wanted: (model, mode) of all rows that there must be, in their order; those of `TIMED` in both parts.
        parts: which of the two parts were run.
    """
    sections = [TITLE, f"Device: {device}. {INTRODUCTION}"]
    good = True
    notes: dict[str, None] = {}
    for part, about, columns, line in (
        ("accuracy", ABOUT_ACCURACY, ACCURACY_COLUMNS, _accuracy_line),
        ("latency", ABOUT_LATENCY, LATENCY_COLUMNS, _latency_line),
    ):
        if part not in parts:
            continue
        lines = []
        for model, mode in wanted:
            if part == "latency" and model not in TIMED:
                continue
            rows, failed = _of(results, part, model, mode)
            shown = line(rows) if rows else {}
            faults = [row["status"] for row in rows if row["status"] != "ok"] + ([failed] if failed else [])
            status = "; ".join(dict.fromkeys(faults)) or "ok"
            lines.append({"model": model, "mode": mode, **shown, "status": status[:STATUS_LENGTH]})
            good = good and bool(rows) and not faults
            notes |= {note: None for row in rows for note in telling(row.get("facts", {}).get("notes", ()))}
        sections += [about, format_table(lines, columns)]
    if "accuracy" in parts:
        sections.append("\n".join(verdicts(results, wanted)))
    if notes:
        sections.append("What the reports say of it:\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(sections), good


def telling(notes: Sequence[str]) -> list[str]:
    """The notes about a mode; those about single ranges of a network are only counted."""
    single = [note for note in notes if ": range " in note or ": the range " in note]
    others = [note for note in notes if note not in single]
    return others + ([f"{len(single)} trained ranges were made symmetric"] if single else [])


def verdicts(results: Sequence[Mapping[str, Any]], wanted: Sequence[tuple[str, str]]) -> list[str]:
    """One line for each mode: the largest distance of an executed top-1 from the emulated one.

    It passes only when every trained network of `wanted` was executed, and nothing else is wrong with its row: a
    figure that engines made only in part proves nothing of them.
    """
    found = []
    for mode in MODES:
        models = [model for model, its in wanted if its == mode and model != RESNET]
        rows = {model: next(iter(_of(results, "accuracy", model, mode)[0]), None) for model in models}
        figures = {model: row["points"] for model, row in rows.items() if row is not None}
        if not models:
            continue
        broken = [model for model in models if model not in figures]
        partly = [model for model, row in rows.items() if row is not None and row["status"] != "ok"]
        worst = max(figures, key=lambda model: abs(figures[model]), default=None)
        largest = "no figure" if worst is None else f"largest {abs(figures[worst]):.2f} ({worst})"
        said = f"{'FAIL' if broken or partly else 'PASS'}: {mode} executed within {POINTS} points of emulated top-1"
        said += f": {largest}"
        said += f"; not ok: {', '.join(partly)}" if partly else ""
        found.append(said + (f"; no figure for {', '.join(broken)}" if broken else ""))
    return found


def _of(results: Sequence[Mapping[str, Any]], part: str, model: str, mode: str) -> tuple[list[Mapping[str, Any]], str]:
    """The rows of one experiment, and why there are none or not all of them ("" when there are)."""
    for result in results:
        told = result["experiment"]
        if (told["part"], told["model"], told["mode"]) == (part, model, mode):
            return list(result["rows"]), result.get("failed", "")
    return [], "not run"


def _accuracy_line(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    (row,) = rows
    cells = {
        "nodes in": row["nodes in"],
        "engine built": row["built"],
        "calls (in engines)": f"{row['calls']} ({row['engine calls']})",
        "rms from emulated": f"{row['rms emulated']:.1e}",
        "rms from native": f"{row['rms native']:.1e}",
    }
    if row["model"] == RESNET:
        return cells
    return cells | {
        "top-1 %": f"{row['top1']:.2f}",
        "emulated %": f"{row['emulated top1']:.2f}",
        "points": f"{row['points']:+.2f}",
        "flips": row["flips"],
        "native FP32 %": f"{row['native top1']:.2f}",
        "points from native": f"{row['points from native']:+.2f}",
    }


def _latency_line(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    cells: dict[str, Any] = {"nodes in": rows[0]["nodes in"]}
    for row in rows:
        cells[f"us, batch {row['batch']}"] = round(row["us"])
        cells[f"in a row, batch {row['batch']}"] = round(row["stream us"])
    return cells
