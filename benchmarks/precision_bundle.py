"""Makes engines of every precision, with inputs and expected outputs, for `precision_gpu.py` on a machine with a GPU.

    python benchmarks/precision_bundle.py FOLDER [--cache FOLDER] [--models NAME...] [--modes MODE...]
                                          [--python PYTHON] [--part-mb SIZE]

Two machines take part, and nothing need be installed from a network on the second:

1. Here, with no GPU. Each model is lowered whole, as one segment, in every mode, and what TensorRT gets is what the
   emulation runs. PYTHON is the interpreter of an environment with this project and the TensorRT-RTX that the GPU
   needs, for an engine runs only with the version that built it (Hopper: 1.4.0.76); default: this one. It builds the
   engine; where it cannot (1.4 builds nothing quantised without a GPU), the lowered model itself goes into the bundle,
   and step 2 builds it there. Beside each lie the inputs, what the native FP32 model makes of them, and what the
   emulation does. FOLDER gets parts `part-00`, `part-01`, ... of at most SIZE MB (default 52), each complete in
   itself; all of them together are below 200 MB.
2. Carry `benchmarks/precision_gpu.py`, `benchmarks/engine_run.py` and any number of parts over; there, in an
   environment with numpy, torch and that TensorRT-RTX:

       python benchmarks/precision_gpu.py FOLDER/part-00 [FOLDER/part-01 ...] [--json PATH]

   It prints one line an engine. Parts may be run one after the other, in any order.

The ResNet50 has seeded weights of few different values (`precision_models.resnet50_to_carry`), so that gzip makes its
engines small; the others are the trained ones, with 2 000 of their test images. Exit status 1: a mode gave neither
engine nor model.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path, print_table
from engine_bundle import open_builder
from precision_models import QUANTISED, TRAINED, Subject, default_cache, ensure_trained, load_subject, resnet50_to_carry
from precision_table import MODES, QUANTISED_MODES, compare, conversion, run_all

RESNET = "ResNet50"
RESNET_BATCH = 8
IMAGES, IMAGES_BATCH = 2000, 100
PART_MB = 52.0
#: Best compression that is still quick; engines of noise-like weights gain nothing from more.
GZIP_LEVEL = 6


class NotWholeError(RuntimeError):
    """A model did not become one engine; the message says what stayed native."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """One engine in a folder of its own; `data` lies beside the units.

    The folder holds `engine.gz` or, to be built on the GPU, `model.onnx.gz`, and `emulated.npz` and `unit.json`.
    """

    folder: Path
    data: Path

    @property
    def size(self) -> int:
        """Bytes without the data."""
        return sum(file.stat().st_size for file in self.folder.iterdir())


def main() -> int:
    options = _parse()
    add_project_to_path()
    ensure_trained(options.cache, options.models)
    lines, units = [], []
    with tempfile.TemporaryDirectory(prefix="precision-bundle-") as scratch, open_builder(options.python) as backend:
        for name in options.models:
            modes = [mode for mode in options.modes if name not in QUANTISED or mode in QUANTISED_MODES]
            for mode, made in make_units(name, modes, options.cache, Path(scratch), backend):
                lines.append({"model": name, "mode": mode, **line(made)})
                print(f"{name} {mode}: {lines[-1]['status']}", file=sys.stderr, flush=True)
                if isinstance(made, Unit):
                    units.append(made)
        parts = pack(units, options.folder, options.part_mb)
    print_table(lines, ("model", "mode", "engine MB", "carried MB", "rms rel diff", "status"))
    for part, size in parts.items():
        print(f"{part}: {size / 1e6:.1f} MB")
    return 0 if all("carried MB" in entry for entry in lines) else 1


def make_units(
    name: str, modes: Sequence[str], cache: Path, scratch: Path, backend: Any
) -> Iterator[tuple[str, Unit | Exception]]:
    """The engines of one model; a mode that fails gives its exception."""
    subject = resnet50_to_carry(RESNET_BATCH) if name == RESNET else few_images(load_subject(name, cache, scratch))
    data = scratch / f"{name}.npz"
    for mode in modes:
        try:
            yield mode, make_unit(subject, mode, data, scratch / f"{name}.{mode}", backend)
        except Exception as error:  # noqa: BLE001 - whatever happens is this engine's line
            yield mode, error


def few_images(subject: Subject) -> Subject:
    """A trained model with its first `IMAGES` test images in batches of `IMAGES_BATCH`, the engine's only shape."""
    images = np.concatenate([feed["image"] for feed in subject.checks])[:IMAGES]
    checks = tuple({"image": images[i : i + IMAGES_BATCH]} for i in range(0, IMAGES, IMAGES_BATCH))
    assert subject.labels is not None
    return dataclasses.replace(subject, samples=checks[:1], checks=checks, labels=subject.labels[:IMAGES])


