"""How long does a conversion take, where does the time go, and what do the stock tools take for the same?

    python benchmarks/conversion_time.py [--model ResNet50 ...] [--num_iterations 3] [--json FILE]

From a SavedModel on disk to a TensorRT engine on disk, in whole processes, start and imports included. "ours" is
`trt-rewriter convert SRC -o OUT`; "stock" is what a user would pick instead, `python -m tf2onnx.convert` and then
`polygraphy convert ONNX -o ENGINE` with TensorRT-RTX, with the same shapes and opset. They take turns. Ours also
compares the export with TensorFlow, partitions the model and keeps the native way; stock does not.

Another run of ours in each turn is watched by `_ownership.py`, which books every moment to its owner by one rule
that is written there. The limit: on ResNet50 our own stages, which is all that happens in them but TensorFlow,
tf2onnx and TensorRT's parser and builder (so our code, ONNX Runtime and onnx), take at most 15 % of the whole
process. Its start and end and the imports are no stages: the share with these is judged by the same limit beside it.
The exit status is 1 when the stages are beyond the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import add_project_to_path, format_table
from _options import add_conversion_options, add_metrics_options, export_metrics, parse
from _ownership import IMPORTS, OURS, PROCESS, PYTHON, START, THEIRS
from _plots import Bars, Chart

MODELS = ("ResNet50", "EfficientNetB0", "bert_like", "detector_nms")
#: The model that the limit is about, and the largest share of our own stages.
JUDGED, LIMIT = "ResNet50", 0.15
#: Owners in the order of the tables.
OWNERS = (*THEIRS, OURS, START, "ONNX Runtime", "onnx", PYTHON)
STAGES = (
    PROCESS, IMPORTS, "load", "reference", "freeze", "export", "verify", "passes", "support", "partition",
    "calibration", "accuracy", "build", "save", "between stages",
)  # fmt: skip
OPSET = "18"
#: What the command `polygraphy` does, which need not be on the path.
POLYGRAPHY = "import sys; from polygraphy.tools import main; sys.exit(main())"
TIMEOUT = 900
ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.worker:
        _make(options.worker, options.work)
        return 0
    rows: list[dict[str, Any]] = []
    ledgers: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="conversion-time-") as folder:
        for name in options.model:
            found = measure(name, Path(folder), options)
            rows += found[0]
            ledgers += found[1]
    document = {"rows": rows, "ledgers": ledgers}
    print(render(document))
    export_metrics(options, rows, ledgers=ledgers)
    share = own_share(document, JUDGED)
    return 0 if share is None or share <= LIMIT else 1


def measure(name: str, folder: Path, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows, ledgers) of one model: all systems in turn, warm-up runs left out."""
    source, shapes = _saved_model(name, folder)
    rows, ledgers = [], []
    for number in range(-options.num_warmup_iterations, options.num_iterations):
        for system in ("ours", "tf2onnx", "polygraphy", "ours, watched"):
            command = _command(system, source, shapes, folder / name, options)
            shutil.rmtree(folder / name / "artifact", ignore_errors=True)  # removing it is no part of a conversion
            row = {"model": name, "system": system, "run": number, **_run(command)}
            if number >= 0:
                rows.append(row)
                if system == "ours, watched" and row["status"] == "ok":
                    ledgers.append({"model": name, "run": number, "ledger": _ledger(folder / name, row)})
            print(f"{name} {system}: {row['seconds']:.1f} s {row['status']}", file=sys.stderr, flush=True)
    shutil.rmtree(folder / name)
    return rows, ledgers


def own_share(document: Mapping[str, Any], model: str, *, outside: bool = False) -> float | None:
    """Median share of the whole process that is neither TensorFlow, tf2onnx nor TensorRT; None: not measured.

    Args:
        document: the measurement.
        model: of it.
        outside: True counts what is not theirs of Python's start and end and of the imports, too.
    """
    shares = []
    for entry in document["ledgers"]:
        if entry["model"] == model:
            stages = {s: row for s, row in entry["ledger"].items() if outside or s not in (PROCESS, IMPORTS)}
            own = sum(seconds for owner, seconds in _by_owner(stages).items() if owner not in THEIRS)
            shares.append(own / sum(_by_owner(entry["ledger"]).values()))
    return statistics.median(shares) if shares else None


