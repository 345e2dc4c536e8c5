"""What TensorFlow computes: the SavedModel of an island node, loaded and called in this process, on the CPU."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from rewriter.errors import ConverterStateError, SourceError
from rewriter.runtime.native import numpy_dtype
from rewriter.runtime.other_errors import first_line, import_failure
from rewriter.runtime.sections import IslandStep
from rewriter.runtime.strings import to_bytes, to_text

logger = logging.getLogger(__name__)

SIGNATURE = "serving_default"
_LOADING = threading.Lock()
#: Folder and state of its main file -> what is loaded from there.
_IN_MEMORY: weakref.WeakValueDictionary[tuple[Any, ...], _SavedModel] = weakref.WeakValueDictionary()


class TensorFlowIsland:
    """An island that can be called. Thread-safe.

    TensorFlow runs on the CPU whatever there is. Where this package is the first to import TensorFlow, it hides the
    GPUs from it, for TensorFlow takes nearly all of a GPU's memory as soon as it sees one; a program that wants
    TensorFlow on the GPU beside imports it first, and then only the growth of its memory is changed: TensorFlow takes
    what it needs.

    Args:
        step: the island.
        lazy: True loads the SavedModel with the first call.

    Raises:
        MissingDependencyError: TensorFlow is not installed.
        SourceError: the SavedModel is gone, damaged, or another one.
    """

    def __init__(self, step: IslandStep, *, lazy: bool = False) -> None:
        self.step = step
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._closed = False
        self._calls = 0
        self._seconds = 0.0
        if not lazy:
            self._ready()

    def run(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call.

        Args:
            values: what the island reads, by value name; the caller keeps ownership. Strings are `str` or bytes, see
                `rewriter.runtime.strings`.

        Returns:
            What is asked of its outputs, by value name; the caller owns the arrays. Strings are `str`.

        Raises:
            RuntimeError: TensorFlow fails on these values, or gives another dtype than the graph says.
            ConverterStateError: it is closed.
        """
        loaded = self._ready()
        began = time.perf_counter()
        try:
            made = loaded.call({**values, **self.step.constants})
        except Exception as error:
            raise RuntimeError(f"TensorFlow island {self.step.name!r}{_of(self.step)}: {_said(error)}") from error
        with self._lock:
            self._calls += 1
            self._seconds += time.perf_counter() - began
        return made

    def stats(self) -> dict[str, Any]:
        """The ops and reasons of the node; calls that finished; seconds they took, conversions included."""
        with self._lock:
            return {
                "ops": list(self.step.attributes.ops),
                "reasons": list(self.step.attributes.reasons),
                "calls": self._calls,
                "seconds": self._seconds,
            }

    def close(self) -> None:
        """Drops the SavedModel; calls in other threads finish with it. Harmless when repeated."""
        with self._lock:
            self._closed, self._loaded = True, None

    def _ready(self) -> _Loaded:
        with self._lock:
            if self._closed:
                raise ConverterStateError("this function is closed: load the artifact again")
            if self._loaded is None:
                self._loaded = _Loaded(self.step)
            return self._loaded


class _SavedModel:
    """A SavedModel in memory; all islands of one folder share it as long as one of them lives."""

    def __init__(self, tf: Any, folder: Path) -> None:
        #: Keeps variables and tables alive.
        self._module = tf.saved_model.load(str(folder))
        self.function = self._module.signatures[SIGNATURE]
        self.inputs = {name: spec.dtype for name, spec in self.function.structured_input_signature[1].items()}
        self.outputs = frozenset(self.function.structured_outputs)