def make_unit(subject: Subject, mode: str, data: Path, folder: Path, backend: Any) -> Unit:
    """Converts, and writes the engine with what must come out of it; writes `data` if it is not there yet.

    Raises:
        NotWholeError: something stayed native.
    """
    from rewriter import load

    artifact = folder / "artifact"
    with conversion(subject, mode, quantize_ops=_quantised_ops(mode, backend)) as converter:
        check_whole(converter.report)
        converter.save(artifact)
        facts = write_engine(converter, mode, folder, backend)
    with load(artifact, execution="native") as function:
        native = run_all(function, subject.checks)
    with load(artifact, execution="emulate") as function:
        emulated = run_all(function, subject.checks)
    shutil.rmtree(artifact)
    if not data.is_file():
        write_data(data, subject, native)
    np.savez_compressed(folder / "emulated.npz", **joined(emulated))
    facts |= {"model": subject.name, "mode": mode, "cpu": compare(subject, native, emulated)}
    facts["batch"] = len(subject.samples[0]["image"])
    (folder / "unit.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return Unit(folder, data)


def _quantised_ops(mode: str, backend: Any) -> tuple[str, ...]:
    """What the TensorRT that builds can quantise; the one that lowers here may be another."""
    from passes.precision.recipe import Recipe
    from rewriter.precision.workarounds import avoid_faults

    return avoid_faults(Recipe.of(MODES[mode][0]), backend.flavour, backend.version)[0].quantize_ops


def write_engine(converter: Any, mode: str, folder: Path, backend: Any) -> dict[str, Any]:
    """Writes the engine of the only segment, or its lowered model; returns what the GPU's side must know of it.

    Raises:
        NotWholeError: the engine's inputs and outputs are not the model's.
    """
    from passes.model import to_proto
    from rewriter.backends.base import BuildOptions, BuiltEngine
    from rewriter.manifest import profile_to_json
    from rewriter.precision.options import narrowed_targets

    (build,) = converter._converted("the bundle").result.builds.values()
    signature, boundary = converter.signature, converter.report.engines[0]
    facts: dict[str, Any] = {
        "precision": boundary.precision,
        "backend": backend.flavour,
        "version": backend.version,
        # Public name -> the engine's own.
        "inputs": {spec.name: spec.tensor for spec in signature.inputs},
        "outputs": {spec.name: spec.tensor for spec in signature.outputs},
        "profiles": [profile_to_json(profile) for profile in build.profiles],
    }
    own = {spec.tensor for spec in (*boundary.inputs, *boundary.outputs)}
    if own != {*facts["inputs"].values(), *facts["outputs"].values()}:
        raise NotWholeError(f"the engine's tensors {sorted(own)} are not those of the signature")
    model = build.lowered.segment.model
    options = BuildOptions(targets=narrowed_targets(MODES[mode][0], backend), tf32=mode == "TF32")
    outcome = backend.build(model, build.profiles, options, folder / "engine")
    if isinstance(outcome, BuiltEngine):
        content, name = outcome.path.read_bytes(), "engine.gz"
        outcome.path.unlink()
        facts |= {"build_seconds": outcome.seconds, "bytes": outcome.size}
    else:
        content, name = to_proto(model).SerializeToString(), "model.onnx.gz"
        facts |= {"not_built": outcome.reason, "bytes": 0}
    facts |= {"file": name, "sha256": hashlib.sha256(content).hexdigest()}
    (folder / name).write_bytes(gzip.compress(content, GZIP_LEVEL, mtime=0))
    return facts


def check_whole(report: Any) -> None:
    """Refuses a conversion that is not one engine for everything.

    Raises:
        NotWholeError: it is not; the message has the first reason.
    """
    if len(report.engines) == 1 and report.engines[0].built and not report.native:
        return
    reasons = [f"{engine.name}: {engine.reason}" for engine in report.engines if not engine.built]
    reasons += [f"{verdict.node} ({verdict.op_type}): {verdict.reason}" for verdict in report.native]
    raise NotWholeError(f"{len(report.engines)} engines instead of one; {reasons[0] if reasons else 'no reason known'}")


def write_data(path: Path, subject: Subject, native: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Inputs as bytes with their divisor, the native outputs ("native.NAME"), and the labels if there are any."""
    images = np.concatenate([feed["image"] for feed in subject.checks])
    divisor = np.float32(255 if images.max() <= 1 else 1)
    stored = np.rint(images * divisor).astype(np.uint8)
    assert np.array_equal(stored.astype(np.float32) / divisor, images), "these images are not whole numbers of 0..255"
    arrays = {"image": stored, "divisor": divisor, **{f"native.{n}": value for n, value in joined(native).items()}}
    if subject.labels is not None:
        arrays["labels"] = subject.labels
    np.savez_compressed(path, **arrays)


def joined(outputs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Outputs of several calls, one after the other along the batch."""
    return {name: np.concatenate([each[name] for each in outputs]) for name in outputs[0]}


def pack(units: Sequence[Unit], folder: Path, part_mb: float) -> dict[Path, int]:
    """Distributes units over parts in their order; returns part -> bytes.

    Raises:
        ValueError: one engine with its data is larger than a part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("part-[0-9][0-9]"):
        shutil.rmtree(old)
    limit = part_mb * 1e6
    sizes: dict[Path, int] = {}
    part, there = folder / "part-00", set[Path]()
    for unit in units:
        cost = unit.size + (0 if unit.data in there else unit.data.stat().st_size)
        if sizes.get(part, 0) + cost > limit and part in sizes:
            part, there = folder / f"part-{len(sizes):02}", set()
            cost = unit.size + unit.data.stat().st_size
        if cost > limit:
            raise ValueError(f"{unit.folder.name} takes {cost / 1e6:.1f} MB: give --part-mb more, or leave it out")
        part.mkdir(exist_ok=True)
        shutil.copytree(unit.folder, part / unit.folder.name)
        if unit.data not in there:
            shutil.copyfile(unit.data, part / unit.data.name)
            there.add(unit.data)
        sizes[part] = sizes.get(part, 0) + cost
    return sizes


def line(made: Unit | Exception) -> dict[str, Any]:
    """The table's cells for one engine."""
    if not isinstance(made, Unit):
        return {"status": f"{type(made).__name__}: {' '.join(str(made).split())}"[:200]}
    facts = json.loads((made.folder / "unit.json").read_text(encoding="utf-8"))
    return {
        "engine MB": f"{facts['bytes'] / 1e6:.2f}",
        "carried MB": f"{made.size / 1e6:.2f}",
        "rms rel diff": f"{facts['cpu']['rms_rel_diff']:.1e}",
        "status": f"to be built there ({facts['not_built'][:90]})" if "not_built" in facts else "ok",
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [RESNET, *TRAINED]
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="of trained models; default %(default)s")
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--part-mb", type=float, default=PART_MB)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
