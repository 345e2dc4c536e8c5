"""How fast is each precision on a GPU beside PyTorch, JAX and ONNX Runtime, all on the same five models?

    python benchmarks/rivals.py FOLDER [--steps prepare time] [--models NAME...] [--parts PART...] [--budget SECONDS]
                                [--batch_size N...] [--device cuda|cpu] [--export_metrics_json_path FILE]
                                [--merge FILE.json]

FOLDER holds the skeletons of `python benchmarks/_rivals_models.py FOLDER` (5 MB; needs TensorFlow), and gets all that
is made of them. Needs torch, jax, onnxruntime-gpu and TensorRT-RTX on the machine with the GPU. What is not installed,
fails or crashes costs its own rows, which say why; every process is one of its own.

    prepare  nothing is timed: models are filled, cleaned for each batch size and answered by ONNX Runtime on the CPU;
             ours are converted and built, several at a time; torch.compile and XLA compile, and keep what they made.
    time     one process at a time is timed; others read their models and load what was compiled meanwhile.

Parts: "ours" (FP32, which is TF32 here, FP16, BF16; INT8 and FP8 where matrix products dominate, for TensorRT-RTX 1.4
has no 8-bit convolutions), "onnxruntime" (eager and by its own CUDA graph; NHWC too for convolutions), "compile"
(torch.compile, mode reduce-overhead), "torch" (eager, and captured into one CUDA graph; convolutions channels_last),
"jax" (jax.jit); these in TF32 and FP16; "transposes" (ours with and without cancel_transposes), "chain" (7
alternating steps with exact profiles), "smoke" (commands of trt-rewriter), "max_autotune" (torch.compile in that mode,
batch 8 in FP16; minutes, so only when asked for).

To measure some parts again: `--merge FILE.json` begins with the rows of an earlier JSON. A new row takes the place of
the earlier one of the same part, model, system, precision and batch, unless the new one failed and that did not.

PyTorch and JAX run the ONNX model by a table of its operators (`_rivals_graph.py`), checked against ONNX Runtime. All
get device-resident inputs of the same fixed shapes and leave their outputs on the device. "difference": from ONNX
Runtime in FP32 on the CPU, max|difference| / max|reference|. The exit status is 1 when nothing of ours was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _options import add_metrics_options, add_timing_options, parse, write_csv
from _rivals_kept import Kept
from _rivals_report import facts, plots, render
from _runtime_bench import MARK

__all__ = ["facts", "plots", "render"]
QUESTION = "How fast is each precision beside PyTorch, JAX and ONNX Runtime?"
MODELS = ("ResNet50", "MobileNetV3Small", "bert", "unet", "vit")
#: Where cancel_transposes finds something; it finds nothing in the other four.
TRANSPOSED = ("ResNet50", "EfficientNetB0")
CONVOLUTIONS = ("ResNet50", "MobileNetV3Small", "unet")
PARTS = ("ours", "transposes", "chain", "onnxruntime", "compile", "torch", "jax", "smoke", "max_autotune")
#: The precisions of ours; FP32 is computed in TF32 by this TensorRT.
FLOATS = ("FP32", "FP16", "BF16")
EIGHT_BITS = ("INT8", "FP8")
RIVAL_PRECISIONS = ("TF32", "FP16")
BATCHES = (1, 8, 32)
CHAIN_BATCH = 8
CASE_SECONDS = {"convert": 400.0, "fixed": 120.0, "smoke": 100.0, "compile": 240.0}
#: Seconds that must be left for a process to be begun.
LEAST = 5.0
Group = dict[str, Any]
Row = dict[str, Any]


def main() -> int:
    options = _parse()
    if options.worker:
        from _rivals_workers import work

        work(json.loads(options.worker))
        return 0
    end = time.perf_counter() + options.budget
    kept = Kept(options, QUESTION, MODELS)
    if "prepare" in options.steps:
        kept.forget({"fixed", "convert", "compile"})
        run_groups(fixed_groups(options), options.jobs, end, kept.add)
        pools = ((convert_groups(options), options.jobs), (compile_groups(options), options.gpu_jobs))
        with ThreadPoolExecutor(len(pools)) as both:
            list(both.map(lambda pool: run_groups(*pool, end, kept.add), pools))
    if "time" in options.steps:
        kept.forget({"speed", "transposes", "chain", "smoke"})
        run_groups(timed_groups(options), options.waiting, end, kept.add)
    document = kept.document()
    print(render(document))
    if options.csv is not None:
        write_csv(options.csv, [row for row in document["rows"] if row["part"] == "speed"], options.experiment_name)
    ours = [row for row in document["rows"] if row.get("system") == "ours" and "us" in row]
    return 0 if ours or "time" not in options.steps else 1


def run_groups(
    groups: Sequence[Group], jobs: int, end: float, add: Callable[[Sequence[Row]], None], run: Any = None
) -> None:
    """Runs each group in processes of its own; a case that ends its process costs itself alone.

    Args:
        groups: what the workers are told; "cases" are done in order.
        jobs: processes at a time.
        end: `time.perf_counter()` at which everything must be over.
        add: takes the rows of each process.
        run: starts one process: (told, seconds) -> (rows, why it failed or ""); default `run_process`.
    """

    def one(number: int) -> None:
        group = groups[number]
        left = list(group["cases"])
        while left:
            rows, left = _attempt({**group, "cases": left, "slot": number % jobs}, end, run or run_process)
            add(rows)

    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        list(pool.map(one, range(len(groups))))


def run_process(told: Group, seconds: float) -> tuple[list[Row], str]:
    """One worker: the rows that it emitted, also when it did not end well, and why it failed ("" when it did not)."""
    command = [sys.executable, __file__, told["folder"], "--worker", json.dumps(told)]
    environment = {**os.environ, **told["environment"], "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    late = False
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
    rows = [row for line in out.splitlines() if line.startswith(MARK) for row in json.loads(line.removeprefix(MARK))]
    if late:
        return rows, f"no end after {seconds:.0f} s for all its cases"
    if child.returncode == -signal.SIGALRM:
        return rows, f"no end after {told['case_seconds']:.0f} s"
    said = [line.strip() for line in err.strip().splitlines() if line.strip() and not line.startswith("  ")]
    return rows, f"exit status {child.returncode}: {' / '.join(said[-2:])}"[:300] if child.returncode else ""


def _attempt(group: Group, end: float, run: Any) -> tuple[list[Row], list[Row]]:
    """One process: its rows, and the cases that another process must do."""
    cases, started = group["cases"], time.perf_counter()
    about = {"part": group["part"], "model": group["model"]}
    if end - started < LEAST:
        return [{**about, **case, "failed": "not begun: the time for all was over"} for case in cases], []
    found, reason = run(group, min(group["seconds"], end - started))
    ready = any("ready" in row for row in found)
    rows = [{**about, **row} for row in found if "ready" not in row]
    done = {row["place"] for row in rows}
    missing = [case for case in cases if case["place"] not in done]
    said = (
        f"{group['part']} {group['model']} {group['work']}: {len(rows)} rows in {time.perf_counter() - started:.0f} s"
    )
    if missing:
        reason = reason or "the process ended too early"
        # A process that never got to its first case would fail in the same way again.
        lost = missing[:1] if ready else missing
        rows += [{**about, **case, "failed": reason} for case in lost]
        missing = missing[len(lost) :]
        said += f"; {len(lost)} failed: {reason}"
    bad = [row["failed"] for row in rows if "failed" in row]
    print(f"{said}{f'; {bad[0]}' if bad and 'failed:' not in said else ''}"[:400], file=sys.stderr, flush=True)
    return rows, missing


def _group(options: argparse.Namespace, part: str, work: str, model: str, cases: Iterable[Row]) -> Group:
    """What a worker is told about cases of one part; each case gets its place in the plan."""
    timed = part in ("speed", "transposes", "chain", "smoke")
    folder = options.folder.resolve()
    start = 1000 * (SYSTEM_ORDER.index(work) if work in SYSTEM_ORDER else len(SYSTEM_ORDER))
    calls = options.num_iterations if timed else 0
    return {
        "part": part, "work": work, "model": model, "folder": str(folder), "device": options.device,
        "batches": options.batch_size, "alone": timed, "case_seconds": CASE_SECONDS.get(work, 60.0), "seconds": 900.0,
        "timing": {"calls": calls, "warmup": options.num_warmup_iterations, "seconds": options.case_time},
        "environment": _environment(folder),
        "cases": [{**case, "place": start + number} for number, case in enumerate(cases)],
    }  # fmt: skip


SYSTEM_ORDER = ("fixed", "convert", "ours", "compile", "torch", "jax", "onnxruntime", "transposes", "chain", "smoke")


def _environment(folder: Path) -> dict[str, str]:
    """Where compilers keep what they made, and no memory taken in advance."""
    return {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache_jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache_torch"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def fixed_groups(options: argparse.Namespace) -> list[Group]:
    cases = [{"batch": batch} for batch in reversed(options.batch_size)]
    models = [*options.models, *(TRANSPOSED if "transposes" in options.parts else ())]
    return [_group(options, "fixed", "fixed", model, [case]) for case in cases for model in dict.fromkeys(models)]


def precisions_of(model: str) -> tuple[str, ...]:
    """What ours is measured in."""
    return FLOATS if model in CONVOLUTIONS else (*FLOATS, *EIGHT_BITS)


def convert_groups(options: argparse.Namespace) -> list[Group]:
    """One process for each artifact, the slow ones first."""
    wanted: list[tuple[str, str, bool]] = []
    if {"ours", "smoke"} & set(options.parts):
        wanted += [(model, precision, False) for model in options.models for precision in precisions_of(model)]
    if "transposes" in options.parts:
        wanted += [(model, "FP16", cancel) for model in TRANSPOSED for cancel in (False, True)]
    if "chain" in options.parts:
        wanted += [("chain7", "FP32", False), ("chain1", "FP32", False)]
    slow = {"INT8": 0, "FP8": 0}
    order = sorted(
        dict.fromkeys(wanted), key=lambda case: (slow.get(case[1], 1), case[0] not in ("EfficientNetB0", "bert"))
    )
    return [
        _group(options, "convert", "convert", model, [{"precision": precision, "cancel": cancel}])
        for model, precision, cancel in order
    ]


def compile_groups(options: argparse.Namespace) -> list[Group]:
    """What compiles on the GPU: a first call, without timing."""
    groups = [
        (WORK.get(part, part), model, [case for case in RIVALS[part](options, model) if case["precision"] == precision])
        for part in ("max_autotune", "compile", "jax")
        if part in options.parts
        for model in options.models
        for precision in RIVAL_PRECISIONS
    ]
    return [_group(options, "compile", work, model, cases) for work, model, cases in groups if cases]


def timed_groups(options: argparse.Namespace) -> list[Group]:
    """Everything that is timed, the most telling first: when the time is over, the rest is left out."""
    parts, groups = options.parts, []
    if "ours" in parts:
        groups += [_group(options, "speed", "ours", model, _our_cases(options, model)) for model in options.models]
    if "chain" in parts:
        groups.append(_group(options, "chain", "chain", "chain", [{"precision": "FP32", "batch": CHAIN_BATCH}]))
    if "transposes" in parts:
        cases = [{"precision": "FP16", "batch": batch} for batch in options.batch_size]
        groups += [_group(options, "transposes", "transposes", model, cases) for model in TRANSPOSED]
    for part, cases_of in RIVALS.items():
        if part in parts and part != "max_autotune":
            groups += [_group(options, "speed", part, model, cases_of(options, model)) for model in options.models]
    if "smoke" in parts:
        small = "unet" if "unet" in options.models else options.models[0]  # bisecting builds prefixes of its engine
        groups.append(_group(options, "smoke", "smoke", small, [{"command": words} for words in SMOKE]))
    if "max_autotune" in parts:
        cases = RIVALS["max_autotune"](options, "")
        groups += [_group(options, "speed", "compile", model, cases) for model in options.models]
    return groups


#: Commands that must run on a GPU; "{artifact}" is ours in FP16.
SMOKE = (
    ("bench", "{artifact}", "--duration", "1", "--device-inputs", "--device-outputs"),
    ("compare", "{source}", "{artifact}", "--bisect", "--tolerance", "1e-6"),
)


def _our_cases(options: argparse.Namespace, model: str) -> list[Row]:
    """FP32 is listed as what it is, TF32."""
    names = {"FP32": "TF32"}
    return [
        {"system": "ours", "precision": names.get(precision, precision), "artifact": precision, "batch": batch}
        for precision in precisions_of(model)
        for batch in options.batch_size
    ]


def _cases(options: argparse.Namespace, system: str, **more: Any) -> list[Row]:
    return [
        {"system": system, "precision": precision, "batch": batch, **more}
        for precision in RIVAL_PRECISIONS
        for batch in options.batch_size
    ]


def _onnxruntime_cases(options: argparse.Namespace, model: str) -> list[Row]:
    """NHWC for convolutions in float16, where it can pay."""
    nhwc = _cases(options, "ORT NHWC", nhwc=True) if model in CONVOLUTIONS else []
    return _cases(options, "ORT", nhwc=False) + [case for case in nhwc if case["precision"] == "FP16"]


#: Part -> (options, model) -> cases; in the order in which they are timed.
RIVALS: dict[str, Callable[[argparse.Namespace, str], list[Row]]] = {
    "compile": lambda options, _: _cases(options, "torch compile", mode="reduce-overhead"),
    "onnxruntime": _onnxruntime_cases,
    "torch": lambda options, _: _cases(options, "torch eager"),
    "jax": lambda options, _: _cases(options, "JAX"),
    "max_autotune": lambda *_: [
        {"system": "torch compile, max-autotune", "precision": "FP16", "batch": 8, "mode": "max-autotune"}
    ],
}
#: Part -> what its workers do, where that is called otherwise.
WORK = {"max_autotune": "compile"}


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path)
    add("--steps", nargs="+", choices=("prepare", "time"), default=["prepare", "time"], help="default: both")
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME", help=", ".join(MODELS))
    default = [part for part in PARTS if part != "max_autotune"]
    add("--parts", nargs="+", choices=PARTS, default=default, metavar="PART", help=", ".join(PARTS))
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script")
    add("--budget", type=float, default=540.0, metavar="SECONDS", help="for all (default %(default)s)")
    add("--case_time", type=float, default=0.5, metavar="SECONDS", help="timed calls of a case (default %(default)s)")
    add("--jobs", type=int, default=10, help="conversions at a time (default %(default)s)")
    add("--gpu_jobs", type=int, default=6, help="compilers on the GPU at a time (default %(default)s)")
    add("--waiting", type=int, default=4, help="processes of which one is timed, the others load (default %(default)s)")
    add("--merge", type=Path, metavar="FILE", help="JSON of an earlier run whose rows stay unless they are made again")
    add("--worker", help=argparse.SUPPRESS)
    add_timing_options(parser, batch_size=BATCHES, num_iterations=200, num_warmup_iterations=20)
    add_metrics_options(parser)
    return parse(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
