"""How long does a spliced artifact take to load, beside its ONNX file in ONNX Runtime and TensorFlow's SavedModel?

    python benchmarks/load_time.py [--only NAME ...] [--rounds 3] [--signatures 1 2 4] [--json FILE]

Every load is the first one of a process of its own; the systems take turns, and the files are in the page cache:

    TensorFlow    tf.saved_model.load, and its signature
    ONNX          an ONNX Runtime session of our export, before any pass
    spliced       such a session of the artifact's model.onnx
    ours          rewriter.load(artifact, execution="native"): every file's sha256 is checked, engines included

"import s" is what importing the packages took, "load ms" the load alone, "first call ms" the call after it. "again ms"
is a second load in the same process. "hashes ms" is the part of ours that goes into checking hashes: the artifact read
with and without (`load_artifact(check_hashes=False)` compares sizes only), each the best of some reads. A second table
loads a model with several signatures, whose weights the artifact keeps once: the default signature, then all of them.

Every figure is the least of all processes, since what else the machine does only adds to it; in brackets the median.
"CPU ms" is the processor time of the load, all threads together. The exit status is 1 when a load fails, or ours takes
more processor time than `--limit` times the ONNX session, and its bytes at `--hash_rate` megabytes a second on top.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path, format_table
from _options import add_conversion_options, add_metrics_options, converter_arguments, export_metrics, parse
from _plots import Bars, Chart
from zoo import MODELS as ZOO

add_project_to_path()

#: A large and a small network of convolutions, a transformer, a detector.
MODELS = ("ResNet50", "MobileNetV3Small", "bert_like", "detector_nms")
TENSORFLOW, PLAIN, SPLICED, OURS = SYSTEMS = ("TensorFlow", "ONNX", "spliced", "ours")
#: Reads of an artifact of which the best counts.
READS = 3
#: Width of the layers that all signatures of the second table share.
SHARED = 1024
TIMEOUT = 600


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parse(words)
    if arguments.worker:
        print(json.dumps(_WORK[arguments.worker](**json.loads(arguments.work))))
        return 0
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="load-time-") as folder:
        for name in arguments.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += measure_model(name, Path(folder, name), arguments)
        several = []
        for count in arguments.signatures:
            print(f"{count} signature(s) ...", file=sys.stderr, flush=True)
            several.append(measure_signatures(count, Path(folder, f"signatures{count}"), arguments))
    document = {"rows": rows, "signatures": several, "limit": arguments.limit, "hash_rate": arguments.hash_rate}
    print(render(document))
    export_metrics(arguments, rows, **{name: value for name, value in document.items() if name != "rows"})
    return 0 if not slow(document) else 1


def render(document: Mapping[str, Any]) -> str:
    """Both tables, and the verdict."""
    parts = [format_table([_shown(row) for row in document["rows"]])]
    if document["signatures"]:
        parts += [
            "### Several signatures",
            f"Of one SavedModel whose signatures share {SHARED}x{SHARED} layers; the least of all processes.",
            format_table([_shown_signatures(row) for row in document["signatures"]]),
        ]
    late = slow(document)
    verdict = f"PASS: ours loads within {document['limit']:g} times the ONNX session and the hashes of its bytes."
    parts.append("\n\n".join(f"FAILED {text}" for text in late) if late else verdict)
    return "\n\n".join(parts)


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """How many times as long TensorFlow and ours take, at least and at most, as the ONNX session takes."""
    ratios = {system: [] for system in (TENSORFLOW, OURS)}  # type: dict[str, list[float]]
    for rows in _by_model(document).values():
        for system, found in ratios.items():
            found.append(rows[system]["load_ms"] / rows[PLAIN]["load_ms"])
    return {
        f"{system.lower()}_{word}": f"{of(found):.1f}"
        for system, found in ratios.items()
        for word, of in (("least", min), ("most", max))
        if found
    }


def plots(document: Mapping[str, Any]) -> dict[str, Chart]:
    """The loads, side by side."""
    models = _by_model(document)
    series = {system: [rows[system]["load_ms"] for rows in models.values()] for system in SYSTEMS}
    title = "Load of a model in a new process, packages imported, files in the page cache"
    return {"load": Bars(title, "milliseconds", list(models), series, log=True, places=0)} if models else {}


def slow(document: Mapping[str, Any]) -> list[str]:
    """What takes longer than it may, in words."""
    found = []
    for model, rows in _by_model(document).items():
        ours, plain = rows[OURS], rows[PLAIN]
        hashes = ours["MB"] / document["hash_rate"] * 1e3
        allowed = document["limit"] * plain["load_cpu_ms"] + hashes
        if ours["load_cpu_ms"] > allowed:
            took = f"{ours['load_cpu_ms']:.0f} ms of processor time"
            found.append(f"{model}: ours loads in {took}, allowed are {allowed:.0f} ms")
    return found


def measure_model(name: str, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a system."""
    folder.mkdir()
    made = _child("make", {"name": name, "folder": str(folder), "options": converter_arguments(arguments)})
    paths = {TENSORFLOW: made["saved_model"], PLAIN: made["onnx"], SPLICED: made["artifact"], OURS: made["artifact"]}
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    for turn in range(arguments.rounds):
        for system in SYSTEMS[:: -1 if turn % 2 else 1]:
            work = {"system": system, "path": paths[system], "inputs": made["inputs"]}
            runs[system].append(_child("load", work))
    rows = []
    for system, found in runs.items():
        row = {"model": name, "system": system, "MB": _megabytes(Path(paths[system]), system), "runs": found}
        for figure in ("import_s", "load_ms", "load_cpu_ms", "first_call_ms", "again_ms", "hashes_ms", "peak_MB"):
            values = [run[figure] for run in found if figure in run]
            if values:
                row[figure] = min(values)
        row["load_median_ms"] = statistics.median(run["load_ms"] for run in found)
        rows.append({**row, "engines": made["engines"] if system == OURS else None})
    return rows


