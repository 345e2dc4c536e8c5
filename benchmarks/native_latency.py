"""How fast is a converted model without a GPU, beside TensorFlow and beside its ONNX file in plain ONNX Runtime?

    python benchmarks/native_latency.py [--only NAME ...] [--batch_size 1 8] [--rounds 12] [--json FILE]

Five systems run the same model on the same inputs, numpy arrays in and out:

    TensorFlow    the SavedModel's signature
    ONNX          our export of it, before any pass, in an ONNX Runtime session with default options
    ONNX again    a second such session: how far it is from the first says how sure the ratios are
    spliced       the artifact's model.onnx in such a session: what other ONNX runtimes run
    ours          rewriter.load(artifact, execution="native")

With one thread each (the default) the processor time of the process is taken, which other programs hardly lengthen;
`--threads 0` leaves every system its own default of threads and takes the wall clock: for a machine that is quiet.

Each model has a process of its own, and in it the systems take turns (see `rewriter.timing.interleaved`). A ratio is
the median over the rounds of the rounds' medians, divided; in brackets its 10th and 90th percentile. "+us" is what
ours takes more for a call than the ONNX file's session: inputs are checked against the signature, calls are counted.
The exit status is 1 when a result differs from TensorFlow's; or ours takes more than `--limit` times as long as the
ONNX file, by more than `--overhead` microseconds, and the second session of that file shows that this can be told.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import add_project_to_path, format_table, relative_difference, write_json
from _options import (
    add_conversion_options,
    add_metrics_options,
    add_timing_options,
    converter_arguments,
    export_metrics,
    parse,
)
from _plots import Bars, Chart
from zoo import MODELS as ZOO

add_project_to_path()

#: Convolutions, depthwise convolutions, a transformer, a recurrent loop, resizing, NMS, control flow, integer inputs.
MODELS = (
    "ResNet50", "MobileNetV3Small", "bert_like", "lstm", "unet_dynamic", "detector_nms", "while_loop",
    "uint8_preprocessing",
)  # fmt: skip
TENSORFLOW, PLAIN, AGAIN, SPLICED, OURS = SYSTEMS = ("TensorFlow", "ONNX", "ONNX again", "spliced", "ours")
#: Largest max|difference| / max|reference| from TensorFlow's result.
TOLERANCE = 1e-4
#: Milliseconds from which on a call is long: what ours adds to it is lost in it.
LONG = 1.0
#: What the times are, in words.
PROCESSOR, WALL = "processor time, one thread", "wall clock"
#: Turns that each system has however long they take: fewer say nothing of the spread.
LEAST_ROUNDS = 5
#: Seconds for one model.
TIMEOUT = 600


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parse(words)
    if arguments.worker:
        write_json(Path(arguments.work), {"rows": examine(arguments.worker, arguments)})
        return 0
    rows: list[dict[str, Any]] = []
    for name in arguments.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += _in_child(name, words)
    print(render({"rows": rows}))
    export_metrics(arguments, rows)
    return 0 if all(row["status"] == "ok" for row in rows) else 1


def render(document: Mapping[str, Any]) -> str:
    """The table of latencies and ratios, the means over the models, and what failed."""
    measured = [row for row in document["rows"] if "ours_ms" in row]
    lines = [format_table([_shown(row) for row in measured])] if measured else []
    if measured:
        told = facts(document)
        lines.append(
            f"Milliseconds of {measured[0]['clock']}. Geometric means over all rows: TensorFlow takes "
            f"{told['tensorflow']} times as long as ours. {_beside_onnx(told)}"
        )
    lines += [f"FAILED {row['model']}: {row['status']}" for row in document["rows"] if row["status"] != "ok"]
    return "\n\n".join(lines)


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """Geometric means: TensorFlow over ours; of long calls ours ("plain") and "again" over the unspliced file.

    Without a long call there is no "plain" and "again", without a short one no "overhead"; "beside" says in words what
    there is.
    """
    rows = [row for row in document["rows"] if "ours_ms" in row]
    if not rows:
        return {}
    long = [row for row in rows if row["onnx_ms"] >= LONG]
    short = [row for row in rows if row["onnx_ms"] < LONG]
    found = {"tensorflow": f"{_mean(row['tensorflow_over_ours']['middle'] for row in rows):.2f}"}
    if long:
        found["plain"] = f"{_mean(row['ours_over_onnx']['middle'] for row in long):.3f}"
        found["again"] = f"{_mean(row['again_over_onnx']['middle'] for row in long):.3f}"
    if short:
        found["overhead"] = f"{statistics.median(row['overhead_us'] for row in short):.0f}"
    return {**found, "models": str(len({row["model"] for row in rows})), "beside": _beside(found)}


def _beside(found: Mapping[str, str]) -> str:
    """Ours beside the unspliced file, for the line of the summary: of the long calls, of the short ones, or of both."""
    told = []
    if "plain" in found:
        told.append(f"takes {found['plain']} times as long (that file against itself: {found['again']})")
    if "overhead" in found:
        told.append(f"adds {found['overhead']} us to short calls")
    return " and ".join(told)


def _beside_onnx(found: Mapping[str, str]) -> str:
    """The same as sentences under the table."""
    told = []
    if "plain" in found:
        told.append(
            f"Where a call takes at least {LONG:g} ms, ours takes {found['plain']} times as long as the unspliced ONNX "
            f"file, and the second session of that file {found['again']} times."
        )
    if "overhead" in found:
        told.append(f"To a call of less than {LONG:g} ms ours adds {found['overhead']} us.")
    return " ".join(told)


def plots(document: Mapping[str, Any]) -> dict[str, Chart]:
    """Each system's latency over TensorFlow's."""
    rows = [row for row in document["rows"] if "ours_ms" in row]
    series = {
        label: [row[f"{_key(system)}_ms"] / row["tensorflow_ms"] for row in rows]
        for system, label in ((PLAIN, "unspliced ONNX in ONNX Runtime"), (OURS, "ours, native"))
    }
    groups = [f"{row['model']}, batch {row['batch']}" for row in rows]
    told = rows[0]["clock"] if rows else ""
    title = f"Latency on the CPU over TensorFlow's ({told}; left of the line is quicker)"
    return {"latency": Bars(title, "TensorFlow = 1", groups, series, line=1.0, places=2)} if rows else {}


def examine(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Converts one model and times it at each batch size; in a process of its own."""
    from _zoo_artifacts import of_batch, prepare

    limit_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="native-latency-") as folder:
        forms = prepare(
            name,
            Path(folder),
            engines=False,
            summary=arguments.detailed_conversion_summary,
            **converter_arguments(arguments),
        )
        about = {"model": name, "nodes": forms.nodes, "engine nodes": forms.engines}
        rows = []
        for batch in arguments.batch_size:
            sample = of_batch(forms.zoo.samples[0], batch)
            systems = open_systems(forms, sample, arguments.threads)
            rows.append({**about, "batch": batch, **time_systems(systems, arguments)})
        return rows


