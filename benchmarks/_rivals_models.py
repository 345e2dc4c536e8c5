"""The five models that `rivals.py` runs in every system (and one of ours alone), how they travel, and their answers.

    python benchmarks/_rivals_models.py FOLDER [--only NAME...]

makes their skeletons (needs TensorFlow; 5 MB together, see `_skeleton.py`). Everything else needs ONNX Runtime alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import Any

import _skeleton
import numpy as np
from _common import add_project_to_path, print_table
from runtime_models import MODELS as RUNTIME_MODELS
from runtime_models import Case, Feeds, RuntimeModel, images, tokens

add_project_to_path()

#: Tokens of each text, words that the encoder knows.
LENGTH, VOCABULARY = 128, 8000
BATCHES = (1, 8, 32)


def normal_images(case: Case, rng: np.random.Generator, size: int) -> Feeds:
    """Standard normal images [batch, size, size, 3]."""
    return {"image": rng.standard_normal((case[0], size, size, 3), np.float32)}


def _model(maker: tuple[str, str, tuple[Any, ...]], feeds: Any, *more: int) -> RuntimeModel:
    cases = tuple((batch, *more) for batch in BATCHES)
    return RuntimeModel(maker, cases, cases, feeds, strategy="Range+Optimal")


def _application(name: str) -> RuntimeModel:
    known = RUNTIME_MODELS.get(name)
    maker = known.maker if known else ("_runtime_tf", "application", (name, 224, 0.9))
    return _model(maker, functools.partial(images, size=224))


#: Name -> model; engines are built for exactly the timed shapes, as the compilers of the others compile for them.
MODELS: dict[str, RuntimeModel] = {
    "ResNet50": _application("ResNet50"),
    "MobileNetV3Small": _application("MobileNetV3Small"),
    "bert": _model(
        ("_runtime_tf", "encoder", (6, 768, 12, VOCABULARY, 512)),
        functools.partial(tokens, vocabulary=VOCABULARY), LENGTH,
    ),
    "unet": _model(("_rivals_tf", "unet", ((32, 64, 128, 256), 256)), functools.partial(normal_images, size=256)),
    "vit": _model(("_rivals_tf", "vit", (12, 384, 6, 16, 224)), functools.partial(images, size=224)),
    # Of the networks that were looked at the one with the most Transposes that undo each other.
    "EfficientNetB0": _application("EfficientNetB0"),
}  # fmt: skip

#: What they are, for the text above the tables.
ABOUT = {
    "ResNet50": "ResNet50, 224x224",
    "MobileNetV3Small": "MobileNetV3Small, 224x224",
    "bert": f"encoder as DistilBERT (6 layers of 768, 12 heads), {LENGTH} tokens with a key mask",
    "unet": "U-Net (32, 64, 128, 256 channels), 256x256",
    "EfficientNetB0": "EfficientNetB0, 224x224",
    "vit": "ViT-S/16 (12 layers of 384, 6 heads, mean pooling), 224x224",
}


def feeds_of(name: str, batch: int, number: int) -> Feeds:
    """Inputs number `number` at a batch size: other ones for another number, the same ones everywhere."""
    model = MODELS[name]
    case = (batch, *model.build[0][1:])
    return model.feeds(case, np.random.Generator(np.random.Philox([*case, number])))


def make(name: str, folder: Path) -> dict[str, Any]:
    """Writes the skeleton of one model; returns a line for the table."""
    return _skeleton.write(name, MODELS[name].maker, folder)


def filled(name: str, folder: Path) -> Path:
    """The ONNX file of a model, made of its skeleton when it is not there yet."""
    return _skeleton.filled(name, folder)


def expected(name: str, batch: int, folder: Path) -> Feeds:
    """What ONNX Runtime answers on the CPU, in FP32, to inputs number 1; computed once and kept in the folder."""
    path = folder / f"{name}.{batch}.expected.npz"
    if not path.exists():
        import onnxruntime as ort

        session = ort.InferenceSession(str(filled(name, folder)), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        answers = dict(zip(names, session.run(names, dict(feeds_of(name, batch, 1))), strict=True))
        temporary = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(temporary, **answers)
        temporary.rename(path)
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def with_batches(batches: tuple[int, ...]) -> None:
    """Other batch sizes for all models of this process: to try the scripts on small ones."""
    for name, model in MODELS.items():
        cases = tuple((batch, *model.build[0][1:]) for batch in batches)
        MODELS[name] = dataclasses.replace(model, build=cases, checks=cases)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="NAME")
    options = parser.parse_args()
    rows = []
    for name in options.only:
        rows.append(make(name, options.folder))
        print(rows[-1], file=sys.stderr, flush=True)
    print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
