"""Engines in memory: TensorRT's runtime, what an engine tells about itself, and its contexts."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from rewriter.backends.base import InputProfile, Profile
from rewriter.errors import ConverterStateError, EngineRefusedError, InvalidParameterError
from rewriter.runtime.gpu.context import Context, allocator_class
from rewriter.runtime.gpu.trt_log import TrtLog, log_of
from rewriter.runtime.other_errors import import_failure
from rewriter.runtime.slot_values import profile_of

if TYPE_CHECKING:
    from rewriter.runtime.gpu.cuda import Cuda
    from rewriter.runtime.gpu.runtime_cache import RuntimeCacheFile

__all__ = ["Context", "LoadedEngine", "TensorInfo", "TrtRuntime", "import_runtime"]

_LOG = logging.getLogger(__name__)
#: TensorRT's DataType -> onnx.TensorProto; by name, for the two modules have each its own enumeration.
_ONNX_TYPES = {
    "FLOAT": TensorProto.FLOAT,
    "HALF": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP8": TensorProto.FLOAT8E4M3FN,
    "INT8": TensorProto.INT8,
    "UINT8": TensorProto.UINT8,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "BOOL": TensorProto.BOOL,
    "INT4": TensorProto.INT4,
    "FP4": TensorProto.FLOAT4E2M1,
}


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
            with cuda.current():
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
        if not data:
            raise EngineRefusedError(f"the engine file {path.name} is empty")
        mark = self.log.count
        with self.cuda.current():
            raw = self._runtime.deserialize_cuda_engine(data)
            if raw is None:
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
        newer = hasattr(raw, "device_memory_size_v2")
        self.activation_bytes = int(raw.device_memory_size_v2 if newer else raw.device_memory_size)

    @property
    def profiles(self) -> int:
        """Number of optimization profiles, at least 1."""
        return len(self.ranges)

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._raw is None

    def profile_for(self, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, tuple[int, ...]]) -> int | None:
        """The profile to run these inputs with (see `profile_of`); None when none contains them."""
        return profile_of(self.ranges, shapes, values)

    def context(self, profile: int, *, own: bool = False) -> Context:
        """The context of a profile: made once and kept.

        Args:
            profile: index, see `profile_for`.
            own: True makes another one, for work that is captured in a CUDA graph: its shapes, addresses and memory
                must stay as they are for as long as the graph lives. The caller closes it when the graph is gone.

        Raises:
            EngineRefusedError: TensorRT cannot make one ("cuDNN graph compilation failed"); the message has the reason.
            DeviceMemoryError: no memory left for it on the device.
            ConverterStateError: the engine is closed.
        """
        if not 0 <= profile < self.profiles:
            raise EngineRefusedError(f"it has no profile {profile}; it has {self.profiles}")
        if not own and profile in self._shared:
            return self._shared[profile]
        context = self._make_context(profile, eager=own)
        self._contexts.append(context)
        if not own:
            self._shared[profile] = context
        return context

    def save_runtime_cache(self) -> bool:
        """Writes what its contexts compiled so far; True when the file holds it afterwards.

        False without a file to write to, without a context, where the file cannot be written (it is told why), and for
        a TensorRT that has no such cache.
        """
        if self._cache is None or self._cache_file is None:
            return False
        mark = self._runtime.log.count
        data = self._cache.serialize()
        if data is None:
            reason = self._runtime.log.error(mark, EngineRefusedError, "TensorRT did not hand out its runtime cache")
            _LOG.warning("%s", reason)
            return False
        return self._cache_file.write(bytes(memoryview(data)))

    def describe_range(self, name: str, profile: int) -> str:
        """How far an input's range goes, for messages; "" when it has none."""
        item = self.ranges[profile].get(name)
        return "" if item is None else f" (its profile goes from {list(item.minimum)} to {list(item.maximum)})"

    def forget(self, context: Context) -> None:
        """Called by a context that is closed."""
        self._contexts = [kept for kept in self._contexts if kept is not context]
        self._shared = {index: kept for index, kept in self._shared.items() if kept is not context}

    def close(self) -> None:
        """Closes its contexts and frees the engine, after the stream is done with them. A second call does nothing."""
        if self._raw is None:
            return
        try:
            if self._contexts:
                self._runtime.cuda.synchronize()
        finally:
            with self._runtime.cuda.current():
                for context in tuple(self._contexts):
                    context.close()
                self._cache = None
                self._raw = None

    def __enter__(self) -> LoadedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_context(self, profile: int, *, eager: bool) -> Context:
        if self._raw is None:
            raise ConverterStateError("this engine is closed: load it again")
        runtime, cuda = self._runtime, self._runtime.cuda
        mark = runtime.log.count
        with cuda.current():
            raw, config = self._raw_context(eager=eager)
            if raw is None:
                raise runtime.log.error(mark, EngineRefusedError, f"{runtime.name} cannot prepare it")
            if self.profiles > 1 and not raw.set_optimization_profile_async(profile, cuda.stream):
                what = f"{runtime.name} cannot switch it to profile {profile}"
                raise runtime.log.error(mark, EngineRefusedError, what)
        return Context(self, raw, profile, cuda.stream, runtime.log, runtime.make_allocator, keep=config)

    def _raw_context(self, *, eager: bool) -> tuple[Any, Any]:
        """A context without memory of its own, by the newest way that this TensorRT knows, and its configuration.

        The configuration must live as long: TensorRT-RTX 1.4 looks at it again when the profile is switched, and a
        process ends there when it is gone (seen on an H100).
        """
        trt, raw = self._runtime.trt, self._raw
        if not hasattr(trt, "ExecutionContextAllocationStrategy"):
            return raw.create_execution_context_without_device_memory(), None
        by_user = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(raw, "create_runtime_config"):
            return raw.create_execution_context(by_user), None
        config = raw.create_runtime_config()
        config.set_execution_context_allocation_strategy(by_user)
        specialisations = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if eager and specialisations is not None:
            # Else kernels for these shapes are compiled in the background, and the graph would keep the slower ones
            # that stand in for them.
            config.dynamic_shapes_kernel_specialization_strategy = specialisations.EAGER
        self._use_cache(config)
        return raw.create_execution_context(config), config

    def _use_cache(self, config: Any) -> None:
        """Gives the engine's one runtime cache to a context; it is made and read with the first one."""
        if self._cache_file is None or not hasattr(config, "create_runtime_cache"):
            return
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            data = self._cache_file.read()
            mark = self._runtime.log.count
            if data is not None and not self._cache.deserialize(data):
                reason = self._runtime.log.error(mark, EngineRefusedError, "TensorRT cannot read it")
                self._cache_file.refuse(str(reason))
                self._cache = config.create_runtime_cache()
        mark = self._runtime.log.count
        if not config.set_runtime_cache(self._cache):
            reason = self._runtime.log.error(mark, EngineRefusedError, "TensorRT does not take its runtime cache")
            _LOG.warning("%s", reason)


