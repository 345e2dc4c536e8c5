"""Does an engine of its own for each GPU pay, and does load() choose the right one of several?

    python benchmarks/fat_artifacts.py FOLDER --make [--python PYTHON] [--other PYTHON]     no GPU needed
    python benchmarks/fat_artifacts.py FOLDER [--rounds 5] [--num_iterations 200] [--json FILE]     on a GPU

`--make` writes a bundle of half a megabyte: artifacts of four models with engines for one target each, and with one
engine for all of them ("together"). PYTHON is the interpreter of an environment with this project and the TensorRT-RTX
that the GPU machine has (on Hopper 1.4.0.76); `--other` one with another version, whose engine no load may take. On the
GPU an engine for this very GPU is built, too ("own"). Needs numpy, onnx, onnxruntime-gpu and TensorRT-RTX there.

The first table is the choice: artifacts with several engines, damaged ones and such of another version, are loaded and
called with batches of 1, 4 and 16. The second one is the price: loads and calls of each engine. Each round of a model
is a process of its own in which the engines take turns; in the next round another one is first. The figures are medians
of the rounds; GPU ms is the GPU's own time of a call, inputs and outputs in its memory. The exit status is 1 when a
case does not end as it should, or a timed call did not run its engine.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import add_project_to_path, format_table
from _fat_artifacts_models import (
    MODELS,
    NARROW,
    NARROW_BATCHES,
    NARROW_TARGET,
    OTHER,
    OWN,
    SMALLEST,
    TOGETHER,
    make,
    unpacked,
)
from _fat_artifacts_work import TIMED_BATCHES, WORK, as_wanted, assemble, cases, gpu_target, wanted
from _options import add_metrics_options, export_metrics, parse
from _plots import Bars, Chart

add_project_to_path()

#: Variants that are timed.
TIMED = ("SM80", "SM86", "SM89", TOGETHER, OWN)
#: Where the figures of a row are a median of the rounds.
FIGURES = (
    "load_cold_s",
    "load_warm_s",
    *(f"batch{b}_{kind}" for b in TIMED_BATCHES for kind in ("first_ms", "gpu_ms")),
)
GPU_MS = tuple(f"batch{batch}_gpu_ms" for batch in TIMED_BATCHES)
TIMEOUT = 300


def main(words: Sequence[str] | None = None) -> int:
    options = _parse(words)
    if options.worker:
        print(json.dumps(WORK[options.worker](**json.loads(options.work)), default=str))
        return 0
    if options.make:
        archive = make(options.folder, options.python, options.other)
        print(f"{archive}: {archive.stat().st_size / 1e6:.2f} MB")
        return 0
    from rewriter.runtime.device import missing_gpu

    if why := missing_gpu():
        print(f"error: this needs a GPU: {why}", file=sys.stderr)
        return 2
    import tensorrt_rtx

    about = {"gpu_target": gpu_target(), "tensorrt": tensorrt_rtx.__version__}
    with unpacked(options.folder) as place:
        for model in MODELS:
            _child("own", {"folder": str(place), "model": model})
        about["cases"] = look(place, about["gpu_target"])
        rows = measure(place, options)
    document = {**about, "rows": rows}
    print(render(document))
    export_metrics(options, rows, **about)
    return 0 if all(as_wanted(row) for row in document["cases"]) and not idle(document) else 1


def look(place: Path, gpu: str) -> list[dict[str, Any]]:
    """What became of each case."""
    found = []
    for number, case in enumerate(cases(gpu, [path.name for path in (place / SMALLEST).iterdir()])):
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        path = assemble(case, place, place / "cases" / str(number))
        used, native = wanted(case, gpu)
        told = _child("check", {"path": str(path), "options": dict(case.options)})
        row = {"case": case.name, "engines": list(case.parts), "damaged": list(case.damaged), "wanted": list(used)}
        row |= {"wanted_native": native, "refusable": case.refusable, "tolerance": MODELS[SMALLEST].tolerance}
        found.append({**row, **told})
    return found


def measure(place: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a model, variant and round."""
    rows = []
    for turn in range(options.rounds):
        for model in MODELS:
            print(f"{model}, round {turn + 1} of {options.rounds} ...", file=sys.stderr, flush=True)
            shift = turn % len(TIMED)
            paths = {variant: str(place / model / variant) for variant in (*TIMED[shift:], *TIMED[:shift])}
            told = _child("timed", {"model": model, "paths": paths, "calls": options.num_iterations})
            rows += [{"round": turn, **row} for row in told]
    return rows


