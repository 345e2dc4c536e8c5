"""`SavedModelRunner`: the source in TensorFlow 2, as one of polygraphy's runners (its own is for TensorFlow 1)."""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.segments import TensorSpec
from rewriter.errors import InputError, InvalidParameterError, SourceError
from rewriter.polygraphy_runners.metadata import tensor_metadata, widened
from rewriter.polygraphy_runners.talk import import_polygraphy, one_line_errors

if TYPE_CHECKING:
    from rewriter.frontend.callee import Callee


class TensorFlowModel:
    """A TensorFlow model that is called with arrays by name, as a graph and on the CPU.

    As a graph, which is what is exported. It is traced, and run once, for each set of input shapes, by `prepare`.

    Args:
        callee: the model.

    Attributes:
        specs: its inputs, with dtypes as ONNX has them.
    """

    def __init__(self, callee: Callee) -> None:
        import tensorflow as tf

        from rewriter.frontend.onnx_types import onnx_dtype

        self._tf = tf
        self._callee = callee
        self._function = tf.function(lambda *given: callee.call(given), autograph=False)
        self._traced: dict[tuple[tuple[int, ...], ...], Any] = {}
        self.specs = tuple(TensorSpec(a.name, onnx_dtype(a.dtype), a.shape) for a in callee.inputs)

    def prepare(self, inputs: Mapping[str, np.ndarray]) -> tuple[Any, list[Any]]:
        """The traced function for these shapes, and the tensors to call it with.

        Raises:
            InputError: TensorFlow does not take them.
        """
        from rewriter.frontend.noise import quiet
        from rewriter.frontend.samples import one_line, tensorflow_errors, to_named

        arrays = to_named(self._callee, inputs)
        shapes = tuple(array.shape for array in arrays.values())
        try:
            with self._tf.device("/CPU:0"), quiet():
                tensors = [self._tf.constant(arrays[a.name], dtype=a.dtype) for a in self._callee.inputs]
                if shapes not in self._traced:
                    traced = self._function.get_concrete_function(*tensors)
                    traced(*tensors)  # the first run optimises the graph, which is no time of inference
                    self._traced[shapes] = traced
        except tensorflow_errors() as error:
            raise InputError(f"TensorFlow refused the inputs of {self._callee.origin}: {one_line(error)}") from error
        return self._traced[shapes], tensors

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
        """Outputs by public name as arrays of numbers (see `metadata.widened`), and the seconds of the run itself.

        Raises:
            InputError: TensorFlow does not take them.
        """
        from rewriter.frontend.noise import quiet_thread
        from rewriter.frontend.samples import one_line, tensorflow_errors

        traced, tensors = self.prepare(inputs)
        try:
            with self._tf.device("/CPU:0"), quiet_thread():
                start = time.perf_counter()
                arrays = {name: np.asarray(value.numpy()) for name, value in traced(*tensors).items()}
                seconds = time.perf_counter() - start
        except tensorflow_errors() as error:
            raise InputError(f"TensorFlow failed on the inputs of {self._callee.origin}: {one_line(error)}") from error
        return widened(arrays), seconds


def open_tensorflow(
    path: str | Path,
    signature: str | None = None,
    tags: str | Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> TensorFlowModel:
    """Reads a TensorFlow model without converting it.

    Args:
        path: a SavedModel directory, or a .keras, .h5, .hdf5, .pb or .pbtxt file.
        signature: SavedModel only: signature key; default "serving_default".
        tags: SavedModel only: its tag set; default ("serve",).
        inputs: GraphDef file only: names of its input tensors; default: found out.
        outputs: GraphDef file only: the same of its outputs.

    Raises:
        SourceError: it cannot be read, or is no model of TensorFlow.
        InvalidParameterError: a signature or tags for what is no SavedModel, inputs or outputs for what is no GraphDef.
        MissingDependencyError: TensorFlow is not installed.
    """
    from rewriter.frontend import graph_def, keras, saved_model

    path = Path(path)
    if not path.exists():
        raise SourceError(f"there is no model {str(path)!r}")
    if path.is_dir():
        if inputs is not None or outputs is not None:
            raise InvalidParameterError(graph_def.NO_GRAPH_DEF)
        return TensorFlowModel(saved_model.load(path, tags, signature))
    if signature is not None or tags is not None:
        raise InvalidParameterError(f"signature and tags name a part of a SavedModel, and {path} is none")
    if graph_def.is_graph_file(path):
        return TensorFlowModel(graph_def.load(path, inputs, outputs))
    if path.suffix.lower() not in (".keras", ".h5", ".hdf5"):
        raise SourceError(
            f"{path} is no model of TensorFlow (SavedModel directory, .keras, .h5, .pb): run it with another runner, "
            "an .onnx file with --onnxrt"
        )
    return TensorFlowModel(keras.load(path, None))


@functools.cache
def _runner_class() -> Any:
    base = import_polygraphy("polygraphy.backend.base").BaseRunner

    class SavedModelRunner(base):  # type: ignore[misc, valid-type]
        """Runs a SavedModel (a Keras file, a frozen GraphDef) in TensorFlow 2 on the CPU.

        Its inputs and outputs have the names of the signature, as those of the converted model.

        Args:
            path: as `open_tensorflow` takes it, and so the others.
            signature: signature key; default "serving_default".
            tags: tag set; default ("serve",).
            inputs: frozen GraphDef: names of its input tensors.
            outputs: frozen GraphDef: names of its output tensors.
            name: name of the runner; default: one with a counter.

        Raises:
            MissingDependencyError: polygraphy is not installed.
        """

        def __init__(
            self,
            path: str | Path,
            signature: str | None = None,
            tags: str | Sequence[str] | None = None,
            inputs: Sequence[str] | None = None,
            outputs: Sequence[str] | None = None,
            name: str | None = None,
        ) -> None:
            super().__init__(name=name, prefix="trt-rewriter-tf")
            self._source = (path, signature, tags, inputs, outputs)

        def activate_impl(self) -> None:
            with one_line_errors():
                self.model = open_tensorflow(*self._source)

        def get_input_metadata_impl(self) -> Any:
            with one_line_errors():
                return tensor_metadata(self.model.specs)

        def infer_impl(self, feed_dict: Mapping[str, Any]) -> collections.OrderedDict[str, Any]:
            array = import_polygraphy("polygraphy.util").array
            torch = any(array.is_torch(value) for value in feed_dict.values())
            with one_line_errors():
                found, self.inference_time = self.model.run(
                    {name: array.to_numpy(value) for name, value in feed_dict.items()}
                )
            return collections.OrderedDict((n, array.to_torch(v) if torch else v) for n, v in found.items())

        def deactivate_impl(self) -> None:
            del self.model

    SavedModelRunner.__module__, SavedModelRunner.__qualname__ = __name__, "SavedModelRunner"  # for pickling
    return SavedModelRunner


def __getattr__(name: str) -> Any:
    if name == "SavedModelRunner":
        return _runner_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
