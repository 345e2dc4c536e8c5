"""Engines in memory: TensorRT's runtime, what an engine tells about itself, and its contexts."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from rewriter.backends.base import InputProfile, Profile
from rewriter.errors import ConverterStateError, EngineRefusedError, InvalidParameterError
from rewriter.runtime.gpu.context import Context, allocator_class
from rewriter.runtime.gpu.trt_log import TrtLog, log_of
from rewriter.runtime.other_errors import import_failure

if TYPE_CHECKING:
    from rewriter.runtime.gpu.cuda import Cuda
    from rewriter.runtime.gpu.runtime_cache import RuntimeCacheFile

__all__ = ["Context", "LoadedEngine", "TensorInfo", "TrtRuntime", "fit_profile", "import_runtime"]

_LOG = logging.getLogger(__name__)
#: TensorRT's DataType -> onnx.TensorProto; by name, for the two modules have each its own enumeration.
_ONNX_TYPES = {
    "FLOAT": TensorProto.FLOAT, "HALF": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16, "FP8": TensorProto.FLOAT8E4M3FN,
    "INT8": TensorProto.INT8, "UINT8": TensorProto.UINT8, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "BOOL": TensorProto.BOOL, "INT4": TensorProto.INT4, "FP4": TensorProto.FLOAT4E2M1,
}  # fmt: skip


def import_runtime(flavour: str) -> Any:
    """The TensorRT module of a flavour, "tensorrt_rtx" or "tensorrt".

    Raises:
        MissingDependencyError: it is not installed, or cannot be loaded; the message names the extra.
        InvalidParameterError: no such flavour.
    """
    from rewriter.backends import tensorrt, tensorrt_rtx

    for known in (tensorrt_rtx.FLAVOUR, tensorrt.FLAVOUR):
        if known.name == flavour:
            try:
                return importlib.import_module(known.module)
            except ImportError as error:
                raise import_failure(error, known.module, known.name, known.extra, "running engines") from error
    raise InvalidParameterError(f"backend={flavour!r} is not known; it is one of tensorrt_rtx, tensorrt")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What an engine tells about one of its inputs or outputs.

    Attributes:
        name: its name; that of the segment's value.
        dtype: number of its onnx.TensorProto data type.
        is_input: False for an output.
        on_host: TensorRT reads or writes its elements in CPU memory (shapes and other sizes).
        shape: -1 where it is not fixed.
    """

    name: str
    dtype: int
    is_input: bool
    on_host: bool
    shape: tuple[int, ...]


class TrtRuntime:
    """TensorRT's runtime on one device; loads engines.

    Args:
        trt: the module (`import_runtime`).
        cuda: the device and the stream on which the engines will run.

    Raises:
        EngineRefusedError: TensorRT's runtime cannot be made at all.
    """

    def __init__(self, trt: Any, cuda: Cuda) -> None:
        self.trt = trt
        self.cuda = cuda
        self.log: TrtLog = log_of(trt)
        self.make_allocator = allocator_class(trt)
        mark = self.log.count
        try:
            self._runtime = trt.Runtime(self.log.logger)
        except (TypeError, RuntimeError) as error:  # the module's way to say that it got a null pointer
            raise self.log.error(mark, EngineRefusedError, f"{self.name} has no runtime here") from error

    @property
    def name(self) -> str:
        """The module and its version, for messages."""
        return f"{getattr(self.trt, '__name__', 'tensorrt')} {self.version}"

    @property
    def version(self) -> str:
        """The module's version; engines are bound to it."""
        return str(self.trt.__version__)

    def load(self, path: Path, runtime_cache: RuntimeCacheFile | None = None) -> LoadedEngine:
        """Loads a serialised engine.

        Args:
            path: its file, read whole and let go of again. Whether it is the right file (hash, version, targets) is the
                caller's to check: TensorRT takes an engine with a flipped bit without complaint.
            runtime_cache: where the kernels compiled for this engine are kept; None keeps none.

        Raises:
            EngineRefusedError: no such file, or TensorRT refuses it; the message has the reason.
            DeviceMemoryError: no memory left for it on the device.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise EngineRefusedError(f"the engine file {path.name} cannot be read: {reason}") from error
        mark = self.log.count
        raw = self._runtime.deserialize_cuda_engine(data) if data else None
        if raw is None:
            if not data:
                raise EngineRefusedError(f"the engine file {path.name} is empty")
            raise self.log.error(mark, EngineRefusedError, f"{self.name} cannot load it")
        return LoadedEngine(self, raw, runtime_cache)


class LoadedEngine:
    """An engine in device memory. Not thread-safe. Made by `TrtRuntime.load`; a context manager.

    Attributes:
        tensors: its inputs and outputs, in its order.
        profiles: number of optimization profiles, at least 1.
        ranges: the profiles; values instead of dims for inputs that hold shapes.
        activation_bytes: activation memory that one context needs at most.
    """

    def __init__(self, runtime: TrtRuntime, raw: Any, runtime_cache: RuntimeCacheFile | None) -> None:
        self._runtime = runtime
        self._raw = raw
        self._cache_file = runtime_cache
        self._cache: Any = None
        self._shared: dict[int, Context] = {}
        self._contexts: list[Context] = []
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(_tensors(runtime.trt, raw))
        self.ranges: tuple[Profile, ...] = _profiles(raw, self.tensors)
        self.activation_bytes = int(getattr(raw, "device_memory_size_v2", None) or getattr(raw, "device_memory_size", 0))

    @property
    def profiles(self) -> int:
        """Number of optimization profiles, at least 1."""
        return len(self.ranges)

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._raw is None

    def profile_for(
        self, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, tuple[int, ...]]
    ) -> int | None:
        """The profile to run these inputs with (see `fit_profile`); None when none contains them."""
        return fit_profile(self.ranges, shapes, values)

    def context(self, profile: int, *, own: bool = False) -> Context:
        """The context of a profile: made once and kept.

        Args:
            profile: index, see `profile_for`.
            own: True makes another one, for work that is captured in a CUDA graph: its shapes, addresses and memory must
                stay as they are for as long as the graph lives. The caller closes it when the graph is gone.

        Raises:
            EngineRefusedError: TensorRT cannot make one ("cuDNN graph compilation failed"); the message has the reason.
            DeviceMemoryError: no memory left for it on the device.
            ConverterStateError: the engine is closed.
        """
        raise NotImplementedError

    def save_runtime_cache(self) -> bool:
        """Writes what its contexts compiled so far; True when the file holds it afterwards."""
        raise NotImplementedError

    def describe_range(self, name: str, profile: int) -> str:
        """How far an input's range goes, for messages; "" when it has none."""
        item = self.ranges[profile].get(name)
        return "" if item is None else f" (its profile goes from {list(item.minimum)} to {list(item.maximum)})"

    def forget(self, context: Context) -> None:
        """Called by a context that is closed."""

    def close(self) -> None:
        """Closes its contexts and frees the engine, after the stream is done with them. A second call does nothing."""
        self._raw = None

    def __enter__(self) -> LoadedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fit_profile(
    profiles: Sequence[Profile], shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, tuple[int, ...]]
) -> int | None:
    """The index of the profile for these inputs; None when none contains them.

    The first profile whose optimum they are, else the narrowest one that contains them (fewest shapes and values).
    """
    raise NotImplementedError


def _tensors(trt: Any, raw: Any) -> dict[str, TensorInfo]:
    return {}


def _profiles(raw: Any, tensors: Mapping[str, TensorInfo]) -> tuple[Profile, ...]:
    return ()