def limit_threads(threads: int) -> None:
    """Sets the threads of TensorFlow, and of the sessions that `rewriter.load` makes; before either has begun.

    Args:
        threads: of each; 0 leaves both their defaults.
    """
    if not threads:
        return
    import tensorflow as tf

    from rewriter.runtime import executor

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    # `load` has no option for it: a server gives ONNX Runtime all cores.
    executor.open_native = functools.partial(executor.open_native, threads=threads)


def open_systems(forms: Any, sample: Mapping[str, Any], threads: int) -> dict[str, Callable[[], Mapping[str, Any]]]:
    """Name -> one call of the system on the sample."""
    from _zoo_artifacts import tensorflow_call

    import rewriter
    from rewriter.artifact import load_artifact

    signature = load_artifact(forms.artifact).signature
    names = {spec.tensor: spec.name for spec in signature.outputs}
    feeds = {spec.tensor: sample[spec.name] for spec in signature.inputs}
    ours = rewriter.load(forms.artifact, execution="native")
    return {
        TENSORFLOW: tensorflow_call(forms.saved_model, sample),
        PLAIN: _session_call(forms.onnx, feeds, names, threads),
        AGAIN: _session_call(forms.onnx, feeds, names, threads),
        SPLICED: _session_call(forms.artifact / "model.onnx", feeds, names, threads),
        OURS: lambda: ours.run(sample),
    }


def _session_call(
    path: Path, feeds: Mapping[str, Any], names: Mapping[str, str], threads: int
) -> Callable[[], Mapping[str, Any]]:
    """A call of an ONNX Runtime session with default options but the threads; outputs by public name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tensors = list(names)
    return lambda: dict(zip(names.values(), session.run(tensors, feeds), strict=True))


def time_systems(
    systems: Mapping[str, Callable[[], Mapping[str, Any]]], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Results compared with TensorFlow's, then medians, trimmed means and ratios."""
    from rewriter.timing import interleaved, measure, ratio_of
    from rewriter.timing.interleaving import joined

    reference = systems[TENSORFLOW]()
    worst = max(
        relative_difference(found[name], expected)
        for system in SYSTEMS[1:]
        for found in [systems[system]()]
        for name, expected in reference.items()
    )
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    longest = max(measure(call, iterations=1, warmup=1, clock=clock).mean for call in systems.values())
    turns, iterations, warmup = amounts(longest, arguments)
    rounds = interleaved(systems, rounds=turns, iterations=iterations, warmup=warmup, clock=clock)
    figures: dict[str, Any] = {"max rel diff": worst, "clock": PROCESSOR if arguments.threads == 1 else WALL}
    for system, parts in rounds.items():
        found = joined(parts)
        figures[f"{_key(system)}_ms"] = 1e3 * found.median
        figures[_key(system)] = found.to_dict(arguments.trim_mean_percentage)
    figures["overhead_us"] = 1e3 * (figures["ours_ms"] - figures["onnx_ms"])
    for label, system, other in (
        ("ours_over_onnx", OURS, PLAIN),
        ("spliced_over_onnx", SPLICED, PLAIN),
        ("again_over_onnx", AGAIN, PLAIN),
        ("tensorflow_over_ours", TENSORFLOW, OURS),
    ):
        figures[label] = ratio_of(rounds[system], rounds[other]).to_dict()
    return {**figures, "status": judge(figures, arguments.limit, arguments.overhead)}


