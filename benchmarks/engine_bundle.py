"""Makes a bundle of engines with inputs and expected outputs, for `engine_run.py` on a machine with a GPU.

    python benchmarks/engine_bundle.py FOLDER [--only NAME...] [--python PYTHON]

Each zoo model is converted and its engines are built here, with no GPU. For every engine and every sample the native
segment runs in ONNX Runtime on the values that the whole native model gives at its boundary; these values and results
go beside the engine. PYTHON is the interpreter of an environment with this project and the TensorRT-RTX that builds
(an engine runs only with the version that built it; on Hopper that is 1.4.0.76); default: this one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import add_project_to_path
from zoo import MODELS, UnavailableError, load

add_project_to_path()

#: Largest max|difference| / max|expected|: what TF32 may cost, in which TensorRT-RTX computes FP32 (RESULTS.md).
TOLERANCE = 1e-2
#: Small enough to be carried about; the large classifiers are of the same ops.
DEFAULT = (
    "MobileNetV2", "MobileNetV3Small", "bert_like", "gpt_like", "lstm", "gru", "bilstm", "unet_dynamic",
    "uint8_preprocessing", "mixed_float16", "detector_nms", "while_loop", "cond", "multi_io", "gather_mix", "fer",
    "deeplc",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(DEFAULT))
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with open_builder(options.python) as backend:
        for name in options.only:
            try:
                count = bundle(name, options.folder / name, backend)
            except UnavailableError as error:
                print(f"{name}: skipped, {error}", flush=True)
                continue
            print(f"{name}: {count} engine(s), {backend.flavour} {backend.version}", flush=True)
    return 0


def bundle(name: str, folder: Path, backend: Any) -> int:
    """Writes the engines of one model with their data; returns how many there are."""
    from rewriter import Converter
    from rewriter.backends.base import BuiltEngine
    from rewriter.runtime.inputs import sample_feeds

    with tempfile.TemporaryDirectory() as scratch:
        model = load(name, Path(scratch))
        with Converter(model=model.model, backend=backend, progress=False) as converter:
            converter.convert()
            converter.build(lambda: iter(model.samples))
            done = next(iter(converter._tracks.values())).conversion
            feeds = list(sample_feeds(done.source.signature, model.samples))
            values = [boundary_values(done.model, done.result.plan.segments, feed) for feed in feeds]
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            entries = []
            for segment in done.result.plan.segments:
                build = done.result.builds[segment.segment.name]
                if isinstance(build.outcome, BuiltEngine) and not segment.segment.scope:
                    shutil.copyfile(build.outcome.path, folder / f"{segment.segment.name}.engine")
                    entries.append(write_samples(folder, segment, build.profiles, values))
    (folder / "bundle.json").write_text(
        json.dumps({"tolerance": 1e-3 if "float16" in name else 1e-4, "engines": entries})
    )
    return len(entries)


def boundary_values(model: Any, segments: Sequence[Any], feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values of all segments' inputs and outputs in one native run."""
    from passes.graph.value_types import collect_infos
    from rewriter.runtime.native import NativeSession

    names = {t.tensor for s in segments if not s.segment.scope for t in (*s.inputs, *s.outputs)} - set(feed)
    proto = model.copy_proto()
    infos = collect_infos(model.proto)
    present = {o.name for o in proto.graph.output}
    proto.graph.output.extend(infos.get(n, onnx.ValueInfoProto(name=n)) for n in sorted(names - present))
    outputs = NativeSession(model.with_proto(proto), sorted(names)).run(feed)
    return {**feed, **outputs}


def write_samples(
    folder: Path, segment: Any, profiles: Any, values: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """Writes what goes in and what must come out; names are numbered, for they may hold any character."""
    inputs = [spec.tensor for spec in segment.inputs]
    outputs = [spec.tensor for spec in segment.outputs]
    arrays = {}
    for number, value in enumerate(values):
        for kind, names in (("in", inputs), ("out", outputs)):
            arrays |= {f"{number}.{kind}.{i}": value[name] for i, name in enumerate(names)}
    name = segment.segment.name
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    by_values = sorted({n for profile in profiles for n, item in profile.items() if item.is_values})
    return {"name": name, "samples": len(values), "inputs": inputs, "outputs": outputs, "shape_tensors": by_values}


def open_builder(python: str) -> Any:
    """A backend that builds with the TensorRT-RTX of another interpreter, or with this one's; the caller closes it."""
    from rewriter.backends import open_backend
    from rewriter.backends.client import ProcessBackend
    from rewriter.backends.tensorrt_rtx import FLAVOUR

    if python == sys.executable:
        return open_backend("tensorrt_rtx")
    return ProcessBackend(FLAVOUR, command=(python, "-m", "rewriter.backends.worker", "--module", FLAVOUR.module))


if __name__ == "__main__":
    sys.exit(main())
