"""The experiments of `runtime_speed.py`, each the whole work of one process; they emit their rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path
from _runtime_bench import compare, emit, interleaved, max_difference
from runtime_models import Case, artifact, feeds_of, filled

add_project_to_path()

#: Six shapes of each model, inside its profile.
SHAPES: dict[str, tuple[Case, ...]] = {
    "chain7": ((1,), (2,), (4,), (8,), (12,), (16,)),
    "bert": ((1, 8), (1, 32), (2, 64), (4, 64), (4, 128), (8, 256)),
    "detector": ((1,), (2,), (3,), (4,), (2,), (1,)),
}
#: Equal results: what another order of additions may change.
SAME = 1e-3
THREADS = 8


def ours_and_bare(folder: str, name: str, precision: str, batch: int, rounds: int) -> None:
    """Our function by graph, eagerly and from the host; for models that are one engine also a bare context of it."""
    import torch
    from _runtime_rivals import BareEngine

    import rewriter

    path = artifact(name, precision, Path(folder))
    feeds = feeds_of(name, (batch,), 1)
    stream = torch.cuda.Stream()
    torch.cuda.set_stream(stream)
    device = {key: torch.from_numpy(np.ascontiguousarray(value)).cuda() for key, value in feeds.items()}
    torch.cuda.synchronize()
    graph = rewriter.load(path, provider="cuda", stream=stream)
    eager = rewriter.load(path, provider="cuda", stream=stream, cuda_graph=False)
    systems: dict[str, Callable[[], Any]] = {
        "ours, graph": lambda: graph.run(device, device_outputs=True),
        "ours, eager": lambda: eager.run(device, device_outputs=True),
        "ours, host": lambda: graph(**feeds),
    }
    outputs = {"ours, graph": lambda: _arrays(graph.run(device, device_outputs=True))}
    outputs |= {
        "ours, eager": lambda: _arrays(eager.run(device, device_outputs=True)),
        "ours, host": systems["ours, host"],
    }
    engines = sorted(path.glob("engines/*/*.engine"))
    if len(engines) == 1:
        bare = BareEngine(engines[0], feeds)
        systems |= {"bare, graph": bare.graph, "bare, eager": bare.eager}
    times = interleaved(systems, stream.synchronize, rounds=rounds)
    with rewriter.load(path, execution="native") as native:
        reference = native(**feeds)
    for system, found in times.items():
        row = {"model": name, "precision": precision, "batch": batch, "system": system, **found, "note": ""}
        if system in outputs:
            row["difference"] = compare(outputs[system](), reference)["max"]
        if system.startswith("ours"):
            row["stats"] = (eager if "eager" in system else graph).stats()
            row["note"] = "; ".join(row["stats"]["fallbacks"])
        emit(row)
    graph.close()
    eager.close()


def onnxruntime(folder: str, name: str, precision: str, batches: Sequence[int], cuda_graph: bool, rounds: int) -> None:
    """ONNX Runtime alone; each batch in a session of its own, as its graphs know one shape only."""
    import onnx
    import torch
    from _runtime_rivals import as_float16, onnxruntime_call

    proto = onnx.load(str(filled(name, Path(folder))))
    model = (as_float16(proto) if precision == "FP16" else proto).SerializeToString()
    for batch in batches:
        feeds = feeds_of(name, (batch,), 1)
        call, outputs, reference = onnxruntime_call(model, feeds, cuda_graph=cuda_graph)
        system = f"ORT {precision}{', graph' if cuda_graph else ''}"
        found = interleaved({system: call}, torch.cuda.synchronize, rounds=rounds)[system]
        arrays = {key: tensor.cpu().numpy() for key, tensor in outputs.items()}
        worst = max(max_difference(arrays[key], reference[key]) for key in arrays)
        emit(
            {"model": name, "precision": precision, "batch": batch, "system": system, **found, "difference": worst,
             "note": ""}
        )  # fmt: skip


def first_call(folder: str, name: str, precision: str, state: str) -> None:
    """Seconds of `load()` and of the first call; another model's call has loaded libraries and CUDA before."""
    import torch

    import rewriter

    path = artifact(name, precision, Path(folder))
    with rewriter.load(artifact("lstm", "FP32", Path(folder)), provider="cuda") as other:
        other(**feeds_of("lstm", (1, 4), 1))
    if state != "cache":
        for cache in cache_files(path):
            cache.unlink()
    before = len(cache_files(path))
    feeds = feeds_of(name, (8,), 1)
    torch.cuda.synchronize()
    times = [time.perf_counter()]
    function = rewriter.load(path, provider="cuda")
    times.append(time.perf_counter())
    for _ in range(2):
        function(**feeds)
        times.append(time.perf_counter())
    stats = function.stats()
    function.close()
    emit(
        {
            "model": name, "precision": precision, "state": state, "load s": times[1] - times[0],
            "first call s": times[2] - times[1], "together s": times[2] - times[0],
            "second call s": times[3] - times[2], "cache files": f"{before} -> {len(cache_files(path))}",
            "stats": stats,
        }
    )  # fmt: skip