def _tensors(trt: Any, raw: Any) -> dict[str, TensorInfo]:
    """Reads the facts of every input and output.

    Raises:
        EngineRefusedError: one has a type that ONNX has no number for.
    """
    infos = {}
    for index in range(raw.num_io_tensors):
        name = str(raw.get_tensor_name(index))
        kind = raw.get_tensor_dtype(name).name
        if kind not in _ONNX_TYPES:
            raise EngineRefusedError(f"its tensor {name!r} has type {kind}, which has no place at an engine's boundary")
        infos[name] = TensorInfo(
            name=name,
            dtype=int(_ONNX_TYPES[kind]),
            is_input=raw.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            on_host=raw.get_tensor_location(name) == trt.TensorLocation.HOST,
            shape=tuple(int(size) for size in raw.get_tensor_shape(name)),
        )
    return infos


def _profiles(raw: Any, tensors: Mapping[str, TensorInfo]) -> tuple[Profile, ...]:
    """Reads every optimization profile; an engine of static shapes has one as well."""
    inputs = [info for info in tensors.values() if info.is_input]
    count = max(1, int(raw.num_optimization_profiles))
    return tuple({info.name: _range(raw, info, index) for info in inputs} for index in range(count))


def _range(raw: Any, info: TensorInfo, index: int) -> InputProfile:
    if info.on_host and raw.is_shape_inference_io(info.name):
        # The bindings of 1.4 and 1.7 take (index, name) here, whatever their help says, and (name, index) below.
        values = raw.get_tensor_profile_values(index, info.name)
        if len(values) == 3:
            low, best, high = (tuple(int(value) for value in bound) for bound in values)
            return InputProfile(low, best, high, is_values=True)
    if -1 not in info.shape:
        return InputProfile(info.shape, info.shape, info.shape)
    low, best, high = (tuple(int(size) for size in dims) for dims in raw.get_tensor_profile_shape(info.name, index))
    return InputProfile(low, best, high)
