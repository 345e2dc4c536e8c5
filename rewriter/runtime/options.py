"""How a converted model is to be run: the options of `load`, checked in one place."""

from __future__ import annotations

import dataclasses
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewriter import params as parameters
from rewriter.errors import InvalidParameterError

#: What `provider` may be.
PROVIDERS = ("auto", "cpu", "cuda")
#: What `execution` may be.
EXECUTIONS = ("auto", "native", "emulate")


@dataclasses.dataclass(frozen=True)
class RuntimeOptions:
    """Options of one converted function; those of the GPU mean nothing where it runs on the CPU.

    Attributes:
        provider: "auto" (the GPU where one can be used, else the CPU), "cpu" (no engine is used) or "cuda" (an error
            where no GPU can be used).
        strict: True raises where an engine is not used, instead of running its segment natively.
        execution: "auto" (engines where they can be used), "native" (none: the model's own arithmetic), or "emulate":
            what the engines would compute, on the CPU and slower.
        cuda_graph: False runs no call as a CUDA graph.
        stream: the CUDA stream on which all work of the function is enqueued, in the order of the calls: a handle, or
            an object with `__cuda_stream__`, `cuda_stream` (PyTorch) or `ptr` (CuPy); here it is the handle. None: a
            stream of the function's own. Nothing can be captured on the legacy default stream (0), so there are no
            CUDA graphs on it.
        device: number of the GPU, as CUDA counts them.
        threads: with how many threads ONNX Runtime computes a native part on the CPU (on a GPU: what is left to the
            CPU there); they sleep while they wait. None: as many as there are cores, which spin a while before they
            sleep: the fastest where nobody else needs the cores. TensorFlow's threads are its own: those of the
            process, `tf.config.threading`.
        wait_for_builds: True lets a call that finds no fitting engine wait until one is built; False runs natively
            meanwhile.
        engine_cache_dir: folder in which engines built at run time are kept for other processes; None: none.
        engine_cache_max_bytes: what the engines in that folder may take together; above it the least recently used
            go first. None: 8 GiB.
        allow_build_at_runtime: whether calls may have engines built. None: as the conversion's parameters say.
        maximum_cached_engines: engines in memory for each engine node. None: likewise.
        cache_full: what a full cache does, "native" or "evict". None: likewise.
        stream_owner: the object that `stream` was taken from, kept alive with the options.

    Raises:
        InvalidParameterError: a value is not allowed, or does not go with the others; the message says what is.
    """

    provider: str = "auto"
    strict: bool = False
    execution: str = "auto"
    cuda_graph: bool = True
    stream: Any = None
    device: int = 0
    threads: int | None = None
    wait_for_builds: bool = False
    engine_cache_dir: str | Path | None = None
    engine_cache_max_bytes: int | None = None
    allow_build_at_runtime: bool | None = None
    maximum_cached_engines: int | None = None
    cache_full: str | None = None
    stream_owner: Any = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        parameters.check_choice("provider", self.provider, PROVIDERS)
        parameters.check_choice("execution", self.execution, EXECUTIONS)
        for name in ("strict", "cuda_graph", "wait_for_builds"):
            self._set(name, parameters.check_switch(name, getattr(self, name)))
        if self.stream_owner is None:
            self._set("stream_owner", self.stream)
        self._set("stream", stream_handle(self.stream))
        self._set("device", _check_integer("device", self.device, 0))
        if self.threads is not None:
            self._set("threads", _check_integer("threads", self.threads, 1))
        if self.allow_build_at_runtime is not None:
            self._set(
                "allow_build_at_runtime", parameters.check_switch("allow_build_at_runtime", self.allow_build_at_runtime)
            )
        if self.maximum_cached_engines is not None:
            self._set(
                "maximum_cached_engines", _check_integer("maximum_cached_engines", self.maximum_cached_engines, 1)
            )
        if self.cache_full is not None:
            parameters.check_choice("cache_full", self.cache_full, parameters.CACHE_FULL_RULES)
        if self.engine_cache_dir is not None:
            self._set("engine_cache_dir", _check_folder("engine_cache_dir", self.engine_cache_dir))
        if self.engine_cache_max_bytes is not None:
            self._set(
                "engine_cache_max_bytes", _check_integer("engine_cache_max_bytes", self.engine_cache_max_bytes, 1)
            )
        self._check_together()

    def filled(self, params: Mapping[str, Any]) -> RuntimeOptions:
        """With what the conversion's parameters say in the place of None.

        Args:
            params: the parameters as the artifact keeps them; what it lacks takes the converter's default.

        Raises:
            InvalidParameterError: the artifact holds a value that is not allowed.
        """
        defaults = {**parameters.DEFAULT_TRT_CONVERSION_PARAMS._asdict(), "cache_full": parameters.CACHE_FULL_RULES[0]}
        names = ("allow_build_at_runtime", "maximum_cached_engines", "cache_full")
        missing = {name: params.get(name, defaults[name]) for name in names if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

    def _check_together(self) -> None:
        """Refuses combinations that cannot be obeyed."""
        if self.engine_cache_max_bytes is not None and self.engine_cache_dir is None:
            raise InvalidParameterError(
                "engine_cache_max_bytes needs engine_cache_dir: there is no cache without a folder"
            )
        if self.execution != "auto" and (self.strict or self.provider == "cuda"):
            other = "strict=True" if self.strict else "provider='cuda'"
            raise InvalidParameterError(f"execution={self.execution!r} uses no engines: leave {other} out")
        if self.stream is not None and (self.provider == "cpu" or self.execution != "auto"):
            other = "provider='cpu'" if self.provider == "cpu" else f"execution={self.execution!r}"
            raise InvalidParameterError(f"{other} runs on the CPU, which has no CUDA streams: leave stream out")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def stream_handle(stream: Any) -> int | None:
    """The handle (`cudaStream_t` as a number) of a CUDA stream; None for None.

    Takes a handle, or an object with `__cuda_stream__` (a method or a value that gives a version and the handle),
    `cuda_stream` or `ptr`. The caller keeps the stream alive.

    Raises:
        InvalidParameterError: it is none of these.
    """
    if stream is None:
        return None
    found = stream
    if hasattr(stream, "__cuda_stream__"):
        pair = stream.__cuda_stream__
        pair = pair() if callable(pair) else pair
        found = pair[1] if isinstance(pair, (tuple, list)) and len(pair) == 2 else None  # (version, handle)
    else:
        for name in ("cuda_stream", "ptr"):
            if hasattr(stream, name):
                found = getattr(stream, name)
                break
    try:
        handle = None if isinstance(found, bool) else operator.index(found)
    except TypeError:
        handle = None
    if handle is None or handle < 0:
        raise InvalidParameterError(
            "stream must be the handle of a CUDA stream, or an object with __cuda_stream__, cuda_stream or ptr, not "
            f"{stream!r}"
        )
    return handle


def _check_integer(name: str, value: object, least: int) -> int:
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < least:
        raise InvalidParameterError(f"{name} must be an integer of at least {least}, not {value!r}")
    return number


def _check_folder(name: str, value: object) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str) or not os.fspath(value):
        raise InvalidParameterError(f"{name} must be the path of a folder, not {value!r}")
    return Path(value)