def render(document: Mapping[str, Any]) -> str:
    """Beside the stock tools; by owner; and by stage for the model of the limit."""
    models = list(dict.fromkeys(row["model"] for row in document["rows"]))
    parts = [
        "### Whole conversions",
        format_table([_beside(document, model) for model in models]),
        "Medians, seconds of whole processes. Lowest and highest run in brackets. stock = tf2onnx + polygraphy.",
        "### Whose time it is",
        format_table([_shares(document, model) for model in models if own_share(document, model) is not None]),
        "Medians of watched runs, seconds; `_ownership.py` has the rule. own stages: all in the stages but TensorFlow, "
        "tf2onnx and TensorRT, as a share of the whole; with start, end and imports: the same of these as well.",
    ]
    readings = {
        "own stages": own_share(document, JUDGED),
        "own stages, Python's start and end and the imports": own_share(document, JUDGED, outside=True),
    }
    judged = [
        f"{'PASS' if share <= LIMIT else 'FAIL'}: {what} take {share:.1%} of a {JUDGED} conversion (limit {LIMIT:.0%})."
        for what, share in readings.items()
        if share is not None
    ]
    if judged:
        parts += [f"### {JUDGED} by stage", format_table(_stages(document, JUDGED)), *judged]
    return "\n\n".join(parts)


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """The share that the limit is about, and what the stock tools take beside ours."""
    share, line = own_share(document, JUDGED), _beside(document, JUDGED)
    ours, stock = _seconds(document, JUDGED, "ours"), _stock(document, JUDGED)
    found = {"limit": f"{LIMIT:.0%}", "model": JUDGED, "ratio": str(line["stock / ours"])}
    if share is not None:
        found["own"] = f"{100 * share:.1f} %"
        found["own_outside"] = f"{100 * (own_share(document, JUDGED, outside=True) or 0.0):.1f} %"
    if ours and stock:
        found |= {"ours": f"{statistics.median(ours):.1f}", "stock": f"{statistics.median(stock):.1f}"}
    return found


def plots(document: Mapping[str, Any]) -> dict[str, Chart]:
    """A conversion of each model, cut by owner."""
    models = list(dict.fromkeys(entry["model"] for entry in document["ledgers"]))
    series = {owner: [_owner_median(document, model, owner) for model in models] for owner in OWNERS}
    shown = {owner: values for owner, values in series.items() if any(values)}
    title = "Whose time a conversion is, whole processes"
    return {"owners": Bars(title, "seconds", models, shown, stacked=True, places=1)} if models else {}


def _beside(document: Mapping[str, Any], model: str) -> dict[str, Any]:
    ours, stock = _seconds(document, model, "ours"), _stock(document, model)
    failed = [r for r in document["rows"] if r["model"] == model and r["status"] != "ok"]
    ratio = f"{statistics.median(s / o for s, o in zip(stock, ours, strict=False)):.2f}" if ours and stock else ""
    return {
        "model": model,
        "ours s": _span(ours),
        "tf2onnx s": _span(_seconds(document, model, "tf2onnx")),
        "polygraphy s": _span(_seconds(document, model, "polygraphy")),
        "stock s": _span(stock),
        "stock / ours": ratio,
        "what failed": "; ".join(sorted({f"{r['system']}: {r['detail']}" for r in failed})),
    }


def _shares(document: Mapping[str, Any], model: str) -> dict[str, Any]:
    owners = {owner: _owner_median(document, model, owner) for owner in OWNERS}
    shares = {"own stages": False, "with start, end, imports": True}
    return {
        "model": model,
        **{owner: f"{seconds:.2f}" for owner, seconds in owners.items()},
        **{name: f"{100 * (own_share(document, model, outside=o) or 0.0):.1f} %" for name, o in shares.items()},
    }


