"""Top-1 and latency of every precision, from artifacts that are executed on this machine's GPU.

    python benchmarks/precision_gpu.py FOLDER [--json PATH] [--table PATH] [--models NAME...] [--modes MODE...]
                                       [--parts accuracy latency] [--timeout SECONDS] [--budget SECONDS] [--jobs N]

FOLDER is one that `precision_bundle.py` made; its docstring has the steps. Needs numpy, onnx, onnx-graphsurgeon, torch,
onnxruntime-gpu and the TensorRT-RTX that the bundle was made with. Each model in each mode runs in a process of its
own:

    accuracy   The artifact is loaded (first converted here, where its engines can only be built on a GPU), warmed up,
               and run on all 10 000 test images at batch 32. Top-1 is compared with that of native FP32 and with
               what emulation predicted on the other machine; the logits of the first 1000 images with the emulated
               ones. ResNet50 has seeded weights, thus no top-1: its outputs are compared with an emulation here.
               Several at a time (--jobs), for nothing is timed.
    latency    Microseconds of one call with device-resident inputs and outputs and CUDA graphs at batch 1, 8, 32, one
               process at a time: the median of 200 calls, each with the wait for its end, and ("in a row") of a call
               among 40 without a wait between them.

Two Markdown tables are printed, and a line for each criterion. A row is "ok" when every call used all engines and none
fell back (else it says how many, and why), the whole graph is in engines, and |top-1 executed - top-1 emulated| is at
most 0.2 points. "nodes in" is what the engines' nodes really compute in, which may be less than was asked for. The
exit status is 1 when a row is not ok or is missing. --provider cpu tries the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path, write_json
from _options import add_metrics_options, parse, recorded
from _precision_carry import (
    BATCHES,
    LOGITS,
    MODELS,
    MODES,
    MODES_OF,
    RESNET,
    SIZES,
    TIMED,
    DrawnOtherwiseError,
    arithmetic_text,
    batches_of,
    ready,
    test_images,
)  # fmt: skip
from _precision_report import judge, judge_latency, top1_row
from _precision_report import render as render_section
from _runtime_bench import compare, emit, interleaved, rms_difference, run_experiments
from engine_run import device_name

add_project_to_path()

PARTS = ("accuracy", "latency")
#: Rounds of calls, and calls a round, that are timed.
ROUNDS, RUNS = 5, 40


def main() -> int:
    options = _parse()
    if options.worker:
        told = json.loads(options.worker)
        {"accuracy": accuracy, "latency": latency}[told.pop("part")](**told)
        return 0
    started = time.perf_counter()
    try:
        test_images(options.folder)  # once, before the workers all do it
    except DrawnOtherwiseError as error:
        print(error, file=sys.stderr)
        return 1
    chosen = [(model, mode) for model in options.models for mode in MODES_OF[model] if mode in options.modes]
    results: list[dict[str, Any]] = []
    if "accuracy" in options.parts:
        # ResNet50 first: it takes longest.
        order = sorted(chosen, key=lambda case: case[0] != RESNET)
        cases = [experiment("accuracy", *case, options) for case in order]
        results += run_experiments(__file__, cases, options.timeout, None, jobs=options.jobs, budget=options.budget)
        keep(options, results, chosen)
    for case in chosen:
        if "latency" not in options.parts or case[0] not in TIMED:
            continue
        left = max(options.budget - (time.perf_counter() - started), 0.0)
        results += run_experiments(
            __file__, [experiment("latency", *case, options)], options.timeout, None, budget=left
        )
        keep(options, results, chosen)
    text, good = render_section(results, machine(), chosen, options.parts)
    print(text)
    print(f"{time.perf_counter() - started:.0f} s in all", file=sys.stderr)
    return 0 if good else 1


def experiment(part: str, model: str, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a worker is told."""
    told = {"part": part, "model": model, "mode": mode, "folder": str(options.folder), "provider": options.provider}
    # What could not be converted once is not tried a second time.
    return told | ({"make": "accuracy" not in options.parts} if part == "latency" else {})


def machine() -> str:
    """The GPU, and the versions of what computes on it."""
    names = ("tensorrt-rtx-cu13", "onnxruntime-gpu", "onnxruntime", "numpy")
    found = []
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return f"{device_name()} (driver); {', '.join(found)}"


def keep(options: argparse.Namespace, results: Sequence[Mapping[str, Any]], chosen: Sequence[tuple[str, str]]) -> None:
    """Writes what there is so far, so that nothing is lost when this process is stopped."""
    if options.json:
        told = {"options": recorded(options), "device": machine(), "parts": list(options.parts), "wanted": list(chosen)}
        write_json(options.json, {**told, "results": list(results)})


def render(document: Mapping[str, Any]) -> str:
    """The two tables, the verdicts, and what the reports say; without the heading."""
    wanted = [(model, mode) for model, mode in document["wanted"]]
    text, _ = render_section(document["results"], document["device"], wanted, document["parts"])
    return text.split("\n\n", 1)[1]


