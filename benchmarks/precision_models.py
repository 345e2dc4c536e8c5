"""The models that precision is judged on: three that are trained here, and the zoo's of every family.

    python benchmarks/precision_models.py [--cache FOLDER] [--only NAME...]

Trains what the cache does not hold yet (about two minutes a network on two cores), prints the top-1 of each network in
TensorFlow, and lists the zoo's models. The data ship in a package (`_digits_data.py`); everything is seeded. The cache
holds one folder per version of data and networks: SavedModels and one `digits.npz` with test and calibration images.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zoo
from _common import add_project_to_path, print_table
from _digits_data import Digits, as_input, make_digits

#: Trained networks; the one after QAT starts from the CNN.
TRAINED = ("cnn", "transformer", "cnn_qat")
#: Those that hold trained ranges, so that INT8 needs no calibration.
QUANTISED = ("cnn_qat",)
#: Untrained ones, of every family: what is looked at is whether they build, how large, and how far they differ.
ZOO = ("ResNet50", "MobileNetV3Small", "MobileNetV3Large", "ConvNeXtTiny", "bert_like", "lstm", "unet_dynamic")
#: Those that the zoo has no entry for: name -> arguments of its builder of Keras applications.
MORE_APPLICATIONS = {"MobileNetV3Large": ("MobileNetV3Large", 224)}
#: Images a call when a test set goes through a function.
BATCH = 250
#: Calibration inputs: batches of the trained models, repeats of the samples' shapes for the others.
CALIBRATION_BATCH = 50


@dataclasses.dataclass(frozen=True)
class Subject:
    """One model with all the data that its conversion and its judgement need.

    Attributes:
        name: one of `TRAINED` or `ZOO`.
        model: what `Converter(model=...)` takes.
        samples: inputs for `build()`.
        calibration: inputs for calibration, of the samples' shapes or smaller.
        checks: fresh inputs to compare on.
        labels: classes of all checks in their order, for top-1; None for untrained models.
    """

    name: str
    model: Any
    samples: tuple[zoo.Feeds, ...]
    calibration: tuple[zoo.Feeds, ...]
    checks: tuple[zoo.Feeds, ...]
    labels: np.ndarray | None = None

    @property
    def quantised(self) -> bool:
        """True when the model itself brings ranges."""
        return self.name in QUANTISED


def load_subject(name: str, cache: Path, scratch: Path) -> Subject:
    """A model by name; trained ones must be in the cache (`ensure_trained`).

    Args:
        name: one of `TRAINED` or `ZOO`.
        cache: the folder of `ensure_trained`.
        scratch: where the zoo writes SavedModels.

    Raises:
        KeyError: no such model; the message lists what there is.
        zoo.UnavailableError: a package is missing.
    """
    if name in TRAINED:
        return _trained_subject(name, cache)
    if name not in ZOO:
        raise KeyError(f"no model {name!r}; there are: {', '.join((*TRAINED, *ZOO))}")
    if name in MORE_APPLICATIONS:
        made = _application(zoo.Job(name, scratch), *MORE_APPLICATIONS[name])
    else:
        made = zoo.load(name, scratch)
    # Typical inputs of a random network are whatever it is fed with: its samples do, and its checks stay fresh.
    return Subject(name, made.model, made.samples, made.samples, made.checks)


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
    """Percentage of rows whose largest score is that of the label."""
    return float(100 * np.mean(np.argmax(scores, axis=-1) == labels))


def ensure_trained(cache: Path, names: Sequence[str] = TRAINED) -> dict[str, Any]:
    """Trains what the cache lacks, in a child process; returns name -> {"top1", "seconds"}.

    Raises:
        RuntimeError: the child failed; its last lines are in the message.
    """
    wanted = [name for name in names if name in TRAINED]
    folder = versioned(cache)
    missing = [name for name in wanted if not (folder / f"{name}.json").is_file()]
    if missing:
        command = [sys.executable, __file__, "--cache", str(cache), "--worker", *missing]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        if child.returncode:
            raise RuntimeError(f"training failed: {' | '.join(child.stderr.strip().splitlines()[-3:])}")
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in wanted}


def versioned(cache: Path) -> Path:
    """The folder of the cache for exactly this data and these networks."""
    own = Path(__file__).parent
    sources = b"".join((own / name).read_bytes() for name in ("_digits_data.py", "_digits_models.py"))
    return cache / hashlib.sha256(sources).hexdigest()[:12]


def default_cache() -> Path:
    """A folder of this user among the system's temporary ones."""
    return Path(tempfile.gettempdir(), f"trt-rewriter-precision-{os.getuid() if hasattr(os, 'getuid') else 'user'}")


