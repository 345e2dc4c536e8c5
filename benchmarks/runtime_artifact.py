"""Artifacts from a machine without a GPU, on one with: the right engines run, those of another version fall back.

    PYTHON benchmarks/runtime_artifact.py FOLDER --make      where there is no GPU, once with each TensorRT-RTX
    python benchmarks/runtime_artifact.py FOLDER [--json PATH] [--timeout SECONDS]      on the GPU

PYTHON is the interpreter of an environment with this project and one version of TensorRT-RTX. Each run of --make
converts a small hybrid network (two engines around a native node), FP32 and FP16, to FOLDER/VERSION/PRECISION, with
inputs and the native outputs of the machine that made it beside it. About half a megabyte a version.

On the GPU every artifact is loaded. With engines of the TensorRT-RTX that is installed there, every call must use all
engines, also with strict=True, and agree. With engines of another version every call must run natively, be counted
with its reason in `stats()`, and agree; strict=True must raise. The exit status is 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path
from _options import add_metrics_options, parse, recorded
from _runtime_bench import compare, emit, report, run_experiments, tables
from _skeleton import seeded
from onnx import ModelProto, TensorProto, helper, numpy_helper

add_project_to_path()

#: Largest max|difference| / max|reference|: engines compute FP32 in TF32.
TOLERANCE = {"FP32": 1e-2, "FP16": 2e-2}
BATCHES = (1, 3, 8)
CHANNELS, SIZE, LAYERS = 16, 16, 4
COLUMNS = (
    "version", "precision", "installed", "engines", "calls", "engine calls", "native calls", "max", "strict", "reason",
    "status",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--provider", default="auto")
    add_metrics_options(parser)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one artifact (default %(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parse(parser)
    if options.worker:
        check(**json.loads(options.worker))
        return 0
    if options.make:
        make(options.folder)
        return 0
    experiments = [
        {
            "folder": str(options.folder),
            "name": str(path.parent.relative_to(options.folder)),
            "provider": options.provider,
        }
        for path in sorted(options.folder.glob("*/*/data.npz"))
    ]
    results = run_experiments(__file__, experiments, options.timeout, options.json, options=recorded(options))
    report("Artifacts that were built without a GPU", results, COLUMNS)
    good = all("failed" not in r and all(row["status"] == "ok" for row in r["rows"]) for r in results)
    return 0 if results and good else 1


def render(document: Mapping[str, Any]) -> str:
    """One line an artifact."""
    return tables(document["results"], COLUMNS)


def network() -> ModelProto:
    """Input x [batch, 16, 16, 16] through two times four convolutions; the Softsign between them stays native."""
    nodes, weights, value = [], [], "x"
    scale = np.float32((2 / (CHANNELS * 9)) ** 0.5)
    for layer in range(2 * LAYERS):
        if layer == LAYERS:
            nodes.append(helper.make_node("Softsign", [value], ["middle"], name="middle"))
            value = "middle"
        weight = seeded(7000 + layer, (CHANNELS, CHANNELS, 3, 3)) * scale
        weights.append(numpy_helper.from_array(weight, f"weight_{layer}"))
        nodes.append(helper.make_node("Conv", [value, f"weight_{layer}"], [f"c{layer}"], f"conv_{layer}", pads=[1] * 4))
        value = "y" if layer == 2 * LAYERS - 1 else f"r{layer}"
        nodes.append(helper.make_node("LeakyRelu", [f"c{layer}"], [value], f"relu_{layer}", alpha=0.2))
    sizes = ["batch", CHANNELS, SIZE, SIZE]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "two_engines", *ends, weights)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


def make(folder: Path) -> None:
    """Converts with the TensorRT-RTX of this interpreter."""
    from rewriter import Converter, load

    samples = [{"x": seeded(batch, (batch, CHANNELS, SIZE, SIZE))} for batch in (1, max(BATCHES))]
    for precision in TOLERANCE:
        with Converter(
            model=network(), backend="tensorrt_rtx", precision_mode=precision, node_denylist=["^middle$"],
            use_dynamic_shape=True, dynamic_shape_profile_strategy="Range", progress=False,
            allow_build_at_runtime=False,
        ) as converter:  # fmt: skip
            converter.convert()
            converter.build(lambda: iter(samples))
            converter.save(folder / ".new", overwrite=True)
        version = json.loads((folder / ".new" / "manifest.json").read_text(encoding="utf-8"))["engines"][0]["version"]
        out = folder / version / precision
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        shutil.move(folder / ".new", out / "artifact")
        data = {}
        with load(out / "artifact", execution="native") as native:
            for batch in BATCHES:
                data[f"x.{batch}"] = seeded(100 + batch, (batch, CHANNELS, SIZE, SIZE))
                data[f"y.{batch}"] = native(x=data[f"x.{batch}"])["y"]
        np.savez_compressed(out / "data.npz", **data)
        megabytes = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6
        print(f"{out}: {len(list((out / 'artifact').rglob('*.engine')))} engines, {megabytes:.2f} MB")


def check(folder: str, name: str, provider: str) -> None:
    """One artifact; a worker's whole work."""
    import rewriter

    path = Path(folder) / name
    version, precision = path.parts[-2:]
    installed = installed_version()
    with np.load(path / "data.npz") as file:
        data = {key: file[key] for key in file.files}
    with rewriter.load(path / "artifact", provider=provider) as function:
        # Three rounds: shapes are discovered, addresses are fixed, a graph is captured.
        found = [compared(function, data, batch) for _ in range(3) for batch in BATCHES]
        stats = function.stats()
    row = {
        "version": version,
        "precision": precision,
        "installed": installed,
        "engines": stats["engines"],
        "calls": stats["calls"],
        "engine calls": stats["engine_calls"],
        "native calls": stats["native_calls"],
        "max": max(found),
        "strict": strictly(path / "artifact", provider, data),
        "reason": "; ".join(stats["fallbacks"]) or "-",
        "stats": stats,
    }
    emit({**row, "status": judged(row, fits=version == installed, tolerance=TOLERANCE[precision])})


