"""The figures of `trt-rewriter bench`: tables for people, lines of CSV for other programs."""

from __future__ import annotations

import csv
import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewriter.runtime.choosing import choice_lines
from rewriter.timing.circumstances import tf32_words
from rewriter.timing.latencies import PERCENTILES, Latencies

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from rewriter.timing.artifact_timing import ArtifactTiming, SampleTiming

#: Counters of `stats()` that are told at the end, as far as there are any.
_STATS = (
    "calls", "engine_calls", "native_calls", "warmup_calls", "engine_nodes", "engines", "steps", "islands", "plans",
    "graphs", "graph_launches", "discoveries", "memory_retries", "device_bytes",
)  # fmt: skip
#: A heading and the cells below it.
_Cells = tuple[str, Sequence[str]]
#: Characters between two columns.
_GAP = 2


def print_timing(console: Console, what: str, found: ArtifactTiming, around: Mapping[str, Any]) -> None:
    """Prints everything.

    Args:
        console: where to.
        what: the artifact, in words.
        found: the figures.
        around: what `circumstances` found.
    """
    console.print(what)
    console.print(_machine(found, around))
    console.print(f"TF32: {tf32_words(around['tf32'])}")
    start = "" if found.device_start is None else f"CUDA started in {found.device_start:.2f} s, "
    console.print(f"{start}artifact loaded in {found.load:.3f} s")
    for timing in found.timings:
        console.print()
        console.print(_heading(timing), style="bold")
        console.print(_start(timing))
        for table in _latencies(timing, found.trim, console.width):
            console.print(table, soft_wrap=False)
        for line in _rates(timing):
            console.print(line)
    console.print()
    console.print(f"Counters: {_counters(found.stats)}")
    # What the notes say is not said twice.
    known = [*found.stats.get("fallbacks", {}), *found.stats.get("unusable_engines", {}).values()]
    for line in choice_lines(found.stats.get("engines_chosen", {}), known):
        console.print(f"Engines: {line}")
    for note in found.notes:
        console.print(f"Note: {note}")


def write_csv(document: Mapping[str, Any]) -> str:
    """One line a set of inputs, a header first; what is not measured stays empty.

    Args:
        document: what `bench` writes as JSON.
    """
    around = document["environment"]
    common = {
        **{name: document[name] for name in ("experiment_name", "artifact", "signature", "provider", "execution")},
        "gpu": (around["gpu"] or {}).get("name"),
        "tensorrt": " ".join(f"{name} {version}" for name, version in around["tensorrt"].items()),
        "tf32": tf32_words(around["tf32"]),
        **{name: around[name] for name in ("date", "python", "platform", "cpus")},
        **{f"version {name}": version for name, version in around["packages"].items()},
    }
    rows = [{**_csv_row(timing), **common, "load_s": document["load_s"]} for timing in document["timings"]]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(timing: Mapping[str, Any]) -> dict[str, Any]:
    row = {
        "shapes": " ".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in timing["shapes"].items()),
        "items": timing["items"],
        "first_call_ms": timing["first_call_ms"],
        "warmup_s": timing["warmup_s"],
        **timing["latency"],
    }
    for kind in ("enqueue", "device"):
        row |= {f"{kind}_{name}": value for name, value in (timing[kind] or {}).items() if name != "calls"}
    row |= {name: timing["throughput"][name] for name in ("inferences_per_s", "items_per_s")}
    if timing["threads"]:
        row |= {f"threads_{name}": value for name, value in timing["threads"]["latency"].items()}
        row |= {f"threads_{name}": value for name, value in timing["threads"]["throughput"].items() if name != "calls"}
    return row | {f"counted_{name}": value for name, value in timing["counters"].items()}


def _machine(found: ArtifactTiming, around: Mapping[str, Any]) -> str:
    packages = around["packages"]
    runtime = next((f"ONNX Runtime {packages[n]}" for n in ("onnxruntime-gpu", "onnxruntime") if n in packages), "")
    engines = f"engines built by {', '.join(around['engines']) or 'nothing: there are none'}"
    if around["gpu"] is None:
        load = "" if around["load"] is None else f", load {around['load']:g}"
        return f"CPU ({around['cpus']} cores{load}), {runtime}, {found.execution}; {engines}"
    tensorrt = ", ".join(f"{name} {version}" for name, version in around["tensorrt"].items())
    return f"{around['gpu']['name']} ({around['gpu']['compute_capability']}), {tensorrt}, {runtime}; {engines}"


