"""Makes what `precision_gpu.py` needs on a machine with a GPU: artifacts of every precision, and what must come out.

    .venv/bin/python benchmarks/precision_bundle.py FOLDER [--cache FOLDER] [--python PYTHON] [--skeletons FOLDER]
                                                           [--models NAME...] [--images]

Two machines take part, and nothing need be installed from a network on the second:

1. Here, with no GPU. Needs TensorFlow, scikit-learn and ONNX Runtime; PYTHON is the interpreter of an environment with
   this project and the TensorRT-RTX that the GPU needs, for an engine runs only with the version that built it
   (Hopper: 1.4.0.76; default: this interpreter). The trained networks (`precision_models.py`, trained when --cache does
   not hold them) are exported, converted in every mode and emulated on all 10 000 test images. Artifacts with engines
   are saved where TensorRT can build without a GPU; 1.4 can build nothing quantised, so for INT8 and FP8 the ranges
   travel, and step 2 converts the exported network with them. ResNet50 travels as its skeleton (`runtime_models.py`,
   from --skeletons when it is there), with ranges.

       .venv/bin/python benchmarks/precision_bundle.py .gpu-precision --python .venv-rtx14/bin/python

2. Carry FOLDER and the repository over; there, in an environment with numpy, onnx, onnx-graphsurgeon, torch,
   onnxruntime-gpu and that TensorRT-RTX:

       python benchmarks/precision_gpu.py .gpu-precision --json $OUT/precision.json --table $OUT/precision.md

The folder takes about 25 MB: the test images are drawn again there, from the 1797 digits that they are made of, and
checked by their SHA-256; --images carries them instead (28 MB more). Exit status 1: a mode could not be made.
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
from _common import add_project_to_path, print_table
from _precision_carry import (
    BATCHES,
    EIGHT_BIT_MODES,
    LOGITS,
    MODELS,
    MODES_OF,
    RESNET,
    arithmetic_text,
    batches_of,
    convert,
    digest,
    draw_test_images,
    ranges_file,
    samples_of,
    source_of,
)  # fmt: skip
from engine_bundle import open_builder
from precision_models import (
    BATCH,
    QUANTISED,
    TRAINED,
    Subject,
    default_cache,
    ensure_trained,
    load_subject,
    versioned,
)  # fmt: skip

#: Calibration batches of ResNet50.
RESNET_CALIBRATION = 4


def main() -> int:
    options = _parse()
    add_project_to_path()
    ensure_trained(options.cache, [name for name in options.models if name in TRAINED])
    options.folder.mkdir(parents=True, exist_ok=True)
    write_digits(options.folder, options.cache, images=options.images)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="precision-bundle-") as scratch, open_builder(options.python) as backend:
        for name in options.models:
            if name == RESNET:
                rows += resnet(options.folder, options.skeletons, Path(scratch), backend)
            else:
                subject = load_subject(name, options.cache, Path(scratch))
                rows += trained(subject, options.folder, Path(scratch), backend)
        facts = {"backend": backend.flavour, "version": backend.version, "rows": rows}
    (options.folder / "bundle.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print_table(rows, ("model", "mode", "engine", "arithmetic", "native top-1", "emulated top-1", "flips", "status"))
    size = sum(file.stat().st_size for file in options.folder.rglob("*") if file.is_file())
    print(f"{options.folder}: {size / 1e6:.1f} MB")
    return 0 if all(row["status"] == "ok" for row in rows) else 1


def trained(subject: Subject, folder: Path, scratch: Path, backend: Any) -> list[dict[str, Any]]:
    """Exports one trained network and converts and emulates it in each of its modes; a line each."""
    source = export(subject, folder)
    assert subject.labels is not None
    images = np.concatenate([feed["image"] for feed in subject.checks])
    expected: dict[str, np.ndarray] = {"labels": subject.labels.astype(np.uint8)}
    rows = []
    for mode in MODES_OF[subject.name]:
        try:
            rows.append(trained_mode(subject, mode, source, images, expected, scratch, backend, folder))
        except Exception as error:  # noqa: BLE001 - whatever happens is this mode's line
            rows.append({"model": subject.name, "mode": mode, "status": _one_line(error)})
        print(f"{subject.name} {mode}: {rows[-1]['status']}", file=sys.stderr, flush=True)
    np.savez_compressed(folder / f"{subject.name}.expected.npz", **expected)
    return rows


def trained_mode(
    subject: Subject,
    mode: str,
    source: Path,
    images: np.ndarray,
    expected: dict[str, np.ndarray],
    scratch: Path,
    backend: Any,
    folder: Path,
) -> dict[str, Any]:
    """One mode: what travels goes into `folder`, what must come out into `expected`; returns the table's line."""
    name, quantised = subject.name, mode in EIGHT_BIT_MODES
    # With engines the artifact itself travels; without them only what `ready` cannot find out on the other machine.
    out = (scratch if quantised else folder) / f"{name}.{mode}"
    inputs = () if name in QUANTISED or not quantised else subject.calibration
    facts = convert(
        source, mode, out, samples=() if quantised else samples_of(name), inputs=inputs, backend=backend
    )  # fmt: skip
    if quantised and (out / "calibration.json").is_file():
        shutil.copyfile(out / "calibration.json", ranges_file(folder, name, mode))
    if "native" not in expected:
        expected |= answers("native", run_all(out, "native", images))
    expected |= answers(mode, run_all(out, "emulate", images))
    labels = expected["labels"]
    whole = quantised or facts["built_coverage"] == 1
    return {
        "model": name,
        "mode": mode,
        "engine": "to be built there" if quantised else f"{facts['engine_bytes'] / 1e6:.2f} MB",
        "arithmetic": facts["precision"] if quantised else arithmetic_text(facts),
        "native top-1": f"{100 * np.mean(expected['native'] == labels):.2f}",
        "emulated top-1": f"{100 * np.mean(expected[mode] == labels):.2f}",
        "flips": int(np.count_nonzero(expected[mode] != expected["native"])),
        "status": "ok" if whole else f"partly built: {'; '.join(facts['not_built'] or facts['native'])}"[:200],
    }


