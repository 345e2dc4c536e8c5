"""The seam between a converted function and what computes it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from passes.model import Model
from rewriter.errors import ConversionError, ConverterStateError, SourceError
from rewriter.runtime.native import NativeSession
from rewriter.runtime.other_errors import first_line


@dataclasses.dataclass(frozen=True)
class Execution:
    """What one run gave.

    Attributes:
        outputs: ONNX output name -> array.
        engine_runs: engine nodes that TensorRT computed.
        fallbacks: reason -> number of engine nodes that ran as their native segment for it.
    """

    outputs: Mapping[str, Any]
    engine_runs: int = 0
    fallbacks: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Executor(Protocol):
    """Computes a spliced model. Implementations are thread-safe."""

    @property
    def provider(self) -> str:
        """Where the native nodes run: "cpu" or "cuda"."""
        ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> Execution:
        """Maps ONNX input names to arrays; the caller keeps ownership of them."""
        ...

    def close(self) -> None:
        """Frees sessions and engines; harmless when repeated."""
        ...


class NativeExecutor:
    """Everything in one ONNX Runtime session on the CPU: each engine node runs as its native segment.

    Args:
        model: the spliced model.
        outputs: ONNX output names to compute.
        fallbacks: reason -> number of engine nodes that are not run by TensorRT for it (the same for every run).
        lazy: True makes the session at the first run.

    Raises:
        SourceError: ONNX Runtime refuses the model.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    provider = "cpu"

    def __init__(
        self, model: Model, outputs: Sequence[str], fallbacks: Mapping[str, int], *, lazy: bool = False
    ) -> None:
        self._model: Model | None = model
        self._outputs = tuple(dict.fromkeys(outputs))
        self._fallbacks = dict(fallbacks)
        self._lock = threading.Lock()
        self._session: NativeSession | None = None
        if not lazy:
            self._ready()

    def run(self, feeds: Mapping[str, np.ndarray]) -> Execution:
        """One run of the session."""
        return Execution(self._ready().run(feeds), 0, self._fallbacks)

    def close(self) -> None:
        """Drops the session; a run in another thread finishes with it."""
        with self._lock:
            self._model = self._session = None

    def _ready(self) -> NativeSession:
        with self._lock:
            if self._session is not None:
                return self._session
            if self._model is None:
                raise ConverterStateError("the executor is closed")
            try:
                self._session = NativeSession(self._model, self._outputs)
            except ConversionError:
                raise
            except Exception as error:
                raise SourceError(f"ONNX Runtime refuses the model: {first_line(error)}") from error
            return self._session
