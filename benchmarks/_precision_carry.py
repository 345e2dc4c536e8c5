"""What the two sides of the precision table share: the files that travel, the conversion, and what comes of it.

A folder of `precision_bundle.py` holds, for each trained MODEL:

    MODEL.onnx                      the exported network
    MODEL.expected.npz              its answers to all test images, native and emulated in every mode, and some logits
    MODEL.MODE/, MODE.json          the artifact with its engine, where it can be built without a GPU
    MODEL.MODE.calibration.json     the ranges of INT8 and FP8, whose engines are built on the GPU

and ResNet50.skeleton with ranges, `digits.npz` (what the test images are drawn from again) and `bundle.json`.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path
from _digits_data import SEED, SIDE, TEST_COPIES, TEST_ORIGINALS, as_input, draw_all
from precision_models import QUANTISED, TRAINED
from precision_table import QUANTISED_MODES

add_project_to_path()

RESNET = "ResNet50"
MODELS = (*TRAINED, RESNET)
#: Those whose latency is measured; the other one is about trained ranges, not about speed.
TIMED = ("cnn", "transformer", RESNET)
#: Values of `precision_mode`.
MODES = ("FP32", "TF32", "FP16", "BF16", "INT8", "FP8")
#: TensorRT-RTX 1.4 builds engines of these only where there is a GPU.
EIGHT_BIT_MODES = ("INT8", "FP8")
#: What each model is converted in: a network with trained int8 ranges is for its own mode and those that keep them.
MODES_OF = {name: MODES if name not in QUANTISED else QUANTISED_MODES for name in MODELS}
#: Batches that engines are built for (one profile spans them) and timed at.
BATCHES = (1, 8, 32)
#: Images whose logits travel beside the answers.
LOGITS = 1000
#: Pixels a side of an image.
SIZES = {name: SIDE if name in TRAINED else 224 for name in MODELS}


class NotReadyError(RuntimeError):
    """An artifact that must be there is not; the message says which."""


class DrawnOtherwiseError(RuntimeError):
    """The test images came out otherwise than where the bundle was made; the message says what to do."""


def convert(
    model: str | Path,
    mode: str,
    out: Path,
    *,
    samples: Sequence[Mapping[str, np.ndarray]] = (),
    inputs: Iterable[Mapping[str, np.ndarray]] = (),
    ranges: Path | None = None,
    backend: Any = "tensorrt_rtx",
) -> dict[str, Any]:
    """Converts an ONNX file and saves the artifact, with what came of it in OUT.json.

    Args:
        model: the file.
        mode: one of `MODES`.
        out: the artifact's folder; an older artifact there is replaced.
        samples: inputs that engines are built for; none builds no engine.
        inputs: calibration inputs, for INT8 and FP8 without `ranges`; none: the model has ranges of its own.
        ranges: a `calibration.json` of an earlier conversion.
        backend: as `Converter` takes it.
    """
    from rewriter import Converter

    inputs = list(inputs)
    calibrates = mode in EIGHT_BIT_MODES and bool(inputs)
    more = {"calibration": ranges} if ranges is not None else {}
    if mode in EIGHT_BIT_MODES and not calibrates and ranges is None:
        more["use_calibration"] = False
    started = time.perf_counter()
    with Converter(model=str(model), precision_mode=mode, backend=backend, progress=False, **more) as converter:
        if calibrates:
            converter.convert(calibration_input_fn=lambda: iter(inputs))
        else:
            converter.convert()
        if samples:
            converter.build(lambda: iter(samples))
        else:
            converter.calibrate()
        converter.save(out, overwrite=out.exists())
        facts = facts_of(converter.report)
    facts["seconds"] = time.perf_counter() - started
    facts_file(out).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def facts_of(report: Any) -> dict[str, Any]:
    """What the tables tell of a conversion.

    Returns:
        precision: what was asked for ("INT8+FP16"). arithmetic: what the engines' nodes really compute in -> nodes.
        engines, segments: engines built, and segments. built_coverage: fraction of the graph in engines. not_built,
        native: why, for each segment without an engine and each kind of node outside of them. notes: the report's.
    """
    arithmetic: collections.Counter[str] = collections.Counter()
    for engine in report.engines:
        if engine.built:
            arithmetic.update(engine.arithmetic)
    return {
        "precision": report.precision.label,
        "arithmetic": dict(arithmetic.most_common()),
        "engines": sum(engine.built for engine in report.engines),
        "segments": len(report.engines),
        "engine_bytes": sum(engine.size for engine in report.engines),
        "build_seconds": sum(engine.seconds for engine in report.engines),
        "built_coverage": report.built_coverage,
        "not_built": [f"{engine.name}: {engine.reason}" for engine in report.engines if not engine.built],
        "native": sorted({f"{verdict.op_type}: {verdict.reason}" for verdict in report.native}),
        "kept": sorted(set(report.precision.kept.values())),
        "failures": [f"{f.stage} {f.target} [{f.kind}]: {f.reason}" for f in report.failures],
        "notes": list(report.precision.notes),
    }


def facts_file(out: Path) -> Path:
    """Where `convert` writes what came of it."""
    return out.with_name(f"{out.name}.json")


def ranges_file(folder: Path, model: str, mode: str) -> Path:
    """The ranges that travel."""
    return folder / f"{model}.{mode}.calibration.json"


def samples_of(model: str) -> list[dict[str, np.ndarray]]:
    """Inputs of the batches that engines are built for; only their shapes matter."""
    return [{"image": np.zeros((batch, SIZES[model], SIZES[model], 3), np.float32)} for batch in BATCHES]


def ready(
    folder: Path, model: str, mode: str, *, make: bool = True, refused: Callable[[Path], str] = lambda _: ""
) -> tuple[Path, dict[str, Any]]:
    """The artifact of a model with its engines, and its facts; converted and built here when it did not travel.

    Engines are built for the architectures that conversions build for by default. Where none can be built, or what
    was built is refused, they are built once more for the GPU of this machine alone; the facts say so.

    Args:
        folder: the bundle.
        model: one of `MODELS`.
        mode: one of `MODES`.
        make: False: what did not travel must have been made before.
        refused: tells of an artifact why its engines cannot be used here, "" when they can.

    Raises:
        NotReadyError: it is not there, and `make` is False.
    """
    out = folder / f"{model}.{mode}"
    if facts_file(out).is_file():
        return out, {"built": "there", **json.loads(facts_file(out).read_text(encoding="utf-8"))}
    made = folder / "made" / f"{model}.{mode}"
    if not facts_file(made).is_file():
        if not make:
            raise NotReadyError(f"the artifact of {model} in {mode} has not been made")
        made.parent.mkdir(exist_ok=True)
        ranges = ranges_file(folder, model, mode)
        told = {"samples": samples_of(model), "ranges": ranges if ranges.is_file() else None}
        source = source_of(folder, model)
        facts = convert(source, mode, made, **told)
        problem = refused(made) if facts["engines"] else "; ".join(facts["not_built"])
        if problem:
            with this_gpu() as backend:
                facts = convert(source, mode, made, **told, backend=backend)
            facts |= {"built": "here, for this GPU", "for all GPUs": problem}
            facts_file(made).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return made, {"built": "here", **json.loads(facts_file(made).read_text(encoding="utf-8"))}


def this_gpu() -> Any:
    """A TensorRT-RTX that builds for the GPU of this machine alone; the caller closes it."""
    from rewriter.backends.client import ProcessBackend
    from rewriter.backends.tensorrt_rtx import FLAVOUR

    return ProcessBackend(dataclasses.replace(FLAVOUR, lowest_default_target=None))


def source_of(folder: Path, model: str) -> Path:
    """The ONNX file of a model; that of ResNet50 is filled with its weights when it is not there yet."""
    if model != RESNET:
        return folder / f"{model}.onnx"
    from runtime_models import filled

    return filled(RESNET, folder)


def draw_test_images(originals: np.ndarray) -> np.ndarray:
    """The test images that `_digits_data.make_digits` draws first of all, uint8 [10000, 32, 32, 3].

    Args:
        originals: all digits as they ship, whole numbers 0..16, [1797, 8, 8].
    """
    rng = np.random.default_rng(SEED)
    test = rng.permutation(len(originals))[:TEST_ORIGINALS]
    return draw_all(originals[np.tile(test, TEST_COPIES)] / 16.0, rng)


def digest(images: np.ndarray) -> str:
    """SHA-256 of the pixels."""
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


def test_images(folder: Path) -> np.ndarray:
    """The test images as the networks take them, drawn once and kept in the folder.

    Raises:
        DrawnOtherwiseError: they are not those of the machine that made the bundle.
    """
    kept = folder / "test_images.npy"
    if not kept.is_file():
        with np.load(folder / "digits.npz") as file:
            images = file["images"] if "images" in file.files else draw_test_images(file["originals"])
            wanted = str(file["sha256"])
        if digest(images) != wanted:
            raise DrawnOtherwiseError("the test images are drawn otherwise here: make the bundle with --images")
        np.save(kept, images)
    return as_input(np.load(kept))


def batches_of(images: np.ndarray, size: int) -> Iterable[np.ndarray]:
    """Consecutive parts of at most `size` images."""
    return (images[start : start + size] for start in range(0, len(images), size))


def arithmetic_text(facts: Mapping[str, Any]) -> str:
    """`INT8 9, FP16 120, FP32 8`: in what the nodes of the engines compute, without those of integers."""
    counts = {kind: count for kind, count in facts["arithmetic"].items() if kind != "other"}
    return ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "no engine"
