"""How much faster are several engines built side by side than one after another, and are they the same?

    python benchmarks/parallel_builds.py [--only blocks weights targets] [--jobs 1 2 4] [--runs 3] [--json FILE]

Three pieces of work, each `--segments` engines large:

    blocks    Converter.build(jobs=...) of a model of segments, each `--blocks` residual blocks: many layers, few bytes
    weights   the same with segments of one matrix of `--mebibytes`: few layers, many bytes
    targets   rewriter.extending.build_engines(jobs=...): segments of residual blocks for `TARGETS`, an engine for each

Every measurement is a process of its own with no engine cache; the numbers of jobs take turns, forwards and backwards.
"seconds" are those of the builds, the start of the child processes included, and the rest of the conversion not;
"times as fast" is the median of the runs, each compared with one build at a time in the same run, so that what else the
machine does meanwhile matters less.
"child MiB" is the most resident memory that one child had, TensorRT's libraries included. The exit status is 1 when
engines differ with the number of jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import format_table
from _options import add_metrics_options, export_metrics, parse
from _plots import Bars, Chart

#: What is measured, and how the tables call it.
KINDS = {
    "blocks": "segments of residual blocks",
    "weights": "segments of large weights",
    "targets": "engines of several targets",
}
#: GPUs that `targets` builds for.
TARGETS = ("SM80", "SM86", "SM89", "SM120")
TIMEOUT = 1800


def main(words: Sequence[str] | None = None) -> int:
    options = _parse(words)
    if options.worker:
        from _parallel_builds_work import WORK

        print(json.dumps(WORK[options.worker](**json.loads(options.work))))
        return 0
    with tempfile.TemporaryDirectory(prefix="parallel-builds-") as folder:
        rows = measure(options, Path(folder))
        document = {"child": _child("probe", {}), "rows": rows}
    print(render(document))
    export_metrics(options, rows, child=document["child"])
    return 0 if not different(document) else 1


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row a measurement, in the order in which they were made."""
    base = ""
    if "targets" in options.only:
        segments = max(1, options.segments // len(TARGETS))
        made = {"segments": segments, "size": options.blocks, "folder": str(folder / "base")}
        base = _child("prepare", made)["artifact"]
    rows = []
    for turn in range(options.runs):
        for kind in options.only:
            for jobs in options.jobs[:: -1 if turn % 2 else 1]:
                print(f"{kind}, jobs {jobs}, run {turn + 1} of {options.runs} ...", file=sys.stderr, flush=True)
                rows.append({"kind": kind, "jobs": jobs, "run": turn, **_measured(kind, jobs, options, base)})
    return rows


def _measured(kind: str, jobs: int, options: argparse.Namespace, base: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="parallel-builds-") as scratch:
        if kind == "targets":
            return _child("extend", {"artifact": base, "targets": TARGETS, "jobs": jobs, "folder": scratch})
        size = options.blocks if kind == "blocks" else options.mebibytes
        return _child(
            "convert", {"kind": kind, "segments": options.segments, "size": size, "jobs": jobs, "folder": scratch}
        )


def render(document: Mapping[str, Any]) -> str:
    """One line for each work and number of jobs, the child at rest, and whether the engines are the same."""
    child = document["child"]
    idle = f", {child['idle_mib']:.0f} MiB" if child["idle_mib"] is not None else ""
    wrong = different(document)
    verdict = "PASS: the engines are the same byte for byte, whatever the number of jobs."
    return "\n\n".join(
        [
            format_table(lines(document)),
            f"A child that has loaded TensorRT-RTX {child['version']} and built nothing: there after "
            f"{child['start_s']:.2f} s{idle}.",
            "\n\n".join(f"FAILED: {text}" for text in wrong) if wrong else verdict,
        ]
    )


def lines(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table."""
    found = []
    for kind, by_jobs in _grouped(document).items():
        least = min(by_jobs)
        for jobs, rows in sorted(by_jobs.items()):
            seconds = [row["seconds"] for row in rows]
            peaks = [row["child_mib"] for row in rows if row["child_mib"] is not None]
            children = [row["children"] for row in rows if row["children"] is not None]
            found.append(
                {
                    "work": KINDS[kind],
                    "engines": rows[0]["engines"],
                    "MB": round(rows[0]["MB"]),
                    "jobs": jobs,
                    "seconds, median": round(_median(rows), 2),
                    "lowest .. highest": f"{min(seconds):.2f} .. {max(seconds):.2f}",
                    f"times as fast as jobs {least}": round(_gain(by_jobs[least], rows), 2),
                    "children": max(children, default=None),
                    "child MiB": round(max(peaks)) if peaks else None,
                }
            )
    return found


def different(document: Mapping[str, Any]) -> list[str]:
    """Work whose engines depend on the number of jobs or change from run to run, in words."""
    found = []
    for kind, by_jobs in _grouped(document).items():
        hashes = {row["sha256"]: jobs for jobs, rows in sorted(by_jobs.items(), reverse=True) for row in rows}
        if len(hashes) > 1:
            told = ", ".join(f"{jobs}" for jobs in sorted(by_jobs))
            found.append(f"{KINDS[kind]}: {len(hashes)} different sets of engines with jobs {told}")
    return found


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """The best speed-up of each work, the most jobs, the memory of children, and whether engines are the same."""
    told = {"cores": str(document["environment"]["cpus"]), "start": f"{document['child']['start_s']:.2f}"}
    told["equal"] = "engines depend on jobs" if different(document) else "engines the same byte for byte"
    if document["child"]["idle_mib"] is not None:
        told["idle"] = f"{document['child']['idle_mib']:.0f}"
    best = []
    for kind, by_jobs in _grouped(document).items():
        best.append(max(_gain(by_jobs[min(by_jobs)], rows) for rows in by_jobs.values()))
        told[kind] = f"{best[-1]:.2f}"
        told["jobs"] = str(max(by_jobs))
    told |= {"least": f"{min(best):.1f}", "most": f"{max(best):.1f}"}
    return told


def plots(document: Mapping[str, Any]) -> dict[str, Chart]:
    """Seconds of each work, a bar for each number of jobs."""
    grouped = _grouped(document)
    every = sorted({jobs for by_jobs in grouped.values() for jobs in by_jobs})
    series = {
        f"jobs={jobs}": [_median(by_jobs[jobs]) if jobs in by_jobs else None for by_jobs in grouped.values()]
        for jobs in every
    }
    title = "Engines built side by side: seconds, median"
    return {"seconds": Bars(title, "seconds", [KINDS[kind] for kind in grouped], series, places=1)}


def _grouped(document: Mapping[str, Any]) -> dict[str, dict[int, list[Mapping[str, Any]]]]:
    """Kind -> jobs -> its rows."""
    found: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for row in document["rows"]:
        found.setdefault(row["kind"], {}).setdefault(row["jobs"], []).append(row)
    return found


def _median(rows: Sequence[Mapping[str, Any]]) -> float:
    return statistics.median(row["seconds"] for row in rows)


def _gain(alone: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> float:
    """How many times as fast, the median of the runs."""
    seconds = {row["run"]: row["seconds"] for row in alone}
    return statistics.median(seconds[row["run"]] / row["seconds"] for row in rows)


def _child(work: str, arguments: Mapping[str, Any]) -> Any:
    """The answer of one piece of work, done in a process of its own.

    Raises:
        RuntimeError: it failed; the last line of what it said.
    """
    command = [sys.executable, __file__, "--worker", work, "--work", json.dumps(arguments)]
    quiet = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, timeout=TIMEOUT, check=False, env=quiet, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"{work} with {json.dumps(arguments)}: {said}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def powers(most: int) -> list[int]:
    """1, 2, 4 and so on, and the number itself."""
    found = [1]
    while 2 * found[-1] <= most:
        found.append(2 * found[-1])
    return found if found[-1] == most else [*found, most]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=list(KINDS), default=list(KINDS), help="default all")
    add(
        "--jobs", nargs="+", type=int, default=powers(_cores()), metavar="N", help="default 1, 2, 4 ... up to the cores"
    )
    add("--runs", type=int, default=3, metavar="N", help="measurements of each (default 3)")
    add("--segments", type=int, default=16, metavar="N", help="engines of each work (default 16)")
    add("--blocks", type=int, default=24, metavar="N", help="residual blocks of a segment (default 24)")
    add("--mebibytes", type=int, default=64, metavar="N", help="weights of a segment of `weights` (default 64)")
    add_metrics_options(parser)
    add("--worker", help=argparse.SUPPRESS)
    add("--work", help=argparse.SUPPRESS)
    options = parse(parser, words)
    for name in ("runs", "segments", "blocks", "mebibytes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if min(options.jobs) < 1 or len(set(options.jobs)) < len(options.jobs):
        parser.error("--jobs must be different numbers of at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
