"""What the node tests of the onnx package say about the whole pipeline.

Every case (about 1 900, with data) is converted with `minimum_segment_size=1`: passes, oracle, partition, extraction,
check, build, splice, save, load. The spliced model is run in plain ONNX Runtime and must give what the original gives
there. Not one case may be wrong, crash or hang; the exit status is 1 otherwise. Prints what became of the cases, why
nodes were denied, and, on request, everything as JSON.

    python benchmarks/onnx_node_tests.py [--filter REGEX] [--limit N --seed S] [--no-build] [--jobs 2] [--json PATH]
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from _common import add_project_to_path, format_table
from _node_case import BAD, CaseResult, brief, from_brief, load_cases, run_case
from _options import add_metrics_options, export_metrics, parse
from _plots import Bars, Chart

#: Order and meaning of the outcomes in the table.
OUTCOMES = {
    "built": "every node is in an engine",
    "accepted": "segments accepted, building not asked for",
    "partly built": "some nodes in engines, the others native with a reason",
    "build failed": "the parser takes it, the builder does not; native",
    "denied": "native, with a reason for every node",
    "no nodes": "folded into constants or nothing but no-ops",
    "refused": "a clear error although ONNX Runtime runs the original",
    "not runnable": "ONNX Runtime does not run the original; answered without a crash",
    "wrong": "other values than the original",
    "error": "an exception that is not the program's own",
    "crash": "the process died",
    "hang": "no answer in time",
}
#: Lines and characters of the table of reasons.
REASONS, REASON_WIDTH = 30, 120
#: Seconds for one case.
TIMEOUT = 180.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    started = time.perf_counter()
    names = [case.name for case in load_cases(options.filter)]
    if options.limit and options.limit < len(names):
        names = sorted(random.Random(options.seed).sample(names, options.limit))  # noqa: S311 - a sample, no secret
    results = []
    for result in run_all(names, jobs=options.jobs, build=not options.no_build, timeout=options.timeout):
        results.append(result)
        if len(results) % 100 == 0 or result.outcome in BAD:
            note = f"{result.name}: {result.outcome}: {result.detail}" if result.outcome in BAD else ""
            print(f"{len(results)}/{len(names)} {note}", file=sys.stderr, flush=True)
    results.sort(key=lambda r: r.name)
    figures = {"seconds": time.perf_counter() - started, "cases": brief(results)}
    print(render(figures))
    export_metrics(options, outcomes(results), **figures)
    return 1 if any(r.outcome in BAD or r.without_reason for r in results) else 0


def run_all(
    names: Sequence[str],
    *,
    jobs: int,
    build: bool,
    timeout: float,
    serve: Callable[[Connection, bool], None] | None = None,
) -> Iterator[CaseResult]:
    """Runs the cases in `jobs` processes; one that dies or hangs costs its case and is replaced.

    Args:
        names: the cases.
        jobs: processes.
        build: False stops at the accepted segments.
        timeout: seconds for one case.
        serve: what a process does; default: converts the cases whose names come in.
    """
    queue = list(reversed(names))
    workers = [_Worker(build, serve or _serve) for _ in range(min(jobs, len(names)))]
    try:
        while True:
            for worker in workers:
                if worker.case is None and queue:
                    worker.start(queue.pop())
            busy = [w for w in workers if w.case is not None]
            if not busy:
                return
            wait([w.connection for w in busy], timeout=1.0)
            for worker in busy:
                result = worker.poll(timeout)
                if result is not None:
                    yield result
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that runs cases one by one with a backend of its own; started when there is a case, and again."""

    def __init__(self, build: bool, serve: Callable[[Connection, bool], None]) -> None:
        self._build = build
        self._serve = serve
        self._process: Any = None
        self._started = 0.0
        self.connection: Any = None
        self.case: str | None = None

    def start(self, name: str) -> None:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self._process = context.Process(target=self._serve, args=(theirs, self._build))
            self._process.start()
            theirs.close()
        self.case, self._started = name, time.monotonic()
        self.connection.send(name)

    def poll(self, timeout: float) -> CaseResult | None:
        """The result of the case in work, None when there is none yet."""
        assert self.case is not None
        seconds = time.monotonic() - self._started
        if self.connection.poll():
            try:
                result: CaseResult = self.connection.recv()
            except (EOFError, ConnectionResetError):
                self._process.join()
                result = CaseResult(self.case, "crash", f"the process ended with status {self._process.exitcode}")
                self.stop()
        elif seconds > timeout:
            result = CaseResult(self.case, "hang", f"no answer after {timeout:.0f} s", seconds=seconds)
            self.stop()
        else:
            return None
        self.case = None
        return result

    def stop(self) -> None:
        """Asks an idle process to end, so that it closes its backend; kills a busy one."""
        if self._process is None:
            return
        self.connection.close()
        self._process.join(10 if self.case is None else 0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process = None


def _serve(connection: Connection, build: bool) -> None:
    """The worker's loop: a case name in, a `CaseResult` out, until the other side closes."""
    add_project_to_path()
    import logging

    from rewriter.backends import open_backend

    logging.getLogger("rewriter").setLevel(logging.ERROR)  # every failed build is in the results
    cases = {case.name: case for case in load_cases()}
    backend = open_backend("auto", ())
    try:
        while True:
            try:
                name = connection.recv()
            except (EOFError, ConnectionResetError):
                return
            started = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="node-test-") as folder:
                result = run_case(cases[name], backend, Path(folder), build=build)
            connection.send(dataclasses.replace(result, seconds=time.perf_counter() - started))
    finally:
        backend.close()