def render(document: Mapping[str, Any]) -> str:
    """Both tables, and whether everything ended as it should."""
    wrong = [f"FAILED: {row['case']}: wanted {_wanted(row)}" for row in document["cases"] if not as_wanted(row)]
    wrong += [f"FAILED: {text}" for text in idle(document)]
    return "\n\n".join(
        [
            f"GPU: {document['gpu_target']}; TensorRT-RTX {document['tensorrt']}.",
            "### The choice",
            format_table([_case_line(row, document["gpu_target"]) for row in document["cases"]]),
            "### The price",
            format_table([_line(model, variant, rows) for (model, variant), rows in _grouped(document).items()]),
            "\n\n".join(wrong) or "PASS: every case ended as wanted, and every timed call ran its engine.",
        ]
    )


def idle(document: Mapping[str, Any]) -> list[str]:
    """Timed variants that did not run their engine, in words."""
    found = dict.fromkeys((row["model"], row["variant"]) for row in document["rows"] if row["native_calls"])
    return [f"{model}, {variant}: calls ran natively" for model, variant in found]


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """How many cases are right; by how much engines differ in speed, and one engine from round to round, in percent."""
    variants, rounds = spread(document)
    together = against_together(document)
    return {
        "gpu": document["gpu_target"],
        "cases": str(len(document["cases"])),
        "right": str(sum(as_wanted(row) for row in document["cases"])),
        "variants": f"{statistics.median(variants):.0f}",
        "variants_most": f"{max(variants):.0f}",
        "rounds": f"{statistics.median(rounds):.0f}",
        "rounds_most": f"{max(rounds):.0f}",
        "together": f"{abs(together):.1f} % {'more' if together > 0 else 'less'}",
        "fastest": fastest(document),
        "comparisons": str(len(variants)),
        "runs": str(len({row["round"] for row in document["rows"]})),
    }


def spread(document: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """In percent: what the slowest takes longer than the fastest, of variants, and of rounds of one variant.

    The first list has a figure for each model and batch (of the medians of the rounds), the second one for each
    variant of these.
    """
    variants: list[float] = []
    rounds: list[float] = []
    grouped = _grouped(document)
    for figure in GPU_MS:
        for model in _models(document):
            medians = []
            for (other, _), rows in grouped.items():
                if other == model:
                    values = [row[figure] for row in rows]
                    medians.append(statistics.median(values))
                    rounds.append(100 * (max(values) / min(values) - 1))
            variants.append(100 * (max(medians) / min(medians) - 1))
    return variants, rounds


def against_together(document: Mapping[str, Any]) -> float:
    """By how many percent engines for one target take longer (negative: less long) than those for all: the median."""
    grouped = _grouped(document)
    found = [
        100 * (_median(rows, figure) / _median(grouped[model, TOGETHER], figure) - 1)
        for (model, variant), rows in grouped.items()
        if variant != TOGETHER
        for figure in GPU_MS
    ]
    return statistics.median(found)


def fastest(document: Mapping[str, Any]) -> str:
    """How often each variant is the fastest of its model and batch: "own 3, SM80 2"."""
    grouped = _grouped(document)
    winners = []
    for figure in GPU_MS:
        for model in _models(document):
            medians = {variant: _median(rows, figure) for (other, variant), rows in grouped.items() if other == model}
            winners.append(min(medians, key=lambda variant: medians[variant]))
    return ", ".join(f"{variant} {count}" for variant, count in collections.Counter(winners).most_common())


def plots(document: Mapping[str, Any]) -> dict[str, Chart]:
    """The GPU's time of a call of the largest batch with each engine."""
    grouped = _grouped(document)
    series = {
        variant: [_median(grouped[model, variant], GPU_MS[-1]) for model in _models(document)]
        for variant in dict.fromkeys(variant for _, variant in grouped)
    }
    title = f"One call of batch {TIMED_BATCHES[-1]}, by what its engine was built for"
    return {"gpu": Bars(title, "milliseconds of the GPU", _models(document), series, places=2)}


def _models(document: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in document["rows"]))