def _heading(timing: SampleTiming) -> str:
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in timing.shapes.items())
    return f"{shapes or 'no inputs'} ({timing.items} item{'' if timing.items == 1 else 's'} a call)"


def _start(timing: SampleTiming) -> str:
    built = timing.warmup.get("builds", {}).get("engines", 0)
    builds = f", {built} engine(s) built" if built else ""
    runs = timing.warmup.get("runs", 0)
    return f"first call {1e3 * timing.first_call:.3f} ms; warm-up {timing.warmup_seconds:.3f} s ({runs} run(s){builds})"


def _latencies(timing: SampleTiming, trim: float, width: int) -> list[Table]:
    """The latencies of each kind, in as many tables as the width of the screen asks for: no figure is cut."""
    kinds: list[tuple[str, Latencies | None]] = [
        ("latency", timing.latency),
        ("enqueue", timing.enqueue),
        ("GPU", timing.device),
    ]
    if timing.threaded is not None:
        kinds.append((f"{timing.threaded[1].threads} threads", timing.threaded[0]))
    shown = [(kind, figures) for kind, figures in kinds if figures is not None]
    columns = [(name, [cell(figures) for _, figures in shown]) for name, cell in _columns(trim)]
    first = max(len(kind) for kind, _ in shown)
    return [_table([kind for kind, _ in shown], group) for group in _rows_of(columns, width - first)]


def _columns(trim: float) -> list[tuple[str, Callable[[Latencies], str]]]:
    """The headings, and what makes the cell of each."""
    figures: list[tuple[str, Callable[[Latencies], float]]] = [
        ("mean", lambda found: found.mean),
        ("trimmed", lambda found: found.trimmed_mean(trim)),
        *((f"p{percent}", functools.partial(Latencies.percentile, percent=percent)) for percent in PERCENTILES),
        ("min", lambda found: found.minimum),
        ("max", lambda found: found.maximum),
    ]
    cells = [(name, lambda found, figure=figure: _figure(1e3 * figure(found))) for name, figure in figures]
    return [("calls", lambda found: str(found.calls)), *cells]


def _rows_of(columns: Sequence[_Cells], width: int) -> list[list[_Cells]]:
    """The columns in groups that fit into the width, each with the gap before it; at least one a group."""
    groups: list[list[_Cells]] = [[]]
    left = width
    for name, cells in columns:
        needed = _GAP + max(map(len, (name, *cells)))
        if groups[-1] and needed > left:
            groups.append([])
            left = width
        groups[-1].append((name, cells))
        left -= needed
    return groups


def _table(kinds: Sequence[str], columns: Sequence[_Cells]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("ms", no_wrap=True)
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for number, kind in enumerate(kinds):
        table.add_row(kind, *(cells[number] for _, cells in columns))
    return table


def _figure(milliseconds: float) -> str:
    """Four digits that count, so that the columns stay narrow: 0.0417, 8.835, 1042."""
    digits = 3 - (math.floor(math.log10(milliseconds)) if milliseconds else 0)
    return f"{milliseconds:.{max(0, min(digits, 6))}f}"


def _rates(timing: SampleTiming) -> list[str]:
    rates = [timing.in_a_row] if timing.threaded is None else [timing.in_a_row, timing.threaded[1]]
    lines = []
    for rate in rates:
        who = "throughput" if rate.threads == 1 else f"throughput of {rate.threads} threads"
        items = f", {timing.items * rate.per_second:.1f} items/s" if timing.items > 1 else ""
        lines.append(f"{who}: {rate.per_second:.1f} inferences/s{items}")
    return lines


def _counters(stats: Mapping[str, Any]) -> str:
    told = [f"{name} {stats[name]}" for name in _STATS if stats.get(name) is not None]
    builds = stats.get("builds", {})
    if builds.get("engines") or builds.get("failed"):
        told.append(f"engines built {builds['engines']} in {builds['seconds']:.1f} s, failed {len(builds['failed'])}")
    return ", ".join(told)