def compared(function: Any, data: Mapping[str, np.ndarray], batch: int) -> float:
    """The difference of one call from the native outputs of the machine that made the artifact."""
    return float(compare(function(x=data[f"x.{batch}"]), {"y": data[f"y.{batch}"]})["max"])


def strictly(path: Path, provider: str, data: Mapping[str, np.ndarray]) -> str:
    """Whether strict=True "passes", or with which words it refuses."""
    import rewriter

    try:
        with rewriter.load(path, provider=provider, strict=True) as function:
            for batch in BATCHES:
                compared(function, data, batch)
    except rewriter.ConversionError as error:
        return f"raises: {error}"[:200]
    return "passes"


def judged(row: Mapping[str, Any], *, fits: bool, tolerance: float) -> str:
    """The word "ok", or what is not as it must be."""
    faults = [] if row["max"] <= tolerance else [f"differs by {row['max']:.1e}"]
    if fits:
        faults += [] if row["engine calls"] == row["calls"] else ["not every call used an engine"]
        faults += [] if row["strict"] == "passes" else ["strict=True does not pass"]
        faults += [] if row["reason"] == "-" else ["engine nodes fell back"]
    else:
        faults += [] if row["native calls"] == row["calls"] else ["an engine of another version ran"]
        faults += [] if row["strict"] != "passes" else ["strict=True does not raise"]
        faults += [] if row["reason"] != "-" else ["no reason was counted"]
    return "; ".join(faults) or "ok"


def installed_version() -> str:
    """The TensorRT-RTX of this interpreter; "none" without one."""
    try:
        import tensorrt_rtx
    except ImportError:
        return "none"
    return str(tensorrt_rtx.__version__)


if __name__ == "__main__":
    sys.exit(main())