def _grouped(document: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """(model, variant) -> its rounds, in the order of `TIMED`."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for model in _models(document):
        for variant in TIMED:
            rows = [row for row in document["rows"] if (row["model"], row["variant"]) == (model, variant)]
            if rows:
                found[model, variant] = rows
    return found


def _median(rows: Sequence[Mapping[str, Any]], figure: str) -> float:
    return statistics.median(row[figure] for row in rows)


def _line(model: str, variant: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    value = {figure: _median(rows, figure) for figure in FIGURES}
    sizes = [row["MB"] for row in rows if row["MB"] is not None]
    line = {"model": model, "precision": rows[0]["precision"], "engine for": variant}
    line |= {"MB": round(sizes[0], 1) if sizes else None}
    line |= {"load cold s": f"{value['load_cold_s']:.2f}", "load warm s": f"{value['load_warm_s']:.3f}"}
    for batch in TIMED_BATCHES:
        times = [row[f"batch{batch}_gpu_ms"] for row in rows]
        line[f"batch {batch}: first call ms"] = f"{value[f'batch{batch}_first_ms']:.1f}"
        line[f"batch {batch}: GPU ms"] = f"{value[f'batch{batch}_gpu_ms']:.3f}"
        line[f"batch {batch}: its rounds"] = f"{min(times):.3f} .. {max(times):.3f}"
    return line


def _case_line(row: Mapping[str, Any], gpu: str) -> dict[str, Any]:
    told = {OWN: gpu, OTHER: "another version", NARROW: f"{NARROW_TARGET} (to batch {max(NARROW_BATCHES)})"}
    engines = [told.get(name, name) + " (damaged)" * (name in row["damaged"]) for name in row["engines"]]
    return {
        "artifact": row["case"],
        "its engines": ", ".join(engines),
        "runs": ", then ".join(row["used"]) or "natively",
        "native calls": f"{row['native_calls']} of {row['calls']}",
        "max rel diff": f"{row['difference']:.1e}",
        "as wanted": "yes" if as_wanted(row) else f"no: {_wanted(row)}",
    }


def _wanted(row: Mapping[str, Any]) -> str:
    engines = ", then ".join(row["wanted"]) or "no engine"
    return f"{engines}, {row['wanted_native']} native calls, at most {row['tolerance']:.0e} of difference"


def _child(work: str, arguments: Mapping[str, Any]) -> Any:
    """The answer of one piece of work, done in a process of its own.

    Raises:
        RuntimeError: it failed; the last line of what it said.
    """
    command = [sys.executable, __file__, ".", "--worker", work, "--work", json.dumps(arguments)]
    done = subprocess.run(command, timeout=TIMEOUT, check=False, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"{work} with {json.dumps(arguments)}: exit status {done.returncode}: {said}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, help="of the bundle")
    add("--make", action="store_true", help="make the bundle; no GPU is needed")
    add("--python", default=sys.executable, metavar="PYTHON", help="builds the engines (default: this interpreter)")
    add("--other", default="", metavar="PYTHON", help="one with another TensorRT-RTX (default: none)")
    add("--rounds", type=int, default=5, metavar="N", help="processes of each model (default 5)")
    add("--num_iterations", type=int, default=200, metavar="N", help="timed calls of each kind (default 200)")
    add_metrics_options(parser)
    add("--worker", help=argparse.SUPPRESS)
    add("--work", help=argparse.SUPPRESS)
    options = parse(parser, words)
    for name in ("rounds", "num_iterations"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