class _Loaded:
    """The SavedModel of an island, checked against the node."""

    def __init__(self, step: IslandStep) -> None:
        self._tf = import_tensorflow(f"the part {step.name!r}{_of(step)}, which stays in TensorFlow,")
        self._step = step
        self._model = _load(self._tf, step)
        attributes = step.attributes
        lost = set(attributes.input_names) ^ set(self._model.inputs)
        lost |= set(attributes.output_names) - self._model.outputs
        if lost:
            raise SourceError(
                f"the SavedModel at {attributes.saved_model} is not that of TensorFlow island {step.name!r}: "
                f"{sorted(lost)[0]!r} is in one of them only; convert again"
            )

    def call(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Value names in, value names out."""
        step = self._step
        with self._tf.device("/CPU:0"):
            given = {
                key: self._tensor(key, name, values[name])
                for key, name in zip(step.attributes.input_names, step.inputs, strict=True)
            }
            results = self._model.function(**given)
        found = {}
        for key, name, dtype in zip(step.attributes.output_names, step.outputs, step.dtypes, strict=True):
            if name:
                found[name] = _array(results[key], name, dtype)
        return found

    def _tensor(self, key: str, name: str, value: Any) -> Any:
        """A tensor of exactly the dtype that the signature asks for."""
        array = np.asarray(value)
        dtype = self._model.inputs[key]
        if dtype == self._tf.string:
            return self._tf.constant(to_bytes(array), dtype=dtype)
        if array.dtype != dtype.as_numpy_dtype:
            raise TypeError(f"its input {name!r} is {array.dtype}, but the SavedModel takes {dtype.name}")
        return self._tf.constant(array, dtype=dtype)


def _load(tf: Any, step: IslandStep) -> _SavedModel:
    """The SavedModel of an island, read once for all that use it at a time (builds open a model again and again)."""
    from rewriter.frontend.noise import quiet_thread

    folder = Path(step.attributes.saved_model)
    try:
        state = (folder / "saved_model.pb").stat()
    except OSError as error:
        raise SourceError(
            f"the SavedModel of TensorFlow island {step.name!r} is not at {folder}: convert again"
        ) from error
    key = (str(folder.resolve()), state.st_ino, state.st_mtime_ns, state.st_size)
    with _LOADING:
        found = _IN_MEMORY.get(key)
        if found is not None:
            return found
        try:
            with quiet_thread(), tf.device("/CPU:0"):
                found = _SavedModel(tf, folder)
        except Exception as error:  # of many kinds
            raise SourceError(
                f"the SavedModel of TensorFlow island {step.name!r} at {folder} cannot be loaded: {first_line(error)}"
            ) from error
        _IN_MEMORY[key] = found
        return found


def _array(tensor: Any, name: str, expected: int) -> np.ndarray:
    """A result as an array, its dtype checked (0: any)."""
    if tensor.dtype.name == "string":
        array = np.empty(tuple(tensor.shape), dtype=object)
        array[...] = tensor.numpy()
        array, found = to_text(array), TensorProto.STRING
        if expected in (TensorProto.UNDEFINED, found):
            return array
    else:
        array = np.asarray(tensor.numpy())
        if not expected or (expected != TensorProto.STRING and array.dtype == numpy_dtype(expected)):
            return array
    raise TypeError(
        f"its output {name!r} is {tensor.dtype.name}, but the graph says {TensorProto.DataType.Name(expected)}"
    )


def _said(error: Exception) -> str:
    """What TensorFlow says in one line: of an error in a graph the one before the node, not the headline."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    node = next((i for i, line in enumerate(lines) if line.startswith("[[{{node")), 0)
    return lines[node - 1] if node else first_line(error)


def _of(step: IslandStep) -> str:
    """The operators of an island, the first few, for messages."""
    ops = step.attributes.ops
    return f" ({', '.join(ops[:3])}{', ...' * (len(ops) > 3)})" if ops else ""


def import_tensorflow(purpose: str) -> Any:
    """The tensorflow module, kept off the GPU's memory as far as that is still possible.

    Args:
        purpose: what needs it, for the message.

    Raises:
        MissingDependencyError: it is not installed, or it cannot be loaded.
    """
    from rewriter.frontend.noise import quiet_start

    first = "tensorflow" not in sys.modules
    try:
        with quiet_start():
            tf = importlib.import_module("tensorflow")
    except ImportError as error:
        raise import_failure(error, "tensorflow", "TensorFlow", "tf", purpose) from error
    # Where its devices are initialised already, or have limits of their own, whoever did that has decided.
    with contextlib.suppress(RuntimeError, ValueError):
        if first:
            tf.config.set_visible_devices([], "GPU")
            logger.info("TensorFlow sees no GPU in this process; import it first where it is to use one")
        else:
            for device in tf.config.get_visible_devices("GPU"):
                tf.config.experimental.set_memory_growth(device, True)
    return tf