def cache_files(path: Path) -> list[Path]:
    """All files of runtime caches inside an artifact."""
    return [file for file in path.rglob("*") if file.is_file() and "runtime_cache" in file.relative_to(path).parts[0]]


def memory(folder: str, name: str, precision: str, calls: int) -> None:
    """Calls of alternating shapes, a quarter of them from and to the host; results are looked at now and then."""
    import torch

    import rewriter

    path = artifact(name, precision, Path(folder))
    shapes = SHAPES[name]
    feeds = [feeds_of(name, case, 1) for case in shapes]
    device = [{key: torch.from_numpy(value).cuda() for key, value in feed.items()} for feed in feeds]
    torch.cuda.synchronize()
    at_start = used_bytes()
    started = time.perf_counter()
    worst = 0.0
    with rewriter.load(path, provider="cuda") as function:
        expected = [function(**feed) for feed in feeds]
        for turn in range(20 * len(shapes)):
            _alternate(function, turn, feeds, device)
        torch.cuda.synchronize()
        warm, rss_warm = used_bytes(), resident_bytes()
        tenth = warm
        for turn in range(calls):
            outputs = _alternate(function, turn, feeds, device)
            if turn % 97 == 0:
                outputs = {k: v if isinstance(v, np.ndarray) else _array(v) for k, v in outputs.items()}
                worst = max(worst, compare(outputs, expected[turn % len(shapes)])["max"])
            if turn == calls // 10:
                del outputs
                torch.cuda.synchronize()
                tenth = used_bytes()
        outputs = {}
        torch.cuda.synchronize()
        end, rss_end = used_bytes(), resident_bytes()
        stats = function.stats()
    emit(
        {
            "model": name, "precision": precision, "shapes": len(set(shapes)), "calls": calls,
            "seconds": time.perf_counter() - started, "MB at start": at_start / 1e6, "MB warm": warm / 1e6,
            "MB at 10 %": tenth / 1e6, "MB at end": end / 1e6, "growth bytes": end - warm,
            "RSS MB warm": rss_warm / 1e6, "RSS MB at end": rss_end / 1e6, "worst": worst,
            "note": "; ".join(stats["fallbacks"]), "stats": stats,
        }
    )  # fmt: skip


def threads(folder: str, name: str, precision: str, calls: int) -> None:
    """Eight threads on one function, two of them with device tensors, against what one thread got before."""
    import torch

    import rewriter

    path = artifact(name, precision, Path(folder))
    feeds = [feeds_of(name, case, number) for case in SHAPES[name] for number in (1, 2)]
    device = [{key: torch.from_numpy(value).cuda() for key, value in feed.items()} for feed in feeds]
    torch.cuda.synchronize()
    counts = {"bit-equal": 0, "different": 0, "errors": 0}
    said: list[str] = []
    worst = [0.0]
    lock = threading.Lock()
    with rewriter.load(path, provider="cuda") as function:
        expected = [function(**feed) for feed in feeds]

        def work(thread: int) -> None:
            order = np.random.default_rng(thread).integers(0, len(feeds), calls)
            for index in order:
                try:
                    found = (
                        function(**feeds[index])
                        if thread > 1
                        else _arrays(function.run(device[index], device_outputs=True))
                    )
                    difference = compare(found, expected[index])["max"]
                    equal = all(np.array_equal(found[key], expected[index][key]) for key in found)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is counted and told
                    with lock:
                        counts["errors"] += 1
                        said.append(f"{type(error).__name__}: {error}"[:200])
                    continue
                with lock:
                    counts["bit-equal"] += equal
                    counts["different"] += not difference <= SAME
                    worst[0] = max(worst[0], difference)

        started = time.perf_counter()
        workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(THREADS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - started
        stats = function.stats()
    emit(
        {
            "model": name, "precision": precision, "threads": THREADS, "calls": THREADS * calls, "seconds": seconds,
            **counts, "worst": worst[0], "note": "; ".join(dict.fromkeys([*said[:3], *stats["fallbacks"]])),
            "stats": stats,
        }
    )  # fmt: skip


def _alternate(function: Any, turn: int, feeds: Sequence[Any], device: Sequence[Any]) -> Any:
    """Call number `turn`: the next shape, each fourth time round from and to the host."""
    index = turn % len(feeds)
    if (turn // len(feeds)) % 4 == 0:
        return function(**feeds[index])
    return function.run(device[index], device_outputs=True)


def _arrays(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: _array(value) for name, value in outputs.items()}


def _array(value: Any) -> np.ndarray:
    """A device tensor on the host, by the way that PyTorch's users go."""
    import torch

    return torch.from_dlpack(value).cpu().numpy()


def used_bytes() -> int:
    """Bytes in use on the device, of all processes."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def resident_bytes() -> int:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return 0
