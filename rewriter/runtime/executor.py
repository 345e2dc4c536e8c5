"""The seam between a converted function and what computes it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from passes.base import PassError
from passes.model import Model
from passes.precision.ranges import RangeTable
from passes.precision.recipe import Recipe
from rewriter.errors import ConversionError, ConverterStateError, InvalidParameterError, SourceError
from rewriter.runtime.native import Session, open_native
from rewriter.runtime.other_errors import first_line

if TYPE_CHECKING:
    from rewriter.runtime.slots import StoredEngine


@dataclasses.dataclass(frozen=True)
class Execution:
    """What one run gave.

    Attributes:
        outputs: ONNX output name -> array, or the executor's device tensor where outputs were to stay on the device.
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

    def run(self, feeds: Mapping[str, Any], *, on_device: bool | Collection[str] = False) -> Execution:
        """Computes all outputs once.

        Args:
            feeds: ONNX input name -> array; on "cuda" also the caller's own device tensor, not looked at yet. The
                caller keeps ownership of them.
            on_device: leave the outputs on the device, or those of these names; "cuda" only.
        """
        ...

    def stats(self) -> dict[str, Any]:
        """Counters of this executor beyond those that every function has; {} where there are none."""
        ...

    def wait_for_builds(self) -> None:
        """Returns when the engines that are being built are ready or have failed."""
        ...

    def built_engines(self) -> tuple[StoredEngine, ...]:
        """The engines built at run time so far; their files live as long as the executor."""
        ...

    def to_host(self, value: Any) -> np.ndarray:
        """A tensor of the caller's, wherever this executor can read it, as an array of the host."""
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
        threads: of the session, see `rewriter.runtime.native.session_options`.
        chosen: engine operator -> why its engines are not used, see `rewriter.runtime.choosing.none_chosen`.

    Raises:
        SourceError: ONNX Runtime refuses the model.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    provider = "cpu"

    def __init__(
        self,
        model: Model,
        outputs: Sequence[str],
        fallbacks: Mapping[str, int],
        *,
        lazy: bool = False,
        threads: int = 0,
        chosen: Mapping[str, Any] | None = None,
    ) -> None:
        self._model: Model | None = model
        self._chosen = dict(chosen or {})
        self._threads = threads
        self._outputs = tuple(dict.fromkeys(outputs))
        self._fallbacks = dict(fallbacks)
        self._lock = threading.Lock()
        self._session: Session | None = None
        if not lazy:
            self._ready()

    def run(self, feeds: Mapping[str, Any], *, on_device: bool | Collection[str] = False) -> Execution:
        """One run of the session.

        Raises:
            InvalidParameterError: the outputs are to stay on a device.
        """
        if on_device:
            raise InvalidParameterError("outputs can stay on the device only where there is one: this runs on the CPU")
        return Execution(self._ready().run(feeds), 0, self._fallbacks)

    def stats(self) -> dict[str, Any]:
        """Why no engine is used: `engines_chosen`, where the model has engines."""
        return {"engines_chosen": dict(self._chosen)} if self._chosen else {}

    def wait_for_builds(self) -> None:
        """Nothing is ever built."""

    def built_engines(self) -> tuple[StoredEngine, ...]:
        """Nothing is ever built."""
        return ()

    def to_host(self, value: Any) -> np.ndarray:
        """Nothing lies anywhere else."""
        return np.asarray(value)

    def close(self) -> None:
        """Drops the session; a run in another thread finishes with it."""
        with self._lock:
            self._model = self._session = None

    def _make_session(self, model: Model) -> Session:
        return open_native(model, self._outputs, threads=self._threads)

    def _ready(self) -> Session:
        with self._lock:
            if self._session is not None:
                return self._session
            if self._model is None:
                raise ConverterStateError("the executor is closed")
            try:
                self._session = self._make_session(self._model)
            except ConversionError:
                raise
            except Exception as error:
                raise SourceError(f"ONNX Runtime refuses the model: {first_line(error)}") from error
            return self._session


class EmulatedExecutor(NativeExecutor):
    """What the engines would compute, on the CPU: each segment in its lowered arithmetic, rounding included.

    Nothing falls back: every engine node is emulated, also those whose engine is missing.

    Args:
        model: the spliced model.
        outputs: ONNX output names to compute.
        recipe: the arithmetic of the engines.
        ranges: calibrated ranges; None for a recipe that needs none.
        lazy: True makes the emulated model and the session at the first run.
        threads, chosen: as `NativeExecutor` takes them.

    Raises:
        ConversionError: the model cannot be emulated: a range is missing, or an engine node is damaged.
        SourceError, MissingDependencyError: as `NativeExecutor` raises them.
    """

    def __init__(
        self,
        model: Model,
        outputs: Sequence[str],
        recipe: Recipe,
        ranges: RangeTable | None,
        *,
        lazy: bool = False,
        threads: int = 0,
        chosen: Mapping[str, Any] | None = None,
    ) -> None:
        self._recipe = recipe
        self._ranges = ranges
        super().__init__(model, outputs, {}, lazy=lazy, threads=threads, chosen=chosen)

    def _make_session(self, model: Model) -> Session:
        from rewriter.precision.emulation import emulated_artifact

        try:
            emulated = emulated_artifact(model, self._recipe, self._ranges)
        except PassError as error:
            raise ConversionError(f"the engines cannot be emulated: {error}") from error
        return open_native(emulated, self._outputs, honest=True, threads=self._threads)