def measure_signatures(count: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads of a model with so many signatures."""
    folder.mkdir()
    made = _child("make_signatures", {"count": count, "folder": str(folder), "options": converter_arguments(arguments)})
    runs = [_child("load_signatures", made) for _ in range(arguments.rounds)]
    row = {name: min(run[name] for run in runs) for name in runs[0]}
    saved, artifact = Path(made["saved_model"]), Path(made["artifact"])
    return {
        "signatures": count,
        "SavedModel MB": _megabytes(saved, TENSORFLOW),
        "artifact MB": _megabytes(artifact, OURS),
        **row,
    }


# --- what child processes do


def make(name: str, folder: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The forms of one model, engines included, and the file of a sample."""
    from _zoo_artifacts import prepare

    forms = prepare(name, Path(folder), engines=True, **options)
    inputs = Path(folder, "inputs.npz")
    np.savez(inputs, **forms.zoo.samples[0])
    return {
        "saved_model": str(forms.saved_model),
        "onnx": str(forms.onnx),
        "artifact": str(forms.artifact),
        "inputs": str(inputs),
        "engines": len(list(forms.artifact.glob("engines/*/*.engine"))),
    }


def load(system: str, path: str, inputs: str) -> dict[str, Any]:
    """Loads once, calls once, loads again."""
    with np.load(inputs) as file:
        sample = {name: file[name] for name in file.files}
    started = time.perf_counter()
    opener = _OPENERS[system]()
    imported, busy = time.perf_counter(), time.process_time()
    call = opener(path)
    loaded, busy = time.perf_counter(), time.process_time() - busy
    call(sample)
    called = time.perf_counter()
    opener(path)
    again = time.perf_counter()
    found = {
        "import_s": imported - started,
        "load_ms": 1e3 * (loaded - imported),
        "load_cpu_ms": 1e3 * busy,
        "first_call_ms": 1e3 * (called - loaded),
        "again_ms": 1e3 * (again - called),
        "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    return {**found, "hashes_ms": _hashes(path)} if system == OURS else found


def make_signatures(count: int, folder: str, options: Mapping[str, Any]) -> dict[str, str]:
    """A SavedModel whose signatures share most weights, and the artifact of all of them."""
    import tensorflow as tf

    from rewriter import Converter

    random = np.random.default_rng(7)

    def matrix(columns: int) -> Any:
        return tf.Variable((random.standard_normal((SHARED, columns)) / 32).astype(np.float32))

    module = tf.Module()
    module.shared, module.own = [matrix(SHARED) for _ in range(4)], [matrix(16) for _ in range(count)]

    def signature(head: Any) -> Any:
        @tf.function(input_signature=[tf.TensorSpec((None, SHARED), tf.float32, name="x")])
        def run(x: Any) -> dict[str, Any]:
            for weights in module.shared:
                x = tf.tanh(tf.matmul(x, weights))
            return {"y": tf.matmul(x, head)}

        return run.get_concrete_function()

    keys = ["serving_default", *(f"head{number}" for number in range(1, count))]
    saved, artifact = Path(folder, "saved_model"), Path(folder, "artifact")
    tf.saved_model.save(module, str(saved), signatures=dict(zip(keys, map(signature, module.own), strict=True)))
    with Converter(str(saved), input_saved_model_signature_key=keys, progress=False, **options) as converter:
        converter.convert()
        converter.save(artifact)
    return {"saved_model": str(saved), "artifact": str(artifact)}


def load_signatures(saved_model: str, artifact: str) -> dict[str, float]:
    """Milliseconds: ours with one signature, with all; TensorFlow's, which loads all."""
    opener = _OPENERS[TENSORFLOW]()
    started = time.perf_counter()
    opener(saved_model)
    tensorflow = time.perf_counter()
    import rewriter.runtime.native
    from rewriter.runtime.loading import load as load_ours

    rewriter.runtime.native.import_onnxruntime()
    begun = time.perf_counter()
    with load_ours(artifact, execution="native") as function:
        one = time.perf_counter()
        for key in function.signatures:
            function.signatures[key]  # the look loads it
        every = time.perf_counter()
    return {
        "TensorFlow ms": 1e3 * (tensorflow - started),
        "ours, the default ms": 1e3 * (one - begun),
        "ours, all ms": 1e3 * (every - begun),
    }


def _open_tensorflow() -> Callable[[str], Callable[[Mapping[str, Any]], Any]]:
    import tensorflow as tf

    tf.constant(0)  # starts its runtime

    def opener(path: str) -> Callable[[Mapping[str, Any]], Any]:
        loaded = tf.saved_model.load(path)
        signature = loaded.signatures["serving_default"]

        def call(sample: Mapping[str, Any]) -> Any:
            assert loaded is not None  # a signature does not keep its model alive
            return signature(**{name: tf.constant(value) for name, value in sample.items()})

        return call

    return opener


def _open_onnxruntime() -> Callable[[str], Callable[[Mapping[str, Any]], Any]]:
    import onnxruntime

    def opener(path: str) -> Callable[[Mapping[str, Any]], Any]:
        file = Path(path, "model.onnx") if Path(path).is_dir() else Path(path)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        return lambda sample: session.run(None, _by_place(names, sample))

    return opener


def _open_ours() -> Callable[[str], Callable[[Mapping[str, Any]], Any]]:
    import rewriter
    from rewriter.runtime.native import import_onnxruntime

    import_onnxruntime()
    load_ours = rewriter.load
    return lambda path: load_ours(path, execution="native").run


_OPENERS = {TENSORFLOW: _open_tensorflow, PLAIN: _open_onnxruntime, SPLICED: _open_onnxruntime, OURS: _open_ours}
_WORK: dict[str, Callable[..., Any]] = {
    "make": make,
    "load": load,
    "make_signatures": make_signatures,
    "load_signatures": load_signatures,
}


def _by_place(names: Sequence[str], sample: Mapping[str, Any]) -> dict[str, Any]:
    """The sample under an ONNX file's own names of inputs, which are the public ones with or without a suffix."""
    return {name: sample.get(name, sample.get(name.split(":")[0])) for name in names}


def _hashes(path: str) -> float:
    """Milliseconds that hashing the artifact's files takes: read with and without, each the best of some."""
    from rewriter.artifact import load_artifact

    def best(check: bool) -> float:
        times = []
        for _ in range(READS):
            started = time.perf_counter()
            load_artifact(path, check_hashes=check)
            times.append(time.perf_counter() - started)
        return min(times)

    return 1e3 * (best(True) - best(False))


def _megabytes(path: Path, system: str) -> float:
    """What the system reads on disk; of an artifact, plain ONNX Runtime reads the model and its weights only."""
    if path.is_file():
        return path.stat().st_size / 1e6
    files = path.glob("model.onnx*") if system == SPLICED else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def _child(work: str, arguments: Mapping[str, Any]) -> Any:
    """The answer of one piece of work, done in a process of its own.

    Raises:
        RuntimeError: it failed; the last line of what it said.
    """
    command = [sys.executable, __file__, "--worker", work, "--work", json.dumps(arguments)]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, timeout=TIMEOUT, check=False, env=quiet, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"{work} {arguments.get('name') or arguments.get('system') or ''}: {said}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _by_model(document: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Model -> system -> row."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in document["rows"]:
        found.setdefault(row["model"], {})[row["system"]] = row
    return found


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    told = f"{row['load_ms']:.0f} ({row['load_median_ms']:.0f})"
    return {
        "model": row["model"],
        "system": row["system"],
        "MB on disk": f"{row['MB']:.1f}",
        "import s": f"{row['import_s']:.2f}",
        "load ms": told,
        "CPU ms": f"{row['load_cpu_ms']:.0f}",
        "first call ms": f"{row['first_call_ms']:.1f}",
        "again ms": f"{row['again_ms']:.0f}",
        "hashes ms": f"{row['hashes_ms']:.0f}" if "hashes_ms" in row else None,
        "peak MB": f"{row['peak_MB']:.0f}",
        "engines": row["engines"],
    }


def _shown_signatures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: f"{value:.1f}" if name.endswith("MB") else f"{value:.0f}" if name.endswith("ms") else value
        for name, value in row.items()
    }


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(MODELS), metavar="NAME", help="of zoo.py")
    parser.add_argument("--signatures", nargs="*", type=int, default=[1, 2, 4], metavar="N", help="default 1 2 4")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="processes of each system (default 3)")
    parser.add_argument("--limit", type=float, default=2.0, help="most that ours may take over ONNX (default 2)")
    parser.add_argument("--hash_rate", type=float, default=100.0, metavar="MB/S", help="least, of hashes (default 100)")
    add_conversion_options(parser, ("precision", "minimum_segment_size", "no_tf32"), precision="FP16")
    add_metrics_options(parser)
    parser.add_argument("--worker", choices=list(_WORK), help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parse(parser, words)
    unknown = [name for name in options.only if name not in ZOO]
    if unknown:
        parser.error(f"no model {', '.join(unknown)} in the zoo; there are: {', '.join(ZOO)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