def outcomes(results: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """How many cases there are of each outcome; those that must not be are always told."""
    found = Counter(r.outcome for r in results)
    return [
        {"outcome": name, "cases": found[name], "meaning": meaning}
        for name, meaning in OUTCOMES.items()
        if found[name] or name in BAD
    ]


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """How many cases there are, how many of them must not be, and how many were compared."""
    results = from_brief(document["cases"])
    compared = [r for r in results if r.outcome not in ("not runnable", "refused", *BAD) and not r.random]
    return {
        "cases": str(len(results)),
        "bad": str(sum(r.outcome in BAD or bool(r.without_reason) for r in results)),
        "compared": str(len(compared)),
        "equal": str(sum(r.exact for r in compared)),
        "built": str(sum(r.outcome in ("built", "partly built") for r in results)),
    }


def plots(document: Mapping[str, Any]) -> dict[str, Chart]:
    """Cases by outcome."""
    rows = [row for row in outcomes(from_brief(document["cases"])) if row["cases"]]
    title = f"{len(document['cases'])} node tests of the onnx package through the whole pipeline"
    values = {"cases": [float(row["cases"]) for row in rows]}
    return {"outcomes": Bars(title, "cases", [row["outcome"] for row in rows], values, places=0)}


def render(document: Mapping[str, Any]) -> str:
    """The tables: outcomes, then reasons of native nodes, then what else is worth knowing."""
    results = from_brief(document["cases"])
    seconds = document.get("seconds")
    total = "" if seconds is None else f"{seconds:.0f} s"
    rows = [*outcomes(results), {"outcome": "all", "cases": len(results), "meaning": total}]
    parts = [format_table(rows), _agreement(results), "Native nodes by reason:", format_table(_reasons(results))]
    for outcome in ("refused", "not runnable"):
        chosen = Counter((_error_kind(r.detail)) for r in results if r.outcome == outcome)
        if chosen:
            table = [{"cases": count, "reason": reason} for reason, count in chosen.most_common(15)]
            parts += [f"{outcome.capitalize()} by reason (at most 15):", format_table(table)]
    bad = [r for r in results if r.outcome in BAD or r.without_reason]
    if bad:
        table = [{"case": r.name, "outcome": r.outcome, "detail": r.detail or str(r.without_reason)} for r in bad]
        parts += ["What must not happen:", format_table(table)]
    return "\n\n".join(parts)


def _agreement(results: Sequence[CaseResult]) -> str:
    """One line on how closely the outputs agree."""
    judged = [r for r in results if r.outcome not in ("not runnable", "refused", *BAD)]
    compared = [r for r in judged if not r.random]
    rounded = [r for r in compared if not r.exact]
    worst = max((r.difference for r in rounded), default=0.0)
    nodes, inside = sum(r.nodes for r in judged), sum(r.engine_nodes for r in judged)
    return (
        f"{len(compared)} cases compared with the original in ONNX Runtime: {len(compared) - len(rounded)} bit-equal, "
        f"{len(rounded)} within rounding (largest relative difference {worst:.1e}); {len(judged) - len(compared)} draw "
        f"random numbers, so dtypes and shapes were compared; in {sum(r.as_expected is False for r in compared)} cases "
        f"ONNX Runtime itself does not give what the test expects. {inside} of {nodes} nodes are in engines."
    )


def _reasons(results: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """Lines of the table of native nodes, most cases first."""
    cases: Counter[tuple[str, str]] = Counter()
    nodes: Counter[tuple[str, str]] = Counter()
    ops: dict[tuple[str, str], Counter[str]] = {}
    for result in results:
        for key in {(rule, reason) for rule, reason, _, _ in result.denials}:
            cases[key] += 1
        for rule, reason, op, count in result.denials:
            nodes[rule, reason] += count
            ops.setdefault((rule, reason), Counter())[op] += count
    ordered = sorted(cases.items(), key=lambda item: (-item[1], item[0]))
    lines = [
        {
            "rule": rule,
            "reason": reason if len(reason) <= REASON_WIDTH else reason[: REASON_WIDTH - 3] + "...",
            "cases": count,
            "nodes": nodes[rule, reason],
            "ops": _few(ops[rule, reason]),
        }
        for (rule, reason), count in ordered[:REASONS]
    ]
    rest = [key for key, _ in ordered[REASONS:]]
    if rest:
        total = sum(cases[key] for key in rest)
        least = sum((ops[key] for key in rest), Counter())
        label = f"{len(rest)} other reasons (all are in the JSON)"
        lines.append({"rule": "", "reason": label, "cases": total, "nodes": least.total(), "ops": _few(least)})
    return lines


def _few(ops: Counter[str]) -> str:
    names = [op for op, _ in ops.most_common(4)]
    return ", ".join(names) + (f" and {len(ops) - 4} more" if len(ops) > 4 else "")


def _error_kind(detail: str) -> str:
    """An error text without the names and numbers of its case."""
    from _node_case import generalise

    return generalise(detail)[:120]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", metavar="REGEX", help="cases whose name matches")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="a random sample of N cases")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--no-build", action="store_true", help="stop at the accepted segments")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for one case (default %(default)s)")
    add_metrics_options(parser)
    options = parse(parser, arguments)
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