def accuracy(folder: str, model: str, mode: str, provider: str) -> None:
    """One model in one mode on all its images; a worker's whole work."""
    import rewriter

    started = time.perf_counter()
    path, facts = ready(Path(folder), model, mode, refused=refused if provider == "cuda" else lambda _: "")
    row = {
        "model": model,
        "mode": mode,
        "built": facts["built"],
        "nodes in": arithmetic_text(facts),
        "provider": provider,
        "facts": facts,
        "ready s": time.perf_counter() - started,
    }
    with rewriter.load(path, provider=provider, allow_build_at_runtime=False) as function:
        row["warm-up"] = function.warmup({"image": [(batch, SIZES[model], SIZES[model], 3) for batch in BATCHES]})
        if model == RESNET:
            found = resnet_row(function, path)
        else:
            images = test_images(Path(folder))
            parts = [function(image=part)["logits"] for part in batches_of(images, max(BATCHES))]
            found = trained_row(np.concatenate(parts), Path(folder, f"{model}.expected.npz"), mode)
        stats = function.stats()
    row |= found
    row |= {"calls": stats["calls"], "engine calls": stats["engine_calls"], "fallbacks": stats["fallbacks"]}
    row |= {"unusable": stats["unusable_engines"], "seconds": time.perf_counter() - started}
    emit({**row, "status": judge(row), "stats": stats})


def refused(path: Path) -> str:
    """Why engines of an artifact cannot be loaded on this GPU; "" when all can."""
    import rewriter

    with rewriter.load(path, provider="cuda", allow_build_at_runtime=False) as function:
        size = function.signature.inputs[0].shape[1]
        function(image=np.zeros((1, size, size, 3), np.float32))
        stats = function.stats()
    reasons = [*stats["unusable_engines"].values()]
    reasons += [reason for slot in stats["slots"].values() for reason in slot["refused"]]
    return "; ".join(dict.fromkeys(reasons))


def trained_row(logits: np.ndarray, expected: Path, mode: str) -> dict[str, Any]:
    """Logits [10000, 10] against what the bundle holds."""
    with np.load(expected) as file:
        known = {key: file[key] for key in file.files}
    found = top1_row(logits.argmax(-1), known["labels"], known["native"], known[mode])
    found["rms emulated"] = rms_difference(logits[:LOGITS], known[f"{mode}.logits"])
    found["rms native"] = rms_difference(logits[:LOGITS], known["native.logits"])
    found["emulated from native"] = rms_difference(known[f"{mode}.logits"], known["native.logits"])
    return found


def resnet_row(function: Any, path: Path) -> dict[str, Any]:
    """ResNet50 at batch 8 against native execution and emulation on this machine's CPU."""
    from runtime_models import feeds_of

    import rewriter

    feeds = feeds_of(RESNET, (8,), 1)
    outputs = function(**feeds)
    with rewriter.load(path, execution="native") as native:
        reference = native(**feeds)
    with rewriter.load(path, execution="emulate") as emulated:
        predicted = emulated(**feeds)
    return {
        "rms emulated": compare(outputs, predicted)["rms"],
        "rms native": compare(outputs, reference)["rms"],
        "emulated from native": compare(predicted, reference)["rms"],
    }


def latency(folder: str, model: str, mode: str, provider: str, make: bool) -> None:
    """Times one model in one mode at all batches; a worker's whole work."""
    import rewriter

    path, facts = ready(Path(folder), model, mode, make=make)
    on_gpu = provider == "cuda"
    stream, finish = _stream() if on_gpu else (None, lambda: None)
    with rewriter.load(path, provider=provider, stream=stream, allow_build_at_runtime=False) as function:
        for batch in BATCHES:
            feeds = images_of(model, batch)
            before = function.stats()
            if on_gpu:
                import torch

                device = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
                torch.cuda.synchronize()
                for _ in range(6):  # discovery, fixed addresses, capture, launches
                    function.run(device, device_outputs=True)
                times = _timed(lambda given=device: function.run(given, device_outputs=True), finish, ROUNDS, RUNS)
            else:
                times = _timed(lambda given=feeds: function(**given), finish, 1, 2)
            row = {"model": model, "mode": mode, "batch": batch, "nodes in": arithmetic_text(facts), **times}
            row |= {"provider": provider, **grown(before, function.stats())}
            emit({**row, "status": judge_latency(row)})


def _stream() -> tuple[Any, Any]:
    """A CUDA stream of PyTorch, made its current one, and what waits for its end."""
    import torch

    stream = torch.cuda.Stream()
    torch.cuda.set_stream(stream)
    return stream, stream.synchronize


def _timed(call: Any, finish: Any, rounds: int, runs: int) -> dict[str, float]:
    return interleaved({"ours": call}, finish, rounds=rounds, runs=runs)["ours"]


def images_of(model: str, batch: int) -> dict[str, np.ndarray]:
    """Some inputs of a batch."""
    if model == RESNET:
        from runtime_models import feeds_of

        return feeds_of(RESNET, (batch,), 2)
    shape = (batch, SIZES[model], SIZES[model], 3)
    return {"image": np.random.default_rng(batch).random(shape, dtype=np.float32)}


def grown(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What the calls between two `stats()` did: calls, calls with engines, graph launches, fallbacks, reasons."""
    found: dict[str, Any] = {
        name: after.get(key, 0) - before.get(key, 0)
        for name, key in (("calls", "calls"), ("engine calls", "engine_calls"), ("launches", "graph_launches"))
    }
    for name in ("fallbacks", "no_graph", "no_plan"):
        old = before.get(name, {})
        news = {key: count - old.get(key, 0) for key, count in after.get(name, {}).items()}
        found[name] = {key: count for key, count in news.items() if count}
    return found


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add_metrics_options(parser)
    parser.add_argument("--timeout", type=float, default=90.0, help="seconds for one process (default %(default)s)")
    parser.add_argument("--budget", type=float, default=230.0, help="seconds for all together (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=10, help="accuracy processes at a time (default %(default)s)")
    parser.add_argument("--provider", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parse(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