def run_all(artifact: Path, execution: str, images: np.ndarray) -> np.ndarray:
    """Logits of all images, [N, 10], computed on the CPU."""
    from rewriter import load

    with load(artifact, execution=execution) as function:
        return np.concatenate([np.asarray(function(image=part)["logits"]) for part in batches_of(images, BATCH)])


def answers(key: str, logits: np.ndarray) -> dict[str, np.ndarray]:
    """What travels of the logits: the answers, and the first `LOGITS` of them whole."""
    return {key: logits.argmax(-1).astype(np.uint8), f"{key}.logits": logits[:LOGITS].astype(np.float32)}


def export(subject: Subject, folder: Path) -> Path:
    """The network as an ONNX file, in which its signature's names are those of inputs and outputs."""
    import onnx

    from passes.model import to_proto
    from rewriter.frontend import load_source

    source = load_source(subject.model)
    for spec in (*source.signature.inputs, *source.signature.outputs):
        assert spec.name == spec.tensor, f"{spec.name} is called {spec.tensor} in ONNX"
    path = folder / f"{subject.name}.onnx"
    onnx.save(to_proto(source.model), str(path))
    return path


def resnet(folder: Path, skeletons: Path | None, scratch: Path, backend: Any) -> list[dict[str, Any]]:
    """The skeleton of ResNet50 and its ranges; everything else is made on the GPU's machine."""
    from runtime_models import feeds_of, file_of, make

    name = f"{file_of(RESNET)}.skeleton"
    if skeletons is not None and (skeletons / name).is_file():
        shutil.copyfile(skeletons / name, folder / name)
    else:
        make(RESNET, folder)
    shutil.copyfile(folder / name, scratch / name)
    source = source_of(scratch, RESNET)
    inputs = [feeds_of(RESNET, (max(BATCHES) // 4,), 100 + number) for number in range(RESNET_CALIBRATION)]
    rows = []
    for mode in MODES_OF[RESNET]:
        row: dict[str, Any] = {"model": RESNET, "mode": mode, "engine": "to be built there", "status": "ok"}
        if mode in EIGHT_BIT_MODES:
            try:
                row["arithmetic"] = convert(source, mode, scratch / mode, inputs=inputs, backend=backend)["precision"]
                shutil.copyfile(scratch / mode / "calibration.json", ranges_file(folder, RESNET, mode))
            except Exception as error:  # noqa: BLE001 - whatever happens is this mode's line
                row["status"] = _one_line(error)
            shutil.rmtree(scratch / mode, ignore_errors=True)
        rows.append(row)
        print(f"{RESNET} {mode}: {row['status']}", file=sys.stderr, flush=True)
    return rows


def write_digits(folder: Path, cache: Path, *, images: bool) -> None:
    """What the test images are drawn from, or they themselves, and their digest.

    Raises:
        AssertionError: drawing again does not give the images of the cache.
    """
    from sklearn.datasets import load_digits

    originals = load_digits().images.astype(np.uint8)
    with np.load(versioned(cache) / "digits.npz") as file:
        wanted = file["test_images"]
    drawn: Mapping[str, np.ndarray] = {"images": wanted} if images else {"originals": originals}
    assert images or np.array_equal(draw_test_images(originals), wanted), "the images come out otherwise: use --images"
    np.savez_compressed(folder / "digits.npz", sha256=np.array(digest(wanted)), **drawn)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="of trained models; default %(default)s")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--skeletons", type=Path, help="folder of runtime_models.py that may hold ResNet50's")
    parser.add_argument("--images", action="store_true", help="carry the test images themselves")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