def _stages(document: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    """One line a stage, one column an owner; seconds, medians of the runs."""
    runs = [entry["ledger"] for entry in document["ledgers"] if entry["model"] == model]
    names = [stage for stage in STAGES if any(stage in run for run in runs)]
    names += sorted({stage for run in runs for stage in run} - set(names))
    lines = []
    for name in names:
        seconds = {o: statistics.median(run.get(name, {}).get(o, 0.0) for run in runs) for o in OWNERS}
        shown = {o: f"{value:.2f}" if value >= 0.005 else "" for o, value in seconds.items()}
        lines.append({"stage": name, "seconds": f"{sum(seconds.values()):.2f}", **shown})
    totals = {o: f"{_owner_median(document, model, o):.2f}" for o in OWNERS}
    whole = statistics.median(sum(_by_owner(run).values()) for run in runs)
    return [*lines, {"stage": "all", "seconds": f"{whole:.2f}", **totals}]


def _owner_median(document: Mapping[str, Any], model: str, owner: str) -> float:
    runs = [_by_owner(entry["ledger"]) for entry in document["ledgers"] if entry["model"] == model]
    return statistics.median(run.get(owner, 0.0) for run in runs)


def _by_owner(ledger: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for row in ledger.values():
        for owner, seconds in row.items():
            totals[owner] = totals.get(owner, 0.0) + seconds
    return totals


def _seconds(document: Mapping[str, Any], model: str, system: str) -> list[float]:
    rows = [r for r in document["rows"] if r["model"] == model and r["system"] == system and r["status"] == "ok"]
    return [row["seconds"] for row in rows]


def _stock(document: Mapping[str, Any], model: str) -> list[float]:
    """tf2onnx and polygraphy of the same turn together; [] where one of them fails."""
    pairs = zip(_seconds(document, model, "tf2onnx"), _seconds(document, model, "polygraphy"), strict=False)
    return [first + second for first, second in pairs]


def _span(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} .. {max(seconds):.1f})" if seconds else "fails"


def _command(
    system: str, source: str, shapes: Mapping[str, list[list[int]]], work: Path, options: argparse.Namespace
) -> list[str]:
    """The command line of one system; `shapes` is input name -> smallest and largest shape."""
    if system == "tf2onnx":
        target = str(work / "stock.onnx")
        return [sys.executable, "-m", "tf2onnx.convert", "--saved-model", source, "--output", target, "--opset", OPSET]
    if system == "polygraphy":
        ranges = {"min": 0, "opt": 1, "max": 1}
        given = [
            word
            for kind, place in ranges.items()
            for word in (f"--trt-{kind}-shapes", *(f"{name}:{_dims(pair[place])}" for name, pair in shapes.items()))
        ]
        limit = ["--pool-limit", f"workspace:{options.max_workspace_size}"]
        program = [sys.executable, "-c", POLYGRAPHY, "convert"]
        return [
            *program,
            str(work / "stock.onnx"),
            "--convert-to",
            "trt",
            "-o",
            str(work / "stock.engine"),
            *given,
            *limit,
        ]
    watch = [str(ROOT / "benchmarks" / "_ownership.py"), str(work / "ledger.json")]
    program = watch if system == "ours, watched" else ["-m", "rewriter.cli"]
    wanted = [
        word
        for name, pair in shapes.items()
        for word in ("--shapes", f"{name}:" + ",".join("x".join(map(str, dims)) or "scalar" for dims in pair))
    ]
    sizes = ["--minimum-segment-size", str(options.minimum_segment_size)]
    sizes += ["--max-workspace-size-bytes", str(options.max_workspace_size)]
    target = ["-o", str(work / "artifact"), "--overwrite"]
    return [sys.executable, *program, "convert", source, *target, *wanted, *sizes]


def _dims(dims: Sequence[int]) -> str:
    return f"[{','.join(map(str, dims))}]"


def _run(command: Sequence[str]) -> dict[str, Any]:
    """Seconds of a whole process, when it began and ended (monotonic clock), and how."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    environment = {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    # An installed package has its bytecode; a checkout gets it in the warm-up run.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False, errors="replace"
        )
        status, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        status, said = -1, f"no end after {TIMEOUT} s"
    ended = time.monotonic()
    detail = "" if not status else _reason(said)
    word = "ok" if not status else "failed"
    return {"seconds": ended - begun, "begun": begun, "ended": ended, "status": word, "detail": detail}


def _reason(said: str) -> str:
    """The line that tells why a program failed, as far as one can tell."""
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line or "[!]" in line]
    return ((telling or lines or ["no word"])[0])[:160]


def _ledger(work: Path, row: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What the watched process booked, with Python's start before and its end after."""
    told = json.loads((work / "ledger.json").read_text(encoding="utf-8"))
    outside = (told["begun"] - row["begun"]) + (row["ended"] - told["ended"])
    return {**told["ledger"], PROCESS: {PYTHON: outside}}


def _saved_model(name: str, folder: Path) -> tuple[str, dict[str, list[list[int]]]]:
    """(SavedModel, input name -> smallest and largest shape) of a model of the zoo, made in a process of its own."""
    (folder / name).mkdir()
    command = [sys.executable, __file__, "--worker", name, "--work", str(folder / name)]
    done = _run(command)
    if done["status"] != "ok":
        raise SystemExit(f"{name} cannot be made: {done['detail']}")
    made = json.loads((folder / name / "made.json").read_text(encoding="utf-8"))
    return made["source"], made["shapes"]


def _make(name: str, work: Path) -> None:
    """The worker's part: writes the SavedModel, and where it is."""
    add_project_to_path()
    from zoo import load

    model = load(name, work)
    source = model.model if isinstance(model.model, (str, Path)) else work / "saved_model"
    if source is not model.model:
        model.model.export(str(source), verbose=False)
    shapes = {}
    for key in model.samples[0]:
        seen = [sample[key].shape for sample in model.samples]
        shapes[key] = [[choose(dims) for dims in zip(*seen, strict=True)] for choose in (min, max)]
    (work / "made.json").write_text(json.dumps({"source": str(source), "shapes": shapes}), encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_metrics_options(parser)
    add_conversion_options(parser, ("minimum_segment_size", "max_workspace_size"))
    parser.add_argument("--model", nargs="+", default=list(MODELS), metavar="NAME", help="default: %(default)s")
    parser.add_argument("--num_iterations", type=int, default=3, metavar="N", help="turns (default %(default)s)")
    parser.add_argument(
        "--num_warmup_iterations", type=int, default=1, metavar="N", help="turns before these (default %(default)s)"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parse(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