def _trained_subject(name: str, cache: Path) -> Subject:
    folder = versioned(cache)
    with np.load(folder / "digits.npz") as file:
        test, labels, calibration = file["test_images"], file["test_labels"], file["calibration_images"]
    return Subject(
        name=name,
        model=str(folder / name),
        samples=tuple({"image": as_input(test[:count])} for count in (1, BATCH)),
        calibration=_batches(calibration, CALIBRATION_BATCH),
        checks=_batches(test, BATCH),
        labels=labels,
    )


def _batches(images: np.ndarray, size: int) -> tuple[zoo.Feeds, ...]:
    return tuple({"image": as_input(images[start : start + size])} for start in range(0, len(images), size))


def _application(job: zoo.Job, application: str, size: int) -> zoo.ZooModel:
    _quiet()
    return zoo._module("_zoo_keras").application(job, application, size)


def _train(names: Sequence[str], cache: Path) -> None:
    """The child's part: trains in the order of `TRAINED` and writes one SavedModel and one JSON file a network."""
    _quiet()
    import keras
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    from _digits_models import train_cnn, train_qat, train_transformer

    digits = make_digits()
    folder = versioned(cache)
    folder.mkdir(parents=True, exist_ok=True)
    _write_digits(folder / "digits.npz", digits)
    cnn_file = folder / "cnn.keras"

    def train_and_keep_cnn() -> Any:
        network = train_cnn(digits)
        network.save(cnn_file)
        return network

    def train_qat_of_cnn() -> Any:
        cnn = keras.models.load_model(cnn_file, compile=False) if cnn_file.is_file() else train_and_keep_cnn()
        return train_qat(cnn, digits)

    makers: Mapping[str, Callable[[], Any]] = {
        "cnn": train_and_keep_cnn,
        "transformer": lambda: train_transformer(digits),
        "cnn_qat": train_qat_of_cnn,
    }
    for name in (name for name in TRAINED if name in names):
        started = time.perf_counter()
        network = makers[name]()
        seconds = time.perf_counter() - started
        _write_saved_model(network, folder / name)
        scores = network.predict(as_input(digits.test_images), batch_size=BATCH, verbose=0)["logits"]
        facts = {"top1": top1(scores, digits.test_labels), "seconds": seconds, "weights": network.count_params()}
        # Last, and at once: its presence says that the network is complete.
        (folder / f"{name}.part").write_text(json.dumps(facts), encoding="utf-8")
        (folder / f"{name}.part").replace(folder / f"{name}.json")


def _write_digits(path: Path, digits: Digits) -> None:
    if not path.is_file():
        part = path.with_name("part.npz")
        keep = ("calibration_images", "test_images", "test_labels")
        np.savez_compressed(part, **{name: getattr(digits, name) for name in keep})
        part.replace(path)


def _write_saved_model(network: Any, folder: Path) -> None:
    """A SavedModel with the signature image [batch, 32, 32, 3] -> logits, probabilities."""
    import tensorflow as tf

    module = tf.Module()
    module.network = network
    image = tf.TensorSpec((None, *network.inputs[0].shape[1:]), tf.float32, name="image")
    module.serve = tf.function(lambda image: network(image, training=False), input_signature=[image])
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})


def _quiet() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="default %(default)s")
    parser.add_argument("--only", nargs="+", choices=TRAINED, default=list(TRAINED))
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    add_project_to_path()
    if options.worker:
        _train(options.worker, options.cache)
        return 0
    facts = ensure_trained(options.cache, options.only)
    print(f"cache: {versioned(options.cache)}")
    print_table(
        [
            {
                "network": name,
                "weights": entry["weights"],
                "training s": round(entry["seconds"]),
                "top-1 %": round(entry["top1"], 2),
            }
            for name, entry in facts.items()
        ]
    )
    print(f"beside these, from the zoo: {', '.join(ZOO)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