def amounts(longest: float, arguments: argparse.Namespace) -> tuple[int, int, int]:
    """Rounds, timed calls of a turn, and calls of the warm-up, such that no system takes much more than `--seconds`.

    Args:
        longest: seconds of a call of the slowest system.
        arguments: rounds, num_iterations and num_warmup_iterations are the most that are made.
    """
    most = min(arguments.seconds / max(longest, 1e-9), 1e9)
    rounds = max(min(LEAST_ROUNDS, arguments.rounds), min(arguments.rounds, int(most / 2)))
    iterations = max(1, int(min(arguments.num_iterations, most) / rounds))
    return rounds, iterations, max(1, min(arguments.num_warmup_iterations, int(most / 4)))


def judge(figures: Mapping[str, Any], limit: float, overhead: float) -> str:
    """The word "ok", or what is wrong: too far from TensorFlow, or too slow for chance to explain.

    Args:
        figures: of one row.
        limit: largest ratio; what lies above it must lie above all that the second session of the file shows.
        overhead: microseconds that a call may take more in any case.
    """
    if not figures["max rel diff"] <= TOLERANCE:
        return f"differs from TensorFlow by {figures['max rel diff']:.1e}"
    ours, again = figures["ours_over_onnx"], figures["again_over_onnx"]
    slow = ours["middle"] > limit and ours["low"] > max(again["high"], 1.0)
    if slow and figures["overhead_us"] > overhead:
        return f"ours takes {ours['middle']:.2f} times as long as the ONNX file"
    return "ok"


def _in_child(name: str, words: Sequence[str] | None) -> list[dict[str, Any]]:
    """The rows of one model; a crash or a hang is a row with that status."""
    with tempfile.TemporaryDirectory(prefix="native-latency-") as folder:
        answer = Path(folder, "rows.json")
        given = list(sys.argv[1:] if words is None else words)
        command = [sys.executable, __file__, *given, "--worker", name, "--work", str(answer)]
        quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        try:
            done = subprocess.run(
                command, timeout=TIMEOUT, check=False, env=quiet, capture_output=True, text=True, errors="replace"
            )
        except subprocess.TimeoutExpired:
            return [{"model": name, "batch": None, "status": f"no end after {TIMEOUT} s"}]
        if answer.is_file():
            rows: list[dict[str, Any]] = json.loads(answer.read_text("utf-8"))["rows"]
            return rows
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return [{"model": name, "batch": None, "status": f"exit status {done.returncode}: {last}"[:300]}]


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table: milliseconds, and ratios with their spread."""
    return {
        "model": row["model"],
        "batch": row["batch"],
        **{f"{system} ms": f"{row[f'{_key(system)}_ms']:.3g}" for system in (TENSORFLOW, PLAIN, OURS)},
        "TensorFlow / ours": _ratio(row["tensorflow_over_ours"]),
        "ours / ONNX": _ratio(row["ours_over_onnx"]),
        "+us": f"{row['overhead_us']:.0f}",
        "spliced / ONNX": _ratio(row["spliced_over_onnx"]),
        "ONNX again / ONNX": _ratio(row["again_over_onnx"]),
        "max rel diff": f"{row['max rel diff']:.0e}",
    }


def _ratio(found: Mapping[str, Any]) -> str:
    return f"{found['middle']:.2f} ({found['low']:.2f} .. {found['high']:.2f})"


def _key(system: str) -> str:
    return {AGAIN: "again"}.get(system, system.lower())


def _mean(values: Any) -> float:
    """The geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(MODELS), metavar="NAME", help="of zoo.py")
    parser.add_argument("--rounds", type=int, default=12, metavar="N", help="turns of each system (default 12)")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="of each system, 0: its default (default 1)"
    )
    parser.add_argument("--limit", type=float, default=1.05, help="most that ours may take over ONNX (default 1.05)")
    parser.add_argument(
        "--overhead", type=float, default=50.0, metavar="US", help="what a call may cost in any case (default 50)"
    )
    parser.add_argument(
        "--seconds", type=float, default=6.0, metavar="S", help="for each system and batch, about (default 6)"
    )
    add_timing_options(parser, batch_size=(1, 8), num_iterations=96, num_warmup_iterations=10)
    add_conversion_options(parser, ("minimum_segment_size", "detailed_conversion_summary"))
    add_metrics_options(parser)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parse(parser, words)
    unknown = [name for name in options.only if name not in ZOO]
    if unknown:
        parser.error(f"no model {', '.join(unknown)} in the zoo; there are: {', '.join(ZOO)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
