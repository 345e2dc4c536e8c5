"""A model of the zoo in the three forms that are compared: SavedModel, unspliced ONNX file, and artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import add_project_to_path
from zoo import ZooModel, load

add_project_to_path()

#: Weights of an ONNX file above this size lie in a file beside it.
LARGE = 1 << 30


@dataclasses.dataclass(frozen=True)
class Forms:
    """One model, three times on disk.

    Attributes:
        saved_model: what TensorFlow loads.
        onnx: our export of it, as it is before any pass: one ONNX file.
        artifact: what `Converter.save` wrote.
        nodes, engines: ONNX nodes that the passes left, and engine nodes that took most of them.
        zoo: the model and its samples.
    """

    saved_model: Path
    onnx: Path
    artifact: Path
    nodes: int
    engines: int
    zoo: ZooModel


def prepare(name: str, folder: Path, *, engines: bool, summary: bool = False, **options: Any) -> Forms:
    """Makes the model and its forms.

    Args:
        name: of the zoo.
        folder: an empty folder for all of it.
        engines: True builds engines for the samples, and puts them into the artifact.
        summary: prints the conversion's summary.
        **options: for the converter.
    """
    from rewriter import Converter

    zoo_model = load(name, folder)
    saved_model = as_saved_model(zoo_model.model, folder / "saved_model")
    onnx_file = unspliced(saved_model, folder / "model.onnx")
    with Converter(model=str(saved_model), progress=False, verify=False, **options) as converter:
        converter.convert()
        if engines:
            converter.build(lambda: iter(zoo_model.samples))
        if summary:
            converter.summary()
        artifact = converter.save(folder / "artifact")
        report = converter.report
    return Forms(saved_model, onnx_file, artifact, report.total_nodes, len(report.engines), zoo_model)


def as_saved_model(model: Any, folder: Path) -> Path:
    """A Keras model, a tf.function or the path of a SavedModel as the folder of a SavedModel."""
    import tensorflow as tf

    if isinstance(model, (str, Path)):
        return Path(model)
    if hasattr(model, "export"):
        model.export(str(folder), verbose=False)
    else:
        module = tf.Module()
        module.function = model
        tf.saved_model.save(module, str(folder), signatures=model.get_concrete_function())
    return folder


def unspliced(saved_model: Path, path: Path, signature: str | None = None) -> Path:
    """Our export of a SavedModel as an ONNX file, before any pass; large weights beside it."""
    import onnx

    from passes import model as models
    from rewriter.frontend import load_source

    proto = models.to_proto(load_source(str(saved_model), signature_key=signature, verify=False).model)
    onnx.save(proto, path, save_as_external_data=proto.ByteSize() > LARGE)
    return path


def of_batch(sample: Mapping[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
    """The sample with so many rows: its own, repeated. Inputs without the sample's batch in front stay as they are."""
    rows = {value.shape[0] for value in sample.values() if value.ndim}
    own = max(rows, default=1)
    return {
        name: np.resize(value, (batch, *value.shape[1:])) if value.ndim and value.shape[0] == own else value
        for name, value in sample.items()
    }


def tensorflow_call(saved_model: Path, sample: Mapping[str, np.ndarray]) -> Any:
    """A function that runs the SavedModel's serving signature from numpy to numpy; loading is over when it returns."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(saved_model))
    signature = loaded.signatures["serving_default"]

    def call() -> dict[str, np.ndarray]:
        found = signature(**{name: tf.constant(value) for name, value in sample.items()})
        return {name: tensor.numpy() for name, tensor in found.items()}

    call.keep = loaded  # type: ignore[attr-defined] - a signature does not keep its model alive
    return call
